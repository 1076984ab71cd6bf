"""Which backbone: candidates meet on a few hundred images of the training part, by successive halving.

What a candidate costs is measured on a few pictures and said before it is paid. The field is ranked by the
leave-one-out ridge of each network's best representation; images are added to a round, never computed again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from featx.advice import BackboneScore, ProbeResult, h_score, log_me, probe, stratified_rows
from featx.backbones import list_models
from featx.evaluation import Metric
from featx.exceptions import UsageError
from featx.extractor import FeatureExtractor
from featx.features import FeatureBlocks
from featx.images import ImageSet
from featx.search.screening import screen_representations
from featx.selection.halving import HalvingPlan, plan_halving, survivors

AUTO = "auto"

RACED_IMAGES = 500
"""Images that candidates are embedded on at most: a thousand rank them no better than that, to a point or
two, and the whole choice is to cost no more than the plain fit does."""

SPEED_IMAGES = 32
"""Images that tell a candidate's speed here; they are the first of the race's own, and kept."""

CACHED_S = 1e-6
"""Seconds an image where all rows are there."""

NORMAL = 1.96
"""Half a 95 % interval in standard errors."""


@dataclass(frozen=True)
class Race:
    """What came of a race between backbones.

    Parameters
    ----------
    scores : tuple of BackboneScore
        The candidates, best first, each with what the whole set would cost.
    winners : tuple of str
        The best one; or the two best, whose blocks side by side are better.
    together : Metric or None
        Accuracy of the two best side by side less that of the best alone, paired; None with one candidate.
    plan : HalvingPlan
        Rounds, and candidates that the budget left out.
    """

    scores: tuple[BackboneScore, ...]
    winners: tuple[str, ...]
    together: Metric | None
    plan: HalvingPlan

    def sentences(self) -> list[str]:
        """Who won, and by what."""
        said = [
            f"{one.name}: {one.accuracy.value:.3f} [{one.accuracy.low:.3f}, {one.accuracy.high:.3f}] on "
            f"{one.n} images, {_minutes(one.minutes)} for all"
            for one in self.scores
        ]
        if self.together is not None:
            gain = f"{100 * self.together.value:+.1f} points"
            interval = f"[{100 * self.together.low:+.1f}, {100 * self.together.high:+.1f}]"
            verdict = "both go on" if len(self.winners) > 1 else "the best goes on alone"
            said.append(f"the two best side by side: {gain} {interval}, {verdict}")
        return said + [f"{name} left out: {why}" for name, why in self.plan.left_out.items()]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, ready for JSON."""
        return {
            "scores": [one.to_dict() for one in self.scores],
            "winners": list(self.winners),
            "together": self.together and self.together.to_dict(),
            "plan": self.plan.to_dict(),
        }


@dataclass(frozen=True)
class _Runner:
    """A candidate's rows of the images of a round."""

    blocks: FeatureBlocks
    chosen: NDArray[np.intp]
    best: str
    leave_one_out: float


def backbone_names(backbone: str | Sequence[str]) -> tuple[str, ...]:
    """The candidates that are meant: one name, several, or ``"auto"`` for all whose weights are here.

    Raises
    ------
    UsageError
        If there is none.
    """
    if backbone == AUTO:
        names = tuple(row.name for row in list_models() if row.available)
    else:
        names = (backbone,) if isinstance(backbone, str) else tuple(dict.fromkeys(backbone))
    if not names:
        raise UsageError(
            f"backbone {backbone!r} names no network; give a timm name, or download weights first "
            "(featx download NAME)."
        )
    return names


def refuse_checkpoint(names: Sequence[str], checkpoint: Any) -> None:
    """A file of weights belongs to one network."""
    if len(names) > 1 and checkpoint is not None:
        raise UsageError(f"checkpoint is of one network, not of {', '.join(names)}; name the one it is of.")


