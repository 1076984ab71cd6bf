"""Score decision values of held-out rows, by featx's metrics or by any scikit-learn scorer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    get_scorer,
    get_scorer_names,
    jaccard_score,
    precision_score,
    recall_score,
)

from featx.evaluation import METRICS, Calibration, fit_calibration, has_equal_classes
from featx.exceptions import UsageError
from featx.solvers import ClassWeights, Folds, class_weights

Floats = NDArray[Any]

ROUNDING = 1e-12
"""Scores that differ by less are equal."""


LISTED = 10
"""Classes that a message names."""

OF_ONE_CLASS: dict[str, Callable[..., float]] = {
    "f1": partial(f1_score, zero_division=0.0),
    "precision": partial(precision_score, zero_division=0.0),
    "recall": partial(recall_score, zero_division=0.0),
    "jaccard": partial(jaccard_score, zero_division=0.0),
    "average_precision": average_precision_score,
}
"""Scores of one class against all others, by the names that scikit-learn has for two classes 0 and 1."""


class Scorer:
    """The search's objective.

    Parameters
    ----------
    scoring : str or callable
        A key of ``featx.evaluation.METRICS``, a key of `OF_ONE_CLASS` with its class (``"f1:tumour"``), a
        scikit-learn scorer's name, or a callable ``(estimator, X, y) -> float``.
    classes : array of shape (C,)
        Labels.

    Attributes
    ----------
    of_probabilities : bool
        Whether it needs calibrated probabilities, so that it is computed when all folds are done.
    weighting : str or None
        Class weights under which a row counts as much as it does for the metric.
    """

    def __init__(self, scoring: str | Callable[..., float], classes: NDArray[Any]) -> None:
        self.scoring, self.classes = scoring, classes
        self.one_class: tuple[Callable[..., float], int] | None = None
        self.metric: Any = None
        self.scorer: Any = None
        self.weighting = "balanced" if has_equal_classes(scoring) else None
        if isinstance(scoring, str) and scoring in METRICS:
            self.metric = METRICS[scoring]
            self.sign = METRICS[scoring].sign
            self.of_probabilities = METRICS[scoring].of_probabilities
            return
        if isinstance(scoring, str) and (name := scoring.partition(":")[0]) in OF_ONE_CLASS:
            self.one_class = OF_ONE_CLASS[name], positive_class(scoring, classes)
            self.of_probabilities = name == "average_precision"
            return
        if isinstance(scoring, str) and scoring not in get_scorer_names():
            raise UsageError(
                f"scoring {scoring!r} is not known; choose one of {', '.join(METRICS)}, a scikit-learn "
                "scorer's name, or a callable (estimator, X, y)."
            )
        if not isinstance(scoring, str) and not callable(scoring):
            raise UsageError(f"scoring {scoring!r} is neither a name nor a callable (estimator, X, y).")
        self.scorer = get_scorer(scoring) if isinstance(scoring, str) else scoring
        method = getattr(self.scorer, "_response_method", None)
        self.of_probabilities = method is None or ("decision_function" not in method and method != "predict")

    def __call__(
        self,
        decision: Floats,
        y: NDArray[np.intp],
        *,
        calibration: Calibration | None = None,
        weight: Floats | None = None,
    ) -> float:
        """Score some rows; higher is better.

        Parameters
        ----------
        decision : array of shape (m,) or (m, C)
            Decision values.
        y : array of shape (m,)
            Class indices.
        calibration : Calibration, optional
            Maps decision values to probabilities.
        weight : array of shape (m,), optional
            Sample weights.
        """
        calibration = calibration or Calibration("identity")
        if self.metric is not None:
            if self.of_probabilities:
                shares = calibration.proba(decision)
            else:
                shares = decision if decision.ndim == 2 else np.column_stack([-decision, decision])
            return float(self.sign * self.metric(y, shares, weight))
        if self.one_class is not None:
            function, positive = self.one_class
            found = decided(decision) == positive
            if self.of_probabilities:
                found = calibration.proba(decision)[:, positive]
            return float(function(y == positive, found, sample_weight=weight))
        answers = _Precomputed(self.classes, decision, calibration)
        is_plain = hasattr(self.scorer, "_score_func")
        extra = {"sample_weight": weight} if weight is not None and is_plain else {}
        return float(self.scorer(answers, np.zeros((len(y), 1)), self.classes[y], **extra))


def positive_class(scoring: str, classes: NDArray[Any]) -> int:
    """Return the index of the class that a score of one class is of: ``"f1:tumour"``, or 1 of 0 and 1.

    Raises
    ------
    UsageError
        If no class is named, or one that there is not.
    """
    name, _, label = scoring.partition(":")
    known = [str(one) for one in classes.tolist()]
    if not label and classes.tolist() in ([0, 1], [False, True]):
        return 1
    if label in known:
        return known.index(label)
    listed = ", ".join(known[:LISTED]) + (", ..." if len(known) > LISTED else "")
    named = f"and {label!r} is none of these classes" if label else "and it has no class"
    average = "balanced_accuracy" if name in ("recall", "average_precision") else f"{name}_macro"
    raise UsageError(
        f"scoring {scoring!r}: {name} is a score of one class, {named}; name one of {listed}: "
        f"'{name}:{known[-1]}' (--positive {known[-1]}), or take the mean over all classes, {average!r}."
    )


def check_scoring(scoring: str | Callable[..., float], classes: NDArray[Any]) -> None:
    """Refuse a score that cannot be computed for these classes, before any features are.

    Raises
    ------
    UsageError
        With the reason of scikit-learn.
    """
    scorer = Scorer(scoring, classes)
    if not isinstance(scoring, str):
        return
    y = np.tile(np.arange(len(classes)), 2)
    decision = np.random.default_rng(0).normal(size=(len(y), len(classes)))
    try:
        with warnings.catch_warnings(action="ignore"):
            found = scorer(decision[:, 0] if len(classes) == 2 else decision, y)
    except (ValueError, TypeError) as error:
        found, reason = math.nan, " ".join(str(error).split())[:200].rstrip(".")
    else:
        reason = "it is not a number"
    if math.isnan(found):
        raise UsageError(
            f"scoring {scoring!r} cannot be computed for these {len(classes)} classes ({reason}); choose one "
            f"of {', '.join(METRICS)}, f1_macro, roc_auc_ovr."
        )


class _Precomputed(ClassifierMixin, BaseEstimator):
    """A classifier with given decision values, for scikit-learn's scorers."""

    def __init__(self, classes: Any, decision: Any, calibration: Any) -> None:
        self.classes = classes
        self.decision = decision
        self.calibration = calibration
        self.classes_ = classes

    def decision_function(self, X: Any) -> Floats:
        return self._checked(X, self.decision)

    def predict_proba(self, X: Any) -> Floats:
        return self._checked(X, self.calibration.proba(self.decision))

    def predict(self, X: Any) -> NDArray[Any]:
        return self._checked(X, self.classes_[decided(self.decision)])

    def _checked(self, X: Any, answers: NDArray[Any]) -> NDArray[Any]:
        if len(X) != len(answers):
            raise UsageError(
                f"the scorer requests predictions of {len(X)} rows, but the fold has {len(answers)}; inside "
                "a search, a scorer must request predictions of all rows of the fold."
            )
        return answers


