"""The cache folder on disk: opening it, the folders of its spaces, what they take, and removing old ones.

::

    <cache>/v1/<spec.key[:16]>/
        spec.json                   the spec; its time stamp is the last use
        seg-<uuid>-<rows>.h5        written under a temporary name, synced, renamed
        quarantine/                 segments that failed a check
    <cache>/v1/notes/<kind>/        small JSON notes
    <cache>/v1/models/, decoding/   files of other packages (`FeatureStore.folder`)
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featx.exceptions import StoreError, StoreFormatError, StoreWarning, StoreWriteError
from featx.files import atomic_write, make_folder, read_plain_json, sweep_temporaries
from featx.spec import FeatureSpec
from featx.stores.base import FORMAT
from featx.stores.segments import BadSegmentError, newer_format, open_segment, versions
from featx.stores.space import (
    KEY_CHARACTERS,
    QUARANTINE,
    SPEC_FILE,
    quarantined,
    read_spec_text,
    rows_of,
    segment_names,
    warn_of_spec,
)

FORMAT_FILE = "format.json"
SPACE_NAME = re.compile(rf"[0-9a-f]{{{KEY_CHARACTERS}}}")
ELSEWHERE = "use another folder (--cache-dir, FEATX_CACHE) or none (--no-cache)"


@dataclass(frozen=True)
class SpaceUsage:
    """What one space takes on disk."""

    key: str
    spec: FeatureSpec | None
    """None if the spec is of a newer featx, or damaged."""
    rows: int
    segments: int
    n_bytes: int
    quarantined: int
    last_used: float
    """Seconds since the epoch."""


@dataclass(frozen=True)
class Freed:
    """Segments that packing or pruning removed, and their bytes."""

    segments: int
    n_bytes: int


def open_root(path: Path) -> Path:
    """Make a cache folder ready and return the inner folder of today's format.

    Raises
    ------
    StoreError
        If it cannot be made or written.
    StoreFormatError
        If a newer featx made it; nothing in it is changed.
    """
    root = path / f"v{FORMAT}"
    try:
        _refuse_newer(path)
        make_folder(path, mode=0o700)
        make_folder(root, follow_links=False)
        if not _may(root, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "it is not writable")
        if _written_format(root) is None:
            if os.path.lexists(root / FORMAT_FILE):
                warnings.warn(
                    StoreWarning(f"{root / FORMAT_FILE}: it is damaged or no file; written again."),
                    stacklevel=2,
                )
            text = json.dumps({"format": FORMAT, **json.loads(versions())})
            with contextlib.suppress(IsADirectoryError):
                atomic_write(root / FORMAT_FILE, text.encode(), follow_links=False)
    except OSError as error:
        raise StoreError(
            f"the cache folder {path} cannot be used: {error.strerror or error}. "
            f"Make it writable, or {ELSEWHERE}."
        ) from error
    return root


def readable_root(path: Path) -> Path:
    """Return the inner folder of a cache that can be read, and may not be writable; nothing is changed.

    Raises
    ------
    StoreError
        If it cannot be read, or is no cache.
    StoreFormatError
        If a newer featx made it.
    """
    root = path / f"v{FORMAT}"
    _refuse_newer(path)
    if not _may(root, os.R_OK | os.X_OK) or _written_format(root) is None:
        raise StoreError(f"the cache folder {path} cannot be read. Make it readable, or {ELSEWHERE}.")
    return root


def is_read_only(path: Path) -> bool:
    """Whether a folder is a cache that this process can read and not write."""
    root = path / f"v{FORMAT}"
    try:
        readable = _may(root, os.R_OK | os.X_OK) and _written_format(root) is not None
    except OSError:
        return False
    return readable and not _may(root, os.W_OK)


def _may(path: Path, mode: int) -> bool:
    """Whether this process may, by its effective rights where the system can tell."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def space_folders(root: Path) -> list[Path]:
    """Folders of spaces, sorted by name."""
    return plain_folders(path for path in root.iterdir() if SPACE_NAME.fullmatch(path.name))


def plain_folders(paths: Iterable[Path]) -> list[Path]:
    """Those of the paths that are folders and no links, sorted."""
    return sorted(path for path in paths if path.is_dir() and not path.is_symlink())


