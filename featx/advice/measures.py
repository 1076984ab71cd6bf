"""Scores of the features of a layer or a network: probes with paired differences, rank, LogME, H-score.

A probe is a cheap head that is scored out of fold. It records which images were classified correctly, so that
two probes of the same images are compared image by image. Such a paired difference has a much narrower
interval than the two accuracies suggest.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from featx.curves.learning import FeaturesLike, predictions
from featx.evaluation import CONFIDENCE, Metric
from featx.exceptions import DataError, SearchWarning
from featx.features import FeatureBlocks
from featx.heads import HEADS
from featx.records import FloatOrNaN, Record
from featx.splits import check_labels, make_folds

Floats = NDArray[np.float64]

LOGME_STEPS = 100
"""Most iterations of the fixed point."""
LOGME_TOLERANCE = 1e-3
"""Relative change of alpha / beta at which it has converged (You et al. use 1e-2)."""

CANONICAL = 1e-6
"""Singular values below this fraction of the largest one are treated as rounding errors."""


@dataclass(frozen=True)
class ProbeResult:
    """Out-of-fold predictions of a cheap head.

    Parameters
    ----------
    name : str
        What was probed.
    right : array of shape (n,), float
        1 where the prediction is correct.
    groups : array of shape (n,), int
        Index of the independent unit (group, or image) of each image.
    """

    name: str
    right: Floats = field(repr=False)
    groups: NDArray[np.intp] = field(repr=False)

    @property
    def accuracy(self) -> Metric:
        """Share of correct predictions with its 95 % interval."""
        mean = _mean(self.right, self.groups)
        return Metric(mean.value, max(mean.low, 0.0), min(mean.high, 1.0))

    def minus(self, other: ProbeResult) -> Metric:
        """Accuracy minus that of another probe of the same images, with a paired 95 % interval."""
        return _mean(self.right - other.right, self.groups)

    def is_better_than(self, other: ProbeResult) -> bool:
        """Whether the accuracy is higher than another's by more than a standard error of the difference."""
        difference = self.right - other.right
        return bool(difference.mean() > _standard_error(difference, self.groups)[0])


@dataclass(frozen=True)
class LayerScore(Record):
    """Probe of one layer.

    Parameters
    ----------
    block : str
        The block, ``cut:pool:resize``.
    depth : float
        0 for the image, 1 for the last layer.
    accuracy : Metric
        Out of fold.
    over_last : Metric
        Accuracy minus that of the last layer, paired.
    effective_rank : float
        See `effective_rank`.
    width : int
        Number of columns.
    """

    block: str
    depth: float
    accuracy: Metric
    over_last: Metric
    effective_rank: float
    width: int


@dataclass(frozen=True)
class BackboneScore(Record):
    """One backbone on some of the images.

    Parameters
    ----------
    name : str
    accuracy : Metric
        Of ridge, out of fold.
    over_current : Metric
        Accuracy minus that of the current backbone, paired.
    log_me, h_score : float
        Two published scores that need no fit.
    n : int
        Number of images.
    minutes : float
        Extraction time of all images on this machine; NaN if unknown.
    leave_one_out : float
        Leave-one-out (or leave-one-group-out) accuracy of ridge, by which backbones are ranked; NaN if it
        was not computed.
    """

    name: str
    accuracy: Metric
    over_current: Metric
    log_me: float
    h_score: float
    n: int
    minutes: FloatOrNaN = math.nan
    leave_one_out: FloatOrNaN = math.nan


