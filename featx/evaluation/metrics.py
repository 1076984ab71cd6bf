"""Metrics: values with intervals, and functions of true indices, probabilities and weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featx.records import FloatOrNaN, Record

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

CONFIDENCE = 0.95
"""Coverage of every reported interval."""

NORMAL = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
"""Half the width of a normal interval of this coverage, in standard errors: 1.96."""

ECE_BINS = 15
"""Equal-width bins of the top-label confidence (Guo et al., ICML 2017)."""

LOG_LOSS_FLOOR = float(np.finfo(np.float64).eps)
"""A probability of 0 for the true class costs -log(eps) = 36, not infinity (as in scikit-learn)."""


@dataclass(frozen=True)
class Metric(Record):
    """A measured value with its 95 % interval. The bounds are NaN where all images are of one group."""

    value: FloatOrNaN
    low: FloatOrNaN
    high: FloatOrNaN

    def __str__(self) -> str:
        return self._shown(".4f")

    def as_share(self) -> str:
        """Value and interval with three decimals, such as ``0.912 [0.890, 0.930]``."""
        return self._shown(".3f")

    def as_points(self) -> str:
        """Difference in percentage points, such as ``+1.2 points [-0.3, +2.7]``."""
        return self._shown("+.1f", " points", 100)

    def _shown(self, number: str, unit: str = "", scale: float = 1) -> str:
        """Value and interval; the words ``not known`` instead of NaN."""
        if math.isnan(self.value):
            return "not known"
        value = f"{scale * self.value:{number}}{unit}"
        if math.isnan(self.low) or math.isnan(self.high):
            return f"{value} [not known]"
        return f"{value} [{scale * self.low:{number}}, {scale * self.high:{number}}]"


class MetricFunction(Protocol):
    """A function of true indices (n,), probabilities (n, C) and weights (n,) or (B, n)."""

    def __call__(self, y_true: Indices, y_proba: Floats, weight: Floats | None = None) -> Any:
        """Return a number, or an array of shape (B,) where `weight` has shape (B, n)."""


@dataclass(frozen=True)
class MetricEntry:
    """A row of `METRICS`: a function and what is known of it.

    Parameters
    ----------
    function : MetricFunction
        The metric.
    lower_is_better : bool
        Whether a lower value is better.
    of_probabilities : bool
        Whether it depends on calibrated probabilities, not only on the predicted class.
    equal_classes : bool
        Whether every class counts the same, however rare it is.
    is_share : bool
        Whether it is a share of right answers: its interval then ends at 1, and has an exact bound where all
        or none are right.
    """

    function: MetricFunction
    lower_is_better: bool = False
    of_probabilities: bool = False
    equal_classes: bool = False
    is_share: bool = False

    def __call__(self, y_true: Indices, y_proba: Floats, weight: Floats | None = None) -> Any:
        """Return the value of `function`."""
        return self.function(y_true, y_proba, weight)

    @property
    def sign(self) -> float:
        """Factor that makes higher values better."""
        return -1.0 if self.lower_is_better else 1.0


def accuracy(y_true: Indices, y_proba: Floats, weight: Floats | None = None) -> Any:
    """Share of images whose most probable class is the true one."""
    weight = np.ones(len(y_true)) if weight is None else weight
    with np.errstate(invalid="ignore"):
        return weight @ (y_proba.argmax(axis=1) == y_true) / weight.sum(axis=-1)


def balanced_accuracy(y_true: Indices, y_proba: Floats, weight: Floats | None = None) -> Any:
    """Mean recall of the classes that occur among the true ones."""
    weight = np.ones(len(y_true)) if weight is None else weight
    right, true, _ = _counts(y_true, y_proba, weight)
    return _mean_ratio(right, true)


def macro_f1(y_true: Indices, y_proba: Floats, weight: Floats | None = None) -> Any:
    """Mean F1 of the classes that occur among the true or the predicted ones."""
    weight = np.ones(len(y_true)) if weight is None else weight
    right, true, predicted = _counts(y_true, y_proba, weight)
    return _mean_ratio(2 * right, true + predicted)


def log_loss(y_true: Indices, y_proba: Floats, weight: Floats | None = None) -> Any:
    """Mean of -log(probability of the true class), in nats."""
    weight = np.ones(len(y_true)) if weight is None else weight
    of_truth = y_proba[np.arange(len(y_true)), y_true]
    return weight @ -np.log(np.maximum(of_truth, LOG_LOSS_FLOOR)) / weight.sum(axis=-1)


def ece(y_true: Indices, y_proba: Floats, weight: Floats | None = None) -> Any:
    """Expected calibration error of the top label: the mean gap of confidence and accuracy over bins."""
    weight = np.ones(len(y_true)) if weight is None else weight
    confidence = y_proba.max(axis=1)
    gap = confidence - (y_proba.argmax(axis=1) == y_true)
    bins = np.minimum((confidence * ECE_BINS).astype(np.intp), ECE_BINS - 1)
    return np.abs(_sum_by(bins, ECE_BINS, weight * gap)).sum(axis=-1) / weight.sum(axis=-1)


def _counts(y_true: Indices, y_proba: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """Sum of weights of the correct, the true and the predicted images of each class, shape (..., C)."""
    n_classes, predicted = y_proba.shape[1], y_proba.argmax(axis=1)
    right = _sum_by(y_true, n_classes, weight * (predicted == y_true))
    return right, _sum_by(y_true, n_classes, weight), _sum_by(predicted, n_classes, weight)


def _sum_by(index: Indices, size: int, weight: Floats) -> Floats:
    """Sums of weights (..., n) over equal indices, shape (..., size)."""
    from scipy.sparse import csr_array

    n = len(index)
    one_hot = csr_array((np.ones(n), (index, np.arange(n))), shape=(size, n))
    return np.asarray((one_hot @ weight.T).T)


def _mean_ratio(part: Floats, whole: Floats) -> Any:
    """Mean of part / whole over the classes whose whole is above 0."""
    present = whole > 0
    ratio = np.divide(part, whole, out=np.zeros_like(whole), where=present)
    return ratio.sum(axis=-1) / present.sum(axis=-1)


METRICS: dict[str, MetricEntry] = {
    "accuracy": MetricEntry(accuracy, is_share=True),
    "balanced_accuracy": MetricEntry(balanced_accuracy, is_share=True, equal_classes=True),
    "macro_f1": MetricEntry(macro_f1, is_share=True, equal_classes=True),
    "log_loss": MetricEntry(log_loss, lower_is_better=True, of_probabilities=True),
    "ece": MetricEntry(ece, lower_is_better=True, of_probabilities=True),
}
"""Each metric by its name."""


def has_equal_classes(scoring: Any) -> bool:
    """Whether `scoring` is the name of a metric in which every class counts the same."""
    return isinstance(scoring, str) and scoring in METRICS and METRICS[scoring].equal_classes