def race(
    extractors: Mapping[str, FeatureExtractor],
    images: ImageSet,
    codes: NDArray[np.intp],
    *,
    groups: NDArray[Any] | None = None,
    n_all: int | None = None,
    always: str | None = None,
    budget_s: float = math.inf,
    say: Callable[[str], None] | None = None,
    n_jobs: int = 1,
    random_state: int = 0,
) -> Race:
    """Let backbones meet.

    Parameters
    ----------
    extractors : mapping of str to FeatureExtractor
        For each candidate's name a fitted extractor of the representations that it is judged by.
    images : ImageSet
        The training part.
    codes : array of shape (n,), int
        Its class indices.
    groups : array of shape (n,), optional
        Images of a group are left out together.
    n_all : int, optional
        Images of the whole set, for its cost.
    always : str, optional
        A candidate that is in every round, and with which the others are compared (else the best).
    budget_s : float
        Seconds that it may take; the dearest candidates are left out if it does not suffice.
    say : callable, optional
        Told of costs before they are paid.
    n_jobs, random_state : int
        Threads and seed.

    Returns
    -------
    Race
    """
    began = time.monotonic()
    total = n_all or len(images)
    costs = {name: _seconds_per_image(own, images, codes, random_state) for name, own in extractors.items()}
    if say is not None:
        said = "; ".join(f"{name} {_minutes(cost * total / 60)}" for name, cost in costs.items())
        say(f"all {total:,} images would take: {said}")
    rivals = {name: cost for name, cost in costs.items() if name != always}
    plan = plan_halving(
        rivals,
        n_images=len(images),
        budget_s=max(budget_s - (time.monotonic() - began), 0),
        most=RACED_IMAGES,
    )
    if say is not None:
        say(f"{len(plan.candidates)} backbones on at most {plan.rounds[-1][0]} images: {plan.seconds:.0f} s")
    field, runners = list(plan.candidates), dict[str, _Runner]()
    for size, keep in plan.rounds:
        chosen = stratified_rows(codes, size, random_state=random_state)
        for name in dict.fromkeys([*field, *([always] if always else [])]):
            runners[name] = _run(
                extractors[name], images, chosen, codes, groups, n_jobs=n_jobs, random_state=random_state
            )
        last = list(field)
        field = survivors({name: runners[name].leave_one_out for name in field}, keep, costs)
    order = survivors({name: runners[name].leave_one_out for name in last}, len(last), costs)
    ask = _Asked(codes, groups, n_jobs, random_state)
    together = ask.together(runners[order[0]], runners[order[1]]) if len(order) > 1 else None
    both = together is not None and together.value > (together.high - together.value) / NORMAL
    current = always or order[0]
    scores = [
        ask.score(name, runner, runners[current], costs[name] * total / 60)
        for name, runner in runners.items()
    ]
    scores.sort(key=lambda one: (-one.n, -one.leave_one_out))  # who was out early has fewer images
    return Race(tuple(scores), tuple(order[: 2 if both else 1]), together, plan)


@dataclass(frozen=True)
class _Asked:
    """Probes of the same images, so that candidates are compared one image at a time."""

    codes: NDArray[np.intp]
    groups: NDArray[Any] | None
    n_jobs: int
    random_state: int

    def __call__(self, rows: FeatureBlocks | NDArray[np.float32], chosen: NDArray[np.intp]) -> ProbeResult:
        own = None if self.groups is None else self.groups[chosen]
        return probe(rows, self.codes[chosen], groups=own, n_jobs=self.n_jobs, random_state=self.random_state)

    def together(self, first: _Runner, second: _Runner) -> Metric:
        shared = np.intersect1d(first.chosen, second.chosen)
        a, b = _rows(first, shared), _rows(second, shared)
        both = FeatureBlocks({"a": a, "b": b}, len(shared))
        return self(both, shared).minus(self(a, shared))

    def score(self, name: str, runner: _Runner, current: _Runner, minutes: float) -> BackboneScore:
        shared = np.intersect1d(runner.chosen, current.chosen)
        own = self(_rows(runner, shared), shared)
        usual = next((b for b in runner.blocks if b.startswith("last:avg")), runner.best)
        rows, y = runner.blocks[usual], self.codes[runner.chosen]
        return BackboneScore(
            name,
            own.accuracy,
            own.minus(self(_rows(current, shared), shared)),
            log_me(rows, y),
            h_score(rows, y),
            len(shared),
            minutes,
            runner.leave_one_out,
        )


def _run(
    extractor: FeatureExtractor,
    images: ImageSet,
    chosen: NDArray[np.intp],
    codes: NDArray[np.intp],
    groups: NDArray[Any] | None,
    *,
    n_jobs: int,
    random_state: int,
) -> _Runner:
    some = images.select(chosen)
    rows = extractor.extract(some.sources, names=some.names, on_error="skip")
    kept = chosen[rows.kept]
    with threadpool_limits(limits=1):  # threads over blocks: small systems lose time with more in each
        best = screen_representations(
            rows.blocks,
            codes[kept],
            int(codes.max()) + 1,
            groups=None if groups is None else groups[kept],
            combine=False,
            n_jobs=n_jobs,
            random_state=random_state,
        )[0]
    return _Runner(rows.blocks, kept, best.name, best.score)


def _rows(runner: _Runner, chosen: NDArray[np.intp]) -> NDArray[np.float32]:
    return runner.blocks[runner.best][np.isin(runner.chosen, chosen)]


def _seconds_per_image(
    extractor: FeatureExtractor, images: ImageSet, codes: NDArray[np.intp], random_state: int
) -> float:
    """Measured on a few pictures, whose rows are kept; next to nothing where all rows are there."""
    few = images.select(stratified_rows(codes, SPEED_IMAGES, random_state=random_state))
    rows = extractor.extract(few.sources, names=few.names, on_error="skip")
    if rows.computed:
        return max((rows.seconds - rows.loading_s) / rows.computed, CACHED_S)
    plan = extractor.plan(images.sources)
    return 1 / plan.images_per_s if plan.images_per_s else CACHED_S


def _minutes(minutes: float) -> str:
    return f"{60 * minutes:.0f} s" if minutes < 1 else f"{minutes:.0f} min"
