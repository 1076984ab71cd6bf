"""Run a search: the default, the coarse grid, then TPE in small batches."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from featx.exceptions import SearchWarning
from featx.representation import Representation
from featx.search.evaluator import COMPLETE, FAILED, UNFINISHED, Evaluator, Result
from featx.search.outcome import Results, exact, rank, ranked
from featx.search.plan import AUTO, SearchPlan, SearchProgress
from featx.search.sampling import TESTED, sample_plan
from featx.search.scoring import ROUNDING, as_good
from featx.search.sharing import POLL_S, SharedStudy
from featx.search.space import Params, group_configs, identity, unique
from featx.search.study import (
    add_result,
    count_trials,
    known_results,
    open_study,
    quiet,
    should_prune,
    signals_delayed,
    tell_result,
)

TPE_BATCH = 10
"""Trials that are drawn together, so that those of one head share their computations."""

QUICK_SHARE, GRID_SHARE, SAMPLE_SHARE = 0.4, 0.6, 0.1
"""Shares of the budget that closed forms on all representations take, with them the grids on the best one,
and a round on a sample."""

FEWEST_WRONG = 6
"""Images that the best configuration must have wrong for another one to be better beyond chance: in McNemar's
exact test six images against none have p = 0.03."""

NOT_BETTER = "it takes long, and no other configuration could be better beyond chance"
NO_BUDGET = "the budget does not suffice for it"
"""Why a head is left out."""

SMALLEST_SAMPLE = 200
"""Training rows of the smallest sample."""

HALVING, FINALISTS = 4, 3
"""One configuration in so many is left after a round on a sample; and how many are left in the end."""


def run(plan: SearchPlan) -> Results:
    """Evaluate the coarse grid and TPE's trials within the budget of a plan.

    Parameters
    ----------
    plan : SearchPlan
        What to compute.
    """
    loop = _Loop(plan)
    # Threads run different fits, with one BLAS thread in each: small fits are slower with more, and much
    # slower if other processes use the machine.
    with quiet(), threadpool_limits(limits=1), loop.alive():
        if plan.is_coarse:
            loop.compare()
        else:
            loop.evaluate([plan.grid[0]])
            loop.evaluate(plan.grid, plan.deadline)
        loop.refine()
        if not any(result.state == COMPLETE for result in loop.results.values()):
            loop.evaluate(plan.space.known_good())
        loop.join()
    loop.warn_if_short()
    loop.warn_of_failed_heads()
    with threadpool_limits(limits=1):
        confirmed = loop.confirm()
    if plan.settings.refit:
        loop.report("refit")
    return Results(
        plan, tuple(loop.results.values()), loop.study, loop.evaluator.decisions, confirmed, loop.left_out()
    )


def _worse_on_sample(complete: Sequence[Result], n_rows: int) -> dict[str, str]:
    """Return for each head that its best score on a sample is below the best of all, best first."""
    best: dict[str, Result] = {}
    for result in complete:
        best.setdefault(result.configuration.head.name, result)
    return {
        head: f"on a sample of {n_rows:,} images its best score was {result.score:.3f}, the best of all "
        f"{complete[0].score:.3f}"
        for head, result in best.items()
    }


class _Loop:
    """The state of a running search.

    Attributes
    ----------
    results : dict of str to Result
        By the identity of the configuration, in the order of evaluation.
    total : int
        Number of configurations that are planned.
    spent : float
        Estimated seconds of what was computed.
    sampled : set of str
        Heads that were compared on samples.
    reasons : dict of str to str
        Why a head need not be fitted on all rows.
    """

    def __init__(self, plan: SearchPlan) -> None:
        self.plan = plan
        self.study = open_study(plan)
        self.results = known_results(self.study, plan.space)
        self.shared = SharedStudy(self.study, plan.space) if plan.settings.storage is not None else None
        self.evaluator = Evaluator(plan, lambda scores: should_prune(self.study, scores))
        self.total = len(plan.grid) + plan.n_trials
        self.spent = 0.0
        self.sampled: set[str] = set()
        self.reasons: dict[str, str] = {}

    def compare(self) -> None:
        """Evaluate the coarse grid in an order that spends little on what cannot win.

        Heads in closed form are evaluated on all representations first. Then the best representation (of
        equal ones the simplest) gets the default points of all heads and their grids, and the second best the
        default points. What costs a large part of the budget is compared on samples first; it is left out
        where the best configuration is wrong so seldom that no other could be better beyond chance.
        """
        plan, space = self.plan, self.plan.space
        for number, points in enumerate(space.quick_points()):
            if number == 0 or self.affords(points, QUICK_SHARE * plan.budget):
                self.evaluate(points, plan.deadline if number else math.inf)
        order = self._representations()
        if not order:
            return
        grid = space.grid(order[0])
        settled = self._is_settled()
        grid = self._cheap(grid) if settled else grid
        self.reasons = dict.fromkeys(space.heads, NOT_BETTER if settled else NO_BUDGET)
        self.total = len(self.results) + len(grid) + plan.n_trials
        self.sampled = self._too_dear(grid)
        self.evaluate([one for one in grid if one["head"] not in self.sampled], plan.deadline)
        if self.sampled:
            self._race([one for one in grid if one["head"] in self.sampled], order[0])
        for own in order[1:2]:
            points = [one for one in space.known_good(own) if one["head"] not in self.sampled]
            points = self._cheap(points) if settled else points
            if self.affords(points, plan.budget):
                self.total += len(points)
                self.evaluate(points, plan.deadline)

    def affords(self, configs: Sequence[Params], limit: float) -> bool:
        """Return whether configurations without a result can be evaluated within a limit of seconds."""
        return self.spent + self.plan.seconds_of(self._new(configs)) <= limit

    def _new(self, configs: Sequence[Params]) -> list[Params]:
        return [params for params in configs if identity(params) not in self.results]

    def _representations(self) -> list[Representation]:
        """Return the representations that have results: best first, of equal ones the simplest."""
        best: dict[Representation, float] = {}
        for result in self.results.values():
            if result.state == COMPLETE:
                own = result.configuration.representation
                best[own] = max(best.get(own, -np.inf), result.score)
        return sorted(best, key=lambda own: (-best[own], own.complexity(self.plan.widths)))

    def _too_dear(self, grid: Sequence[Params]) -> set[str]:
        """Return heads whose grids do not fit into the budget on all rows; the cheapest ones fit first."""
        costs, left = self._costs(grid), self.plan.budget * GRID_SHARE - self.spent
        dear = set()
        for head in sorted(costs, key=costs.__getitem__):
            left -= costs[head]
            if left < 0:
                dear.add(head)
        return dear

    def _cheap(self, grid: Sequence[Params]) -> list[Params]:
        """Return the points of heads whose grids take no more than `SAMPLE_SHARE` of the budget."""
        costs, limit = self._costs(grid), SAMPLE_SHARE * self.plan.budget
        return [one for one in grid if costs.get(one["head"], 0.0) <= limit]

    def _costs(self, grid: Sequence[Params]) -> dict[str, float]:
        """Return the estimated seconds of each head's points that have no result yet."""
        by_head: dict[str, list[Params]] = {}
        for params in self._new(grid):
            by_head.setdefault(params["head"], []).append(params)
        return {head: self.plan.seconds_of(points) for head, points in by_head.items()}

    def _best(self) -> Result | None:
        """Return the best complete result so far."""
        return max((r for r in self.results.values() if r.state == COMPLETE), key=rank, default=None)

    def _race(self, points: Sequence[Params], representation: Representation) -> None:
        """Compare points on growing samples by successive halving; evaluate the winners on all rows.

        The best configuration so far takes part. Points that are worse than it by more than a standard error
        on the largest sample are not evaluated on all rows. Where there are too few rows for a sample, the
        default point of each head is.
        """
        plan, leader, left = self.plan, self._best(), list(points)
        if leader is not None and leader.configuration.representation == representation:
            left = [leader.params, *left]
        n_rows, found = 0, dict[str, Result]()
        while len(left) > 1 and time.monotonic() < plan.deadline:
            sample = self._sample(left, representation, n_rows)
            if sample is None:
                break
            n_rows = sample.sizes.n_train
            self.spent += sample.seconds_of(left)
            evaluator = Evaluator(sample, lambda scores: False)
            groups = evaluator.evaluate(left, "grid", deadline=plan.deadline)
            complete = ranked(result for group in groups for result in group)
            found = {identity(result.params): result for result in complete}
            self.reasons |= _worse_on_sample(complete, n_rows)
            left = [result.params for result in complete[: max(FINALISTS, len(left) // HALVING)]]
        defaults = {params["head"]: params for params in reversed(points)}
        for params in self._finalists(found, leader) if found else defaults.values():
            if self.affords([params], plan.budget) or leader is None:
                self.evaluate([params], plan.deadline if leader else math.inf)
                leader = leader or self.results.get(identity(params))

    def _sample(
        self, points: Sequence[Params], representation: Representation, more_than: int
    ) -> SearchPlan | None:
        """Return the largest sample on which points take `SAMPLE_SHARE` of the budget, or None."""
        plan, n_train = self.plan, self.plan.sizes.n_train
        best = None
        for size in (n_train // 2**k for k in range(1, 20)):
            if size < max(SMALLEST_SAMPLE, HALVING * more_than / 2):
                break
            best = sample_plan(plan, representation, size)
            if best.seconds_of(points) <= SAMPLE_SHARE * plan.budget:
                return best
        return best if not more_than else None

    def _finalists(self, found: Mapping[str, Result], leader: Result | None) -> list[Params]:
        """Return the points that are as good as the leader on the largest sample, or better; best first."""
        known = None if leader is None else found.get(identity(leader.params))
        return [
            result.params
            for result in found.values()
            if result is not known
            and (known is None or as_good(result.scores, known.scores, held_out=TESTED))
        ][:FINALISTS]

    def left_out(self) -> dict[str, str]:
        """Return the heads without a result on all rows, and why."""
        complete = {result.configuration.head.name for result in self.results.values()}
        return {head: why for head, why in self.reasons.items() if head not in complete}

    def evaluate(
        self, configs: Sequence[Params], deadline: float = float("inf"), origin: str = "grid"
    ) -> None:
        """Evaluate configurations that have no result yet, and add them to the study."""
        new = self._new(configs)
        self.spent += self.plan.seconds_of(new)
        if self.shared is not None:
            self._evaluate_shared(self.shared, new, deadline, origin)
            return
        for group in self.evaluator.evaluate(new, origin, deadline=deadline):
            for result in group:
                if result.state != UNFINISHED:
                    self.results[identity(result.params)] = result
                    with signals_delayed():
                        add_result(self.study, self.plan.space, result)
            self.report(origin)
            if time.monotonic() > deadline:
                return

    def _evaluate_shared(
        self, shared: SharedStudy, left: Sequence[Params], deadline: float, origin: str
    ) -> None:
        """Evaluate what no other process evaluates, group by group, and wait for the rest."""
        space = self.plan.space
        while left:
            claimed: list[tuple[Any, Params]] = []
            for places in group_configs(space, left):
                claimed = shared.claim([left[place] for place in places], origin)
                if claimed:
                    break
            trials = {identity(params): trial for trial, params in claimed}
            mine = [params for _, params in claimed]
            for group in self.evaluator.evaluate(mine, origin, deadline=deadline):
                for result in group:
                    shared.tell(trials[identity(result.params)], result)
                    if result.state != UNFINISHED:
                        self.results[identity(result.params)] = result
            if not claimed:
                shared.running()
                time.sleep(POLL_S)
            self._learn(shared)
            left = self._new(left)
            self.report(origin)
            if time.monotonic() > deadline:
                return

    def _learn(self, shared: SharedStudy) -> None:
        """Take over what other processes have finished."""
        for key, result in shared.results().items():
            self.results.setdefault(key, result)

    def alive(self) -> contextlib.AbstractContextManager[None]:
        """Show other processes that this one lives."""
        return contextlib.nullcontext() if self.shared is None else self.shared.alive()

    def join(self) -> None:
        """Wait for the trials of other processes, so that all select from the same results."""
        if self.shared is None:
            return
        while self.shared.running() and time.monotonic() < self.plan.deadline:
            time.sleep(POLL_S)
        self._learn(self.shared)

    def _draw(self, done: int) -> tuple[list[Any], list[Params]]:
        """Draw a batch of trials: they, and their configurations."""
        n_trials, shared = self.plan.n_trials, self.shared
        if shared is None:
            trials = [self.study.ask() for _ in range(min(TPE_BATCH, n_trials - done))]
            return trials, [self.plan.space.suggest(trial) for trial in trials]
        pairs = shared.ask(TPE_BATCH, n_trials)
        while not pairs and time.monotonic() < self.plan.deadline and shared.running():
            time.sleep(POLL_S)
            pairs = shared.ask(TPE_BATCH, n_trials)  # trials of a dead process are drawn again
        self._learn(shared)
        return [trial for trial, _ in pairs], [params for _, params in pairs]

    def refine(self) -> None:
        """Draw trials in batches; evaluate each batch by groups, and tell the study the results.

        Trials that do not fit into what is left of the budget are not evaluated. With ``n_trials="auto"``
        there are none where heads were compared on samples, and none where the best configuration is wrong so
        seldom that no other could be better beyond chance.
        """
        plan, n_trials = self.plan, self.plan.n_trials
        if plan.settings.n_trials == AUTO and (self.sampled or self._is_settled()):
            return
        done = count_trials(self.study, "tpe")
        while done < n_trials and time.monotonic() < plan.deadline:
            trials, configs = self._draw(done)
            if not trials:
                return
            new: list[Params] = []
            for params in self._new(unique(configs)):
                if self.affords([*new, params], plan.budget):
                    new.append(params)
            self.spent += plan.seconds_of(new)
            groups = self.evaluator.evaluate(new, "tpe", deadline=plan.deadline)
            found = {identity(result.params): result for group in groups for result in group}
            for trial, params in zip(trials, configs, strict=True):
                key = identity(params)
                result = found.get(key) or self.results.get(key) or Result(params, plan.space.read(params))
                if self.shared is not None:
                    self.shared.tell(trial, result)
                else:
                    tell_result(self.study, trial, result)
                if result.state != UNFINISHED:
                    self.results.setdefault(key, result)
                done += 1
            self.report("tpe")
            if len(new) < len(trials) / 2:
                return

    def _is_settled(self) -> bool:
        """Return whether the best accuracy leaves fewer wrong images than a paired test needs."""
        best = self._best()
        if best is None or self.plan.scorer.scoring != "accuracy":
            return False
        n_scored = len(np.unique(np.concatenate([test for _, test in self.plan.folds.splits])))
        return (1 - best.score) * n_scored < FEWEST_WRONG

    def confirm(self) -> Result | None:
        """Evaluate the best configurations again on all rows, if they were evaluated on some.

        Returns
        -------
        Result or None
            The first one that is then still the best; None if the best one needed no confirmation, or if a
            kernel of all rows would not fit in memory.
        """
        for result in ranked(self.results.values()):
            if not result.approximate or len(self.plan.folds.y) > self.plan.settings.stream_rows:
                return None
            confirmed = self.evaluator.evaluate_fully(
                result.params, result.origin, kernel_rows=len(self.plan.folds.y)
            )
            self.results[identity(result.params)] = confirmed
            others = (other for other in exact(self.results.values()) if other is not confirmed)
            if confirmed.state == COMPLETE and all(
                confirmed.score >= other.score - ROUNDING for other in others
            ):
                return confirmed
        return None

    def report(self, stage: str) -> None:
        """Pass the state of the search to the callback."""
        callback = self.plan.settings.callback
        if callback is None:
            return
        done = [result for result in self.results.values() if result.state != UNFINISHED]
        best = self._best()
        seconds = time.monotonic() - self.plan.start
        left = max(0, self.total - len(done))
        callback(
            SearchProgress(
                len(done),
                max(self.total, len(done)),
                best.score if best else math.nan,
                dict(best.params) if best else {},
                seconds,
                seconds / len(done) * left if done else math.nan,
                stage,
            )
        )

    def warn_if_short(self) -> None:
        """Warn if the search has compared little: no trials, or too little time."""
        settings, n_grid = self.plan.settings, len(self.plan.grid)
        if self.plan.n_trials == 0 and isinstance(settings.grid, str) and n_grid == 1:
            reason = "n_trials is 0"
        elif time.monotonic() > self.plan.deadline and len(self.results) < n_grid:
            reason = (
                f"the time budget of {settings.timeout:.3g} s ended the search after "
                f"{len(self.results)} of {self.total} configurations (a longer --budget "
                "gives it more, or timeout= in Python)"
            )
        else:
            return
        fitted = (
            "the default parameters were fitted" if len(self.results) == 1 else "the best of these was fitted"
        )
        warnings.warn(f"{reason}: {fitted}, and no others were tried.", SearchWarning, stacklevel=4)

    def warn_of_failed_heads(self) -> None:
        """Warn of heads that could not be fitted once, while others could."""
        of_head: dict[str, list[Result]] = {}
        for result in self.results.values():
            of_head.setdefault(result.configuration.head.name, []).append(result)
        failed = {name: found for name, found in of_head.items() if all(r.state == FAILED for r in found)}
        for name, found in failed.items() if len(failed) < len(of_head) else ():
            warnings.warn(
                f"the head {name} could not be fitted with any of {len(found)} configurations; first cause: "
                f"{found[0].error.rstrip('.')}. The others were compared without it.",
                SearchWarning,
                stacklevel=4,
            )
