"""Closed forms: ridge, discriminant analysis, nearest mean; every penalty from one Gram matrix a fold.

Few rows have a Gram matrix of their own (rows by rows). Many have moments (columns by columns), which one
pass over the rows gives for all folds, also where the rows are not in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from featx.exceptions import SearchError
from featx.solvers.features import CHUNK_ROWS
from featx.solvers.folds import Floats, Indices
from featx.solvers.moments import (
    FoldMoments,
    Moments,
    lda_of_moments,
    moment_bytes,
    ridge_of_moments,
    solve_penalised,
)
from featx.solvers.task import SHARE, Answer, FitTask, by_fold, scores_of
from featx.threads import run_in_threads


def ridge(task: FitTask) -> Iterator[Answer]:
    """RidgeClassifier for all alphas: one Gram matrix for each fold, one Cholesky for each alpha."""
    return _by_moments(task, _ridge_of) if task.features.by_moments else by_fold(task, _ridge_fold)


def lda(task: FitTask) -> Iterator[Answer]:
    """LinearDiscriminantAnalysis (lsqr) for all shrinkages, from one within-class Gram matrix a fold."""
    return _by_moments(task, _lda_of) if task.features.by_moments else by_fold(task, _lda_fold)


def nearest_mean(task: FitTask) -> Iterator[Answer]:
    """Negative squared distance to each class's mean; streamed, without the row's own length."""
    return (
        _by_moments(task, _nearest_mean_of) if task.features.streamed else by_fold(task, _nearest_mean_fold)
    )


Solution = tuple[Floats, Floats]
"""Weights (d, k) and offsets (k,) of scores on scaled rows, one output for two classes."""


def _by_moments(task: FitTask, solve: Callable[[FitTask, Moments], Iterator[Solution]]) -> Iterator[Answer]:
    """Every fold's solutions from its moments, and the scores of its test rows."""
    moments = moments_of(task)
    if moments is None:
        return

    def solve_fold(task: FitTask, fold: int) -> list[Floats]:
        shift, scale = task.features.affine(fold)
        solved = solve(task, moments.of(fold).scaled(shift, scale))
        scores = task.features.score(fold, task.folds.splits[fold][1], list(solved))
        return [scores_of(own) for own in scores]

    size = len(task.params)
    if task.features.streamed:
        size = max(1, task.memory // SHARE // (4 * task.features.n * task.folds.n_outputs))
    for start in range(0, len(task.params), size):
        some = replace(task, params=task.params[start : start + size])
        for i, fold, scores in by_fold(some, solve_fold):
            yield start + i, fold, scores


def moments_of(task: FitTask) -> FoldMoments | None:
    """Moments of the task's features, cached if they have no class weights; None if stopped."""
    plain = task.class_weight is None
    if plain and task.features.moments is not None:
        return task.features.moments
    _refuse_too_wide(task)
    moments = sum_moments(task, FoldMoments(task.folds, task.class_weight, apart=task.features.apart))
    if plain:
        task.features.moments = moments
    return moments


def _refuse_too_wide(task: FitTask) -> None:
    needed = moment_bytes(task.folds, task.features.d, task.n_jobs)
    if task.features.streamed and needed > task.memory:
        raise SearchError(
            f"{task.features.d:,} columns of rows that are read in chunks have second moments of "
            f"{needed / 2**30:.1f} GiB in all folds, more than the {task.memory / 2**30:.1f} GiB of memory=; "
            "choose a narrower representation, or allow more."
        )


def sum_moments(task: FitTask, moments: FoldMoments) -> FoldMoments | None:
    """Pass over the task's rows; None if stopped."""
    run = partial(run_in_threads, task.n_jobs)
    done = moments.sum_up(task.features.base, task.features.d, chunk=CHUNK_ROWS, run=run, stop=task.stop)
    return moments if done else None


def _ridge_of(task: FitTask, moments: Moments) -> Iterator[Solution]:
    return ridge_of_moments(moments, [float(p["alpha"]) for p in task.params])


def _lda_of(task: FitTask, moments: Moments) -> Iterator[Solution]:
    for _, weights, offset in lda_of_moments(moments, [float(p["shrinkage"]) for p in task.params]):
        yield one_for_two(weights, offset)


def _nearest_mean_of(task: FitTask, moments: Moments) -> Iterator[Solution]:
    means = moments.means
    solution = one_for_two(2 * means.T, -np.einsum("cd,cd->c", means, means))
    return iter([solution] * len(task.params))


def one_for_two(weights: Floats, offset: Floats) -> Solution:
    """For two classes, the second output minus the first."""
    if len(offset) == 2:
        return weights[:, 1:] - weights[:, :1], offset[1:] - offset[:1]
    return weights, offset


def _ridge_fold(task: FitTask, fold: int) -> list[Floats]:
    train, test = task.folds.splits[fold]
    weight = task.folds.training_weights(fold, task.class_weight)
    train, weight = train[weight > 0], weight[weight > 0]
    target = np.where(np.arange(task.folds.n_classes) == task.folds.y[train, None], 1.0, -1.0)
    target = target[:, 1:] if task.folds.n_classes == 2 else target
    alphas = [float(p["alpha"]) for p in task.params]
    if task.features.by_gram:
        return _ridge_of_gram(*task.features.fold_products(fold, train, test), target, weight, alphas)
    rows = task.features.of_fold(fold)
    share, root = weight / weight.sum(), np.sqrt(weight)[:, None]
    offset = share @ target
    center = (share @ rows[train]).astype(rows.dtype)
    inner = (rows[train] - center) * root.astype(rows.dtype)
    held_out = rows[test] - center
    solutions = penalised_solutions(inner, alphas, (target - offset) * root)
    return [scores_of(held_out @ weights + offset) for weights in solutions]


def _ridge_of_gram(
    inner: Floats, across: Floats, target: Floats, weight: Floats, alphas: Sequence[float]
) -> list[Floats]:
    """Scores of the test rows from inner products of training with training, and of test with training rows.

    Where the gradient vanishes, the coefficients a of the rows and the intercept b satisfy
    (K + diag(alpha / weight)) a = target - b, and a sums to 0.
    """
    right = np.column_stack([target, np.ones(len(target))])
    answers = []
    for solution in solve_penalised(inner, [alpha / weight for alpha in alphas], right):
        own, of_ones = solution[:, :-1], solution[:, -1:]
        intercept = own.sum(axis=0) / of_ones.sum()
        answers.append(scores_of(across @ (own - of_ones * intercept) + intercept))
    return answers


def _lda_fold(task: FitTask, fold: int) -> list[Floats]:
    train, test = task.folds.splits[fold]
    y, classes = task.folds.y[train], task.folds.n_classes
    shrinkages = [float(p["shrinkage"]) for p in task.params]
    if task.features.by_gram:
        products = task.features.fold_products(fold, train, test)
        scores = _lda_of_gram(*products, y, classes, task.features.d, shrinkages)
    else:
        rows = task.features.of_fold(fold)
        solved = solve_lda(rows[train], y, classes, shrinkages)
        scores = (rows[test] @ weights + offset for _, weights, offset in solved)
    return [scores_of(own[:, 1:] - own[:, :1] if classes == 2 else own) for own in scores]


def _lda_of_gram(
    inner: Floats, across: Floats, y: Indices, classes: int, d: int, shrinkages: Sequence[float]
) -> Iterator[Floats]:
    """Scores of the test rows as `solve_lda` gives them, from inner products alone (Woodbury)."""
    n = len(inner)
    member = _membership(y, classes, inner.dtype)  # (classes, n): its product with the rows is the means
    to_means = inner @ member.T  # rows with means
    means = member @ to_means  # means with means
    spread_means = to_means - means[y]
    test_means = across @ member.T
    spread = np.diagonal(inner) - 2 * to_means[np.arange(n), y] + np.diagonal(means)[y]
    trace = float(spread.sum(dtype=np.float64)) / n / d or 1.0
    strengths = [s * trace * n / (1 - s) for s in shrinkages]
    log_shares = np.log(np.bincount(y, minlength=classes) / n)
    # (C K C + s I)^-1 of C's range, C the centring within classes: as (K + s I)^-1, less what makes the
    # coefficients of a class sum to something else than 0.
    one_hot = (member > 0).T.astype(inner.dtype)
    solved = solve_penalised(inner, strengths, np.hstack([spread_means, one_hot]))
    for shrinkage, strength, dual in zip(shrinkages, strengths, solved, strict=True):
        of_means, of_classes = dual[:, :classes], dual[:, classes:]
        excess = np.linalg.solve(one_hot.T @ of_classes, one_hot.T @ of_means)
        centred = of_means - of_classes @ excess
        factor = n / (1 - shrinkage) / strength
        own = (test_means - across @ centred) * factor
        inside = np.diagonal(means) - np.einsum("nc,nc->c", spread_means, centred)
        yield own + log_shares - 0.5 * factor * inside


def solve_lda(
    rows: Floats, y: Indices, n_classes: int, shrinkages: Sequence[float]
) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Linear discriminant analysis with the within-class covariance shrunk towards a sphere.

    Parameters
    ----------
    rows : array of shape (n, d)
        Training rows.
    y : array of shape (n,), int
        Class indices.
    n_classes : int
        Number of classes, each with a row.
    shrinkages : sequence of float
        Shares of the sphere, between 0 and 1 (excluded).

    Yields
    ------
    (means, weights, offset), arrays of shapes (n_classes, d), (d, n_classes), (n_classes,)
        For each shrinkage; scores are ``rows @ weights + offset``.
    """
    n, d = rows.shape
    count = np.bincount(y, minlength=n_classes)
    means = _class_means(rows, y, n_classes)
    spread = rows - means[y]
    trace = float(np.einsum("ij,ij->", spread, spread)) / n / d or 1.0  # 0 if each class has one row
    # (1 - s) * spread' spread / n + s * trace * I, divided by (1 - s) / n
    strengths = [s * trace * n / (1 - s) for s in shrinkages]
    for shrinkage, inverse in zip(shrinkages, penalised_inverses(spread, strengths, means.T), strict=True):
        weights = inverse * n / (1 - shrinkage)
        yield means, weights, np.log(count / n) - 0.5 * np.einsum("cd,dc->c", means, weights)


def _nearest_mean_fold(task: FitTask, fold: int) -> list[Floats]:
    train, test = task.folds.splits[fold]
    y, classes = task.folds.y[train], task.folds.n_classes
    if task.features.by_gram:
        inner, across = task.features.fold_products(fold, train, test)
        member = _membership(y, classes, inner.dtype)
        to_means = across @ member.T
        means = np.einsum("cn,nc->c", member, inner @ member.T)
        own = np.diagonal(task.features.gram(fold))[test][:, None]
    else:
        rows = task.features.of_fold(fold)
        centers = _class_means(rows[train], y, classes)
        to_means, means = rows[test] @ centers.T, np.einsum("ij,ij->i", centers, centers)
        own = np.einsum("ij,ij->i", rows[test], rows[test])[:, None]
    scores = 2 * to_means - means - own
    scores = scores[:, 1:] - scores[:, :1] if classes == 2 else scores
    return [scores_of(scores)] * len(task.params)


def penalised_solutions(rows: Floats, strengths: Sequence[float], target: Floats) -> Iterator[Floats]:
    """(rows' rows + strength I)^-1 rows' target for each strength, by the smaller Gram matrix."""
    n, d = rows.shape
    if d <= n:
        yield from solve_penalised(rows.T @ rows, strengths, rows.T @ target)
        return
    for dual in solve_penalised(rows @ rows.T, strengths, target):
        yield rows.T @ dual.astype(rows.dtype)


def penalised_inverses(rows: Floats, strengths: Sequence[float], target: Floats) -> Iterator[Floats]:
    """(rows' rows + strength I)^-1 target, target of shape (d, k), by the smaller Gram matrix (Woodbury)."""
    n, d = rows.shape
    if d <= n:
        yield from solve_penalised(rows.T @ rows, strengths, target)
        return
    for strength, dual in zip(
        strengths, solve_penalised(rows @ rows.T, strengths, rows @ target), strict=True
    ):
        yield (target - rows.T @ dual.astype(rows.dtype)) / strength


def _class_means(rows: Floats, y: Indices, classes: int) -> Floats:
    return np.asarray(_membership(y, classes, rows.dtype) @ rows)


def _membership(y: Indices, classes: int, dtype: Any) -> Floats:
    """Matrix (classes, n) that averages the rows of each class."""
    member = np.arange(classes)[:, None] == y
    return np.asarray((member / member.sum(axis=1, keepdims=True)).astype(dtype))
