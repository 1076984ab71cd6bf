"""Many fits of one kind at once: every fold, every value of C, gamma, alpha or k, sharing all they can.

A search asks for hundreds of fits that differ in one number. What they share (scaled rows, Gram and
distance matrices, the kernel of a gamma, the nearest neighbours, the matrix products of the linear models)
is computed once here. The objectives are scikit-learn's own, so that the winner refitted by scikit-learn is
the model that was scored. NumPy only: its BLAS is as fast as torch's on these shapes.

Every solver is a generator of (configuration, fold, decision scores of the fold's test rows), so that the
caller can score, prune and stop between two answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, cholesky
from sklearn.svm import SVC

Floats = NDArray[Any]
Indices = NDArray[np.intp]
Split = tuple[Indices, Indices]
Answer = tuple[int, int, Floats]
ClassWeights = str | NDArray[np.float64] | None

DEFAULT_MEMORY = 4 * 2**30
"""Bytes that the matrices of one group of fits may take."""

KERNEL_ROWS = 8_000
"""Above as many training rows an SVM is screened on a stratified sample of this size (labelled so)."""

TOLERANCE = 3e-4
"""A linear model is done when its gradient is this part of what it was at zero (scikit-learn's default is
1e-4 of a gradient that starts near 0.5). Held-out answers stop changing at about three times as much."""

MAX_ITERATIONS = 150

PRECISE = {"tolerance": 1e-5, "max_iterations": 1000}
"""Scores of separable classes go on growing long after the answers have settled."""

HISTORY = 8
"""Pairs that L-BFGS remembers."""

CHUNK_ROWS = 4096
"""Rows that are converted, scaled or compared at a time."""

DOUBLE_BELOW = 200_000
"""Matrices of fewer values are solved in double precision: it costs nothing there."""


@dataclass(frozen=True)
class Folds:
    """What all fits share apart from the rows: splits, targets, weights.

    Parameters
    ----------
    splits : tuple of (train, test) index arrays
        Test parts may leave rows out (views never score).
    y : array of shape (n,), int
        Class indices.
    n_classes : int
        Number of classes.
    weight : array of shape (n,), float64, optional
        The user's sample weights.
    """

    splits: tuple[Split, ...]
    y: Indices
    n_classes: int
    weight: Floats | None = None

    @property
    def n_outputs(self) -> int:
        """Columns of decision scores of a linear model: 1 for two classes."""
        return 1 if self.n_classes == 2 else self.n_classes

    def row_weights(self, rows: Indices) -> Floats:
        """The user's weights of some rows, ones by default."""
        return np.ones(len(rows)) if self.weight is None else self.weight[rows]

    def training_weights(self, fold: int, class_weight: ClassWeights) -> Floats:
        """Weights of a fold's training rows: the user's times their class's."""
        train = self.splits[fold][0]
        own = self.row_weights(train)
        of_class = class_weights(class_weight, self.y[train], own, self.n_classes)
        return np.asarray(own * of_class[self.y[train]])

    def masses(self, class_weight: ClassWeights) -> Floats:
        """Weights of all rows in all folds, shape (n, n_folds): 0 where a row does not train."""
        mass = np.zeros((len(self.y), len(self.splits)))
        for fold, (train, _) in enumerate(self.splits):
            mass[train, fold] = self.training_weights(fold, class_weight)
        return mass


def class_weights(kind: ClassWeights, y: Indices, weight: Floats, n_classes: int) -> Floats:
    """Weight of each class, shape (n_classes,).

    ``"balanced"`` is scikit-learn's n / (n_classes * count); ``"sqrt"`` its square root, for classes that
    are rare but not worth a hundred of the others.
    """
    if kind is None:
        return np.ones(n_classes)
    if not isinstance(kind, str):
        return np.asarray(kind, np.float64)
    count = np.bincount(y, weight, minlength=n_classes)
    balanced = weight.sum() / (n_classes * np.maximum(count, np.finfo(float).tiny))
    balanced[count == 0] = 0
    return np.asarray(balanced if kind == "balanced" else np.sqrt(balanced))


class Block:
    """The rows of one block, centred on their common mean: the base of every scaling.

    Parameters
    ----------
    rows : array of shape (n, d)
        Any floating type; also a memory map.
    dtype : numpy dtype
        Of the computation.
    streamed : bool
        Whether rows are converted chunk by chunk whenever they are needed, instead of once.
    """

    def __init__(self, rows: Floats, dtype: Any, *, streamed: bool = False) -> None:
        self.n, self.d = rows.shape
        self.dtype = dtype
        self.source = rows
        total = np.zeros(self.d)
        for _, part in _chunks(rows):
            total += part.sum(axis=0, dtype=np.float64)
        self.center = (total / self.n).astype(dtype)
        self._base = None if streamed else self._centered(rows)

    def chunks(self) -> Iterator[tuple[slice, Floats]]:
        """Centred rows, with their place: all at once, or chunk by chunk where they are streamed."""
        if self._base is not None:
            yield slice(0, self.n), self._base
            return
        for where, part in _chunks(self.source):
            yield where, self._centered(part)

    def take(self, rows: Indices | slice) -> Floats:
        """Some centred rows."""
        return self._base[rows] if self._base is not None else self._centered(self.source[rows])

    def lengths(self) -> Floats:
        """Euclidean length of each row before centring, 1 for rows of zeros."""
        squares = np.empty(self.n)
        for where, part in _chunks(self.source):
            squares[where] = np.einsum("ij,ij->i", part, part, dtype=np.float64)
        return _or_one(np.sqrt(squares))

    def _centered(self, rows: Floats) -> Floats:
        return np.asarray(np.subtract(rows, self.center, dtype=self.dtype, casting="unsafe"))


