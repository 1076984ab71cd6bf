"""Decisions: which label follows from probabilities. Another decision needs no other fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.evaluation.metrics import Floats, Indices, accuracy, balanced_accuracy, macro_f1
from featx.exceptions import LabelError, UsageError
from featx.records import Record

ARGMAX, BALANCED = "argmax", "balanced"


@dataclass(frozen=True)
class Decision(Record):
    """Predict the class with the largest product of probability and weight.

    This minimises the expected cost if the weight of a class is the cost of an image of it that is predicted
    as another class.

    Parameters
    ----------
    name : str
        ``argmax``, ``balanced``, ``costs``, or why the classes have these weights.
    weights : tuple of float
        One for each class, above 0.
    """

    name: str
    weights: tuple[float, ...]

    @classmethod
    def argmax(cls, n_classes: int) -> Decision:
        """Return the decision for the most probable class."""
        return cls(ARGMAX, (1.0,) * n_classes)

    @property
    def is_argmax(self) -> bool:
        """Whether the most probable class is predicted."""
        return len(set(self.weights)) == 1

    def shares(self, proba: ArrayLike) -> NDArray[np.float64]:
        """Products of probabilities (n, C) and weights, as shares of their sum; the largest is predicted."""
        weighted = np.asarray(proba, np.float64)
        if self.is_argmax:
            return weighted
        weighted = weighted * np.asarray(self.weights)
        return np.asarray(weighted / weighted.sum(axis=1, keepdims=True))

    def shift(self, logits: ArrayLike) -> NDArray[np.float64]:
        """Add the logarithms of the weights to logits, (n, C), or (n,) for two classes."""
        scores, own = np.asarray(logits, np.float64), np.log(self.weights)
        return np.asarray(scores + (own[1] - own[0]) if scores.ndim == 1 else scores + own)


@dataclass(frozen=True)
class OperatingPoint(Record):
    """What a decision scores on some images: all of them have the same probabilities.

    Parameters
    ----------
    name : str
        The decision.
    used : bool
        Whether it is the one that predicts.
    accuracy, balanced_accuracy, macro_f1 : float
        As in `METRICS`.
    """

    name: str
    used: bool
    accuracy: float
    balanced_accuracy: float
    macro_f1: float

    @classmethod
    def of(cls, decision: Decision, y_index: Indices, proba: Floats, *, used: bool) -> OperatingPoint:
        """Return the scores of a decision for probabilities (n, C)."""
        shares = decision.shares(proba)
        scores = (float(metric(y_index, shares)) for metric in (accuracy, balanced_accuracy, macro_f1))
        return cls(decision.name, used, *scores)


def make_decision(
    decide: str | Mapping[Any, float], classes: Sequence[Any] | NDArray[Any], counts: ArrayLike
) -> Decision:
    """Return the decision that a parameter ``decide`` describes.

    Parameters
    ----------
    decide : {'argmax', 'balanced'} or mapping of class to float
        The most probable class; as if all classes were equally frequent; or the cost of missing each class.
        The cost of a class that is not named is 1.
    classes : sequence of length C
        Labels.
    counts : array of shape (C,)
        Training images of each class.

    Raises
    ------
    UsageError
        If `decide` is none of these, or a cost is not a number above 0.
    LabelError
        If a class is not known.
    """
    labels = classes.tolist() if isinstance(classes, np.ndarray) else list(classes)
    check_decide(decide)
    if isinstance(decide, Mapping):
        unknown = [label for label in decide if label not in labels]
        if unknown:
            raise LabelError(
                f"decide names {', '.join(map(repr, unknown[:5]))}, which is not a class; give costs of "
                f"{', '.join(map(repr, labels[:10]))}{', ...' if len(labels) > 10 else ''}."
            )
        return Decision("costs", tuple(float(decide.get(label, 1.0)) for label in labels))
    if decide == ARGMAX:
        return Decision.argmax(len(labels))
    return Decision(BALANCED, inverse_shares(counts))


def check_decide(decide: Any, *also: str) -> None:
    """Refuse what is no decision.

    Raises
    ------
    UsageError
        If `decide` is neither ``"argmax"``, ``"balanced"``, one of `also`, nor a mapping of classes to costs.
    """
    if isinstance(decide, Mapping):
        for label, cost in decide.items():
            number = isinstance(cost, int | float | np.number) and not isinstance(cost, bool)
            if not number or not 0 < float(cost) < math.inf:
                raise UsageError(f"the cost of {label!r} is {cost!r:.80}; give a number above 0.")
        return
    known = (*also, ARGMAX, BALANCED)
    if not isinstance(decide, str) or decide not in known:
        raise UsageError(
            f"decide {decide!r:.80} is not known; choose {', '.join(map(repr, known))}, or costs such as "
            "{'rare class': 5}."
        )


def inverse_shares(counts: ArrayLike, power: float = 1.0) -> tuple[float, ...]:
    """Return the weights (largest count / count) ** power; a class without images counts as half an image."""
    own = np.maximum(np.asarray(counts, np.float64), 0.5)
    return tuple(((own.max() / own) ** power).tolist())
