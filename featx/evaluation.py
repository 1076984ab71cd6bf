"""Truth, probabilities, calibration and metrics with their uncertainty, as plain data.

A metric is a function of true indices, probabilities and row weights. A bootstrap resample is nothing but
whole-number weights, so one matrix of weights gives all resamples of a metric at once, and rows of one
group get the same weight in a cluster bootstrap. Nothing here draws or prints.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.sparse import csr_array
from scipy.special import expit, logsumexp, softmax
from scipy.stats import beta, binomtest

from featx.exceptions import DataError, LabelError, UsageError

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

CONFIDENCE = 0.95
"""Coverage of every interval reported."""

ECE_BINS = 15
"""Equal-width bins of the top-label confidence (Guo et al., ICML 2017)."""

LOG_LOSS_FLOOR = float(np.finfo(np.float64).eps)
"""A probability of 0 for what came true costs -log(eps) = 36, not infinity (as in scikit-learn)."""

CHUNK = 4_000_000
"""Weights held at a time during the bootstrap: 32 MB."""


class MetricFunction(Protocol):
    """A function of true indices (n,), probabilities (n, C) and weights (n,) or (B, n)."""

    def __call__(self, y_true: Indices, y_proba: Floats, weight: Floats | None = None) -> Any:
        """Return a number, or an array of shape (B,) where `weight` has B rows."""


@dataclass(frozen=True)
class Metric:
    """A measured value with its 95 % interval (NaN where a single group tells nothing of others)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"

    def to_dict(self) -> dict[str, float | None]:
        """``value``, ``low`` and ``high``, ready for JSON (NaN becomes None)."""
        return {name: _plain(value) for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, float | None]) -> Metric:
        """Read what `to_dict` gave."""
        return cls(**{name: math.nan if value is None else value for name, value in plain.items()})


