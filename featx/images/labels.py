"""Labels that are the same label in another spelling: Unicode forms, blanks, case, numbers and texts."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.tables import escape_name

INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060"
"""Characters without width that spreadsheets and web pages leave at the ends of texts."""

MISSING_WORDS = frozenset({"nan", "na", "n/a", "null", "none", "<na>", "#n/a"})
"""Texts that programs write for a missing value, in lower case."""

LISTED = 5
"""Labels that a message lists."""


def plain_text(text: str) -> str:
    """Return a text in Unicode's composed form (NFC), without blanks and invisible characters at its ends.

    Examples
    --------
    >>> plain_text(" cafe\u0301\ufeff ") == "caf\u00e9"
    True
    """
    if text.isascii():
        return text.strip()
    return unicodedata.normalize("NFC", text).strip().strip(INVISIBLE).strip()


def folded(text: str) -> str:
    """Return the text as it is compared when case does not count."""
    return unicodedata.normalize("NFC", plain_text(text).casefold())


def match_labels(labels: NDArray[Any], classes: NDArray[Any]) -> tuple[NDArray[Any], str]:
    """Write labels as the classes are written, where that is possible one to one.

    A label that is no class is compared by its text (``0`` and ``"0"``), then by its number (``0.0`` and
    ``"0"``), then without case. It becomes the class only if no other label and no other class compares
    equal.
    If all classes are texts, the remaining labels become texts, too.

    Parameters
    ----------
    labels : array of shape (n,)
        Labels of other images.
    classes : array of shape (n_classes,)
        The classes that are known.

    Returns
    -------
    array of shape (n,)
        The labels.
    str
        What was matched, as a sentence; empty if nothing was.
    """
    known = {_typed(value): value for value in classes.tolist()}
    distinct = list(dict.fromkeys(map(_typed, labels.tolist())))
    found = {label: known[label] for label in distinct if label in known}
    changed: list[tuple[Any, Any]] = []
    for key in (_text, _number, _folded):
        taken = {_typed(value) for value in found.values()}
        free = [one for one in known if one not in taken]
        left = [one for one in distinct if one not in found]
        for label, one in _pairs(left, free, key):
            found[label] = known[one]
            changed.append((label[1], known[one]))
    as_text = bool(len(classes)) and all(isinstance(value, str) for value in classes.tolist())
    new = [found.get(one, str(one[1]) if as_text else one[1]) for one in map(_typed, labels.tolist())]
    if not changed:
        return labels if not as_text or labels.dtype.kind == "U" else np.array(new), ""
    pairs = ", ".join(f"{_shown(label)} as {_shown(known_as)}" for label, known_as in changed[:LISTED])
    more = f" and {len(changed) - LISTED} more" if len(changed) > LISTED else ""
    return _as_array(new), f"labels are read as the classes that are known: {pairs}{more}."


def _pairs(
    labels: Iterable[Any], classes: Iterable[Any], key: Callable[[Any], Hashable | None]
) -> list[tuple[Any, Any]]:
    """Labels and classes with equal keys, where each key belongs to one label and to one class."""
    by_key: dict[Hashable, tuple[list[Any], list[Any]]] = defaultdict(lambda: ([], []))
    for side, values in enumerate((labels, classes)):
        for value in values:
            name = key(value[1])
            if name is not None:
                by_key[name][side].append(value)
    return [(ours[0], theirs[0]) for ours, theirs in by_key.values() if len(ours) == len(theirs) == 1]


def doubtful_labels(labels: NDArray[Any]) -> list[str]:
    """Return sentences about labels that look like a mistake.

    Two classes that differ only by case, and texts that programs write for a missing value.

    Parameters
    ----------
    labels : array of shape (n,)
        The labels.
    """
    if labels.dtype.kind != "U":
        return []
    counts = Counter(labels.tolist())
    by_fold: dict[str, list[str]] = defaultdict(list)
    for label in sorted(counts):
        by_fold[folded(label)].append(label)
    said = [
        "classes "
        + " and ".join(f"{_shown(label)} ({counts[label]} images)" for label in same)
        + " differ only by case; write them alike if they are one class."
        for same in by_fold.values()
        if len(same) > 1
    ]
    missing = [label for label in counts if label.casefold() in MISSING_WORDS]
    said += [
        f"{counts[label]} images have the label {_shown(label)}, which programs write for a missing value; "
        "it is read as a class. Delete these rows if they have no label."
        for label in missing
    ]
    return said


def _typed(value: Any) -> tuple[type, Any]:
    """The value with its type: 1, True and "1" are three labels."""
    return type(value), value


def _text(value: Any) -> str:
    return plain_text(str(value))


def _folded(value: Any) -> str:
    return folded(str(value))


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _as_array(values: list[Any]) -> NDArray[Any]:
    if len({type(value) for value in values}) == 1:
        return np.array(values)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _shown(value: Any) -> str:
    return f"'{escape_name(value)}'" if isinstance(value, str) else str(value)
