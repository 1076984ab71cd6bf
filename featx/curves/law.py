"""What the next labels would bring: a power law that starts at chance, with a band from its posterior.

``error(m) = a + (chance - a) / (1 + (m / s)^c)``: for m far above s this is the power law a + b m^-c, with
b = (chance - a) s^c; for few images it bends to the error of guessing, as every real curve does. (A bare
power law fitted to n/16 ... n takes that bend for a high asymptote and promises too little: on real rows its
interval score was twice as bad.) The form is known as MMF (Morgan, Mercer & Flodin, 1975), among the best of
those compared on the learning-curve database LCDB (Mohr, Viering, Loog & van Rijn, 2022).

Three parameters and four or five points: so all parameters on a grid are weighed by likelihood and a mild
prior instead of picking one. No random numbers, nothing that fails to converge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm

from featx.curves.learning import LearningCurve
from featx.evaluation import Metric
from featx.exceptions import UsageError

Floats = NDArray[np.float64]

BAND = 0.9
"""Coverage that a forecast's band aims at."""

ASYMPTOTES = np.linspace(0, 0.95, 20)
"""a, as a part of the smallest error seen ..."""

EXPONENTS = np.exp(np.linspace(np.log(0.15), np.log(3), 24))
"""c ..."""

SCALES = np.exp(np.linspace(-4, 6, 61))
"""and s, as a part of n."""

EXPONENT_PRIOR = (1.0, 0.4)
"""Median and log-sd of c. These four constants were chosen by the interval score on held-back labels; it is
flat around them (9.0 to 9.5 points for medians of 0.8 and 1, misfits of 0.05 to 0.12)."""

ASYMPTOTE_PRIOR = 1.0
"""Density (1 - a / error)^1: that errors stop falling is rarer than that they go on."""

MISFIT = (0.005, 0.1)
"""Doubt of every point beside its sampling error, m0 + m1 sqrt(e (1 - e)): subsets that were drawn, folds,
and that no real curve is exactly of this form. It grows as (n / m)^0.5 for smaller training sets, whose
points say less about what comes."""

MISFIT_GROWTH = 0.5


@dataclass(frozen=True)
class PowerLaw:
    """Weighted parameters of the law; `error` gives its value with a band at any number of images.

    Parameters
    ----------
    n : int
        Images that `scale` counts in.
    chance : float
        Error at zero images.
    asymptote, exponent, scale : arrays of shape (P,)
        Parameters a, c and s of each point of the grid.
    weight : array of shape (P,)
        Their posterior probabilities; points of no weight are left out.
    flips : float
        Variance over images of the difference that the last doubling made to each.
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
        """Accuracy at m images less that at `n`, where no accuracy is above `cap`.

        The band is that of the expected gain. With `n_test` it is that of what both models differ by on a
        test part of so many images, whose own chance comes on top.
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
class ClassForecast:
    """What more labels (of all classes) would bring for one class.

    Parameters
    ----------
    label : object
        The class.
    count : int
        Images of it at hand.
    recall : Metric
        Expected recall of a model fitted on all images at hand.
    gain : Metric
        Expected change of that recall.
    """

    label: Any
    count: int
    recall: Metric
    gain: Metric

    @property
    def share_of_gain(self) -> float:
        """Wrong answers that would be put right, in images of the set at hand."""
        return self.gain.value * self.count


