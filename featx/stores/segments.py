"""One immutable HDF5 segment: built in memory, opened once, its rows read with their digests checked.

A segment is never changed after it has its name, so nothing can be half written or misaligned. ``/id``
(n, 32) holds the images' digests, ``/x`` (n, ...) their features, ``/sum`` (blocks, 32) the sha256 of each
block of rows; the attribute ``digest`` is the sha256 of everything else: spec, shape, dtype, ids and sums.
The datasets are contiguous and uncompressed (gzip is 8 to 24 times slower and saves 10 to 20 % of the size),
so rows are read by plain reads at ``/x``'s offset, without HDF5 and without h5py's global lock.

Only a wrong digest or a wrong format is damage (`BadSegmentError`). If memory, file descriptors or the disk
fail (MemoryError, EMFILE, EIO, ...), the error is raised as it is: the segment may be intact.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import importlib.metadata
import io
import json
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from featx.exceptions import StoreFormatError
from featx.files import open_plain
from featx.spec import FeatureSpec
from featx.stores.base import FORMAT, Ids

BLOCK_ROWS = 16
BLOCK_BYTES = 1 << 20
"""A block is read and checked as a whole: 16 rows, or fewer if rows are large (unpooled ones take 400 kB), so
that reading one row never reads more than about 1 MiB. Each segment records its own number."""

READ_BYTES = 16 << 20
"""Neighbouring blocks are read together up to this size, which bounds the memory of a read."""

HDF5_BOUNDS = ("v108", "v110")
"""The oldest object headers that have checksums. Every HDF5 since 1.10 (2016) reads them."""

RECORDED = ("featx", "numpy", "h5py", "torch", "torchvision", "timm", "openvino", "Pillow")
"""Distributions whose versions a segment records. They are not part of its space's key."""


class BadSegmentError(Exception):
    """The file is not a whole, unchanged segment of the space it lies in."""


@dataclass(frozen=True)
class Segment:
    """Where the rows of a segment are, and their digests."""

    path: Path
    spec: str
    n_rows: int
    row_shape: tuple[int, ...]
    dtype: np.dtype[Any]
    block_rows: int
    offset: int
    sums: NDArray[np.uint8]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row on disk."""
        return int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def n_bytes(self) -> int:
        """Bytes of all rows on disk."""
        return self.n_rows * self.row_bytes


def build_segment(ids: Ids, rows: NDArray[Any], spec: FeatureSpec) -> memoryview:
    """The bytes of a segment file.

    Parameters
    ----------
    ids : ndarray of uint8, shape (n, 32)
        Digests of the images.
    rows : ndarray of float16 or float32, shape (n, ...)
        Their features.
    spec : FeatureSpec
        The segment belongs to the space ``spec.key``.
    """
    rows = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<"))
    block_rows = max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(1, rows[0].nbytes)))
    sums = [block_sum(rows[start : start + block_rows]) for start in range(0, len(rows), block_rows)]
    head: dict[str, Any] = {
        "format": FORMAT,
        "spec": spec.to_json(),
        "block_rows": block_rows,
        "versions": versions(),
    }
    # A BytesIO is 3 times as fast as the core driver and needs no further copy. HDF5 never writes to the
    # disk itself: it may not report that the disk is full.
    image = io.BytesIO()
    with h5py.File(image, "w", libver=HDF5_BOUNDS) as file:
        file["id"] = ids
        file["x"] = rows
        file["sum"] = np.stack(sums)
        for name, value in head.items():
            file.attrs[name] = np.bytes_(value) if isinstance(value, str) else value
        file.attrs["digest"] = head_sum(head, ids, np.stack(sums), rows.shape, rows.dtype)
    return image.getbuffer()


def open_segment(path: Path, key: str | None = None) -> tuple[Segment, Ids]:
    """Open a segment and check everything except its rows.

    Raises
    ------
    BadSegmentError
        If it is damaged or of another space.
    StoreFormatError
        If a newer featx wrote it.
    OSError, MemoryError
        If the file cannot be read for a reason that is not its content (gone, no permission, EMFILE, EIO,
        no memory, ...).
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):  # HDF5 would follow a link and wait for a pipe
        raise FileNotFoundError(errno.ENOENT, "it is not a regular file", os.fspath(path))
    try:
        return _open(path, path, path.lstat().st_size, key)
    except (BadSegmentError, StoreFormatError):
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno):
            raise
        # A damaged file may fail in any call of HDF5, and so may a lack of memory or a failing disk. So read
        # the file without HDF5, which raises what the system says, and try again on its bytes.
        with open(open_plain(path), "rb") as file:
            content = io.BytesIO(file.read())
    return open_content(path, content, path.lstat().st_size, key)


