"""Evaluate one classifier, or compare two, with bootstrap intervals; the results are plain data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.evaluation.answers import COLUMNS, AnswerTable
from featx.evaluation.bootstrap import clip_share, interval, resamples, unit_indices
from featx.evaluation.decision import Decision
from featx.evaluation.metrics import (
    CONFIDENCE,
    METRICS,
    Floats,
    Indices,
    Metric,
    accuracy,
)
from featx.exceptions import DataError, LabelError, UsageError
from featx.records import APART, FloatOrNaN, Record, as_frame


@dataclass(frozen=True)
class ClassScore(Record):
    """One class's precision, recall, F1 (0 to 1) and number of true images."""

    label: Any
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, eq=False)
class Evaluation(Record):
    """Metrics of a classifier on some images.

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
        Predictions of lower top probability were withheld.
    coverage : float
        Share of images with a prediction (1 without `abstain_below`).
    accuracy_answered : Metric or None
        Accuracy of the predictions that were not withheld; None if there is none.
    answers : AnswerTable or None
        Answers image by image. Not saved: a model file holds no names of images.
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
    answers: AnswerTable | None = field(default=None, repr=False, metadata=APART)

    def __getitem__(self, name: str) -> float:
        """Value of a metric by its name."""
        return self.metrics[name].value

    def table(self) -> Any:
        """Return a row for each image: path, part, truth, answer, probability, runner-up, unlike.

        A pandas DataFrame, or a list of dicts without pandas.

        Raises
        ------
        UsageError
            If the evaluation was read from a file.
        """
        if self.answers is None:
            raise UsageError(
                "an evaluation from a file has no answers image by image; evaluate the images again."
            )
        return as_frame(self.answers.rows(), COLUMNS)


@dataclass(frozen=True)
class Comparison(Record):
    """Difference of two classifiers (a minus b) on the same images, and whether it is significant.

    Parameters
    ----------
    metric : str
        Name of the compared metric.
    value_a, value_b : float
        Its value for each classifier.
    difference, low, high : float
        a minus b with its paired bootstrap 95 % interval; positive means that a is better, for every metric.
    only_a_right, only_b_right : int
        Number of images that only one of the two classified correctly.
    mcnemar_p : float
        p-value of the exact two-sided McNemar test of these numbers (it assumes independent images).
    verdict : {'a', 'b', 'not distinguishable'}
        The better classifier, if the difference is significant.
    """

    metric: str
    value_a: FloatOrNaN
    value_b: FloatOrNaN
    difference: FloatOrNaN
    low: FloatOrNaN
    high: FloatOrNaN
    only_a_right: int
    only_b_right: int
    mcnemar_p: float
    verdict: Literal["a", "b", "not distinguishable"]


def evaluate(
    y_true: ArrayLike,
    y_proba: ArrayLike,
    classes: Sequence[Any] | NDArray[Any],
    *,
    groups: ArrayLike | None = None,
    decision: Decision | None = None,
    n_boot: int = 1000,
    random_state: int | None = 0,
    abstain_below: float | None = None,
    names: Sequence[str] | None = None,
    parts: Sequence[str] | None = None,
    unlike: Floats | None = None,
) -> Evaluation:
    """Compute all metrics, each with a bootstrap 95 % interval.

    Parameters
    ----------
    y_true : array of shape (n,)
        True labels, each one of `classes`.
    y_proba : array of shape (n, C)
        Probabilities; rows sum to 1.
    classes : sequence of length C
        Labels of the columns.
    groups : array of shape (n,), optional
        Images of one group are resampled together (cluster bootstrap).
    decision : Decision, optional
        How labels follow from the probabilities; by default the most probable class is predicted. Metrics of
        probabilities do not depend on it.
    n_boot : int
        Number of resamples.
    random_state : int or None
        Seed of the resampling.
    abstain_below : float, optional
        Also report coverage and accuracy without the predictions of lower probability.
    names, parts : sequence of str, length n, optional
        Name and part of each image, for the table; by default its number, and ``new``.
    unlike : array of shape (n,), optional
        How unlike the training images each image is, for the table.

    Returns
    -------
    Evaluation

    Raises
    ------
    LabelError
        If a true label is not among `classes`.
    DataError
        If shapes do not fit or `y_proba` are not probabilities.

    Notes
    -----
    Intervals are percentile intervals, shifted by the bootstrap's own estimate of bias (the ECE of a
    resample is too high on average). Where every prediction is correct, all resamples are equal; the exact
    binomial bound (Clopper & Pearson, 1934) on the number of independent units is used instead.
    """
    labels = _labels(classes)
    y = class_indices(y_true, labels)
    proba = _checked_proba(y_proba, len(y), len(labels))
    units = unit_indices(groups, len(y))
    n_units = int(units.max()) + 1
    decided = proba if decision is None else decision.shares(proba)
    predicted = decided.argmax(axis=1)
    answered = proba[np.arange(len(y)), predicted] >= (abstain_below or 0.0)
    of = {name: proba if metric.of_probabilities else decided for name, metric in METRICS.items()}

    draws: dict[str, list[Floats]] = {name: [] for name in (*METRICS, "answered")}
    for weight in resamples(units, n_boot, random_state):
        for name, function in METRICS.items():
            draws[name].append(function(y, of[name], weight))
        if abstain_below is not None and answered.any():
            draws["answered"].append(accuracy(y[answered], decided[answered], weight[:, answered]))

    metrics = {}
    for name, function in METRICS.items():
        value = float(function(y, of[name]))
        metrics[name] = interval(value, np.concatenate(draws[name]), n_units, floor=0.0)
    smallest = np.bincount(np.unique(np.column_stack([y, units]), axis=0)[:, 0])
    evenly = int(smallest[smallest > 0].min() * (smallest > 0).sum())  # a macro metric depends on the rarest
    for name, entry in METRICS.items():
        if entry.is_share:
            metrics[name] = clip_share(metrics[name], evenly if entry.equal_classes else n_units)
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (y, predicted), 1)
    accuracy_answered = None
    if abstain_below is not None and answered.any():
        value = float(accuracy(y[answered], decided[answered]))
        n_answered = len(np.unique(units[answered]))
        raw = interval(value, np.concatenate(draws["answered"]), n_answered, floor=0.0)
        accuracy_answered = clip_share(raw, n_answered)
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
        answers=AnswerTable.of(
            labels,
            proba,
            Decision.argmax(len(labels)) if decision is None else decision,
            names=[str(place) for place in range(len(y))] if names is None else names,
            parts=["new"] * len(y) if parts is None else parts,
            truth=[labels[code] for code in y],
            unlike=np.full(len(y), np.nan) if unlike is None else unlike,
        ),
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
        Images of one group are resampled together.
    metric : str
        A name of `METRICS`.
    n_boot : int
        Number of resamples.
    random_state : int or None
        Seed of the resampling.

    Returns
    -------
    Comparison
        A classifier is better if the interval excludes zero. On few images the bootstrap interval is too
        narrow; for accuracy without groups it is widened to hold the exact interval that belongs to McNemar's
        exact test, so zero is outside only if p < 0.05.
    """
    if metric not in METRICS:
        raise UsageError(f"metric {metric!r} is not known; choose one of {', '.join(METRICS)}.")
    first = np.asarray(proba_a, np.float64)
    labels = list(range(first.shape[1])) if classes is None else _labels(classes)
    truth = class_indices(y, labels)
    a = _checked_proba(first, len(truth), len(labels))
    b = _checked_proba(proba_b, len(truth), len(labels))
    from scipy.stats import binomtest

    units = unit_indices(groups, len(truth))
    n_units = int(units.max()) + 1
    function, sign = METRICS[metric], METRICS[metric].sign

    draws = [
        sign * (function(truth, a, weight) - function(truth, b, weight))
        for weight in resamples(units, n_boot, random_state)
    ]
    value_a, value_b = float(function(truth, a)), float(function(truth, b))
    gap = interval(sign * (value_a - value_b), np.concatenate(draws), n_units)
    right_a, right_b = a.argmax(axis=1) == truth, b.argmax(axis=1) == truth
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    p_value = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0

    low, high = gap.low, gap.high
    if metric == "accuracy" and n_units == len(truth):
        exact = _exact_interval(only_a, only_b, len(truth))
        low, high = min(low, exact[0]), max(high, exact[1])
    verdict: Literal["a", "b", "not distinguishable"] = (
        "a" if low > 0 else "b" if high < 0 else "not distinguishable"
    )
    return Comparison(metric, value_a, value_b, gap.value, low, high, only_a, only_b, p_value, verdict)


def _exact_interval(only_a: int, only_b: int, n: int) -> tuple[float, float]:
    """Interval of a difference of accuracies that excludes zero where McNemar's exact test is significant.

    The Clopper-Pearson interval of the share that `a` alone has right of the images on which exactly one is
    right, as a difference of accuracies.
    """
    differing = only_a + only_b
    if not differing:
        return 0.0, 0.0
    from scipy.stats import binomtest

    found = binomtest(only_a, differing).proportion_ci(CONFIDENCE, method="exact")
    low, high = ((2 * share - 1) * differing / n for share in (found.low, found.high))
    return float(low), float(high)


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
    """Labels as Python types, for JSON."""
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


def _class_scores(confusion: NDArray[np.int64], labels: Sequence[Any]) -> Iterator[ClassScore]:
    for index, label in enumerate(labels):
        right, true, predicted = confusion[index, index], confusion[index].sum(), confusion[:, index].sum()
        yield ClassScore(
            label,
            precision=float(right / predicted) if predicted else 0.0,
            recall=float(right / true) if true else 0.0,
            f1=float(2 * right / (true + predicted)) if true + predicted else 0.0,
            support=int(true),
        )
