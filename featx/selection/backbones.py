"""Compare backbones by successive halving on a few hundred images of the training part.

The cost of each candidate is measured on a few images and reported before it is paid. Candidates are ranked
by the leave-one-out accuracy of ridge regression on their best representation. Rounds add images to those of
earlier rounds; no image is computed twice.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from featx.advice import BackboneScore, ProbeResult, h_score, log_me, probe
from featx.backbones import is_model_file, local_names
from featx.backbones.state import STATE
from featx.evaluation import Metric
from featx.exceptions import FeatxError, UsageError
from featx.extractor import FeatureExtractor
from featx.features import FeatureBlocks
from featx.images import ImageSet, read_digests
from featx.records import Record
from featx.representation import is_usual
from featx.search.screening import screen_representations
from featx.selection.affordable import affordable, fetch, operations, too_slow
from featx.selection.candidates import choose, widest
from featx.selection.halving import HalvingPlan, plan_halving, survivors
from featx.selection.networks import Networks, side_by_side
from featx.spec import RESIZES
from featx.splits import divisible, stratified_sample
from featx.stores import converted_networks
from featx.stores.base import FeatureStore

AUTO = "auto"

COMPARED_IMAGES = 500
"""Largest number of images for a candidate. A thousand images rank them no better, to a point or two, and the
comparison should cost no more than the fit itself."""

SPEED_IMAGES = 32
"""Images that the speed of a candidate is measured on; their features are cached for the first round."""

COMPARISON = 1
"""Version of the method that compares. Results of another version are not reused."""

CACHED_S = 1e-6
"""Seconds an image where all features are cached."""


@dataclass(frozen=True)
class BackboneComparison(Record):
    """Result of a comparison of backbones.

    Parameters
    ----------
    scores : tuple of BackboneScore
        The candidates, best first, each with the time that the whole set would take.
    winners : tuple of str
        The best backbone; or the two best, if their blocks side by side are better.
    together : Metric or None
        Accuracy of the two best side by side minus that of the best alone, paired. None with one candidate.
    plan : HalvingPlan
        Rounds, and candidates that were left out.
    over_last : Metric or None
        Accuracy of the best layer of the best backbone minus that of its last features, paired; None if the
        last features were not compared.
    """

    scores: tuple[BackboneScore, ...]
    winners: tuple[str, ...]
    together: Metric | None
    plan: HalvingPlan
    over_last: Metric | None = None

    def sentences(self) -> list[str]:
        """Describe the result."""
        said = [
            f"{one.name}: {one.accuracy.value:.3f} [{one.accuracy.low:.3f}, {one.accuracy.high:.3f}] on "
            f"{one.n} images, {_minutes(one.minutes)} for all"
            for one in self.scores
        ]
        if self.together is not None:
            gain = f"{100 * self.together.value:+.1f} points"
            interval = f"[{100 * self.together.low:+.1f}, {100 * self.together.high:+.1f}]"
            verdict = "both are used" if len(self.winners) > 1 else "the best is used alone"
            said.append(f"the two best side by side: {gain} {interval}, {verdict}")
        return said + [f"{name} left out: {why}" for name, why in self.plan.left_out.items()]

    def within(self, seconds: float) -> BackboneComparison:
        """Return the same with fewer or cheaper winners, if the features of all images take too long.

        Parameters
        ----------
        seconds : float
            For these features. The backbone that takes least is a winner whatever it takes.
        """
        cost = {one.name: 60 * one.minutes for one in self.scores}
        ranked = [self.winners, *((one.name,) for one in self.scores)]
        cheapest = (min(cost, key=lambda name: cost[name]),)
        winners = next((w for w in ranked if sum(cost[name] for name in w) <= seconds), cheapest)
        if winners == self.winners:
            return self
        reason = (
            f"its features of all images would not fit the {seconds:.0f} s that the budget leaves for them"
        )
        late = {name: reason for name in self.winners if name not in winners}
        plan = replace(self.plan, left_out={**self.plan.left_out, **late})
        return replace(self, winners=winners, plan=plan)


@dataclass(frozen=True)
class _Candidate:
    """Features of a candidate for the images of a round."""

    blocks: FeatureBlocks
    chosen: NDArray[np.intp]
    best: str
    leave_one_out: float


def backbone_names(backbone: str | Sequence[str]) -> tuple[str, ...]:
    """Return the candidates: one name, or several; ``"auto"`` stands for all whose weights are here.

    Raises
    ------
    UsageError
        If there is none.
    """
    given = (backbone,) if isinstance(backbone, str) else tuple(backbone)
    every = [local_names() if name == AUTO else (name,) for name in given]
    names = tuple(dict.fromkeys(name for some in every for name in some))
    if not names:
        raise UsageError(
            f"backbone {backbone!r} names no network; give a timm name, or download weights first "
            "(featx download NAME)."
        )
    return names


def planned_names(
    names: Sequence[str], store: FeatureStore, *, n_all: int, budget_s: float | str, optional: bool
) -> tuple[str, ...]:
    """Return the backbones that `select_networks` would compare, of those that are on this machine.

    Parameters
    ----------
    names : sequence of str
        Backbones.
    store : FeatureStore
        Its notes have the operations of networks.
    n_all : int
        Images of the whole set.
    budget_s, optional
        As for `select_networks`.
    """
    if optional:
        names = [name for name in names if name in local_names() or is_model_file(name)]
    if budget_s == AUTO and len(names) > 1:
        work = operations(names, store)
        return affordable(work, n_all=n_all, n_images=n_all, most=COMPARED_IMAGES).names
    return tuple(names)


def refuse_checkpoint(names: Sequence[str], checkpoint: Any) -> None:
    """Refuse a file of weights for several networks."""
    if len(names) > 1 and checkpoint is not None:
        raise UsageError(
            f"checkpoint holds the weights of one network, but the backbones are {', '.join(names)}; name "
            "the one that it belongs to."
        )


def select_networks(
    names: Sequence[str],
    training: ImageSet,
    *,
    recipe: Mapping[str, Any],
    machine: Mapping[str, Any],
    n_all: int,
    budget_s: float | str = math.inf,
    limit_s: float = math.inf,
    extraction_s: Callable[[], float] = lambda: math.inf,
    optional: bool = False,
    say: Callable[[str], None] | None = None,
    n_jobs: int = 1,
    random_state: int = 0,
) -> tuple[Networks, BackboneComparison | None]:
    """Choose backbones and the representations that are extracted for all images.

    Parameters
    ----------
    names : sequence of str
        Backbones to compare.
    training : ImageSet
        Training part with labels; nothing else is looked at.
    recipe, machine : mapping
        Parameters of `FeatureExtractor`: those that features depend on (cut, pool and resize may be
        ``"auto"``), and the others.
    n_all : int
        Images of the whole set, for its cost.
    budget_s : float or "auto"
        Seconds for the comparison. With ``"auto"`` it costs no more than the features of the default network
        for all images (see `affordable`).
    limit_s : float
        Most seconds for the comparison, whatever `budget_s` is; the result is then not stored.
    extraction_s : callable, optional
        Called after the comparison; returns the seconds that the features of all images may take.
    optional : bool
        Whether backbones that cannot be used are left out; otherwise they are an error.
    say, n_jobs, random_state
        As for `compare_backbones`.

    Returns
    -------
    Networks
        Extractors of all representations that the search may choose.
    BackboneComparison or None
        None if nothing was compared.
    """
    codes = np.unique(np.asarray(training.labels, dtype=str), return_inverse=True)[1]
    say = say or (lambda message: None)
    comparison, most, left_out = None, COMPARED_IMAGES, dict[str, str]()
    work: Mapping[str, float] | None = None
    limit = limit_s if isinstance(budget_s, str) else min(budget_s, limit_s)
    if len(names) > 1 and budget_s == AUTO:
        work = operations(names, machine["store"])
        found = affordable(work, n_all=n_all, n_images=len(training), most=COMPARED_IMAGES)
        names, most, left_out = found.names, found.images, found.left_out
    compared = {**recipe, "resize": "crop" if recipe["resize"] == AUTO else recipe["resize"]}
    seconds, has_budget = 0.0, math.isfinite(limit_s)
    if has_budget or (optional and len(names) > 1 and math.isfinite(limit)):
        began = time.monotonic()
        first = widest({**compared, "backbone": names[0]}, machine, training.sources)
        seconds = _seconds_per_image(first, training, codes, random_state)
        loading = max(time.monotonic() - began - SPEED_IMAGES * seconds, 0.0)
        left_out |= too_slow(names, machine["store"], seconds, loading, len(training), limit)
    if optional and len(names) > 1:
        wanted = [name for name in names if name not in left_out]
        left_out |= fetch(wanted, say, allowed=machine["allow_download"] is not False)
    names = [name for name in names if name not in left_out]
    if len(names) > 1:
        extractors = {}
        for name in names:
            try:
                extractors[name] = widest({**compared, "backbone": name}, machine, training.sources)
            except FeatxError as error:
                if not optional or name == names[0]:
                    raise
                left_out[name] = str(error).rstrip(".")
        compare = compare_backbones if has_budget else _remembered
        comparison = compare(
            extractors,
            training,
            codes,
            groups=training.groups,
            n_all=n_all,
            budget_s=limit,
            most=most,
            work=work,
            say=say,
            n_jobs=n_jobs,
            random_state=random_state,
        )
        left_out = {**left_out, **comparison.plan.left_out}
        comparison = replace(comparison, plan=replace(comparison.plan, left_out=left_out))
        comparison = comparison.within(extraction_s())
        names = comparison.winners
    if recipe["resize"] == AUTO and len(RESIZES) * seconds * n_all > extraction_s():
        say("other resizings than crop are not tried: the budget leaves too little time for their features")
        recipe = compared
    wide = [widest({**recipe, "backbone": name}, machine, training.sources) for name in names]
    chosen = [
        choose(one, training, codes, machine=machine, random_state=random_state, n_jobs=n_jobs)
        for one in wide
    ]
    return side_by_side(chosen), comparison


def _remembered(
    extractors: Mapping[str, FeatureExtractor], images: ImageSet, codes: NDArray[np.intp], **options: Any
) -> BackboneComparison:
    """`compare_backbones`, with a stored result for the same images, networks and limits.

    So the same fit chooses the same networks, however busy the machine is.
    """
    most, seed = options["most"], options["random_state"]
    chosen = stratified_sample(codes, most, seed, per_class=2, groups=images.groups)
    sample = images.select(chosen)
    ids = read_digests(sample.sources)[0] if sample.ids is None else list(map(bytes, sample.ids))
    inputs = [
        (COMPARISON, most, options["n_all"], len(images), seed),
        None if math.isinf(options["budget_s"]) else options["budget_s"],
        {name: sorted(spec.key for spec in one.specs_.values()) for name, one in extractors.items()},
        [digest and digest.hex() for digest in ids],
        codes[chosen].tolist(),
        None if sample.groups is None else list(map(str, sample.groups)),
    ]
    name = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
    store = next(iter(extractors.values())).store_
    known = store.recall("networks", name)
    if known is not None:
        return BackboneComparison.from_dict(known)
    found = compare_backbones(extractors, images, codes, **options)
    store.remember("networks", name, found.to_dict())
    return found


def compare_backbones(
    extractors: Mapping[str, FeatureExtractor],
    images: ImageSet,
    codes: NDArray[np.intp],
    *,
    groups: NDArray[Any] | None = None,
    n_all: int | None = None,
    always: str | None = None,
    budget_s: float = math.inf,
    most: int = COMPARED_IMAGES,
    work: Mapping[str, float] | None = None,
    say: Callable[[str], None] | None = None,
    n_jobs: int = 1,
    random_state: int = 0,
) -> BackboneComparison:
    """Compare backbones by successive halving.

    Parameters
    ----------
    extractors : mapping of str to FeatureExtractor
        For each candidate's name a fitted extractor of the representations that it is compared by.
    images : ImageSet
        The training part.
    codes : array of shape (n,), int
        Its class indices.
    groups : array of shape (n,), optional
        Images of a group are left out together.
    n_all : int, optional
        Images of the whole set, for its cost.
    always : str, optional
        A candidate that takes part in every round, and with which the others are compared (default: the
        best).
    budget_s : float
        Seconds for the comparison. If they do not suffice, the most expensive candidates are left out.
    most : int
        Most images for a candidate.
    work : mapping of str to float, optional
        Cost of each candidate. Of equally good ones the cheaper is better. By default the measured time.
    say : callable, optional
        Called with messages about the cost, before it is paid.
    n_jobs, random_state : int
        Threads and seed.

    Returns
    -------
    BackboneComparison
    """
    began = time.monotonic()
    total = n_all or len(images)
    costs = {}
    for name, own in extractors.items():
        costs[name] = _seconds_per_image(own, images, codes, random_state)
        _release(own)
    if say is not None:
        said = "; ".join(f"{name} {_minutes(cost * total / 60)}" for name, cost in costs.items())
        say(f"all {total:,} images would take: {said}")
    rivals = {name: cost for name, cost in costs.items() if name != always}
    plan = plan_halving(
        rivals,
        n_images=len(images),
        budget_s=max(budget_s - (time.monotonic() - began), 0),
        most=most,
    )
    if say is not None:
        say(f"{len(plan.candidates)} backbones on at most {plan.rounds[-1][0]} images: {plan.seconds:.0f} s")
    left, found = list(plan.candidates), dict[str, _Candidate]()
    for size, keep in plan.rounds:
        chosen = stratified_sample(codes, size, random_state, per_class=2, groups=groups)
        for name in dict.fromkeys([*left, *([always] if always else [])]):
            found[name] = _extract(
                extractors[name], images, chosen, codes, groups, n_jobs=n_jobs, random_state=random_state
            )
            _release(extractors[name])
        last = list(left)
        left = survivors({name: found[name].leave_one_out for name in left}, keep, work or costs)
    order = survivors({name: found[name].leave_one_out for name in last}, len(last), work or costs)
    scorer = _Scorer(codes, groups, n_jobs, random_state)
    together, both = None, False
    if len(order) > 1:
        two, best = scorer.together(found[order[0]], found[order[1]])
        together, both = two.minus(best), two.is_better_than(best)
    current = always or order[0]
    scores = [
        scorer.score(name, one, found[current], costs[name] * total / 60) for name, one in found.items()
    ]
    scores.sort(key=lambda one: (-one.n, -one.leave_one_out))  # fewer images: dropped in an earlier round
    winners = tuple(order[: 2 if both else 1])
    return BackboneComparison(tuple(scores), winners, together, plan, scorer.over_last(found[order[0]]))


def _release(extractor: FeatureExtractor) -> None:
    """Free the compiled network, some 200 MB, if it opens again in a moment from its converted file."""
    if converted_networks(extractor.store_)[1]:
        STATE.release_networks()


@dataclass(frozen=True)
class _Scorer:
    """Linear probes of the same images, so that candidates are compared image by image."""

    codes: NDArray[np.intp]
    groups: NDArray[Any] | None
    n_jobs: int
    random_state: int

    def __call__(self, rows: FeatureBlocks | NDArray[np.float32], chosen: NDArray[np.intp]) -> ProbeResult:
        own = None if self.groups is None else self.groups[chosen]
        return probe(rows, self.codes[chosen], groups=own, n_jobs=self.n_jobs, random_state=self.random_state)

    def together(self, first: _Candidate, second: _Candidate) -> tuple[ProbeResult, ProbeResult]:
        """Probe both side by side, and the first alone."""
        shared = np.intersect1d(first.chosen, second.chosen)
        a, b = _rows(first, shared), _rows(second, shared)
        both = FeatureBlocks({"a": a, "b": b}, len(shared))
        return self(both, shared), self(a, shared)

    def over_last(self, one: _Candidate) -> Metric | None:
        """Return the accuracy of the best layer minus that of the last features."""
        usual = next((block for block in one.blocks if is_usual(block)), None)
        if usual is None:
            return None
        return self(_rows(one, one.chosen), one.chosen).minus(self(one.blocks[usual], one.chosen))

    def score(self, name: str, candidate: _Candidate, current: _Candidate, minutes: float) -> BackboneScore:
        shared = np.intersect1d(candidate.chosen, current.chosen)
        own = self(_rows(candidate, shared), shared)
        usual = next((b for b in candidate.blocks if is_usual(b)), candidate.best)
        rows, y = candidate.blocks[usual], self.codes[candidate.chosen]
        return BackboneScore(
            name,
            own.accuracy,
            own.minus(self(_rows(current, shared), shared)),
            log_me(rows, y),
            h_score(rows, y),
            len(shared),
            minutes,
            candidate.leave_one_out,
        )


def _extract(
    extractor: FeatureExtractor,
    images: ImageSet,
    chosen: NDArray[np.intp],
    codes: NDArray[np.intp],
    groups: NDArray[Any] | None,
    *,
    n_jobs: int,
    random_state: int,
) -> _Candidate:
    some = images.select(chosen)
    rows = extractor.extract(some.sources, names=some.names, on_error="skip")
    kept = chosen[rows.kept]
    several = np.flatnonzero(divisible(codes[kept], None if groups is None else groups[kept]))
    kept, blocks = kept[several], rows.blocks.take(several)
    with threadpool_limits(limits=1):  # threads work on blocks; small systems are slower with more threads
        best = screen_representations(
            blocks,
            codes[kept],
            int(codes.max()) + 1,
            groups=None if groups is None else groups[kept],
            combine=False,
            n_jobs=n_jobs,
            random_state=random_state,
        )[0]
    return _Candidate(blocks, kept, best.name, best.score)


def _rows(candidate: _Candidate, chosen: NDArray[np.intp]) -> NDArray[np.float32]:
    return candidate.blocks[candidate.best][np.isin(candidate.chosen, chosen)]


def _seconds_per_image(
    extractor: FeatureExtractor, images: ImageSet, codes: NDArray[np.intp], random_state: int
) -> float:
    """Return the time of an image, measured on a few; `CACHED_S` where all features are cached."""
    few = images.select(stratified_sample(codes, SPEED_IMAGES, random_state, per_class=2))
    rows = extractor.extract(few.sources, names=few.names, on_error="skip")
    if rows.computed:
        return max((rows.seconds - rows.loading_s) / rows.computed, CACHED_S)
    plan = extractor.plan(images.sources)
    return 1 / plan.images_per_s if plan.images_per_s else CACHED_S


def _minutes(minutes: float) -> str:
    return f"{60 * minutes:.0f} s" if minutes < 1 else f"{minutes:.0f} min"
