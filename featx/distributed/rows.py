"""The image of a row of a Ray dataset: a path, or the bytes of a file and its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from featx.exceptions import DataError
from featx.images import escape_name
from featx.images.folder import IMAGE_EXTENSIONS

BYTES_COLUMNS = ("bytes", "image", "img", "picture", "photo", "content", "data")
"""Names of columns of bytes of image files, in order of preference; then names such as ``jpg``."""

PATH_COLUMNS = ("path", "file", "filename", "filepath", "image_path")
"""Names of columns of paths, used if no column has bytes."""

Row = Mapping[str, Any]


def image_of(row: Row, column: str | None, *, paths: bool) -> tuple[str, Any]:
    """Return the name of a row's image, and its source.

    Parameters
    ----------
    row : mapping
        ``{"bytes": ...}`` or ``{"path": ...}``; an image as Hugging Face datasets keep it, ``{"image":
        {"bytes": ..., "path": ...}}``; or a sample of a WebDataset, ``{"__key__": ..., "jpg": ...}``.
    column : str, optional
        The column of the image; by default it is found by its name.
    paths : bool
        Whether a text is a path; otherwise only bytes are read.

    Returns
    -------
    name : str
        Its path or key; empty if the row has none.
    source : bytes, str or None
        None if the row has no image.
    """
    for key in (column,) if column is not None else _columns(row):
        value = row.get(key)
        inner = value if isinstance(value, Mapping) else {}
        data = inner.get("bytes") if inner else value
        if isinstance(data, bytes | bytearray | memoryview):
            return _name(row, key, inner.get("path")), bytes(data)
    for key in ((column,) if column is not None else PATH_COLUMNS) if paths else ():
        value = row.get(key)
        if isinstance(value, str):
            return value, value
    return _name(row, column or "", None), None


def check_rows(rows: Iterable[Row], column: str | None, *, paths: bool) -> None:
    """Raise an error if no row has an image.

    Raises
    ------
    DataError
        With the columns.
    """
    rows = list(rows)
    if not rows:
        raise DataError("the data set has no rows; give a set with one image in each row.")
    if any(image_of(row, column, paths=paths)[1] is not None for row in rows):
        return
    names = ", ".join(map(escape_name, dict.fromkeys(key for row in rows for key in row)))
    wanted = "bytes or path" if paths else "bytes"
    if column is not None:
        raise DataError(
            f"the column {escape_name(column)!r} holds no images (columns: {names}); name a column that "
            "holds the bytes of image files."
        )
    raise DataError(
        f"no column of images among {names}; name the column of the bytes of image files {wanted}, or "
        "choose it (--column)."
    )


def _columns(row: Row) -> list[str]:
    """Columns that may hold the bytes of an image."""
    named = [key for key in BYTES_COLUMNS if key in row]
    endings = [key for key in row if f".{key.rpartition('.')[2].lower()}" in IMAGE_EXTENSIONS]
    return named + sorted(endings, key=lambda key: key.count("."))  # jpg before mask.png


def _name(row: Row, key: str, path: Any) -> str:
    if "__key__" in row:
        return f"{row.get('__url__') or ''}/{row['__key__']}.{key}".lstrip("/")
    found = path or next((row[name] for name in PATH_COLUMNS if isinstance(row.get(name), str)), "")
    return str(found)
