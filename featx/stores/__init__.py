"""Stores of features by spec and image digest, in HDF5 on disk or in memory; the default cache folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from featx.exceptions import StoreError
from featx.stores.base import FORMAT, FeatureStore
from featx.stores.memory import MemoryStore

CACHE_VARIABLE = "FEATX_CACHE"
MEMORY = "memory"
MODELS = "models"
"""Folder of a cache for converted networks."""


def open_store(store: str | os.PathLike[str] | FeatureStore | None = None) -> FeatureStore:
    """Open the store that a user named.

    Parameters
    ----------
    store : path-like, 'memory', FeatureStore or None
        A folder; a store in memory; a store that is already open; or the default folder (`default_cache`).

    Raises
    ------
    StoreError
        If the folder cannot be used.
    StoreFormatError
        If a newer featx made it.
    """
    if store is None:
        return STORES["hdf5"](default_cache())
    if isinstance(store, str | os.PathLike):
        return STORES[MEMORY](Path()) if store == MEMORY else STORES["hdf5"](Path(store))
    return store


def default_cache() -> Path:
    """The default cache folder: ``FEATX_CACHE``, else the platform's folder for caches.

    Raises
    ------
    StoreError
        If neither is known, as for a service without ``HOME``.
    """
    places = ((CACHE_VARIABLE, ""), *PLATFORM_CACHES.get(sys.platform, PLATFORM_CACHES["linux"]))
    for variable, below in places:
        if os.environ.get(variable):
            return Path(os.environ[variable], below)
    raise StoreError(
        f"no cache folder: none of {', '.join(name for name, _ in places)} is set. "
        "Name one (--cache-dir, FEATX_CACHE), or store nothing (--no-cache)."
    )


def converted_networks(*stores: FeatureStore) -> tuple[Path | None, bool]:
    """Return the folder of converted networks, and whether new ones are kept there.

    It is that of the first store that has one. Where features are kept in memory only, it is that of the
    default cache, which is only read: the network still opens in a moment if this machine has converted it.
    """
    for store in stores:
        folder = store.folder(MODELS)
        if folder is not None:
            return folder, True
    try:
        return default_cache() / f"v{FORMAT}" / MODELS, False
    except StoreError:
        return None, False


def _hdf5(path: Path) -> FeatureStore:
    from featx.stores.hdf5 import HDF5Store  # h5py is loaded only for a store on disk
    from featx.stores.layout import is_read_only
    from featx.stores.readonly import ReadOnlyStore

    return ReadOnlyStore(path) if is_read_only(path) else HDF5Store(path)


PLATFORM_CACHES: dict[str, tuple[tuple[str, str], ...]] = {
    "linux": (("XDG_CACHE_HOME", "featx"), ("HOME", ".cache/featx")),
    "darwin": (("HOME", "Library/Caches/featx"),),
    "win32": (("LOCALAPPDATA", "featx/Cache"), ("USERPROFILE", ".cache/featx")),
}
"""Environment variable and the folder below it, tried in order."""

STORES: dict[str, Callable[[Path], FeatureStore]] = {
    "hdf5": _hdf5,
    MEMORY: lambda _path: MemoryStore(),
}
