"""The images, labels and splits of a suite's data sets."""

from __future__ import annotations

import hashlib
import importlib
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DataError
from featx.images import ImageSet, load_images
from featx.images.picture import read_digests
from featx.splits import (
    check_labels,
    digest_array,
    image_groups,
    make_folds,
    stable_test_mask,
    stratified_sample,
)
from featx.suite.config import ALL, VTAB, DataSet, SuiteConfig

Indices = NDArray[np.intp]

VTAB_TRAINING, VTAB_VALIDATION = 800, 200
"""Labels of VTAB-1k."""

VALIDATION_SHARE = 0.1
"""Share of the training images on which hyperparameters are chosen, as DINOv2 does."""

SOURCES = ("sklearn", "torchvision", "huggingface")


@dataclass(frozen=True)
class Part:
    """Positions of the training, validation and test images of a cell.

    Attributes
    ----------
    train, test : array of int
        `train` includes `validation`.
    validation : array of int or None
        Positions within `train`.
    """

    train: Indices
    test: Indices
    validation: Indices | None


@dataclass(frozen=True)
class LoadedData:
    """A data set with its digests.

    Attributes
    ----------
    images : ImageSet
        Readable images only.
    codes : array of shape (n,), int
        Indices of `classes`.
    classes : array
    digest : str
        Of the images' bytes, labels, groups and parts.
    n_skipped : int
        Images that cannot be read.
    """

    images: ImageSet
    codes: Indices
    classes: NDArray[Any]
    digest: str
    n_skipped: int

    def part(self, config: SuiteConfig, seed: int, budget: int | str) -> Part:
        """Split for a seed, and draw the labels of a budget.

        Raises
        ------
        DataError
            If the data set has too few images for the budget.
        """
        test, train = self._split(config, seed)
        rng = np.random.default_rng([seed, 2026])
        if budget == VTAB:
            if len(train) < VTAB_TRAINING + VTAB_VALIDATION:
                raise DataError(f"{len(train)} training images; the budget vtab needs 1,000.")
            chosen = np.sort(rng.permutation(train)[: VTAB_TRAINING + VTAB_VALIDATION])
            validation = rng.permutation(len(chosen))[:VTAB_VALIDATION]
            return Part(chosen, test, np.sort(validation))
        if budget != ALL:
            own = [rng.permutation(train[self.codes[train] == c]) for c in range(len(self.classes))]
            fewest = min(map(len, own))
            if fewest < int(budget):
                raise DataError(f"the smallest class has {fewest} training images; the budget is {budget}.")
            train = np.sort(np.concatenate([rows[: int(budget)] for rows in own]))
        return Part(train, test, self._validation(train, seed))

    def _split(self, config: SuiteConfig, seed: int) -> tuple[Indices, Indices]:
        images = self.images
        if images.splits is not None and "test" in images.splits:
            is_test = images.splits == "test"
            return np.flatnonzero(is_test), np.flatnonzero(~is_test)
        assert images.ids is not None
        if config.folds:
            groups = image_groups(images.ids, images.groups)
            folds = make_folds(self.codes, n_splits=config.folds, groups=groups, random_state=0)
            if seed >= len(folds):
                raise DataError(f"the smallest class allows {len(folds)} folds only.")
            return folds[seed][1], folds[seed][0]
        is_test = stable_test_mask(
            images.ids, self.codes, test_size=config.test_size, salt=str(seed), groups=images.groups
        )
        return np.flatnonzero(is_test), np.flatnonzero(~is_test)

    def _validation(self, train: Indices, seed: int) -> Indices | None:
        """A stratified tenth, if each class keeps an image for training."""
        codes = self.codes[train]
        chosen = stratified_sample(codes, max(round(VALIDATION_SHARE * len(train)), 1), seed)
        left = np.bincount(np.delete(codes, chosen), minlength=len(self.classes))
        return chosen if left.min() > 0 and len(chosen) < len(train) else None


def load_data(data: DataSet) -> LoadedData:
    """Find and digest the images of a data set.

    Raises
    ------
    DataError
        If there are no labels, or the source is not available here.
    """
    source, _, name = data.path.partition(":")
    images = _from_library(source, name) if source in SOURCES else load_images(data.path, labelled=True)
    if data.group:
        images.groups = np.array([_group(data, name) for name in images.names], dtype=object)
    before = len(images)
    digests, errors = read_digests(images.sources, images.names)
    images = images.select([position for position in range(before) if position not in errors])
    images.ids = digest_array([digest for digest in digests if digest is not None])
    codes = _codes(images)[0]
    if data.per_class:
        order = np.lexsort((np.array([digest.tobytes().hex() for digest in images.ids]), codes))
        rank = np.empty(len(codes), np.intp)
        counts = np.bincount(codes)
        rank[order] = np.concatenate([np.arange(count) for count in counts])
        images = images.select(rank < data.per_class)
        before = len(images)
    codes, classes = _codes(images)
    assert images.ids is not None
    digest = hashlib.sha256(np.ascontiguousarray(images.ids).tobytes())
    for values in (classes[codes], images.groups, images.splits):
        digest.update(repr(None if values is None else [str(value) for value in values]).encode())
    return LoadedData(images, codes, classes, digest.hexdigest(), before - len(images))


def _codes(images: ImageSet) -> tuple[Indices, NDArray[Any]]:
    labels = check_labels(images.labels)
    classes, codes = np.unique(labels, return_inverse=True)
    return codes.astype(np.intp), classes


def _group(data: DataSet, name: str) -> str:
    found = re.search(data.group, name)
    if found is None:
        raise DataError(f"{data.name}: the group {data.group!r} does not match {name!r}.")
    return found.group(1)


def _from_library(source: str, name: str) -> ImageSet:
    """Images of scikit-learn's digits, or of a local torchvision or Hugging Face data set."""
    try:
        if source == "sklearn":
            found = getattr(importlib.import_module("sklearn.datasets"), f"load_{name}")()
            pixels = (found.images / found.images.max() * 255).astype(np.uint8)
            return _image_set([np.repeat(image[..., None], 3, axis=2) for image in pixels], found.target)
        if source == "torchvision":
            from torchvision import datasets

            name, _, root = name.partition("@")
            loaded = getattr(datasets, name)(root or "data", download=not root)
            pairs = [loaded[index] for index in range(len(loaded))]
            return _image_set([pair[0] for pair in pairs], [pair[1] for pair in pairs])
        load = importlib.import_module("datasets").load_dataset
        rows = load(name, split="train")
        image = next(key for key, kind in rows.features.items() if type(kind).__name__ == "Image")
        label = next(key for key, kind in rows.features.items() if type(kind).__name__ == "ClassLabel")
        return _image_set([row[image] for row in rows], rows[label])
    except (ImportError, AttributeError, OSError, RuntimeError, StopIteration) as error:
        raise DataError(f"{source}:{name} is not available here ({error or type(error).__name__}).") from None


def _image_set(sources: list[Any], labels: Any) -> ImageSet:
    return ImageSet(sources, [str(number) for number in range(len(sources))], np.asarray(labels))
