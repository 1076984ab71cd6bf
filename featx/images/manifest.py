"""Manifests: a table of images in CSV, TSV or parquet, with errors that name the row and the fix.

Rows are numbered as a spreadsheet shows them (the header is row 1). Labels keep their type: a column
whose every text is a whole number as Python writes it becomes integers, "007" stays text.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DataError, ImageWarning, UsageError
from featx.images.columns import Chosen, ManifestOptions, choose_columns
from featx.images.kinds import START_BYTES, UNKNOWN, kind_in_words
from featx.images.labels import plain_text
from featx.images.layout import SPLITS
from featx.images.picture import reason_of
from featx.remote import RemotePath, read_file
from featx.tables import escape_name, read_csv

MAX_ROWS = 10_000_000
"""Rows of a manifest. A parquet file of some kB can state thousands of millions."""

MAX_TEXT_BYTES = 1 << 30
"""Limit for one column of a manifest in memory, where each text takes as much as the longest."""

PARQUET_ROWS = 4096
"""Rows that are read from a parquet file at a time."""

SOME = 10_000
"""Rows that are looked at to tell what a column holds."""


@dataclass(frozen=True)
class Manifest:
    """The columns of a manifest, one entry per image; what was guessed, and why there are no labels."""

    paths: list[str]
    labels: NDArray[Any] | None
    splits: NDArray[Any] | None
    groups: NDArray[Any] | None
    weights: NDArray[np.float64] | None
    said: list[str]
    no_label: str


@dataclass(frozen=True)
class _Table:
    """A manifest's known columns as they were written, with each row's number."""

    path: str
    columns: dict[str, list[Any]]
    rows: Sequence[int]
    chosen: Chosen


def read_manifest(
    path: str | os.PathLike[str], *, labelled: bool = True, options: ManifestOptions | None = None
) -> Manifest:
    """Read and check a manifest; the images are not looked at.

    Parameters
    ----------
    path : path
        ``.csv`` (comma, semicolon, tab or ``|``), ``.tsv``, ``.parquet``, ``.pq`` or ``.xlsx`` (the first
        sheet); text is UTF-8 (UTF-16 with its mark), columns in any order, others are ignored. Paths may be
        in another encoding, as file names may; labels may not. A `RemotePath` is fetched.
    labelled : bool, default=True
        False leaves the column ``label`` unread.
    options : ManifestOptions, optional
        Names of columns, and the separator.

    Raises
    ------
    DataError
        Naming the manifest, the row, the column, and what to do.
    UsageError
        For parquet without pyarrow, and for a workbook without openpyxl.
    """
    text_path = os.fsdecode(path)
    content = _fetched(path) if isinstance(path, RemotePath) else None
    options = options or ManifestOptions()
    read = READERS.get(os.path.splitext(text_path)[1].lower(), _read_text)
    table = read(text_path, options, content)
    if not labelled:
        table.columns.pop("label", None)
    if not table.rows:
        raise DataError(f"{_shown(text_path)}: no rows below the header; list one image per row.")
    paths, labels = _column(table, "path", _as_path), _labels(table) if labelled else None
    if labels is not None:
        _warn_of_contradictions(text_path, paths, labels)
    return Manifest(
        paths,
        labels,
        _array(table, "split", _as_split),
        _array(table, "group", _as_group),
        _array(table, "weight", _as_weight),
        [part for part in table.chosen.said if labelled or not part.endswith(" label")],
        table.chosen.no_label,
    )


def _warn_of_contradictions(path: str, paths: Sequence[str], labels: NDArray[Any]) -> None:
    if len(set(paths)) == len(paths):
        return
    first: dict[str, Any] = {}
    rows = zip(paths, labels.tolist(), strict=True)
    found = {name: label for name, label in rows if first.setdefault(name, label) != label}
    if found:
        name, label = next(iter(found.items()))
        warnings.warn(
            f"{_shown(path)}: images with two labels: {len(found)}, such as {_shown(name)} ({first[name]!r} "
            f"and {label!r}). Keep the row that is right.",
            ImageWarning,
            stacklevel=4,
        )


def _read_text(path: str, options: ManifestOptions, content: bytes | None) -> _Table:
    text, separator = _without_preamble(_decode_text(path, content))
    header_line = next((line for line in text.splitlines() if line.strip()), "")
    tsv = "\t" if path.lower().endswith(".tsv") else max(",;\t|", key=header_line.count)
    try:
        rows = list(read_csv(text, delimiter=options.separator or separator or tsv))
    except csv.Error as error:
        raise DataError(f"{_shown(path)}: not a CSV table ({_shown(error)}); check its quotes.") from error
    return _table_of(path, rows, options)


def _table_of(path: str, rows: Sequence[tuple[int, Sequence[Any]]], options: ManifestOptions) -> _Table:
    """The known columns of numbered rows, of which the first is the header."""
    if not rows:
        raise DataError(f"{_shown(path)}: empty; the first row names the columns: path,label,...")
    (_, header), *body = rows
    chosen = _choose(
        path,
        header,
        options,
        lambda position: [row[position] for _, row in body[:SOME] if position < len(row)],
    )
    for number, row in body:
        if len(row) != len(header):
            raise DataError(
                f"{_shown(path)}, row {number}: {len(row)} fields where the header has {len(header)}; "
                "put quotes around a value that holds the separator."
            )
    columns = {name: [row[position] for _, row in body] for name, position in chosen.positions.items()}
    return _Table(path, columns, [number for number, _ in body], chosen)


def _without_preamble(text: str) -> tuple[str, str | None]:
    """Blank the lines above the header: Excel's ``sep=;``, and comments; return also that separator."""
    separator, start = None, 0
    for line in text.splitlines(keepends=True):
        bare = line.strip().strip('"')
        if bare.lower().startswith("sep=") and len(line.strip('\r\n\ufeff"')) == 5:
            separator = line.strip('\r\n\ufeff"')[4]
        elif bare and not (bare.startswith("#") and not any(sign in bare for sign in ",;\t|")):
            break
        start += len(line)
    lines = text[:start].splitlines(keepends=True)
    return "".join(line[len(line.rstrip("\r\n")) :] for line in lines) + text[start:], separator


