"""Files that are whole or absent, and the safe archive that model files are made of.

One way to write serves segments, models and manifests: a temporary name beside the target, fsync,
rename, fsync of the folder. A reader sees the old bytes or the new ones, after a power cut too.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"


def atomic_write(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write `data` to `path` so that a crash at any moment leaves the old file or the new one.

    Raises
    ------
    OSError
        As the operating system says (disk full, read-only, ...); the target is then untouched and the
        temporary file removed.
    """
    target = Path(path)
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
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


def sync_folder(folder: Path) -> None:
    """Make renames and unlinks in `folder` durable (a no-op where folders cannot be opened: Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
