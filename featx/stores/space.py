"""StoredSpace: the folder of one spec's segments, and what this process knows of it.

The list of segments is the folder's listing, and the index is made from their ids: nothing else is stored
that could become outdated. Other processes may add, pack and prune at any time. If a segment is gone when it
is read, the folder is listed again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import threading
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import StoreError, StoreFormatError, StoreWarning
from featx.files import atomic_write, make_folder, read_plain, sweep_temporaries, sync_folder
from featx.spec import FeatureSpec
from featx.stores.base import DIGEST_BYTES, Ids
from featx.stores.index import DigestIndex
from featx.stores.segments import BadSegmentError, Segment, build_segment, is_intact, open_segment, read_rows

KEY_CHARACTERS = 16
SPEC_FILE = "spec.json"
QUARANTINE = "quarantine"
SEGMENT_NAME = re.compile(r"seg-[0-9a-f]{32}-([0-9]{1,12})\.h5")

SETTLED_S = 2.0
"""A folder's time stamp is trusted if it is older than this. Stamps can be as coarse as 2 s (FAT)."""

READERS = 4
"""Threads that read segments at the same time. More only wait for the disk or for memory."""

GONE = (errno.ENOENT, errno.ESTALE)
"""No such file, on a disk and on a network disk."""

_UNSETTLED, _NO_FOLDER = -1, 0


@dataclass(frozen=True)
class _Part:
    """What a read takes from one segment."""

    segment: Segment
    requested: NDArray[np.int64]
    """Positions in the requested ids."""
    rows: NDArray[np.int64]
    """Their rows in the segment."""


