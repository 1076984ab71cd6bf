"""The verdict: did fine-tuning beat the probe on images that neither has seen, and by how much.

Three parts of the training set, never the test part: one to train on, one to stop by, one to judge on.
A group (a speaker, a patient, copies of one picture) is never parted.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.evaluation import Comparison, compare
from featx.exceptions import SearchWarning
from featx.finetune.rows import Index
from featx.splits import make_folds

WINS = 6
"""Images that one of two classifiers must get right where the other does not, with none the other way
round, for McNemar's exact p to be below 0.05: 2 × 0.5⁶ = 0.03."""


@dataclass(frozen=True)
class Parts:
    """Which images train, stop and judge."""

    fit: Index
    stop: Index
    judge: Index


@dataclass(frozen=True)
class Verdict:
    """Whether the fine-tuned network is kept, and why.

    Parameters
    ----------
    kept : bool
        Only if it is better than the probe beyond chance.
    n : int
        Images that judged, none of which trained or stopped either of the two.
    comparison : Comparison
        Fine-tuned (a) against probe (b) on them.
    minutes, probe_minutes : float
        What training each took here.
    reason : str
        In words.
    """

    kept: bool
    n: int
    comparison: Comparison
    minutes: float
    probe_minutes: float
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON."""
        return {**vars(self), "comparison": self.comparison.to_dict()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Verdict:
        """Read what `to_dict` gave."""
        return cls(**{**plain, "comparison": Comparison.from_dict(plain["comparison"])})


def make_parts(
    y: NDArray[np.intp],
    *,
    validation: float,
    verdict: float,
    n_verdicts: int = 1,
    groups: ArrayLike | None = None,
    random_state: int = 0,
) -> list[Parts]:
    """Stratified, group-aware parts, one set of three for each verdict.

    Parameters
    ----------
    y : ndarray of shape (n,)
    validation, verdict : float
        Share of the images to stop by (of what is left) and to judge on; 0 for none. Small classes get
        larger shares: each class is in each part.
    n_verdicts : int
        How many disjoint parts judge, each with a training of its own; at most ``1 / verdict``.
    groups : array of shape (n,), optional
    random_state : int
    """
    everything = np.arange(len(y))
    units = everything if groups is None else np.asarray(groups)

    def deal(index: Index, share: float, seed: int) -> list[tuple[Index, Index]]:
        if not share:
            return [(index, index[:0])]
        with warnings.catch_warnings():  # fewer folds are larger shares, which is what small classes need
            warnings.simplefilter("ignore", SearchWarning)
            folds = make_folds(
                y[index], n_splits=max(2, round(1 / share)), groups=units[index], random_state=seed
            )
        return [(index[rest], index[part]) for rest, part in folds]

    parts = []
    for inner, judge in deal(everything, verdict, random_state)[:n_verdicts]:
        fit, stop = deal(inner, validation, random_state + 1)[0]
        parts.append(Parts(fit, stop, judge))
    return parts


def worth_trying(n: int, accuracy: float, *, verdict: float = 0.2, n_verdicts: int = 1) -> tuple[bool, str]:
    """Whether fine-tuning could win its verdict at all, and why.

    The verdict needs `WINS` more images right than the probe. Where the probe is wrong on fewer of the
    judging images than that, not even a perfect network would be kept.

    Parameters
    ----------
    n : int
        Training images.
    accuracy : float
        Of the probe, out of fold.
    verdict, n_verdicts
        As in `FineTuner`.
    """
    judging = round(n * min(1.0, verdict * n_verdicts))
    wrong = judging * (1 - accuracy)
    told = f"the probe is expected to be wrong on {wrong:.1f} of the {judging} images that would judge"
    if wrong < WINS:
        return False, f"{told}, and a network must win {WINS} more to be told from chance"
    return True, f"{told}, enough for a better network to be told from chance"


def decide(
    y: NDArray[np.intp],
    tuned: NDArray[np.float64],
    probe: NDArray[np.float64],
    *,
    groups: ArrayLike | None,
    minutes: float,
    probe_minutes: float,
) -> Verdict:
    """Compare probabilities of both on the judging images, shape (n, C), and say who stays.

    See Also
    --------
    featx.evaluation.compare : paired (cluster) bootstrap and McNemar's exact test.
    """
    found = compare(y, tuned, probe, groups=groups)
    kept = found.verdict == "a"
    scores = (
        f"{found.value_a:.1%} fine-tuned against {found.value_b:.1%} for the probe on {len(y)} held-back "
        f"images "
        f"(difference {100 * found.difference:+.1f} points, 95 % interval {100 * found.low:+.1f} to "
        f"{100 * found.high:+.1f}; McNemar p = {found.mcnemar_p:.2g}), {minutes:.1f} minutes of training "
        f"against {probe_minutes:.1f}"
    )
    ending = {
        "a": "the fine-tuned network is kept",
        "b": "the probe is better and stays",
        "not distinguishable": "the two cannot be told apart, so the cheaper probe stays",
    }[found.verdict]
    return Verdict(kept, len(y), found, minutes, probe_minutes, f"{scores}: {ending}.")
