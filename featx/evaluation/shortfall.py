"""Whether a score on other images is far below that of cross-validation."""

from __future__ import annotations

import math

from featx.evaluation.metrics import NORMAL
from featx.evaluation.results import Evaluation

LEAST_SCORE = 2.58
"""Difference of two accuracies in standard errors from which it is more than chance (one-sided p < 0.005)."""


def shortfall(other: Evaluation, folds: Evaluation) -> str:
    """Return a sentence if the accuracy is below that of cross-validation by more than chance, else "".

    Parameters
    ----------
    other : Evaluation
        On the held-out part, or on other images.
    folds : Evaluation
        Out of fold, on the training images.
    """
    here, there = other.metrics["accuracy"], folds.metrics["accuracy"]
    errors = [(metric.high - metric.low) / (2 * NORMAL) for metric in (here, there)]
    gap = there.value - here.value
    if not (there.value > here.high and gap > LEAST_SCORE * math.hypot(*errors)):  # NaN: nothing is known
        return ""
    return (
        f"the accuracy on these images, {here.as_share()}, is below the {there.value:.3f} of "
        "cross-validation by more than chance: they are unlike the training images, or training "
        "images have copies or images of the same source among each other. Expect the lower one; "
        "`featx check` on both parts says more."
    )
