"""Linear models: one L-BFGS for all folds and all values of C."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.solvers import streamed
from featx.solvers.descent import (
    HISTORY,
    MAX_ITERATIONS,
    PRECISE,
    TOLERANCE,
    BatchedLBFGS,
    History,
    backtrack,
)
from featx.solvers.features import ScaledFeatures, column_sums
from featx.solvers.folds import Floats, Indices
from featx.solvers.losses import LOSSES, loss_of
from featx.solvers.streamed import StreamedFit
from featx.solvers.task import Answer, FitTask, scores_of
from featx.threads import run_in_threads

SMALL_ARRAYS = 4 * 2**20
"""Bytes of an array over all problems of a batch: as much as stays in a processor's cache."""


def softmax(task: FitTask) -> Iterator[Answer]:
    """Multinomial logistic regression (binary: one logistic), scikit-learn's objective."""
    return _linear(task, "softmax")


def logistic_ovr(task: FitTask) -> Iterator[Answer]:
    """One logistic regression for each class against the rest."""
    return _linear(task, "logistic_ovr")


def squared_hinge(task: FitTask) -> Iterator[Answer]:
    """Linear SVM as LinearSVC: squared hinge, one against the rest, intercept penalised."""
    return _linear(task, "squared_hinge")


def _linear(task: FitTask, solver: str) -> Iterator[Answer]:
    limits: dict[str, Any] = PRECISE | {"max_iterations": task.passes} if task.precise else {}
    loss = loss_of(solver, task.folds)
    if task.features.streamed:
        yield from streamed.linear(task, loss, **limits)
        return
    folds = task.folds
    order = sorted(range(len(task.params)), key=lambda i: float(task.params[i]["C"]))
    mass = folds.masses(task.class_weight)

    def solve(part: Sequence[tuple[int, int]]) -> list[Answer] | None:
        which = np.array([fold for fold, _ in part])
        strength = np.array([1 / float(task.params[i]["C"]) for _, i in part])
        solved = solve_linear(rows, loss, which, strength, mass, stop=task.stop, **limits)
        if solved is None:
            return None
        return [
            (i, fold, scores_of(rows.held_out(solved.scores, solved.weights, b, fold)))
            for b, (fold, i) in enumerate(part)
        ]

    rows = GramFeatures(task.features, task.n_jobs) if task.features.by_gram else task.features
    left = [(fold, i) for fold in range(len(folds.splits)) for i in order]
    most = _problems_at_once(task, rows)
    while left:
        size = min(most, math.ceil(len(left) / task.n_jobs))
        some = [left[k * size : (k + 1) * size] for k in range(task.n_jobs)]
        for answers in run_in_threads(task.n_jobs, [(solve, (part,)) for part in some if part]):
            if answers is None:
                return
            yield from answers
        left = [(fold, i) for fold, i in left[task.n_jobs * size :] if task.alive(i)]


def fit_linear(task: FitTask, solver: str) -> StreamedFit:
    """Fit a task's only configuration on all of its rows, which are in memory.

    Returns
    -------
    StreamedFit
        Weights of the scaled rows. Scores differ from those of scikit-learn's solvers, which stop earlier or
        later, by at most a hundredth of their spread.
    """
    whole, n = task.folds, task.features.n
    rows = GramFeatures(task.features, task.n_jobs) if task.features.by_gram else task.features
    solved = solve_linear(
        rows,
        loss_of(solver, whole),
        np.zeros(1, np.intp),
        np.array([1 / float(task.params[0]["C"])]),
        whole.masses(task.class_weight),
        **PRECISE | {"max_iterations": task.passes},
    )
    assert solved is not None  # nothing stops it
    weights = solved.weights[:, :, 0].astype(np.float64)
    if isinstance(rows, GramFeatures):
        intercept = weights[n]
        weights = task.features.of_fold(0).T @ weights[:n]
    else:
        weights, intercept = weights[:-1], weights[-1]
    return StreamedFit(weights, intercept, passes=int(solved.iterations[0]))


