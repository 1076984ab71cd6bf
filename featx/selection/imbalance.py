"""Imbalanced classes: a decision in favour of rare classes, if it does no harm.

Probabilities are not changed, and no head is fitted again. A class is predicted by the product of its
probability and its weight, 1 / share ** tau; 0 <= tau <= 1 is found on out-of-fold probabilities. With tau =
1, classes count as if they were equally frequent (logit adjustment: Menon et al., ICLR 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.evaluation import NORMAL, Decision, compare, inverse_shares

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

AUTO = "auto"
"""The decision that is found in training."""

IMBALANCED_FROM = 3.0
"""From this ratio of the largest to the smallest class, a decision for rare classes is tried: with two
classes at 3 : 1, always predicting the larger one already has an accuracy of 75 %."""

TAUS = tuple(step / 8 for step in range(9))
"""Values of tau that are tried."""

SHRINKAGE = 0.75
"""Factor of the best tau. With 1, 0.75 and 0.5, on the eleven development sets of docs/results.md: macro-F1
+2.0, +1.9 and +1.3 points; accuracy -0.3, +0.5 and +0.6, at worst -2.1, -0.3 and 0.0."""

FOLDS, REPEATS = 5, 4
"""Tau is chosen on the other folds, and its effect is measured on each fold. Ten repeats of two folds are no
better."""

LEAST_GAIN = 0.005
"""The decision is kept if it gains more than half a percentage point, and more than a standard error."""

RESAMPLES = 200
"""Bootstrap resamples for the standard error of the gain."""


@dataclass(frozen=True)
class DecisionFit:
    """A decision in favour of rare classes, and what it changes out of fold.

    Parameters
    ----------
    decision : Decision
        The decision to use: the most probable class if nothing is gained.
    tau : float
        The power that was found, also if it is not used.
    value, gain : float
        Macro metric with this tau, by nested folds, and its difference from that of the most probable class.
    error : float
        Standard error of the gain.
    accuracy : float
        Difference of the accuracy, by nested folds.
    kept : bool
        Whether the decision is used.
    """

    decision: Decision
    tau: float
    value: float
    gain: float
    error: float
    accuracy: float
    kept: bool


def imbalance_ratio(y: ArrayLike) -> float:
    """Return the ratio of the largest to the smallest class."""
    counts = np.unique(np.asarray(y), return_counts=True)[1]
    return float(counts.max() / counts.min())


def views_for_minority(y: ArrayLike, *, most: int = 8) -> dict[Any, int]:
    """Return how many views of each image make its class about as large as the largest one."""
    labels, counts = np.unique(np.asarray(y), return_counts=True)
    views = np.clip(np.rint(counts.max() / counts).astype(int) - 1, 0, most)
    return dict(zip(labels.tolist(), views.tolist(), strict=True))


def fit_decision(
    proba: ArrayLike,
    y_index: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    scoring: str | None = None,
    random_state: int = 0,
) -> DecisionFit:
    """Find the decision for rare classes, and keep it only if it does no harm.

    Parameters
    ----------
    proba : array of shape (n, C)
        Calibrated out-of-fold probabilities.
    y_index : array of shape (n,), int
        Columns of the true classes.
    groups : array of shape (n,), optional
        Images of a group are resampled together.
    scoring : {'balanced_accuracy', 'macro_f1'}, optional
        The metric that was requested. It alone counts then. By default accuracy and macro-F1 count the same.
    random_state : int
        Seed of the folds.

    Returns
    -------
    DecisionFit
        The decision is kept if the gain is larger than its standard error, and, unless a metric was
        requested, than the loss of accuracy.
    """
    shares, y = np.asarray(proba, np.float64), np.asarray(y_index, np.intp)
    n, n_classes = shares.shape
    counts = np.bincount(y, minlength=n_classes)
    macro = scoring or "macro_f1"
    answers = np.stack([_weighed(shares, counts, tau).argmax(axis=1) for tau in TAUS])
    rng = np.random.default_rng(random_state)
    taus, changes = [], []
    for _ in range(REPEATS):
        fold = _folds(y, rng)
        per_fold = _Counts.of(answers, y, fold, n_classes)
        objective = per_fold.others().metric(macro)
        if scoring is None:
            objective = objective + per_fold.others().metric("accuracy")
        of_fold = SHRINKAGE * np.take(TAUS, objective.argmax(axis=0))  # of equal ones, the smallest tau
        taus.append(of_fold.mean())
        nested = _weighed(shares, counts, of_fold[fold][:, None]).argmax(axis=1)
        before_after = _Counts.of(np.stack([answers[0], nested]), y, np.zeros(n, np.intp), n_classes)
        changes.append([before_after.metric(name)[:, 0] for name in (macro, "accuracy")])
    (before, after), (plain, changed) = np.mean(changes, axis=0)
    tau = float(np.mean(taus))
    decided = _weighed(shares, counts, tau)
    found = compare(
        y, decided / decided.sum(axis=1, keepdims=True), shares, groups=groups, metric=macro, n_boot=RESAMPLES
    )
    error = (found.high - found.low) / (2 * NORMAL)
    gain, accuracy = float(after - before), float(changed - plain)
    beyond_chance = gain > error and gain > LEAST_GAIN  # not with an error of NaN
    kept = beyond_chance and (scoring is not None or gain > -accuracy)
    decision = Decision.argmax(n_classes)
    if kept:
        decision = Decision(f"1 / share ** {tau:.2f}", inverse_shares(counts, tau))
    return DecisionFit(decision, tau, float(after), gain, error, accuracy, kept)


def _weighed(proba: Floats, counts: Indices, tau: float | Floats) -> Floats:
    return np.asarray(proba * (counts.max() / np.maximum(counts, 0.5)) ** tau)


def _folds(y: Indices, rng: np.random.Generator) -> Indices:
    """Deal the images of each class to the folds in turn."""
    order = rng.permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]
    fold = np.empty(len(y), np.intp)
    fold[order] = (np.arange(len(y)) + rng.integers(FOLDS)) % FOLDS
    return fold


@dataclass(frozen=True)
class _Counts:
    """Correct, true and predicted images of each class: arrays of shape (answers, folds, classes)."""

    right: Floats
    true: Floats
    predicted: Floats

    @classmethod
    def of(cls, answers: NDArray[np.intp], y: Indices, fold: Indices, n_classes: int) -> _Counts:
        """Count the answers (m, n) in each fold."""
        n_folds = int(fold.max()) + 1
        shape = (n_folds, n_classes)

        def count(chosen: NDArray[Any], labels: Indices) -> Floats:
            cells = fold[chosen] * n_classes + labels[chosen]
            return np.bincount(cells, minlength=n_folds * n_classes).reshape(shape).astype(np.float64)

        every = np.ones(len(y), bool)
        right = np.stack([count(own == y, y) for own in answers])
        predicted = np.stack([count(every, own) for own in answers])
        return cls(right, np.broadcast_to(count(every, y), right.shape), predicted)

    def others(self) -> _Counts:
        """For each fold, the sums over the other folds."""
        return _Counts(
            *(part.sum(axis=1, keepdims=True) - part for part in (self.right, self.true, self.predicted))
        )

    def metric(self, name: str) -> Floats:
        """Accuracy, balanced accuracy or macro-F1, shape (answers, folds)."""
        if name == "accuracy":
            return np.asarray(self.right.sum(axis=-1) / self.true.sum(axis=-1))
        part, whole = (
            (self.right, self.true)
            if name == "balanced_accuracy"
            else (2 * self.right, self.true + self.predicted)
        )
        ratio = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
        return np.asarray(ratio.sum(axis=-1) / (whole > 0).sum(axis=-1))
