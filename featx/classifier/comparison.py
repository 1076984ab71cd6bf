"""A set is fitted again after it has grown or changed: what the new model does better or worse than the old.

The split is made of the pictures' bytes, so test stays test, and the old model can be asked about every test
image that it was not fitted on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from featx.classifier.estimator import ImageClassifier
from featx.classifier.growth import ClassChange, change_in_words, changed_classes, class_changes, widened
from featx.evaluation import Comparison, compare
from featx.images import ImageSet, read_digests
from featx.splits import image_groups
from featx.stores.base import as_ids


@dataclass(frozen=True)
class Refit:
    """The new model beside the one before.

    Parameters
    ----------
    n_added, n_gone : int
        Images that the old model did not know, and those of its that are no longer there.
    n_test : int
        Test images that neither was fitted on.
    change : Comparison
        New minus old on them.
    by_class : tuple of ClassChange
        The most changed first.
    """

    n_added: int
    n_gone: int
    n_test: int
    change: Comparison
    by_class: tuple[ClassChange, ...]

    def sentences(self) -> list[str]:
        """What changed, in words."""
        said = [
            f"{self.n_added} images are new beside the model before, {self.n_gone} of its images are gone.",
            f"On the {self.n_test} test images that neither was fitted on: {change_in_words(self.change)}.",
        ]
        return said + changed_classes(self.by_class)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, ready for JSON."""
        by_class = [change.to_dict() for change in self.by_class]
        return {**vars(self), "change": self.change.to_dict(), "by_class": by_class}


def compare_fits(old: ImageClassifier, new: ImageClassifier, images: ImageSet) -> Refit | None:
    """The new model beside the one before; None if no test image is left that the old was not fitted on.

    Parameters
    ----------
    old, new : ImageClassifier
        Fitted with a test part each.
    images : ImageSet
        With labels: those that `new` was fitted and tested on.
    """
    names = [digest.hex() if digest else "" for digest in read_digests(images.sources, images.names)[0]]
    first = {name: index for index, name in reversed(list(enumerate(names)))}  # each picture counts once
    asked = sorted(
        index
        for name, index in first.items()
        if new.assignment_.get(name) == "test" and old.assignment_.get(name) != "train"
    )
    if not asked:
        return None
    test = images.select(np.array(asked))
    after = new.predict_proba(test.sources)
    before = widened(old.predict_proba(test.sources), old.classes_, new.classes_)
    classes = new.classes_.tolist()
    codes = np.array([classes.index(label) for label in np.asarray(test.labels).tolist()], dtype=np.intp)
    ids = as_ids([bytes.fromhex(names[index]) for index in asked])
    return Refit(
        n_added=len(new.assignment_.keys() - old.assignment_.keys()),
        n_gone=len(old.assignment_.keys() - new.assignment_.keys()),
        n_test=len(asked),
        change=compare(codes, after, before, groups=image_groups(ids, test.groups)),
        by_class=tuple(class_changes(codes, after, before, classes, old.classes_.tolist())),
    )
