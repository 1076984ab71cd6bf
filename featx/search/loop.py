"""One search from start to end: default, coarse grid, TPE in small batches, the winner."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from joblib import effective_n_jobs
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from featx.exceptions import SearchError, SearchWarning, UsageError
from featx.features import FeatureBlocks
from featx.search import study as studies
from featx.search.evaluator import COMPLETE, FAILED, ROUNDING, UNFINISHED, Evaluator, Piece, Result
from featx.search.representations import SIDE_BY_SIDE, USUAL, pick_relevant
from featx.search.scoring import Scorer
from featx.search.space import RELEVANT, Config, Space, group_configs, identity, unique
from featx.solvers import Folds

Floats = NDArray[Any]

TPE_BATCH = 10
"""Trials that are drawn together, so that those of one head share their computation."""

PRUNE_AFTER = 8
"""Completed configurations before a fold's score can prune another."""


@dataclass(frozen=True)
class SearchProgress:
    """Where a search stands; passed to its callback after every batch.

    Parameters
    ----------
    done, total : int
        Configurations evaluated, and planned.
    best_score : float
        Best mean score so far.
    best_params : dict
        Its configuration.
    seconds : float
        Since the search began.
    eta_s : float
        Seconds left at this pace (NaN at first).
    stage : {'default', 'grid', 'tpe', 'refit'}
        What is being done.
    """

    done: int
    total: int
    best_score: float
    best_params: dict[str, Any]
    seconds: float
    eta_s: float
    stage: str


