"""The verdict: whether fine-tuning is better than the probe on images that neither was trained on.

The training set (never the test part) is split into three parts: for training, for validation, and for the
comparison. Images of one group (a speaker, a patient, copies of one image) are in one part. A verdict that is
not settled is repeated on further disjoint parts, up to all images once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from featx.evaluation import NORMAL, Metric
from featx.exceptions import SearchWarning
from featx.finetune.features import Index
from featx.records import Record
from featx.splits import make_folds

PRIOR_SD = 0.02
"""Standard deviation of the true gain in accuracy, before anything is measured; its mean is 0. The source are
the seven differences in docs/finetuning.md (a near set, six far sets): their mean square less that of their
standard errors is (0.021)²."""
OPEN_FROM, OPEN_TO = 0.35, 0.975
"""A verdict is open, and is repeated on further images, while the chance that the network is better lies
between these. ``python benchmarks/bench_finetune.py rule`` compares other lower limits: 0.5 loses 0.13
points of the gain with 128 images, and 0.1 costs more trainings for the same gain."""
FEWEST_ERRORS = 6
"""Errors of the probe, out of fold, below which fine-tuning is not tried: if it corrected five and made none,
a sign test could not tell (2 × 0.5⁵ = 0.06)."""


@dataclass(frozen=True)
class Parts:
    """Indices of the images for training, validation and comparison."""

    train: Index
    validation: Index
    comparison: Index


@dataclass(frozen=True)
class Verdict(Record):
    """Whether the fine-tuned network is kept, and why.

    Both predict at the same cost, so the one that is expected to be better is kept. The gain is the mean of a
    normal posterior: the measured difference in accuracy, shrunk towards 0 by a normal prior whose standard
    deviation is `PRIOR_SD`. The decision, the interval and the chance are all of this posterior.

    Parameters
    ----------
    kept : bool
        Whether the expected gain is above 0.
    n : int
        Number of images of the comparison.
    parts : int
        Number of disjoint parts that they come from, each with a training of its own.
    accuracy, probe_accuracy : float
        Accuracy of the network and of the probe on these images.
    only_tuned_right, only_probe_right : int
        Number of images that only one of the two classified correctly.
    gain : Metric
        Expected gain in accuracy, with its 95 % interval.
    chance : float
        Probability that the network is better.
    minutes, probe_minutes : float
        Training time of each on this machine.
    reason : str
        The result in words.
    """

    kept: bool
    n: int
    parts: int
    accuracy: float
    probe_accuracy: float
    only_tuned_right: int
    only_probe_right: int
    gain: Metric
    chance: float
    minutes: float
    probe_minutes: float
    reason: str

    @property
    def is_open(self) -> bool:
        """Whether further images may change the verdict."""
        return OPEN_FROM <= self.chance < OPEN_TO


def make_parts(
    y: NDArray[np.intp],
    *,
    validation: float,
    verdict: float,
    n_verdicts: int | None = 1,
    groups: ArrayLike | None = None,
    random_state: int = 0,
) -> list[Parts]:
    """Make stratified, group-aware parts, three for each comparison.

    Parameters
    ----------
    y : ndarray of shape (n,)
    validation, verdict : float
        Shares of the images for validation (of the remaining ones) and for the comparison; 0 for none.
        They are larger for small classes: each class is in each part.
    n_verdicts : int or None
        Largest number of disjoint parts for the comparison; None for ``1 / verdict``, which are all images.
    groups : array of shape (n,), optional
    random_state : int
    """
    everything = np.arange(len(y))
    units = everything if groups is None else np.asarray(groups)

    def split(index: Index, share: float, seed: int) -> list[tuple[Index, Index]]:
        if not share:
            return [(index, index[:0])]
        with warnings.catch_warnings():  # fewer folds are larger shares, as small classes need
            warnings.simplefilter("ignore", SearchWarning)
            folds = make_folds(
                y[index], n_splits=max(2, round(1 / share)), groups=units[index], random_state=seed
            )
        return [(index[rest], index[part]) for rest, part in folds]

    parts = []
    for inner, comparison in split(everything, verdict, random_state)[:n_verdicts]:
        train, held_out = split(inner, validation, random_state + 1)[0]
        parts.append(Parts(train, held_out, comparison))
    return parts


def without_chosen(parts: Sequence[Parts]) -> list[Parts]:
    """Leave the validation images of the first part out of the comparisons: settings were chosen on them."""
    chosen = parts[0].validation
    return [
        Parts(part.train, part.validation, part.comparison[~np.isin(part.comparison, chosen)])
        for part in parts
    ]


def worth_trying(n: int, accuracy: float) -> tuple[bool, str]:
    """Return whether the probe leaves enough errors to correct, and the reason.

    Parameters
    ----------
    n : int
        Training images.
    accuracy : float
        Out-of-fold accuracy of the probe.
    """
    wrong = round(n * (1 - accuracy))
    found = f"the probe is wrong on {wrong} of the {n} training images, out of fold"
    if wrong < FEWEST_ERRORS:
        return False, f"{found}, too few to gain anything that can be measured"
    return True, found


def expected_gain(difference: float, standard_error: float) -> tuple[Metric, float]:
    """Return the posterior of the gain, with its 95 % interval, and the chance that it is above 0.

    Parameters
    ----------
    difference, standard_error : float
        Measured difference in accuracy. The standard error is above 0.
    """
    share = PRIOR_SD**2 / (PRIOR_SD**2 + standard_error**2)
    mean, sd = share * difference, math.sqrt(share) * standard_error
    return Metric(mean, mean - NORMAL * sd, mean + NORMAL * sd), float(ndtr(mean / sd))


def paired_error(difference: NDArray[np.float64], groups: ArrayLike | None = None) -> float:
    """Return the standard error of the mean of paired differences; images of one group count together.

    Two more images on which the two differ, one for each, are added to the variance. It is not 0 then where
    all differences are equal (Agresti & Min, 2005).
    """
    units = np.arange(len(difference)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sums = np.bincount(units, difference - difference.mean())
    n_units = len(sums)
    variance = np.square(sums).sum() * n_units / max(1, n_units - 1) + 2 * len(difference) / n_units
    return math.sqrt(variance) / len(difference)


def judge(
    y: NDArray[np.intp],
    tuned: NDArray[np.float64],
    probe: NDArray[np.float64],
    *,
    groups: ArrayLike | None = None,
    parts: int = 1,
    minutes: float = 0.0,
    probe_minutes: float = 0.0,
) -> Verdict:
    """Compare the probabilities of both on the same images, shape (n, C), and decide which one is kept.

    Parameters
    ----------
    y : ndarray of shape (n,)
        Class indices.
    tuned, probe : ndarray of shape (n, C)
    groups : array of shape (n,), optional
    parts, minutes, probe_minutes
        See `Verdict`.
    """
    right, probe_right = tuned.argmax(1) == y, probe.argmax(1) == y
    difference = right.astype(np.float64) - probe_right
    gain, chance = expected_gain(float(difference.mean()), paired_error(difference, groups))
    if gain.value > 0:
        words = "is better" if gain.low > 0 else "is expected to be better"
        ending = f"the fine-tuned network {words} and is kept"
    elif gain.value < 0:
        ending = f"the probe {'is better' if gain.high < 0 else 'is expected to be better'} and is kept"
    else:
        ending = "no difference is expected, so the probe is kept"
    reason = (
        f"{right.mean():.1%} fine-tuned against {probe_right.mean():.1%} for the probe on {len(y)} held-out "
        f"images; expected gain {100 * gain.value:+.1f} points (95 % interval {100 * gain.low:+.1f} to "
        f"{100 * gain.high:+.1f}, chance of a gain {chance:.0%}), {minutes:.1f} minutes of training against "
        f"{probe_minutes:.1f}: {ending}."
    )
    return Verdict(
        kept=gain.value > 0,
        n=len(y),
        parts=parts,
        accuracy=float(right.mean()),
        probe_accuracy=float(probe_right.mean()),
        only_tuned_right=int((difference > 0).sum()),
        only_probe_right=int((difference < 0).sum()),
        gain=gain,
        chance=chance,
        minutes=minutes,
        probe_minutes=probe_minutes,
        reason=reason,
    )
