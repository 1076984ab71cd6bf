"""Imbalanced classes: the metric to use, and adjusted decision values for rare classes.

Out-of-fold decision values are shifted by an offset for each class and calibrated again, with equal total
weight for every class. No head is fitted again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import StratifiedKFold

from featx.evaluation import METRICS, Calibration, fit_calibration
from featx.exceptions import UsageError
from featx.records import Record

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

IMBALANCED_FROM = 3.0
"""From this ratio of the largest to the smallest class, balanced accuracy is used: with two classes at 3 : 1,
always predicting the larger one already has an accuracy of 75 %."""

TAUS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
"""Values of tau for logit adjustment that are tried; theory gives 1 (Menon et al., ICLR 2021)."""

SWEEPS = 3
"""Rounds of coordinate ascent over the thresholds of the classes."""

STEPS = 25
"""Number of offsets that are tried for a class in each round."""

CUTS = 200
"""Approximate number of thresholds that are tried for two classes."""

THRESHOLD_CLASSES = 20
"""With more classes no thresholds are tried: there are too few images for each, and it takes too long."""

FOLDS = 5

LEAST_GAIN = 0.005
"""An adjustment is kept if it helps by more than this out of fold: half a percentage point."""


@dataclass(frozen=True)
class Adjustment(Record):
    """Offsets that are added to decision values, and the calibration that follows.

    Parameters
    ----------
    kind : {'none', 'logit', 'threshold'}
        No offsets, -tau times the logarithm of the share of the class, or a threshold for each class.
    offsets : tuple of float
        One for each class. For two classes only the difference matters.
    calibration : Calibration
        Maps adjusted decision values to probabilities, whose largest one is the adjusted prediction.
    score : float
        Out-of-fold score.
    score_before : float
        Out-of-fold score without adjustment.
    """

    kind: str
    offsets: tuple[float, ...]
    calibration: Calibration
    score: float
    score_before: float

    def scores(self, decision: ArrayLike) -> Floats:
        """Return adjusted decision values, of the same shape."""
        return shift_scores(decision, self.offsets)

    def proba(self, decision: ArrayLike) -> Floats:
        """Return probabilities (n, C) of decision values that are not adjusted yet."""
        return self.calibration.proba(self.scores(decision))


def imbalance_ratio(y: ArrayLike) -> float:
    """Return the ratio of the largest to the smallest class."""
    counts = np.unique(np.asarray(y), return_counts=True)[1]
    return float(counts.max() / counts.min())


def metric_for(y: ArrayLike) -> str:
    """Return balanced accuracy if the classes are imbalanced (`IMBALANCED_FROM`), else accuracy."""
    return "balanced_accuracy" if imbalance_ratio(y) >= IMBALANCED_FROM else "accuracy"


def views_for_minority(y: ArrayLike, *, most: int = 8) -> dict[Any, int]:
    """Return how many views of each image make its class about as large as the largest one."""
    labels, counts = np.unique(np.asarray(y), return_counts=True)
    views = np.clip(np.rint(counts.max() / counts).astype(int) - 1, 0, most)
    return dict(zip(labels.tolist(), views.tolist(), strict=True))


def logit_offsets(y_index: ArrayLike, n_classes: int, *, tau: float = 1.0) -> Floats:
    """Return offsets -tau log(share of the class), after Menon et al., for logits."""
    count = np.bincount(np.asarray(y_index, np.intp), minlength=n_classes).astype(np.float64)
    share = np.maximum(count, 0.5) / count.sum()
    return np.asarray(-tau * np.log(share))


def shift_scores(decision: ArrayLike, offsets: Sequence[float] | Floats) -> Floats:
    """Add an offset for each class; for two classes with one value, add the difference of the offsets."""
    scores = np.asarray(decision, np.float64)
    own = np.asarray(offsets, np.float64)
    return np.asarray(scores + (own[1] - own[0]) if scores.ndim == 1 else scores + own)


def threshold_offsets(
    decision: ArrayLike, y_index: ArrayLike, n_classes: int, *, metric: str = "balanced_accuracy"
) -> Floats:
    """Return offsets that maximise a metric on the given decision values: a threshold for each class.

    For two classes, thresholds between the values are tried. For more, the offsets are changed in turn.
    """
    scores, y = np.asarray(decision, np.float64), np.asarray(y_index, np.intp)
    if scores.ndim == 1:
        order = np.unique(scores)
        between = (order[1:] + order[:-1]) / 2
        cuts = np.concatenate(
            [[0.0], between[:: max(1, len(between) // CUTS)]]
        )  # 0 is first: it is kept if no other is better
        values = [_score(metric, y, scores - cut) for cut in cuts]
        return np.array([0.0, -cuts[int(np.argmax(values))]])
    offsets = np.zeros(n_classes)
    best = _score(metric, y, scores)
    reach = float(np.quantile(np.abs(scores.max(axis=1) - np.median(scores, axis=1)), 0.9))
    steps = np.linspace(-reach, reach, STEPS)
    for _ in range(SWEEPS):
        before = best
        for c in range(n_classes):
            own = offsets.copy()
            for step in steps:
                own[c] = step
                value = _score(metric, y, scores + own)
                if value > best:
                    best, offsets = value, own.copy()
        if best <= before:
            break
    return offsets


def fit_adjustment(
    decision_oof: ArrayLike,
    y_index: ArrayLike,
    n_classes: int,
    *,
    metric: str = "balanced_accuracy",
    sample_weight: ArrayLike | None = None,
    random_state: int = 0,
) -> Adjustment:
    """Try logit adjustment and thresholds; keep the best one if it helps on scores that it was not fitted on.

    Parameters
    ----------
    decision_oof : array of shape (n,) or (n, C)
        Out-of-fold decision values.
    y_index : array of shape (n,), int
        Columns of the true classes.
    n_classes : int
        Number of classes C.
    metric : str
        A key of ``featx.evaluation.METRICS``, one of predictions.
    sample_weight : array of shape (n,), optional
        Weights for the calibration.
    random_state : int
        Seed of the folds on which adjustments are compared.

    Returns
    -------
    Adjustment
        Of kind ``"none"``, with the usual calibration, if none helps by more than `LEAST_GAIN`. Otherwise
        classes have equal total weights in the calibration, as the adjusted predictions assume.

    Raises
    ------
    UsageError
        If the metric is not known.
    """
    if metric not in METRICS:
        raise UsageError(f"metric {metric!r} is not known; choose from {', '.join(METRICS)}.")
    y = np.asarray(y_index, np.intp)
    raw = np.asarray(decision_oof, np.float64)
    weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    plain = fit_calibration(raw, y, n_classes, sample_weight=weight)
    logits = plain.scores(raw)  # logit adjustment needs logits, so decision values are calibrated first

    def offsets(kind: str, tau: float, rows: Indices) -> Floats:
        if kind == "threshold":
            return threshold_offsets(logits[rows], y[rows], n_classes, metric=metric)
        return logit_offsets(y[rows], n_classes, tau=tau)

    tried = [("logit", tau) for tau in TAUS]
    if n_classes <= THRESHOLD_CLASSES:
        tried.append(("threshold", 0.0))
    before = _score(metric, y, logits)
    found = [_cross_score(metric, y, logits, partial(offsets, *t), random_state) for t in tried]
    at = int(np.argmax(found))
    if found[at] <= before + LEAST_GAIN:
        return Adjustment("none", (0.0,) * n_classes, plain, before, before)
    kind, tau = tried[at]
    # Offsets are added before the calibration: divide by its slope.
    own = offsets(kind, tau, np.arange(len(y))) / plain.a
    if raw.ndim == 1:
        own = own + np.array([0.0, plain.b / plain.a])
    count = np.bincount(y, minlength=n_classes)
    equal = weight * (len(y) / (n_classes * np.maximum(count, 1)))[y]
    fitted = fit_calibration(shift_scores(raw, own), y, n_classes, sample_weight=equal)
    calibration = Calibration(fitted.kind, fitted.a, 0.0)  # without shift: it would change the predictions
    return Adjustment(kind, tuple(own.tolist()), calibration, float(found[at]), before)


def _cross_score(metric: str, y: Indices, logits: Floats, fit: Any, random_state: int) -> float:
    """Return the score of offsets that are fitted on the other folds."""
    smallest = int(np.bincount(y)[np.unique(y)].min())
    folds = StratifiedKFold(max(2, min(FOLDS, smallest)), shuffle=True, random_state=random_state)
    shifted = logits.copy()
    if smallest < 2:
        return -np.inf
    for train, test in folds.split(y, y):
        shifted[test] = shift_scores(logits[test], fit(train))
    return _score(metric, y, shifted)


def _score(metric: str, y: Indices, scores: Floats) -> float:
    """Return a metric of the predictions, as one-hot probabilities."""
    predicted = (scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)
    n_classes = 2 if scores.ndim == 1 else scores.shape[1]
    return float(METRICS[metric](y, np.eye(n_classes)[predicted]))