def spec_text_of(folder: Path) -> str | None:
    """Text of a space's spec: from spec.json, or from a segment if that is damaged."""
    text = read_spec_text(folder)
    if text is not None:
        return text
    warn_of_spec(folder)
    for name in segment_names(folder):
        with contextlib.suppress(BadSegmentError, OSError):
            return open_segment(folder / name)[0].spec
    return None


def usage_of(folder: Path) -> SpaceUsage:
    """What a space takes on disk; opens no segment unless spec.json is damaged."""
    names = segment_names(folder)
    sizes = []
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            sizes.append((folder / name).lstat().st_size)
    text = spec_text_of(folder)
    key = hashlib.sha256(text.encode()).hexdigest() if text else folder.name
    spec = None
    with contextlib.suppress(StoreFormatError):
        spec = FeatureSpec.from_json(text) if text else None
    rows = sum(map(rows_of, names))
    return SpaceUsage(key, spec, rows, len(names), sum(sizes), len(quarantined(folder)), _last_used(folder))


def prune(
    root: Path, *, max_bytes: int | None = None, older_than_s: float | None = None, key: str | None = None
) -> Freed:
    """Remove old segments, or one space (see `HDF5Store.prune`)."""
    candidates = []
    for folder in space_folders(root):
        if key is not None and folder.name != key[:KEY_CHARACTERS]:
            continue
        used = _last_used(folder)
        for path in [*quarantined(folder), *map(folder.joinpath, segment_names(folder))]:
            with contextlib.suppress(FileNotFoundError):
                stat = path.lstat()
                candidates.append((path.parent == folder, used, stat.st_mtime, stat.st_size, path))
    candidates.sort(key=lambda candidate: candidate[:3])
    total = sum(size for *_, size, _ in candidates)
    removed = freed = 0
    for _, used, _, size, path in candidates:
        too_old = older_than_s is not None and time.time() - used > older_than_s
        too_much = max_bytes is not None and total - freed > max_bytes
        if key is not None or too_old or too_much:
            path.unlink(missing_ok=True)
            removed, freed = removed + 1, freed + size
    for folder in space_folders(root):
        _remove_if_empty(folder)
    return Freed(removed, freed)


@contextlib.contextmanager
def write_errors(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn an OSError into a StoreWriteError that says how much room there is and what to do."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        free = ""
        with contextlib.suppress(OSError):
            present = next(folder for folder in (path, *path.parents) if folder.exists())
            free = f" ({_megabytes(shutil.disk_usage(present).free)} free, {_megabytes(needed)} needed)"
        wrapped = StoreWriteError(
            f"cannot write to {path}: {error.strerror or error}{free}. Everything committed before stays "
            f"valid. Make room (featx cache prune --max-size 1GB), or {ELSEWHERE}; then run the same command "
            "again: it continues from here."
        )
        wrapped.errno = error.errno
        raise wrapped from error


def _refuse_newer(path: Path) -> None:
    """Raise StoreFormatError if a newer featx keeps its features in `path`."""
    for folder in sorted(path.glob("v[0-9]*")):
        written = _written_format(folder)
        if written is not None and written["format"] > FORMAT:
            raise StoreFormatError(newer_format(folder, written["format"], json.dumps(written)))


def _written_format(folder: Path) -> dict[str, Any] | None:
    """What format.json states; None if featx did not write it, or it is damaged."""
    written = read_plain_json(folder / FORMAT_FILE)
    ours = isinstance(written, dict) and type(written.get("format")) is int and "featx" in written
    return written if ours else None


def _last_used(folder: Path) -> float:
    for path in (folder / SPEC_FILE, folder):
        with contextlib.suppress(OSError):
            return path.lstat().st_mtime
    return 0.0


def _remove_if_empty(folder: Path) -> None:
    """Remove a space without segments. A process that writes to it at this moment makes it again."""
    if segment_names(folder) or quarantined(folder):
        return
    sweep_temporaries(folder)
    with contextlib.suppress(OSError):
        (folder / SPEC_FILE).unlink(missing_ok=True)
        if (folder / QUARANTINE).is_dir() and not (folder / QUARANTINE).is_symlink():
            (folder / QUARANTINE).rmdir()
        folder.rmdir()


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"
