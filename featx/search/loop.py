"""Run a search: the default, the coarse grid, then TPE in small batches."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from featx.exceptions import SearchWarning
from featx.representation import Representation
from featx.search.evaluator import COMPLETE, FAILED, UNFINISHED, Evaluator, Result
from featx.search.outcome import Results, exact, rank, ranked
from featx.search.plan import SearchPlan, SearchProgress
from featx.search.scoring import ROUNDING
from featx.search.space import Params, identity, unique
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


def run(plan: SearchPlan) -> Results:
    """Evaluate the default, the grid and TPE's trials within the budget of a plan.

    Parameters
    ----------
    plan : SearchPlan
        What to compute.
    """
    loop = _Loop(plan)
    # Threads run different fits, with one BLAS thread in each: small fits are slower with more, and much
    # slower if other processes use the machine.
    with quiet(), threadpool_limits(limits=1):
        loop.evaluate([plan.grid[0]], "grid")
        for stage in loop.stages():
            loop.evaluate(stage, "grid", plan.deadline)
        loop.refine()
        if not any(result.state == COMPLETE for result in loop.results.values()):
            loop.evaluate(plan.space.known_good(), "grid")
    loop.warn_if_short()
    loop.warn_of_failed_heads()
    confirmed = loop.confirm()
    if plan.settings.refit:
        loop.report("refit")
    return Results(plan, tuple(loop.results.values()), loop.study, loop.evaluator.decisions, confirmed)


class _Loop:
    """The state of a running search.

    Attributes
    ----------
    results : dict of str to Result
        By the identity of the configuration, in the order of evaluation.
    total : int
        Number of configurations that are planned.
    """

    def __init__(self, plan: SearchPlan) -> None:
        self.plan = plan
        self.study = open_study(plan)
        self.results = known_results(self.study, plan.space)
        self.evaluator = Evaluator(plan, lambda scores: should_prune(self.study, scores))
        self.total = len(plan.grid) + plan.settings.n_trials
        if plan.is_staged:
            self.total += len(plan.space.quick_points()) + len(plan.space.heads)

    def stages(self) -> Iterator[Sequence[Params]]:
        """Yield the grid in an order that spends little time on bad representations.

        Heads in closed form are evaluated on all representations first. Then the best representation (of
        equal ones the simplest) gets the whole grid, and the second best the default points.
        """
        plan, space = self.plan, self.plan.space
        if not plan.is_staged:
            yield plan.grid
            return
        yield space.quick_points()
        best: dict[Representation, float] = {}
        for result in self.results.values():
            if result.state == COMPLETE:
                own = result.configuration.representation
                best[own] = max(best.get(own, -np.inf), result.score)
        order = sorted(best, key=lambda own: (-best[own], own.complexity(plan.widths)))
        grid = space.grid(order[0])
        self.total += len(grid) - len(plan.grid)  # the plan had the grid of the first representation
        yield grid
        for own in order[1:2]:
            yield space.known_good(own)

    def evaluate(self, configs: Sequence[Params], origin: str, deadline: float = float("inf")) -> None:
        """Evaluate configurations that have no result yet, and add them to the study."""
        new = [params for params in configs if identity(params) not in self.results]
        for group in self.evaluator.evaluate(new, origin, deadline=deadline):
            for result in group:
                if result.state != UNFINISHED:
                    self.results[identity(result.params)] = result
                    with signals_delayed():
                        add_result(self.study, self.plan.space, result)
            self.report(origin)
            if time.monotonic() > deadline:
                return

    def refine(self) -> None:
        """Draw trials in batches; evaluate each batch by groups, and tell the study the results."""
        n_trials, deadline = self.plan.settings.n_trials, self.plan.deadline
        done = count_trials(self.study, "tpe")
        while done < n_trials and time.monotonic() < deadline:
            with signals_delayed():
                trials = [self.study.ask() for _ in range(min(TPE_BATCH, n_trials - done))]
                configs = [self.plan.space.suggest(trial) for trial in trials]
            new = [params for params in unique(configs) if identity(params) not in self.results]
            groups = self.evaluator.evaluate(new, "tpe", deadline=deadline)
            found = {identity(result.params): result for group in groups for result in group}
            for trial, params in zip(trials, configs, strict=True):
                key = identity(params)
                result = found.get(key) or self.results[key]
                with signals_delayed():
                    tell_result(self.study, trial, result)
                if result.state != UNFINISHED:
                    self.results.setdefault(key, result)
                done += 1
            self.report("tpe")

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
        best = max((result for result in done if result.state == COMPLETE), key=rank, default=None)
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
        if settings.n_trials == 0 and isinstance(settings.grid, str) and n_grid == 1:
            reason = "n_trials is 0"
        elif time.monotonic() > self.plan.deadline and len(self.results) < n_grid:
            reason = (
                f"the time budget of {settings.timeout:g} s ended the search after "
                f"{len(self.results)} of {self.total} configurations (timeout= or --timeout gives it more)"
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
