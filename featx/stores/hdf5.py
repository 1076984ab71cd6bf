"""HDF5Store: rows on disk in immutable segments, after any crash whole.

::

    <cache>/v1/<spec.key[:16]>/
        spec.json                   the recipe; its time stamp is the last use
        seg-<uuid>-<rows>.h5        written whole under a temporary name, synced, renamed
        quarantine/                 segments that failed a check
    <cache>/v1/notes/<kind>/        small JSON notes

A live HDF5 file is never appended to: a crash in mid-write loses or misaligns rows that were reported
as kept. Segments are made in memory and published by a rename instead, so a reader needs no lock, any
number of processes may write at once, and what one loses at worst is what it had not committed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import StoreError, StoreFormatError, StoreWriteError, UsageError
from featx.files import atomic_write, make_folder, sweep_temporaries
from featx.spec import FeatureSpec
from featx.stores.base import Ids, as_ids, as_stored, check_append, check_shape, find_nearest
from featx.stores.export import Table, export_table
from featx.stores.index import DigestIndex
from featx.stores.migrations import migrate
from featx.stores.segments import (
    FORMAT,
    BadSegmentError,
    Segment,
    newer_format,
    open_segment,
    spec_of,
    versions,
)
from featx.stores.space import (
    KEY_CHARACTERS,
    QUARANTINE,
    SPEC_FILE,
    Space,
    read_spec_text,
    rows_of,
    segment_names,
)

COMMIT_ROWS = 1024
COMMIT_BYTES = 64 << 20
COMMIT_S = 10.0
"""Buffered rows are committed at the first of these: what a crash can cost at most."""

PACK_BYTES, PACK_ROWS = 64 << 20, 1 << 17
"""Small segments are packed into ones of at most this size; packing holds one twice in memory."""

WRITERS = 4
"""Spaces that a commit writes at a time."""

PACK_SEGMENTS, CLOSE_SEGMENTS = 32, 8
"""A commit packs a space with so many small segments; closing does so at fewer."""

FORMAT_FILE = "format.json"
NOTES = "notes"
SPACE_NAME = re.compile(rf"[0-9a-f]{{{KEY_CHARACTERS}}}")
ELSEWHERE = "use another folder (--cache-dir, FEATX_CACHE) or none (--no-cache)"


@dataclass
class _Buffer:
    """Rows of one space that are not on disk yet."""

    space: Space
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
class SpaceUsage:
    """What one space takes on disk."""

    key: str
    spec: FeatureSpec | None
    """None for the recipe of a newer featx, or one that is damaged."""
    rows: int
    segments: int
    n_bytes: int
    quarantined: int
    last_used: float
    """Seconds since the epoch."""


@dataclass(frozen=True)
class Verification:
    """What `HDF5Store.verify` read, and the segments that it set aside with the reason."""

    spaces: int
    segments: int
    rows: int
    bad: tuple[tuple[Path, str], ...]


@dataclass(frozen=True)
class Freed:
    """What `HDF5Store.pack` or `HDF5Store.prune` removed."""

    segments: int
    n_bytes: int


class HDF5Store:
    """Append-only rows in a folder.

    Parameters
    ----------
    path : str or path-like
        The cache folder; made if it is not there. Any number of processes may share it.

    Raises
    ------
    StoreError
        If the folder cannot be made or written.
    StoreFormatError
        If a newer featx made it; nothing in it is touched.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self._root = self.path / f"v{FORMAT}"
        self._buffers: dict[str, _Buffer] = {}
        self._buffered_bytes = 0
        self._oldest = 0.0
        self._lock = threading.RLock()
        self._commit_lock = threading.Lock()
        _open_root(self.path, self._root)

    def missing(self, key: str, ids: Ids) -> NDArray[np.bool_]:
        """See `FeatureStore.missing`; rows that other processes committed are seen."""
        buffer = self._buffer(key)
        buffer.space.refresh()
        absent = ~buffer.space.find(ids)
        with self._lock:
            for position in np.flatnonzero(absent) if buffer.pending or buffer.writing else ():
                absent[position] = buffer.get(ids[position].tobytes()) is None
        # A commit may have moved rows from the buffer to the disk between the two looks.
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
        """See `FeatureStore.commit`; packs a space where many small segments have gathered.

        Raises
        ------
        StoreWriteError
            If the disk is full or cannot be written. Everything committed before stays valid, the rows at
            hand stay buffered.
        """
        self._commit()
        self._pack_where(PACK_SEGMENTS)

    def read(self, key: str, ids: Ids) -> NDArray[np.float32]:
        """See `FeatureStore.read`; the digest of every block that is read is checked.

        A segment that fails is moved to ``quarantine/`` with a `StoreWarning`; rows that it alone held are
        then missing (KeyError): compute them again.
        """
        buffer = self._buffer(key)
        buffer.space.touch()
        held = self._held(buffer, ids)
        on_disk = np.setdiff1d(np.arange(len(ids)), np.fromiter(held, np.int64, len(held)))
        if len(on_disk) and buffer.space.find(ids[on_disk]).sum() < len(on_disk):
            buffer.space.refresh(force=True)
        out = np.empty((len(ids), *(self.row_shape(key) or (0,))), np.float32)
        for position, row in held.items():
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
        """See `FeatureStore.keys`; spaces whose recipe only a newer featx understands are left out."""
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
        path = self._note(kind, name)
        body = json.dumps({"name": name, "value": value}, sort_keys=True)
        note = {"sha256": hashlib.sha256(body.encode()).hexdigest(), "note": json.loads(body)}
        with _write_errors(path):
            make_folder(path.parent)
            atomic_write(path, json.dumps(note, sort_keys=True, indent=1).encode())

    def recall(self, kind: str, name: str) -> dict[str, Any] | None:
        """See `FeatureStore.recall`; a damaged note counts as none."""
        try:
            note = json.loads(self._note(kind, name).read_bytes())
            body = json.dumps(note["note"], sort_keys=True)
            if note["sha256"] != hashlib.sha256(body.encode()).hexdigest() or note["note"]["name"] != name:
                return None
            value: dict[str, Any] = note["note"]["value"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return value

    def close(self) -> None:
        """See `FeatureStore.close`; packs small segments. The store may be used again."""
        self._commit()
        self._pack_where(CLOSE_SEGMENTS)

    def verify(self) -> Verification:
        """Read every row of every space and check it; bad segments are quarantined.

        Returns
        -------
        Verification
        """
        segments = rows = 0
        bad: list[tuple[Path, str]] = []
        folders = self._folders()
        for folder in folders:
            space = self._space_at(folder)
            if space is None:
                continue
            before = len(space.bad)
            space.refresh(force=True)
            for segment in space.segments:
                # A segment that is gone was packed or pruned meanwhile.
                with contextlib.suppress(FileNotFoundError), _quarantining(space, segment):
                    rows += sum(len(slab) for slab in space.scan(segment))
                    segments += 1
            bad += space.bad[before:]
        return Verification(len(folders), segments, rows, tuple(bad))

    def pack(self, *, keys: Collection[str] | None = None, max_bytes: int = PACK_BYTES) -> Freed:
        """Write small segments together into larger ones, then remove them.

        Safe beside other processes: the new one is durable before an old one goes, and a reader that
        loses a file lists the folder again.

        Parameters
        ----------
        keys : collection of str, optional
            The spaces to pack; all where None.
        max_bytes : int
            Largest size of a packed segment; segments of half of it and more are left alone.

        Returns
        -------
        Freed
            The small segments that are gone.
        """
        self._commit()
        removed = n_bytes = 0
        for folder in (self._root, *(self._root / NOTES).glob("*")):
            sweep_temporaries(folder)
        with _only_one(self._root / "pack.lock") as alone:
            for folder in self._folders() if alone else ():
                space = self._space_at(folder)
                if space is None or (keys is not None and space.key not in keys):
                    continue
                sweep_temporaries(folder)
                space.refresh(force=True)
                for group in _groups(space.segments, max_bytes):
                    # Segments that are gone were pruned or packed meanwhile; a newer recipe is not ours.
                    with contextlib.suppress(FileNotFoundError, StoreFormatError):
                        if self._pack_group(space, group):
                            removed += len(group)
                            n_bytes += sum(segment.n_bytes for segment in group)
        return Freed(removed, n_bytes)

    def prune(self, *, max_bytes: int | None = None, older_than_s: float | None = None) -> Freed:
        """Remove what was not used for long, then the least recently used until the rest is small enough.

        Parameters
        ----------
        max_bytes : int, optional
            What may stay. Quarantined files go first, then the oldest segments of the space that was not
            used for longest.
        older_than_s : float, optional
            Spaces whose last use is longer ago than this go whole.

        Returns
        -------
        Freed
        """
        self.commit()
        candidates = []
        for folder in self._folders():
            used = _last_used(folder)
            for path in [*(folder / QUARANTINE).glob("*"), *map(folder.joinpath, segment_names(folder))]:
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    kept = path.parent == folder
                    candidates.append((kept, used, stat.st_mtime, stat.st_size, path))
        candidates.sort(key=lambda candidate: candidate[:3])
        total = sum(size for *_, size, _ in candidates)
        removed = freed = 0
        for _, used, _, size, path in candidates:
            too_old = older_than_s is not None and time.time() - used > older_than_s
            too_much = max_bytes is not None and total - freed > max_bytes
            if too_old or too_much:
                path.unlink(missing_ok=True)
                removed, freed = removed + 1, freed + size
        for folder in self._folders():
            _remove_if_empty(folder)
        for buffer in list(self._buffers.values()):
            buffer.space.refresh(force=True)
        return Freed(removed, freed)

    def usage(self) -> list[SpaceUsage]:
        """What each space takes on disk, the most recently used first; opens no segment."""
        found = []
        for folder in self._folders():
            names = segment_names(folder)
            sizes = []
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    sizes.append((folder / name).stat().st_size)
            text = self._spec_text(folder)
            key = hashlib.sha256(text.encode()).hexdigest() if text else folder.name
            spec = None
            with contextlib.suppress(StoreFormatError):
                spec = FeatureSpec.from_json(text) if text else None
            quarantined = len(list((folder / QUARANTINE).glob("*")))
            rows = sum(map(rows_of, names))
            used = _last_used(folder)
            found.append(SpaceUsage(key, spec, rows, len(names), sum(sizes), quarantined, used))
        return sorted(found, key=lambda usage: -usage.last_used)

    def export(self, key: str, path: str | os.PathLike[str]) -> int:
        """Write one space as one file for other tools; how many rows it has.

        Parameters
        ----------
        key : str
            The space's key, or the beginning of it that no other shares.
        path : path-like
            Its suffix names the format: ``.npz``, ``.csv``, ``.parquet`` or ``.h5``.

        Raises
        ------
        UsageError
            If there is no such space, or no such format.
        StoreError
            If a segment turns out bad on the way; it is quarantined, and nothing is written.
        StoreWriteError
            If the file cannot be written.
        """
        self.commit()
        full = self._full_key(key)
        space = self._buffer(full).space
        space.refresh(force=True)
        table = Table(self.keys()[full].to_json(), space.n_distinct(), space.row_shape or (), space.distinct)
        with _write_errors(Path(path)):
            try:
                export_table(table, Path(path))
            except BadSegmentError as error:
                raise StoreError(f"{error} (and was set aside); export again for the rest.") from error
            except FileNotFoundError as error:
                if Path(path).parent.is_dir():
                    raise StoreError(
                        f"{space.folder} was packed or pruned meanwhile; export again."
                    ) from error
                raise
        return table.n_rows

    def __enter__(self) -> HDF5Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"HDF5Store({str(self.path)!r})"

    def __reduce__(self) -> tuple[type[HDF5Store], tuple[Path]]:
        return HDF5Store, (self.path,)

    def __deepcopy__(self, memo: dict[int, Any]) -> HDF5Store:
        return self  # what `sklearn.base.clone` makes of a parameter shares the rows

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
                space = Space(self._root, key)
                space.refresh()
                self._buffers[key] = _Buffer(space)
            return self._buffers[key]

    def _held(self, buffer: _Buffer, ids: Ids) -> dict[int, NDArray[Any]]:
        """Position and row of the ids whose rows are still buffered."""
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
                with ThreadPoolExecutor(WRITERS) as pool:  # a sync waits for the disk, which takes several
                    for _ in pool.map(self._write, buffers):
                        pass
            finally:
                with self._lock:
                    for buffer in buffers:  # empty, or what an error left
                        self._buffered_bytes += sum(row.nbytes for row in buffer.writing.values())
                        buffer.pending = {**buffer.writing, **buffer.pending}
                        buffer.writing = {}

    def _pack_where(self, n_segments: int) -> None:
        """Pack the spaces written by this process that have so many small segments."""
        with self._lock:
            spaces = [buffer.space for buffer in self._buffers.values() if buffer.space.written]
        crowded = [space.key for space in spaces if len(_small(space.segments, PACK_BYTES)) >= n_segments]
        if crowded:
            with contextlib.suppress(StoreWriteError):  # everything is committed; packing wants free space
                self.pack(keys=crowded)

    def _write(self, buffer: _Buffer) -> None:
        """Write the buffer's rows as segments; each is taken out of it when it is durable."""
        assert buffer.spec is not None
        while buffer.writing:
            digests = list(buffer.writing)
            limit = max(1, COMMIT_BYTES // max(1, buffer.writing[digests[0]].nbytes))
            digests = digests[:limit]
            rows = np.stack([buffer.writing[digest] for digest in digests])  # float32 if one of them is
            with _write_errors(buffer.space.folder, rows.nbytes):
                buffer.space.write(as_ids(digests), rows, buffer.spec)
            with self._lock:
                for digest in digests:
                    del buffer.writing[digest]

    def _pack_group(self, space: Space, group: list[Segment]) -> bool:
        """Write some segments as one, each digest once, and remove them; not if one of them is bad."""
        found: list[Ids] = []
        rows = np.empty((sum(segment.n_rows for segment in group), *group[0].row_shape), group[0].dtype)
        at = 0
        for segment in group:
            try:
                found.append(open_segment(segment.path, space.key)[1])
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
        with _write_errors(space.folder, rows.nbytes):
            space.write(ids, rows, FeatureSpec.from_json(group[0].spec))
            space.remove([segment.path.name for segment in group])
        return True

    def _folders(self) -> list[Path]:
        return sorted(
            path for path in self._root.iterdir() if SPACE_NAME.fullmatch(path.name) and path.is_dir()
        )

    def _space_at(self, folder: Path) -> Space | None:
        text = self._spec_text(folder)
        return self._buffer(hashlib.sha256(text.encode()).hexdigest()).space if text else None

    def _spec_text(self, folder: Path) -> str | None:
        """The recipe of a folder: its spec.json, or, where that is damaged, what a segment says."""
        text = read_spec_text(folder)
        if text is not None:
            return text
        for name in segment_names(folder):
            with contextlib.suppress(BadSegmentError, OSError):
                return spec_of(folder / name)
        return None

    def _note(self, kind: str, name: str) -> Path:
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60].strip(".-")
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        return self._root / NOTES / kind / f"{slug}-{digest}.json"


def _open_root(path: Path, root: Path) -> None:
    """Make the cache folder ready, or say why it cannot be used."""
    try:
        _refuse_newer(path)
        make_folder(root)
        if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "it is not writable")
        if not (root / FORMAT_FILE).exists():
            atomic_write(
                root / FORMAT_FILE, json.dumps({"format": FORMAT, **json.loads(versions())}).encode()
            )
    except OSError as error:
        raise StoreError(
            f"the cache folder {path} cannot be used: {error.strerror or error}. "
            f"Make it writable, or {ELSEWHERE}."
        ) from error
    migrate(path, root)


