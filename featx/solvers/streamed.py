"""Linear models on features that are not in memory: L-BFGS in which a pass is one step of all problems.

A pass reads each chunk once and gives value and gradient of all folds and all values of C. Passes are what
costs, so each problem starts from the curvature that the rows' second moments give (exactly the Hessian at
zero, apart from the folds' differences), and needs tens of them instead of hundreds.

Memory, apart from chunks of rows: a (d, d) matrix and three more while its eigenvectors are found; 25 arrays
of all weights (d + 1, outputs, problems) in double precision, for as many problems at a time as fit a
thirty-second of the task's memory; for each row its weight in each fold, and its scores when they are asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from featx.solvers.closed import moments_of, one_for_two, sum_moments
from featx.solvers.descent import (
    HISTORY,
    MAX_ITERATIONS,
    TOLERANCE,
    BatchedLBFGS,
    History,
    backtrack,
    inner_products,
)
from featx.solvers.features import CHUNK_ROWS
from featx.solvers.folds import Floats, Folds, Indices
from featx.solvers.losses import LINEAR, LOSSES, loss_of
from featx.solvers.moments import FoldMoments, lda_of_moments, moment_bytes, ridge_of_moments
from featx.solvers.task import SHARE, Answer, FitTask, parts, scores_of
from featx.threads import run_in_threads

CHUNK_VALUES = 1 << 19
"""Scores of a chunk at most; more outputs, fewer rows."""

NOISE = 1e-3
"""A change of the objective below this part of the tolerance, relative to its value, counts as none."""

REFIT: dict[str, Any] = {"tolerance": 1e-6, "max_iterations": 1000}
"""Limits for the final model. Its scores differ from scikit-learn's by at most a hundredth of their spread if
the classes are separable, and by far less otherwise."""

CURVATURE = {"logistic": 0.25, "squared_hinge": 2.0}
"""Second derivative of a loss at zero; of the softmax it is 1 / n_classes."""

STATE_ARRAYS = 2 * HISTORY + 9
"""Arrays of the weights' size that a problem needs."""


@dataclass(frozen=True)
class Curvature:
    """Eigenvalues (d + 1,) and eigenvectors of the mean outer product of the rows, with 1 at their end."""

    values: Floats
    vectors: Floats

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.vectors.nbytes


@dataclass(frozen=True)
class StreamedFit:
    """A fitted model of scaled features.

    Parameters
    ----------
    weights : array of shape (d, k)
        Of each output; one for two classes.
    intercept : array of shape (k,)
        Offsets of the scores.
    means : array of shape (n_classes, d)
        Mean row of each class, where the head keeps it.
    count : array of shape (n_classes,)
        Rows of each class, likewise.
    within : array of shape (d,)
        Squared deviations from the classes' means, summed, likewise.
    passes : int
        Passes over the rows that an iterative solution took at most.
    """

    weights: Floats
    intercept: Floats
    means: Floats = field(default_factory=lambda: np.empty((0, 0)))
    count: Floats = field(default_factory=lambda: np.empty(0))
    within: Floats = field(default_factory=lambda: np.empty(0))
    passes: int = 0


def fit_streamed(task: FitTask, solver: str) -> StreamedFit:
    """The model of a task's only configuration, fitted on the training rows of its only fold."""
    if solver in LINEAR:
        solved = solve_streamed(task, loss_of(solver, task.folds), [(0, 0)], **REFIT)
        assert solved is not None  # nothing stops it
        return StreamedFit(solved[0][:-1, :, 0], solved[0][-1, :, 0], passes=solved[1])
    moments = moments_of(task)
    assert moments is not None
    own = moments.of(0).scaled(*task.features.affine(0))
    params = task.params[0]
    if solver == "ridge":
        return StreamedFit(*next(ridge_of_moments(own, [float(params["alpha"])])))
    if solver == "lda":
        means, weights, offset = next(lda_of_moments(own, [float(params["shrinkage"])]))
        return StreamedFit(*one_for_two(weights, offset), means, own.count)
    means = own.means
    within = np.maximum(np.diagonal(own.second) - own.count @ means**2, 0)
    return StreamedFit(np.empty((task.features.d, 0)), np.empty(0), means, own.count, within)


def linear(
    task: FitTask, loss: str, *, tolerance: float = TOLERANCE, max_iterations: int = MAX_ITERATIONS
) -> Iterator[Answer]:
    """Scores of every fold's test rows by each configuration's model."""
    order = sorted(range(len(task.params)), key=lambda i: float(task.params[i]["C"]))
    problems = [(i, fold) for i in order for fold in range(len(task.folds.splits))]
    for part in parts(problems, problems_at_once(task)):
        solved = solve_streamed(task, loss, part, tolerance=tolerance, max_iterations=max_iterations)
        if solved is None:
            return
        weights = solved[0]
        for fold in range(len(task.folds.splits)):
            own = [b for b, (_, other) in enumerate(part) if other == fold]
            solutions = [(weights[:-1, :, b], weights[-1, :, b]) for b in own]
            if own:
                scores = task.features.score(fold, task.folds.splits[fold][1], solutions)
                yield from ((part[b][0], fold, scores_of(s)) for b, s in zip(own, scores, strict=True))


