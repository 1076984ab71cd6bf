"""Manifests: a table of pictures in CSV, TSV or parquet, with errors that name the row and the fix.

Rows are numbered as a spreadsheet shows them (the header is row 1). Labels keep their type: a column
whose every text is a whole number as Python writes it becomes integers, "007" stays text.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DataError, UsageError
from featx.images.picture import reason_of
from featx.tables import escape_name, read_csv

MANIFEST_EXTENSIONS = (".csv", ".tsv", ".parquet", ".pq")

MAX_ROWS = 10_000_000
"""Rows of a manifest. A parquet file of some kB can state thousands of millions."""

MAX_TEXT_BYTES = 1 << 30
"""Limit for one column of a manifest in memory, where each text takes as much as the longest."""

PARQUET_ROWS = 4096
"""Rows that are read from a parquet file at a time."""

COLUMNS = ("path", "label", "split", "group", "weight")

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""Names of splits as people write them, in lower case."""


@dataclass(frozen=True)
class Manifest:
    """The columns of a manifest, one entry per picture."""

    paths: list[str]
    labels: NDArray[Any] | None
    splits: NDArray[Any] | None
    groups: NDArray[Any] | None
    weights: NDArray[np.float64] | None


@dataclass(frozen=True)
class _Table:
    """A manifest's known columns as they were written, with each row's number."""

    path: str
    columns: dict[str, list[Any]]
    rows: Sequence[int]


def read_manifest(path: str | os.PathLike[str], *, labelled: bool = True) -> Manifest:
    """Read and check a manifest; the pictures are not looked at.

    Parameters
    ----------
    path : path
        ``.csv`` (comma, semicolon or tab), ``.tsv``, ``.parquet`` or ``.pq``; text is UTF-8 (UTF-16 with
        its mark), columns in any order, others are ignored.
    labelled : bool, default=True
        False leaves the column ``label`` unread.

    Raises
    ------
    DataError
        Naming the manifest, the row, the column, and what to do.
    UsageError
        For parquet without pyarrow.
    """
    text_path = os.fsdecode(path)
    parquet = text_path.lower().endswith((".parquet", ".pq"))
    table = _read_parquet(text_path) if parquet else _read_text(text_path)
    if not labelled:
        table.columns.pop("label", None)
    if not table.rows:
        raise DataError(f"{_shown(text_path)}: no rows below the header; list one picture per row.")
    return Manifest(
        _column(table, "path", _as_path),
        _labels(table),
        _array(table, "split", _as_split),
        _array(table, "group", _as_group),
        _array(table, "weight", _as_weight),
    )


def _read_text(path: str) -> _Table:
    text = _decode_text(path)
    header_line = text.partition("\n")[0]
    delimiter = "\t" if path.lower().endswith(".tsv") else max(",;\t", key=header_line.count)
    try:
        rows = list(read_csv(text, delimiter=delimiter))
    except csv.Error as error:
        raise DataError(f"{_shown(path)}: not a CSV table ({_shown(error)}); check its quotes.") from error
    if not rows:
        raise DataError(f"{_shown(path)}: empty; the first row names the columns: path,label,...")
    (_, header), *body = rows
    names = _checked_names(path, header)
    for number, row in body:
        if len(row) != len(header):
            raise DataError(
                f"{_shown(path)}, row {number}: {len(row)} fields where the header has {len(header)}; "
                "put quotes around a value that holds the separator."
            )
    columns = {
        name: [row[position] for _, row in body] for position, name in enumerate(names) if name in COLUMNS
    }
    return _Table(path, columns, [number for number, _ in body])


def _decode_text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"{_shown(path)}: {reason_of(error)}.") from error
    try:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            return data.decode("utf-16")
    except UnicodeDecodeError as error:
        raise DataError(f"{_shown(path)}: not text ({error}); save it as UTF-8.") from error
    return data.decode("utf-8-sig", errors="surrogateescape")  # as file names of other encodings arrive


def _read_parquet(path: str) -> _Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            f"{_shown(path)}: parquet needs pyarrow; `pip install 'featx[parquet]'`, or save it as CSV."
        ) from error
    try:
        schema = pyarrow.parquet.read_schema(path)
        header = schema.names
        _check_parquet(path, pyarrow.parquet.read_metadata(path))
        names = _checked_names(path, header)
        known = [written for written, name in zip(header, names, strict=True) if name in COLUMNS]
        # As dictionaries: a text that occurs a million times is one object.
        texts = [written for written in known if pyarrow.types.is_string(schema.field(written).type)]
        file = pyarrow.parquet.ParquetFile(path, read_dictionary=texts)
        found: dict[str, list[Any]] = {name: [] for name in names if name in COLUMNS}
        for batch in file.iter_batches(PARQUET_ROWS, columns=known):
            for written, column in zip(batch.schema.names, batch.columns, strict=True):
                found[written.strip().lower()] += _plain_values(column)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{_shown(path)}: not a readable parquet file ({error}).") from error
    return _Table(path, found, range(1, file.metadata.num_rows + 1))


