"""Losses of linear models, on the scores of many problems at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.solvers.folds import Floats, Folds


class Loss:
    """A loss of scores (n, k, b), weighted by mass (n, b); `slope` is that of the last `value`."""

    def __init__(self, folds: Folds, mass: Floats, dtype: Any) -> None:
        self.mass = mass[:, None, :]
        self.y = folds.y
        self._last: Floats = np.empty(0)
        signs = np.where(np.arange(folds.n_classes) == folds.y[:, None], 1, -1).astype(dtype)
        self.sign = (signs[:, 1:] if folds.n_classes == 2 else signs)[:, :, None]  # (n, k, 1)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Go on with some problems alone."""
        self.mass = self.mass[..., kept]
        self._last = self._last[..., kept]

    def value(self, scores: Floats) -> Floats:
        """Loss of each problem, shape (b,)."""
        raise NotImplementedError

    def slope(self) -> Floats:
        """Derivative by each score, shape (n, k, b)."""
        raise NotImplementedError


class _Logistic(Loss):
    """log(1 + exp(-sign * score)) for each output."""

    def value(self, scores: Floats) -> Floats:
        margin = scores * self.sign
        self._last = np.exp(-np.abs(margin))
        value = np.log1p(self._last)
        value -= np.minimum(margin, 0)
        self._positive = margin > 0
        return np.asarray(np.einsum("nkb,nb->b", value, self.mass[:, 0]))

    def slope(self) -> Floats:
        # 1 / (1 + exp(margin)) from exp(-|margin|), without overflow
        chance = np.where(self._positive, self._last, 1) / (1 + self._last)
        chance *= -self.sign
        chance *= self.mass
        return np.asarray(chance)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        super().keep(kept)
        self._positive = self._positive[..., kept]


class _Softmax(Loss):
    """-log of the true class's softmax."""

    def value(self, scores: Floats) -> Floats:
        top = scores.max(axis=1, keepdims=True)
        self._last = np.exp(scores - top)
        self._total = self._last.sum(axis=1)
        value = np.log(self._total)
        value += top[:, 0]
        value -= scores[np.arange(len(self.y)), self.y]
        return np.asarray(np.einsum("nb,nb->b", value, self.mass[:, 0]))

    def slope(self) -> Floats:
        mass = self.mass[:, 0]
        chance = self._last * (mass / self._total)[:, None]
        chance[np.arange(len(self.y)), self.y] -= mass
        return np.asarray(chance)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        super().keep(kept)
        self._total = self._total[..., kept]


class _SquaredHinge(Loss):
    """max(0, 1 - sign * score)^2 for each output."""

    def value(self, scores: Floats) -> Floats:
        self._last = np.maximum(1 - scores * self.sign, 0)
        return np.asarray(np.einsum("nkb,nkb,nb->b", self._last, self._last, self.mass[:, 0]))

    def slope(self) -> Floats:
        slope = self._last * (-2 * self.sign)
        slope *= self.mass
        return np.asarray(slope)


LOSSES: dict[str, type[Loss]] = {"softmax": _Softmax, "logistic": _Logistic, "squared_hinge": _SquaredHinge}

LINEAR = {"softmax": "softmax", "logistic_ovr": "logistic", "squared_hinge": "squared_hinge"}
"""Loss of each iterative solver."""


def loss_of(solver: str, folds: Folds) -> str:
    """Loss of a solver for so many classes: two have one logistic."""
    return "logistic" if solver == "softmax" and folds.n_classes == 2 else LINEAR[solver]