class ScaledRows:
    """The rows of one representation as each fold would scale them, without a copy for each fold.

    A scaling fitted on a fold's training rows is affine in each block, up to a factor for each row:
    ``z = (x - shift) * scale * norm``. So one base matrix serves all scalings and folds: products with it
    are corrected by the fold's `shift` and `scale` (of columns) and `norm` (of rows), and every fold's fits
    share one matrix product.

    Parameters
    ----------
    blocks : sequence of arrays of shape (n, d_b), or of Block
        Blocks side by side; each is scaled on its own.
    scaling : {'standard', 'l2', 'center_l2', 'none'}
        What is done to each block.
    folds : Folds
        Training parts of which the scaling is learnt.
    kept : sequence of bool arrays of shape (d_b, n_folds), optional
        For each block the columns that each fold uses, if not all (then `scaling` is 'standard').
    memory : int
        Distance matrices are kept while they take less than this many bytes.
    """

    def __init__(
        self,
        blocks: Sequence[Floats | Block],
        scaling: str,
        folds: Folds,
        *,
        kept: Sequence[NDArray[np.bool_]] | None = None,
        memory: int = DEFAULT_MEMORY // 2,
    ) -> None:
        self.folds = folds
        self.scaling = scaling
        self.memory = memory
        own = [block if isinstance(block, Block) else Block(block, _dtype(block)) for block in blocks]
        self.n = own[0].n
        self.d = sum(block.d for block in own)
        self.dtype = own[0].dtype
        self.shared = scaling in ("none", "l2") and kept is None
        self.parts = [
            _ScaledBlock(block, scaling, folds, None if kept is None else kept[number])
            for number, block in enumerate(own)
        ]
        self._squares: dict[int, tuple[Floats, Floats]] = {}

    def of_fold(self, fold: int, rows: Indices | slice = slice(None)) -> Floats:
        """Rows as a fold scales them, shape (n, d)."""
        parts = [part.of_fold(fold, rows) for part in self.parts]
        return parts[0] if len(parts) == 1 else np.hstack(parts)

    def squared_distances(self, fold: int, left: Indices, right: Indices) -> Floats:
        """Squared Euclidean distances between rows as a fold scales them, shape (len(left), len(right))."""
        if (full := self._full(fold)) is not None:
            return full[0][np.ix_(left, right)]
        return _squared_distances(self.of_fold(fold, left), self.of_fold(fold, right))[0]

    def cosine_distances(self, fold: int, left: Indices, right: Indices) -> Floats:
        """1 - cosine between rows as a fold scales them, shape (len(left), len(right))."""
        if (full := self._full(fold)) is not None:
            squares, length = full[0][np.ix_(left, right)], full[1]
            across = np.outer(length[left], length[right])  # of squared lengths
            similarity = (length[left][:, None] + length[right] - squares) / 2
            similarity /= np.sqrt(across, out=across)
        else:
            a, b = self.of_fold(fold, left), self.of_fold(fold, right)
            similarity = (a / _lengths(a)) @ (b / _lengths(b)).T
        return np.asarray(np.clip(1 - similarity, 0, 2))

    def keep_distances(self, folds: Sequence[int], n_jobs: int) -> None:
        """Compute the distance matrices of some folds side by side, as far as they may be kept."""
        wanted = [0] if self.shared else list(folds)
        _threads(n_jobs, [(self._full, (fold,)) for fold in wanted])

    def forget_distances(self) -> None:
        """Free the distance matrices."""
        self._squares.clear()

    def _full(self, fold: int) -> tuple[Floats, Floats] | None:
        """All distances of a fold and the squared lengths, if the matrices of all folds may be kept."""
        key = 0 if self.shared else fold
        copies = 1 if self.shared else len(self.folds.splits)
        if copies * self.n**2 * np.dtype(self.dtype).itemsize > self.memory:
            return None
        if key not in self._squares:
            rows = self.of_fold(fold)
            self._squares[key] = _squared_distances(rows, rows)
        return self._squares[key]

    def times(self, weights: Floats, fold: Indices) -> Floats:
        """Scores (n, k, b) of weights (d + 1, k, b), intercepts last; `fold` (b,) is whose scaling."""
        scores = np.zeros((self.n, *weights.shape[1:]), self.dtype)
        start = 0
        for part in self.parts:
            part.add_scores(scores, weights[start : start + part.d], fold)
            start += part.d
        scores += weights[-1]
        return scores

    def transposed_times(self, residuals: Floats, fold: Indices) -> Floats:
        """Gradients (d + 1, k, b) of residuals (n, k, b)."""
        parts = [part.gradient(residuals, fold) for part in self.parts]
        return np.concatenate([*parts, _column_sums(residuals)[None]])


