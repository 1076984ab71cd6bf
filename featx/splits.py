"""Test part and folds: stable, stratified, with groups.

The test part is a threshold on a hash of the image's content (or of its group's name). An image that is test
today is still test after the set has grown, or was renamed or shuffled. Folds are drawn with a seed, since
they are used by one search only. In both, images of one group are never separated.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.exceptions import DataError, FeatxWarning, LabelError, SearchWarning, UsageError

MIN_TEST_SHARE = 0.5
"""A class with less than this fraction of its expected test images gets more, up to this fraction."""

MIN_TRAIN_UNITS = 2
"""Images (or groups) of each class that stay in the training part: cross-validation needs two."""

MOST_REPEATS = 3
"""Largest number of repeats of the folds."""

LISTED = 10
"""Images or classes that a message names; the rest is counted."""

Ids = NDArray[np.uint8] | Sequence[bytes]
Fold = tuple[NDArray[np.intp], NDArray[np.intp]]


def stable_test_mask(
    ids: Ids,
    labels: ArrayLike,
    *,
    test_size: float = 0.2,
    salt: str = "",
    groups: ArrayLike | None = None,
    previous: Mapping[str, str] | None = None,
) -> NDArray[np.bool_]:
    """Choose test images by a threshold on sha256(salt + digest), or on the group's name.

    Within a class, the test part is the units (images, or groups) with the smallest hashes: those below the
    threshold `test_size`, at least half of the class's expected number (and one), and at most as many as
    leave two for training. An assignment in `previous` is never changed: a class with too few test images
    gets new images only.

    Parameters
    ----------
    ids : array of shape (n, 32), uint8, or sequence of bytes
        sha256 digests of the images.
    labels : array of shape (n,)
        Class labels, as `check_labels` accepts them.
    test_size : float
        Expected share of test images, between 0 and 1.
    salt : str
        Another salt is another split.
    groups : array of shape (n,), optional
        Names of groups that must stay on one side; a missing name (None, NaN, "") is an image on its own.
    previous : mapping of str to {'train', 'test'}, optional
        Assignments of an earlier split by the hex digest of the image.

    Returns
    -------
    array of shape (n,), bool
        True for test images. Byte-identical images are always on the same side.

    Raises
    ------
    UsageError
        If `test_size` is not between 0 and 1, or `previous` holds another word.
    DataError
        If no image at all can be spared for the test part.

    Warns
    -----
    FeatxWarning
        Naming the classes that have no test image.
    """
    if not 0 < test_size < 1:
        raise UsageError(f"test_size {test_size} is not a share between 0 and 1, such as 0.2.")
    digests = digest_array(ids)
    y, classes = _factorise(labels, len(digests), "labels")
    unit = image_groups(digests, groups)
    n_units = int(unit.max(initial=-1)) + 1
    order = np.argsort(unit_hashes := _unit_hashes(digests, unit, n_units, salt, groups))
    side = _previous_sides(digests, previous)

    # Per unit: -1 new, 0 train, 1 test. A unit on both sides (groups that were joined later) trains: its
    # new members would otherwise be test images with kin in the training part.
    unit_side = np.full(n_units, 1)
    np.minimum.at(unit_side, unit, np.where(side < 0, 2, side))
    known = np.zeros(n_units, dtype=bool)
    known[unit[side >= 0]] = True
    is_test = np.where(known, unit_side == 1, unit_hashes < test_size)

    members = np.unique(np.column_stack([y, unit]), axis=0)  # (class, unit) pairs
    rank = np.empty(n_units, dtype=np.intp)
    rank[order] = np.arange(n_units)
    by_class = [own[np.argsort(rank[own])] for own in np.split(members[:, 1], _starts(members[:, 0]))]
    for own in by_class:  # give back first, so that filling sees the final counts
        for index in own[is_test[own] & ~known[own]][::-1]:
            if (~is_test[own]).sum() >= min(MIN_TRAIN_UNITS, len(own)):
                break
            is_test[index] = False
    for own in by_class:
        wanted = max(1, math.floor(MIN_TEST_SHARE * test_size * len(own)))
        for index in own[~is_test[own] & ~known[own]]:
            if is_test[own].sum() >= wanted:
                break
            is_test[index] = _can_spare(index, by_class, is_test, members)

    mask: NDArray[np.bool_] = np.where(side >= 0, side == 1, is_test[unit])
    if not mask.any():
        raise DataError(
            f"{_count(len(digests), 'image')} ({n_units:,} apart from copies and groups) leave none for a "
            f"test part (each class keeps {MIN_TRAIN_UNITS} for training); add images, or fit without a test "
            "part (--no-test; in Python fit instead of fit_with_test)."
        )
    bare = np.setdiff1d(np.arange(len(classes)), y[mask])
    if len(bare):
        counts = np.bincount(y, minlength=len(classes))
        named = _listed(f"{classes[index]!r} ({_count(counts[index], 'image')})" for index in bare)
        warnings.warn(
            f"no test image for {_count(len(bare), 'class', 'classes')}: {named}; their scores are not "
            "measured. Add images of them.",
            FeatxWarning,
            stacklevel=2,
        )
    return mask


def make_folds(
    y: ArrayLike,
    *,
    n_splits: int = 5,
    groups: ArrayLike | None = None,
    n_repeats: int = 1,
    random_state: int | None = 0,
) -> list[Fold]:
    """Return stratified folds in which groups stay together and every training part has every class.

    With groups this is iterative stratification (Sechidis et al., ECML 2011) over whole groups: the rarest
    class first, its largest group into the fold that has the fewest images of that class.

    Parameters
    ----------
    y : array of shape (n,)
        Class labels.
    n_splits : int
        Number of folds; lowered to the size of the smallest class.
    groups : array of shape (n,), optional
        Rows of a group are all in the same fold.
    n_repeats : int
        Number of times that the folds are drawn.
    random_state : int or None
        Seed of the first drawing; the k-th repeat uses `random_state + k`.

    Returns
    -------
    list of (train, test) index arrays
        ``n_repeats * n_splits`` of them; the test parts of each repeat cover every row once.

    Raises
    ------
    LabelError
        If a class has a single image (or group): it cannot be in the training and in the test fold.

    Warns
    -----
    SearchWarning
        If the number of folds was lowered.
    """
    from sklearn.model_selection import StratifiedKFold

    if n_splits < 2 or n_repeats < 1:
        raise UsageError(
            f"n_splits {n_splits} with n_repeats {n_repeats}: at least 2 folds and 1 repeat are needed."
        )
    codes, classes = _factorise(y, None, "labels")
    unit = np.arange(len(codes)) if groups is None else group_codes(groups, len(codes))
    grouped = int(unit.max(initial=-1)) + 1 < len(codes)
    counts = np.bincount(np.unique(np.column_stack([codes, unit]), axis=0)[:, 0], minlength=len(classes))
    what = "group" if grouped else "image"
    if counts.min() < 2:
        alone = _listed(repr(classes[index]) for index in np.flatnonzero(counts < 2))
        raise LabelError(
            f"{_count(int((counts < 2).sum()), 'class has', 'classes have')} a single {what}: {alone}. "
            f"Cross-validation needs two {what}s of each class: add some, or leave these classes out."
        )
    folds = int(min(n_splits, counts.min()))
    if folds < n_splits:
        warnings.warn(
            f"{folds} folds instead of {n_splits}: the smallest class, {classes[counts.argmin()]!r}, has "
            f"{counts.min()} {what}s.",
            SearchWarning,
            stacklevel=2,
        )
    result: list[Fold] = []
    for repeat in range(n_repeats):
        seed = None if random_state is None else random_state + repeat
        if grouped:
            fold = _grouped_folds(codes, unit, folds, np.random.default_rng(seed))
            result += [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(folds)]
        else:
            splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
            result += list(splitter.split(codes, codes))
    return result


def fold_repeats(n: int) -> int:
    """How often folds should be drawn anew: once from 500 images on, two or three times below.

    Below 500 images the spread between drawings of the folds (a point or two of accuracy) is as large as
    the differences that are to be found. More than `MOST_REPEATS` drawings make the score little steadier.
    """
    return 1 if n >= 500 else max(2, min(MOST_REPEATS, math.ceil(500 / max(n, 1))))


def image_groups(ids: Ids, groups: ArrayLike | None = None) -> NDArray[np.intp]:
    """Number the groups of images that must stay together.

    Byte-identical images are one group, and so are images that share a name in `groups`, and whatever
    these two link (connected components).

    Parameters
    ----------
    ids : array of shape (n, 32), uint8, or sequence of bytes
        sha256 digests of the images.
    groups : array of shape (n,), optional
        The user's groups; a missing name (None, NaN, "") joins nothing.

    Returns
    -------
    array of shape (n,), int
        Group numbers from 0, in the order of first appearance.
    """
    digests = digest_array(ids)
    n = len(digests)
    same = np.unique(digests.view("V32").ravel(), return_inverse=True)[1] if n else np.empty(0, np.intp)
    return _in_order(same) if groups is None else joined_groups(same, group_codes(groups, n))


def joined_groups(first: NDArray[np.intp], second: NDArray[np.intp]) -> NDArray[np.intp]:
    """Number the groups that two ways of grouping the same images make together (connected components).

    Parameters
    ----------
    first, second : array of shape (n,), int
        Group numbers, from 0.

    Returns
    -------
    array of shape (n,), int
        Group numbers from 0, in the order of first appearance.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    offset = int(first.max(initial=-1)) + 1
    nodes = offset + int(second.max(initial=-1)) + 1
    links = coo_array((np.ones(len(first)), (first, offset + second)), shape=(nodes, nodes))
    return _in_order(connected_components(links, directed=False)[1][first])


