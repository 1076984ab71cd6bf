"""HDF5Store: features on disk in immutable segments, intact after any crash.

A live HDF5 file is never appended to: a crash during a write loses or misaligns rows that were reported as
stored. Instead, segments are made in memory and published by a rename. So a reader needs no lock, any number
of processes may write at once, and a process that dies loses at most what it had not committed.
`featx.stores.layout` describes the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
import warnings
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import StoreError, StoreWarning, StoreWriteError, UsageError
from featx.spec import FeatureSpec
from featx.stores.base import Ids, as_ids, as_stored, check_append, check_shape, find_nearest
from featx.stores.export import Table, export_table
from featx.stores.layout import (
    Freed,
    SpaceUsage,
    open_root,
    prune,
    space_folders,
    spec_text_of,
    usage_of,
    write_errors,
)
from featx.stores.notes import read_note, write_note
from featx.stores.packing import PACK_BYTES, n_small, only_packer, pack_space
from featx.stores.segments import BadSegmentError
from featx.stores.space import KEY_CHARACTERS, StoredSpace, quarantined

COMMIT_ROWS = 1024
COMMIT_BYTES = 64 << 20
COMMIT_S = 10.0
"""Buffered features are committed at the first of these limits: a crash costs at most that much."""

WRITERS = 4
"""Spaces that a commit writes at the same time."""

PACK_SEGMENTS, CLOSE_SEGMENTS = 32, 8
"""A commit packs a space with so many small segments; closing packs it at fewer."""

EXPORT_TRIES = 20
"""An export begins again if another process packs the space meanwhile."""

NOTES = "notes"


@dataclass
class _Buffer:
    """Features of one space that are not on disk yet."""

    space: StoredSpace
    spec: FeatureSpec | None = None
    pending: dict[bytes, NDArray[Any]] = field(default_factory=dict)
    writing: dict[bytes, NDArray[Any]] = field(default_factory=dict)

    def get(self, digest: bytes) -> NDArray[Any] | None:
        row = self.pending.get(digest)
        return self.writing.get(digest) if row is None else row

    @property
    def row_shape(self) -> tuple[int, ...] | None:
        for rows in (self.pending, self.writing):
            for row in rows.values():
                return row.shape
        return self.space.row_shape


@dataclass(frozen=True)
class Verification:
    """What `HDF5Store.verify` read, and the damaged segments with the reason."""

    spaces: int
    segments: int
    rows: int
    bad: tuple[tuple[Path, str], ...]
    restored: int = 0
    """Intact segments that were taken back from quarantine."""


class HDF5Store:
    """Append-only features in a folder.

    Parameters
    ----------
    path : str or path-like
        The cache folder. It is made if it does not exist. Any number of processes may share it.

    Raises
    ------
    StoreError
        If the folder cannot be made or written.
    StoreFormatError
        If a newer featx made it; nothing in it is changed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = self._place(path)
        self._root = self._open_root(self.path)
        self._buffers: dict[str, _Buffer] = {}
        self._buffered_bytes = 0
        self._oldest = 0.0
        self._lock = threading.RLock()
        self._commit_lock = threading.Lock()

    @staticmethod
    def _place(path: str | os.PathLike[str]) -> Path:
        return Path(path).absolute()

    @staticmethod
    def _open_root(path: Path) -> Path:
        return open_root(path)

    def _space(self, key: str) -> StoredSpace:
        return StoredSpace(self._root, key)

    def _space_folders(self) -> list[Path]:
        return space_folders(self._root)

    def _packing(self) -> AbstractContextManager[bool]:
        return only_packer(self._root, self._root / NOTES)

    def missing(self, key: str, ids: Ids) -> NDArray[np.bool_]:
        """See `FeatureStore.missing`; it sees what other processes committed."""
        buffer = self._buffer(key)
        buffer.space.refresh()
        absent = ~buffer.space.find(ids)
        with self._lock:
            for position in np.flatnonzero(absent) if buffer.pending or buffer.writing else ():
                absent[position] = buffer.get(ids[position].tobytes()) is None
        # A commit may have moved rows from the buffer to the disk since the first look-up.
        if absent.any():
            absent[absent] = ~buffer.space.find(ids[absent])
        return absent

    def append(self, key: str, ids: Ids, features: NDArray[Any], spec: FeatureSpec) -> None:
        """See `FeatureStore.append`; commits by itself at 1,024 rows, 64 MB or 10 s.

        Raises
        ------
        ValueError
            If a row is not finite, or key, ids and rows do not belong together.
        StoreWriteError
            If the commit fails. The rows stay buffered and readable in this process.
        """
        check_append(key, ids, features, spec)
        rows = as_stored(features, spec.dtype)
        if not rows:
            return
        new = self.missing(key, ids)
        buffer = self._buffer(key)
        with self._lock:
            check_shape(rows[0].shape, buffer.row_shape)
            buffer.spec = spec
            for digest, row, is_new in zip(ids, rows, new, strict=True):
                name = digest.tobytes()
                if is_new and name not in buffer.pending:
                    if not self._buffered_bytes:
                        self._oldest = time.monotonic()
                    buffer.pending[name] = row
                    self._buffered_bytes += row.nbytes
            due = (
                len(buffer.pending) >= COMMIT_ROWS
                or self._buffered_bytes >= COMMIT_BYTES
                or (self._buffered_bytes > 0 and time.monotonic() - self._oldest >= COMMIT_S)
            )
        if due:
            self.commit()

    def commit(self) -> None:
        """See `FeatureStore.commit`; packs spaces with many small segments.

        Raises
        ------
        StoreWriteError
            If the disk is full or cannot be written. Everything committed before stays valid, and what is
            not committed stays buffered.
        """
        self._commit()
        self._pack_where(PACK_SEGMENTS)

    def read(self, key: str, ids: Ids) -> NDArray[np.float32]:
        """See `FeatureStore.read`; the digest of every block that is read is checked.

        A damaged segment is moved to ``quarantine/`` with a `StoreWarning`. Rows that are then in no other
        segment are missing (KeyError): compute them again.

        Raises
        ------
        KeyError
            If a row is missing.
        StoreError
            If the disk or the system fails to read a segment. The segment is not touched.
        """
        buffer = self._buffer(key)
        buffer.space.touch()
        buffered = self._buffered(buffer, ids)
        on_disk = np.setdiff1d(np.arange(len(ids)), np.fromiter(buffered, np.int64, len(buffered)))
        if len(on_disk) and buffer.space.find(ids[on_disk]).sum() < len(on_disk):
            buffer.space.refresh(force=True)
        out = np.empty((len(ids), *(self.row_shape(key) or (0,))), np.float32)
        for position, row in buffered.items():
            out[position] = row
        if len(on_disk):
            buffer.space.read(ids[on_disk], out, on_disk)
        return out

    def row_shape(self, key: str) -> tuple[int, ...] | None:
        """See `FeatureStore.row_shape`."""
        buffer = self._buffer(key)
        with self._lock:
            return buffer.row_shape

    def keys(self) -> Mapping[str, FeatureSpec]:
        """See `FeatureStore.keys`; spaces with a spec of a newer featx are left out."""
        found = {usage.key: usage.spec for usage in self.usage() if usage.rows and usage.spec}
        with self._lock:
            for key, buffer in self._buffers.items():
                if buffer.spec and (buffer.pending or buffer.writing):
                    found[key] = buffer.spec
        return found

    def nearest(self, spec: FeatureSpec) -> tuple[FeatureSpec, Mapping[str, tuple[Any, Any]]] | None:
        """See `FeatureStore.nearest`."""
        return find_nearest(spec, self.keys().values())

    def remember(self, kind: str, name: str, value: Mapping[str, Any]) -> None:
        """See `FeatureStore.remember`; atomic and durable.

        Raises
        ------
        StoreWriteError
            If the disk is full or cannot be written.
        """
        with write_errors(self._root / NOTES):
            try:
                write_note(self._root / NOTES, kind, name, value)
            except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
                what = error.filename2 or error.filename
                warnings.warn(
                    StoreWarning(f"{what}: a note cannot be written there ({error.strerror}). Delete it."),
                    stacklevel=2,
                )

    def recall(self, kind: str, name: str) -> dict[str, Any] | None:
        """See `FeatureStore.recall`; a damaged note counts as absent."""
        return read_note(self._root / NOTES, kind, name)

    def folder(self, kind: str) -> Path:
        """See `FeatureStore.folder`."""
        return self._root / kind

    def close(self) -> None:
        """See `FeatureStore.close`; packs small segments. The store may be used again."""
        self._commit()
        self._pack_where(CLOSE_SEGMENTS)

    def verify(self) -> Verification:
        """Read and check every row of every space.

        Damaged segments are quarantined, and intact ones are taken back from quarantine.

        Returns
        -------
        Verification
        """
        segments = rows = restored = 0
        bad: list[tuple[Path, str]] = []
        folders = self._space_folders()
        for folder in folders:
            space = self._space_at(folder)
            if space is None:
                continue
            before = len(space.bad)
            space.refresh(force=True)
            restored += space.restore()
            for segment in space.segments:
                # A segment that is gone was packed or pruned by another process.
                with contextlib.suppress(FileNotFoundError):
                    try:
                        rows += sum(len(slab) for slab in space.scan(segment))
                        segments += 1
                    except BadSegmentError as error:
                        space.quarantine(segment.path.name, str(error))
            bad += space.bad[before:]
        return Verification(len(folders), segments, rows, tuple(bad), restored)

    def pack(self, *, keys: Collection[str] | None = None, max_bytes: int = PACK_BYTES) -> Freed:
        """Write small segments together into larger ones, then remove them.

        Other processes may read and write at the same time: the new segment is durable before an old one is
        removed, and a reader that misses a file lists the folder again.

        Parameters
        ----------
        keys : collection of str, optional
            The spaces to pack; all if None.
        max_bytes : int
            Largest size of a packed segment. Segments of half of it and more are not packed.

        Returns
        -------
        Freed
            The small segments that were removed.
        """
        self._commit()
        freed = []
        with self._packing() as alone:
            for folder in self._space_folders() if alone else ():
                space = self._space_at(folder)
                if space is not None and (keys is None or space.key in keys):
                    freed.append(pack_space(space, max_bytes))
        return Freed(sum(one.segments for one in freed), sum(one.n_bytes for one in freed))

    def prune(
        self, *, max_bytes: int | None = None, older_than_s: float | None = None, key: str | None = None
    ) -> Freed:
        """Remove spaces that were not used for long, then the least recently used segments; or one space.

        Parameters
        ----------
        max_bytes : int, optional
            Remove until at most this many bytes are left: quarantined files first, then the oldest segments
            of the least recently used space.
        older_than_s : float, optional
            Remove spaces whose last use is longer ago than this.
        key : str, optional
            Remove this space, and nothing else: its key, or a beginning of it that is unique.

        Returns
        -------
        Freed
        """
        self.commit()
        key = None if key is None else self._full_key(key)
        for folder in space_folders(self._root):  # what is intact is not deleted before older segments
            space = self._space_at(folder) if quarantined(folder) else None
            if space is not None:
                space.restore()
        freed = prune(self._root, max_bytes=max_bytes, older_than_s=older_than_s, key=key)
        for buffer in list(self._buffers.values()):
            buffer.space.refresh(force=True)
        return freed

    def usage(self) -> list[SpaceUsage]:
        """What each space takes on disk, the most recently used first; opens no segment."""
        return sorted(map(usage_of, space_folders(self._root)), key=lambda usage: -usage.last_used)

    def export(self, key: str, path: str | os.PathLike[str]) -> int:
        """Write one space as one file for other tools, and return its number of rows.

        Parameters
        ----------
        key : str
            The space's key, or a beginning of it that is unique.
        path : path-like
            Its ending names the format, see `featx.stores.export.WRITERS`.

        Raises
        ------
        UsageError
            If there is no such space or format.
        StoreError
            If a segment is damaged (it is quarantined, and nothing is written), or if other processes pack or
            prune the space all the time.
        StoreWriteError
            If the file cannot be written.
        """
        self.commit()
        full = self._full_key(key)
        space = self._space(full)  # its segments do not change while they are exported
        spec = self.keys()[full]
        for _ in range(EXPORT_TRIES):
            names = space.names()
            space.refresh(force=True)
            if not set(names) <= {segment.path.name for segment in space.segments}:
                continue  # another process packed them meanwhile; the packed segment may not be listed yet
            with write_errors(Path(path)):
                try:
                    table = Table(
                        space.n_distinct(),
                        {str(spec.block): space.row_shape or ()},
                        lambda names: ((ids, [features]) for ids, features in space.distinct()),
                        spec.to_json(),
                    )
                    export_table(table, Path(path))
                    return table.n_rows
                except BadSegmentError as error:
                    raise StoreError(f"{error} (it was quarantined); export again for the rest.") from error
                except FileNotFoundError:  # another process has packed or pruned segments
                    if not Path(path).parent.is_dir():
                        raise
        raise StoreError(f"{space.folder}: other processes pack or prune it; export when they have ended.")

    def __enter__(self) -> HDF5Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"HDF5Store({str(self.path)!r})"

    def __reduce__(self) -> tuple[type[HDF5Store], tuple[Path]]:
        return HDF5Store, (self.path,)

    def __deepcopy__(self, memo: dict[int, Any]) -> HDF5Store:
        return self  # a clone of an estimator shares the store

    def _full_key(self, start: str) -> str:
        keys = self.keys()
        found = [key for key in keys if key.startswith(start)]
        if len(found) != 1:
            names = ", ".join(key[:KEY_CHARACTERS] for key in keys) or "none yet"
            raise UsageError(f"{start!r} names {len(found)} spaces of {self.path}; there are: {names}.")
        return found[0]

    def _buffer(self, key: str) -> _Buffer:
        with self._lock:
            if key not in self._buffers:
                space = self._space(key)
                space.refresh()
                self._buffers[key] = _Buffer(space)
            return self._buffers[key]

    def _buffered(self, buffer: _Buffer, ids: Ids) -> dict[int, NDArray[Any]]:
        """Positions and rows of the ids that are still buffered."""
        with self._lock:
            if not buffer.pending and not buffer.writing:
                return {}
            found = ((position, buffer.get(digest.tobytes())) for position, digest in enumerate(ids))
            return {position: row for position, row in found if row is not None}

    def _commit(self) -> None:
        with self._commit_lock:
            with self._lock:
                buffers = [buffer for buffer in self._buffers.values() if buffer.pending]
                for buffer in buffers:
                    buffer.writing, buffer.pending = buffer.pending, {}
                    buffer.space.written = True
                self._buffered_bytes = 0
            try:
                with ThreadPoolExecutor(WRITERS) as pool:  # each waits for the disk
                    for _ in pool.map(self._write, buffers):
                        pass
            finally:
                with self._lock:
                    for buffer in buffers:  # empty unless an error occurred
                        self._buffered_bytes += sum(row.nbytes for row in buffer.writing.values())
                        buffer.pending = {**buffer.writing, **buffer.pending}
                        buffer.writing = {}

    def _pack_where(self, n_segments: int) -> None:
        """Pack the spaces that this process wrote to and that have at least `n_segments` small segments."""
        with self._lock:
            spaces = [buffer.space for buffer in self._buffers.values() if buffer.space.written]
        crowded = [space.key for space in spaces if n_small(space) >= n_segments]
        if crowded:
            with contextlib.suppress(StoreWriteError):  # everything is committed; packing needs free space
                self.pack(keys=crowded)

    def _write(self, buffer: _Buffer) -> None:
        """Write the buffer's rows as segments; rows leave the buffer when they are durable."""
        assert buffer.spec is not None
        while buffer.writing:
            digests = list(buffer.writing)
            limit = max(1, COMMIT_BYTES // max(1, buffer.writing[digests[0]].nbytes))
            digests = digests[:limit]
            rows = np.stack([buffer.writing[digest] for digest in digests])  # float32 if one of them is
            with write_errors(buffer.space.folder, rows.nbytes):
                buffer.space.touch()  # writing is a use: nobody prunes the space now
                buffer.space.write(as_ids(digests), rows, buffer.spec)
                buffer.space.touch()
            with self._lock:
                for digest in digests:
                    del buffer.writing[digest]

    def _space_at(self, folder: Path) -> StoredSpace | None:
        text = spec_text_of(folder)
        return self._buffer(hashlib.sha256(text.encode()).hexdigest()).space if text else None
