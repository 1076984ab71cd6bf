"""Bootstrap resamples and percentile intervals.

A resample is a vector of integer weights, so one matrix of weights gives all resamples of a metric at once.
Images of one group get the same weight (cluster bootstrap).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from featx.evaluation.metrics import CONFIDENCE, Floats, Indices, Metric
from featx.exceptions import DataError

CHUNK = 4_000_000
"""Weights that are kept in memory at a time: 32 MB."""


def unit_indices(groups: ArrayLike | None, n: int) -> Indices:
    """Index of the independent unit (group, or image) of each of n images."""
    if groups is None:
        return np.arange(n)
    names = np.asarray(groups)
    if names.shape != (n,):
        raise DataError(f"{n} images, but groups of shape {names.shape}; give one for each image.")
    return np.unique(names, return_inverse=True)[1]


def resamples(units: Indices, n_boot: int, random_state: int | None) -> Iterator[Floats]:
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


def interval(value: float, draws: Floats, n_units: int, *, floor: float = -math.inf) -> Metric:
    """Percentile interval of resampled values, corrected by the bootstrap's estimate of bias."""
    if n_units < 2:
        return Metric(value, math.nan, math.nan)
    bias = np.nanmean(draws) - value
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(draws, [tail, 100 - tail]) - bias
    return Metric(value, max(float(min(low, value)), floor), float(max(high, value)))


def clip_share(metric: Metric, n_units: int) -> Metric:
    """Limit the interval of a share to 1; at 0 and 1 use the exact binomial bound (Clopper & Pearson)."""
    if math.isnan(metric.low) or 0 < metric.value < 1:
        return Metric(metric.value, metric.low, min(metric.high, 1.0))
    from scipy.stats import beta

    tail = (1 - CONFIDENCE) / 2
    low, high = metric.low, min(metric.high, 1.0)
    if metric.value == 1.0:
        low = min(low, float(beta.ppf(tail, n_units, 1)))
    if metric.value == 0.0:
        high = max(high, float(beta.ppf(1 - tail, 1, n_units)))
    return Metric(metric.value, low, high)
