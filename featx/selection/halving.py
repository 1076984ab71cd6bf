"""Which backbone: how many images each candidate is tried on, and how the survivors are ranked.

Pure functions. The caller embeds the pictures, which is what costs; images are added to a round, never
computed again, since rows are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from featx.advice.measures import h_score, log_me, probe
from featx.evaluation import Metric
from featx.exceptions import UsageError
from featx.features import FeatureBlocks

MOST_IMAGES = 1_000
"""A stratified subset of as many images ranks networks as the whole set does, to a point or two."""

FEWEST_IMAGES = 100
"""Fewer images per round say too little to drop a network for."""

KEEP = 0.5
"""Part of the candidates that goes on to the next round, on twice the images."""


@dataclass(frozen=True)
class HalvingPlan:
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

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, ready for JSON."""
        return {**vars(self), "rounds": [list(r) for r in self.rounds], "candidates": list(self.candidates)}


@dataclass(frozen=True)
class BackboneScore:
    """One candidate backbone on the screened images.

    Parameters
    ----------
    name : str
        Its name.
    accuracy : Metric
        Ridge, out of fold.
    over_current : Metric
        Accuracy less that of the backbone in use, paired.
    log_me, h_score : float
        Two published scores without any fit, for those who ask.
    n : int
        Images it was screened on.
    minutes : float
        What the whole set would cost here; NaN if it is not known.
    leave_one_out : float
        Accuracy of ridge that leaves each image (or group) out in turn, by which candidates are ranked; NaN
        where it was not asked.
    """

    name: str
    accuracy: Metric
    over_current: Metric
    log_me: float
    h_score: float
    n: int
    minutes: float = math.nan
    leave_one_out: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON."""
        plain = dict(vars(self))
        for name in ("minutes", "leave_one_out"):
            plain[name] = None if math.isnan(plain[name]) else plain[name]
        return {**plain, "accuracy": self.accuracy.to_dict(), "over_current": self.over_current.to_dict()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> BackboneScore:
        """Read what `to_dict` gave."""
        values = dict(plain)
        for name in ("minutes", "leave_one_out"):
            values[name] = math.nan if plain.get(name) is None else plain[name]
        values.update({name: Metric.from_dict(plain[name]) for name in ("accuracy", "over_current")})
        return cls(**values)


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


def rank_backbones(
    rows: FeatureBlocks,
    y: ArrayLike,
    *,
    current: str,
    minutes: Mapping[str, float] | None = None,
    groups: ArrayLike | None = None,
    n_jobs: int = 1,
    random_state: int = 0,
) -> tuple[BackboneScore, ...]:
    """Rank backbones by a ridge probe of the same images, best first.

    Parameters
    ----------
    rows : FeatureBlocks
        For each backbone's name its rows of the screened images.
    y : array of shape (n,)
        Their labels.
    current : str
        The backbone in use, with which the others are compared.
    minutes : mapping of str to float, optional
        What the whole set costs here with each.
    groups : array of shape (n,), optional
        Images of a group stay in one fold.
    n_jobs, random_state : int
        Threads and seed.

    Returns
    -------
    tuple of BackboneScore
    """
    if current not in rows:
        raise UsageError(f"the current backbone {current!r} is not among the rows of {', '.join(rows)}.")
    probes = {
        name: probe(rows[name], y, groups=groups, name=name, n_jobs=n_jobs, random_state=random_state)
        for name in rows
    }
    found = [
        BackboneScore(
            name,
            own.accuracy,
            own.minus(probes[current]),
            log_me(rows[name], y),
            h_score(rows[name], y),
            rows.n_rows,
            (minutes or {}).get(name, math.nan),
        )
        for name, own in probes.items()
    ]
    return tuple(sorted(found, key=lambda score: -score.accuracy.value))


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
