"""Learning curves: the out-of-fold error at n/16 ... n labels, with the covariance of its points.

The same images are scored at every size, so the errors of the points are correlated. The covariance over
images is therefore reported with the means; without it the slope of a curve seems much less certain than it
is.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.evaluation import NORMAL, Metric
from featx.exceptions import DataError, SearchWarning, UsageError
from featx.features import FeatureBlocks
from featx.heads import HEADS
from featx.records import Record
from featx.solvers import SOLVERS, FitTask, Folds, ScaledFeatures
from featx.splits import check_labels, make_folds
from featx.tables import count

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Split = tuple[Indices, Indices]
FeaturesLike = FeatureBlocks | NDArray[Any]

DEFAULT_CURVE = "ridge"
"""Head whose learning curve stands for heads that are too expensive: only the slope matters."""

FOLDS = 5
"""Folds by default."""

SMALLEST = 16
"""The curve begins at n / 16 labels."""

FEWEST_POINTS = 4
"""With few images per class halving gives fewer points than this; then steps of sqrt(2) are taken."""

PREDICTIONS = 1500
"""Out-of-fold predictions at each size that repeats aim at."""

MAX_REPEATS = 8

ONE_SPLIT_ABOVE = 10_000
"""Number of images above which one fold is enough."""


@dataclass(frozen=True, eq=False)
class LearningCurve(Record):
    """Out-of-fold error by the number of training images.

    Parameters
    ----------
    n : int
        Number of labelled images, at which `forecast` starts.
    classes : tuple
        Labels.
    class_counts : array of shape (C,), int
        Number of images of each class.
    head : str
        The fitted head, a key of `featx.heads.HEADS`.
    sizes : array of shape (J,)
        Mean number of training images, ascending; the last one is below `n` by the size of a fold.
    error : array of shape (J,)
        Share of wrong predictions.
    covariance : array of shape (J, J)
        Covariance of `error` over images (or groups).
    class_error : array of shape (J, C)
        Share of wrong predictions of each class: 1 - recall.
    class_covariance : array of shape (C, J, J)
        Covariance of `class_error`.
    n_fits : int
        Number of fits.
    """

    n: int
    classes: tuple[Any, ...]
    class_counts: NDArray[np.intp]
    head: str
    sizes: Floats
    error: Floats
    covariance: Floats
    class_error: Floats
    class_covariance: Floats
    n_fits: int

    @property
    def chance(self) -> float:
        """Error of a constant prediction of the largest class."""
        return float(1 - self.class_counts.max() / self.class_counts.sum())

    @property
    def accuracy(self) -> tuple[Metric, ...]:
        """Accuracy at each size with its 95 % interval over images."""
        half = NORMAL * np.sqrt(np.diag(self.covariance))
        value = 1 - self.error
        return tuple(
            Metric(float(v), max(float(v - h), 0.0), min(float(v + h), 1.0))
            for v, h in zip(value, half, strict=True)
        )


def learning_curve(
    X: FeaturesLike,
    y: ArrayLike,
    *,
    head: str = "ridge",
    params: Sequence[Mapping[str, Any]] | None = None,
    scaling: str = "standard",
    groups: ArrayLike | None = None,
    n_splits: int = FOLDS,
    n_repeats: int | None = None,
    n_jobs: int = 1,
    random_state: int = 0,
) -> LearningCurve:
    """Measure the error at n/16, n/8 ... n labels by cross-validation.

    In each fold the model is fitted on stratified, nested subsets of the training part and scored on the same
    test part. Of several `params` the best one at each size is used, as for a tuned model.

    Parameters
    ----------
    X : FeatureBlocks or array of shape (n, d)
        Features; blocks are scaled separately and concatenated.
    y : array of shape (n,)
        Labels.
    head : str
        A key of ``featx.heads.HEADS``; `curve_head` returns a fast one for each head.
    params : sequence of dict, optional
        Parameters to choose from at each size; by default the coarse grid of the head.
    scaling : {'standard', 'l2', 'center_l2', 'none'}
        Scaling of each block.
    groups : array of shape (n,), optional
        Images of a group are in one fold. More labels then are more images of the same groups.
    n_splits : int
        Folds.
    n_repeats : int, optional
        Number of repeats with other folds and subsets; by default more for small data sets.
    n_jobs : int
        Threads.
    random_state : int
        Seed.

    Returns
    -------
    LearningCurve

    Raises
    ------
    LabelError
        If there is a single class, or a class has a single image.
    DataError
        If there are too few images of each class for a curve of two points.
    """
    if head not in HEADS:
        raise UsageError(f"head {head!r} is not known; choose from {', '.join(HEADS)}.")
    labels = check_labels(y)
    classes, codes = np.unique(labels, return_inverse=True)
    blocks = [X[name] for name in X] if isinstance(X, FeatureBlocks) else [np.asarray(X)]
    if len(blocks[0]) != len(codes):
        raise DataError(
            f"features of {len(blocks[0])} images, but {len(codes)} labels; give one for each image."
        )
    repeats = n_repeats or _repeats(len(codes), head)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SearchWarning)  # fewer folds for a small class: `sizes` shows it
        folds = make_folds(
            codes, n_splits=n_splits, groups=groups, n_repeats=repeats, random_state=random_state
        )
    folds = folds[:1] if len(codes) > ONE_SPLIT_ABOVE else folds
    fractions = _fractions(codes, folds)
    splits = _subsets(codes, folds, fractions, np.random.default_rng(random_state))
    wrong = _errors(blocks, codes, splits, head, params, scaling, n_jobs, random_state)

    points = len(fractions)
    n = len(codes)
    count = np.zeros((points, n))
    total = np.zeros((wrong.shape[0], points, n))
    for number, (_, test) in enumerate(splits):
        count[number % points, test] += 1
        total[:, number % points, test] += wrong[:, number, test]
    tuned = total.sum(axis=2).argmin(axis=0)  # the best params at each size
    scored = count[0] > 0
    share = (total[tuned, np.arange(points)] / np.maximum(count, 1))[:, scored]
    units = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    sizes = np.array([np.mean([len(s[0]) for s in splits[j::points]]) for j in range(points)])
    of_class = [codes[scored] == c for c in range(len(classes))]
    return LearningCurve(
        n=n,
        classes=tuple(classes.tolist()),
        class_counts=np.bincount(codes, minlength=len(classes)),
        head=head,
        sizes=sizes,
        error=share.mean(axis=1),
        covariance=_covariance_of_mean(share, units[scored]),
        class_error=np.stack([share[:, own].mean(axis=1) for own in of_class], axis=1),
        class_covariance=np.stack(
            [_covariance_of_mean(share[:, own], units[scored][own]) for own in of_class]
        ),
        n_fits=len(splits) * wrong.shape[0],
    )


def curve_head(head: str) -> str:
    """Return the head whose learning curve is measured instead of that of `head`."""
    return head if head in HEADS and HEADS[head].draws_curve else DEFAULT_CURVE


def _repeats(n: int, head: str) -> int:
    if HEADS[head].solver == "estimator":  # one fit at a time
        return 1
    return max(1 if n > PREDICTIONS else 2, min(MAX_REPEATS, round(PREDICTIONS / n)))


def _fractions(codes: Indices, folds: Sequence[Split]) -> list[float]:
    """Return the fractions of the training part, ascending to 1; each one contains all classes."""
    train = folds[0][0]
    rarest = int(np.bincount(codes[train])[np.unique(codes[train])].min())
    least = max(1 / SMALLEST, len(np.unique(codes)) / len(train), 1 / rarest if rarest < SMALLEST else 0.0)
    for step in (2.0, math.sqrt(2.0)):
        deepest = math.floor(math.log(1 / least, step) + 1e-9)
        fractions = [step**-k for k in range(deepest, -1, -1)]
        if len(fractions) >= FEWEST_POINTS:
            break
    if len(fractions) < 2:
        raise DataError(
            f"the smallest class has {count(rarest, 'image')} to learn from: too few for a learning curve, "
            "which needs at least two in each fold. Label more of it."
        )
    return fractions


def _subsets(
    codes: Indices, folds: Sequence[Split], fractions: Sequence[float], rng: np.random.Generator
) -> list[Split]:
    """Return nested subsets of the training part of each fold; fractions vary fastest."""
    splits = []
    for train, test in folds:
        place = np.empty(len(train))
        for c in np.unique(codes[train]):
            own = rng.permutation(np.flatnonzero(codes[train] == c))
            place[own] = (np.arange(len(own)) + rng.random()) / len(own)
            place[own[0]] = 0.0  # one of each class in every subset
        order = train[np.argsort(place, kind="stable")]
        splits += [(np.sort(order[: round(part * len(train))]), test) for part in fractions]
    return splits


def _errors(
    blocks: Sequence[NDArray[Any]],
    codes: Indices,
    splits: Sequence[Split],
    head: str,
    params: Sequence[Mapping[str, Any]] | None,
    scaling: str,
    n_jobs: int,
    random_state: int,
) -> NDArray[np.bool_]:
    """Return which test images are wrong, shape (n_params, n_splits, n); False for training images."""
    grid = tuple(params) if params is not None else HEADS[head].grid
    wrong = np.zeros((len(grid), len(splits), len(codes)), dtype=bool)
    for i, number, predicted in predictions(
        blocks,
        codes,
        splits,
        head=head,
        params=grid,
        scaling=scaling,
        n_jobs=n_jobs,
        random_state=random_state,
    ):
        test = splits[number][1]
        wrong[i, number, test] = predicted != codes[test]
    return wrong


def predictions(
    blocks: Sequence[NDArray[Any]],
    codes: Indices,
    splits: Sequence[Split],
    *,
    head: str,
    params: Sequence[Mapping[str, Any]],
    scaling: str,
    n_jobs: int = 1,
    random_state: int = 0,
) -> Iterator[tuple[int, int, Indices]]:
    """Yield predicted class indices of one head: (params, split, predictions of the test images)."""
    folds = Folds(tuple(splits), codes, int(codes.max()) + 1)
    made = HEADS[head]
    task = FitTask(
        ScaledFeatures(blocks, scaling, folds),
        _limit_neighbours(params, splits),
        n_jobs=n_jobs,
        make=lambda own, shape: made.make(own, random_state, shape),
        random_state=random_state,
    )
    for i, number, scores in SOLVERS[made.solver](task):
        yield i, number, (scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)


def _limit_neighbours(
    params: Sequence[Mapping[str, Any]], splits: Sequence[Split]
) -> list[Mapping[str, Any]]:
    """Limit the number of neighbours to the size of the smallest training part."""
    least = min(len(train) for train, _ in splits)
    return [{**p, "n_neighbors": min(p["n_neighbors"], least)} if "n_neighbors" in p else p for p in params]


def _covariance_of_mean(share: Floats, units: Indices) -> Floats:
    """Covariance of the mean over images of shares (J, n), by units (clusters)."""
    n = share.shape[1]
    deviation = share - share.mean(axis=1, keepdims=True)
    _, member = np.unique(units, return_inverse=True)
    n_units = int(member.max()) + 1
    sums = np.zeros((n_units, len(share)))
    np.add.at(sums, member, deviation.T)
    return np.asarray(sums.T @ sums / n**2 * (n_units / max(n_units - 1, 1)))
