"""Calibration: from decision scores to probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.exceptions import DataError
from featx.records import Record

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

MIN_SLOPE = 1e-4
"""Smallest slope of a calibration on scores of unit standard deviation. Scores without information become
equal probabilities that still keep their order."""

NEWTON_STEPS = 25
"""Most Newton steps before a slower search within bounds."""

POLISHING = 4
"""Newton steps after the search, so that the result does not depend on its start: integer weights then give
the same result as repeated rows, up to rounding."""


@dataclass(frozen=True)
class Calibration(Record):
    """Map from decision scores to probabilities. It keeps their order, except for one shift.

    Parameters
    ----------
    kind : {'temperature', 'sigmoid', 'identity'}
        ``sigmoid`` for two classes: P(second) = 1 / (1 + exp(-(a d + b))), with one score d for each image.
        ``temperature`` for more: softmax(a d). ``identity``: a = 1, b = 0, for either.
    a : float
        Slope, above 0.
    b : float
        Shift, for ``sigmoid``.
    """

    kind: Literal["temperature", "sigmoid", "identity"]
    a: float = 1.0
    b: float = 0.0

    def scores(self, decision: ArrayLike) -> Floats:
        """Calibrated logits: shape (n,) for two classes, else (n, C)."""
        return self.a * _one_or_many(decision) + self.b

    def proba(self, decision: ArrayLike) -> Floats:
        """Probabilities of shape (n, C); they have the order of `scores`."""
        logits = self.scores(decision)
        if logits.ndim == 2:
            return softmax(logits)
        return np.column_stack([expit(-logits), expit(logits)])


def fit_calibration(
    decision_oof: ArrayLike,
    y_index: ArrayLike,
    n_classes: int,
    *,
    sample_weight: ArrayLike | None = None,
) -> Calibration:
    """Fit a calibration on out-of-fold decision scores (not on scores of training images).

    Two classes get Platt's sigmoid, more classes get one temperature. Targets are smoothed as by Platt
    (1999), so that perfectly separated scores do not lead to probabilities of 0 and 1.

    Parameters
    ----------
    decision_oof : array of shape (n,), (n, 1) or (n, C)
        Out-of-fold decision scores; of two columns the difference is used.
    y_index : array of shape (n,)
        Indices of the true classes.
    n_classes : int
        Number of classes C.
    sample_weight : array of shape (n,), optional
        Weights of the images, not negative.

    Returns
    -------
    Calibration
    """
    decision = _one_or_many(decision_oof)
    y = np.asarray(y_index, dtype=np.intp)
    weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    if not np.isfinite(decision).all():
        raise DataError("decision scores contain NaN or infinity; a calibration needs finite scores.")
    if (decision.ndim == 1) != (n_classes == 2) or (decision.ndim == 2 and decision.shape[1] != n_classes):
        raise DataError(f"decision scores of shape {decision.shape} do not fit {n_classes} classes.")
    kept = weight > 0
    decision, y, weight = decision[kept], y[kept], weight[kept]
    if n_classes == 2:
        return _fit_sigmoid(decision, y, weight)
    return _fit_temperature(decision, y, weight)


def softmax(logits: Floats) -> Floats:
    """Shares of exp(logits) of each row, shape (n, C)."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def expit(logits: Floats) -> Floats:
    """1 / (1 + exp(-logits)), without overflow."""
    small = np.exp(-np.abs(logits))
    return np.asarray(np.where(logits >= 0, 1, small) / (1 + small))


def _one_or_many(decision: ArrayLike) -> Floats:
    """Scores as (n,) for two classes, (n, C) for more."""
    scores = np.asarray(decision, dtype=np.float64)
    if scores.ndim == 2 and scores.shape[1] == 2:
        return scores[:, 1] - scores[:, 0]
    if scores.ndim == 2 and scores.shape[1] == 1:
        return scores[:, 0]
    return scores


def _fit_sigmoid(decision: Floats, y: Indices, weight: Floats) -> Calibration:
    positive = weight[y == 1].sum()
    negative = weight[y == 0].sum()
    target = np.where(y == 1, (positive + 1) / (positive + 2), 1 / (negative + 2))
    scale = _spread(decision)
    standard = decision / scale

    def loss(parameters: Floats) -> tuple[float, Floats]:
        logit = parameters[0] * standard + parameters[1]
        # cross-entropy with soft targets: log(1 + e^z) - t z
        value = weight @ (np.logaddexp(0, logit) - target * logit)
        slope = weight * (expit(logit) - target)
        return float(value / weight.sum()), np.array([slope @ standard, slope.sum()]) / weight.sum()

    rows = np.column_stack([standard, np.ones_like(standard)])

    def newton(found: Floats, max_steps: int, max_step: float) -> tuple[Floats, bool]:
        """Run Newton's method; return the parameters and whether it converged."""
        for _ in range(max_steps):
            proba = expit(rows @ found)
            hessian = (rows * (weight * proba * (1 - proba))[:, None]).T @ rows
            step = np.linalg.lstsq(hessian, rows.T @ (weight * (proba - target)), rcond=None)[0]
            if not found[0] - step[0] > MIN_SLOPE or np.abs(step).max() > max_step:
                return found, False  # at the bound, or too flat for Newton's method
            found = found - step
            if np.abs(step).max() < 1e-10:
                return found, True
        return found, False

    start = np.array([1.0, math.log((positive + 1) / (negative + 1))])
    found, converged = newton(start, NEWTON_STEPS, 5.0)
    if not converged:
        from scipy.optimize import minimize

        bounds = [(MIN_SLOPE, None), (None, None)]
        found, _ = newton(minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x, POLISHING, 0.1)
    return Calibration("sigmoid", float(found[0] / scale), float(found[1]))


def _fit_temperature(decision: Floats, y: Indices, weight: Floats) -> Calibration:
    n_classes, total = decision.shape[1], weight.sum()
    scale = _spread(decision)
    standard = (decision - decision.max(axis=1, keepdims=True)) / scale
    of_truth, of_all = standard[np.arange(len(y)), y], standard.sum(axis=1)
    smoothing = 1 / (total + n_classes)  # target of each other class; the true one has the rest
    aim = (1 - n_classes * smoothing) * of_truth + smoothing * of_all

    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    def loss(log_slope: float) -> float:
        slope = math.exp(log_slope)
        return float(weight @ (logsumexp(slope * standard, axis=1) - slope * aim) / total)

    bounds = (math.log(MIN_SLOPE), math.log(1 / MIN_SLOPE))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    slope = math.exp(float(found.x))
    for _ in range(POLISHING):
        proba = softmax(slope * standard)
        mean = (proba * standard).sum(axis=1)
        hessian = weight @ ((proba * standard**2).sum(axis=1) - mean**2)
        step = weight @ (mean - aim) / hessian if hessian > 0 else math.inf
        if abs(step) > 0.1 * slope:
            break
        slope -= step
    return Calibration("temperature", slope / scale)


def _spread(decision: Floats) -> float:
    """Standard deviation of the scores; 1 if all are equal."""
    return float(decision.std()) or 1.0
