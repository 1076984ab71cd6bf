"""Results of a search, and their ranking: plain functions of values that compute no fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import SearchError
from featx.representation import Representation
from featx.search.evaluator import COMPLETE, FAILED, Result
from featx.search.plan import SearchPlan
from featx.search.scoring import ROUNDING, as_good
from featx.search.space import Params

Floats = NDArray[Any]


@dataclass(frozen=True)
class Results:
    """The results of a search.

    Parameters
    ----------
    plan : SearchPlan
        What was computed.
    found : tuple of Result
        One for each configuration, in the order of evaluation.
    study : optuna.Study
        All trials.
    decisions : callable
        ``decisions(params)`` returns the out-of-fold decision values of a configuration that was evaluated.
        It keeps what fits share in memory.
    confirmed : Result, optional
        A configuration with the best score that was evaluated again on all rows, since it had been evaluated
        on some.
    left_out : dict of str to str
        Heads that were not fitted on all rows, and why.
    """

    plan: SearchPlan
    found: tuple[Result, ...]
    study: Any = field(repr=False)
    decisions: Callable[[Params], Floats] = field(repr=False)
    confirmed: Result | None = None
    left_out: dict[str, str] = field(default_factory=dict)


def winner(results: Results) -> Result:
    """Return the configuration to use.

    Of the complete results that are as good as the best score it is the one with the best probabilities. With
    `one_se` it is the best of the simplest representation within a standard error of that one.

    Raises
    ------
    SearchError
        If no configuration could be fitted; the message names the first cause.
    """
    if results.confirmed is not None:
        return results.confirmed
    order = ranked(results.found)
    if not order:
        causes = [result.error for result in results.found if result.state == FAILED]
        raise SearchError(
            f"none of {len(results.found)} configurations could be fitted; first cause: "
            f"{causes[0].rstrip('.') if causes else 'the time budget was spent before one was done'}."
        )
    if order[0].approximate and len(results.plan.folds.y) > results.plan.settings.stream_rows:
        return order[0]  # a kernel of all rows would not fit in memory
    best = _best_probabilities(exact(results.found), results.plan)
    return _simplest(results, best) if results.plan.settings.one_se else best


def best_of_each(results: Results) -> dict[Representation, Result]:
    """Return the best configuration of each representation, in the order of their best scores."""
    of_each: dict[Representation, list[Result]] = {}
    for result in exact(results.found):
        of_each.setdefault(result.configuration.representation, []).append(result)
    return {own: _best_probabilities(order, results.plan) for own, order in of_each.items()}


def ranked(found: Iterable[Result]) -> list[Result]:
    """Return complete results, best first: by score, then by probabilities, then by the cost of the head."""
    return sorted((result for result in found if result.state == COMPLETE), key=rank, reverse=True)


def exact(found: Iterable[Result]) -> list[Result]:
    """Return complete results that were evaluated on all rows, best first."""
    return [result for result in ranked(found) if not result.approximate]


def rank(result: Result) -> tuple[float, float, int]:
    """Sort key of a complete result: the larger, the better."""
    return (round(result.score / ROUNDING) * ROUNDING, *_tie_break(result))


def table(results: Results) -> dict[str, Any]:
    """Return `cv_results_`: one entry for each configuration."""
    rows = results.found
    n_splits = len(results.plan.folds.splits)
    scores = np.full((len(rows), n_splits), np.nan)
    for row, result in enumerate(rows):
        scores[row, : len(result.scores)] = result.scores
    mean = np.array([result.score if result.state == COMPLETE else np.nan for result in rows])
    order = np.argsort(-np.nan_to_num(mean, nan=-np.inf), kind="stable")
    place = np.empty(len(rows), np.int32)
    place[order] = np.arange(1, len(rows) + 1)
    columns: dict[str, Any] = {
        "params": [dict(result.params) for result in rows],
        "mean_test_score": mean,
        "std_test_score": np.array([np.std(r.scores) if r.state == COMPLETE else np.nan for r in rows]),
        "rank_test_score": place,
        "origin": np.array([result.origin for result in rows]),
        "state": np.array([result.state for result in rows]),
        "approximate": np.array([result.approximate for result in rows]),
        "brier": np.array([result.brier for result in rows]),
    }
    return columns | {f"split{fold}_test_score": scores[:, fold] for fold in range(n_splits)}


def _best_probabilities(order: Sequence[Result], plan: SearchPlan) -> Result:
    """Of results that are as good as the first, return the one with the lowest Brier score.

    The best of hundreds of scores of few images is mostly luck: accuracy counts each image as right or wrong,
    and its error is larger than the differences between good configurations. The Brier score, a proper score
    of the probabilities of the same images, is much less noisy. Equal ones are decided by the cost of the
    head.
    """
    contenders = [
        result
        for result in order
        if as_good(result.scores, order[0].scores, held_out=plan.held_out, exact=plan.scorer.of_probabilities)
    ]
    return max(contenders, key=_tie_break)


def _simplest(results: Results, best: Result) -> Result:
    """Return the best of the simplest representation that is not worse by more than one standard error.

    The error is that of the difference over the same folds: folds that are difficult for both do not count.
    """
    widths = results.plan.widths
    of_each = best_of_each(results)
    for representation in sorted(of_each, key=lambda one: one.complexity(widths)):
        worse = np.subtract(best.scores, of_each[representation].scores)
        error = np.std(worse, ddof=1) / np.sqrt(len(worse)) if len(worse) > 1 else 0.0
        if np.mean(worse) <= error + ROUNDING:
            return of_each[representation]
    return best


def _tie_break(result: Result) -> tuple[float, int]:
    distance = result.brier if np.isfinite(result.brier) else np.inf
    return (-distance, -result.configuration.head.cost)