def decided(decision: Floats) -> NDArray[np.intp]:
    """Return the predicted class indices of decision values."""
    return np.asarray((decision > 0).astype(np.intp) if decision.ndim == 1 else decision.argmax(axis=1))


def calibrate(decision: Floats, folds: Folds, class_weight: ClassWeights) -> Calibration:
    """Fit the calibration on out-of-fold decision values of the rows that have one.

    Class weights are used here too: probabilities that are calibrated to the plain shares of the classes
    would undo the effect of the weights.
    """
    scored, y, weight = _scored(decision, folds, class_weight)
    return fit_calibration(decision[scored], y, folds.n_classes, sample_weight=weight)


def brier_out_of_fold(decision: Floats, folds: Folds, class_weight: ClassWeights) -> float:
    """Return the Brier score of calibrated out-of-fold decision values."""
    scored, y, weight = _scored(decision, folds, class_weight)
    return brier(y, calibrate(decision, folds, class_weight).proba(decision[scored]), weight)


def _scored(
    decision: Floats, folds: Folds, class_weight: ClassWeights
) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Rows that have a decision value, their classes and weights."""
    scored = np.flatnonzero(np.isfinite(decision if decision.ndim == 1 else decision[:, 0]))
    y, weight = folds.y[scored], folds.row_weights(scored)
    return scored, y, weight * class_weights(class_weight, y, weight, folds.n_classes)[y]


def standard_error(differences: Sequence[float] | Floats, held_out: float) -> float:
    """Return the standard error of the mean difference of two configurations on the same folds.

    Folds share most of their training rows, so their differences are not independent; and repeated folds
    add no new rows. So the usual standard error is too small. This is the corrected one of Nadeau and Bengio
    ("Inference for the generalization error", Machine Learning 52, 2003): ``s * sqrt(1 / J + n_test /
    n_train)`` for J folds.

    Parameters
    ----------
    differences : array of shape (J,)
        Difference of the scores in each fold.
    held_out : float
        Test rows for each training row: n_test / n_train.
    """
    j = len(differences)
    return float(np.std(differences, ddof=1)) * math.sqrt(1 / j + held_out) if j > 1 else 0.0


def as_good(scores: Sequence[float], best: Sequence[float], *, held_out: float, exact: bool = False) -> bool:
    """Return whether scores are lower than the best ones by no more than a standard error.

    Parameters
    ----------
    scores, best : sequence of float
        Scores of two configurations on the same folds.
    held_out : float
        As for `standard_error`.
    exact : bool
        Whether only equal scores are as good: for scores of probabilities, which have little noise.
    """
    behind = np.subtract(best, scores)
    error = 0.0 if exact else standard_error(behind, held_out)
    return bool(behind.mean() <= error + ROUNDING)


def distances(y: NDArray[np.intp], proba: Floats) -> Floats:
    """Return each row's squared distance of the probabilities (n, C) from the true class, shape (n,)."""
    return np.asarray((proba**2).sum(axis=1) + 1 - 2 * proba[np.arange(len(y)), y])


def brier(y: NDArray[np.intp], proba: Floats, weight: Floats) -> float:
    """Return the Brier score (Brier 1950): the weighted mean of `distances`; lower is better."""
    return float(weight @ distances(y, proba) / weight.sum())