class StoredSpace:
    """One folder of segments. Safe to call from several threads."""

    readers = READERS

    def __init__(self, root: Path, key: str) -> None:
        self.key = key
        self.folder = root / key[:KEY_CHARACTERS]
        self.bad: list[tuple[Path, str]] = []
        self.written = False
        self._index = DigestIndex()
        self._segments: dict[str, Segment] = {}
        self._firsts: dict[str, int] = {}
        self._next = 0
        self._ignored: set[str] = set()
        self._stamp = _UNSETTLED
        self._prepared = False
        self._lock = threading.RLock()

    @property
    def segments(self) -> list[Segment]:
        """The known segments, oldest first."""
        with self._lock:
            return list(self._segments.values())

    @property
    def row_shape(self) -> tuple[int, ...] | None:
        """Shape of one row, or None without rows."""
        with self._lock:
            return next((segment.row_shape for segment in self._segments.values()), None)

    def find(self, ids: Ids) -> NDArray[np.bool_]:
        """Mask of the ids, shape (n,), that have a row."""
        with self._lock:
            return self._index.find(ids) >= 0

    def refresh(self, *, force: bool = False) -> None:
        """Learn what other processes added and removed."""
        with self._lock:
            stamp = _stamp(self.folder)
            if stamp == self._stamp and not force:
                return
            names, strays = _listed(self.folder)
            listed = set(names)
            for name in set(strays) - self._ignored:
                self._ignored.add(name)
                warnings.warn(
                    StoreWarning(
                        f"{self.folder / name}: it is a folder, link or pipe, not a segment; ignored."
                    ),
                    stacklevel=2,
                )
            for name in self._segments.keys() - listed:
                self._forget(name)
            self._take(_oldest_first(self.folder, listed - self._segments.keys() - self._ignored))
            settled = stamp != _NO_FOLDER and time.time() - stamp / 1e9 > SETTLED_S
            self._stamp = stamp if settled else _UNSETTLED

    def read(self, ids: Ids, out: NDArray[np.float32], positions: NDArray[np.int64]) -> None:
        """Read the rows of `ids` into ``out[positions]``.

        Raises
        ------
        KeyError
            If a row is not there, or no longer.
        StoreError
            If a segment cannot be read for a reason that is not its content.
        """
        while True:  # every round ends, or has one segment or block fewer
            parts = self._locate(ids)
            if len(parts) < 2:
                failures = [self._fill(out, positions, part) for part in parts]
            else:  # reading and hashing release the GIL
                with ThreadPoolExecutor(min(self.readers, len(parts))) as pool:
                    failures = list(pool.map(lambda part: self._fill(out, positions, part), parts))
            if not any(failures):
                return
            for part, error in zip(parts, failures, strict=True):
                if isinstance(error, BadSegmentError):
                    self.quarantine(part.segment.path.name, str(error))
                elif error is not None and error.errno not in GONE:
                    raise StoreError(f"cannot read {part.segment.path}: {error.strerror}") from error
            self.refresh(force=True)

    def scan(self, segment: Segment) -> Iterator[NDArray[Any]]:
        """All rows of a segment in slabs, checked, in the stored dtype."""
        for _, values in self._rows(segment, np.arange(segment.n_rows)):
            yield values

    def ids_of(self, segment: Segment) -> Ids:
        """The digests of a segment, shape (n, 32)."""
        return self._load(segment.path.name)[1]

    def names(self) -> list[str]:
        """Names of the segments that are listed now, oldest first."""
        return segment_names(self.folder)

    def sweep(self) -> None:
        """Remove temporary files of processes that have ended."""
        sweep_temporaries(self.folder)

    def n_distinct(self) -> int:
        """Number of digests that have a row here."""
        return sum(int(kept.sum()) for _, _, kept in self._distinct())

    def distinct(self) -> Iterator[tuple[Ids, NDArray[np.float32]]]:
        """Every digest once, with its row, in slabs; BadSegmentError names a damaged segment."""
        for segment, ids, kept in self._distinct():
            start = 0
            try:
                for values in self.scan(segment):
                    part = slice(start, start + len(values))
                    yield ids[part][kept[part]], values[kept[part]].astype(np.float32)
                    start += len(values)
            except BadSegmentError as error:
                self.quarantine(segment.path.name, str(error))
                raise BadSegmentError(f"{segment.path}: {error}") from error

    def _distinct(self) -> Iterator[tuple[Segment, Ids, NDArray[np.bool_]]]:
        """Segments with their ids, and a mask of the rows that the index refers to."""
        for segment in self.segments:
            ids = self.ids_of(segment)
            with self._lock:
                first = self._firsts[segment.path.name]
                kept = self._index.find(ids) == first + np.arange(segment.n_rows)
            yield segment, ids, kept

    def write(self, ids: Ids, rows: NDArray[Any], spec: FeatureSpec) -> None:
        """Publish rows as a new segment. It is durable when this returns."""
        name = f"seg-{uuid.uuid4().hex}-{len(ids)}.h5"
        image = build_segment(ids, rows, spec)
        self._publish(name, image, spec)
        with self._lock:
            self._take([name])

    def _publish(self, name: str, image: memoryview, spec: FeatureSpec) -> None:
        self._prepare(spec)
        try:
            atomic_write(self.folder / name, image, follow_links=False)
        except FileNotFoundError:  # another process pruned the folder or the temporary file
            self._prepared = False
            self._prepare(spec)
            atomic_write(self.folder / name, image, follow_links=False)

    def remove(self, names: list[str]) -> None:
        """Remove segments whose rows are in other segments or no longer needed."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                (self.folder / name).unlink()
            with self._lock:
                self._forget(name)
        with contextlib.suppress(FileNotFoundError):
            sync_folder(self.folder)

    def quarantine(self, name: str, reason: str) -> None:
        """Save the intact rows of a damaged segment, move it to ``quarantine/``, and warn.

        If the rows cannot be saved now (the disk is full, no memory), the segment stays where it is, and only
        its damaged blocks are refused.
        """
        source, shelf = self.folder / name, self.folder / QUARANTINE
        n_rows = rows_of(name)
        with self._lock:
            saved, damaged = self._rescue(source)
            self.bad.append((source, reason))
            if saved is None:
                n_refused = self._refuse(name, damaged)
                outcome = f"The rest cannot be saved now, so it stays; {n_refused} of its {n_rows} rows"
            else:
                self._forget(name)
                self._ignored.add(name)
                outcome = f"Moved to {QUARANTINE}/; {saved} of its {n_rows} rows were saved, {n_rows - saved}"
                try:
                    make_folder(shelf, follow_links=False)
                    os.replace(source, shelf / name)
                    sync_folder(self.folder)
                    sync_folder(shelf)
                except FileNotFoundError:
                    return  # another process was first, and warned
                except OSError as error:
                    reason += f" (and cannot be moved: {error.strerror})"
        warnings.warn(StoreWarning(f"{source}: {reason}. {outcome} will be computed again."), stacklevel=2)

    def restore(self) -> int:
        """Take intact segments of this space back from quarantine; return their number."""
        restored = 0
        for path in quarantined(self.folder):
            with contextlib.suppress(FileNotFoundError):
                if not SEGMENT_NAME.fullmatch(path.name) or not is_intact(path, self.key):
                    continue
                segment, _ = open_segment(path, self.key)
                if segment.n_rows != rows_of(path.name) or self.row_shape not in (None, segment.row_shape):
                    continue
                os.replace(path, self.folder / path.name)
                sync_folder(self.folder)
                with self._lock:
                    self._ignored.discard(path.name)
                    self._take([path.name])
                restored += 1
        return restored

    def touch(self) -> None:
        """Record that the space is used now, in the time stamp of its spec.json."""
        if not self.folder.is_symlink():
            with contextlib.suppress(OSError):
                os.utime(self.folder / SPEC_FILE, follow_symlinks=False)

    def _locate(self, ids: Ids) -> list[_Part]:
        """For each segment that is needed: which of the ids lie in it, and at which rows."""
        with self._lock:
            places = self._index.find(ids)
            if (places < 0).any():
                self.refresh(force=True)
                places = self._index.find(ids)
            if (places < 0).any():
                absent = np.flatnonzero(places < 0)
                raise KeyError(
                    f"{len(absent)} of {len(ids)} rows are not in space {self.key[:KEY_CHARACTERS]} "
                    f"(first: {ids[absent[0]].tobytes().hex()})"
                )
            names = list(self._firsts)
            firsts = np.fromiter(self._firsts.values(), np.int64, len(names))
            which = np.searchsorted(firsts, places, side="right") - 1
            order = np.argsort(which, kind="stable")
            groups = np.split(order, np.flatnonzero(np.diff(which[order])) + 1) if len(order) else []
            return [
                _Part(self._segments[names[which[group[0]]]], group, places[group] - firsts[which[group[0]]])
                for group in groups
            ]

    def _take(self, names: list[str]) -> None:
        """Open segments and index their ids; damaged ones are quarantined afterwards."""
        first, bad = self._next, []
        found = np.empty((sum(self._most_rows(name) for name in names), DIGEST_BYTES), np.uint8)
        try:
            for name in names:
                if name in self._segments:
                    continue
                try:
                    segment, ids = self._open(name)
                except BadSegmentError as error:
                    bad.append((name, str(error)))
                    continue
                except OSError as error:
                    if error.errno not in GONE:
                        raise StoreError(
                            f"cannot read {self.folder / name}: {error.strerror or error}"
                        ) from error
                    continue
                self._segments[name], self._firsts[name] = segment, self._next
                found[self._next - first :][: len(ids)] = ids
                self._next += segment.n_rows
        finally:  # index what was opened
            self._index.add(found[: self._next - first], first)
        for name, reason in bad:
            self.quarantine(name, reason)

    def _most_rows(self, name: str) -> int:
        """Rows that the segment can have: as many as its name states, if the file is large enough."""
        with contextlib.suppress(OSError):
            return min(rows_of(name), (self.folder / name).lstat().st_size // DIGEST_BYTES)
        return 0

    def _open(self, name: str) -> tuple[Segment, Ids]:
        segment, ids = self._load(name)
        shape = self.row_shape
        if segment.n_rows != rows_of(name):
            raise BadSegmentError(f"it holds {segment.n_rows} rows")
        if shape is not None and segment.row_shape != shape:
            raise BadSegmentError(f"its rows have shape {segment.row_shape}, those of the space {shape}")
        return segment, ids

    def _load(self, name: str) -> tuple[Segment, Ids]:
        return open_segment(self.folder / name, self.key)

    def _rows(
        self, segment: Segment, rows: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        return read_rows(segment, rows)

    def _fill(
        self, out: NDArray[np.float32], positions: NDArray[np.int64], part: _Part
    ) -> BadSegmentError | OSError | None:
        """Read a part into ``out[positions]``; the error, or None."""
        try:
            for some, values in self._rows(part.segment, part.rows):
                out[positions[part.requested[some]]] = values
        except (BadSegmentError, OSError) as error:
            return error
        return None

    def _forget(self, name: str) -> None:
        segment = self._segments.pop(name, None)
        if segment is not None:
            first = self._firsts.pop(name)
            self._index.drop(first, first + segment.n_rows)

    def _refuse(self, name: str, blocks: list[NDArray[np.int64]]) -> int:
        """Drop blocks of a segment from the index; the number of their rows."""
        first = self._firsts.get(name)
        if first is None:
            self._ignored.add(name)
            return 0
        for block in blocks:
            self._index.drop(first + int(block[0]), first + int(block[-1]) + 1)
        return sum(map(len, blocks))

    def _rescue(self, path: Path) -> tuple[int | None, list[NDArray[np.int64]]]:
        """Copy the rows of intact blocks into a new segment.

        Returns
        -------
        saved : int or None
            Number of rows that were copied; None if they cannot be copied now.
        damaged : list of arrays
            Row numbers of each damaged block.
        """
        damaged: list[NDArray[np.int64]] = []
        kept, rows = [], []
        try:
            segment, ids = open_segment(path, self.key)
            for start in range(0, segment.n_rows, segment.block_rows):
                block = np.arange(start, min(start + segment.block_rows, segment.n_rows))
                try:
                    rows += [values for _, values in read_rows(segment, block)]
                    kept.append(ids[block])
                except BadSegmentError:
                    damaged.append(block)
            if kept:
                saved = np.concatenate(kept)
                self.write(saved, np.concatenate(rows), FeatureSpec.from_json(segment.spec))
        except (BadSegmentError, FileNotFoundError):
            return 0, damaged  # nothing can be read, or another process has moved it
        except (OSError, MemoryError, StoreFormatError):
            return None, damaged
        return sum(map(len, kept)), damaged

    def _prepare(self, spec: FeatureSpec) -> None:
        """Make the folder and its spec.json, durably; refuse a folder of another spec."""
        if self._prepared:
            return
        make_folder(self.folder, follow_links=False)
        found = read_spec_text(self.folder)
        if found is None:
            warn_of_spec(self.folder)
            with contextlib.suppress(IsADirectoryError):  # the segments state the spec, too
                atomic_write(self.folder / SPEC_FILE, spec.to_json().encode(), follow_links=False)
        elif hashlib.sha256(found.encode()).hexdigest() != self.key:
            raise StoreError(
                f"{self.folder} holds features of another spec whose key has the same beginning; "
                "use another folder (--cache-dir, FEATX_CACHE) for this one."
            )
        sweep_temporaries(self.folder)
        self._prepared = True


def segment_names(folder: Path) -> list[str]:
    """Names of the segments in a space's folder, oldest first; empty if there is no such folder."""
    return _oldest_first(folder, _names(folder))


