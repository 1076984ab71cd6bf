"""The verdict: whether fine-tuning is better than the probe on images that neither was trained on.

The training set (never the test part) is split into three parts: for training, for validation, and for the
comparison. Images of one group (a speaker, a patient, copies of one image) are in one part.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.evaluation import Comparison, compare
from featx.exceptions import SearchWarning
from featx.finetune.features import Index
from featx.records import Record
from featx.splits import make_folds

WINS = 6
"""Images that only one of two classifiers must get right (the other none) for McNemar's exact p to be below
0.05: 2 × 0.5⁶ = 0.03."""


@dataclass(frozen=True)
class Parts:
    """Indices of the images for training, validation and comparison."""

    train: Index
    validation: Index
    comparison: Index


@dataclass(frozen=True)
class Verdict(Record):
    """Whether the fine-tuned network is kept, and why.

    Parameters
    ----------
    kept : bool
        Whether it is significantly better than the probe.
    n : int
        Number of images of the comparison.
    comparison : Comparison
        Fine-tuned network (a) and probe (b).
    minutes, probe_minutes : float
        Training time of each on this machine.
    reason : str
        The result in words.
    """

    kept: bool
    n: int
    comparison: Comparison
    minutes: float
    probe_minutes: float
    reason: str


def make_parts(
    y: NDArray[np.intp],
    *,
    validation: float,
    verdict: float,
    n_verdicts: int = 1,
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
    n_verdicts : int
        Number of disjoint parts for the comparison, each with a training of its own; at most ``1 / verdict``.
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


def worth_trying(n: int, accuracy: float, *, verdict: float = 0.2, n_verdicts: int = 1) -> tuple[bool, str]:
    """Return whether fine-tuning can be significantly better than the probe, and the reason.

    This needs `WINS` more correct images than the probe. If the probe is wrong on fewer images of the
    comparison, even a perfect network would not be kept.

    Parameters
    ----------
    n : int
        Training images.
    accuracy : float
        Out-of-fold accuracy of the probe.
    verdict, n_verdicts
        As in `FineTuner`.
    """
    compared = round(n * min(1.0, verdict * n_verdicts))
    wrong = compared * (1 - accuracy)
    expected = f"the probe is expected to be wrong on {wrong:.1f} of the {compared} images of the comparison"
    if wrong < WINS:
        return False, f"{expected}, and a significant difference needs {WINS} more correct ones"
    return True, f"{expected}, enough for a significant difference"


def decide(
    y: NDArray[np.intp],
    tuned: NDArray[np.float64],
    probe: NDArray[np.float64],
    *,
    groups: ArrayLike | None,
    minutes: float,
    probe_minutes: float,
) -> Verdict:
    """Compare the probabilities of both on the same images, shape (n, C), and decide which one is kept.

    See Also
    --------
    featx.evaluation.compare : paired (cluster) bootstrap and McNemar's exact test.
    """
    found = compare(y, tuned, probe, groups=groups)
    kept = found.verdict == "a"
    scores = (
        f"{found.value_a:.1%} fine-tuned against {found.value_b:.1%} for the probe on {len(y)} held-out "
        f"images "
        f"(difference {100 * found.difference:+.1f} points, 95 % interval {100 * found.low:+.1f} to "
        f"{100 * found.high:+.1f}; McNemar p = {found.mcnemar_p:.2g}), {minutes:.1f} minutes of training "
        f"against {probe_minutes:.1f}"
    )
    ending = {
        "a": "the fine-tuned network is kept",
        "b": "the probe is better and is kept",
        "not distinguishable": "the difference is not significant, so the cheaper probe is kept",
    }[found.verdict]
    return Verdict(kept, len(y), found, minutes, probe_minutes, f"{scores}: {ending}.")