@dataclass(frozen=True)
class ClassScore:
    """One class's precision, recall, F1 (0 to 1) and number of true images."""

    label: Any
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Evaluation:
    """What a classifier is worth on some images, as plain data.

    Parameters
    ----------
    n : int
        Number of images.
    n_groups : int
        Number of independent units (groups, or images) that were resampled.
    classes : tuple
        Labels in the order of the columns.
    metrics : dict of str to Metric
        One entry for each of `METRICS`.
    confusion : array of shape (C, C), int
        Rows are true classes, columns predicted ones.
    per_class : tuple of ClassScore
        In the order of `classes`.
    abstain_below : float or None
        Answers of lower top probability were withheld.
    coverage : float
        Share of images that were answered (1 without `abstain_below`).
    accuracy_answered : Metric or None
        Accuracy among the answered; None if none was.
    """

    n: int
    n_groups: int
    classes: tuple[Any, ...]
    metrics: dict[str, Metric]
    confusion: NDArray[np.int64]
    per_class: tuple[ClassScore, ...]
    abstain_below: float | None = None
    coverage: float = 1.0
    accuracy_answered: Metric | None = None

    def __getitem__(self, name: str) -> float:
        """Value of a metric by its name."""
        return self.metrics[name].value

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, ready for JSON (NaN becomes None)."""
        return {
            "n": self.n,
            "n_groups": self.n_groups,
            "classes": list(self.classes),
            "metrics": {name: metric.to_dict() for name, metric in self.metrics.items()},
            "confusion": self.confusion.tolist(),
            "per_class": [dict(vars(score)) for score in self.per_class],
            "abstain_below": self.abstain_below,
            "coverage": self.coverage,
            "accuracy_answered": self.accuracy_answered and self.accuracy_answered.to_dict(),
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Evaluation:
        """Read what `to_dict` gave, also after a trip through JSON."""
        answered = plain["accuracy_answered"]
        return cls(
            n=plain["n"],
            n_groups=plain["n_groups"],
            classes=tuple(plain["classes"]),
            metrics={name: Metric.from_dict(metric) for name, metric in plain["metrics"].items()},
            confusion=np.asarray(plain["confusion"], dtype=np.int64),
            per_class=tuple(ClassScore(**score) for score in plain["per_class"]),
            abstain_below=plain["abstain_below"],
            coverage=plain["coverage"],
            accuracy_answered=answered and Metric.from_dict(answered),
        )


@dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same images: the difference (a minus b) and whether it is real.

    Parameters
    ----------
    metric : str
        Name of the metric that is compared.
    value_a, value_b : float
        Its values.
    difference, low, high : float
        a minus b with its paired-bootstrap 95 % interval; positive always means that a is better.
    only_a_right, only_b_right : int
        Images that one of the two got right and the other wrong.
    mcnemar_p : float
        Exact two-sided McNemar test of these two numbers (it takes images as independent).
    verdict : {'a', 'b', 'not distinguishable'}
        Who is better, beyond chance.
    """

    metric: str
    value_a: float
    value_b: float
    difference: float
    low: float
    high: float
    only_a_right: int
    only_b_right: int
    mcnemar_p: float
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON (NaN becomes None)."""
        return {name: _plain(value) for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Comparison:
        """Read what `to_dict` gave, also after a trip through JSON."""
        values: dict[str, Any] = {name: math.nan if value is None else value for name, value in plain.items()}
        return cls(**values)


@dataclass(frozen=True)
class Calibration:
    """Turn decision scores into probabilities without changing their order beyond one shift.

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

    kind: str
    a: float = 1.0
    b: float = 0.0

    def scores(self, decision: ArrayLike) -> Floats:
        """Calibrated logits: shape (n,) for two classes, whose sign decides, else (n, C), the largest."""
        return self.a * _one_or_many(decision) + self.b

    def proba(self, decision: ArrayLike) -> Floats:
        """Probabilities of shape (n, C); the most probable class is the one that `scores` decides for."""
        logits = self.scores(decision)
        if logits.ndim == 2:
            return np.asarray(softmax(logits, axis=1))
        return np.column_stack([expit(-logits), expit(logits)])

    def to_dict(self) -> dict[str, Any]:
        """``kind``, ``a`` and ``b``, ready for JSON."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Calibration:
        """Read what `to_dict` gave."""
        return cls(**plain)


def evaluate(
    y_true: ArrayLike,
    y_proba: ArrayLike,
    classes: Sequence[Any] | NDArray[Any],
    *,
    groups: ArrayLike | None = None,
    n_boot: int = 1000,
    random_state: int | None = 0,
    abstain_below: float | None = None,
) -> Evaluation:
    """Score probabilities against the truth, every metric with a bootstrap 95 % interval.

    Parameters
    ----------
    y_true : array of shape (n,)
        True labels, each one of `classes`.
    y_proba : array of shape (n, C)
        Probabilities; rows sum to 1.
    classes : sequence of length C
        Labels of the columns.
    groups : array of shape (n,), optional
        Rows of one group are resampled together (cluster bootstrap).
    n_boot : int
        Number of resamples.
    random_state : int or None
        Seed of the resampling.
    abstain_below : float, optional
        Also report coverage and accuracy when answers of lower top probability are withheld.

    Returns
    -------
    Evaluation

    Raises
    ------
    LabelError
        If a true label is not among `classes`.
    DataError
        If shapes do not fit or `y_proba` holds no probabilities.

    Notes
    -----
    Intervals are percentile intervals, shifted by the bootstrap's own estimate of bias (the ECE of a
    resample is too high on average). Where every answer is right, resampling cannot show any doubt; the
    exact binomial bound (Clopper & Pearson, 1934) on the number of independent units stands in.
    """
    labels = _labels(classes)
    y = class_indices(y_true, labels)
    proba = _checked_proba(y_proba, len(y), len(labels))
    units = _units(groups, len(y))
    n_units = int(units.max()) + 1
    answered = proba.max(axis=1) >= (abstain_below or 0.0)

    draws: dict[str, list[Floats]] = {name: [] for name in (*METRICS, "answered")}
    for weight in _resamples(units, n_boot, random_state):
        for name, function in METRICS.items():
            draws[name].append(function(y, proba, weight))
        if abstain_below is not None and answered.any():
            draws["answered"].append(accuracy(y[answered], proba[answered], weight[:, answered]))

    metrics = {}
    for name, function in METRICS.items():
        metrics[name] = _interval(float(function(y, proba)), np.concatenate(draws[name]), n_units, floor=0.0)
    smallest = np.bincount(np.unique(np.column_stack([y, units]), axis=0)[:, 0])
    evenly = int(smallest[smallest > 0].min() * (smallest > 0).sum())  # a macro metric rests on the rarest
    for name, support in (("accuracy", n_units), ("balanced_accuracy", evenly), ("macro_f1", evenly)):
        metrics[name] = _never_certain(metrics[name], support)
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (y, proba.argmax(axis=1)), 1)
    accuracy_answered = None
    if abstain_below is not None and answered.any():
        value = float(accuracy(y[answered], proba[answered]))
        n_answered = len(np.unique(units[answered]))
        interval = _interval(value, np.concatenate(draws["answered"]), n_answered, floor=0.0)
        accuracy_answered = _never_certain(interval, n_answered)
    return Evaluation(
        n=len(y),
        n_groups=n_units,
        classes=tuple(labels),
        metrics=metrics,
        confusion=confusion,
        per_class=tuple(_class_scores(confusion, labels)),
        abstain_below=abstain_below,
        coverage=float(answered.mean()),
        accuracy_answered=accuracy_answered,
    )


def compare(
    y: ArrayLike,
    proba_a: ArrayLike,
    proba_b: ArrayLike,
    *,
    classes: Sequence[Any] | NDArray[Any] | None = None,
    groups: ArrayLike | None = None,
    metric: str = "accuracy",
    n_boot: int = 2000,
    random_state: int | None = 0,
) -> Comparison:
    """Compare two classifiers on the same images by a paired (cluster) bootstrap and McNemar's test.

    Parameters
    ----------
    y : array of shape (n,)
        True labels; indices of the columns where `classes` is not given.
    proba_a, proba_b : array of shape (n, C)
        Probabilities of the two.
    classes : sequence of length C, optional
        Labels of the columns.
    groups : array of shape (n,), optional
        Rows of one group are resampled together.
    metric : str
        A name of `METRICS`.
    n_boot : int
        Number of resamples.
    random_state : int or None
        Seed of the resampling.

    Returns
    -------
    Comparison
        One is called better if the interval excludes zero and, for accuracy without groups, McNemar's
        exact test agrees (p < 0.05): on few images the bootstrap alone is too sure of itself.
    """
    if metric not in METRICS:
        raise UsageError(f"metric {metric!r} is not known; choose one of {', '.join(METRICS)}.")
    first = np.asarray(proba_a, np.float64)
    labels = list(range(first.shape[1])) if classes is None else _labels(classes)
    truth = class_indices(y, labels)
    a = _checked_proba(first, len(truth), len(labels))
    b = _checked_proba(proba_b, len(truth), len(labels))
    units = _units(groups, len(truth))
    n_units = int(units.max()) + 1
    function, sign = METRICS[metric], -1.0 if metric in LOWER_IS_BETTER else 1.0

    draws = [
        sign * (function(truth, a, weight) - function(truth, b, weight))
        for weight in _resamples(units, n_boot, random_state)
    ]
    value_a, value_b = float(function(truth, a)), float(function(truth, b))
    gap = _interval(sign * (value_a - value_b), np.concatenate(draws), n_units)
    right_a, right_b = a.argmax(axis=1) == truth, b.argmax(axis=1) == truth
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p_value = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0

    verdict = "a" if gap.low > 0 else "b" if gap.high < 0 else "not distinguishable"
    if metric == "accuracy" and n_units == len(truth) and p_value >= 1 - CONFIDENCE:
        verdict = "not distinguishable"
    return Comparison(
        metric, value_a, value_b, gap.value, gap.low, gap.high, only_a, only_b, p_value, verdict
    )


def fit_calibration(
    decision_oof: ArrayLike,
    y_index: ArrayLike,
    n_classes: int,
    *,
    sample_weight: ArrayLike | None = None,
) -> Calibration:
    """Fit the calibration once, on out-of-fold decision scores (never on scores of training rows).

    Two classes get Platt's sigmoid, more get one temperature. Targets are smoothed as Platt (1999) does,
    so that perfectly separated scores do not lead to certainty.

    Parameters
    ----------
    decision_oof : array of shape (n,), (n, 1) or (n, C)
        Out-of-fold decision scores; of two columns the difference is used.
    y_index : array of shape (n,)
        Indices of the true classes.
    n_classes : int
        Number of classes C.
    sample_weight : array of shape (n,), optional
        Weights of the rows, not negative.

    Returns
    -------
    Calibration
    """
    decision = _one_or_many(decision_oof)
    y = np.asarray(y_index, dtype=np.intp)
    weight = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    if not np.isfinite(decision).all():
        raise DataError("decision scores hold NaN or infinity; a calibration needs finite scores.")
    if (decision.ndim == 1) != (n_classes == 2) or (decision.ndim == 2 and decision.shape[1] != n_classes):
        raise DataError(f"decision scores of shape {decision.shape} do not fit {n_classes} classes.")
    kept = weight > 0
    decision, y, weight = decision[kept], y[kept], weight[kept]
    if n_classes == 2:
        return _fit_sigmoid(decision, y, weight)
    return _fit_temperature(decision, y, weight)


def accuracy(y_true: Indices, y_proba: Floats, weight: Floats | None = None) -> Any:
    """Share of images whose most probable class is the true one."""
    weight = np.ones(len(y_true)) if weight is None else weight
    with np.errstate(invalid="ignore"):
        return weight @ (y_proba.argmax(axis=1) == y_true) / weight.sum(axis=-1)


def balanced_accuracy(y_true: Indices, y_proba: Floats, weight: Floats | None = None) -> Any:
    """Mean recall of the classes that occur in the truth."""
    weight = np.ones(len(y_true)) if weight is None else weight
    right, true, _ = _counts(y_true, y_proba, weight)
    return _mean_ratio(right, true)


def macro_f1(y_true: Indices, y_proba: Floats, weight: Floats | None = None) -> Any:
    """Mean F1 of the classes that occur in the truth or the answers."""
    weight = np.ones(len(y_true)) if weight is None else weight
    right, true, answered = _counts(y_true, y_proba, weight)
    return _mean_ratio(2 * right, true + answered)


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


def class_indices(y: ArrayLike, classes: Sequence[Any]) -> Indices:
    """Indices of labels in `classes`.

    Raises
    ------
    LabelError
        Naming the labels that are not among them.
    """
    position = {label: index for index, label in enumerate(classes)}
    values = np.asarray(y).tolist() if isinstance(y, np.ndarray) else list(y)  # type: ignore[arg-type]
    unseen = {value: None for value in values if value not in position}
    if unseen:
        shown = ", ".join(repr(value) for value in list(unseen)[:10])
        raise LabelError(
            f"{len(unseen)} label(s) that the classifier never saw: {shown}; it knows "
            f"{', '.join(repr(label) for label in list(position)[:10])}"
            f"{', ...' if len(position) > 10 else ''}. Leave these images out, or fit again with them."
        )
    return np.array([position[value] for value in values], dtype=np.intp)


def _labels(classes: Sequence[Any] | NDArray[Any]) -> list[Any]:
    """Labels as Python's own types, which JSON keeps."""
    return classes.tolist() if isinstance(classes, np.ndarray) else list(classes)


