"""Conformal prediction: sets of labels that hold the truth with a given probability.

The score of a label is the probability of all labels before it, the most probable first, and a penalty for
each label beyond `FREE` (RAPS; Angelopoulos et al., ICLR 2021, with its random term at zero, so that a set is
never empty and never a matter of chance). The threshold is a quantile of the scores of the true labels of
images that were not trained on: out-of-fold probabilities of the training images.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.evaluation.metrics import Floats
from featx.exceptions import DataError, UsageError

FREE, PENALTY = 2, 0.01
"""Labels without a penalty, and the penalty of each further one (k_reg and lambda of RAPS)."""

LEVELS = 200
"""Steps of coverage, from 0 to 1, whose thresholds are kept."""


def label_scores(proba: ArrayLike) -> Floats:
    """Score of each label, shape (n, n_classes); the most probable has 0."""
    rows = np.asarray(proba, np.float64)
    order = np.argsort(-rows, axis=1, kind="stable")
    ranked = np.take_along_axis(rows, order, axis=1)
    before = np.cumsum(ranked, axis=1) - ranked
    before += PENALTY * np.maximum(np.arange(rows.shape[1]) - FREE + 1, 0)
    scores = np.empty_like(rows)
    np.put_along_axis(scores, order, before, axis=1)
    return scores


def conformal_thresholds(proba: ArrayLike, y_index: ArrayLike) -> tuple[float, ...]:
    """Thresholds of the scores for coverages of 0, 1 / LEVELS, ..., 1.

    Parameters
    ----------
    proba : array of shape (n, n_classes)
        Probabilities of images that were not trained on; rows of NaN are left out.
    y_index : array of shape (n,), int
        Columns of the true labels.
    """
    rows, y = np.asarray(proba, np.float64), np.asarray(y_index, np.intp)
    if rows.ndim != 2 or len(rows) != len(y):
        raise DataError(f"{len(y)} labels, but probabilities of shape {rows.shape}; give one row a label.")
    known = ~np.isnan(rows).any(axis=1)
    scores = np.sort(label_scores(rows[known])[np.arange(int(known.sum())), y[known]])
    n = len(scores)
    highest = 1.0 + PENALTY * rows.shape[1]
    ranks = [math.ceil((n + 1) * level / LEVELS) for level in range(LEVELS + 1)]
    return tuple(float(scores[max(rank, 1) - 1]) if rank <= n else highest for rank in ranks)


def label_sets(proba: ArrayLike, thresholds: tuple[float, ...], coverage: float) -> NDArray[np.bool_]:
    """Return which labels are in the set of each image, shape (n, n_classes).

    Parameters
    ----------
    proba : array of shape (n, n_classes)
    thresholds : tuple of float
        From `conformal_thresholds`.
    coverage : float
        Wanted share of images whose set holds the truth, between 0 and 1.

    Raises
    ------
    UsageError
        If the coverage is not between 0 and 1.
    """
    if not 0 < coverage < 1:
        raise UsageError(f"coverage {coverage} is not between 0 and 1, such as 0.9.")
    threshold = thresholds[math.ceil(round(coverage * LEVELS, 6))]
    return np.asarray(label_scores(proba) <= threshold + 1e-12)