def _refuse_newer(path: Path) -> None:
    """Raise StoreFormatError where a newer featx keeps its rows in `path`."""
    for folder in sorted(path.glob("v*")):
        if not folder.name[1:].isdecimal():
            continue
        try:
            text = (folder / FORMAT_FILE).read_text()
            written = int(json.loads(text)["format"])
        except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
            text, written = "{}", int(folder.name[1:])
        if written > FORMAT:
            raise StoreFormatError(newer_format(folder, written, text))


@contextlib.contextmanager
def _write_errors(path: Path, needed: int = 0) -> Iterator[None]:
    """Turn the operating system's error into one that says how much room there is and what to do."""
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
            f"valid. Make room (featx cache prune), or {ELSEWHERE}; then run the same again, it goes on "
            "from here."
        )
        wrapped.errno = error.errno
        raise wrapped from error


@contextlib.contextmanager
def _quarantining(space: Space, segment: Segment) -> Iterator[None]:
    try:
        yield
    except BadSegmentError as error:
        space.quarantine(segment.path.name, str(error))


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[bool]:
    """Whether this process may go on alone; where files cannot be locked it may (a repeat is only waste)."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield True
        return
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # a network disk without locks
            pass
        yield True


def _groups(segments: list[Segment], max_bytes: int) -> list[list[Segment]]:
    """Neighbours in time that fit one packed segment; float16 and float32 apart, so that no row changes."""
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
    """How much of a packed segment this one fills."""
    return max(segment.n_bytes / max_bytes, segment.n_rows / PACK_ROWS)


def _last_used(folder: Path) -> float:
    for path in (folder / SPEC_FILE, folder):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def _remove_if_empty(folder: Path) -> None:
    """Remove a space without segments; a process that writes to it just now makes it anew."""
    if segment_names(folder) or any((folder / QUARANTINE).glob("*")):
        return
    sweep_temporaries(folder)
    with contextlib.suppress(OSError):
        (folder / SPEC_FILE).unlink(missing_ok=True)
        if (folder / QUARANTINE).is_dir():
            (folder / QUARANTINE).rmdir()
        folder.rmdir()


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"