def probe(
    X: FeaturesLike,
    y: ArrayLike,
    *,
    head: str = "ridge",
    scaling: str = "standard",
    groups: ArrayLike | None = None,
    name: str = "",
    n_splits: int = 5,
    n_jobs: int = 1,
    random_state: int = 0,
) -> ProbeResult:
    """Score a head out of fold, with the best values of its coarse grid.

    Parameters
    ----------
    X : FeatureBlocks or array of shape (n, d)
        Features; blocks are scaled separately and concatenated.
    y : array of shape (n,)
        Labels.
    head : str
        A key of ``featx.heads.HEADS``.
    scaling : {'standard', 'l2', 'center_l2', 'none'}
        Scaling of the features.
    groups : array of shape (n,), optional
        Images of a group stay in one fold.
    name : str
        Name of the features.
    n_splits, n_jobs, random_state : int
        Folds, threads, seed. Probes of the same labels, groups and seed have the same folds.

    Returns
    -------
    ProbeResult
    """
    blocks = [X[name] for name in X] if isinstance(X, FeatureBlocks) else [np.asarray(X)]
    labels = check_labels(y)
    if blocks[0].ndim != 2 or len(blocks[0]) != len(labels):
        raise DataError(
            f"features of shape {blocks[0].shape}, {len(labels)} labels; give one row for each label."
        )
    codes = np.unique(labels, return_inverse=True)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SearchWarning)  # fewer folds for a small class
        folds = make_folds(codes, n_splits=n_splits, groups=groups, random_state=random_state)
    grid = HEADS[head].grid
    right = np.zeros((len(grid), len(codes)))
    for i, number, answer in predictions(
        blocks,
        codes,
        folds,
        head=head,
        params=grid,
        scaling=scaling,
        n_jobs=n_jobs,
        random_state=random_state,
    ):
        test = folds[number][1]
        right[i, test] = answer == codes[test]
    units = np.arange(len(codes)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    return ProbeResult(name, right[right.mean(axis=1).argmax()], units)


def depth_profile(
    blocks: FeatureBlocks,
    y: ArrayLike,
    depths: Mapping[str, float],
    *,
    groups: ArrayLike | None = None,
    n_jobs: int = 1,
    random_state: int = 0,
) -> tuple[LayerScore, ...]:
    """Probe one block of each layer, from the first to the last.

    Parameters
    ----------
    blocks : FeatureBlocks
        Features.
    y : array of shape (n,)
        Labels.
    depths : mapping of str to float
        Blocks to probe, with the depth of their layer in the network; the deepest is the last one.
    groups : array of shape (n,), optional
        Images of a group stay in one fold.
    n_jobs, random_state : int
        Threads and seed.

    Returns
    -------
    tuple of LayerScore
        By depth.
    """
    order = sorted(depths, key=lambda name: depths[name])
    probes = {}
    ranks = {}
    for name in order:
        rows = blocks[name]
        probes[name] = probe(rows, y, groups=groups, name=name, n_jobs=n_jobs, random_state=random_state)
        ranks[name] = effective_rank(rows)
        blocks.release(name)
    last = probes[order[-1]]
    return tuple(
        LayerScore(name, depths[name], own.accuracy, own.minus(last), ranks[name], blocks.width(name))
        for name, own in probes.items()
    )


def effective_rank(X: ArrayLike) -> float:
    """Exponential of the entropy of the singular values of the centred rows (Roy & Vetterli, 2007).

    Between 1 (all rows on a line) and min(n - 1, d) (equal variance in all directions).
    """
    rows = np.asarray(X, np.float64)
    rows = rows - rows.mean(axis=0)
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    values = np.linalg.eigvalsh(gram)
    singular = np.sqrt(values[values > CANONICAL**2 * max(values[-1], 0.0)])
    if not len(singular) or values[-1] <= 0:
        return 1.0
    share = singular / singular.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def log_me(X: ArrayLike, y: ArrayLike) -> float:
    """LogME: log evidence per label of Bayesian linear regression on one-hot labels, higher is better.

    Parameters
    ----------
    X : array of shape (n, d)
        Features.
    y : array of shape (n,)
        Labels.

    Returns
    -------
    float
        Mean over classes (You et al., "LogME: practical assessment of pre-trained models for transfer
        learning", ICML 2021), by their fixed point in alpha and beta.
    """
    rows = np.asarray(X, np.float64)
    codes = np.unique(np.asarray(y), return_inverse=True)[1]
    n, d = rows.shape
    targets = (codes[:, None] == np.arange(codes.max() + 1)).astype(np.float64)
    squared, along = _directions(rows, targets)
    evidence = []
    for target, seen in zip(targets.T, along.T**2, strict=True):
        beyond = max(float(target @ target - seen.sum()), 0.0)
        alpha = beta = 1.0
        for _ in range(LOGME_STEPS):
            ratio = alpha / beta
            gamma = float((squared / (squared + ratio)).sum())
            weights = float((squared * seen / (squared + ratio) ** 2).sum())
            residual = float((seen / (1 + squared / ratio) ** 2).sum()) + beyond
            alpha, beta = gamma / (weights + 1e-10), (n - gamma) / (residual + 1e-10)
            if abs(alpha / beta - ratio) <= LOGME_TOLERANCE * ratio:
                break
        ratio = alpha / beta
        weights = float((squared * seen / (squared + ratio) ** 2).sum())
        residual = float((seen / (1 + squared / ratio) ** 2).sum()) + beyond
        log_determinant = float(np.log(alpha + beta * squared).sum()) + (d - len(squared)) * math.log(alpha)
        evidence.append(
            0.5 * (n * math.log(beta) + d * math.log(alpha) - n * math.log(2 * math.pi))
            - 0.5 * (beta * residual + alpha * weights + log_determinant)
        )
    return float(np.mean(evidence) / n)


def h_score(X: ArrayLike, y: ArrayLike) -> float:
    """H-score: variance between classes in units of the total variance, higher is better.

    Parameters
    ----------
    X : array of shape (n, d)
        Features.
    y : array of shape (n,)
        Labels.

    Returns
    -------
    float
        ``trace(cov(X)^-1 cov(E[X | y]))`` (Bao et al., "An information-theoretic approach to
        transferability", ICIP 2019), between 0 and C - 1. With more columns than rows the plain score is
        C - 1 for any features, so the covariance is shrunk as by Ledoit and Wolf (Ibrahim et al., 2021).
    """
    from sklearn.covariance import ledoit_wolf

    rows = np.asarray(X, np.float64)
    rows = rows - rows.mean(axis=0)
    codes = np.unique(np.asarray(y), return_inverse=True)[1]
    count = np.bincount(codes).astype(np.float64)
    sums = np.zeros((len(count), rows.shape[1]))
    np.add.at(sums, codes, rows)
    covariance, shrinkage = ledoit_wolf(rows, assume_centered=True)
    between = (sums / np.sqrt(count)[:, None]) / math.sqrt(len(rows))  # its Gram matrix is cov(E[X | y])
    covariance[np.diag_indices_from(covariance)] += CANONICAL * np.trace(covariance) / len(covariance)
    solved = np.linalg.solve(covariance, between.T)
    return float((1 - shrinkage) * np.einsum("cd,dc->", between, solved))


def _directions(rows: Floats, targets: Floats) -> tuple[Floats, Floats]:
    """Squared singular values (r,) of rows, and targets along the left singular vectors (r, k).

    Uses the smaller Gram matrix, which is ten times faster than a singular value decomposition.
    """
    wide = rows.shape[0] < rows.shape[1]
    squared, vectors = np.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
    kept = squared > CANONICAL**2 * squared[-1]
    squared, vectors = squared[kept], vectors[:, kept]
    along = vectors.T @ targets if wide else vectors.T @ (rows.T @ targets) / np.sqrt(squared)[:, None]
    return squared, np.asarray(along)


def _mean(values: Floats, groups: NDArray[np.intp]) -> Metric:
    """Mean over images with its 95 % interval (Student's t) over independent units."""
    mean, (error, units) = float(values.mean()), _standard_error(values, groups)
    if units < 2:
        return Metric(mean, math.nan, math.nan)
    half = float(student.ppf((1 + CONFIDENCE) / 2, units - 1)) * error
    return Metric(mean, mean - half, mean + half)


def _standard_error(values: Floats, groups: NDArray[np.intp]) -> tuple[float, int]:
    """Standard error of the mean over images, and the number of independent units; NaN for one unit."""
    sums = np.bincount(np.unique(groups, return_inverse=True)[1], values - float(values.mean()))
    units = len(sums)
    if units < 2:
        return math.nan, units
    return math.sqrt(float(sums @ sums) * units / (units - 1)) / len(values), units
