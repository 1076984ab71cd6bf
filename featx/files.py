"""Files that are whole or absent, and the safe archive that model files are made of.

One way to write serves segments, models and manifests: a temporary name beside the target, fsync,
rename, fsync of the folder. A reader sees the old bytes or the new ones, after a power cut too.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"
LEFTOVER_S = 3600.0
"""No write takes an hour: a temporary file older than that, whose process is gone, was left by a crash."""


def atomic_write(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write `data` to `path` so that a crash at any moment leaves the old file or the new one.

    Raises
    ------
    OSError
        As the operating system says (disk full, read-only, ...); the target is then untouched and the
        temporary file removed.
    """
    target = Path(path)
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb", buffering=0) as file:
            view = memoryview(data).cast("B")
            while len(view):  # a raw write may be short, e.g. at 2 GB
                view = view[file.write(view) :]
            os.fsync(file.fileno())
        os.replace(temporary, target)
        sync_folder(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def make_folder(folder: Path) -> None:
    """Make `folder` and its missing parents so that they outlive a power cut.

    Raises
    ------
    OSError
        As the operating system says.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sweep_temporaries(folder: Path, *, older_than_s: float = LEFTOVER_S) -> None:
    """Remove what crashed writers left in `folder`: old temporary files of no living process."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > older_than_s and not _is_alive(path.name.split("-")[1]):
                path.unlink()


def _is_alive(process: str) -> bool:
    """Whether a process of that number runs here (unknown, so False, on Windows: open files stay there)."""
    if os.name == "nt" or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def sync_folder(folder: Path) -> None:
    """Make renames and unlinks in `folder` durable (a no-op where folders cannot be opened: Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
