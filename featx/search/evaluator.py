"""Evaluate configurations by cross-validation, in groups, so that what they share is computed once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.evaluation import Calibration
from featx.exceptions import SearchError
from featx.heads import vote_scores
from featx.representation import Representation
from featx.search.plan import SearchPlan
from featx.search.scoring import as_good, brier_out_of_fold, calibrate
from featx.search.space import Configuration, Params, group_configs
from featx.solvers import LINEAR, PRUNABLE, SOLVERS, Block, FitTask, ScaledBlock, ScaledFeatures, as_block

Floats = NDArray[Any]

PRUNING_ERRORS = 2.0
"""A configuration is pruned if it is this many standard errors behind the best one of its group."""

Piece = tuple[str, Callable[[], Floats], NDArray[np.bool_] | None]
"""A block of a representation: its name, how to load it, and the columns of each fold if not all."""

COMPLETE, PRUNED, FAILED, UNFINISHED = "complete", "pruned", "failed", "unfinished"


@dataclass
class Result:
    """The result of one configuration.

    Parameters
    ----------
    params : dict
        The configuration as Optuna keeps it.
    configuration : Configuration
        The same, as a value.
    scores : list of float
        Score of each fold that was evaluated.
    state : {'complete', 'pruned', 'failed', 'unfinished'}
        Unfinished: the time budget was spent.
    origin : {'grid', 'tpe'}
        Why it was tried.
    approximate : str
        How the evaluation differs from a fit on all training rows; empty if it does not.
    brier : float
        Out-of-fold Brier score after calibration, of configurations that are as good as the best; else NaN.
    error : str
        Why it failed.
    """

    params: Params
    configuration: Configuration
    scores: list[float] = field(default_factory=list)
    state: str = UNFINISHED
    origin: str = "grid"
    approximate: str = ""
    brier: float = float("nan")
    error: str = ""

    @property
    def score(self) -> float:
        """Mean over the folds that were evaluated."""
        return float(np.mean(self.scores)) if self.scores else float("nan")

    @property
    def is_exact(self) -> bool:
        """Whether it was evaluated on all folds and all training rows."""
        return self.state == COMPLETE and not self.approximate


@dataclass(frozen=True)
class Options:
    """How configurations are evaluated.

    Parameters
    ----------
    kernel_rows : int
        With more training rows SVMs are fitted on a stratified sample of this size.
    precise : bool
        Whether linear models run until their decision values have converged, not only their predictions.
    prune : bool
        Whether configurations may be stopped after some folds.
    """

    kernel_rows: int
    precise: bool = False
    prune: bool = True


class Evaluator:
    """Cross-validate configurations on the data of a plan.

    Parameters
    ----------
    plan : SearchPlan
        Features, folds, space and objective.
    prune : callable
        ``prune(scores)`` returns whether a configuration with these scores of its first folds is stopped.
    """

    def __init__(self, plan: SearchPlan, prune: Callable[[Sequence[float]], bool]) -> None:
        self.plan, self.prune = plan, prune
        self.options = Options(plan.settings.kernel_rows)
        self._blocks: dict[str, Block] = {}
        self._scaled: dict[tuple[str, str], ScaledBlock] = {}
        self._moments: dict[tuple[Representation, str], ScaledFeatures] = {}
        self._best: Result | None = None
        self._decisions: tuple[Result, Floats] | None = None

    def evaluate(
        self,
        configs: Sequence[Params],
        origin: str,
        *,
        deadline: float = float("inf"),
        options: Options | None = None,
    ) -> Iterator[list[Result]]:
        """Evaluate configurations group by group; yield the results of each group.

        Parameters
        ----------
        configs : sequence of dict
            Configurations as Optuna keeps them.
        origin : str
            Kept in the results.
        deadline : float
            Value of `time.monotonic()` after which configurations are left unfinished.
        options : Options, optional
            By default those of the plan.
        """
        space = self.plan.space
        for positions in group_configs(space, configs):
            group = [
                Result(dict(configs[place]), space.read(configs[place]), origin=origin) for place in positions
            ]
            if time.monotonic() < deadline:
                self._evaluate_group(group, deadline, options or self.options)
            yield group

    def decisions(self, params: Params) -> Floats:
        """Return out-of-fold decision values, shape (n,) or (n, n_classes); NaN for rows that never test.

        Linear models are fitted once more, until their decision values have converged.
        """
        is_linear = self.plan.space.read(params).head.solver in LINEAR
        if self._decisions is None or self._decisions[0].params != params or is_linear:
            self._best = self._decisions = None  # so that these decision values are kept
            result = self.evaluate_fully(params, "again", precise=True)
            if self._decisions is None:
                raise SearchError(f"{params} could not be fitted again: {result.error}")
        return self._decisions[1]

    def evaluate_fully(self, params: Params, origin: str, **changes: Any) -> Result:
        """Evaluate one configuration on every fold, without pruning, with some options changed."""
        options = replace(self.options, prune=False, **changes)
        return next(self.evaluate([params], origin, options=options))[0]

    def _evaluate_group(self, group: list[Result], deadline: float, options: Options) -> None:
        try:
            self._solve(group, deadline, options)
        except Exception as error:  # one configuration that fails must not stop the others
            unfinished = [result for result in group if result.state == UNFINISHED]
            if len(unfinished) == 1:
                unfinished[0].state, unfinished[0].error = FAILED, f"{type(error).__name__}: {error}"
                return
            for result in unfinished:
                result.scores.clear()
                self._evaluate_group([result], deadline, options)

    def _solve(self, group: list[Result], deadline: float, options: Options) -> None:
        plan, configuration = self.plan, group[0].configuration
        head = configuration.head
        decisions: list[dict[int, Floats]] = [{} for _ in group]
        pruned: set[int] = set()
        rows = self._rows(configuration)
        task = FitTask(
            rows,
            [result.configuration.params for result in group],
            class_weight=configuration.class_weight,
            n_jobs=plan.n_jobs,
            memory=plan.settings.memory,
            alive=lambda i: i not in pruned,
            stop=lambda: time.monotonic() > deadline,
            make=lambda params, shape: head.make(params, plan.seed, shape),
            random_state=plan.seed,
            kernel_rows=options.kernel_rows,
            precise=options.precise,
            passes=plan.passes(rows.d, len(plan.folds.splits)),
        )
        for i, fold, scores in SOLVERS[head.solver](task):
            decisions[i][fold] = vote_scores(scores) if head.votes else np.asarray(scores)
            if self._record(group[i], decisions[i], group, options):
                pruned.add(i)
        is_sampled = max(len(train) for train, _ in plan.folds.splits) > options.kernel_rows
        if head.solver == "rbf_svm" and is_sampled:
            for result in group:
                result.approximate = f"fitted on {options.kernel_rows} rows of each training part"

    def _record(
        self, result: Result, decisions: dict[int, Floats], group: Sequence[Result], options: Options
    ) -> bool:
        """Score the last fold of a configuration; return whether the configuration is pruned."""
        if not self.plan.scorer.of_probabilities:
            fold = next(reversed(decisions))
            result.scores.append(self._score(decisions[fold], fold))
        if len(decisions) == len(self.plan.folds.splits):
            self._finish(result, decisions)
        elif options.prune and result.scores and self._is_hopeless(result, group):
            result.state = PRUNED
            return True
        return False

    def _is_hopeless(self, result: Result, group: Sequence[Result]) -> bool:
        if result.configuration.head.solver not in PRUNABLE:
            return False
        return self._is_far_behind(result, group) or self.prune(result.scores)

    def _is_far_behind(self, result: Result, group: Sequence[Result]) -> bool:
        """Return whether another one of the group is better on the same folds beyond chance.

        The standard error is that of shares of independent test rows; on the same rows it is smaller.
        """
        k = len(result.scores)
        best = max(float(np.mean(other.scores[:k])) for other in group if len(other.scores) >= k)
        if not 0 <= result.score <= best <= 1:
            return False
        n = sum(len(self.plan.folds.splits[fold][1]) for fold in range(k))
        return bool(best - result.score > PRUNING_ERRORS * np.sqrt(best * (1 - best) / n) + 1 / n)

    def _finish(self, result: Result, decisions: dict[int, Floats]) -> None:
        folds = self.plan.folds
        decision = self._gather(decisions)
        if self.plan.scorer.of_probabilities:
            calibration = calibrate(decision, folds, result.configuration.class_weight)
            result.scores = [
                self._score(decisions[fold], fold, calibration) for fold in range(len(folds.splits))
            ]
        if not np.isfinite(result.score):
            result.state, result.error = FAILED, "the score is not a number"
            return
        if self._best is None or self._is_as_good(result, self._best):
            self._compare_probabilities(result, decision)
        decisions.clear()
        result.state = COMPLETE  # last, when all of it has succeeded

    def _is_as_good(self, result: Result, best: Result) -> bool:
        of_probabilities = self.plan.scorer.of_probabilities
        return as_good(result.scores, best.scores, held_out=self.plan.held_out, exact=of_probabilities)

    def _compare_probabilities(self, result: Result, decision: Floats) -> None:
        """Compute the Brier score; keep the decision values of the best one."""
        result.brier = brier_out_of_fold(decision, self.plan.folds, self.plan.scorer.weighting)
        if self._decisions is None or result.brier < self._decisions[0].brier:
            self._decisions = (result, decision)
        if self._best is None or result.score > self._best.score:
            self._best = result

    def _score(self, decision: Floats, fold: int, calibration: Calibration | None = None) -> float:
        folds, test = self.plan.folds, self.plan.folds.splits[fold][1]
        weight = None if folds.weight is None else folds.weight[test]
        return self.plan.scorer(decision, folds.y[test], calibration=calibration, weight=weight)

    def _gather(self, decisions: Mapping[int, Floats]) -> Floats:
        """Return decision values of all rows: means over repeats, NaN for rows that never test."""
        folds = self.plan.folds
        shape = (len(folds.y),) if folds.n_classes == 2 else (len(folds.y), folds.n_classes)
        total, count = np.zeros(shape), np.zeros(len(folds.y))
        for fold, decision in decisions.items():
            test = folds.splits[fold][1]
            total[test] += decision
            count[test] += 1
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(total / (count if total.ndim == 1 else count[:, None]))

    def _pieces(self, representation: Representation) -> list[Piece]:
        """Return the blocks of a representation; picked features are one block, of all folds' columns."""
        plan = self.plan
        if representation.picked is None:
            load: Callable[[str], Any] = plan.blocks.source if plan.streamed else plan.blocks.__getitem__
            return [(name, partial(load, name), None) for name in representation.blocks]
        own = plan.picked.of_folds(representation.picked)
        union = np.unique(np.concatenate(own))
        columns = np.column_stack([np.isin(union, one) for one in own])
        return [(str(representation), partial(plan.picked.load, union), columns)]

    def _rows(self, configuration: Configuration) -> ScaledFeatures:
        representation, scaling = configuration.representation, configuration.scaling
        pieces = self._pieces(representation)
        memory = self.plan.settings.memory // 2
        parts = [self._scaled_block(piece, scaling) for piece in pieces]
        names = [name for name, _, _ in pieces]
        key = (representation, scaling)
        rows = self._moments.pop(key, None) or ScaledFeatures(parts, scaling, self.plan.folds, memory=memory)
        if rows.by_moments:
            self._moments[key] = rows
        self._release(memory, {key, *names, *((name, scaling) for name in names)})
        return rows

    def _scaled_block(self, piece: Piece, scaling: str) -> ScaledBlock:
        """Return a scaled block; it is kept, since representations share blocks and heads share all of it."""
        name, load, columns = piece
        block = self._blocks.pop(name, None) or as_block(load())
        self._blocks[name] = block  # the most recently used is the last
        key = (name, scaling)
        scaled = self._scaled.pop(key, None) or ScaledBlock(block, scaling, self.plan.folds, kept=columns)
        self._scaled[key] = scaled
        return scaled

    def _release(self, memory: int, needed: set[Any]) -> None:
        """Delete the least recently used matrices while all of them take more than `memory`."""
        caches: tuple[dict[Any, Any], ...] = (self._moments, self._scaled, self._blocks)
        for cache in caches:
            for key in [key for key in cache if key not in needed]:
                if sum(own.nbytes for kept in caches for own in kept.values()) <= memory:
                    return
                del cache[key]
