"""What all fits of a search share apart from the features: splits, targets, weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
Indices = NDArray[np.intp]
Split = tuple[Indices, Indices]
ClassWeights = str | NDArray[np.float64] | None

CLASS_WEIGHTS = ("balanced", "sqrt")
"""Named class weights; see `class_weights`."""


@dataclass(frozen=True)
class Folds:
    """What all fits share apart from the features: splits, targets, weights.

    Parameters
    ----------
    splits : tuple of (train, test) index arrays
        Test parts may leave rows out (views never score).
    y : array of shape (n,), int
        Class indices.
    n_classes : int
        Number of classes.
    weight : array of shape (n,), float64, optional
        The user's sample weights.
    """

    splits: tuple[Split, ...]
    y: Indices
    n_classes: int
    weight: Floats | None = None

    @property
    def n_outputs(self) -> int:
        """Columns of decision scores of a linear model: 1 for two classes."""
        return 1 if self.n_classes == 2 else self.n_classes

    def row_weights(self, rows: Indices) -> Floats:
        """The user's weights of some rows, ones by default."""
        return np.ones(len(rows)) if self.weight is None else self.weight[rows]

    def training_weights(self, fold: int, class_weight: ClassWeights) -> Floats:
        """Weights of a fold's training rows: the user's times their class's."""
        train = self.splits[fold][0]
        own = self.row_weights(train)
        of_class = class_weights(class_weight, self.y[train], own, self.n_classes)
        return np.asarray(own * of_class[self.y[train]])

    def masses(self, class_weight: ClassWeights) -> Floats:
        """Weights of all rows in all folds, shape (n, n_folds): 0 where a row does not train."""
        mass = np.zeros((len(self.y), len(self.splits)))
        for fold, (train, _) in enumerate(self.splits):
            mass[train, fold] = self.training_weights(fold, class_weight)
        return mass


def class_weights(kind: ClassWeights, y: Indices, weight: Floats, n_classes: int) -> Floats:
    """Weight of each class, shape (n_classes,).

    ``"balanced"`` is scikit-learn's n / (n_classes * count); ``"sqrt"`` its square root, for classes that
    are rare but not worth a hundred of the others.
    """
    if kind is None:
        return np.ones(n_classes)
    if not isinstance(kind, str):
        return np.asarray(kind, np.float64)
    count = np.bincount(y, weight, minlength=n_classes)
    balanced = weight.sum() / (n_classes * np.maximum(count, np.finfo(float).tiny))
    balanced[count == 0] = 0
    return np.asarray(balanced if kind == "balanced" else np.sqrt(balanced))