def _choose(
    path: str, header: Sequence[str], options: ManifestOptions, values: Callable[[int], Sequence[Any]]
) -> Chosen:
    try:
        return choose_columns(header, options, values)
    except DataError as error:
        raise DataError(f"{_shown(path)}: {error}") from None


def _fetched(address: RemotePath) -> bytes:
    try:
        return read_file(address, MAX_TEXT_BYTES)
    except OSError as error:
        raise DataError(f"{_shown(address)}: {reason_of(error)}.") from error


def _decode_text(path: str, content: bytes | None) -> str:
    try:
        with open(path, "rb") if content is None else io.BytesIO(content) as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"{_shown(path)}: {reason_of(error)}.") from error
    kind = kind_in_words(data[:START_BYTES])
    if b"\0" in data[:START_BYTES] and not data.startswith((b"\xff\xfe", b"\xfe\xff")) and kind != UNKNOWN:
        raise DataError(f"{_shown(path)}: named like a table, but {kind}.")
    try:
        if data.startswith((b"\xff\xfe", b"\xfe\xff")):
            return data.decode("utf-16")
    except UnicodeDecodeError as error:
        raise DataError(f"{_shown(path)}: not text ({error}); save it as UTF-8.") from error
    return data.decode("utf-8-sig", errors="surrogateescape")  # as file names of other encodings arrive


def _read_parquet(path: str, options: ManifestOptions, content: bytes | None) -> _Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            f"{_shown(path)}: parquet needs pyarrow; `pip install 'featx[parquet]'`, or save it as CSV."
        ) from error

    def source() -> Any:
        return path if content is None else pyarrow.BufferReader(content)

    try:
        schema = pyarrow.parquet.read_schema(source())
        header = schema.names
        _check_parquet(path, pyarrow.parquet.read_metadata(source()))
        file, types = pyarrow.parquet.ParquetFile(source()), pyarrow.types

        def some(position: int) -> list[Any]:
            kind = schema.field(position).type
            if not any(check(kind) for check in (types.is_integer, types.is_floating, types.is_boolean)):
                return []  # texts may be large, and are read only where they are used
            batches = file.iter_batches(PARQUET_ROWS, columns=[header[position]])
            return [value for batch in itertools.islice(batches, 1) for value in batch.column(0).to_pylist()]

        chosen = _choose(path, header, options, some)
        known = [header[position] for position in chosen.positions.values()]
        # As dictionaries: a text that occurs a million times is one object.
        texts = [written for written in known if types.is_string(schema.field(written).type)]
        file = pyarrow.parquet.ParquetFile(source(), read_dictionary=texts)
        found: dict[str, list[Any]] = {name: [] for name in chosen.positions}
        roles = {header[position]: name for name, position in chosen.positions.items()}
        for batch in file.iter_batches(PARQUET_ROWS, columns=known):
            for written, column in zip(batch.schema.names, batch.columns, strict=True):
                found[roles[written]] += _plain_values(column)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{_shown(path)}: not a readable parquet file ({error}).") from error
    return _Table(path, found, range(1, file.metadata.num_rows + 1), chosen)


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


