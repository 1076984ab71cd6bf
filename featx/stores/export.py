"""Features of images as one file for other tools: NumPy, CSV, parquet, HDF5.

The ending of the file's name is its format. Features are written in slabs, so they may be larger than memory.
"""

from __future__ import annotations

import csv
import itertools
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import UsageError
from featx.files import replaced, sweep_temporaries
from featx.stores.base import DIGEST_BYTES, Ids
from featx.tables import csv_cell, escape_name, require_pyarrow

Slab = tuple[Ids, Sequence[NDArray[np.float32]]]


@dataclass(frozen=True)
class Table:
    """Features of images, to be exported.

    Parameters
    ----------
    n_rows : int
        Number of images.
    shapes : mapping of str to tuple of int
        For each block, the shape of the features of one image.
    slabs : callable
        ``slabs(names)`` yields ids, shape (k, 32), and for each of these blocks features, shape (k, ...), in
        the order of the images. It may be called again.
    spec : str
        JSON of the specs, kept where the format has a place for it.
    facts : mapping of str to sequence
        What else is known of each image, such as ``path`` and ``label``.
    """

    n_rows: int
    shapes: Mapping[str, tuple[int, ...]]
    slabs: Callable[[Sequence[str]], Iterator[Slab]]
    spec: str = ""
    facts: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """Names of the numbers of one image: ``block:number``."""
        return [
            f"{name}:{number}" for name, shape in self.shapes.items() for number in range(math.prod(shape))
        ]

    def rows(self) -> Iterator[tuple[dict[str, Sequence[Any]], Ids, NDArray[np.float32]]]:
        """Slabs of the facts, the ids, and the features of all blocks side by side, shape (k, columns)."""
        start = 0
        for ids, parts in self.slabs(list(self.shapes)):
            stop = start + len(ids)
            facts = {name: values[start:stop] for name, values in self.facts.items()}
            yield facts, ids, np.hstack([part.reshape(len(ids), -1) for part in parts])
            start = stop

    def block(self, name: str) -> Iterator[NDArray[np.float32]]:
        """Slabs of one block."""
        return (parts[0] for _, parts in self.slabs([name]))


def check_format(path: str | os.PathLike[str]) -> None:
    """Refuse a file name whose ending is not in `WRITERS`.

    Raises
    ------
    UsageError
        Naming the endings that are, or the package that is missing.
    """
    name, ending = os.fspath(path), Path(path).suffix.lower()
    if ending not in WRITERS:
        raise UsageError(
            f"{escape_name(name)}: features are not written to files with this ending; choose a name that "
            f"ends in {', '.join(WRITERS)}."
        )
    if ending == ".parquet":
        require_pyarrow(name)


def export_table(table: Table, path: Path) -> None:
    """Write a table to `path` in the format that its ending names; the file is whole or absent.

    Raises
    ------
    UsageError
        As `check_format`.
    OSError
        As the operating system says.
    """
    check_format(path)
    target = Path(os.path.realpath(path))
    sweep_temporaries(target.parent)
    with replaced(target) as temporary:
        WRITERS[path.suffix.lower()](table, temporary)


def write_npz(table: Table, path: Path) -> None:
    """``id`` (n, 32) uint8, the facts, each block under its name (n, ...) float32, and ``spec``."""
    with zipfile.ZipFile(path, "w") as archive:
        ids = (ids for ids, _ in table.slabs(list(table.shapes)[:1]))
        _npy(archive, "id", (table.n_rows, DIGEST_BYTES), np.uint8, ids)
        for name, values in table.facts.items():
            array = _as_array(values)
            _npy(archive, name, array.shape, array.dtype, [array])
        for name, shape in table.shapes.items():
            _npy(archive, name, (table.n_rows, *shape), np.float32, table.block(name))
        _npy(archive, "spec", (), f"<U{len(table.spec) or 1}", [np.array(table.spec)])


def write_npy(table: Table, path: Path) -> None:
    """The features alone, blocks side by side, shape (n, columns), float32."""
    with open(path, "wb") as file:
        shape = (table.n_rows, len(table.columns))
        _write_npy(file, shape, np.float32, (features for _, _, features in table.rows()))


def write_csv(table: Table, path: Path) -> None:
    """The facts, ``id`` (hex), and one column for each number; shortest exact decimals."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*table.facts, "id", *table.columns])
        for facts, ids, features in table.rows():
            known = zip(*facts.values(), strict=True) if facts else itertools.repeat(())
            for words, digest, row in zip(known, ids, features, strict=bool(facts)):
                writer.writerow([*map(csv_cell, words), digest.tobytes().hex(), *row])


def write_parquet(table: Table, path: Path) -> None:
    """The columns of `write_csv`, features in float32; ``spec`` is the schema's ``featx.spec``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    facts = {name: _as_array(values) for name, values in table.facts.items()}
    texts = {name for name, values in facts.items() if values.dtype.kind == "U"}
    types = {
        name: pa.string() if name in texts else pa.from_numpy_dtype(values.dtype)
        for name, values in facts.items()
    }
    fields = [pa.field(name, types[name]) for name in facts]
    fields += [pa.field("id", pa.string()), *(pa.field(name, pa.float32()) for name in table.columns)]
    schema = pa.schema(fields, metadata={"featx.spec": table.spec})
    start = 0
    with pq.ParquetWriter(path, schema) as writer:
        for _, ids, features in table.rows():
            known = [pa.array(a[start : start + len(ids)].tolist(), types[name]) for name, a in facts.items()]
            columns = [[digest.tobytes().hex() for digest in ids], *np.ascontiguousarray(features.T)]
            writer.write_table(pa.table([*known, *map(pa.array, columns)], schema=schema))
            start += len(ids)


def write_hdf5(table: Table, path: Path) -> None:
    """``/id`` (n, 32) uint8, the facts, each block under its name; ``spec`` is an attribute."""
    import h5py

    with h5py.File(path, "w") as file:
        ids = file.create_dataset("id", (table.n_rows, DIGEST_BYTES), np.uint8)
        for name, values in table.facts.items():
            array = _as_array(values)
            if array.dtype.kind == "U":
                file.create_dataset(name, data=array.astype(object), dtype=h5py.string_dtype())
            else:
                file.create_dataset(name, data=array)
        blocks = [
            file.create_dataset(name, (table.n_rows, *shape), np.float32)
            for name, shape in table.shapes.items()
        ]
        file.attrs["spec"] = table.spec
        start = 0
        for some, parts in table.slabs(list(table.shapes)):
            where = slice(start, start + len(some))
            ids[where] = some
            for block, features in zip(blocks, parts, strict=True):
                block[where] = features
            start += len(some)


def _npy(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: Any, parts: Any) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        _write_npy(file, shape, dtype, parts)


def _write_npy(file: Any, shape: tuple[int, ...], dtype: Any, parts: Any) -> None:
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(file, header)
    for part in parts:
        file.write(np.ascontiguousarray(part, dtype).tobytes())


def _as_array(values: Sequence[Any]) -> NDArray[Any]:
    """Numbers as numbers, everything else as text that can be written as UTF-8; None is empty text."""
    array = np.asarray(values)
    if len(array) and array.dtype.kind in "biuf":
        return array
    return np.array(["" if value is None else escape_name(str(value)) for value in values], dtype=str)


WRITERS: dict[str, Callable[[Table, Path], None]] = {
    ".npz": write_npz,
    ".npy": write_npy,
    ".csv": write_csv,
    ".parquet": write_parquet,
    ".h5": write_hdf5,
    ".hdf5": write_hdf5,
}
"""Writers by the ending of the file's name."""