def check_labels(y: Any, *, min_classes: int = 2) -> NDArray[Any]:
    """Return the labels as an array of shape (n,) of their own type, or say why they cannot be learnt.

    Accepted are strings, whole numbers (also as floats), booleans, and pandas series or categoricals of
    these.

    Parameters
    ----------
    y : array-like of shape (n,)
        One label for each image.
    min_classes : int
        2 to learn, 1 to score.

    Raises
    ------
    LabelError
        For missing labels (with their row numbers), mixed types, fractions, several labels for one image,
        or fewer than `min_classes` classes.
    """
    if not isinstance(y, Iterable):
        raise LabelError(f"labels are a {type(y).__name__} ({y!r}); give one label for each image.")
    values = list(y) if not isinstance(y, np.ndarray) else y
    if isinstance(values, np.ndarray) and values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if isinstance(values, np.ndarray) and values.ndim != 1:
        raise LabelError(
            f"labels have shape {values.shape}: featx learns one label for each image (n,); multi-label "
            "and one-hot targets are not supported, pass a single class for each image."
        )
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuU":
        return _with_classes(values, min_classes)

    items = values.tolist() if isinstance(values, np.ndarray) else values
    _refuse_missing([row for row, item in enumerate(items) if _is_missing(item)])
    kinds: dict[str, int] = {}  # kind of label -> first row of it
    for row, item in enumerate(items):
        kinds.setdefault(_kind(item, row), row)
    if len(kinds) > 1:
        shown = ", ".join(f"{kind} in row {row} ({items[row]!r})" for kind, row in kinds.items())
        raise LabelError(f"labels are of mixed types: {shown}; give all of them one type.")
    if kinds.keys() == {"number"}:
        return _with_classes(_whole_numbers(items), min_classes)
    return _with_classes(np.asarray(items), min_classes)