class Search:
    """A search under way.

    Parameters
    ----------
    settings : HeadSearchCV
        Its parameters.
    blocks : FeatureBlocks
        Rows.
    folds : Folds
        Splits, targets, weights.
    space : Space
        What may be chosen.
    seed : int
        Of sampler and heads.
    begun : float
        `time.monotonic()` at which the time budget began.
    streamed : bool
        Whether blocks are read chunk by chunk whenever they are needed.
    """

    def __init__(
        self,
        settings: Any,
        blocks: FeatureBlocks,
        folds: Folds,
        space: Space,
        seed: int,
        begun: float,
        *,
        streamed: bool = False,
    ) -> None:
        self.settings, self.blocks, self.folds, self.space = settings, blocks, folds, space
        self.seed, self.begun, self.streamed = seed, begun, streamed
        self.deadline = float("inf") if settings.timeout is None else begun + settings.timeout
        self.scorer = Scorer(settings.scoring, settings.classes_)
        self.study = studies.open_study(
            settings.storage,
            settings.study_name,
            space_key=space.key,
            data_key=self._data_key(),
            random_state=seed,
            pruner=_pruner(settings.pruner),
        )
        self.results = studies.known_results(self.study)
        self._picked: dict[int, list[NDArray[np.intp]]] = {}
        self.evaluator = Evaluator(
            self._pieces_of,
            space,
            folds,
            self.scorer,
            prune=self._hopeless,
            options={
                "random_state": seed,
                "n_jobs": n_threads(settings.n_jobs),
                "memory": settings.memory,
                "kernel_rows": settings.kernel_rows,
            },
        )
        self.grid = self._grid()
        self.total = len(self.grid) + settings.n_trials
        if len(self.grid) > 1 and isinstance(settings.grid, str) and len(space.representations) > 1:
            self.total += len(space.quick_points()) + len(space.heads)

    def run(self) -> None:
        """Evaluate default, grid and TPE trials as far as the budget goes."""
        # Threads over fits, one BLAS thread in each: small fits lose time with more, and collapse when
        # others use the machine.
        with studies.quiet(), threadpool_limits(limits=1):
            default = self.grid[0]
            self._evaluate([default], "grid")
            for stage in self._stages():
                self._evaluate(stage, "grid", self.deadline)
            self._refine()
        if not any(result.state == COMPLETE for result in self.results.values()):
            self._evaluate(self.space.known_good(), "grid")
        self._say_if_short()

    def winner(self) -> Result:
        """Return the surest of the complete results that cannot be told from the best one.

        With `one_se` that is the best of the simplest representation within a standard error.

        Raises
        ------
        SearchError
            If there is none, with the first cause.
        """
        for result in self._ranked():
            if not result.approximate:
                surest = self._surest(self._exact())
                return self._simplest(surest) if self.settings.one_se else surest
            if len(self.folds.y) > self.settings.stream_rows:  # a kernel of all rows would not fit
                return result
            confirmed = self._confirm(result)
            if confirmed.state == COMPLETE and all(
                confirmed.score >= r.score - ROUNDING for r in self._exact() if r is not confirmed
            ):
                return confirmed
        causes = [r.error for r in self.results.values() if r.state == FAILED]
        raise SearchError(
            f"none of {len(self.results)} configurations could be fitted; first cause: "
            f"{causes[0] if causes else 'time was up before one was done'}."
        )

    def best_of_each(self) -> dict[str, Result]:
        """Each representation's surest configuration, by its name; the best score's representation first."""
        of_each: dict[str, list[Result]] = {}
        for result in self._exact():
            of_each.setdefault(self.space.read(result.config).representation, []).append(result)
        return {name: self._surest(ranked) for name, ranked in of_each.items()}

    def representation(self, name: str) -> tuple[tuple[str, ...], NDArray[np.intp] | None]:
        """Blocks of a representation, in order, and the columns of these that it keeps, if not all.

        Features are picked on all rows here, as the winner is fitted on all.
        """
        if not name.startswith(RELEVANT):
            return tuple(name.split(SIDE_BY_SIDE)), None
        count = int(name.removeprefix(RELEVANT))
        columns = self._relevant(count)[-1]
        widths = np.array([self.blocks.width(block) for block in self.blocks])
        starts = np.cumsum(widths) - widths
        inside = [
            columns[(columns >= a) & (columns < a + w)] - a for a, w in zip(starts, widths, strict=True)
        ]
        used = [number for number, own in enumerate(inside) if len(own)]
        offsets = np.cumsum(widths[used]) - widths[used]
        kept = np.concatenate([inside[number] + offset for number, offset in zip(used, offsets, strict=True)])
        names = list(self.blocks)
        return tuple(names[number] for number in used), kept

    def width(self, name: str) -> int:
        """Columns that a representation is made from: what using it costs."""
        names = self.blocks if name.startswith(RELEVANT) else name.split(SIDE_BY_SIDE)
        return sum(self.blocks.width(block) for block in names)

    def table(self) -> dict[str, Any]:
        """`cv_results_`: one entry for each configuration."""
        rows = list(self.results.values())
        n_splits = len(self.folds.splits)
        scores = np.full((len(rows), n_splits), np.nan)
        for row, result in enumerate(rows):
            scores[row, : len(result.scores)] = result.scores
        mean = np.array([result.score if result.state == COMPLETE else np.nan for result in rows])
        order = np.argsort(-np.nan_to_num(mean, nan=-np.inf), kind="stable")
        rank = np.empty(len(rows), np.int32)
        rank[order] = np.arange(1, len(rows) + 1)
        table: dict[str, Any] = {
            "params": [dict(result.config) for result in rows],
            "mean_test_score": mean,
            "std_test_score": np.array([np.std(r.scores) if r.state == COMPLETE else np.nan for r in rows]),
            "rank_test_score": rank,
            "origin": np.array([result.origin for result in rows]),
            "state": np.array([result.state for result in rows]),
            "approximate": np.array([result.approximate for result in rows]),
            "brier": np.array([result.brier for result in rows]),
        }
        return table | {f"split{fold}_test_score": scores[:, fold] for fold in range(n_splits)}

    def report(self, stage: str) -> None:
        """Tell the callback where the search stands."""
        if self.settings.callback is None:
            return
        done = [result for result in self.results.values() if result.state != UNFINISHED]
        complete = [result for result in done if result.state == COMPLETE]
        best = max(complete, key=self._rank, default=None)
        seconds = time.monotonic() - self.begun
        left = max(0, self.total - len(done))
        self.settings.callback(
            SearchProgress(
                len(done),
                max(self.total, len(done)),
                best.score if best else float("nan"),
                dict(best.config) if best else {},
                seconds,
                seconds / len(done) * left if done else float("nan"),
                stage,
            )
        )

    def _pieces_of(self, name: str) -> list[Piece]:
        """Blocks of a representation; picked features are one block, of the columns that any fold picked."""
        if not name.startswith(RELEVANT):
            read: Callable[[str], Any] = self.blocks.source if self.streamed else self.blocks.__getitem__
            return [(block, partial(read, block), None) for block in name.split(SIDE_BY_SIDE)]
        own = self._relevant(int(name.removeprefix(RELEVANT)))[:-1]
        union = np.unique(np.concatenate(own))
        kept = np.column_stack([np.isin(union, one) for one in own])
        return [(name, partial(self._columns, union), kept)]

    def _relevant(self, count: int) -> list[NDArray[np.intp]]:
        """Each fold's picked columns, counted over all blocks, and last those picked on all rows."""
        if not self._picked:
            counts = [
                int(n.removeprefix(RELEVANT)) for n in self.space.representations if n.startswith(RELEVANT)
            ]
            parts = [*(train for train, _ in self.folds.splits), np.arange(self.blocks.n_rows)]
            self._picked = pick_relevant(
                self.blocks,
                self.folds.y,
                self.folds.n_classes,
                parts,
                counts,
                random_state=self.seed,
                n_jobs=n_threads(self.settings.n_jobs),
            )
        return self._picked[count]

    def _columns(self, columns: NDArray[np.intp]) -> Floats:
        """Columns counted over all blocks, side by side."""
        widths = [self.blocks.width(block) for block in self.blocks]
        ends = np.cumsum(widths)
        return np.hstack(
            [
                self.blocks[block][:, columns[(columns >= end - width) & (columns < end)] - (end - width)]
                for block, width, end in zip(self.blocks, widths, ends, strict=True)
            ]
        )

    def _grid(self) -> list[Config]:
        wanted = self.settings.grid
        if isinstance(wanted, str) and wanted == "auto":
            wanted = "coarse" if self.settings.n_trials > 0 else "none"
        if isinstance(wanted, str):
            if wanted not in ("coarse", "none"):
                raise UsageError(
                    f"grid {wanted!r} is not known; choose auto, coarse, none, or configurations."
                )
            return self.space.grid() if wanted == "coarse" else self.space.known_good()[:1]
        configs = unique([dict(config) for config in wanted])
        for config in configs:
            try:
                self.space.distributions(config)
            except (KeyError, ValueError) as error:
                raise UsageError(f"grid: {config} is not in the searched space ({error}).") from error
        if not configs:
            raise UsageError("grid is empty; pass configurations as in best_params_, or 'none'.")
        return configs

    def _stages(self) -> Iterator[list[Config]]:
        """The grid in an order that spends little on hopeless representations.

        Closed-form heads first on all of them; the best one (of equals the simplest) then gets the whole
        grid, the runner-up the known-good points.
        """
        names = self.space.representations
        if len(names) == 1 or not isinstance(self.settings.grid, str) or len(self.grid) == 1:
            yield self.grid
            return
        yield self.space.quick_points()
        best: dict[str, float] = {}
        for result in self.results.values():
            if result.state == COMPLETE:
                name = self.space.read(result.config).representation
                best[name] = max(best.get(name, -np.inf), result.score)
        order = sorted(best, key=lambda name: (-best[name], self._complexity(name)))
        grid = self.space.grid(order[0])
        self.total += len(grid) - len(self.grid)  # planned was that of the first representation
        yield grid
        for name in order[1:2]:
            yield self.space.known_good(name)

    def _evaluate(self, configs: Sequence[Config], origin: str, deadline: float = float("inf")) -> None:
        new = [config for config in configs if identity(config) not in self.results]
        for number, group in enumerate(group_configs(self.space, new)):
            if number and time.monotonic() > deadline:
                return
            for result in self.evaluator.evaluate([new[i] for i in group], origin, deadline=deadline):
                if result.state != UNFINISHED:
                    self.results[identity(result.config)] = result
                    with studies.undisturbed():
                        studies.add_result(self.study, self.space, result)
            self.report(origin)

    def _refine(self) -> None:
        """Draw trials in batches; each batch is evaluated by groups, then told to the study."""
        done = studies.count_trials(self.study, "tpe")
        while done < self.settings.n_trials and time.monotonic() < self.deadline:
            with studies.undisturbed():
                trials = [self.study.ask() for _ in range(min(TPE_BATCH, self.settings.n_trials - done))]
                configs = [self.space.suggest(trial) for trial in trials]
            fresh = [config for config in unique(configs) if identity(config) not in self.results]
            evaluated = self.evaluator.evaluate(fresh, "tpe", deadline=self.deadline)
            found = {identity(result.config): result for result in evaluated}
            for trial, config in zip(trials, configs, strict=True):
                key = identity(config)
                result = found.get(key) or self.results[key]
                with studies.undisturbed():
                    studies.tell_result(self.study, trial, result)
                if result.state != UNFINISHED:
                    self.results.setdefault(key, result)
                done += 1
            self.report("tpe")

    def _ranked(self) -> list[Result]:
        complete = (result for result in self.results.values() if result.state == COMPLETE)
        return sorted(complete, key=self._rank, reverse=True)

    def _exact(self) -> list[Result]:
        return [result for result in self._ranked() if not result.approximate]

    def _surest(self, ranked: Sequence[Result]) -> Result:
        """Of those that cannot be told from the best score, the one with probabilities nearest the truth.

        The best of hundreds of scores of few images is mostly luck: a share of right answers counts each
        image as a whole, and its error is larger than what there is to choose between. Probabilities say of
        the same images how far each answer was from turning over: their Brier score, a proper one, is much
        less noisy. Equal ones go by the cheaper head.
        """
        contenders = [result for result in ranked if self.evaluator.contends(result, ranked[0])]
        return max(contenders, key=self._sureness)

    def _simplest(self, best: Result) -> Result:
        """Return the best of the simplest representation that is not worse by more than one standard error.

        The error is that of the difference over the same folds, so folds that are hard for both do not count.
        """
        of_each = self.best_of_each()
        for name in sorted(of_each, key=self._complexity):
            worse = np.subtract(best.scores, of_each[name].scores)
            error = np.std(worse, ddof=1) / np.sqrt(len(worse)) if len(worse) > 1 else 0.0
            if np.mean(worse) <= error + ROUNDING:
                return of_each[name]
        return best

    def _complexity(self, name: str) -> tuple[int, int, int]:
        """Few blocks are simpler than many, picked features the least simple; then by columns."""
        if name.startswith(RELEVANT):
            return (len(self.blocks), int(name.removeprefix(RELEVANT)), 0)
        return (len(name.split(SIDE_BY_SIDE)), 0 if name.startswith(USUAL) else 1, self.width(name))

    def _confirm(self, result: Result) -> Result:
        """Evaluate an approximately scored configuration on all rows."""
        exact = self.evaluator.again(result.config, result.origin, kernel_rows=len(self.folds.y))
        self.results[identity(result.config)] = exact
        return exact

    def _hopeless(self, scores: Sequence[float]) -> bool:
        """Whether the study's pruner gives a configuration up after its folds so far."""
        return studies.should_prune(self.study, scores)

    def _rank(self, result: Result) -> tuple[float, float, int]:
        return (round(result.score / ROUNDING) * ROUNDING, *self._sureness(result))

    def _sureness(self, result: Result) -> tuple[float, int]:
        distance = result.brier if np.isfinite(result.brier) else np.inf
        return (-distance, -self.space.read(result.config).head.cost)

    def _say_if_short(self) -> None:
        if self.settings.n_trials == 0 and isinstance(self.settings.grid, str) and len(self.grid) == 1:
            why = "n_trials is 0"
        elif time.monotonic() > self.deadline and len(self.results) < len(self.grid):
            why = (
                f"the time budget of {self.settings.timeout:g} s ended the search after "
                f"{len(self.results)} of {self.total} configurations"
            )
        else:
            return
        what = "default parameters were fitted" if len(self.results) == 1 else "the best of these was fitted"
        warnings.warn(f"{why}: {what}, nothing better was looked for.", SearchWarning, stacklevel=4)

    def _data_key(self) -> str:
        if self.settings.storage is None:
            return "memory"
        splits = [np.concatenate([train, [-1], test]) for train, test in self.folds.splits]
        weight = np.empty(0) if self.folds.weight is None else self.folds.weight
        scoring = np.array([str(self.settings.scoring)])
        blocks = {name: self.blocks.source(name) for name in self.blocks} if self.streamed else self.blocks
        return studies.data_key(blocks, self.folds.y, weight, scoring, *splits)


def n_threads(n_jobs: int | None) -> int:
    """Return the number of threads: all cores by default."""
    return int(effective_n_jobs(-1 if n_jobs is None else n_jobs))


def _pruner(wanted: Any) -> Any:
    import optuna

    if wanted == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=PRUNE_AFTER)
    if wanted is None:
        return optuna.pruners.NopPruner()
    return wanted
