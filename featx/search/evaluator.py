"""Evaluate configurations by cross-validation: grouped, so that what they share is computed once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.evaluation import Calibration, fit_calibration
from featx.exceptions import SearchError
from featx.heads import vote_scores
from featx.search.scoring import Scorer, brier, standard_error
from featx.search.space import Choice, Config, Space, group_configs
from featx.solvers import (
    ASKING,
    LINEAR,
    SOLVERS,
    Block,
    ClassWeights,
    Folds,
    ScaledBlock,
    ScaledRows,
    Task,
    as_block,
    class_weights,
)

Floats = NDArray[Any]

OUTRUN_ERRORS = 2.0
"""Standard errors by which a configuration may be behind the best of its group before it is given up."""

ROUNDING = 1e-12
"""Scores that differ by less are equal."""

COMPLETE, PRUNED, FAILED, UNFINISHED = "complete", "pruned", "failed", "unfinished"

Piece = tuple[str, Callable[[], Floats], NDArray[np.bool_] | None]
"""A block of a representation: its name, what loads its rows, and the columns each fold uses, if not all."""


@dataclass
class Result:
    """What came of a configuration.

    Parameters
    ----------
    config : dict
        The configuration.
    scores : list of float
        Score of each fold that was evaluated.
    state : {'complete', 'pruned', 'failed', 'unfinished'}
        Unfinished: time was up.
    origin : {'default', 'grid', 'tpe'}
        Why it was tried.
    approximate : str
        How its evaluation differs from a fit on all training rows; empty if it does not.
    brier : float
        Out-of-fold Brier score after calibration, of those that cannot be told from the best; else NaN.
    error : str
        Why it failed.
    """

    config: Config
    scores: list[float] = field(default_factory=list)
    state: str = UNFINISHED
    origin: str = "grid"
    approximate: str = ""
    brier: float = float("nan")
    error: str = ""

    @property
    def score(self) -> float:
        """Mean over the folds evaluated."""
        return float(np.mean(self.scores)) if self.scores else float("nan")


class Evaluator:
    """Cross-validate configurations on the blocks of one data set.

    Parameters
    ----------
    pieces_of : callable
        ``pieces_of(representation)`` gives its blocks.
    space : Space
        How configurations are read.
    folds : Folds
        Splits, targets, weights.
    scorer : Scorer
        The objective.
    prune : callable
        ``prune(scores)`` of a configuration's folds so far: whether to give it up.
    options : mapping
        `n_jobs`, `memory`, `kernel_rows` and `random_state` for the solvers.
    """

    def __init__(
        self,
        pieces_of: Callable[[str], Sequence[Piece]],
        space: Space,
        folds: Folds,
        scorer: Scorer,
        *,
        prune: Callable[[Sequence[float]], bool],
        options: Mapping[str, Any],
    ) -> None:
        self.pieces_of, self.space, self.folds, self.scorer = pieces_of, space, folds, scorer
        self.prune, self.options, self._pruning = prune, dict(options), True
        self._blocks: dict[str, Block] = {}
        self._scaled: dict[tuple[str, str], ScaledBlock] = {}
        self._moments: dict[tuple[str, str], ScaledRows] = {}
        self._best: Result | None = None
        self._held: tuple[Result, Floats] | None = None
        self.held_out = float(np.mean([len(test) / len(train) for train, test in folds.splits]))

    def evaluate(
        self, configs: Sequence[Config], origin: str, *, deadline: float = float("inf")
    ) -> Iterator[Result]:
        """Evaluate configurations group by group; yields results in the groups' order.

        Parameters
        ----------
        configs : sequence of dict
            What to evaluate.
        origin : str
            Kept in the results.
        deadline : float
            `time.monotonic()` after which configurations are left unfinished.
        """
        for positions in group_configs(self.space, configs):
            group = [Result(dict(configs[position]), origin=origin) for position in positions]
            if time.monotonic() < deadline:
                self._evaluate_group(group, deadline)
            yield from group

    def decisions(self, config: Config) -> Floats:
        """Out-of-fold decision values of all rows, shape (n,) or (n, C); NaN where a row never scored.

        Linear models are solved once more, to where their scores have settled.
        """
        linear = self.space.read(config).head.solver in LINEAR
        if self._held is None or self._held[0].config != config or linear:
            self._best = self._held = None  # so that it is held
            result = self.again(config, "again", precise=True)
            if self._held is None:
                raise SearchError(f"{config} could not be fitted again: {result.error}")
        return self._held[1]

    def again(self, config: Config, origin: str, **options: Any) -> Result:
        """Evaluate one configuration on every fold, pruned by nothing, with other options than the rest."""
        before = self.options
        self.options, self._pruning = {**before, **options}, False
        try:
            return next(iter(self.evaluate([config], origin)))
        finally:
            self.options, self._pruning = before, True

    def _evaluate_group(self, group: list[Result], deadline: float) -> None:
        choice = self.space.read(group[0].config)
        try:
            self._solve(choice, group, deadline)
        except Exception as error:  # one bad configuration must not take the others with it
            unfinished = [result for result in group if result.state == UNFINISHED]
            if len(unfinished) == 1:
                unfinished[0].state, unfinished[0].error = FAILED, f"{type(error).__name__}: {error}"
                return
            for result in unfinished:
                result.scores.clear()
                self._evaluate_group([result], deadline)

    def _solve(self, choice: Choice, group: list[Result], deadline: float) -> None:
        answers: list[dict[int, Floats]] = [{} for _ in group]
        pruned: set[int] = set()
        rows = self._rows(choice)
        task = Task(
            rows,
            [self.space.read(result.config).params for result in group],
            class_weight=choice.class_weight,
            alive=lambda i: i not in pruned,
            stop=lambda: time.monotonic() > deadline,
            make=lambda params: choice.head.make(
                params, self.options["random_state"], (len(self.folds.splits[0][0]), rows.d)
            ),
            **self.options,
        )
        for i, fold, answer in SOLVERS[choice.head.solver](task):
            answers[i][fold] = vote_scores(answer) if choice.head.votes else np.asarray(answer)
            self._record(group[i], answers[i], i, pruned, group)
        sampled = max(len(train) for train, _ in self.folds.splits) > task.kernel_rows
        if choice.head.solver == "rbf_svm" and sampled:
            for result in group:
                result.approximate = f"fitted on {task.kernel_rows} rows of each training part"

    def _record(
        self,
        result: Result,
        answers: dict[int, Floats],
        i: int,
        pruned: set[int],
        group: Sequence[Result],
    ) -> None:
        done = len(answers) == len(self.folds.splits)
        if not self.scorer.of_probabilities:
            fold = next(reversed(answers))
            result.scores.append(self._score(answers[fold], fold))
        if done:
            self._finish(result, answers)
        elif self._pruning and result.scores and self._is_hopeless(result, group):
            result.state = PRUNED
            pruned.add(i)

    def _is_hopeless(self, result: Result, group: Sequence[Result]) -> bool:
        if self.space.read(result.config).head.solver not in ASKING:
            return False
        return self._outrun(result, group) or self.prune(result.scores)

    def _outrun(self, result: Result, group: Sequence[Result]) -> bool:
        """Whether another of the group is ahead on the same folds by more than chance would put it.

        Chance is taken as for shares of independent test rows; on the same rows it is smaller.
        """
        k = len(result.scores)
        best = max(float(np.mean(other.scores[:k])) for other in group if len(other.scores) >= k)
        if not 0 <= result.score <= best <= 1:
            return False
        rows = sum(len(self.folds.splits[fold][1]) for fold in range(k))
        return bool(best - result.score > OUTRUN_ERRORS * np.sqrt(best * (1 - best) / rows) + 1 / rows)

    def _finish(self, result: Result, answers: dict[int, Floats]) -> None:
        class_weight = self.space.read(result.config).class_weight
        decision = self._gather(answers)
        calibration = None
        if self.scorer.of_probabilities:
            calibration = self.calibrate(decision, class_weight)
            result.scores = [self._score(answers[f], f, calibration) for f in range(len(self.folds.splits))]
        if not np.isfinite(result.score):
            result.state, result.error = FAILED, "the score is not a number"
            return
        if self._best is None or self.contends(result, self._best):
            self._weigh(result, decision)
        answers.clear()
        result.state = COMPLETE  # not before all that can fail is done

    def contends(self, result: Result, best: Result) -> bool:
        """Whether a result is behind by no more than a standard error of the difference.

        A score of probabilities has little noise to begin with: there only equal ones do.
        """
        behind = np.subtract(best.scores, result.scores)
        error = 0.0 if self.scorer.of_probabilities else standard_error(behind, self.held_out)
        return bool(behind.mean() <= error + ROUNDING)

    def _weigh(self, result: Result, decision: Floats) -> None:
        """Say how far a contender's probabilities are from the truth; keep the decisions of the surest."""
        weighting = self.scorer.weighting
        scored = np.flatnonzero(np.isfinite(decision if decision.ndim == 1 else decision[:, 0]))
        y, weight = self.folds.y[scored], self.folds.row_weights(scored)
        weight = weight * class_weights(weighting, y, weight, self.folds.n_classes)[y]
        result.brier = brier(y, self.calibrate(decision, weighting).proba(decision[scored]), weight)
        if self._held is None or result.brier < self._held[0].brier:
            self._held = (result, decision)
        if self._best is None or result.score > self._best.score:
            self._best = result

    def calibrate(self, decision: Floats, class_weight: ClassWeights) -> Calibration:
        """Fit the calibration on out-of-fold decisions of the rows that scored.

        Class weights count here too: probabilities calibrated to the plain shares of the classes would undo
        what the weights were asked for.
        """
        scored = np.flatnonzero(np.isfinite(decision if decision.ndim == 1 else decision[:, 0]))
        y, weight = self.folds.y[scored], self.folds.row_weights(scored)
        weight = weight * class_weights(class_weight, y, weight, self.folds.n_classes)[y]
        return fit_calibration(decision[scored], y, self.folds.n_classes, sample_weight=weight)

    def _score(self, decision: Floats, fold: int, calibration: Calibration | None = None) -> float:
        test = self.folds.splits[fold][1]
        return self.scorer(
            decision,
            self.folds.y[test],
            calibration=calibration,
            weight=None if self.folds.weight is None else self.folds.weight[test],
        )

    def _gather(self, answers: Mapping[int, Floats]) -> Floats:
        """Decisions of all rows; their mean over repeats, NaN for rows that never scored."""
        shape = (
            (len(self.folds.y),) if self.folds.n_classes == 2 else (len(self.folds.y), self.folds.n_classes)
        )
        total, count = np.zeros(shape), np.zeros(len(self.folds.y))
        for fold, answer in answers.items():
            test = self.folds.splits[fold][1]
            total[test] += answer
            count[test] += 1
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(total / (count if total.ndim == 1 else count[:, None]))

    def _rows(self, choice: Choice) -> ScaledRows:
        pieces = self.pieces_of(choice.representation)
        memory = self.options["memory"] // 2
        parts = [self._scaled_block(piece, choice.scaling) for piece in pieces]
        names = [name for name, _, _ in pieces]
        key = (choice.representation, choice.scaling)
        rows = self._moments.pop(key, None) or ScaledRows(parts, choice.scaling, self.folds, memory=memory)
        if rows.by_moments:
            self._moments[key] = rows
        self._forget(memory, {key, *names, *((name, choice.scaling) for name in names)})
        return rows

    def _scaled_block(self, piece: Piece, scaling: str) -> ScaledBlock:
        """Blocks and their Gram matrices are kept: representations share blocks, heads share all of it."""
        name, load, kept = piece
        block = self._blocks.pop(name, None) or as_block(load())
        self._blocks[name] = block  # most recently used last
        key = (name, scaling)
        scaled = self._scaled.pop(key, None) or ScaledBlock(block, scaling, self.folds, kept=kept)
        self._scaled[key] = scaled
        return scaled

    def _forget(self, memory: int, needed: set[Any]) -> None:
        """Drop what was not used for longest while all that is kept takes more than `memory`."""
        caches: tuple[dict[Any, Any], ...] = (self._moments, self._scaled, self._blocks)
        for cache in caches:
            for key in [key for key in cache if key not in needed]:
                if self._held_bytes() <= memory:
                    return
                del cache[key]

    def _held_bytes(self) -> int:
        held: list[Any] = [*self._moments.values(), *self._scaled.values(), *self._blocks.values()]
        return sum(own.nbytes for own in held)
