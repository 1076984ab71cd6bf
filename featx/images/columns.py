"""Columns: which column of a table holds paths, labels, splits, groups and weights."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from featx.exceptions import DataError, UsageError
from featx.images.labels import folded, plain_text
from featx.images.locate import IMAGE_ENDINGS
from featx.tables import escape_name

COLUMNS = ("path", "label", "split", "group", "weight")

ALIASES = {
    "path": frozenset(
        {"file", "files", "filename", "filepath", "fname", "photo", "photopath", "image", "images", "img"}
        | {f"{image}{part}" for image in ("image", "img") for part in ("path", "name", "file", "id")}
    ),
    "label": frozenset(
        {
            "labels",
            "labelname",
            "class",
            "classes",
            "classname",
            "category",
            "categories",
            "target",
            "targets",
        }
    ),
}
"""Other names of columns, in lower case, without blanks and signs."""

LIKE_SPLIT = frozenset(
    {"istest", "istrain", "isval", "isvalid", "isvalidation", "test", "train", "subset", "partition", "phase"}
    | {"fold", "usage", "set", "dataset", "stage"}
)
"""Names of columns that may say which part an image belongs to, written as in `ALIASES`."""

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|", "space": " "}
"""Words for separators on a command line."""

BINARY = frozenset({"0", "1", "0.0", "1.0", "true", "false", ""})
"""Values of a column that says whether an image has one label, in lower case."""

NUMBERED = re.compile(r"(label|class|target|category|tag|attribute|attr)\d+")
"""Names of one of several columns of labels, as in `ALIASES`."""


@dataclass(frozen=True)
class ManifestOptions:
    """How a manifest is read, where it does not say so itself.

    Parameters
    ----------
    path_column, label_column : str, optional
        Names of the columns.
    root : str, optional
        Folder that the paths are relative to; by default that of the manifest.
    sep : str, optional
        Separator of a text table: one character, or comma, semicolon, tab, pipe, space.

    Raises
    ------
    UsageError
        If the separator is not one character.
    """

    path_column: str | None = None
    label_column: str | None = None
    root: str | None = None
    sep: str | None = None

    def __post_init__(self) -> None:
        if self.sep is not None and len(self.separator or "") != 1:
            raise UsageError(
                f"separator {self.sep!r}: give one character, or one of comma, semicolon, tab, pipe, space."
            )

    @property
    def separator(self) -> str | None:
        """The separator as a character."""
        return None if self.sep is None else SEPARATORS.get(self.sep.lower(), self.sep)

    def given(self) -> list[str]:
        """Names of the options that are set, as on the command line."""
        return [f"--{name.replace('_', '-')}" for name, value in vars(self).items() if value is not None]


@dataclass(frozen=True)
class Chosen:
    """The columns of a table that are read.

    Parameters
    ----------
    positions : dict of str to int
        Position of each name of `COLUMNS`, where there is one.
    said : list of str
        What was guessed, as parts of a sentence.
    no_label : str
        Why no column is read as labels, as a sentence, where that is known.
    """

    positions: dict[str, int]
    said: list[str]
    no_label: str = ""


def choose_columns(
    header: Sequence[str], options: ManifestOptions, values: Callable[[int], Sequence[Any]]
) -> Chosen:
    """Choose the columns of a table by their names.

    Parameters
    ----------
    header : sequence of str
        The names as they are written.
    options : ManifestOptions
        Names of columns that were given.
    values : callable
        From a position to the values of that column (some are enough).

    Raises
    ------
    DataError
        If there is no column of paths, or a name stands twice.
    """
    names = [folded(name) for name in header]
    chosen = Chosen({}, [])
    for role in COLUMNS:
        given = getattr(options, f"{role}_column", None)
        if given is not None:
            chosen.positions[role] = _named(given, header, role)
        elif names.count(role) > 1:
            raise DataError(f"the column {role!r} occurs twice among {_listed(header)}; rename one.")
        elif role in names:
            chosen.positions[role] = names.index(role)
    _check_header(header, chosen)
    for role in ("path", "label"):
        if role not in chosen.positions:
            _guess(role, header, chosen)
    if "path" not in chosen.positions:
        raise DataError(
            f"no column 'path' among {_listed(header)}; name the columns path,label (and, as you like, "
            "split, group, weight) in the first row, or choose the column of paths (--path-column)."
        )
    if "split" not in chosen.positions:
        chosen.said.extend(
            f"column {escape_name(plain_text(name))} is not read (a column split with train, val and test is)"
            for name in header
            if _bare(name) in LIKE_SPLIT
        )
    if "label" in chosen.positions:
        return chosen
    return Chosen(chosen.positions, chosen.said, _why_no_label(header, chosen, values))


def _named(wanted: str, header: Sequence[str], role: str) -> int:
    for compare in (plain_text, folded):
        found = [position for position, name in enumerate(header) if compare(name) == compare(wanted)]
        if len(found) == 1:
            return found[0]
    why = "stands more than once" if found else "is not"
    raise DataError(f"--{role}-column: the column {escape_name(wanted)!r} {why} among {_listed(header)}.")


def _guess(role: str, header: Sequence[str], chosen: Chosen) -> None:
    taken = set(chosen.positions.values())
    found = [
        position for position, name in enumerate(header) if position not in taken and is_alias(name, role)
    ]
    if len(found) > 1 and role == "path":
        raise DataError(
            f"the columns {_listed([header[position] for position in found])} may all be the paths; choose "
            f"one with --path-column {escape_name(plain_text(header[found[0]]))}."
        )
    if len(found) == 1:
        chosen.positions[role] = found[0]
        chosen.said.append(f"column {_shown(header[found[0]])} is read as {role}")


def _check_header(header: Sequence[str], chosen: Chosen) -> None:
    """Refuse a first row of values."""
    if not chosen.positions and any(
        os.path.splitext(plain_text(name))[1].lower() in IMAGE_ENDINGS for name in header
    ):
        raise DataError(
            f"the first row ({_listed(header)}) looks like an image, not like names of columns; write "
            "path,label above it."
        )


def _why_no_label(header: Sequence[str], chosen: Chosen, values: Callable[[int], Sequence[Any]]) -> str:
    rest = [p for p, name in enumerate(header) if p not in chosen.positions.values() and plain_text(name)]
    several = [
        header[p]
        for p in rest
        if _bare(header[p]) in ALIASES["label"] or NUMBERED.fullmatch(_bare(header[p]))
    ]
    if len(several) > 1:
        return (
            f"the columns {_listed(several)} may all be labels, and featx learns one label for each image; "
            f"choose one with --label-column {escape_name(plain_text(several[0]))}."
        )
    binary = [header[p] for p in rest if _is_binary(values(p))]
    if len(binary) > 1:
        return (
            f"the columns {_listed(binary)} hold 0 and 1, one column for each label, and featx learns one "
            "label for each image; write one column of labels, or choose one of these with --label-column "
            f"{escape_name(plain_text(binary[0]))}."
        )
    if rest:
        return f"The table has the columns {_listed(header)}; choose one with --label-column."
    return ""


def _is_binary(values: Sequence[Any]) -> bool:
    return bool(values) and all(str(value).strip().lower() in BINARY for value in values)


def is_alias(name: str, role: str) -> bool:
    """Whether a column may hold paths (`role` ``"path"``) or labels, by its name."""
    return _bare(name) in ALIASES[role]


def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", folded(name))


def _listed(names: Sequence[str]) -> str:
    shown = [_shown(name) for name in names[:10]]
    return ", ".join(shown) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _shown(name: str) -> str:
    return escape_name(plain_text(str(name)))
