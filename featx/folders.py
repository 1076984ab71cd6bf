"""The platform's folder for caches of featx."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from featx.exceptions import StoreError

PLATFORM_CACHES: dict[str, tuple[tuple[str, str], ...]] = {
    "linux": (("XDG_CACHE_HOME", "featx"), ("HOME", ".cache/featx")),
    "darwin": (("HOME", "Library/Caches/featx"),),
    "win32": (("LOCALAPPDATA", "featx/Cache"), ("USERPROFILE", ".cache/featx")),
}
"""Environment variable and the folder below it, tried in order."""


def platform_cache(instead: str) -> Path:
    """Return the platform's folder for caches of featx.

    Parameters
    ----------
    instead : str
        The environment variable that can name another folder, for the message.

    Raises
    ------
    StoreError
        If it is not known, as for a service without ``HOME``.
    """
    places = PLATFORM_CACHES.get(sys.platform, PLATFORM_CACHES["linux"])
    for variable, below in places:
        if os.environ.get(variable):
            return Path(os.environ[variable], below)
    raise StoreError(
        f"no cache folder: none of {', '.join([instead, *(name for name, _ in places)])} is set. "
        "Name one (--cache-dir, FEATX_CACHE), or store nothing (--no-cache)."
    )
