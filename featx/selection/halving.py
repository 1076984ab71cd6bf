"""Plan a comparison of backbones by successive halving under a time budget.

These are pure functions; the caller extracts the features. Each round adds images to those of the round
before, whose features are cached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featx.exceptions import UsageError
from featx.records import Record

MOST_IMAGES = 1_000
"""A stratified subset of this size ranks networks like the whole set, within a point or two of accuracy."""

FEWEST_IMAGES = 100
"""Fewest images of a round. Fewer are too few to drop a network."""

KEEP = 0.5
"""Fraction of the candidates that enter the next round, on twice the images."""


@dataclass(frozen=True)
class HalvingPlan(Record):
    """Rounds of successive halving under a time budget.

    Parameters
    ----------
    rounds : tuple of (int, int)
        For each round, the number of images of each remaining candidate, and the number of candidates that
        remain after it (1 after the last).
    candidates : tuple of str
        The candidates, cheapest first.
    seconds : float
        Largest cost: that of the most expensive candidates remaining in each round.
    left_out : dict of str to str
        Candidates that do not fit the budget, with the reason.
    """

    rounds: tuple[tuple[int, int], ...]
    candidates: tuple[str, ...]
    seconds: float
    left_out: dict[str, str]


def plan_halving(
    seconds_per_image: Mapping[str, float],
    *,
    n_images: int,
    budget_s: float = math.inf,
    most: int = MOST_IMAGES,
    fewest: int = FEWEST_IMAGES,
) -> HalvingPlan:
    """Plan rounds whose largest possible cost fits the budget.

    The number of candidates is halved from round to round and the number of images doubled, up to `most`.
    If the budget is too small, the last round gets fewer images; then the most expensive candidates are left
    out.

    Parameters
    ----------
    seconds_per_image : mapping of str to float
        Seconds of one image on this machine, for each candidate.
    n_images : int
        Number of images.
    budget_s : float
        Seconds for the comparison.
    most, fewest : int
        Largest number of images of the last round, and smallest of the first.

    Returns
    -------
    HalvingPlan

    Raises
    ------
    UsageError
        If there is no candidate, or a cost is not above 0.
    """
    if not seconds_per_image or min(seconds_per_image.values()) <= 0:
        raise UsageError(f"costs {dict(seconds_per_image)}: give seconds above 0 for at least one backbone.")
    inside = sorted(seconds_per_image, key=lambda name: seconds_per_image[name])
    left_out: dict[str, str] = {}
    while True:
        costs = [seconds_per_image[name] for name in inside]
        last = min(most, n_images)
        while True:
            rounds = _rounds(len(inside), last, min(fewest, n_images))
            seconds = _largest_cost(rounds, costs)
            if seconds <= budget_s or last <= min(fewest, n_images):
                break
            last = max(last * 3 // 4, min(fewest, n_images))
        if seconds <= budget_s or len(inside) == 1:
            return HalvingPlan(rounds, tuple(inside), seconds, left_out)
        most_expensive = inside.pop()
        cost = seconds_per_image[most_expensive] * rounds[0][0]
        left_out[most_expensive] = (
            f"{cost:.0f} s for {rounds[0][0]} images do not fit {budget_s:.0f} s for all"
        )


def survivors(
    accuracy: Mapping[str, float], keep: int, costs: Mapping[str, float] | None = None
) -> list[str]:
    """Return the `keep` best candidates, best first; ties go to the cheaper one."""
    cheap = costs or {}
    return sorted(accuracy, key=lambda name: (-accuracy[name], cheap.get(name, 0.0)))[:keep]


def _rounds(candidates: int, last: int, fewest: int) -> tuple[tuple[int, int], ...]:
    """Return (images, remaining candidates) of each round; one candidate remains after `last` images."""
    sizes, left = [], candidates
    while left > 1:
        left = max(1, math.floor(left * KEEP))
        sizes.append(left)
    sizes = sizes or [1]
    steps = len(sizes)
    images = [max(fewest, last >> (steps - 1 - step)) for step in range(steps)]
    return tuple((min(n, last), keep) for n, keep in zip(images, sizes, strict=True))


def _largest_cost(rounds: Sequence[tuple[int, int]], costs: Sequence[float]) -> float:
    """Seconds if the most expensive candidates always remain; `costs` are per image, in rising order."""
    seconds, done, inside = 0.0, 0, np.asarray(costs, np.float64)
    for images, keep in rounds:
        seconds += (images - done) * float(inside.sum())
        done, inside = images, inside[len(inside) - keep :]
    return seconds
