"""Is the winner really better? A paired test against the rest, and the cheaper of those that are as good.

The best of many scores is partly luck. So the best is compared image by image with every cheaper
candidate, and a cheaper one that cannot be told from it is taken: "not distinguishable" is an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.evaluation import Comparison, compare
from featx.exceptions import UsageError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Candidate:
    """A classifier that may be chosen.

    Parameters
    ----------
    name : str
        What it is called.
    proba : array of shape (n, C)
        Its out-of-fold (or inner held-out) probabilities; all candidates on the same images.
    cost : float
        What using it costs, in any unit, for instance columns or seconds an image.
    """

    name: str
    proba: Floats
    cost: float


@dataclass(frozen=True)
class Choice:
    """What was chosen, and against whom.

    Parameters
    ----------
    name : str
        The chosen candidate.
    best : str
        The candidate of the highest score, or the preferred one; a cheaper was taken if it was as good.
    runner_up : str or None
        The next best score.
    against_best : Comparison or None
        Best minus chosen; None if they are the same.
    against_runner_up : Comparison or None
        Best minus runner-up; None for a single candidate.
    """

    name: str
    best: str
    runner_up: str | None
    against_best: Comparison | None
    against_runner_up: Comparison | None

    def sentences(self) -> list[str]:
        """Say it."""
        said = []
        if self.runner_up is not None and self.against_runner_up is not None:
            found = self.against_runner_up
            between = (
                f"{100 * found.difference:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
            )
            if found.verdict == "a":
                said.append(f"{self.best} is better than {self.runner_up}, the next best: {between}.")
            else:
                said.append(f"{self.best} is not distinguishable from {self.runner_up}: {between}.")
        if self.against_best is not None:
            if self.name == self.runner_up:
                said.append("The latter is cheaper: it was taken.")
            else:
                said.append(f"{self.name} is cheaper and not distinguishable from {self.best}: it was taken.")
        return said

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON."""
        tests = ("against_best", "against_runner_up")
        return {k: v.to_dict() if k in tests and v is not None else v for k, v in vars(self).items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Choice:
        """Read what `to_dict` gave."""
        values: dict[str, Any] = dict(plain)
        for name in ("against_best", "against_runner_up"):
            values[name] = None if plain[name] is None else Comparison.from_dict(plain[name])
        return cls(**values)


def choose(
    candidates: Sequence[Candidate],
    y_index: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    metric: str = "accuracy",
    tolerance: float = 0.0,
    preferred: str | None = None,
    random_state: int = 0,
) -> Choice:
    """Take the cheapest candidate that is not distinguishable from the best.

    Parameters
    ----------
    candidates : sequence of Candidate
        At least one.
    y_index : array of shape (n,), int
        Columns of the true classes.
    groups : array of shape (n,), optional
        Images of a group are resampled together.
    metric : str
        A key of ``featx.evaluation.METRICS``.
    tolerance : float
        A cheaper candidate must also be within this of the best's score. 0 asks for no more than the test;
        with few images that lets a much worse score pass for want of evidence.
    preferred : str, optional
        The candidate that counts as the best, whatever the scores; by default that of the highest score.
    random_state : int
        Seed of the bootstrap.

    Returns
    -------
    Choice
    """
    if not candidates:
        raise UsageError("there is nothing to choose from; give at least one candidate.")
    y = np.asarray(y_index, np.intp)

    def versus(a: Candidate, b: Candidate) -> Comparison:
        return compare(y, a.proba, b.proba, groups=groups, metric=metric, random_state=random_state)

    if len(candidates) == 1:
        return Choice(candidates[0].name, candidates[0].name, None, None, None)
    first = candidates[0]
    tests = [versus(first, other) for other in candidates]
    order = sorted(
        range(len(candidates)),
        key=lambda i: (candidates[i].name != preferred, tests[i].difference, candidates[i].cost),
    )
    best, second = candidates[order[0]], candidates[order[1]]
    against_second = versus(best, second)
    for cheap in sorted((c for c in candidates if c.cost < best.cost), key=lambda c: c.cost):
        found = versus(best, cheap)
        if found.verdict != "a" and (tolerance <= 0 or found.difference <= tolerance):
            return Choice(cheap.name, best.name, second.name, found, against_second)
    return Choice(best.name, best.name, second.name, None, against_second)