def _check_parquet(path: str, metadata: Any) -> None:
    """Refuse a file whose metadata states more rows or bytes than a manifest may have."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    n_rows = max(metadata.num_rows, sum(group.num_rows for group in groups))
    if n_rows > MAX_ROWS:
        raise DataError(
            f"{_shown(path)}: {n_rows:,} rows; at most {MAX_ROWS:,} are read. Split the manifest."
        )
    n_bytes = sum(group.total_byte_size for group in groups)
    if n_bytes > MAX_TEXT_BYTES:
        raise DataError(
            f"{_shown(path)}: {n_bytes:,} bytes when unpacked; at most {MAX_TEXT_BYTES:,} are read. "
            "Leave out the columns that featx does not need, or split the manifest."
        )


def _plain_values(column: Any) -> list[Any]:
    if not hasattr(column, "dictionary"):
        values: list[Any] = column.to_pylist()
        return values
    words = column.dictionary.to_pylist()
    return [None if index is None else words[index] for index in column.indices.to_pylist()]


def _checked_names(path: str, header: Sequence[str]) -> list[str]:
    names = [name.strip().lower() for name in header]
    shown = ", ".join(_shown(name.strip()) for name in header)
    if "path" not in names:
        raise DataError(
            f"{_shown(path)}: no column 'path' among {shown}; name the columns "
            "path,label (and, as you like, split, group, weight) in the first row."
        )
    for name in COLUMNS:
        if names.count(name) > 1:
            raise DataError(f"{_shown(path)}: the column {name!r} stands twice among {shown}; rename one.")
    return names


def _column(table: _Table, name: str, convert: Callable[[Any], Any]) -> list[Any]:
    values = []
    for number, value in zip(table.rows, table.columns[name], strict=True):
        try:
            values.append(convert(value))
        except (ValueError, TypeError) as error:
            raise DataError(f"{_shown(table.path)}, row {number}, column {name}: {error}.") from None
    return values


def _array(table: _Table, name: str, convert: Callable[[Any], Any]) -> NDArray[Any] | None:
    return _made_array(table, name, _column(table, name, convert)) if name in table.columns else None


def _made_array(table: _Table, name: str, values: list[Any]) -> NDArray[Any]:
    longest = max((len(value) for value in values if isinstance(value, str | bytes)), default=0)
    if 4 * longest * len(values) > MAX_TEXT_BYTES:
        raise DataError(
            f"{_shown(table.path)}, column {name}: {len(values):,} texts of up to {longest:,} characters; "
            f"at most {MAX_TEXT_BYTES // 4:,} characters in all are read. Write shorter texts."
        )
    return np.array(values)


def _labels(table: _Table) -> NDArray[Any] | None:
    raw = table.columns.get("label")
    if raw is None or all(_is_blank(value) for value in raw):
        return None
    values = _column(table, "label", _as_label)
    if not all(isinstance(value, str) for value in values):
        return _made_array(table, "label", values)
    for convert, dtype in ((_whole_number, np.int64), (_decimal_number, np.float64)):
        numbers = [convert(value) for value in values]
        if all(number is not None for number in numbers):
            return np.array(numbers, dtype=dtype)
    return _made_array(table, "label", values)


def _as_path(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no path; write the picture's path, relative to the manifest")
    if not value.strip():
        raise ValueError("empty; write the picture's path, or delete the row")
    if "\0" in value:
        raise ValueError("a path cannot hold a NUL character")
    return value


def _as_label(value: Any) -> Any:
    if _is_blank(value):
        raise ValueError("no label; write one, or delete the row")
    if isinstance(value, list | dict | tuple):
        raise ValueError(f"{value!r} is more than one label; featx learns one label per picture")
    return value


def _as_split(value: Any) -> str:
    split = SPLITS.get(str(value).strip().lower())
    if split is None:
        raise ValueError(f"{_quoted(value)} is no split; write train, val or test")
    return split


def _as_group(value: Any) -> str:
    if _is_blank(value):
        raise ValueError("no group; write one (a name of its own where the picture stands alone)")
    return str(value)


def _as_weight(value: Any) -> float:
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"{_quoted(value)} is no weight; write a number from 0 up")
    return weight


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value != value  # NaN


def _whole_number(text: str) -> int | None:
    """The integer that Python writes exactly so and int64 holds; None for "007", "1.0", "+1"."""
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
        return None
    return int(text) if str(int(text)) == text else None


def _decimal_number(text: str) -> float | None:
    """The finite number that Python writes exactly so; None for "1.10" (a version), "nan"."""
    whole = _whole_number(text)
    if whole is not None:
        return float(whole)
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and repr(number) == text else None


def _quoted(value: Any) -> str:
    return repr(value) if value is None else f"'{_shown(value)}'"


def _shown(value: object) -> str:
    return escape_name(str(value))
