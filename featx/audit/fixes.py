"""The table of issues, in which a user fills in what to do, and images with these actions applied.

A row has the columns `COLUMNS`. `action` is empty (nothing is done), ``keep``, ``drop``, ``relabel:LABEL`` or
``group:NAME``. Images are named as in the data set that was checked. No image file is changed.
"""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.audit.values import Finding
from featx.exceptions import DataError
from featx.images import ImageSet
from featx.tables import escape_name, read_csv, write_csv

COLUMNS = ("path", "issue", "severity", "evidence", "suggestion", "action")


@dataclass(frozen=True)
class Fixes:
    """Actions by the name of the image.

    Parameters
    ----------
    drop : frozenset of str
        Images to leave out.
    relabel : dict of str to str
        New labels.
    group : dict of str to str
        Groups whose images stay together.
    """

    drop: frozenset[str]
    relabel: dict[str, str]
    group: dict[str, str]

    def __len__(self) -> int:
        """Number of actions."""
        return len(self.drop) + len(self.relabel) + len(self.group)


def issue_rows(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """One row for each image of each finding; a finding on no image in particular has one, without a path."""
    rows = []
    for finding in findings:
        n = len(finding.names)
        if not n:
            cells = ("", finding.check, finding.severity, finding.sentence, "", "")
            rows.append(dict(zip(COLUMNS, cells, strict=True)))
        evidence, suggestions = finding.evidence or ("",) * n, finding.suggestions or ("",) * n
        for name, seen, suggestion in zip(finding.names, evidence, suggestions, strict=True):
            cells = (name, finding.check, finding.severity, seen, suggestion, "")
            rows.append(dict(zip(COLUMNS, cells, strict=True)))
    return rows


def write_issues(path: str | os.PathLike[str], findings: Iterable[Finding]) -> None:
    """Write `issue_rows` as CSV."""
    write_csv(path, COLUMNS, [[row[name] for name in COLUMNS] for row in issue_rows(findings)])


def read_fixes(path: str | os.PathLike[str]) -> Fixes:
    """Read the actions of a table of issues.

    Raises
    ------
    DataError
        If the table cannot be read, an action is not known, or an image has two that contradict each other.
    """
    shown = escape_name(os.fsdecode(path))
    try:
        rows = list(read_csv(Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")))
    except (OSError, csv.Error) as error:
        raise DataError(f"{shown}: no table of issues can be read ({error}).") from error
    header = [name.strip().lower() for name in rows[0][1]] if rows else []
    if "path" not in header or "action" not in header:
        raise DataError(
            f"{shown}: no columns 'path' and 'action'; `featx check DATA --csv` writes such a table."
        )
    where, what = header.index("path"), header.index("action")
    done: dict[str, dict[str, str]] = {"drop": {}, "relabel": {}, "group": {}}
    for number, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(f"{shown}, row {number}: {len(row)} fields where the header has {len(header)}.")
        name, action = _uncelled(row[where]), _uncelled(row[what].strip())
        kind, _, value = action.partition(":")
        kind, value = kind.strip().lower(), value.strip()
        if kind in ("", "keep") or not name:
            continue
        if kind not in done or (kind != "drop" and not value):
            raise DataError(
                f"{shown}, row {number}: the action {escape_name(action)!r} is not known; write keep, drop, "
                "relabel:LABEL or group:NAME."
            )
        if done[kind].setdefault(name, value) != value:
            raise DataError(
                f"{shown}, row {number}: {escape_name(name)} has two different actions {kind!r}; keep one."
            )
    return Fixes(frozenset(done["drop"]), done["relabel"], done["group"])


def apply_fixes(images: ImageSet, fixes: Fixes) -> ImageSet:
    """Return the images without those to drop, with new labels and groups.

    Raises
    ------
    DataError
        If an image of the fixes is not among the images, or there are no labels to change.
    """
    place = {_written(name): index for index, name in enumerate(images.names)}
    lost = {_written(one.name) for one in images.skipped}
    unknown = [
        name for name in {*fixes.drop, *fixes.relabel, *fixes.group} if name not in place.keys() | lost
    ]
    if unknown:
        raise DataError(
            f"{len(unknown)} of the images to fix are not among these images, such as "
            f"{escape_name(min(unknown))}. Give the same data that was checked."
        )
    labels, groups = images.labels, images.groups
    if fixes.relabel:
        if labels is None:
            raise DataError("these images have no labels to change; give the same data that was checked.")
        labels = _changed(
            labels, {place[name]: label for name, label in fixes.relabel.items() if name in place}
        )
    if fixes.group:
        named = {place[name]: group for name, group in fixes.group.items() if name in place}
        old = np.full(len(images), "", object) if groups is None else groups.astype(object)
        groups = _changed(old, named)
    kept = [index for name, index in place.items() if name not in fixes.drop]
    fixed = dataclasses.replace(images, labels=labels, groups=groups).select(sorted(kept))
    fixed.skipped = [one for one in images.skipped if _written(one.name) not in fixes.drop]
    return fixed


def write_manifest(path: str | os.PathLike[str], images: ImageSet) -> None:
    """Write images as a manifest, with paths relative to it.

    Raises
    ------
    DataError
        If an image is not a file, or a value would not be read back as it is.
    """
    folder = Path(path).resolve().parent
    columns: dict[str, Sequence[Any]] = {"path": [_relative(source, folder) for source in images.sources]}
    for name, values in (
        ("label", images.labels), ("split", images.splits), ("group", _all_named(images)),
        ("weight", images.weights),
    ):  # fmt: skip
        if values is not None:
            columns[name] = values.tolist()
    write_csv(path, list(columns), zip(*columns.values(), strict=True))


def _all_named(images: ImageSet) -> NDArray[Any] | None:
    """Groups; an image without one gets a name of its own, since a manifest has no blank groups."""
    if images.groups is None:
        return None
    groups = images.groups.astype(object)
    for index, group in enumerate(groups):
        if group in (None, "") or group != group:
            groups[index] = f"alone-{index}"
    return groups


def _relative(source: Any, folder: Path) -> str:
    if not isinstance(source, str | os.PathLike):
        raise DataError("a manifest lists files, but some images are not files.")
    return Path(os.path.relpath(os.path.abspath(os.fsdecode(source)), folder)).as_posix()


def _changed(values: NDArray[Any], changes: dict[int, str]) -> NDArray[Any]:
    """Values with some replaced; a whole number stays one where the others are."""
    new = values.astype(object)
    for index, text in changes.items():
        number = values.dtype.kind in "iu" and text.removeprefix("-").isdigit()
        new[index] = int(text) if number else text
    if len({type(one) for one in new}) > 1:
        new = np.array([str(one) for one in new], object)
    return np.array(new.tolist()) if values.dtype.kind != "O" else new


def _written(name: str) -> str:
    """A name as it is read back from a table."""
    return escape_name(name)


def _uncelled(cell: str) -> str:
    """A cell without the quote that `csv_cell` puts before what could be a formula."""
    return cell[1:] if cell[:1] == "'" and cell[1:2] in "=+-@＝＋－＠" and len(cell) > 1 else cell