def digest_array(ids: Ids) -> NDArray[np.uint8]:
    """Return digests as an array of shape (n, 32), uint8, C-contiguous."""
    if isinstance(ids, np.ndarray) and ids.dtype == np.uint8:
        digests = np.ascontiguousarray(ids).reshape(len(ids), -1)
    else:
        digests = np.frombuffer(b"".join(map(bytes, ids)), np.uint8).reshape(len(ids), -1)
    if len(digests) and digests.shape[1] != hashlib.sha256().digest_size:
        raise UsageError(f"ids are of {digests.shape[1]} bytes; an image's id is a sha256 of 32 bytes.")
    return digests


def _unit_hashes(
    digests: NDArray[np.uint8],
    unit: NDArray[np.intp],
    n_units: int,
    salt: str,
    groups: ArrayLike | None,
) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each unit: the smallest hash of its names or digests."""
    start = hashlib.sha256(salt.encode("utf-8", "surrogatepass"))
    names: Iterable[Any] = [None] * len(digests) if groups is None else list(np.asarray(groups, object))
    position = np.ones(n_units)
    seen: set[Hashable] = set()
    for index, digest, name in zip(unit.tolist(), digests, names, strict=True):
        token = digest.tobytes() if is_unnamed(name) else str(name).encode("utf-8", "surrogatepass")
        if token in seen:
            continue
        seen.add(token)
        state = start.copy()
        state.update(token)
        position[index] = min(position[index], int.from_bytes(state.digest()[:8]) / 2**64)
    return position


def _previous_sides(digests: NDArray[np.uint8], previous: Mapping[str, str] | None) -> NDArray[np.int8]:
    """Return -1 for a new image, 0 for one of the training part, 1 for one of the test part."""
    if not previous:
        return np.full(len(digests), -1, np.int8)
    words = {"train": 0, "test": 1}
    unknown = set(previous.values()) - set(words)
    if unknown:
        raise UsageError(f"previous assigns an image to {min(unknown)!r}; use 'train' or 'test'.")
    return np.array([words.get(previous.get(d.tobytes().hex(), ""), -1) for d in digests], np.int8)


def _can_spare(
    index: int,
    by_class: Sequence[NDArray[np.intp]],
    is_test: NDArray[np.bool_],
    members: NDArray[np.intp],
) -> bool:
    """Whether every class of a unit keeps enough training images if the unit becomes test."""
    own_classes = members[members[:, 1] == index, 0]
    return all((~is_test[by_class[code]]).sum() > MIN_TRAIN_UNITS for code in own_classes)


def _grouped_folds(
    codes: NDArray[np.intp], unit: NDArray[np.intp], folds: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    from scipy.sparse import coo_array

    n_classes, n_units = int(codes.max()) + 1, int(unit.max()) + 1
    table = coo_array((np.ones(len(codes)), (unit, codes)), shape=(n_units, n_classes)).tocsr()
    size = np.bincount(unit, minlength=n_units)
    order = rng.random(n_units)
    columns = table.tocsc()
    of_class = [columns.indices[columns.indptr[c] : columns.indptr[c + 1]] for c in range(n_classes)]
    filled = np.zeros((folds, n_classes))
    total = np.zeros(folds)
    fold = np.full(n_units, -1)
    for code in sorted(range(n_classes), key=lambda c: len(of_class[c])):
        own = of_class[code]
        for index in own[np.lexsort((order[own], -size[own]))]:
            if fold[index] >= 0:
                continue
            best = int(np.lexsort((rng.random(folds), total, filled[:, code]))[0])
            fold[index] = best
            span = slice(table.indptr[index], table.indptr[index + 1])
            filled[best, table.indices[span]] += table.data[span]
            total[best] += size[index]
        _part_class(own, fold, filled, total, table, size)
    return fold[unit]


def _part_class(
    own: NDArray[np.intp],
    fold: NDArray[np.intp],
    filled: NDArray[np.float64],
    total: NDArray[np.float64],
    table: Any,
    size: NDArray[np.intp],
) -> None:
    """Move one group of a class whose groups are all in one fold because of rarer classes."""
    if len(np.unique(fold[own])) > 1:
        return
    index = own[np.argmin(size[own])]
    old, new = fold[index], int(np.argsort(total)[0])
    new = new if new != old else int(np.argsort(total)[1])
    span = slice(table.indptr[index], table.indptr[index + 1])
    for side, sign in ((old, -1), (new, 1)):
        filled[side, table.indices[span]] += sign * table.data[span]
        total[side] += sign * size[index]
    fold[index] = new


def _factorise(values: ArrayLike, n: int | None, what: str) -> tuple[NDArray[np.intp], list[Any]]:
    labels = check_labels(values, min_classes=1)
    if n is not None and len(labels) != n:
        raise LabelError(f"{n} images, but {len(labels)} {what}; give one for each image.")
    classes, codes = np.unique(labels, return_inverse=True)
    return codes, classes.tolist()


def group_codes(groups: ArrayLike, n: int) -> NDArray[np.intp]:
    """Number groups by their names, shape (n,); each image without a name (None, NaN, "") is on its own."""
    names = list(np.asarray(groups, dtype=object))
    if len(names) != n:
        raise DataError(f"{n} images, but {len(names)} groups; give one for each image.")
    codes: dict[Hashable, int] = {}
    for row, name in enumerate(names):
        key = (row,) if is_unnamed(name) else name
        codes.setdefault(key, len(codes))
    return np.array([codes[(row,) if is_unnamed(name) else name] for row, name in enumerate(names)], np.intp)


def _in_order(codes: NDArray[np.intp]) -> NDArray[np.intp]:
    """Renumber so that numbers appear in the order 0, 1, 2, ..."""
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _starts(sorted_codes: NDArray[np.intp]) -> NDArray[np.intp]:
    return np.flatnonzero(np.diff(sorted_codes)) + 1


def _is_missing(item: Any) -> bool:
    """None, NaN, and pandas' NA and NaT, which are not equal to themselves either."""
    if item is None or type(item).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(item, float | np.floating) and math.isnan(item)