class _ScaledBlock:
    """What each fold does to one block: the last axis counts folds, and has length 1 if all do the same."""

    def __init__(self, block: Block, scaling: str, folds: Folds, kept: NDArray[np.bool_] | None) -> None:
        self.block, self.d = block, block.d
        self.shift: Floats = -block.center[:, None]  # (d, n_folds)
        self.scale: Floats | None = None  # (d, n_folds)
        self.norm: Floats | None = None  # (n, n_folds)
        factor = 1 / np.sqrt(self.d if kept is None else kept.sum(axis=0))
        if scaling == "none":
            self.scale = np.full((self.d, 1), factor)
        elif scaling == "l2":
            self.norm = 1 / block.lengths()[:, None]
        elif scaling == "standard":
            self._standardise(folds, factor)
        else:
            self._center(folds)
        if kept is not None:
            self.scale = kept if self.scale is None else self.scale * kept
        self.shift = self.shift.astype(block.dtype)
        self.scale = None if self.scale is None else self.scale.astype(block.dtype)
        self.norm = None if self.norm is None else self.norm.astype(block.dtype)

    def _standardise(self, folds: Folds, factor: Floats) -> None:
        share = _training_shares(folds)
        mean, square = np.zeros((2, self.d, share.shape[1]))
        for where, part in _doubled(self.block):
            mean += part.T @ share[where]
            square += np.square(part, out=part).T @ share[where]
        variance = square - mean**2
        # A column that does not vary keeps its size, as in StandardScaler.
        alike = variance <= 1e-10 * (mean**2 + self.block.center[:, None].astype(np.float64) ** 2)
        self.shift = mean
        self.scale = factor / np.sqrt(np.where(alike, 1.0, variance))

    def _center(self, folds: Folds) -> None:
        share = _training_shares(folds)
        mean = np.zeros((self.d, share.shape[1]))
        for where, part in _doubled(self.block):
            mean += part.T @ share[where]
        squares = np.empty((self.block.n, share.shape[1]))
        for where, part in _doubled(self.block):
            own = np.einsum("ij,ij->i", part, part)[:, None]
            squares[where] = own - 2 * (part @ mean) + (mean**2).sum(axis=0)
        self.shift = mean
        self.norm = 1 / _or_one(np.sqrt(np.maximum(squares, 0)))

    def of_fold(self, fold: int, rows: Indices | slice) -> Floats:
        scaled = self.block.take(rows) - _column(self.shift, fold)
        if self.scale is not None:
            scaled *= _column(self.scale, fold)
        if self.norm is not None:
            scaled *= _column(self.norm, fold)[rows, None]
        return scaled

    def add_scores(self, scores: Floats, weights: Floats, fold: Indices) -> None:
        if self.scale is not None:
            weights = weights * _columns(self.scale, fold)[:, None]
        offset = np.einsum(
            "db,dkb->kb", np.broadcast_to(_columns(self.shift, fold), weights[:, 0].shape), weights
        )
        flat = weights.reshape(self.d, -1)
        norm = None if self.norm is None else _columns(self.norm, fold)[:, None]
        for where, part in self.block.chunks():
            own = (part @ flat).reshape(-1, *weights.shape[1:])
            own -= offset
            if norm is not None:
                own *= norm[where]
            scores[where] += own

    def gradient(self, residuals: Floats, fold: Indices) -> Floats:
        if self.norm is not None:
            residuals = residuals * _columns(self.norm, fold)[:, None]
        flat = residuals.reshape(len(residuals), -1)
        total = np.zeros((self.d, flat.shape[1]), self.block.dtype)
        for where, part in self.block.chunks():
            total += part.T @ flat[where]
        gradient = total.reshape(-1, *residuals.shape[1:])
        gradient -= _columns(self.shift, fold)[:, None] * _column_sums(residuals)
        if self.scale is not None:
            gradient *= _columns(self.scale, fold)[:, None]
        return gradient


def _dtype(rows: Floats) -> Any:
    """Small problems in double precision are solved so; all others in single."""
    return np.float64 if rows.dtype == np.float64 and rows.size < DOUBLE_BELOW else np.float32


def _chunks(rows: Floats) -> Iterator[tuple[slice, Floats]]:
    for start in range(0, len(rows), CHUNK_ROWS):
        where = slice(start, min(start + CHUNK_ROWS, len(rows)))
        yield where, rows[where]


def _doubled(block: Block) -> Iterator[tuple[slice, Floats]]:
    """Centred rows in double precision, chunk by chunk; the caller may overwrite them."""
    for start in range(0, block.n, CHUNK_ROWS):
        where = slice(start, min(start + CHUNK_ROWS, block.n))
        yield where, block.take(where).astype(np.float64)


def _column(values: Floats, fold: int) -> Floats:
    """Return a fold's column, or the only one."""
    return values[:, fold if values.shape[1] > 1 else 0]


def _columns(values: Floats, fold: Indices) -> Floats:
    """Return the columns of some problems' folds: (m, b), or (m, 1) if all folds are alike."""
    return values[:, fold] if values.shape[1] > 1 else values