def rows_of(name: str) -> int:
    """Number of rows that a segment's name states."""
    match = SEGMENT_NAME.fullmatch(name)
    return int(match[1]) if match else 0


def read_spec_text(folder: Path) -> str | None:
    """Text of the space's spec.json; None if it is missing or damaged (its hash is the folder's name)."""
    try:
        text = (read_plain(folder / SPEC_FILE) or b"").decode()
    except UnicodeDecodeError:
        return None
    return text if hashlib.sha256(text.encode()).hexdigest().startswith(folder.name) else None


def warn_of_spec(folder: Path) -> None:
    """Name a spec.json that was not read, if there is one."""
    if os.path.lexists(folder / SPEC_FILE):
        text = f"{folder / SPEC_FILE}: it is damaged or no file; the spec is taken from a segment."
        warnings.warn(StoreWarning(text), stacklevel=3)


def _names(folder: Path) -> list[str]:
    return _listed(folder)[0]


def quarantined(folder: Path) -> list[Path]:
    """Files in the quarantine of a space; a link in its place is not followed."""
    if (folder / QUARANTINE).is_symlink():
        return []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder / QUARANTINE) as found:
        return sorted(Path(entry.path) for entry in found if entry.is_file(follow_symlinks=False))
    return []


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the segments in a folder: regular files, and others. A link to a folder has none."""
    plain: list[str] = []
    strays: list[str] = []
    if folder.is_symlink():
        return plain, strays
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as found:
        for entry in found:
            if SEGMENT_NAME.fullmatch(entry.name):
                (plain if entry.is_file(follow_symlinks=False) else strays).append(entry.name)
    return plain, strays


def _oldest_first(folder: Path, names: Iterable[str]) -> list[str]:
    found = []
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            found.append(((folder / name).lstat().st_mtime_ns, name))
    return [name for _, name in sorted(found)]


def _stamp(folder: Path) -> int:
    try:
        return folder.lstat().st_mtime_ns
    except FileNotFoundError:
        return _NO_FOLDER
