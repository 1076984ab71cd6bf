"""Forecasts of the accuracy with more labels: a power law that starts at chance, with a posterior band.

``error(m) = a + (chance - a) / (1 + (m / s)^c)``. For m far above s this is the power law a + b m^-c with
b = (chance - a) s^c; for few images it approaches the error of guessing, as real curves do. (A plain power
law fitted to n/16 ... n takes this approach for a high asymptote and predicts too small gains: on real
features its interval score was twice as bad.) The form is known as MMF (Morgan, Mercer & Flodin, 1975). It is
among the best ones on the learning-curve database LCDB (Mohr, Viering, Loog & van Rijn, 2022).

There are three parameters and only four or five points. Therefore all parameters of a grid are weighted by
likelihood and a weak prior. There are no random numbers and no iterations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from featx.curves.learning import LearningCurve
from featx.evaluation import Metric
from featx.exceptions import UsageError
from featx.records import Record

Floats = NDArray[np.float64]

BAND = 0.9
"""Nominal coverage of the band of a forecast."""

ASYMPTOTES = np.linspace(0, 0.95, 20)
"""Grid of a, in units of the smallest measured error."""

EXPONENTS = np.exp(np.linspace(np.log(0.15), np.log(3), 24))
"""Grid of c."""

SCALES = np.exp(np.linspace(-4, 6, 61))
"""Grid of s, in units of n."""

EXPONENT_PRIOR = (1.0, 0.4)
"""Median and log-sd of c. These four constants were chosen by the interval score on held-out labels.
The score depends little on them (9.0 to 9.5 points for medians of 0.8 and 1, misfits of 0.05 to 0.12)."""

ASYMPTOTE_PRIOR = 1.0
"""Exponent of the density of 1 - a / error: it is less likely that errors stop decreasing."""

MISFIT = (0.005, 0.1)
"""Standard deviation of each point besides its sampling error, m0 + m1 sqrt(e (1 - e)): random subsets and
folds, and deviations of real curves from this form. It grows as (n / m)^0.5 for smaller training sets, which
predict less."""

MISFIT_GROWTH = 0.5


@dataclass(frozen=True)
class PowerLaw:
    """Weighted parameters of the law.

    Parameters
    ----------
    n : int
        Number of images.
    chance : float
        Error at zero images.
    asymptote, exponent, scale : arrays of shape (P,)
        Parameters a, c and s of the points of the grid.
    weight : array of shape (P,)
        Their posterior probabilities.
    flips : float
        Variance over images of the difference between half of the images and all.
    """

    n: int
    chance: float
    asymptote: Floats
    exponent: Floats
    scale: Floats
    weight: Floats
    flips: float = 0.0

    def errors(self, m: float) -> Floats:
        """Error at m images for every parameter point, shape (P,)."""
        return self.asymptote + (self.chance - self.asymptote) / (1 + (m / self.scale) ** self.exponent)

    def accuracy(self, m: float, *, confidence: float = BAND) -> Metric:
        """Accuracy at m images with its band."""
        return _weighted(1 - self.errors(m), self.weight, confidence)

    def gain(
        self, m: float, *, confidence: float = BAND, cap: float = 1.0, n_test: int | None = None
    ) -> Metric:
        """Accuracy at m images minus that at `n`, with accuracies limited to `cap`.

        The band is that of the expected gain. With `n_test` it is that of the difference of both models on a
        test part of this size, which includes its sampling error.
        """
        now, then = np.minimum(1 - self.errors(self.n), cap), np.minimum(1 - self.errors(m), cap)
        gain = _weighted(then - now, self.weight, confidence)
        if n_test is None:
            return gain
        chance = float(norm.ppf((1 + confidence) / 2)) * np.sqrt(self.flips / n_test)
        low, high = np.hypot(gain.value - gain.low, chance), np.hypot(gain.high - gain.value, chance)
        return Metric(gain.value, float(gain.value - low), float(gain.value + high))

    @property
    def typical(self) -> tuple[float, float, float]:
        """Posterior means of a and c, and of b in error = a + b m^-c."""
        a, c = float(self.weight @ self.asymptote), float(self.weight @ self.exponent)
        slope = float(self.weight @ np.log((self.chance - self.asymptote) * self.scale**self.exponent))
        return a, float(np.exp(slope)), c


@dataclass(frozen=True)
class ClassForecast(Record):
    """Expected recall of one class with more labels of all classes.

    Parameters
    ----------
    label : object
        The class.
    count : int
        Number of its images.
    recall : Metric
        Expected recall of a model fitted on all images.
    gain : Metric
        Expected change of the recall.
    """

    label: Any
    count: int
    recall: Metric
    gain: Metric

    @property
    def share_of_gain(self) -> float:
        """Expected number of corrected predictions on images like these."""
        return self.gain.value * self.count


@dataclass(frozen=True)
class Forecast(Record):
    """Expected accuracy with `factor` times as many labels.

    Parameters
    ----------
    n, n_then : int
        Number of labels now and then.
    now, then : Metric
        Accuracy of the head of the curve fitted on them.
    gain : Metric
        Their difference. Its band is narrower than theirs, since both depend on the same images.
    by_class : tuple of ClassForecast
        By the expected number of corrected predictions, descending.
    ceiling : float
        Highest accuracy that wrong labels allow; 1 for clean labels.
    asymptote, exponent : float
        Posterior means of a and c of the law.
    confidence : float
        Nominal coverage of the bands.
    """

    n: int
    n_then: int
    now: Metric
    then: Metric
    gain: Metric
    by_class: tuple[ClassForecast, ...]
    ceiling: float
    asymptote: float
    exponent: float
    confidence: float = BAND


def forecast(
    curve: LearningCurve, *, factor: float = 2.0, ceiling: float = 1.0, confidence: float = BAND
) -> Forecast:
    """Forecast accuracy and recalls with `factor` times as many labels.

    Parameters
    ----------
    curve : LearningCurve
        The measured curve.
    factor : float
        Above 1.
    ceiling : float
        Highest accuracy that wrong labels allow (see `featx.audit.label_noise`).
    confidence : float
        Nominal coverage of the bands.

    Returns
    -------
    Forecast

    Raises
    ------
    UsageError
        If `factor` is not above 1 or `confidence` not between 0 and 1.
    """
    if not factor > 1 or not 0 < confidence < 1:
        raise UsageError(f"factor {factor} must be above 1, confidence {confidence} between 0 and 1.")
    law = fit_power_law(curve)
    more = factor * curve.n
    asymptote, _, exponent = law.typical
    by_class = []
    for index, label in enumerate(curve.classes):
        own = _class_law(curve, law, index)
        count = int(curve.class_counts[index])
        recall = own.accuracy(curve.n, confidence=confidence)
        by_class.append(ClassForecast(label, count, recall, own.gain(more, confidence=confidence)))
    then = _weighted(np.minimum(1 - law.errors(more), ceiling), law.weight, confidence)
    return Forecast(
        n=curve.n,
        n_then=round(more),
        now=law.accuracy(curve.n, confidence=confidence),
        then=then,
        gain=law.gain(more, confidence=confidence, cap=ceiling),
        by_class=tuple(sorted(by_class, key=lambda c: -c.share_of_gain)),
        ceiling=ceiling,
        asymptote=asymptote,
        exponent=exponent,
        confidence=confidence,
    )


def fit_power_law(curve: LearningCurve) -> PowerLaw:
    """Compute the posterior of the law's parameters."""
    median, spread = EXPONENT_PRIOR
    prior = (
        -0.5 * ((np.log(EXPONENTS)[None, :, None] - np.log(median)) / spread) ** 2
        + ASYMPTOTE_PRIOR * np.log(1 - ASYMPTOTES)[:, None, None]
        + np.zeros(len(SCALES))
    )
    law = _posterior(curve.n, curve.sizes, curve.error, curve.covariance, curve.chance, prior)
    return replace(law, flips=curve.n * _last_doubling(curve)[1] ** 2)


