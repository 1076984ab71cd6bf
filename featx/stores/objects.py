"""ObjectStore: features on an object store, in the same segments and below the same names as on disk.

A segment is one object, put whole under a name that nobody else uses, and never changed. So nothing else is
needed than put, get, list and, for the format, a put that is refused if the object exists. A listing may be
late: a segment that is not listed yet is missing for others, which compute its images again, and one that is
listed and gone is left out when it cannot be read. No row is ever wrong, and none is lost. Nothing that a
reader finds damaged is moved or deleted: the damage may be on its way to this machine only.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import StoreError, StoreFormatError, StoreWarning, StoreWriteError
from featx.remote.access import Found, delete, fetch, fetch_range, find, folders, look, put
from featx.remote.address import RemotePath
from featx.remote.kept import forget, has_copy, keep, read_version
from featx.spec import FeatureSpec
from featx.stores.base import DIGEST_BYTES, FORMAT, Ids
from featx.stores.hdf5 import NOTES, HDF5Store
from featx.stores.layout import FORMAT_FILE, SPACE_NAME, Freed, SpaceUsage
from featx.stores.notes import note_path, note_text, note_value
from featx.stores.segments import BadSegmentError, Segment, newer_format, open_content, read_rows, versions
from featx.stores.space import SEGMENT_NAME, SPEC_FILE, StoredSpace, rows_of

MOST_BYTES = 1 << 31
"""A larger object is no segment of featx."""

SMALL_BYTES = 1 << 20
"""A smaller segment is read as a whole."""

WHOLE_SHARE = 0.25
"""A segment of which this share of the rows is read is fetched as a whole, and its copy is kept."""

HEAD_BYTES = 16 << 10
"""Bytes of HDF5's own at the beginning and at the end of a segment, and some more."""

LISTING_S, LISTING_SHARE = 2.0, 0.05
"""Seconds between two listings of a space, at least; the listings take at most this share of the time."""

TRIES = 3
"""Reads of a segment whose bytes do not have their digest, before it is taken as damaged."""

OPENED = 64
"""Segments whose beginnings are fetched at the same time."""

REQUESTS = 16
"""Requests of a space at a time."""

NOTE_BYTES = 1 << 24


