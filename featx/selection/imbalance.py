"""Rare classes: when they matter more than accuracy says, and how scores are moved in their favour.

All of it acts on out-of-fold decision scores, so nothing is fitted again: scores are shifted by an offset
for each class, and then calibrated anew, for a population in which every class weighs the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import StratifiedKFold

from featx.evaluation import METRICS, Calibration, fit_calibration
from featx.exceptions import UsageError

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

IMBALANCED_FROM = 3.0
"""Ratio of the largest to the smallest class from which on balanced accuracy is what counts: at 3 : 1 of two
classes, always answering the larger already scores 75 %."""

TAUS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
"""Strengths of logit adjustment that are tried; 1 is the theory's (Menon et al., ICLR 2021)."""

SWEEPS = 3
"""Rounds of coordinate ascent over the classes' thresholds."""

STEPS = 25
"""Offsets tried for a class in each round."""

CUTS = 200
"""Thresholds tried for two classes, about."""

THRESHOLD_CLASSES = 20
"""With more classes a threshold for each rests on too few images, and takes too long."""

FOLDS = 5

LEAST_GAIN = 0.005
"""An adjustment is kept if it helps by more than this out of fold: half a point."""


@dataclass(frozen=True)
class Adjustment:
    """Offsets that are added to decision scores, and the calibration that follows.

    Parameters
    ----------
    kind : {'none', 'logit', 'threshold'}
        Nothing, tau times the negative logarithm of the class's share, or a threshold for each class.
    offsets : tuple of float
        One for each class (relative to the second for two classes: only the difference acts).
    calibration : Calibration
        From adjusted scores to probabilities; their argmax is the adjusted decision.
    score : float
        Out-of-fold score of the metric that chose it.
    score_before : float
        The same without adjustment.
    """

    kind: str
    offsets: tuple[float, ...]
    calibration: Calibration
    score: float
    score_before: float

    def scores(self, decision: ArrayLike) -> Floats:
        """Adjusted decision scores, of the shape that came in."""
        return shift_scores(decision, self.offsets)

    def proba(self, decision: ArrayLike) -> Floats:
        """Probabilities (n, C) from unadjusted decision scores."""
        return self.calibration.proba(self.scores(decision))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON."""
        return {**vars(self), "offsets": list(self.offsets), "calibration": self.calibration.to_dict()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Adjustment:
        """Read what `to_dict` gave."""
        calibration = Calibration.from_dict(plain["calibration"])
        return cls(**{**plain, "offsets": tuple(plain["offsets"]), "calibration": calibration})


def imbalance_ratio(y: ArrayLike) -> float:
    """Images of the largest class for each image of the smallest."""
    counts = np.unique(np.asarray(y), return_counts=True)[1]
    return float(counts.max() / counts.min())


def metric_for(y: ArrayLike, *, wanted: str = "auto") -> str:
    """Name the metric to choose by: balanced accuracy from a ratio of `IMBALANCED_FROM` on, else accuracy.

    Parameters
    ----------
    y : array of shape (n,)
        Labels.
    wanted : str
        ``"auto"``, or a metric that is returned as it is.
    """
    if wanted != "auto":
        return wanted
    return "balanced_accuracy" if imbalance_ratio(y) >= IMBALANCED_FROM else "accuracy"


def views_for_minority(y: ArrayLike, *, most: int = 8) -> dict[Any, int]:
    """How many extra views of each image bring each class nearest to the largest, `most` at most."""
    labels, counts = np.unique(np.asarray(y), return_counts=True)
    wanted = np.clip(np.rint(counts.max() / counts).astype(int) - 1, 0, most)
    return dict(zip(labels.tolist(), wanted.tolist(), strict=True))


def logit_offsets(y_index: ArrayLike, n_classes: int, *, tau: float = 1.0) -> Floats:
    """Offsets -tau log(share of the class), after Menon et al., for scores that are logits."""
    count = np.bincount(np.asarray(y_index, np.intp), minlength=n_classes).astype(np.float64)
    share = np.maximum(count, 0.5) / count.sum()
    return np.asarray(-tau * np.log(share))


def shift_scores(decision: ArrayLike, offsets: Sequence[float] | Floats) -> Floats:
    """Add an offset for each class; for two classes and one score, the difference of the offsets."""
    scores = np.asarray(decision, np.float64)
    own = np.asarray(offsets, np.float64)
    return np.asarray(scores + (own[1] - own[0]) if scores.ndim == 1 else scores + own)


def threshold_offsets(
    decision: ArrayLike, y_index: ArrayLike, n_classes: int, *, metric: str = "balanced_accuracy"
) -> Floats:
    """Offsets that make a metric largest on the scores given: a threshold for each class.

    Two classes have one threshold, tried between scores; more are raised and lowered in turn.
    """
    scores, y = np.asarray(decision, np.float64), np.asarray(y_index, np.intp)
    if scores.ndim == 1:
        order = np.unique(scores)
        between = (order[1:] + order[:-1]) / 2
        cuts = np.concatenate(
            [[0.0], between[:: max(1, len(between) // CUTS)]]
        )  # 0 first: ties change nothing
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
    """Try logit adjustment and thresholds, and keep the best only if it helps on scores it was not fitted on.

    Parameters
    ----------
    decision_oof : array of shape (n,) or (n, C)
        Out-of-fold decision scores.
    y_index : array of shape (n,), int
        Columns of the true classes.
    n_classes : int
        Number of classes C.
    metric : str
        A key of ``featx.evaluation.METRICS`` that looks at decisions.
    sample_weight : array of shape (n,), optional
        Weights for the calibration.
    random_state : int
        Seed of the folds in which the adjustments are compared.

    Returns
    -------
    Adjustment
        Of kind ``"none"``, calibrated as ever, if nothing helps by more than `LEAST_GAIN`. Else the
        calibration weighs classes alike, so that the probabilities belong to the shifted decision.

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
    logits = plain.scores(raw)  # logit adjustment is meant for logits, so the scores are calibrated first

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
    # Offsets act on the scores that come in, before any calibration: undo its slope.
    own = offsets(kind, tau, np.arange(len(y))) / plain.a
    if raw.ndim == 1:
        own = own + np.array([0.0, plain.b / plain.a])
    count = np.bincount(y, minlength=n_classes)
    alike = weight * (len(y) / (n_classes * np.maximum(count, 1)))[y]
    calibration = _keeping_decisions(
        fit_calibration(shift_scores(raw, own), y, n_classes, sample_weight=alike)
    )
    return Adjustment(kind, tuple(own.tolist()), calibration, float(found[at]), before)


def _keeping_decisions(calibration: Calibration) -> Calibration:
    """Drop the shift of a sigmoid: the threshold was chosen already."""
    return Calibration(calibration.kind, calibration.a, 0.0)


def _cross_score(metric: str, y: Indices, logits: Floats, fit: Any, random_state: int) -> float:
    """Score of offsets fitted on the other folds."""
    smallest = int(np.bincount(y)[np.unique(y)].min())
    folds = StratifiedKFold(max(2, min(FOLDS, smallest)), shuffle=True, random_state=random_state)
    shifted = logits.copy()
    if smallest < 2:
        return -np.inf
    for train, test in folds.split(y, y):
        shifted[test] = shift_scores(logits[test], fit(train))
    return _score(metric, y, shifted)


def _score(metric: str, y: Indices, scores: Floats) -> float:
    """Metric of decisions, as one-hot probabilities."""
    answer = (scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)
    n_classes = 2 if scores.ndim == 1 else scores.shape[1]
    return float(METRICS[metric](y, np.eye(n_classes)[answer]))