def gain_if_no_change(curve: LearningCurve, *, confidence: float = BAND) -> Metric:
    """Baseline forecast: no gain, with the standard error of the last doubling."""
    half = float(norm.ppf((1 + confidence) / 2)) * _last_doubling(curve)[1]
    return Metric(0.0, -half, half)


def gain_if_last_doubling_again(curve: LearningCurve, *, confidence: float = BAND) -> Metric:
    """Baseline forecast: the gain of the last doubling, with its standard error."""
    gain, spread = _last_doubling(curve)
    half = float(norm.ppf((1 + confidence) / 2)) * spread
    return Metric(gain, gain - half, gain + half)


def interval_score(low: ArrayLike, high: ArrayLike, value: ArrayLike, *, confidence: float = BAND) -> Any:
    """Width of an interval plus 2 / (1 - confidence) times the distance of the value to it; lower is better.

    It is a proper score: its mean is lowest for the true quantiles (Gneiting & Raftery, 2007).
    """
    low, high, value = np.asarray(low), np.asarray(high), np.asarray(value)
    outside = np.maximum(low - value, 0) + np.maximum(value - high, 0)
    return (high - low) + 2 / (1 - confidence) * outside


def _posterior(
    n: int, sizes: Floats, error: Floats, covariance: Floats, chance: float, prior: Floats
) -> PowerLaw:
    """Posterior over the grid (asymptotes, exponents, scales); the log prior has this shape."""
    best = min(float(error.min()), chance * 0.999)
    a = best * ASYMPTOTES[:, None, None]
    c = EXPONENTS[None, :, None]
    s = n * SCALES[None, None, :]
    misfit = (MISFIT[0] + MISFIT[1] * np.sqrt(error * (1 - error))) * (sizes[-1] / sizes) ** MISFIT_GROWTH
    precision = np.linalg.inv(covariance + np.diag(misfit**2))
    off = np.stack([a + (chance - a) / (1 + (m / s) ** c) - e for m, e in zip(sizes, error, strict=True)])
    log = prior - 0.5 * np.einsum("iacs,ij,jacs->acs", off, precision, off, optimize=True)
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    kept = weight > 1e-7
    a, c, s = (np.broadcast_to(value, weight.shape)[kept] for value in (a, c, s))
    return PowerLaw(n, chance, a, c, s, weight[kept] / weight[kept].sum())