def open_content(path: Path, content: BinaryIO, size: int, key: str | None = None) -> tuple[Segment, Ids]:
    """`open_segment` for the content of a segment of `size` bytes, as a file object."""
    try:
        return _open(path, content, size, key)
    except (BadSegmentError, StoreFormatError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise
        if "alloc" in str(error).lower():  # HDF5 has no error class for it
            raise MemoryError(f"{path}: {_first_line(error)}") from error
        raise BadSegmentError(f"cannot be read: {type(error).__name__}: {_first_line(error)}") from error


def is_intact(path: Path, key: str) -> bool:
    """Whether every digest of a segment of the space `key` is right.

    Raises
    ------
    OSError, MemoryError
        If it cannot be read for a reason that is not its content.
    """
    try:
        segment, _ = open_segment(path, key)
        for _ in read_rows(segment, np.arange(segment.n_rows)):
            pass
    except (BadSegmentError, StoreFormatError):
        return False
    return True


def _open_plain(path: str, _flags: int) -> int:
    return open_plain(path)


def _open(path: Path, source: Path | BinaryIO, room: int, key: str | None) -> tuple[Segment, Ids]:
    with h5py.File(source, "r", **({"locking": False} if isinstance(source, Path) else {})) as opened:
        file = opened.id  # the low-level interface takes half the time, and a store may have many segments
        written = int(_attribute(file, "format"))
        if written > FORMAT:
            made_by = _text(opened.attrs.get("versions", b"{}"))
            raise StoreFormatError(newer_format(path, written, made_by))
        head: dict[str, Any] = {
            "format": written,
            "spec": _text(_attribute(file, "spec")),
            "block_rows": int(_attribute(file, "block_rows")),
            "versions": _text(_attribute(file, "versions")),
        }
        digest = _attribute(file, "digest")
        ids, sums = _dataset(file, "id", room), _dataset(file, "sum", room)
        x = _plain_dataset(file, "x", room)
        shape, dtype, offset = x.shape, x.dtype, x.get_offset()
    if not np.array_equal(digest, head_sum(head, ids, sums, shape, dtype)):
        raise BadSegmentError("its ids, sums or header do not have the digest that was written")
    if key is not None and hashlib.sha256(head["spec"].encode()).hexdigest() != key:
        raise BadSegmentError("it belongs to another space")
    if offset is None:
        raise BadSegmentError("its rows are not contiguous")
    segment = Segment(path, head["spec"], shape[0], shape[1:], dtype, head["block_rows"], offset, sums)
    return segment, ids


def read_rows(
    segment: Segment, rows: NDArray[np.int64], content: BinaryIO | None = None
) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
    """Read some rows in slabs of neighbouring blocks.

    Parameters
    ----------
    segment : Segment
        As `open_segment` gave it.
    rows : ndarray of int64, shape (m,)
        Row numbers, in any order, repeats allowed.
    content : file object, optional
        The segment's content, instead of the file at its path.

    Yields
    ------
    positions : ndarray of int64, shape (k,)
        Which elements of `rows` these are.
    values : ndarray, shape (k, ...)
        Their rows in the stored dtype.

    Raises
    ------
    BadSegmentError
        If a block does not have the digest that was written.
    OSError, MemoryError
        If the file is gone or cannot be read.
    """
    order = np.argsort(rows, kind="stable")
    block_of = rows[order] // segment.block_rows
    blocks = np.unique(block_of)
    per_read = max(1, READ_BYTES // max(1, segment.block_rows * segment.row_bytes))
    breaks = np.flatnonzero(np.diff(blocks) != 1) + 1
    with io.FileIO(segment.path, opener=_open_plain) if content is None else content as file:
        for run in np.split(blocks, breaks):
            for first in range(int(run[0]), int(run[-1]) + 1, per_read):
                last = min(first + per_read, int(run[-1]) + 1)
                slab = _read_blocks(file, segment, first, last)
                low, high = np.searchsorted(block_of, (first, last))
                positions = order[low:high]
                yield positions, np.take(slab, rows[positions] - first * segment.block_rows, axis=0)


def check_sum(found: bytes, written: bytes) -> bool:
    """Whether a block has the digest that was written."""
    return found == written


def block_sum(rows: NDArray[Any]) -> NDArray[np.uint8]:
    """Sha256 of the rows' bytes, as an array of 32 numbers."""
    return np.frombuffer(hashlib.sha256(rows.data.cast("B")).digest(), np.uint8)


def head_sum(
    head: dict[str, Any], ids: Ids, sums: NDArray[np.uint8], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[np.uint8]:
    """Sha256 of everything except the rows: with another dtype or shape, intact bytes give wrong rows."""
    text = json.dumps({**head, "shape": list(shape), "dtype": dtype.str}, sort_keys=True)
    total = hashlib.sha256(text.encode())
    total.update(np.ascontiguousarray(ids).data)
    total.update(np.ascontiguousarray(sums).data)
    return np.frombuffer(total.digest(), np.uint8)


@functools.cache
def versions() -> str:
    """JSON of the installed versions that a segment records. No package is imported."""
    found = {}
    for name in RECORDED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return json.dumps(found, sort_keys=True)


def newer_format(path: Path, written: int, made_by: str) -> str:
    """The message for a file of a format that this version does not know."""
    try:
        made = f"featx {json.loads(made_by)['featx']}"
    except (ValueError, KeyError, TypeError):
        made = "a newer featx"
    return (
        f"{path} has store format {written}, made by {made}; this featx reads up to format {FORMAT}. Nothing "
        f"was changed. Upgrade featx, or use another folder (--cache-dir, FEATX_CACHE)."
    )


def _read_blocks(file: Any, segment: Segment, first: int, last: int) -> NDArray[Any]:
    """Rows of blocks [first, last), checked."""
    start, stop = first * segment.block_rows, min(last * segment.block_rows, segment.n_rows)
    slab = np.empty((stop - start, *segment.row_shape), segment.dtype)
    view = slab.data.cast("B")
    file.seek(segment.offset + start * segment.row_bytes)
    while len(view):
        count = file.readinto(view)
        if not count:
            raise BadSegmentError(f"it ends at byte {file.tell()}")
        view = view[count:]
    for block in range(first, last):
        at = (block - first) * segment.block_rows
        found = block_sum(slab[at : at + segment.block_rows]).tobytes()
        if not check_sum(found, segment.sums[block].tobytes()):
            raise BadSegmentError(f"block {block} of {len(segment.sums)} does not have its sha256")
    return slab


def _attribute(file: Any, name: str) -> NDArray[Any]:
    attribute = h5py.h5a.open(file, name.encode())
    value = np.empty(attribute.shape, attribute.dtype)
    attribute.read(value)
    return value


def _plain_dataset(file: Any, name: str, room: int) -> Any:
    """Open a dataset that lies in this file as it is: no link, no other file, no compression."""
    if file.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise BadSegmentError(f"its {name} is a link")
    dataset = h5py.h5d.open(file, name.encode())
    plan = dataset.get_create_plist()
    n_bytes = math.prod(dataset.shape) * dataset.dtype.itemsize
    if plan.get_layout() != h5py.h5d.CONTIGUOUS or plan.get_external_count() or n_bytes > room:
        raise BadSegmentError(f"its {name} is not stored as featx stores it")
    return dataset


def _dataset(file: Any, name: str, room: int) -> NDArray[Any]:
    dataset = _plain_dataset(file, name, room)
    values = np.empty(dataset.shape, dataset.dtype)
    dataset.read(h5py.h5s.ALL, h5py.h5s.ALL, values)
    return values


def _text(value: Any) -> str:
    return bytes(value).decode()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
