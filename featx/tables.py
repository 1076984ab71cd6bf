"""Tables that are safe to open, as CSV and parquet: no cell is a formula, control characters are escaped.

Names of files and classes are not trusted. A spreadsheet runs a cell that starts with ``=``, a terminal
interprets escape sequences, and a name may not be valid Unicode. All tables of featx are written here. JSON
output is not changed.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import numbers
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from featx.exceptions import UsageError
from featx.files import atomic_write

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
"""First characters of formulas in spreadsheets (OWASP, CSV Injection), and their full-width forms."""

PASSWORD = re.compile(
    r"(://[^/@:\s]*:)\S*(?=@)|(?<=[?&])(\w*(?:passw|pwd|secret|token)\w*=)[^&\s'\"]*", re.IGNORECASE
)
"""What stands before a password in a URL, and the password."""


def write_csv(
    target: str | os.PathLike[str] | TextIO, header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Write a table as UTF-8 CSV, to a file that is replaced as a whole or to an open text stream.

    Parameters
    ----------
    target : path or text stream
        A path is written atomically; a stream (e.g. ``sys.stdout``) receives row by row.
    header : sequence of str
        Names of the columns.
    rows : iterable of sequences
        Numbers stay numbers, None is an empty cell, every other value goes through `csv_cell`.

    Raises
    ------
    OSError
        If the file cannot be written; an older one is then still whole.
    """
    if isinstance(target, str | os.PathLike):
        buffer = io.StringIO(newline="")
        _write_rows(buffer, header, rows)
        atomic_write(target, buffer.getvalue().encode())
    else:
        _write_rows(target, header, rows)


def write_parquet(path: str | os.PathLike[str], header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a table as parquet: numbers stay numbers, None is null, all else is text that is safe to show.

    Parameters
    ----------
    path : path
        The file, written atomically.
    header : sequence of str
        Names of the columns.
    rows : sequence of sequences
        Values. A column of numbers and texts becomes text.

    Raises
    ------
    UsageError
        If pyarrow is not installed.
    OSError
        If the file cannot be written.
    """
    require_pyarrow(path)
    import pyarrow
    import pyarrow.parquet

    columns = {}
    for number, name in enumerate(header):
        values = [row[number] for row in rows]
        if not all(value is None or isinstance(value, numbers.Real) for value in values):
            values = [None if value is None else escape_name(str(value)) for value in values]
        columns[name] = pyarrow.array(values, None if rows else pyarrow.string())
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    atomic_write(path, buffer.getvalue())


def require_pyarrow(path: str | os.PathLike[str]) -> None:
    """Refuse a parquet file where pyarrow, which reads and writes it, is not installed.

    Raises
    ------
    UsageError
        Naming the file and the package.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise UsageError(
            f"{escape_name(os.fsdecode(path))}: parquet needs pyarrow; `pip install 'featx[parquet]'`, or "
            "write CSV."
        )


def read_csv(text: str, *, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Rows with their number as a spreadsheet shows it (the header is row 1); blank rows are left out.

    The apostrophe that `csv_cell` puts before what a spreadsheet would run is removed.

    Raises
    ------
    csv.Error
        If the text is no CSV, e.g. a quote that never closes.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    for number, row in enumerate(reader, start=1):
        if any(cell.strip() for cell in row):
            yield number, [_uncovered(cell) for cell in row]


def csv_cell(value: Any) -> str:
    """One cell: numbers as they are, text escaped and never a formula. `read_csv` gives the text back.

    Examples
    --------
    >>> csv_cell(-1.5), csv_cell("-1.5"), csv_cell("=cmd|' /C calc'!A0")
    ('-1.5', "'-1.5", "'=cmd|' /C calc'!A0")
    """
    if value is None:
        return ""
    if isinstance(value, numbers.Real):  # NumPy's scalars too
        return str(value)
    text = str(value)
    return f"'{escape_name(text)}" if _starts_a_formula(text) else escape_name(text)


def _starts_a_formula(text: str) -> bool:
    """Whether a text begins like a formula, also after apostrophes: one is put before it, and removed."""
    return text.lstrip("'").startswith(FORMULA_STARTS)


def _uncovered(cell: str) -> str:
    """A cell without the apostrophe that `csv_cell` put before it."""
    return cell[1:] if cell.startswith("'") and _starts_a_formula(cell) else cell


def escape_name(text: str) -> str:
    r"""Make a name safe to show: what is not printable becomes its escape.

    Control characters (also ESC, newline), bidirectional overrides, line separators and bytes that are
    not UTF-8 (surrogate escapes of `os.fsdecode`) are escaped; everything printable stays.

    Examples
    --------
    >>> escape_name("Äpfel\n\x1b[31m"), escape_name("caf\udce9.jpg")
    ('Äpfel\\n\\x1b[31m', 'caf\\xe9.jpg')
    """
    if text.isprintable():
        return text
    with contextlib.suppress(UnicodeError):  # where the locale is not UTF-8, names were decoded as bytes
        text = text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def hide_password(text: str) -> str:
    """Replace passwords of the URLs in a text by ``***``.

    Examples
    --------
    >>> hide_password("mysql://ann:secret@host/db?ssl_password=x cannot be opened")
    'mysql://ann:***@host/db?ssl_password=*** cannot be opened'
    """
    return PASSWORD.sub(r"\1\2***", text)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # PEP 383: the byte that could not be decoded
        return f"\\x{code - 0xDC00:02x}"
    return ascii(character)[1:-1]


def _write_rows(stream: TextIO, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([csv_cell(name) for name in header])
    writer.writerows([csv_cell(value) for value in row] for row in rows)


def count(n: int, noun: str, plural: str = "") -> str:
    """``1, "image"`` -> ``"1 image"``; ``2, "image"`` -> ``"2 images"``."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"