def _read_workbook(path: str, options: ManifestOptions, content: bytes | None) -> _Table:
    try:
        import openpyxl
    except ImportError as error:
        raise UsageError(
            f"{_shown(path)}: a workbook needs openpyxl; `pip install 'featx[excel]'`, or save it as CSV."
        ) from error
    try:
        file = path if content is None else io.BytesIO(content)
        workbook = openpyxl.load_workbook(file, read_only=True, data_only=True)
        rows: list[tuple[int, list[Any]]] = []
        for number, row in enumerate(workbook.worksheets[0].iter_rows(values_only=True), start=1):
            if number > MAX_ROWS:
                raise ValueError(f"more than {MAX_ROWS:,} rows")
            if any(value is not None for value in row):
                rows.append((number, [_cell_text(value) for value in row]))
        workbook.close()
    except Exception as error:  # a damaged archive makes it raise anything
        raise DataError(f"{_shown(path)}: not a readable workbook ({reason_of(error)}).") from error
    header = rows[0][1] if rows else []
    width = max((place for place, name in enumerate(header, start=1) if name), default=0)
    return _table_of(path, [(number, [*row, *[""] * width][:width]) for number, row in rows], options)


def _cell_text(value: Any) -> str:
    """The text of a cell, as the same table in CSV has it."""
    if value is None:
        return ""
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return str(int(value) if is_whole else value)


READERS: dict[str, Callable[[str, ManifestOptions, bytes | None], _Table]] = {
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
    ".xlsx": _read_workbook,
}
"""By the ending of the name; any other file is text."""


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
    distinct = {value for value in raw if isinstance(value, str)}
    if len(distinct) > len({plain_text(value) for value in distinct}):
        other = next(value for value in sorted(distinct) if plain_text(value) != value)
        table.chosen.said.append(
            "labels that differ only by blanks at their ends or by their Unicode form are one class "
            f"({_quoted(other)} is {_quoted(plain_text(other))})"
        )
    if not all(isinstance(value, str) for value in values):
        return _made_array(table, "label", values)
    _refuse_several(table, values)
    for convert, dtype in ((_whole_number, np.int64), (_decimal_number, np.float64)):
        numbers = [convert(value) for value in values]
        if all(number is not None for number in numbers):
            return np.array(numbers, dtype=dtype)
    return _made_array(table, "label", values)


def _refuse_several(table: _Table, values: Sequence[str]) -> None:
    """Refuse texts that hold several labels, such as ``cat|outdoor`` where ``cat`` is a label, too."""
    alone = set(values)
    for sign in "|;,":
        mixed = [value for value in alone if sign in value]
        parts = [[plain_text(part) for part in value.split(sign)] for value in mixed]
        counts = Counter(part for some in parts for part in some)
        known = [all(part in alone for part in some) for some in parts]
        repeated = [any(part in alone or counts[part] > 1 for part in some) for some in parts]
        if mixed and (all(known) or (sign == "|" and any(repeated))):
            _refuse_label(table, values, set(mixed))
    lists = {value for value in alone if value[:1] + value[-1:] in ("[]", "{}", "()") and len(value) > 2}
    if lists and any("," in value for value in lists):
        _refuse_label(table, values, lists)


def _refuse_label(table: _Table, values: Sequence[str], several: set[str]) -> None:
    number, value = next((n, v) for n, v in zip(table.rows, values, strict=True) if v in several)
    count = sum(value in several for value in values)
    raise DataError(
        f"{_shown(table.path)}, row {number}, column label: {_quoted(value)} is more than one label ({count} "
        f"of {len(values)} rows); featx learns one label per image. Write one label in each row, or choose "
        "another column with --label-column."
    )


def _as_path(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a path; write the image's path, relative to the manifest")
    if not value.strip():
        raise ValueError("empty; write the image's path, or delete the row")
    if "\0" in value:
        raise ValueError("a path cannot hold a NUL character")
    return value


def _as_label(value: Any) -> Any:
    if _is_blank(value):
        raise ValueError("no label; write one, or delete the row")
    if isinstance(value, list | dict | tuple):
        raise ValueError(f"{value!r} is more than one label; featx learns one label per image")
    if isinstance(value, str) and not value.isascii() and any("\udc80" <= sign <= "\udcff" for sign in value):
        raise ValueError(f"{_quoted(value)} is not UTF-8; save the table as UTF-8")
    return plain_text(value) if isinstance(value, str) else value


def _as_split(value: Any) -> str:
    split = SPLITS.get(str(value).strip().lower())
    if split is None:
        raise ValueError(f"{_quoted(value)} is not a split; write train, val or test")
    return split


def _as_group(value: Any) -> str:
    if _is_blank(value):
        raise ValueError("no group; write one (a name of its own where the image stands alone)")
    return str(value)


def _as_weight(value: Any) -> float:
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"{_quoted(value)} is not a weight; write a number of at least 0")
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