def _checked_proba(y_proba: ArrayLike, n: int, n_classes: int) -> Floats:
    proba = np.asarray(y_proba, dtype=np.float64)
    if proba.shape != (n, n_classes):
        raise DataError(
            f"probabilities have shape {proba.shape}; {n} labels of {n_classes} classes need {n, n_classes}."
        )
    if not n:
        raise DataError("there is no image to evaluate.")
    if not np.isfinite(proba).all() or proba.min() < 0 or np.abs(proba.sum(axis=1) - 1).max() > 1e-3:
        raise DataError("probabilities must be between 0 and 1 and sum to 1 for each image.")
    return proba


def _units(groups: ArrayLike | None, n: int) -> Indices:
    if groups is None:
        return np.arange(n)
    names = np.asarray(groups)
    if names.shape != (n,):
        raise DataError(f"{n} images, but groups of shape {names.shape}; give one for each image.")
    return np.unique(names, return_inverse=True)[1]


def _resamples(units: Indices, n_boot: int, random_state: int | None) -> Iterator[Floats]:
    """Weights of bootstrap resamples, shape (B, n), in chunks of bounded memory."""
    rng = np.random.default_rng(random_state)
    n_units = int(units.max()) + 1
    step = max(1, CHUNK // len(units))
    for start in range(0, n_boot, step):
        rows = min(step, n_boot - start)
        drawn = rng.integers(0, n_units, (rows, n_units))
        offset = np.arange(rows)[:, None] * n_units
        counts = np.bincount((drawn + offset).ravel(), minlength=rows * n_units)
        yield counts.reshape(rows, n_units).astype(np.float64)[:, units]


def _interval(value: float, draws: Floats, n_units: int, *, floor: float = -math.inf) -> Metric:
    if n_units < 2:
        return Metric(value, math.nan, math.nan)
    bias = np.nanmean(draws) - value
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(draws, [tail, 100 - tail]) - bias
    return Metric(value, max(float(min(low, value)), floor), float(max(high, value)))


def _never_certain(metric: Metric, n_units: int) -> Metric:
    """Keep a share of right answers below 1, and put the exact bound where resampling saw no doubt."""
    if math.isnan(metric.low):
        return metric
    tail = (1 - CONFIDENCE) / 2
    low, high = metric.low, min(metric.high, 1.0)
    if metric.value == 1.0:
        low = min(low, float(beta.ppf(tail, n_units, 1)))
    if metric.value == 0.0:
        high = max(high, float(beta.ppf(1 - tail, 1, n_units)))
    return Metric(metric.value, low, high)


def _class_scores(confusion: NDArray[np.int64], labels: Sequence[Any]) -> Iterator[ClassScore]:
    for index, label in enumerate(labels):
        right, true, answered = confusion[index, index], confusion[index].sum(), confusion[:, index].sum()
        yield ClassScore(
            label,
            precision=float(right / answered) if answered else 0.0,
            recall=float(right / true) if true else 0.0,
            f1=float(2 * right / (true + answered)) if true + answered else 0.0,
            support=int(true),
        )


def _counts(y_true: Indices, y_proba: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """Weight of the right, the true and the answered of each class, shape (..., C)."""
    n_classes, answer = y_proba.shape[1], y_proba.argmax(axis=1)
    right = _sum_by(y_true, n_classes, weight * (answer == y_true))
    return right, _sum_by(y_true, n_classes, weight), _sum_by(answer, n_classes, weight)


def _sum_by(index: Indices, size: int, weight: Floats) -> Floats:
    """Sums of weights (..., n) over rows of equal index, shape (..., size)."""
    n = len(index)
    one_hot = csr_array((np.ones(n), (index, np.arange(n))), shape=(size, n))
    return np.asarray((one_hot @ weight.T).T)


def _mean_ratio(part: Floats, whole: Floats) -> Any:
    """Mean of part / whole over the classes that have a whole."""
    present = whole > 0
    ratio = np.divide(part, whole, out=np.zeros_like(whole), where=present)
    return ratio.sum(axis=-1) / present.sum(axis=-1)


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

    def newton(found: Floats, most: int, longest: float) -> tuple[Floats, bool]:
        """Steps until they are nothing; whether they ended so."""
        for _ in range(most):
            chance = expit(rows @ found)
            bend = (rows * (weight * chance * (1 - chance))[:, None]).T @ rows
            step = np.linalg.lstsq(bend, rows.T @ (weight * (chance - target)), rcond=None)[0]
            if not found[0] - step[0] > MIN_SLOPE or np.abs(step).max() > longest:
                return found, False  # at the bound, or so flat that Newton's step means nothing
            found = found - step
            if np.abs(step).max() < 1e-10:
                return found, True
        return found, False

    start = np.array([1.0, math.log((positive + 1) / (negative + 1))])
    found, done = newton(start, NEWTON_STEPS, 5.0)
    if not done:
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

    def loss(log_slope: float) -> float:
        slope = math.exp(log_slope)
        return float(weight @ (logsumexp(slope * standard, axis=1) - slope * aim) / total)

    bounds = (math.log(MIN_SLOPE), math.log(1 / MIN_SLOPE))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    slope = math.exp(float(found.x))
    for _ in range(POLISHING):
        chance = softmax(slope * standard, axis=1)
        mean = (chance * standard).sum(axis=1)
        bend = weight @ ((chance * standard**2).sum(axis=1) - mean**2)
        step = weight @ (mean - aim) / bend if bend > 0 else math.inf
        if abs(step) > 0.1 * slope:
            break
        slope -= step
    return Calibration("temperature", slope / scale)


def _spread(decision: Floats) -> float:
    """Scale of the scores; 1 if all are equal."""
    return float(decision.std()) or 1.0


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


MIN_SLOPE = 1e-4
"""Least slope of a calibration on scores of unit spread: scores that say nothing become even odds, and
still keep their order."""

NEWTON_STEPS = 25
"""Newton steps that are tried before a slower search within bounds."""

POLISHING = 4
"""Newton steps after the search, so that the answer does not depend on where the search began: whole-number
weights then give what repeated rows give, to rounding."""

METRICS: dict[str, MetricFunction] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "macro_f1": macro_f1,
    "log_loss": log_loss,
    "ece": ece,
}

LOWER_IS_BETTER = ("log_loss", "ece")
