"""Scores of two ways of training by the number of labels, and how they differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featx.curves.learning import LearningCurve
from featx.evaluation import Metric
from featx.exceptions import UsageError
from featx.records import Record


@dataclass(frozen=True)
class ScorePath(Record):
    """Accuracy by the number of labels, or of epochs.

    Parameters
    ----------
    name : str
        Name of what was trained.
    x : tuple of float
        Labels or epochs, ascending.
    score : tuple of Metric
        Accuracy at each x.
    """

    name: str
    x: tuple[float, ...]
    score: tuple[Metric, ...]

    @classmethod
    def of_curve(cls, curve: LearningCurve, name: str) -> ScorePath:
        """Return the points of a learning curve."""
        return cls(name, tuple(curve.sizes.tolist()), curve.accuracy)

    @property
    def values(self) -> NDArray[np.float64]:
        """The scores without their intervals."""
        return np.array([metric.value for metric in self.score])


@dataclass(frozen=True)
class TransferEffect(Record):
    """Start, slope and end of two paths over the x that they share: transferred, and from scratch.

    Parameters
    ----------
    start, end : tuple of float
        Score at the first and last shared x: transferred, from scratch.
    slope : tuple of float
        Increase over the first half of the shared x (in its logarithm): transferred, from scratch.
    over : tuple of float
        First and last shared x.
    """

    start: tuple[float, float]
    slope: tuple[float, float]
    end: tuple[float, float]
    over: tuple[float, float]

    def sentences(self) -> list[str]:
        """Say which of the three claims hold."""
        said = []
        for what, (own, scratch) in (("start", self.start), ("slope", self.slope), ("asymptote", self.end)):
            word = "Higher" if own > scratch else "No higher"
            said.append(f"{word} {what}: {own:.3f} against {scratch:.3f} from scratch.")
        return said


def compare_paths(transferred: ScorePath, scratch: ScorePath) -> TransferEffect:
    """Measure three claims about transfer learning: higher start, higher slope, higher asymptote.

    Scores between points are interpolated over log x. The slope is the increase over the first half of the
    shared range. A path that starts high can have the lower slope.

    Raises
    ------
    UsageError
        If the two share no range of x.
    """
    low, high = max(transferred.x[0], scratch.x[0]), min(transferred.x[-1], scratch.x[-1])
    if low >= high:
        raise UsageError(
            f"{transferred.name} and {scratch.name} share no range of x; measure both on some of it."
        )
    at = np.array([low, np.sqrt(low * high), high])
    own, other = (np.interp(np.log(at), np.log(path.x), path.values) for path in (transferred, scratch))
    return TransferEffect(
        (float(own[0]), float(other[0])),
        (float(own[1] - own[0]), float(other[1] - other[0])),
        (float(own[2]), float(other[2])),
        (float(low), float(high)),
    )