def problems_at_once(task: FitTask) -> int:
    """Problems whose weights and scores take their share of the task's memory each, one at least."""
    outputs, n_folds = task.folds.n_outputs, len(task.folds.splits)
    of_weights = 8 * STATE_ARRAYS * (task.features.d + 1) * outputs
    of_scores = 4 * outputs * task.features.n // n_folds
    return int(max(1, task.memory // SHARE // max(of_weights, of_scores)))


def streamed_bytes(folds: Folds, d: int, threads: int, memory: int) -> dict[str, int]:
    """Bytes that fits on streamed rows of `d` columns take at most, beside the memory of the process.

    Parameters
    ----------
    folds : Folds
        Splits, rows, classes.
    d : int
        Columns.
    threads, memory : int
        As in `FitTask`.

    Returns
    -------
    dict of str to int
        ``chunks``, ``moments`` and ``weights`` do not depend on the number of rows; ``scores`` does.
    """
    outputs, n = folds.n_outputs, len(folds.y)
    return {
        "chunks": threads * (24 * min(n, CHUNK_ROWS) * d + 56 * CHUNK_VALUES),
        "moments": moment_bytes(folds, d, threads) + 6 * 8 * (d + 1) ** 2,
        "weights": max(memory // SHARE, 8 * STATE_ARRAYS * (d + 1) * outputs),
        "scores": n * (8 * 8 * outputs + 16 * len(folds.splits)) + memory // SHARE,
    }


def solve_streamed(
    task: FitTask,
    loss: str,
    problems: Sequence[tuple[int, int]],
    *,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
) -> tuple[Floats, int] | None:
    """Minimise sum of mass * loss + strength / 2 * |weights|^2 for each (configuration, fold).

    Parameters
    ----------
    task : FitTask
        Its rows are read chunk by chunk.
    loss : {'softmax', 'logistic', 'squared_hinge'}
        As for `solve_linear`.
    problems : sequence of (int, int)
        Configuration and fold of each problem.
    tolerance, max_iterations
        As for `solve_linear`; an iteration is a pass over the rows.

    Returns
    -------
    (array of shape (d + 1, n_outputs, b), int) or None
        Weights on scaled rows, intercepts last, and the passes that it took; None if it was stopped.
    """
    curvature = curvature_of(task)
    if curvature is None:
        return None
    strength = np.array([1 / float(task.params[i]["C"]) for i, _ in problems])
    fold = np.array([fold for _, fold in problems])
    running = _StreamedProblems(task, loss, fold, strength, curvature)
    passes = running.run(tolerance, max_iterations)
    return None if passes is None else (running.solved, passes + 1)


def curvature_of(task: FitTask) -> Curvature | None:
    """Curvature of the first fold's training rows, used for all folds; cached with the features."""
    rows = task.features
    if rows.curvature is None:
        plain = replace(task, class_weight=None)
        if rows.apart and rows.moments is None:  # the first fold alone: each has rows of its own
            first = FoldMoments(replace(task.folds, splits=task.folds.splits[:1]), None, apart=True)
            moments = sum_moments(plain, first)
        else:
            moments = moments_of(plain)
        if moments is None:
            return None
        own = moments.of(0).scaled(*rows.affine(0))
        matrix = np.empty((rows.d + 1, rows.d + 1))
        matrix[:-1, :-1] = own.second
        matrix[-1, :-1] = matrix[:-1, -1] = own.sums.sum(axis=0)
        matrix[-1, -1] = own.weight
        matrix /= own.weight
        del own
        values, vectors = eigh(matrix, overwrite_a=True, check_finite=False)
        rows.curvature = Curvature(np.maximum(values, 0), vectors.astype(np.float32))
    found: Curvature = rows.curvature
    return found


class _StreamedProblems(BatchedLBFGS):
    """Linear models on features that are read in chunks: a step is one pass, which tries one length each."""

    STATE = (*BatchedLBFGS.STATE, "bend", "strength", "length", "direction", "descent")

    def __init__(
        self, task: FitTask, loss: str, fold: Indices, strength: Floats, curvature: Curvature
    ) -> None:
        rows, outputs, b = task.features, task.folds.n_outputs, len(fold)
        self.task, self.rows, self.loss, self.curvature = task, rows, LOSSES[loss], curvature
        self.fold, self.id = fold, np.arange(b)
        self.mass = task.folds.masses(task.class_weight)
        self.bend = CURVATURE.get(loss, 1 / task.folds.n_classes) * self.mass.sum(axis=0)[fold]
        self.strength = strength
        self.penalty = np.broadcast_to(strength, (rows.d + 1, 1, b)).copy()
        if loss != "squared_hinge":
            self.penalty[-1] = 0
        self.weights = np.zeros((rows.d + 1, outputs, b))
        self.solved = np.zeros_like(self.weights)
        self.length, self.stalls = np.ones(b), np.zeros(b, np.intp)
        self.history = History(self._newton)

    def run(self, tolerance: float, max_iterations: int) -> int | None:
        """Evaluate the start in a pass of its own, then run."""
        first = self._pass(self.weights)
        if first is None:
            return None
        self.value, self.gradient = first
        self.start = inner_products(self.gradient, self.gradient)
        self.direction, self.descent = self.history.direction(self.gradient)
        return super().run(tolerance, max_iterations)

    def step(self, tolerance: float) -> NDArray[np.bool_] | None:
        """Move all problems; return which objectives no longer move, or None if the run was stopped."""
        trial = self.weights + self.length * self.direction
        found = self._pass(trial)
        if found is None:
            return None
        value, gradient = found
        slack = NOISE * tolerance * np.abs(self.value)
        fine = value <= self.value + 1e-4 * self.length * self.descent + slack
        stalled = self.value - value <= slack
        shorter = backtrack(self.length, self.descent, value - self.value - self.length * self.descent)
        step = np.where(fine, trial - self.weights, 0)
        self.history.remember(step, np.where(fine, gradient - self.gradient, 0))
        self.weights += step
        self.gradient = np.where(fine, gradient, self.gradient)
        self.value = np.where(fine, value, self.value)
        self.fine, self.length = fine, np.where(fine, 1.0, shorter)
        return np.asarray(stalled)

    def converged(self, tolerance: float) -> NDArray[np.bool_]:
        """Whether each problem's gradient is short enough."""
        return np.asarray(inner_products(self.gradient, self.gradient) <= tolerance**2 * self.start)

    def prepare(self) -> None:
        """Choose a new direction where the step was good; elsewhere the old one is tried with less length."""
        direction, descent = self.history.direction(self.gradient)
        self.direction = np.where(self.fine, direction, self.direction)
        self.descent = np.where(self.fine, descent, self.descent)

    def _newton(self, q: Floats) -> Floats:
        """(bend * mean outer product of the rows + strength)^-1 q."""
        vectors = self.curvature.vectors
        turned = (vectors.T @ q.reshape(len(q), -1).astype(np.float32)).reshape(q.shape)
        turned /= (self.curvature.values[:, None] * self.bend + self.strength)[:, None]
        return np.asarray((vectors @ turned.reshape(len(q), -1)).reshape(q.shape), np.float64)

    def _pass(self, weights: Floats) -> tuple[Floats, Floats] | None:
        """Value (b,) and gradient (d + 1, k, b) of weights, from one pass over the rows."""
        outputs, b = weights.shape[1:]
        size = int(np.clip(CHUNK_VALUES // (outputs * b), 64, CHUNK_ROWS))
        starts = range(0, self.rows.n, size)
        prepared = self.rows.prepare(weights[:-1], self.fold)
        value = 0.5 * inner_products(self.penalty * weights, weights)
        gradient = self.penalty * weights
        raw = [np.zeros((part.d, outputs, b)) for part in self.rows.parts]
        sums = [np.zeros((outputs, b)) for _ in self.rows.parts]

        def of_chunk(start: int) -> tuple[Floats, list[tuple[Floats, Floats]], Floats]:
            where = slice(start, min(start + size, self.rows.n))
            blocks = [part.block.take(where) for part in self.rows.parts]
            scores = np.zeros((where.stop - start, outputs, b), np.float32)
            for part, block, own in zip(self.rows.parts, blocks, prepared, strict=True):
                scores += part.chunk_scores(block, where, own, self.fold)
            scores += weights[-1].astype(np.float32)
            chunk = Folds((), self.task.folds.y[where], self.task.folds.n_classes)
            loss = self.loss(chunk, self.mass[where][:, self.fold], np.float64)
            loss_value = loss.value(scores.astype(np.float64))
            slope = loss.slope()
            total, slope = slope.sum(axis=0), slope.astype(np.float32)
            return (
                loss_value,
                [
                    part.chunk_gradient(block, where, slope, self.fold)
                    for part, block in zip(self.rows.parts, blocks, strict=True)
                ],
                total,
            )

        for some in parts(starts, self.task.n_jobs):
            if self.task.stop():
                return None
            for loss_value, of_parts, total in run_in_threads(
                self.task.n_jobs, [(of_chunk, (start,)) for start in some]
            ):
                value = value + loss_value
                gradient[-1] += total
                for number, (own, own_sums) in enumerate(of_parts):
                    raw[number] += own
                    sums[number] += own_sums
        begin = 0
        for part, own, own_sums in zip(self.rows.parts, raw, sums, strict=True):
            gradient[begin : begin + part.d] += part.scale_gradient(own, own_sums, self.fold)
            begin += part.d
        return value, gradient

    def retire(self, done: NDArray[np.bool_], iteration: int) -> None:
        """Keep the solutions of problems that are done, and remove them from the state."""
        self.solved[..., self.id[done]] = self.weights[..., done]
        super().retire(done, iteration)
