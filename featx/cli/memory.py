"""Memory of the process that the command line runs in."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

M_ARENA_MAX = -8
"""From glibc's ``malloc.h``."""


def limit_arenas() -> None:
    """Let glibc use as many arenas for memory as there are processors; elsewhere do nothing.

    By default it makes up to eight times as many, one for each thread, and what is freed in one is not used
    by the others. With this, and without compiled networks during the search, a cold fit of 1,399 photos
    takes 1.05 GB at its peak instead of 1.57 GB (2 cores of an AMD EPYC, 2026-11-29).
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, os.cpu_count() or 1)
