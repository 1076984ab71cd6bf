"""Choose between candidates: a paired test of the best against the others, and the cheaper of equal ones.

The best of many scores is partly luck. So the best candidate is compared image by image with every cheaper
one, and a cheaper one that does not differ significantly from it is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.evaluation import Comparison, compare
from featx.exceptions import UsageError
from featx.records import Record

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Candidate:
    """A classifier that may be chosen.

    Parameters
    ----------
    name : str
        Its name.
    proba : array of shape (n, C)
        Out-of-fold (or held-out) probabilities, of the same images for all candidates.
    cost : float
        Cost of using it, in any unit, for instance columns or seconds per image.
    """

    name: str
    proba: Floats
    cost: float


@dataclass(frozen=True)
class Choice(Record):
    """Which candidate was chosen, and the comparisons.

    Parameters
    ----------
    name : str
        The chosen candidate.
    best : str
        The candidate of the highest score, or the preferred one.
    runner_up : str or None
        The candidate of the second highest score.
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
        """Return the result in words."""
        said = []
        if self.runner_up is not None and self.against_runner_up is not None:
            found = self.against_runner_up
            difference = (
                f"{100 * found.difference:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
            )
            verb = "is better than" if found.verdict == "a" else "does not differ significantly from"
            said.append(f"{self.best} {verb} {self.runner_up}, the second best: {difference}.")
        if self.against_best is not None:
            if self.name == self.runner_up:
                said.append("The second best is cheaper, so it was chosen.")
            else:
                said.append(
                    f"{self.name} is cheaper and does not differ significantly from {self.best}, "
                    "so it was chosen."
                )
        return said


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
    """Choose the cheapest candidate that does not differ significantly from the best.

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
        Largest difference to the best score that a cheaper candidate may have. 0: the test alone decides;
        with few images even a much lower score may then not differ significantly.
    preferred : str, optional
        The candidate to take as the best one; by default that of the highest score.
    random_state : int
        Seed of the bootstrap.

    Returns
    -------
    Choice
    """
    if not candidates:
        raise UsageError("there are no candidates; give at least one candidate.")
    y = np.asarray(y_index, np.intp)

    def test(a: Candidate, b: Candidate) -> Comparison:
        return compare(y, a.proba, b.proba, groups=groups, metric=metric, random_state=random_state)

    if len(candidates) == 1:
        return Choice(candidates[0].name, candidates[0].name, None, None, None)
    first = candidates[0]
    tests = [test(first, other) for other in candidates]
    order = sorted(
        range(len(candidates)),
        key=lambda i: (candidates[i].name != preferred, tests[i].difference, candidates[i].cost),
    )
    best, second = candidates[order[0]], candidates[order[1]]
    against_second = test(best, second)
    for cheap in sorted((c for c in candidates if c.cost < best.cost), key=lambda c: c.cost):
        found = test(best, cheap)
        if found.verdict != "a" and (tolerance <= 0 or found.difference <= tolerance):
            return Choice(cheap.name, best.name, second.name, found, against_second)
    return Choice(best.name, best.name, second.name, None, against_second)