def _class_law(curve: LearningCurve, law: PowerLaw, index: int) -> PowerLaw:
    """Law of one class, with the posterior of all classes as its prior (partial pooling).

    A few images of one class do not determine an exponent.
    """
    shape = (len(ASYMPTOTES), len(EXPONENTS), len(SCALES))
    shared = np.zeros(shape[1:])
    place = (
        np.abs(np.log(law.exponent[:, None] / EXPONENTS)).argmin(axis=1),
        np.abs(np.log(law.scale[:, None] / (curve.n * SCALES))).argmin(axis=1),
    )
    np.add.at(shared, place, law.weight)
    prior = (
        np.log(shared + 1e-4 / shared.size)[None] + ASYMPTOTE_PRIOR * np.log(1 - ASYMPTOTES)[:, None, None]
    )
    error = curve.class_error[:, index]
    chance = max(1 - 1 / len(curve.classes), min(float(error.max()) + 1e-3, 1.0))
    # With only correct or only wrong predictions the variance is 0: add half an image of each kind.
    count = float(curve.class_counts[index])
    smooth = (error * count + 0.5) / (count + 1)
    covariance = curve.class_covariance[index] + np.diag(smooth * (1 - smooth) / (count + 1)) * 0.25
    return _posterior(curve.n, curve.sizes, error, covariance, chance, prior)


def _last_doubling(curve: LearningCurve) -> tuple[float, float]:
    """Gain from half of the training images to all, and its standard error over images."""
    half = int(np.abs(curve.sizes - curve.sizes[-1] / 2).argmin())
    contrast = np.zeros(len(curve.sizes))
    contrast[half], contrast[-1] = 1.0, -1.0
    return float(contrast @ curve.error), float(np.sqrt(contrast @ curve.covariance @ contrast))


def _weighted(values: Floats, weight: Floats, confidence: float) -> Metric:
    """Mean and quantiles of weighted values."""
    order = np.argsort(values)
    reached = np.cumsum(weight[order]) - weight[order] / 2
    tail = (1 - confidence) / 2
    low, high = np.interp([tail, 1 - tail], reached, values[order])
    return Metric(float(weight @ values), float(low), float(high))
