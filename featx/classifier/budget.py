"""One time limit for a fit, dealt to its stages by what they are expected to gain.

A stage may use the share of the time left that is its expected gain over that of all stages to come. The
gains are shares of the remaining errors: at first those of experiments. The comparison of networks measures
whether an earlier layer is better than the last one, and with it what fine-tuning is expected to gain. What a
stage does not use, the next ones get.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from featx.advice.recommend import FINE_TUNING, Verdict
from featx.duration import seconds_of
from featx.exceptions import UsageError
from featx.selection.backbones import BackboneComparison

NETWORKS, SEARCH, VIEWS, TUNING = "networks", "search", "views", "fine-tuning"

EXPECTED: Mapping[str, float] = {
    NETWORKS: 0.1,
    SEARCH: 0.4,
    VIEWS: 0.1,
    TUNING: FINE_TUNING["between"][0],
}
"""Share of the remaining errors that each stage is expected to correct: networks as in docs/networks.md; the
search as the median of the sets in docs/representation.md, from the last features with logistic regression to
what was selected; fine-tuning as the advice says. For views it is a guess."""

RESERVE = 0.05
"""Share of the budget for what follows all stages: the last fit, and the evaluation."""

EXTRACTION = 0.5
"""Largest share of the time left that the features of all images may take with the chosen networks, where a
cheaper choice was compared."""

LEAST_S = 30.0
"""Seconds below which fine-tuning does not begin: its first training takes longer."""


@dataclass
class Budget:
    """Time of one fit.

    Parameters
    ----------
    given : float, str or None
        Seconds, or a text such as ``"10m"``; None for no limit.
    now : callable
        The clock.
    """

    given: Any = None
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.seconds = math.inf if self.given is None else seconds_of(self.given)
        if not self.seconds:
            raise UsageError("a budget of 0 s leaves no time for a fit; write 90s, 10m or 2h.")
        self._began = self.now()
        self._expected = dict(EXPECTED)
        self._ahead: tuple[str, ...] = (SEARCH,)

    @property
    def used(self) -> float:
        """Seconds since the start."""
        return self.now() - self._began

    @property
    def left(self) -> float:
        """Seconds for the stages to come."""
        return max((1 - RESERVE) * self.seconds - self.used, 0.0)

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit."""
        return math.isfinite(self.seconds)

    def begin(self, *, networks: bool, views: bool, fine_tune: bool) -> None:
        """Start the clock, and say which stages there are beside the search."""
        self._began = self.now()
        asked = ((NETWORKS, networks), (SEARCH, True), (VIEWS, views), (TUNING, fine_tune))
        self._ahead = tuple(stage for stage, wanted in asked if wanted)

    def share(self, stage: str) -> float:
        """Seconds that a stage may take; 0 if it was not requested. Earlier stages are then over."""
        if stage not in self._ahead:
            return 0.0
        self._ahead = self._ahead[self._ahead.index(stage) :]
        whole = sum(self._expected[one] for one in self._ahead)
        return self.left * self._expected[stage] / whole

    def learn(self, comparison: BackboneComparison | None) -> None:
        """Expect of fine-tuning what the comparison of networks says: more if an earlier layer is better."""
        gain = None if comparison is None else comparison.over_last
        if gain is None:
            return
        verdict: Verdict = "different" if gain.low > 0 else "between" if gain.value > 0 else "similar"
        self._expected[TUNING] = FINE_TUNING[verdict][0]

    def describe(self, seconds: Mapping[str, float]) -> str:
        """Say what was used, and by what.

        Parameters
        ----------
        seconds : mapping of str to float
            Seconds of each step.
        """
        steps = ", ".join(f"{step} {spent:.0f} s" for step, spent in seconds.items() if spent >= 0.5)
        over = self.used - self.seconds
        more = (
            f"; {over:.0f} s more than the budget, since a step that has begun is finished"
            if over > 1
            else ""
        )
        return f"{self.used:.0f} s of the budget of {self.seconds:.0f} s were used ({steps}){more}"
