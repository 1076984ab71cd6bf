"""Score decision values of held-out rows by any scikit-learn scorer, without a fitted estimator at hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import get_scorer, get_scorer_names

from featx.evaluation import METRICS, Calibration
from featx.exceptions import UsageError

Floats = NDArray[Any]

LOWER_IS_BETTER = ("log_loss", "ece")
"""Metrics whose negative is maximised."""

OF_PROBABILITIES = ("log_loss", "ece")

OF_CLASSES = ("balanced_accuracy", "macro_f1")
"""Metrics to which every class counts alike, however rare."""


class Scorer:
    """The search's objective.

    Parameters
    ----------
    scoring : str or callable
        A key of ``featx.evaluation.METRICS``, a scikit-learn scorer's name, or a callable
        ``(estimator, X, y) -> float``.
    classes : array of shape (C,)
        Labels.

    Attributes
    ----------
    of_probabilities : bool
        Whether it needs calibrated probabilities, so that it can only be asked when all folds are done.
    weighting : str or None
        Class weighting under which a row counts as much as it does for the metric.
    """

    def __init__(self, scoring: str | Callable[..., float], classes: NDArray[Any]) -> None:
        self.classes = classes
        self.metric: Any = None
        self.scorer: Any = None
        self.weighting = "balanced" if scoring in OF_CLASSES else None
        if isinstance(scoring, str) and scoring in METRICS:
            self.metric = METRICS[scoring]
            self.sign = -1.0 if scoring in LOWER_IS_BETTER else 1.0
            self.of_probabilities = scoring in OF_PROBABILITIES
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
        rows: Callable[[], Floats] | None = None,
        weight: Floats | None = None,
    ) -> float:
        """Score of some rows: the larger the better.

        Parameters
        ----------
        decision : array of shape (m,) or (m, C)
            Decision values.
        y : array of shape (m,)
            Class indices.
        calibration : Calibration, optional
            Turns decisions into probabilities.
        rows : callable, optional
            Gives the rows themselves, for callables that look at them.
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
        answers = _Answers(self.classes, decision, calibration)
        plain = hasattr(self.scorer, "_score_func")
        X = np.zeros((len(y), 1)) if plain or rows is None else rows()
        extra = {"sample_weight": weight} if weight is not None and plain else {}
        return float(self.scorer(answers, X, self.classes[y], **extra))


class _Answers(ClassifierMixin, BaseEstimator):
    """A classifier that knows its answers already: what a scikit-learn scorer is asked about."""

    def __init__(self, classes: Any, decision: Any, calibration: Any) -> None:
        self.classes = classes
        self.decision = decision
        self.calibration = calibration
        self.classes_ = classes

    def decision_function(self, X: Any) -> Floats:
        return self._of(X, self.decision)

    def predict_proba(self, X: Any) -> Floats:
        return self._of(X, self.calibration.proba(self.decision))

    def predict(self, X: Any) -> NDArray[Any]:
        best = (self.decision > 0).astype(int) if self.decision.ndim == 1 else self.decision.argmax(axis=1)
        return self._of(X, self.classes_[best])

    def _of(self, X: Any, answers: NDArray[Any]) -> NDArray[Any]:
        if len(X) != len(answers):
            raise UsageError(
                f"the scorer asks about {len(X)} rows of a fold that has {len(answers)}; inside the search a "
                "scorer can only ask about all rows of the fold."
            )
        return answers


def decided(decision: Floats) -> NDArray[np.intp]:
    """Class indices that decision values choose."""
    return np.asarray((decision > 0).astype(np.intp) if decision.ndim == 1 else decision.argmax(axis=1))


def standard_error(differences: Sequence[float] | Floats, held_out: float) -> float:
    """Standard error of the mean difference between two configurations that were scored on the same folds.

    Folds share most of their training rows, so that their differences are not independent, and drawing
    folds anew makes no new rows, though the usual error shrinks as if it did. The corrected one of Nadeau and
    Bengio ("Inference for the generalization error", Machine Learning 52, 2003) is
    ``s * sqrt(1 / J + n_test / n_train)`` for J folds.

    Parameters
    ----------
    differences : array of shape (J,)
        Of each fold.
    held_out : float
        Rows that a fold scores for each that it trains on: n_test / n_train.
    """
    j = len(differences)
    return float(np.std(differences, ddof=1)) * math.sqrt(1 / j + held_out) if j > 1 else 0.0


def distances(y: NDArray[np.intp], proba: Floats) -> Floats:
    """Squared distance of each row's probabilities (n, C) from the truth, shape (n,)."""
    return np.asarray((proba**2).sum(axis=1) + 1 - 2 * proba[np.arange(len(y)), y])


def brier(y: NDArray[np.intp], proba: Floats, weight: Floats) -> float:
    """Mean squared distance of probabilities (n, C) from the truth (Brier 1950); less is better."""
    return float(weight @ distances(y, proba) / weight.sum())