def is_unnamed(name: Any) -> bool:
    """Whether a group's name is missing: None, NaN or empty."""
    return _is_missing(name) or (isinstance(name, str) and not name)


def _refuse_missing(rows: Sequence[int]) -> None:
    if rows:
        raise LabelError(
            f"{_count(len(rows), 'label is', 'labels are')} missing (None, NaN or blank), in rows "
            f"{_listed(map(str, rows))} (counted from 0); label these images or leave them out."
        )


def _kind(item: Any, row: int) -> str:
    if isinstance(item, str):
        return "string"
    if isinstance(item, bool | np.bool_):
        return "boolean"
    if isinstance(item, int | float | np.integer | np.floating):
        return "number"
    if isinstance(item, list | tuple | set | frozenset | dict | np.ndarray):
        raise LabelError(
            f"the label in row {row} is {item!r}: featx learns one label for each image; multi-label "
            "targets are not supported, pass a single class for each image."
        )
    raise LabelError(
        f"the label in row {row} is a {type(item).__name__} ({item!r}); labels are strings, whole numbers "
        "or booleans."
    )


def _whole_numbers(items: Sequence[Any]) -> NDArray[Any]:
    numbers = np.asarray(items)
    if numbers.dtype == object:
        raise LabelError("labels hold whole numbers beyond 64 bits; pass them as strings.")
    if numbers.dtype.kind == "f":
        broken = np.flatnonzero(~np.isfinite(numbers) | (numbers != np.trunc(numbers)))
        if len(broken):
            raise LabelError(
                f"labels are continuous: {_count(len(broken), 'value is', 'values are')} no whole number, "
                f"such as {numbers[broken[0]]} in row {broken[0]}; featx learns classes, so bin them or "
                "pass class names."
            )
    return numbers