def _problems_at_once(task: FitTask, rows: LinearFeatures) -> int:
    """Number of problems whose arrays take a few megabytes; with more, less could be pruned.

    At least all folds of a problem where the rows are shared by all folds; never more than fit the memory,
    with about 8 arrays of scores' size and 2 m + 6 of weights' size.
    """
    each = task.folds.n_outputs * np.dtype(rows.dtype).itemsize * rows.height
    at_once = int(SMALL_ARRAYS // each)
    if isinstance(rows, ScaledFeatures):
        at_once = max(at_once, len(task.folds.splits))
    return max(1, min(at_once, int(task.memory // (each * (2 * HISTORY + 14)))))


class GramFeatures:
    """Each fold's features by their inner products alone, for more columns than rows.

    What a penalised linear model can reach is spanned by the rows, so a vector of weights is held as its
    coefficients (n) on the rows, and below them its image, the rows' scores (n), each with the intercept
    behind: the inner product of two vectors is coefficients times image. An iteration then costs one product
    with the Gram matrix, where the rows would take two.

    Parameters
    ----------
    rows : ScaledFeatures
        The rows, shape (n, d).
    n_jobs : int
        Threads for the folds' Gram matrices.
    """

    def __init__(self, rows: ScaledFeatures, n_jobs: int = 1) -> None:
        self.folds, self.n, self.dtype = rows.folds, rows.n, rows.dtype
        self.half = rows.n + 1
        self.height = 2 * self.half
        self.intercepts = [rows.n, -1]
        self.common = rows.gram(0) if rows.alike else None
        of_folds = [(rows.fold_products, (fold, *split)) for fold, split in enumerate(rows.folds.splits)]
        self.products = [] if rows.alike else run_in_threads(n_jobs, of_folds)

    def times(self, weights: Floats, fold: Indices) -> Floats:
        """Scores (n, k, b) of weights (2 n + 2, k, b); `fold` (b,) is whose scaling."""
        return np.asarray(weights[self.half : -1] + weights[-1])

    def transposed_times(self, residuals: Floats, fold: Indices) -> Floats:
        """Gradients (2 n + 2, k, b) of residuals (n, k, b)."""
        gradient = np.empty((self.height, *residuals.shape[1:]), self.dtype)
        gradient[: self.n] = residuals
        gradient[self.intercepts] = column_sums(residuals)
        image = gradient[self.half : -1]
        if self.common is not None:
            image[:] = (self.common @ residuals.reshape(self.n, -1)).reshape(residuals.shape)
            return gradient
        for own in np.unique(fold):
            where, train = fold == own, self.folds.splits[own][0]
            part = residuals[:, :, where]
            scores = np.zeros_like(part)  # those of test rows are computed at the end
            inner = part[train].reshape(len(train), -1)
            scores[train] = (self.products[own][0] @ inner).reshape(len(train), *part.shape[1:])
            image[:, :, where] = scores
        return gradient

    def held_out(self, scores: Floats, weights: Floats, b: int, fold: int) -> Floats:
        """Scores (m, k) of a fold's test rows in problem b, whose scores and weights are given."""
        train, test = self.folds.splits[fold]
        if self.common is not None:
            return np.asarray(scores[test, :, b])
        return np.asarray(self.products[fold][1] @ weights[train, :, b] + weights[-1, :, b])

    def dots(self, a: Floats, b: Floats) -> Floats:
        """Inner product of each problem's two vectors, shape (b,)."""
        return np.asarray(np.einsum("nkb,nkb->b", a[: self.half], b[self.half :]))


LinearFeatures = ScaledFeatures | GramFeatures


@dataclass(frozen=True)
class LinearSolution:
    """Weights (height, n_outputs, b) as the rows hold them, scores (n, n_outputs, b), iterations (b,)."""

    weights: Floats
    scores: Floats
    iterations: Indices


def solve_linear(
    rows: LinearFeatures,
    loss: str,
    fold: Indices,
    strength: Floats,
    mass: Floats,
    *,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
    stop: Callable[[], bool] = lambda: False,
) -> LinearSolution | None:
    """Minimise b problems at once: sum of mass * loss + strength / 2 * |weights|^2.

    One L-BFGS runs them all in step: the two matrix products of an iteration are shared, everything else
    is each problem's own, and the line search costs no product, since scores are linear in the step.
    Problems that are done retire when a quarter of the rest can go with them.

    Parameters
    ----------
    rows : ScaledFeatures or GramFeatures
        The rows, shape (n, d).
    loss : {'softmax', 'logistic', 'squared_hinge'}
        `squared_hinge` penalises the intercept, as LinearSVC does; the others do not.
    fold : array of shape (b,), int
        Whose scaling and training rows each problem uses.
    strength : array of shape (b,)
        1 / C.
    mass : array of shape (n, n_folds)
        Weights of rows in each fold, 0 for those that do not train.
    tolerance : float
        Length of the gradient, as a part of its length at zero, at which a problem is done.
    max_iterations : int
        Of L-BFGS.
    stop : callable
        Called in every iteration; None is returned once it is True.

    Returns
    -------
    LinearSolution or None
    """
    problems = _Problems(rows, loss, fold, strength, mass, stop)
    return None if problems.run(tolerance, max_iterations) is None else problems.solution


class _Problems(BatchedLBFGS):
    """Linear models on features in memory: the line search costs no product with them."""

    STATE = (*BatchedLBFGS.STATE, "scores")
    RETIRE_SHARE = 0.25

    def __init__(
        self,
        rows: LinearFeatures,
        loss: str,
        fold: Indices,
        strength: Floats,
        mass: Floats,
        stop: Callable[[], bool],
    ) -> None:
        dtype, outputs, b = rows.dtype, rows.folds.n_outputs, len(fold)
        self.rows, self.fold, self.id, self.stop = rows, fold, np.arange(b), stop
        self.stalls = np.zeros(b, np.intp)
        self.loss = LOSSES[loss](rows.folds, mass[:, fold].astype(dtype), dtype)
        self.penalty = np.broadcast_to(strength.astype(dtype), (rows.height, 1, b)).copy()
        if loss != "squared_hinge":
            self.penalty[rows.intercepts] = 0
        self.weights = np.zeros((rows.height, outputs, b), dtype)
        self.scores = np.zeros((rows.n, outputs, b), dtype)
        self.value = self.loss.value(self.scores)
        self.gradient = rows.transposed_times(self.loss.slope(), fold)
        self.start = self._length()
        self.history = History(dots=rows.dots)
        self.noise = 20 * np.finfo(dtype).eps
        self.solution = LinearSolution(
            np.zeros_like(self.weights), np.zeros_like(self.scores), np.zeros(b, np.intp)
        )

    def converged(self, tolerance: float) -> NDArray[np.bool_]:
        """Whether each problem's gradient is short enough."""
        return np.asarray(self._length() <= tolerance * self.start)

    def step(self, tolerance: float) -> NDArray[np.bool_] | None:
        """Move all problems; return which objectives no longer move, or None if the run was stopped."""
        if self.stop():
            return None
        direction, descent = self.history.direction(self.gradient)
        moved = self.rows.times(direction, self.fold)
        pull = self.penalty * self.weights
        ridge = (0.5 * self.rows.dots(pull, self.weights), self.rows.dots(pull, direction),
                 0.5 * self.rows.dots(self.penalty * direction, direction))  # fmt: skip
        length = np.ones_like(descent)
        slack = self.noise * np.abs(self.value)
        for _ in range(20):
            scores = self.scores + length * moved
            value = self.loss.value(scores) + ridge[0] + length * ridge[1] + length**2 * ridge[2]
            fine = value <= self.value + 1e-4 * length * descent + slack
            if fine.all():
                break
            shorter = backtrack(length, descent, value - self.value - length * descent)
            length = np.where(fine, length, shorter)
        step = length * direction
        self.weights = self.weights + step
        gradient = self.rows.transposed_times(self.loss.slope(), self.fold) + self.penalty * self.weights
        self.history.remember(step, gradient - self.gradient)
        gain = self.value - value
        self.scores, self.value, self.gradient = scores, value, gradient
        return np.asarray(gain <= self.noise * np.abs(self.value))

    def _length(self) -> Floats:
        """Length of each problem's gradient, shape (b,)."""
        return np.sqrt(np.maximum(self.rows.dots(self.gradient, self.gradient), 0))

    def retire(self, done: NDArray[np.bool_], iteration: int) -> None:
        """Keep the solutions of problems that are done, and remove them from the state."""
        leaving = self.id[done]
        self.solution.weights[..., leaving] = self.weights[..., done]
        self.solution.scores[..., leaving] = self.scores[..., done]
        self.solution.iterations[leaving] = iteration
        super().retire(done, iteration)
        self.loss.keep(~done)
