"""Compare two models on the same images: a refit with the model before it, a grown model with the old one.

The split depends on the content of the images only, so test images stay test images, and the old model can
be evaluated on every test image that it was not fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.advice import ProbeResult
from featx.classifier.model import ImageModel
from featx.evaluation import Comparison, Metric, compare
from featx.images import ImageSet, read_digests
from featx.records import FloatOrNaN, Record
from featx.splits import image_groups
from featx.stores.base import as_ids

CLASSES_NAMED = 10
"""Classes that a sentence names."""


@dataclass(frozen=True)
class ClassChange(Record):
    """One class's recall on the test part, before and after.

    Parameters
    ----------
    label : object
        The class.
    n : int
        Its test images.
    before, after : float
        Recall; before is NaN for a class that the old model did not know.
    difference : Metric
        After minus before, paired, with its 95 % interval.
    """

    DERIVED = ("verdict",)

    label: Any
    n: int
    before: FloatOrNaN
    after: float
    difference: Metric

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``not distinguishable``."""
        if self.difference.low > 0:
            return "better"
        return "worse" if self.difference.high < 0 else "not distinguishable"


@dataclass(frozen=True)
class RefitComparison(Record):
    """A new model against the one before it.

    Parameters
    ----------
    n_added, n_removed : int
        Images that the old model did not know, and images of the old model that are no longer there.
    n_test : int
        Test images that neither model was fitted on.
    change : Comparison
        New minus old on these.
    by_class : tuple of ClassChange
        The classes with the largest change first.
    """

    n_added: int
    n_removed: int
    n_test: int
    change: Comparison
    by_class: tuple[ClassChange, ...]

    def sentences(self) -> list[str]:
        """Describe what changed."""
        said = [
            f"{self.n_added} images are new since the model before; {self.n_removed} of its images are gone.",
            f"On the {self.n_test} test images that neither was fitted on: {change_in_words(self.change)}.",
        ]
        return said + changed_classes(self.by_class)


def compare_fits(
    old: ImageModel, new: ImageModel, images: ImageSet, machine: Mapping[str, Any]
) -> RefitComparison | None:
    """Compare a new model with the one before it; None if the old one was fitted on every test image.

    Parameters
    ----------
    old, new : ImageModel
        Each fitted with a test part.
    images : ImageSet
        With labels: what `new` was fitted and tested on.
    machine : mapping
        Parameters of `FeatureExtractor` that do not change features.
    """
    names = [digest.hex() if digest else "" for digest in read_digests(images.sources, images.names)[0]]
    first = {name: index for index, name in reversed(list(enumerate(names)))}  # each image counts once
    chosen = sorted(
        index
        for name, index in first.items()
        if new.assignment.get(name) == "test" and old.assignment.get(name) != "train"
    )
    if not chosen:
        return None
    test = images.select(np.array(chosen))
    local = {**machine, "allow_download": False}  # the old model may come from someone else
    after, before = (
        model.decision.shares(model.proba(model.extract(test.sources, local, names=test.names).blocks))
        for model in (new, old)
    )
    classes = [*new.classes.tolist(), *(c for c in old.classes.tolist() if c not in new.classes.tolist())]
    after, before = widened(after, new.classes, classes), widened(before, old.classes, classes)
    codes = np.array([classes.index(label) for label in np.asarray(test.labels).tolist()], dtype=np.intp)
    ids = as_ids([bytes.fromhex(names[index]) for index in chosen])
    return RefitComparison(
        n_added=len(new.assignment.keys() - old.assignment.keys()),
        n_removed=len(old.assignment.keys() - new.assignment.keys()),
        n_test=len(chosen),
        change=compare(codes, after, before, groups=image_groups(ids, test.groups)),
        by_class=tuple(class_changes(codes, after, before, classes, old.classes.tolist())),
    )


def change_in_words(found: Comparison) -> str:
    """Describe both scores, the difference with its interval, and the verdict, which the interval decides."""
    verdict = {"a": "better than before", "b": "worse than before"}.get(found.verdict, found.verdict)
    points = Metric(found.difference, found.low, found.high).as_points()
    scores = f"{found.value_b:.3f} before, {found.value_a:.3f} now"
    return f"{scores}, {points}: {verdict}"


def changed_classes(changes: Sequence[ClassChange]) -> list[str]:
    """Name the classes that are significantly better or worse."""
    said = []
    for word in ("better", "worse"):
        if named := [change for change in changes if change.verdict == word][:CLASSES_NAMED]:
            listed = ", ".join(f"{c.label} ({100 * c.difference.value:+.0f})" for c in named)
            said.append(f"Classes that are {word}: {listed}.")
    return said


def widened(proba: NDArray[np.float64], classes: NDArray[Any], wider: Sequence[Any]) -> NDArray[np.float64]:
    """Probabilities of `wider`, which contains `classes`; zeros for classes that the model does not know."""
    out = np.zeros((len(proba), len(wider)))
    out[:, [list(wider).index(label) for label in classes.tolist()]] = proba
    return out


def class_changes(
    codes: NDArray[np.intp],
    after: NDArray[np.float64],
    before: NDArray[np.float64],
    classes: list[Any],
    known: list[Any],
) -> list[ClassChange]:
    """Recall of each class that has test images, the most changed first."""
    found = []
    for index, label in enumerate(classes):
        own = codes == index
        if not own.any():
            continue
        units = np.arange(int(own.sum()))
        now, then = (
            ProbeResult("", (p[own].argmax(axis=1) == index).astype(float), units) for p in (after, before)
        )
        old_recall = float(then.right.mean()) if label in known else math.nan
        found.append(ClassChange(label, len(units), old_recall, float(now.right.mean()), now.minus(then)))
    return sorted(found, key=lambda change: -abs(change.difference.value))