def _with_classes(labels: NDArray[Any], min_classes: int) -> NDArray[Any]:
    if not len(labels) and min_classes:
        raise LabelError("no labels: at least 2 classes with 2 images each are needed.")
    classes = np.unique(labels)
    blank = [name for name in classes.tolist() if isinstance(name, str) and not name.strip()]
    _refuse_missing(np.flatnonzero(np.isin(labels, blank)).tolist() if blank else [])
    if len(classes) < min_classes:
        raise LabelError(
            f"at least {min_classes} classes are needed, got only {classes[0].item()!r} "
            f"({_count(len(labels), 'image')}); add images of another class."
        )
    return labels


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - LISTED:,} more" if len(shown) > LISTED else ""
    return ", ".join(shown[:LISTED]) + more


def divisible(codes: NDArray[np.intp], groups: ArrayLike | None = None) -> NDArray[np.bool_]:
    """Mask of the rows whose class has at least two rows, or two groups if there are groups.

    Others cannot be in the training and in the test part of a fold.
    """
    units = np.arange(len(codes)) if groups is None else group_codes(groups, len(codes))
    pairs = np.unique(np.column_stack([codes, units]), axis=0)
    mask: NDArray[np.bool_] = np.bincount(pairs[:, 0], minlength=int(codes.max(initial=-1)) + 1)[codes] > 1
    return mask


def stratified_sample(
    codes: NDArray[np.intp],
    most: int,
    seed: int | Sequence[int],
    *,
    per_class: int = 0,
    groups: ArrayLike | None = None,
) -> NDArray[np.intp]:
    """Draw a stratified sample of rows.

    Parameters
    ----------
    codes : array of shape (n,), int
        Class indices.
    most : int
        Size of the sample. All rows are returned if there are no more.
    seed : int or sequence of int
        Seed of the draw.
    per_class : int
        At least as many rows of each class are drawn (or all of them). The size of the sample is then `most`
        up to rounding and these rows; with 0 it is exactly `most`.
    groups : array of shape (n,), optional
        The `per_class` rows of a class are of different groups where it has so many.

    Returns
    -------
    array of shape (n_rows,), int
        Sorted positions.
    """
    if len(codes) <= most:
        return np.arange(len(codes))
    rng = np.random.default_rng(seed)
    if per_class:
        own = [rng.permutation(np.flatnonzero(codes == c)) for c in np.unique(codes)]
        if groups is not None:
            units = group_codes(groups, len(codes))
            for number, rows in enumerate(own):
                first = np.sort(np.unique(units[rows], return_index=True)[1])[:per_class]
                own[number] = np.concatenate([rows[first], np.delete(rows, first)])
        size = [max(per_class, round(most * len(rows) / len(codes))) for rows in own]
        return np.sort(np.concatenate([rows[:k] for rows, k in zip(own, size, strict=True)]))
    order = np.lexsort((rng.permutation(len(codes)), codes))
    count = np.bincount(codes)
    start = np.concatenate([[0], np.cumsum(count)])[:-1]
    quantile = np.empty(len(codes))
    quantile[order] = (np.arange(len(codes)) - start[codes[order]] + 0.5) / count[codes[order]]
    return np.sort(np.argsort(quantile, kind="stable")[:most])