def _squared_distances(left: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Squared distances, and the squared lengths of the left rows."""
    length = np.einsum("ij,ij->i", left, left)
    squares = left @ right.T
    squares *= -2
    squares += length[:, None]
    squares += length if left is right else np.einsum("ij,ij->i", right, right)
    return np.maximum(squares, 0, out=squares), length


def _lengths(rows: Floats) -> Floats:
    return _or_one(np.sqrt(np.einsum("ij,ij->i", rows, rows)))[:, None]


def _training_shares(folds: Folds) -> Floats:
    """The user's weight of each row in each fold's training part, as shares of 1: (n, n_folds)."""
    mass = folds.masses(None)
    return np.asarray(mass / mass.sum(axis=0))


def _column_sums(values: Floats) -> Floats:
    """Sum over rows by BLAS: quicker and more precise than NumPy's running sum in single precision."""
    flat = values.reshape(len(values), -1)
    return np.asarray(np.ones(len(values), values.dtype) @ flat).reshape(values.shape[1:])


def _or_one(values: Floats) -> Floats:
    return np.where(values == 0, values.dtype.type(1), values)


# --- linear models: one L-BFGS for all folds and all values of C -------------------------------------


@dataclass(frozen=True)
class Task:
    """What a solver is asked: configurations of one head on one scaling of one representation.

    Parameters
    ----------
    rows : ScaledRows
        The rows, with their folds.
    params : sequence of mapping
        Parameters of each configuration.
    class_weight : str, array or None
        One class weighting for all of them.
    n_jobs : int
        Threads.
    memory : int
        Bytes that the task's own matrices may take.
    alive : callable
        ``alive(i)`` tells whether configuration i is still wanted (not pruned).
    stop : callable
        Whether time is up; then the solver returns what it has.
    make : callable, optional
        ``make(params)`` builds the classifier, for the solver ``"estimator"``.
    random_state : int
        Seed of samples.
    kernel_rows : int
        Above as many training rows, SVMs are fitted on a stratified sample of this size.
    precise : bool
        Whether linear models run until their scores, not only their answers, have settled: for the scores
        that a calibration is fitted on.
    """

    rows: ScaledRows
    params: Sequence[Mapping[str, Any]]
    class_weight: ClassWeights = None
    n_jobs: int = 1
    memory: int = DEFAULT_MEMORY
    alive: Callable[[int], bool] = lambda configuration: True
    stop: Callable[[], bool] = lambda: False
    make: Callable[[Mapping[str, Any]], Any] | None = None
    random_state: int = 0
    kernel_rows: int = KERNEL_ROWS
    precise: bool = False

    @property
    def folds(self) -> Folds:
        """Splits, targets and weights."""
        return self.rows.folds


def softmax(task: Task) -> Iterator[Answer]:
    """Multinomial logistic regression (binary: one logistic), scikit-learn's objective."""
    return _linear(task, "softmax" if task.folds.n_classes > 2 else "logistic")


def logistic_ovr(task: Task) -> Iterator[Answer]:
    """One logistic regression for each class against the rest."""
    return _linear(task, "logistic")


def squared_hinge(task: Task) -> Iterator[Answer]:
    """Linear SVM as LinearSVC: squared hinge, one against the rest, intercept penalised."""
    return _linear(task, "squared_hinge")


def _linear(task: Task, loss: str) -> Iterator[Answer]:
    folds = task.folds
    order = sorted(range(len(task.params)), key=lambda i: float(task.params[i]["C"]))
    mass = folds.masses(task.class_weight)

    def solve(rows: LinearRows, part: Sequence[tuple[int, int]]) -> list[Answer] | None:
        which = np.array([fold for _, fold in part])
        strength = np.array([1 / float(task.params[i]["C"]) for i, _ in part])
        limits: dict[str, Any] = PRECISE if task.precise else {}
        solved = solve_linear(rows, loss, which, strength, mass, stop=task.stop, **limits)
        if solved is None:
            return None
        held_out = [solved.scores[folds.splits[fold][1], :, b] for b, fold in enumerate(which)]
        return [(i, fold, _scores(own)) for (i, fold), own in zip(part, held_out, strict=True)]

    def solve_fold(fold: int) -> list[Answer] | None:
        return solve(CompactRows(task.rows, fold), [(i, fold) for i in order])

    if task.rows.d > task.rows.n:  # fewer rows than columns: each fold's rows in as many dimensions
        calls: list[Any] = [(solve_fold, (fold,)) for fold in range(len(folds.splits))]
    else:
        problems = [(i, fold) for i in order for fold in range(len(folds.splits))]
        calls = []
        for part in _parts(problems, _columns_at_once(task)):
            threads = min(task.n_jobs, len(part))
            calls += [(solve, (task.rows, part[k::threads])) for k in range(threads)]
    for some in _parts(calls, task.n_jobs):
        for answers in _threads(task.n_jobs, some):
            if answers is None:
                return
            yield from answers


def _columns_at_once(task: Task) -> int:
    """Problems whose arrays fit the memory: about 8 of scores' size and 2 m + 6 of weights' size."""
    rows, outputs = task.rows, task.folds.n_outputs
    each = outputs * np.dtype(rows.dtype).itemsize * (8 * rows.n + (2 * HISTORY + 6) * (rows.d + 1))
    return int(max(len(task.folds.splits), task.memory // each))


class CompactRows:
    """A fold's rows in as many dimensions as there are rows: a linear model sees no difference.

    The factor of the rows' Gram matrix has the same inner products; what a penalised linear model can reach
    is spanned by the rows.

    Parameters
    ----------
    rows : ScaledRows
        More columns than rows.
    fold : int
        Whose scaling.
    """

    def __init__(self, rows: ScaledRows, fold: int) -> None:
        self.folds, self.n, self.d, self.dtype = rows.folds, rows.n, rows.n, rows.dtype
        scaled = rows.of_fold(fold)
        gram = (scaled @ scaled.T).astype(np.float64)
        diagonal = gram.ravel()[:: self.n + 1]
        # The Gram matrix has one rank less than rows where they are centred: rounding must not matter.
        diagonal += 10 * np.finfo(self.dtype).eps * (float(diagonal.mean()) or 1.0)
        self.base = cholesky(gram, lower=True, overwrite_a=True, check_finite=False).astype(self.dtype)

    def times(self, weights: Floats, fold: Indices) -> Floats:
        """Scores (n, k, b) of weights (d + 1, k, b), intercepts last."""
        scores = (self.base @ weights[:-1].reshape(self.d, -1)).reshape(-1, *weights.shape[1:])
        return np.asarray(scores + weights[-1])

    def transposed_times(self, residuals: Floats, fold: Indices) -> Floats:
        """Gradients (d + 1, k, b) of residuals (n, k, b)."""
        gradient = (self.base.T @ residuals.reshape(self.n, -1)).reshape(-1, *residuals.shape[1:])
        return np.concatenate([gradient, _column_sums(residuals)[None]])


LinearRows = ScaledRows | CompactRows


@dataclass(frozen=True)
class LinearSolution:
    """Weights (d + 1, n_outputs, b) on scaled rows, scores (n, n_outputs, b), iterations (b,)."""

    weights: Floats
    scores: Floats
    iterations: Indices


def solve_linear(
    rows: LinearRows,
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
    rows : ScaledRows or CompactRows
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
        Largest gradient component, as a part of the largest at zero, at which a problem is done.
    max_iterations : int
        Of L-BFGS.
    stop : callable
        Asked in every iteration; None is returned when it says yes.

    Returns
    -------
    LinearSolution or None
    """
    return _BatchedLBFGS(rows, loss, fold, strength, mass).run(tolerance, max_iterations, stop)


class _BatchedLBFGS:
    """State of the problems that still run; the last axis of every array counts them."""

    def __init__(self, rows: LinearRows, loss: str, fold: Indices, strength: Floats, mass: Floats) -> None:
        dtype, outputs, b = rows.dtype, rows.folds.n_outputs, len(fold)
        self.rows, self.fold, self.id = rows, fold, np.arange(b)
        self.loss = _LOSSES[loss](rows.folds, mass[:, fold].astype(dtype), dtype)
        self.penalty = np.broadcast_to(strength.astype(dtype), (rows.d + 1, 1, b)).copy()
        if loss != "squared_hinge":
            self.penalty[-1] = 0
        self.weights = np.zeros((rows.d + 1, outputs, b), dtype)
        self.scores = np.zeros((rows.n, outputs, b), dtype)
        self.value = self.loss.value(self.scores)
        self.gradient = rows.transposed_times(self.loss.slope(), fold)
        self.start = np.abs(self.gradient).max(axis=(0, 1))
        self.steps: list[Floats] = []
        self.turns: list[Floats] = []
        self.curvatures: list[Floats] = []
        self.noise = 20 * np.finfo(dtype).eps
        self.solution = LinearSolution(
            np.zeros_like(self.weights), np.zeros_like(self.scores), np.zeros(b, np.intp)
        )

    def run(self, tolerance: float, max_iterations: int, stop: Callable[[], bool]) -> LinearSolution | None:
        self.stalls = np.zeros(len(self.id), np.intp)
        for iteration in range(1, max_iterations + 1):
            if stop():
                return None
            gain = self._iterate()
            done = np.abs(self.gradient).max(axis=(0, 1)) <= tolerance * self.start
            stalled = gain <= self.noise * np.abs(self.value)
            self.stalls = np.where(stalled, self.stalls + 1, 0)
            done |= self.stalls >= 3  # the objective moves no more than rounding does
            if iteration == max_iterations:
                done[:] = True
            if done.all() or done.mean() >= 0.25:  # compaction copies, so a few alone do not leave
                self._retire(done, iteration)
            if not len(self.id):
                break
        return self.solution

    def _iterate(self) -> Floats:
        """One step of all problems; returns how much each objective fell."""
        direction = self._direction()
        descent = _dots(self.gradient, direction)
        if (upward := descent >= 0).any():
            direction[..., upward] = -self.gradient[..., upward]
            descent = _dots(self.gradient, direction)
        moved = self.rows.times(direction, self.fold)
        pull = self.penalty * self.weights
        ridge = (0.5 * _dots(pull, self.weights), _dots(pull, direction),
                 0.5 * _dots(self.penalty * direction, direction))  # fmt: skip
        length = np.ones_like(descent)
        slack = self.noise * np.abs(self.value)
        for _ in range(20):
            scores = self.scores + length * moved
            value = self.loss.value(scores) + ridge[0] + length * ridge[1] + length**2 * ridge[2]
            fine = value <= self.value + 1e-4 * length * descent + slack
            if fine.all():
                break
            excess = np.maximum(2 * (value - self.value - length * descent), np.finfo(value.dtype).tiny)
            shorter = np.clip(-descent * length**2 / excess, 0.1 * length, 0.5 * length)
            length = np.where(fine, length, shorter)
        step = length * direction
        self.weights = self.weights + step
        gradient = self.rows.transposed_times(self.loss.slope(), self.fold) + self.penalty * self.weights
        self._remember(step, gradient - self.gradient)
        gain = self.value - value
        self.scores, self.value, self.gradient = scores, value, gradient
        return np.asarray(gain)

    def _direction(self) -> Floats:
        """L-BFGS's two loops, for each problem its own (Nocedal and Wright, algorithm 7.4)."""
        q = self.gradient.copy()
        if not self.steps:
            q *= -1 / np.sqrt(np.maximum(_dots(q, q), np.finfo(q.dtype).tiny))
            return q
        weights = []
        for step, turn, curvature in zip(
            reversed(self.steps), reversed(self.turns), reversed(self.curvatures), strict=True
        ):
            weights.append(curvature * _dots(step, q))
            q -= weights[-1] * turn
        last, tiny = self.turns[-1], np.finfo(q.dtype).tiny
        q *= np.maximum(_dots(self.steps[-1], last), tiny) / np.maximum(_dots(last, last), tiny)
        for step, turn, curvature, weight in zip(
            self.steps, self.turns, self.curvatures, reversed(weights), strict=True
        ):
            q += (weight - curvature * _dots(turn, q)) * step
        return np.negative(q, out=q)

    def _remember(self, step: Floats, turn: Floats) -> None:
        product = _dots(step, turn)
        curved = product > np.finfo(step.dtype).eps * _dots(turn, turn) * 1e-6
        self.steps.append(step)
        self.turns.append(turn)
        self.curvatures.append(np.where(curved, 1 / np.where(curved, product, 1), 0).astype(step.dtype))
        if len(self.steps) > HISTORY:
            del self.steps[0], self.turns[0], self.curvatures[0]

    def _retire(self, done: NDArray[np.bool_], iteration: int) -> None:
        leaving, kept = self.id[done], ~done
        self.solution.weights[..., leaving] = self.weights[..., done]
        self.solution.scores[..., leaving] = self.scores[..., done]
        self.solution.iterations[leaving] = iteration
        for name in ("id", "fold", "penalty", "weights", "scores", "value", "gradient", "start", "stalls"):
            setattr(self, name, getattr(self, name)[..., kept])
        self.steps, self.turns, self.curvatures = (
            [own[..., kept] for own in history] for history in (self.steps, self.turns, self.curvatures)
        )
        self.loss.keep(kept)


def _dots(a: Floats, b: Floats) -> Floats:
    """Inner product of each problem, shape (b,)."""
    return np.asarray(np.einsum("dkb,dkb->b", a, b))


class _Loss:
    """A loss of scores (n, k, b), weighted by mass (n, b); `slope` is that of the last value asked."""

    def __init__(self, folds: Folds, mass: Floats, dtype: Any) -> None:
        self.mass = mass[:, None, :]
        self.y = folds.y
        self._last: Floats = np.empty(0)
        signs = np.where(np.arange(folds.n_classes) == folds.y[:, None], 1, -1).astype(dtype)
        self.sign = (signs[:, 1:] if folds.n_classes == 2 else signs)[:, :, None]  # (n, k, 1)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        self.mass = self.mass[..., kept]
        self._last = self._last[..., kept]

    def value(self, scores: Floats) -> Floats:
        raise NotImplementedError

    def slope(self) -> Floats:
        raise NotImplementedError


class _Logistic(_Loss):
    """log(1 + exp(-sign * score)) for each output."""

    def value(self, scores: Floats) -> Floats:
        margin = scores * self.sign
        self._last = np.exp(-np.abs(margin))
        value = np.log1p(self._last)
        value -= np.minimum(margin, 0)
        self._positive = margin > 0
        return np.asarray(np.einsum("nkb,nb->b", value, self.mass[:, 0]))

    def slope(self) -> Floats:
        # 1 / (1 + exp(margin)) from exp(-|margin|), without overflow
        chance = np.where(self._positive, self._last, 1) / (1 + self._last)
        chance *= -self.sign
        chance *= self.mass
        return np.asarray(chance)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        super().keep(kept)
        self._positive = self._positive[..., kept]


class _Softmax(_Loss):
    """-log of the true class's softmax."""

    def value(self, scores: Floats) -> Floats:
        top = scores.max(axis=1, keepdims=True)
        self._last = np.exp(scores - top)
        self._total = self._last.sum(axis=1)
        value = np.log(self._total)
        value += top[:, 0]
        value -= scores[np.arange(len(self.y)), self.y]
        return np.asarray(np.einsum("nb,nb->b", value, self.mass[:, 0]))

    def slope(self) -> Floats:
        mass = self.mass[:, 0]
        chance = self._last * (mass / self._total)[:, None]
        chance[np.arange(len(self.y)), self.y] -= mass
        return np.asarray(chance)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        super().keep(kept)
        self._total = self._total[..., kept]


class _SquaredHinge(_Loss):
    """max(0, 1 - sign * score)^2 for each output."""

    def value(self, scores: Floats) -> Floats:
        self._last = np.maximum(1 - scores * self.sign, 0)
        return np.asarray(np.einsum("nkb,nkb,nb->b", self._last, self._last, self.mass[:, 0]))

    def slope(self) -> Floats:
        slope = self._last * (-2 * self.sign)
        slope *= self.mass
        return np.asarray(slope)


_LOSSES: dict[str, type[_Loss]] = {"softmax": _Softmax, "logistic": _Logistic, "squared_hinge": _SquaredHinge}


# --- closed forms ------------------------------------------------------------------------------------


def ridge(task: Task) -> Iterator[Answer]:
    """RidgeClassifier for all alphas: one Gram matrix for each fold, one Cholesky for each alpha."""
    return _by_fold(task, _ridge_fold)


def lda(task: Task) -> Iterator[Answer]:
    """LinearDiscriminantAnalysis (lsqr) for all shrinkages, from one within-class Gram matrix a fold."""
    return _by_fold(task, _lda_fold)


def nearest_mean(task: Task) -> Iterator[Answer]:
    """Minus the squared distance to each class's mean."""
    return _by_fold(task, _nearest_mean_fold)


def neighbours(task: Task) -> Iterator[Answer]:
    """Every k, weighting and metric from one distance matrix and one sorted top k for each fold."""
    return _by_fold(task, _neighbours_fold)


FoldSolver = Callable[[Task, int], list[Floats]]


def _by_fold(task: Task, solve: FoldSolver) -> Iterator[Answer]:
    """Folds side by side in threads; all configurations of a fold together."""
    folds = range(len(task.folds.splits))
    for part in _parts(list(folds), max(1, task.n_jobs)):
        if task.stop():
            return
        solved = _threads(task.n_jobs, [(solve, (task, fold)) for fold in part])
        for fold, answers in zip(part, solved, strict=True):
            for i, scores in enumerate(answers):
                yield i, fold, scores


def _ridge_fold(task: Task, fold: int) -> list[Floats]:
    train, test = task.folds.splits[fold]
    rows = task.rows.of_fold(fold)
    weight = task.folds.training_weights(fold, task.class_weight)
    target = np.where(np.arange(task.folds.n_classes) == task.folds.y[train, None], 1.0, -1.0)
    target = target[:, 1:] if task.folds.n_classes == 2 else target
    share = weight / weight.sum()
    center = (share @ rows[train]).astype(rows.dtype)
    offset = share @ target
    root = np.sqrt(weight)[:, None].astype(rows.dtype)
    inner = (rows[train] - center) * root
    solutions = penalised_solutions(inner, [float(p["alpha"]) for p in task.params], (target - offset) * root)
    held_out = rows[test] - center
    return [_scores(held_out @ weights + offset) for weights in solutions]


def _lda_fold(task: Task, fold: int) -> list[Floats]:
    train, test = task.folds.splits[fold]
    rows = task.rows.of_fold(fold)
    shrinkages = [float(p["shrinkage"]) for p in task.params]
    solved = solve_lda(rows[train], task.folds.y[train], task.folds.n_classes, shrinkages)
    scores = (rows[test] @ weights + offset for _, weights, offset in solved)
    return [_scores(own[:, 1:] - own[:, :1] if task.folds.n_classes == 2 else own) for own in scores]


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
    trace = float(np.einsum("ij,ij->", spread, spread)) / n / d or 1.0  # one row a class: the sphere alone
    # (1 - s) * spread' spread / n + s * trace * I, divided by (1 - s) / n
    strengths = [s * trace * n / (1 - s) for s in shrinkages]
    for shrinkage, inverse in zip(shrinkages, penalised_inverses(spread, strengths, means.T), strict=True):
        weights = inverse * n / (1 - shrinkage)
        yield means, weights, np.log(count / n) - 0.5 * np.einsum("cd,dc->c", means, weights)


def _nearest_mean_fold(task: Task, fold: int) -> list[Floats]:
    train, test = task.folds.splits[fold]
    rows = task.rows.of_fold(fold)
    y, classes = task.folds.y[train], task.folds.n_classes
    means = _class_means(rows[train], y, classes)
    own = np.einsum("ij,ij->i", rows[test], rows[test])[:, None]
    scores = 2 * rows[test] @ means.T - np.einsum("ij,ij->i", means, means) - own
    scores = scores[:, 1:] - scores[:, :1] if classes == 2 else scores
    return [_scores(scores)] * len(task.params)


def _neighbours_fold(task: Task, fold: int) -> list[Floats]:
    train, test = task.folds.splits[fold]
    y, classes = task.folds.y[train], task.folds.n_classes
    most = max(int(p["n_neighbors"]) for p in task.params)
    nearest = {
        metric: _nearest(task.rows, fold, metric, min(most, len(train)))
        for metric in {p["metric"] for p in task.params}
    }
    answers = []
    for params in task.params:
        index, distance = (part[:, : int(params["n_neighbors"])] for part in nearest[params["metric"]])
        votes = _vote_weights(params, distance)
        cell = np.arange(len(test))[:, None] * classes + y[index]
        shares = np.bincount(cell.ravel(), votes.ravel(), minlength=len(test) * classes)
        shares = shares.reshape(len(test), classes)
        answers.append(shares / shares.sum(axis=1, keepdims=True))
    return answers


def _nearest(rows: ScaledRows, fold: int, metric: str, k: int) -> tuple[Indices, Floats]:
    """The k nearest training rows of each test row, nearest first: indices into train, distances."""
    train, test = rows.folds.splits[fold]
    found = [
        _nearest_of(rows, fold, metric, k, train, part)
        for part in np.split(test, range(CHUNK_ROWS, len(test), CHUNK_ROWS))
    ]
    return np.concatenate([index for index, _ in found]), np.concatenate([distance for _, distance in found])


def _nearest_of(
    rows: ScaledRows, fold: int, metric: str, k: int, train: Indices, test: Indices
) -> tuple[Indices, Floats]:
    if metric == "cosine":
        distance = rows.cosine_distances(fold, test, train)
    else:
        distance = np.sqrt(rows.squared_distances(fold, test, train))
    if k < len(train):
        index = np.argpartition(distance, k - 1, axis=1)[:, :k]
    else:
        index = np.broadcast_to(np.arange(len(train)), distance.shape)
    own = np.take_along_axis(distance, index, axis=1)
    order = np.argsort(own, axis=1, kind="stable")
    return np.take_along_axis(index, order, axis=1), np.take_along_axis(own, order, axis=1)


def _vote_weights(params: Mapping[str, Any], distance: Floats) -> Floats:
    if params["weights"] == "uniform":
        return np.ones_like(distance)
    if params["weights"] == "temperature":
        return np.asarray(np.exp((distance[:, :1] - distance) / params["temperature"]))
    same = distance == 0  # a twin decides alone, as in scikit-learn
    return np.where(same.any(axis=1, keepdims=True), same, 1 / np.where(same, 1, distance))


def penalised_solutions(rows: Floats, strengths: Sequence[float], target: Floats) -> Iterator[Floats]:
    """(rows' rows + strength I)^-1 rows' target for each strength, by the smaller Gram matrix."""
    n, d = rows.shape
    if d <= n:
        yield from _solves(rows.T @ rows, strengths, rows.T @ target)
        return
    for dual in _solves(rows @ rows.T, strengths, target):
        yield rows.T @ dual.astype(rows.dtype)


def penalised_inverses(rows: Floats, strengths: Sequence[float], target: Floats) -> Iterator[Floats]:
    """(rows' rows + strength I)^-1 target, target of shape (d, k), by the smaller Gram matrix (Woodbury)."""
    n, d = rows.shape
    if d <= n:
        yield from _solves(rows.T @ rows, strengths, target)
        return
    for strength, dual in zip(strengths, _solves(rows @ rows.T, strengths, rows @ target), strict=True):
        yield (target - rows.T @ dual.astype(rows.dtype)) / strength


def _solves(gram: Floats, strengths: Sequence[float], target: Floats) -> Iterator[Floats]:
    gram = gram.astype(np.float64)
    diagonal = gram.ravel()[:: len(gram) + 1]
    bare = diagonal.copy()
    floor = 1e-7 * float(bare.mean())  # the Gram matrix is single precision: below this it may be indefinite
    for strength in strengths:
        diagonal[:] = bare + max(strength, floor)
        yield cho_solve(cho_factor(gram, lower=True, check_finite=False), target, check_finite=False)


def _class_means(rows: Floats, y: Indices, classes: int) -> Floats:
    member = np.arange(classes)[:, None] == y
    return np.asarray((member / member.sum(axis=1, keepdims=True)).astype(rows.dtype) @ rows)


def _scores(scores: Floats) -> Floats:
    return scores[:, 0] if scores.shape[1] == 1 else scores


# --- heads that scikit-learn fits --------------------------------------------------------------------


def rbf_svm(task: Task) -> Iterator[Answer]:
    """RBF SVMs: distances once a fold, the kernel once for each (fold, gamma), every C on it.

    After the first fold configurations may be pruned. With more than ``task.kernel_rows`` training rows
    each fit uses a stratified sample of them.
    """
    by_gamma: dict[float, list[int]] = {}
    for i, params in enumerate(task.params):
        by_gamma.setdefault(float(params["gamma"]), []).append(i)
    folds = range(len(task.folds.splits))
    for fold in folds:
        train = kernel_sample(task.folds, fold, task.kernel_rows, task.random_state)
        workers = max(1, min(task.n_jobs, int(task.memory // (12 * len(train) * task.rows.n + 1))))
        task.rows.keep_distances(folds[fold : fold + task.n_jobs], task.n_jobs)
        squares = (
            task.rows.squared_distances(fold, train, train),
            task.rows.squared_distances(fold, task.folds.splits[fold][1], train),
        )
        groups = [[i for i in own if task.alive(i)] for own in by_gamma.values()]
        groups = _spread([group for group in groups if group], workers)
        for part in _parts(groups, workers):
            if task.stop():
                return
            solved = _threads(workers, [(_svm_fits, (task, squares, train, group)) for group in part])
            for answers in solved:
                for i, scores in answers:
                    yield i, fold, scores


def kernel_sample(folds: Folds, fold: int, most: int, random_state: int) -> Indices:
    """Training rows of a fold, or a stratified sample of `most` of them."""
    train = folds.splits[fold][0]
    if len(train) <= most:
        return train
    rng = np.random.default_rng([random_state, fold])
    place = rng.permutation(len(train))
    y = folds.y[train]
    order = np.lexsort((place, y))
    rank = np.empty(len(train))
    starts = np.searchsorted(y[order], np.arange(folds.n_classes))
    count = np.bincount(y, minlength=folds.n_classes)
    rank[order] = (np.arange(len(train)) - starts[y[order]] + 0.5) / count[y[order]]  # even within a class
    return np.sort(train[np.argsort(rank, kind="stable")[:most]])


def _spread(groups: list[list[int]], workers: int) -> list[list[int]]:
    """Split the largest groups until every worker has one."""
    while groups and len(groups) < workers and len(largest := max(groups, key=len)) > 1:
        groups.remove(largest)
        groups += [largest[::2], largest[1::2]]
    return groups


def _svm_fits(
    task: Task, squares: tuple[Floats, Floats], train: Indices, group: list[int]
) -> list[tuple[int, Floats]]:
    gamma = float(task.params[group[0]]["gamma"])
    kernel, held_out = (np.exp(own * np.asarray(-gamma, own.dtype)).astype(np.float64) for own in squares)
    own = task.folds.row_weights(train)
    y = task.folds.y[train]
    weight = own * class_weights(task.class_weight, y, own, task.folds.n_classes)[y]
    plain = task.folds.weight is None and task.class_weight is None
    answers = []
    with sklearn.config_context(assume_finite=True):
        for i in group:
            svm = SVC(C=float(task.params[i]["C"]), kernel="precomputed", cache_size=200)
            svm.fit(kernel, y, None if plain else weight)
            answers.append((i, svm.decision_function(held_out)))
    return answers


def estimator(task: Task) -> Iterator[Answer]:
    """Any scikit-learn classifier, fold by fold, so that hopeless configurations can be pruned."""
    assert task.make is not None
    for fold in range(len(task.folds.splits)):
        rows = task.rows.of_fold(fold)
        wanted = [i for i in range(len(task.params)) if task.alive(i)]
        for part in _parts(wanted, max(1, task.n_jobs)):
            if task.stop():
                return
            solved = _threads(task.n_jobs, [(_estimator_fit, (task, rows, fold, i)) for i in part])
            for i, scores in zip(part, solved, strict=True):
                yield i, fold, scores


def _estimator_fit(task: Task, rows: Floats, fold: int, i: int) -> Floats:
    train, test = task.folds.splits[fold]
    assert task.make is not None
    model = task.make(task.params[i])
    plain = task.folds.weight is None and task.class_weight is None
    weight = None if plain else task.folds.training_weights(fold, task.class_weight)
    last = f"{model.steps[-1][0]}__sample_weight" if hasattr(model, "steps") else "sample_weight"
    with sklearn.config_context(assume_finite=True):
        model.fit(rows[train], task.folds.y[train], **({} if weight is None else {last: weight}))
        if hasattr(model, "decision_function"):
            return np.asarray(model.decision_function(rows[test]))
        return np.asarray(model.predict_proba(rows[test]))


SOLVERS: dict[str, Callable[[Task], Iterator[Answer]]] = {
    "softmax": softmax,
    "logistic_ovr": logistic_ovr,
    "squared_hinge": squared_hinge,
    "ridge": ridge,
    "lda": lda,
    "nearest_mean": nearest_mean,
    "neighbours": neighbours,
    "rbf_svm": rbf_svm,
    "estimator": estimator,
}


LINEAR = ("softmax", "logistic_ovr", "squared_hinge")
"""Solvers that iterate, and stop when answers have settled."""


def _threads(n_jobs: int, calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    if n_jobs == 1 or len(calls) == 1:
        return [function(*arguments) for function, arguments in calls]
    with ThreadPoolExecutor(min(n_jobs, len(calls))) as pool:  # joblib polls for results every 10 ms
        return [future.result() for future in [pool.submit(f, *a) for f, a in calls]]


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
