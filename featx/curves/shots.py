"""Few-shot evaluation: train on k images of each class, for many random draws.

Single draws of five images of each class differ by ten points and more. Therefore many are drawn, and the
mean with its interval is reported, with the spread of single draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from featx.curves.learning import FeaturesLike, Indices, Split, predictions
from featx.evaluation import CONFIDENCE, Metric
from featx.exceptions import DataError, UsageError
from featx.features import FeatureBlocks
from featx.heads import HEADS
from featx.records import Record
from featx.splits import check_labels

SHOTS = (1, 2, 5, 10, 20)
"""Values of k by default."""
DRAWS = 100
"""Draws for each k by default."""

TEST_IMAGES = 1000
"""Most test images of a draw: the variance between draws is much larger than their sampling error."""


@dataclass(frozen=True)
class ShotScore(Record):
    """Recall with k labelled images of each class.

    Parameters
    ----------
    k : int
        Images of each class.
    accuracy : Metric
        Mean over draws of the mean recall of the classes, with the 95 % interval of that mean.
    spread : tuple of float
        2.5 % and 97.5 % quantiles over single draws.
    draws : int
        Number of draws.
    """

    k: int
    accuracy: Metric
    spread: tuple[float, float]
    draws: int


@dataclass(frozen=True)
class FewShot(Record):
    """Result of the few-shot evaluation.

    Parameters
    ----------
    n, n_classes : int
        Number of images and classes.
    head : str
        The fitted head.
    scores : tuple of ShotScore
        By k.
    left_out : tuple of int
        Values of k for which the smallest class is too small.
    """

    n: int
    n_classes: int
    head: str
    scores: tuple[ShotScore, ...]
    left_out: tuple[int, ...] = ()


def few_shot(
    X: FeaturesLike,
    y: ArrayLike,
    *,
    shots: Sequence[int] = SHOTS,
    n_draws: int = DRAWS,
    head: str = "ridge",
    params: Mapping[str, Any] | None = None,
    scaling: str = "center_l2",
    groups: ArrayLike | None = None,
    n_jobs: int = 1,
    random_state: int = 0,
) -> FewShot:
    """Score a head trained on k images of each class, for several k and many draws.

    Parameters
    ----------
    X : FeatureBlocks or array of shape (n, d)
        Features; blocks are scaled separately and concatenated.
    y : array of shape (n,)
        Labels.
    shots : sequence of int
        Values of k.
    n_draws : int
        Draws for each k.
    head : str
        A key of ``featx.heads.HEADS``.
    params : dict, optional
        Its parameters; by default the first point of its grid. Nothing is tuned on the test images.
    scaling : {'center_l2', 'l2', 'standard', 'none'}
        Scaling of each block. The variance of each column is too noisy with few images.
    groups : array of shape (n,), optional
        Test images are of other groups than training images.
    n_jobs : int
        Threads.
    random_state : int
        Seed.

    Returns
    -------
    FewShot

    Raises
    ------
    DataError
        If every k needs all images of a class.
    """
    if head not in HEADS:
        raise UsageError(f"head {head!r} is not known; choose from {', '.join(HEADS)}.")
    if not shots or min(shots) < 1 or n_draws < 2:
        raise UsageError(f"shots {tuple(shots)} must be 1 or more, and draws ({n_draws}) at least 2.")
    labels = check_labels(y)
    classes, codes = np.unique(labels, return_inverse=True)
    blocks = [X[name] for name in X] if isinstance(X, FeatureBlocks) else [np.asarray(X)]
    units = None if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    smallest = int(np.bincount(codes).min())
    usable = sorted({k for k in shots if k < smallest})
    if not usable:
        raise DataError(
            f"the smallest class has {smallest} images: {min(shots)} for training leave none for testing. "
            "Label more of it."
        )
    rng = np.random.default_rng(random_state)
    splits = [_draw(codes, k, units, rng) for k in usable for _ in range(n_draws)]
    recall = np.empty(len(splits))
    point = [dict(params) if params is not None else HEADS[head].grid[0]]
    for _, number, predicted in predictions(
        blocks,
        codes,
        splits,
        head=head,
        params=point,
        scaling=scaling,
        n_jobs=n_jobs,
        random_state=random_state,
    ):
        recall[number] = _mean_recall(codes[splits[number][1]], predicted)
    scores = [_score(k, own) for k, own in zip(usable, recall.reshape(len(usable), n_draws), strict=True)]
    left_out = tuple(sorted(set(shots) - set(usable)))
    return FewShot(len(codes), len(classes), head, tuple(scores), left_out)


def _draw(codes: Indices, k: int, units: Indices | None, rng: np.random.Generator) -> Split:
    """Draw k images of each class for training, and others (of other groups) for testing."""
    train = np.concatenate(
        [rng.choice(np.flatnonzero(codes == c), k, replace=False) for c in np.unique(codes)]
    )
    free = np.ones(len(codes), dtype=bool)
    free[train] = False
    if units is not None:
        free &= ~np.isin(units, units[train])
    test = np.flatnonzero(free)
    if not len(test):
        raise DataError(f"{k} images of each class are of all groups, so none is left for testing; lower k.")
    if len(test) > TEST_IMAGES:
        test = rng.choice(test, TEST_IMAGES, replace=False)
    return np.sort(train), np.sort(test)


def _mean_recall(truth: Indices, predicted: Indices) -> float:
    """Mean recall, since the remaining images are not balanced."""
    count = np.bincount(truth)
    right = np.bincount(truth[truth == predicted], minlength=len(count))
    present = count > 0
    return float((right[present] / count[present]).mean())


def _score(k: int, recall: NDArray[np.float64]) -> ShotScore:
    draws = len(recall)
    mean = float(recall.mean())
    half = float(student.ppf((1 + CONFIDENCE) / 2, draws - 1) * recall.std(ddof=1) / math.sqrt(draws))
    low, high = np.quantile(recall, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return ShotScore(
        k, Metric(mean, max(mean - half, 0.0), min(mean + half, 1.0)), (float(low), float(high)), draws
    )