class ObjectSpace(StoredSpace):
    """The segments of one spec on an object store. Safe to call from several threads."""

    readers = 8

    def __init__(self, root: RemotePath, key: str) -> None:
        super().__init__(cast("Path", root), key)  # only `/` and the text of a path are used
        self._address = cast("RemotePath", self.folder)
        self._listed: dict[str, Found] = {}
        self._fresh: dict[str, memoryview] = {}
        self._ranges: dict[str, BinaryIO] = {}
        self._lost: Counter[str] = Counter()
        self._due = 0.0

    def refresh(self, *, force: bool = False) -> None:
        """Learn what other processes added. What they removed is noticed when it is read."""
        with self._lock:
            began = time.monotonic()
            if not force and began < self._due:
                return
            listed = self.listed()
            self._listed.update({found.address.name: found for found in listed})
            names = [found.address.name for found in listed]
            self._take([name for name in names if name not in self._segments and name not in self._ignored])
            took = time.monotonic() - began
            self._due = time.monotonic() + max(LISTING_S, took / LISTING_SHARE)

    def names(self) -> list[str]:
        """See `StoredSpace.names`."""
        return [found.address.name for found in self.listed()]

    def sweep(self) -> None:
        """Do nothing: an object is there as a whole, or not at all."""

    def touch(self) -> None:
        """Do nothing: an object has no time of its last use."""

    def restore(self) -> int:
        """Nothing is in quarantine."""
        return 0

    def remove(self, names: list[str]) -> None:
        """See `StoredSpace.remove`."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                _asked(self._address / name, functools.partial(delete, self._address / name))
            with self._lock:
                self._forget(name)
                self._ignored.add(name)

    def quarantine(self, name: str, reason: str) -> None:
        """Do not use the segment in this process, and warn. It is not moved: others may read it well."""
        path = self.folder / name
        with self._lock:
            self.bad.append((path, reason))
            self._forget(name)
            self._ignored.add(name)
        warnings.warn(
            StoreWarning(
                f"{path}: {reason}. Its {rows_of(name)} rows are not used now, and will be computed again. "
                "If this warning comes again, delete it."
            ),
            stacklevel=2,
        )

    def listed(self) -> list[Found]:
        """The segments that the store lists, oldest first."""
        try:
            found = find(self._address)
        except OSError as error:
            raise StoreError(f"cannot list {self.folder}: {error.strerror}") from error
        found = [
            one
            for one in found
            if SEGMENT_NAME.fullmatch(one.address.name) and one.address == self._address / one.address.name
        ]
        return sorted(found, key=lambda one: (one.modified, one.address))

    def _publish(self, name: str, image: memoryview, spec: FeatureSpec) -> None:
        address, data = self._address / name, bytes(image)
        try:
            if not self._prepared:
                put(self._address / SPEC_FILE, spec.to_json().encode())
                self._prepared = True
            put(address, data)
            found = look(address)
            keep(found, data)
        except FileNotFoundError as error:  # the bucket, or what was just put and is not seen yet
            found = Found(address, len(data), "", time.time())
            if not self._prepared:
                raise self._not_written(error) from error
        except OSError as error:
            raise self._not_written(error) from error
        with self._lock:
            self._listed[name], self._fresh[name] = found, image

    def _not_written(self, error: OSError) -> StoreWriteError:
        return StoreWriteError(
            f"cannot write to {self.folder}: {error.strerror}. Everything committed before stays valid. Run "
            "the same command again: it continues from here."
        )

    def _take(self, names: list[str]) -> None:
        for start in range(0, len(names), OPENED):
            some = names[start : start + OPENED]
            with ThreadPoolExecutor(REQUESTS) as pool:
                self._ranges = dict(zip(some, pool.map(self._content, some), strict=True))
            try:
                super()._take(some)
            finally:
                self._ranges = {}

    def _content(self, name: str) -> BinaryIO:
        """A segment's content, of which the parts that are needed to open it are fetched."""
        fresh = self._fresh.pop(name, None)
        if fresh is not None:
            return io.BytesIO(fresh)
        found = self._listed[name]
        size, ids = found.size or 0, DIGEST_BYTES * rows_of(name)
        content = cast("BinaryIO", RangeFile(found))
        if size > SMALL_BYTES and not has_copy(found):
            with contextlib.suppress(OSError):  # it is told when the segment is opened
                content.prefetch(0, HEAD_BYTES + ids)  # type: ignore[attr-defined]
                content.prefetch(size - HEAD_BYTES - ids // 16, size)  # type: ignore[attr-defined]
            return content
        with contextlib.suppress(OSError):
            return io.BytesIO(read_version(found, MOST_BYTES))
        return content

    def _most_rows(self, name: str) -> int:
        return min(rows_of(name), (self._listed[name].size or 0) // DIGEST_BYTES)

    def _load(self, name: str) -> tuple[Segment, Ids]:
        found = self._listed[name]
        content = self._ranges.pop(name, None) or self._content(name)
        for attempt in range(TRIES):
            try:
                return open_content(self.folder / name, content, found.size or 0, self.key)
            except BadSegmentError:
                if attempt == TRIES - 1:
                    raise
                forget(found)
                content = io.BytesIO(fetch(found, MOST_BYTES))
        raise AssertionError

    def _rows(
        self, segment: Segment, rows: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        name = segment.path.name
        found = self._listed[name]
        left = np.arange(len(rows))
        for attempt in range(TRIES):
            try:
                done = np.zeros(len(left), bool)
                content = self._rows_file(found, segment, rows)
                for positions, values in read_rows(segment, rows[left], content):
                    yield left[positions], values
                    done[positions] = True
                return
            except BadSegmentError:
                if attempt == TRIES - 1:
                    raise
                forget(found)
                left = left[~done]
            except FileNotFoundError:  # packed or pruned by another process
                with self._lock:
                    self._forget(name)
                    self._lost[name] += 1
                    if self._lost[name] >= TRIES:
                        self._ignored.add(name)
                raise

    def _rows_file(self, found: Found, segment: Segment, rows: NDArray[np.int64]) -> BinaryIO:
        if len(rows) >= WHOLE_SHARE * segment.n_rows or has_copy(found):
            return io.BytesIO(read_version(found, MOST_BYTES))
        return cast("BinaryIO", RangeFile(found))


class RangeFile(io.RawIOBase):
    """An object as a file: each read is a request, unless the part was fetched before.

    Parameters
    ----------
    found : Found
    """

    def __init__(self, found: Found) -> None:
        self._found = found
        self._at = 0
        self._fetched: list[tuple[int, bytes]] = []

    def prefetch(self, start: int, stop: int) -> None:
        """Fetch the bytes [start, stop), as far as they exist."""
        start, stop = max(0, start), min(stop, self._found.size or 0)
        self._fetched.append((start, fetch_range(self._found.address, start, stop)))

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase.readinto`."""
        view = memoryview(buffer).cast("B")
        start, stop = self._at, min(self._at + len(view), self._found.size or 0)
        if stop <= start:
            return 0
        parts = ((part, start - at, stop - at) for at, part in self._fetched)
        data = next((part[a:b] for part, a, b in parts if a >= 0 and b <= len(part)), None)
        if data is None:
            data = fetch_range(self._found.address, start, stop)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.IOBase.seek`."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._found.size or 0}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        """See `io.IOBase.tell`."""
        return self._at

    def seekable(self) -> bool:
        """See `io.IOBase.seekable`."""
        return True

    def readable(self) -> bool:
        """See `io.IOBase.readable`."""
        return True


class ObjectStore(HDF5Store):
    """Append-only features on an object store.

    Parameters
    ----------
    path : str
        Address of the cache, such as ``s3://bucket/cache``. Any number of processes may share it.

    Raises
    ------
    UsageError
        If it is no address of an object store, or its package is missing.
    StoreError
        If it cannot be read or written.
    StoreFormatError
        If a newer featx made it; nothing in it is changed.
    """

    @staticmethod
    def _place(path: str | os.PathLike[str]) -> Path:
        return cast("Path", RemotePath(os.fspath(path)))

    @staticmethod
    def _open_root(path: Path) -> Path:
        address = cast("RemotePath", path)
        root = address / f"v{FORMAT}"
        try:
            for folder in folders(address):
                if folder.name.startswith("v") and folder.name[1:].isdigit():
                    written = _json(folder / FORMAT_FILE)
                    if written and written.get("format", 0) > FORMAT:
                        raise StoreFormatError(
                            newer_format(cast("Path", folder), written["format"], json.dumps(written))
                        )
            if _json(root / FORMAT_FILE) is None:
                text = json.dumps({"format": FORMAT, **json.loads(versions())})
                with contextlib.suppress(FileExistsError):  # another process was first
                    put(root / FORMAT_FILE, text.encode(), new=True)
        except OSError as error:
            raise StoreError(
                f"the cache {path} cannot be used: {error.strerror}. Check the address and the keys, or name "
                "another cache (--cache-dir, FEATX_CACHE) or none (--no-cache)."
            ) from error
        return cast("Path", root)

    @property
    def _address(self) -> RemotePath:
        return cast("RemotePath", self._root)

    def _space(self, key: str) -> StoredSpace:
        return ObjectSpace(self._address, key)

    def _space_folders(self) -> list[Path]:
        found = _asked(self._address, lambda: folders(self._address))
        return [cast("Path", folder) for folder in found if SPACE_NAME.fullmatch(folder.name)]

    def _pack_where(self, n_segments: int) -> None:
        """Do nothing: without a lock, all processes would pack the same segments at once."""

    @contextlib.contextmanager
    def _packing(self) -> Iterator[bool]:
        yield True  # two processes that pack at once store rows twice for a while, and lose none

    def _space_at(self, folder: Path) -> StoredSpace | None:
        text = self._spec_text(cast("RemotePath", folder))
        return self._buffer(hashlib.sha256(text.encode()).hexdigest()).space if text else None

    def _spec_text(self, folder: RemotePath) -> str | None:
        try:
            text = fetch(look(folder / SPEC_FILE), NOTE_BYTES).decode()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot read {folder / SPEC_FILE}: {error.strerror}") from error
        except UnicodeDecodeError:
            return None
        return text if hashlib.sha256(text.encode()).hexdigest().startswith(folder.name) else None

    def usage(self) -> list[SpaceUsage]:
        """See `HDF5Store.usage`; the last use of a space is the time of its newest segment."""
        spaces: dict[str, list[Found]] = {}
        for found in _asked(self._address, lambda: find(self._address)):
            space, _, name = found.address.removeprefix(self._address.as_folder).partition("/")
            if SPACE_NAME.fullmatch(space) and SEGMENT_NAME.fullmatch(name):
                spaces.setdefault(space, []).append(found)
        usage = []
        for space, segments in spaces.items():
            text = self._spec_text(self._address / space)
            spec = None
            with contextlib.suppress(StoreFormatError):
                spec = FeatureSpec.from_json(text) if text else None
            usage.append(
                SpaceUsage(
                    hashlib.sha256(text.encode()).hexdigest() if text else space,
                    spec,
                    sum(rows_of(one.address.name) for one in segments),
                    len(segments),
                    sum(one.size or 0 for one in segments),
                    0,
                    max(one.modified for one in segments),
                )
            )
        return sorted(usage, key=lambda one: -one.last_used)

    def prune(
        self, *, max_bytes: int | None = None, older_than_s: float | None = None, key: str | None = None
    ) -> Freed:
        """See `HDF5Store.prune`; a space was last used when its newest segment was written."""
        self.commit()
        key = None if key is None else self._full_key(key)
        usage = self.usage()
        total = sum(space.n_bytes for space in usage)
        removed = freed = 0
        for space in reversed(usage):
            if key is not None and space.key != key:
                continue
            place = self._buffer(space.key).space
            place.refresh(force=True)
            too_old = older_than_s is not None and time.time() - space.last_used > older_than_s
            for found in cast("ObjectSpace", place).listed():
                if key is not None or too_old or (max_bytes is not None and total - freed > max_bytes):
                    place.remove([found.address.name])
                    removed, freed = removed + 1, freed + (found.size or 0)
        return Freed(removed, freed)

    def remember(self, kind: str, name: str, value: Mapping[str, Any]) -> None:
        """See `FeatureStore.remember`.

        Raises
        ------
        StoreWriteError
            If it cannot be stored.
        """
        address = self._address / NOTES / note_path(kind, name)
        try:
            put(address, note_text(name, value))
        except OSError as error:
            raise StoreWriteError(f"cannot write to {address}: {error.strerror}.") from error

    def recall(self, kind: str, name: str) -> dict[str, Any] | None:
        """See `FeatureStore.recall`; a damaged note counts as absent."""
        address = self._address / NOTES / note_path(kind, name)
        return note_value(_asked(address, lambda: _json(address)), name)

    def folder(self, kind: str) -> None:  # type: ignore[override]
        """There is no folder of other files."""

    def __repr__(self) -> str:
        return f"ObjectStore({str(self.path)!r})"

    def __reduce__(self) -> tuple[type[HDF5Store], tuple[Path]]:
        return ObjectStore, (self.path,)


def _asked(address: RemotePath, call: Callable[[], Any]) -> Any:
    """Call; an OSError is a StoreError that names the address."""
    try:
        return call()
    except (StoreError, FileNotFoundError):
        raise
    except OSError as error:
        raise StoreError(f"cannot use {address}: {error.strerror}") from error


def _json(address: RemotePath) -> dict[str, Any] | None:
    """A small JSON object; None if there is none, or it is damaged."""
    try:
        value = json.loads(fetch(look(address), NOTE_BYTES))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
