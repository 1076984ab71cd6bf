"""One space as one file for other tools: NumPy, CSV, parquet, HDF5.

Features are written in slabs, so a space may be larger than memory.
"""

from __future__ import annotations

import csv
import math
import os
import uuid
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import UsageError
from featx.files import TEMPORARY_PREFIX, sync_folder
from featx.stores.base import DIGEST_BYTES, Ids

Slabs = Iterator[tuple[Ids, NDArray[np.float32]]]


@dataclass(frozen=True)
class Table:
    """The features of a space, to be exported."""

    spec: str
    n_rows: int
    row_shape: tuple[int, ...]
    slabs: Callable[[], Slabs]
    """Yields ids (k, 32) and features (k, ...); may be called again."""


def export_table(table: Table, path: Path) -> None:
    """Write a table to `path` in the format that its suffix names; the file is whole or absent.

    Raises
    ------
    UsageError
        If the suffix is not in `WRITERS`.
    OSError
        As the operating system says.
    """
    write = WRITERS.get(path.suffix.lower())
    if write is None:
        raise UsageError(f"cannot export to {path.name!r}: choose a name ending in {', '.join(WRITERS)}.")
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex}{path.suffix}")
    try:
        write(table, temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_npz(table: Table, path: Path) -> None:
    """``ids`` (n, 32) uint8, ``features`` (n, ...) float32 and the spec's JSON as ``spec``."""
    with zipfile.ZipFile(path, "w") as archive:
        _npy(archive, "ids", (table.n_rows, DIGEST_BYTES), np.uint8, (ids for ids, _ in table.slabs()))
        shape = (table.n_rows, *table.row_shape)
        _npy(archive, "features", shape, np.float32, (rows for _, rows in table.slabs()))
        _npy(archive, "spec", (), f"<U{len(table.spec)}", [np.array(table.spec)])


def write_csv(table: Table, path: Path) -> None:
    """``id`` (hex) and one column for each number of a row, which is flattened; shortest exact decimals."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", *_columns(table)])
        for ids, rows in table.slabs():
            flat = rows.reshape(len(rows), -1)
            writer.writerows([digest.tobytes().hex(), *row] for digest, row in zip(ids, flat, strict=True))


def write_parquet(table: Table, path: Path) -> None:
    """The columns of `write_csv`, float32; the spec's JSON is the schema's ``featx.spec``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [pa.field("id", pa.string()), *(pa.field(name, pa.float32()) for name in _columns(table))]
    schema = pa.schema(fields, metadata={"featx.spec": table.spec})
    with pq.ParquetWriter(path, schema) as writer:
        for ids, rows in table.slabs():
            flat = rows.reshape(len(rows), -1)
            columns = [[digest.tobytes().hex() for digest in ids], *np.ascontiguousarray(flat.T)]
            writer.write_table(pa.table([pa.array(column) for column in columns], schema=schema))


def write_hdf5(table: Table, path: Path) -> None:
    """``/id`` and ``/x`` as in a segment, all rows in one file; the spec is the attribute ``spec``."""
    import h5py

    with h5py.File(path, "w") as file:
        ids = file.create_dataset("id", (table.n_rows, DIGEST_BYTES), np.uint8)
        x = file.create_dataset("x", (table.n_rows, *table.row_shape), np.float32)
        file.attrs["spec"] = table.spec
        start = 0
        for some, rows in table.slabs():
            ids[start : start + len(rows)], x[start : start + len(rows)] = some, rows
            start += len(rows)


def _npy(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: Any, parts: Any) -> None:
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_2_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).tobytes())


def _columns(table: Table) -> list[str]:
    return [f"f{number}" for number in range(math.prod(table.row_shape))]


WRITERS: dict[str, Callable[[Table, Path], None]] = {
    ".npz": write_npz,
    ".csv": write_csv,
    ".parquet": write_parquet,
    ".h5": write_hdf5,
}
