"""Packing: small segments of a space are written together as larger ones."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from featx.exceptions import StoreFormatError
from featx.files import NO_PLAIN_FILE, open_plain, sweep_temporaries
from featx.spec import FeatureSpec
from featx.stores.base import Ids
from featx.stores.index import DigestIndex
from featx.stores.layout import Freed, plain_folders, write_errors
from featx.stores.segments import BadSegmentError, Segment
from featx.stores.space import StoredSpace

PACK_BYTES, PACK_ROWS = 64 << 20, 1 << 17
"""Largest size of a packed segment. Packing holds one twice in memory."""


def pack_space(space: StoredSpace, max_bytes: int) -> Freed:
    """Pack the small segments of a space (see `HDF5Store.pack`)."""
    removed = n_bytes = 0
    space.sweep()
    space.refresh(force=True)
    for group in _groups(space.segments, max_bytes):
        # Segments may have been pruned or packed by another process; a newer spec is left alone.
        with contextlib.suppress(FileNotFoundError, StoreFormatError):
            if _pack_group(space, group):
                removed += len(group)
                n_bytes += sum(segment.n_bytes for segment in group)
    return Freed(removed, n_bytes)


def n_small(space: StoredSpace) -> int:
    """Number of segments that packing would write together."""
    return len(_small(space.segments, PACK_BYTES))


@contextlib.contextmanager
def only_packer(root: Path, notes: Path) -> Iterator[bool]:
    """Remove what ended processes left in a cache; whether no other process packs it."""
    for folder in (root, *plain_folders(notes.glob("*"))):
        sweep_temporaries(folder)
    with exclusive_lock(root / "pack.lock") as alone:
        yield alone


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[bool]:
    """Take an exclusive lock; False if another process has it.

    Without locking (Windows, some network disks), proceed: duplicate work is harmless.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    try:
        descriptor = open_plain(path, os.O_WRONLY | os.O_CREAT)
    except OSError as error:
        if error.errno not in NO_PLAIN_FILE:
            raise
        yield True  # a stray folder, link or pipe has the lock's name
        return
    with open(descriptor, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # a network disk without locks
            pass
        yield True


def _pack_group(space: StoredSpace, group: list[Segment]) -> bool:
    """Write some segments as one, each digest once, and remove them; False if one of them is bad."""
    found: list[Ids] = []
    rows = np.empty((sum(segment.n_rows for segment in group), *group[0].row_shape), group[0].dtype)
    at = 0
    for segment in group:
        try:
            found.append(space.ids_of(segment))
            for slab in space.scan(segment):
                rows[at : at + len(slab)] = slab
                at += len(slab)
        except BadSegmentError as error:
            space.quarantine(segment.path.name, str(error))
            return False
    ids = np.concatenate(found)
    index = DigestIndex()
    index.add(ids, 0)
    kept = index.find(ids) == np.arange(len(ids))
    if not kept.all():
        ids, rows = ids[kept], rows[kept]
    with write_errors(space.folder, rows.nbytes):
        space.write(ids, rows, FeatureSpec.from_json(group[0].spec))
        space.remove([segment.path.name for segment in group])
    return True


def _groups(segments: list[Segment], max_bytes: int) -> list[list[Segment]]:
    """Segments of neighbouring times that fit one packed segment; float16 and float32 are not mixed."""
    groups: list[list[Segment]] = []
    for dtype in sorted({segment.dtype for segment in segments}, key=str):
        filled = 1.0  # so that the first opens a group
        for segment in _small(segments, max_bytes):
            if segment.dtype != dtype:
                continue
            filled += _share(segment, max_bytes)
            if filled > 1:
                groups.append([])
                filled = _share(segment, max_bytes)
            groups[-1].append(segment)
    return [group for group in groups if len(group) > 1]


def _small(segments: list[Segment], max_bytes: int) -> list[Segment]:
    return [segment for segment in segments if _share(segment, max_bytes) < 0.5]


def _share(segment: Segment, max_bytes: int) -> float:
    """Fraction of a packed segment that this one fills."""
    return max(segment.n_bytes / max_bytes, segment.n_rows / PACK_ROWS)
