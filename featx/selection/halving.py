"""Which backbone: how many images each candidate is tried on, and how the survivors are ranked.

Pure functions. The caller embeds the pictures, which is what costs; images are added to a round, never
computed again, since rows are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from featx.exceptions import UsageError
from featx.records import Record

MOST_IMAGES = 1_000
"""A stratified subset of as many images ranks networks as the whole set does, to a point or two."""

FEWEST_IMAGES = 100
"""Fewer images per round say too little to drop a network for."""

KEEP = 0.5
"""Part of the candidates that goes on to the next round, on twice the images."""


@dataclass(frozen=True)
class HalvingPlan(Record):
    """Rounds of successive halving under a time budget.

    Parameters
    ----------
    rounds : tuple of (int, int)
        For each round the images that every candidate still in has been embedded on, and how many
        candidates go on from it (1 from the last).
    candidates : tuple of str
        Who takes part, cheapest first.
    seconds : float
        What all of it costs at most: the dearest candidates going on.
    left_out : dict of str to str
        Candidates that the budget does not allow, with the reason.
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
    start_s: Mapping[str, float] | None = None,
    most: int = MOST_IMAGES,
    fewest: int = FEWEST_IMAGES,
) -> HalvingPlan:
    """Plan rounds so that even their dearest course fits the budget.

    Candidates halve from round to round while images double, up to `most`. Where the budget is too small
    the last round gets fewer images, and then the dearest candidates are left out.

    Parameters
    ----------
    seconds_per_image : mapping of str to float
        What one image costs here, for each candidate.
    n_images : int
        Images there are.
    budget_s : float
        Seconds that the whole may take.
    start_s : mapping of str to float, optional
        Seconds to load and compile a candidate, once.
    most, fewest : int
        Images of the last round at most, and of the first at least.

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
    start = start_s or {}
    inside = sorted(seconds_per_image, key=lambda name: seconds_per_image[name])
    left_out: dict[str, str] = {}
    while True:
        costs = [seconds_per_image[name] for name in inside]
        fixed = sum(start.get(name, 0.0) for name in inside)
        last = min(most, n_images)
        while True:
            rounds = _rounds(len(inside), last, min(fewest, n_images))
            seconds = fixed + _dearest(rounds, costs)
            if seconds <= budget_s or last <= min(fewest, n_images):
                break
            last = max(last * 3 // 4, min(fewest, n_images))
        if seconds <= budget_s or len(inside) == 1:
            return HalvingPlan(rounds, tuple(inside), seconds, left_out)
        dearest = inside.pop()
        cost = start.get(dearest, 0.0) + seconds_per_image[dearest] * rounds[0][0]
        left_out[dearest] = f"{cost:.0f} s for {rounds[0][0]} images do not fit {budget_s:.0f} s for all"


def survivors(
    accuracy: Mapping[str, float], keep: int, costs: Mapping[str, float] | None = None
) -> list[str]:
    """Name the `keep` best candidates, best first; of equals the cheaper."""
    cheap = costs or {}
    return sorted(accuracy, key=lambda name: (-accuracy[name], cheap.get(name, 0.0)))[:keep]


def _rounds(candidates: int, last: int, fewest: int) -> tuple[tuple[int, int], ...]:
    """(images, candidates that go on) of each round, ending with one candidate on `last` images."""
    sizes, field = [], candidates
    while field > 1:
        field = max(1, math.floor(field * KEEP))
        sizes.append(field)
    sizes = sizes or [1]
    steps = len(sizes)
    images = [max(fewest, last >> (steps - 1 - step)) for step in range(steps)]
    return tuple((min(n, last), keep) for n, keep in zip(images, sizes, strict=True))


def _dearest(rounds: Sequence[tuple[int, int]], costs: Sequence[float]) -> float:
    """Seconds if the dearest candidates always go on; `costs` per image, rising."""
    seconds, done, inside = 0.0, 0, np.asarray(costs, np.float64)
    for images, keep in rounds:
        seconds += (images - done) * float(inside.sum())
        done, inside = images, inside[len(inside) - keep :]
    return seconds
