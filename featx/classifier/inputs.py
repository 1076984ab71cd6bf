"""Images and labels as they are passed to the classifier, checked before anything is computed."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.audit import AuditData, audit
from featx.exceptions import DataError, ImageWarning, LabelError, TooManyBadImagesError
from featx.extractor import Extraction
from featx.images import (
    ImageSet,
    Skipped,
    absent_images,
    escape_name,
    likely_cause,
    load_images,
    match_labels,
    nothing_left,
    read_digests,
)
from featx.splits import check_labels, image_groups, stable_test_mask
from featx.stores.base import as_ids

Images = Any
"""What `featx.images.load_images` reads: a folder, a manifest, a list, a data frame, a dataset, ..."""

NO_LABELS = (
    "these images have no labels; give y, a folder of class folders, or a manifest with a column 'label'."
)

LISTED = 10
"""Items that a message lists before it counts the others."""


def as_images(
    X: Images,
    y: ArrayLike | None = None,
    *,
    groups: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> ImageSet:
    """Return an `ImageSet` of any supported input; arguments replace what `X` itself brings.

    Parameters
    ----------
    X : Images
        The images.
    y, groups, sample_weight : array-like of shape (n_images,), optional
        Labels, groups and weights.

    Raises
    ------
    DataError
        If the lengths differ.
    """
    images = X if isinstance(X, ImageSet) else load_images(X)
    extra = {"labels": y, "groups": groups, "weights": sample_weight}
    given = {name: _as_array(values) for name, values in extra.items() if values is not None}
    if "weights" in given:
        given["weights"] = _as_weights(given["weights"])
    for name, values in given.items():
        if values.ndim == 0:
            raise DataError(f"{name} are a single value ({values.item()!r}); give one for each image.")
        if len(values) != len(images):
            raise DataError(f"{len(images)} images but {len(values)} {name}; give one for each image.")
    return dataclasses.replace(images, **given) if given else images  # type: ignore[arg-type]


def labelled_images(
    X: Images,
    y: ArrayLike | None = None,
    *,
    groups: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> ImageSet:
    """`as_images` for images that must have labels which can be learnt.

    Raises
    ------
    LabelError
        If labels are missing, or there are fewer than two classes.
    """
    images = as_images(X, y, groups=groups, sample_weight=sample_weight)
    if images.labels is None:
        raise LabelError(f"{NO_LABELS} {images.no_label}".strip())
    try:
        check_labels(images.labels)
    except LabelError as error:
        if not images.skipped:
            raise
        one = images.skipped[0]
        raise LabelError(
            f"{error} Images that were set aside: {len(images.skipped)}, such as {escape_name(one.name)}: "
            f"{one.reason}."
        ) from error
    return images


def labels_of(images: ImageSet) -> NDArray[Any]:
    """Return the labels.

    Raises
    ------
    LabelError
        If there are none.
    """
    if images.labels is None:
        raise LabelError(f"{NO_LABELS} {images.no_label}".strip())
    return images.labels


def held_out_part(
    images: ImageSet, *, test_size: float, salt: str, previous: Any
) -> tuple[ImageSet, NDArray[np.bool_]]:
    """Return the readable images and the mask of the test part.

    The test part is the one that the data names, else a stable hash split (`splits.stable_test_mask`).
    """
    if images.splits is not None and (images.splits == "test").any():
        is_test = images.splits == "test"
        if is_test.all():
            raise DataError(
                f"all {len(images):,} images are in the test part, so none is left for training; name "
                "the split of the others train."
            )
        return images, is_test
    images = with_digests(images)
    assert images.ids is not None
    is_test = stable_test_mask(
        images.ids,
        labels_of(images),
        test_size=test_size,
        salt=salt,
        groups=images.groups,
        previous=previous,
    )
    return images, is_test


def as_classes(images: ImageSet, classes: NDArray[Any]) -> ImageSet:
    """Return the images with labels written as the classes are, where they match one to one; say so."""
    labels, said = match_labels(labels_of(images), classes)
    if said:
        warnings.warn(said, ImageWarning, stacklevel=4)
    return dataclasses.replace(images, labels=labels)


def as_learnt(images: ImageSet, classes: NDArray[Any]) -> ImageSet:
    """`as_classes`, where some images may have no label or one that was not learnt; these are counted.

    Raises
    ------
    LabelError
        If all labels are of other classes.
    """
    if images.labels is None:
        return images
    images = as_classes(images, classes)
    labels = labels_of(images)
    unseen = ~np.isin(labels, classes)
    if unseen.all():
        refuse_unseen(labels, classes, what="labels")
    if unseen.any():
        names = ", ".join(sorted({escape_name(str(label)) for label in labels[unseen].tolist()})[:LISTED])
        warnings.warn(
            f"{int(unseen.sum()):,} of {len(labels):,} images have classes that were not learnt: {names}; "
            "they count neither as right nor as wrong.",
            ImageWarning,
            stacklevel=4,
        )
    return images


def refuse_unseen(labels: NDArray[Any], classes: NDArray[Any], *, what: str) -> None:
    """Refuse labels that the model does not know.

    Raises
    ------
    LabelError
        Naming them.
    """
    known = set(classes.tolist())
    unseen = sorted({repr(label) for label in labels.tolist() if label not in known})
    if unseen:
        raise LabelError(
            f"the {what} have classes that were not learnt: {', '.join(unseen[:LISTED])}; "
            f"learnt are {', '.join(repr(label) for label in classes.tolist()[:LISTED])}. Leave these images "
            "out, or give training images of these classes, too."
        )


def all_skipped(images: ImageSet, kept: NDArray[np.intp], skipped: Sequence[Skipped]) -> list[Skipped]:
    """Images that the folder walk or the extraction set aside; the latter with their labels.

    Parameters
    ----------
    images : ImageSet
        What was extracted.
    kept : array of int
        Positions of the images that were kept.
    skipped : sequence of Skipped
        The others, in order.
    """
    if images.labels is None:
        return [*images.skipped, *skipped]
    lost = np.setdiff1d(np.arange(len(images)), kept)
    labelled = [
        dataclasses.replace(picture, label=images.labels[index])
        for picture, index in zip(skipped, lost, strict=True)
    ]
    return [*images.skipped, *labelled]


def refuse_too_many(skipped: Sequence[Skipped], total: int, max_bad: float) -> None:
    """Warn of images that were set aside.

    Raises
    ------
    TooManyBadImagesError
        If they are more than the fraction `max_bad` of `total`.
    """
    if not skipped:
        return
    listed = "; ".join(f"{escape_name(s.name)}: {s.reason}" for s in skipped[:LISTED])
    more = f"; and {len(skipped) - LISTED} more" if len(skipped) > LISTED else ""
    summary = f"{len(skipped)} of {total} images cannot be used: {listed}{more}"
    if len(skipped) > max_bad * total:
        raise TooManyBadImagesError(
            f"{summary}. That is more than the {max_bad:.0%} that max_bad allows; repair or remove them, or "
            "raise max_bad (--max-bad).",
            skipped,
        )
    by_class = Counter(str(s.label) for s in skipped if s.label is not None)
    per_class = ", ".join(f"{escape_name(label)} {count}" for label, count in by_class.most_common(LISTED))
    warnings.warn(
        f"{summary}" + (f" (by class: {per_class})" if per_class else ""), ImageWarning, stacklevel=4
    )


def refuse_absent(images: ImageSet, max_bad: float) -> None:
    """Refuse a set of which too many paths lead nowhere, before anything is computed.

    Raises
    ------
    TooManyBadImagesError
        With the first path that does not exist, and the likely cause.
    """
    absent = absent_images(images.sources, images.names)
    if not absent or (len(absent) < len(images) and len(absent) <= max_bad * len(images)):
        return
    first = os.fsdecode(images.sources[absent[0][0]])  # type: ignore[arg-type]
    there = len(images) - len(absent)
    raise TooManyBadImagesError(
        f"{there:,} of {len(images):,} images exist. The first that does not is {escape_name(first)}. "
        f"{likely_cause(first)}",
        [skipped for _, skipped in absent],
    )


def warn_of_training_images(ids: NDArray[np.uint8], assignment: Mapping[str, str]) -> None:
    """Warn if images are evaluated that the model was trained on."""
    trained = sum(assignment.get(row.tobytes().hex()) == "train" for row in ids)
    if trained:
        warnings.warn(
            f"the model was trained on {trained} of these {len(ids)} images (same bytes), so its score on "
            "them is too good. Evaluate it on other images.",
            ImageWarning,
            stacklevel=4,
        )


def _as_weights(values: NDArray[Any]) -> NDArray[np.float64]:
    """Weights as numbers.

    Raises
    ------
    DataError
        If one is no finite number from 0 up.
    """
    try:
        weights = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"sample weights are not numbers: {error}.") from error
    bad = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if len(bad):
        raise DataError(f"the sample weight {weights[bad[0]]:g} of image {bad[0]} is not at least 0.")
    return weights


def _refuse_weightless(y: NDArray[Any], weights: NDArray[np.float64] | None) -> None:
    """Refuse classes whose images all have the weight 0: they could not be learnt."""
    weightless = [] if weights is None else sorted(set(y.tolist()) - set(y[weights > 0].tolist()))
    if weightless:
        raise LabelError(
            f"all training images of {', '.join(map(repr, weightless[:LISTED]))} have the weight 0; leave "
            "the class out, or give one of its images a weight."
        )


def _as_array(values: Any) -> NDArray[Any]:
    """As NumPy does it, but a list of mixed types stays one: 1 and "1" must not become the same label.

    An iterator is read, and a data frame of one column is that column.
    """
    if isinstance(values, Iterator):
        values = list(values)
    if hasattr(values, "columns") and getattr(values, "shape", ())[1:] == (1,):
        values = values.to_numpy()[:, 0]
    if isinstance(values, list | tuple) and len({type(value) for value in values}) > 1:
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array
    return np.asarray(values)


def with_digests(images: ImageSet) -> ImageSet:
    """Return the image set with digests, and without the images whose files cannot be read."""
    if images.ids is not None:
        return images
    digests, errors = read_digests(images.sources, images.names)
    labels = labels_of(images)
    lost = [Skipped(error.name, error.reason, labels[position]) for position, error in sorted(errors.items())]
    if len(lost) == len(images):
        raise nothing_left(images.sources, lost)
    readable = images.select([position for position, digest in enumerate(digests) if digest])
    readable.skipped = [*images.skipped, *lost]
    readable.ids = as_ids(digest for digest in digests if digest)
    return readable


@dataclass(frozen=True, eq=False)
class FitData:
    """The images of a fit that have features, in two parts.

    Parameters
    ----------
    images : ImageSet
        The images that have features.
    train, test : ImageSet
        Their parts; the second may be empty.
    y : array of shape (n_train,)
        Labels of the training part.
    groups : array of shape (n_train,), int
        Images of one group stay in one fold.
    is_test : array of shape (n_images,), bool
        Which of the extracted images are in the test part.
    skipped : tuple of Skipped
        Images that were set aside.
    """

    images: ImageSet
    train: ImageSet
    test: ImageSet
    y: NDArray[Any]
    groups: NDArray[np.intp]
    is_test: NDArray[np.bool_]
    skipped: tuple[Skipped, ...]


def fit_data(images: ImageSet, held_out: NDArray[np.bool_], found: Extraction, *, max_bad: float) -> FitData:
    """Divide the images that have features into the training and the test part.

    Warns of what the audit finds, except what needs no action: images with several labels, images that are in
    the training and in the test part.

    Parameters
    ----------
    images : ImageSet
        What was extracted, with labels.
    held_out : array of shape (n,), bool
        Which of them are in the test part.
    found : Extraction
        Their features.
    max_bad : float
        Fraction of images that may be set aside.

    Raises
    ------
    TooManyBadImagesError
        If more are set aside, or all of one part.
    LabelError
        If a class of the test part is not in the training part.
    """
    skipped = all_skipped(images, found.kept, found.skipped)
    refuse_too_many(skipped, len(images) + len(images.skipped), max_bad)
    _refuse_lost_part(held_out, found)
    images, held_out = images.select(found.kept), held_out[found.kept]
    _warn_of_lost_classes(labels_of(images), skipped)
    parts = np.where(held_out, "test", "train")
    data = AuditData(images.names, digests=found.ids, labels=images.labels, parts=parts)
    for finding in audit(data):
        if finding.severity != "note" and finding.check != "copies":  # these stay on one side
            warnings.warn(finding.sentence, ImageWarning, stacklevel=5)
    train, test = images.select(~held_out), images.select(held_out)
    y = check_labels(labels_of(train))
    _refuse_weightless(y, train.weights)
    test = as_classes(test, np.unique(y))
    refuse_unseen(labels_of(test), np.unique(y), what="test images")
    groups = image_groups(found.ids[~held_out], train.groups)
    return FitData(images, train, test, y, groups, held_out, tuple(skipped))


def _refuse_lost_part(held_out: NDArray[np.bool_], found: Extraction) -> None:
    """Refuse a test or a training part of which no image can be used."""
    for what, part, remedy in (
        ("test", held_out, "; or learn without a test part (--no-test; in Python fit)"),
        ("training", ~held_out, ""),
    ):
        if part.any() and not part[found.kept].any():
            at = np.setdiff1d(np.arange(len(part)), found.kept)
            lost = [one for one, is_in in zip(found.skipped, part[at], strict=True) if is_in]
            raise TooManyBadImagesError(
                f"none of the {int(part.sum()):,} images of the {what} part can be used, such as "
                f"{escape_name(lost[0].name)}: {lost[0].reason}. Repair them{remedy}.",
                lost,
            )


def _warn_of_lost_classes(labels: NDArray[Any], skipped: Sequence[Skipped]) -> None:
    """Warn of classes of which no image is left: the model does not know them."""
    lost = Counter(str(one.label) for one in skipped if one.label is not None)
    gone = {label: n for label, n in lost.items() if label not in set(map(str, labels.tolist()))}
    if gone:
        listed = ", ".join(f"{escape_name(label)} ({n})" for label, n in list(gone.items())[:LISTED])
        warnings.warn(
            f"classes of which no image can be used are not learnt: {listed}; the model will never predict "
            "them. Repair these images or remove the classes.",
            ImageWarning,
            stacklevel=5,
        )