@dataclass(frozen=True)
class Forecast:
    """What `factor` times as many labels would bring, with bands of coverage `confidence`.

    Parameters
    ----------
    n, n_then : int
        Labels now and then.
    now, then : Metric
        Accuracy of the curve's head fitted on them.
    gain : Metric
        Their difference; its band is narrower than theirs, since both rest on the same images.
    by_class : tuple of ClassForecast
        The class with most images to be put right first.
    ceiling : float
        No accuracy above this can be measured on labels that are wrong themselves; 1 for clean ones.
    asymptote, exponent : float
        Posterior means of a and c of the law.
    confidence : float
        Aimed coverage of the bands.
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

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and dicts, ready for JSON."""
        plain = dict(vars(self))
        for name in ("now", "then", "gain"):
            plain[name] = plain[name].to_dict()
        plain["by_class"] = [
            {"label": c.label, "count": c.count, "recall": c.recall.to_dict(), "gain": c.gain.to_dict()}
            for c in self.by_class
        ]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Forecast:
        """Read what `to_dict` gave, also after a trip through JSON."""
        values = dict(plain)
        for name in ("now", "then", "gain"):
            values[name] = Metric.from_dict(plain[name])
        values["by_class"] = tuple(
            ClassForecast(c["label"], c["count"], Metric.from_dict(c["recall"]), Metric.from_dict(c["gain"]))
            for c in plain["by_class"]
        )
        return cls(**values)


def forecast(
    curve: LearningCurve, *, factor: float = 2.0, ceiling: float = 1.0, confidence: float = BAND
) -> Forecast:
    """Foretell what `factor` times as many labels would bring, as a whole and for each class.

    Parameters
    ----------
    curve : LearningCurve
        Measured on the labels at hand.
    factor : float
        2 for a doubling; above 1.
    ceiling : float
        Highest accuracy that the labels' own errors allow (see `label_noise`).
    confidence : float
        Aimed coverage of the bands.

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
    """Weigh all parameters of the law by the curve's points and the prior."""
    median, spread = EXPONENT_PRIOR
    prior = (
        -0.5 * ((np.log(EXPONENTS)[None, :, None] - np.log(median)) / spread) ** 2
        + ASYMPTOTE_PRIOR * np.log(1 - ASYMPTOTES)[:, None, None]
        + np.zeros(len(SCALES))
    )
    law = _posterior(curve.n, curve.sizes, curve.error, curve.covariance, curve.chance, prior)
    return replace(law, flips=curve.n * _last_doubling(curve)[1] ** 2)


def gain_if_no_change(curve: LearningCurve, *, confidence: float = BAND) -> Metric:
    """Forecast of a baseline: nothing more comes, give or take the error of the last doubling seen."""
    half = float(norm.ppf((1 + confidence) / 2)) * _last_doubling(curve)[1]
    return Metric(0.0, -half, half)


def gain_if_last_doubling_again(curve: LearningCurve, *, confidence: float = BAND) -> Metric:
    """Forecast of a baseline: the next doubling brings what the last one brought, give or take its error."""
    gain, spread = _last_doubling(curve)
    half = float(norm.ppf((1 + confidence) / 2)) * spread
    return Metric(gain, gain - half, gain + half)


def interval_score(low: ArrayLike, high: ArrayLike, value: ArrayLike, *, confidence: float = BAND) -> Any:
    """Width of an interval plus 2 / (1 - confidence) times how far the value lies outside; less is better.

    A proper score: it is least for the interval between the true quantiles (Gneiting & Raftery, 2007).
    """
    low, high, value = np.asarray(low), np.asarray(high), np.asarray(value)
    outside = np.maximum(low - value, 0) + np.maximum(value - high, 0)
    return (high - low) + 2 / (1 - confidence) * outside


def _posterior(
    n: int, sizes: Floats, error: Floats, covariance: Floats, chance: float, prior: Floats
) -> PowerLaw:
    """Posterior over the grid (asymptotes, exponents, scales), whose log prior has that shape."""
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
    """Law of one class: its own asymptote, exponent and scale held near those of the whole.

    Ten images say little about an exponent; the whole curve's posterior is the prior, as in partial pooling.
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
    # A class whose every answer was right or wrong shows no variance; one more image of each kind does.
    count = float(curve.class_counts[index])
    smooth = (error * count + 0.5) / (count + 1)
    covariance = curve.class_covariance[index] + np.diag(smooth * (1 - smooth) / (count + 1)) * 0.25
    return _posterior(curve.n, curve.sizes, error, covariance, chance, prior)


def _last_doubling(curve: LearningCurve) -> tuple[float, float]:
    """Gain from half the training images to all, and its standard error over images."""
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
