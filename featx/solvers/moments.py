"""Class sums and second moments of every fold's training part, from one pass over the rows.

Ridge regression, discriminant analysis and the nearest mean need no more than that, for all folds and
penalties at once, however many rows there are. Parts that are in the same folds are summed once: of k folds
each row is in k - 1 training parts, and is multiplied once. Products are taken in the rows' precision, chunk
by chunk, and summed in double precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

from featx.solvers.folds import ClassWeights, Floats, Folds, Indices

WELL_CONDITIONED = 1e4
"""Condition up to which a system is solved in single precision, at half the cost: its rounding, times this,
leaves three digits of a solution in the worst direction and five in the others."""

ROUNDING = 1e-6
"""A variance below this share of the column's sum of squares is a rounding error of single precision."""

SLAB = 256
"""Rows of a large matrix that are changed at a time."""

Group = tuple[Indices, Floats]
"""Rows (sorted) that are summed together, and their weights."""


@dataclass(frozen=True)
class Moments:
    """Moments of one training part.

    Parameters
    ----------
    count : array of shape (n_classes,)
        Weight of each class.
    sums : array of shape (n_classes, d)
        Weighted sum of each class's rows.
    second : array of shape (d, d)
        Weighted sum of the rows' outer products.
    """

    count: Floats
    sums: Floats
    second: Floats

    @property
    def weight(self) -> float:
        """Of all rows."""
        return float(self.count.sum())

    @property
    def mean(self) -> Floats:
        """Weighted mean row, shape (d,)."""
        return np.asarray(self.sums.sum(axis=0) / self.weight)

    @property
    def means(self) -> Floats:
        """Mean row of each class, shape (n_classes, d); zeros for a class without rows."""
        return np.asarray(self.sums / np.where(self.count == 0, 1, self.count)[:, None])

    def scaled(self, shift: Floats, scale: Floats) -> Moments:
        """Moments of ``(row - shift) * scale``; `second` is overwritten.

        A column that is constant here, but not in the rows that the base was centred on, is left with what
        rounding makes of its square, which may be negative: it says nothing, so it is put to zero.
        """
        total, square = self.sums.sum(axis=0), np.diagonal(self.second).copy()
        silent = square - total**2 / self.weight <= ROUNDING * square
        left = np.column_stack([shift, total - self.weight * shift])
        second = subtract_product(self.second, left, np.stack([total, shift]))
        scale = np.where(silent, 0.0, scale)
        second *= scale[:, None]
        second *= scale
        return Moments(self.count, (self.sums - self.count[:, None] * shift) * scale, second)


class FoldMoments:
    """Moments of every fold's training part, from one pass: a (d, d) matrix for each group of rows.

    There are as many groups as folds, or one more where folds are drawn several times.

    Parameters
    ----------
    folds : Folds
        Training parts, classes, weights.
    class_weight : str, array or None
        Class weights depend on a fold's counts: with them every fold is summed by itself.
    apart : bool
        Whether each fold has rows of its own (scaled by their length from the fold's mean).
    """

    def __init__(self, folds: Folds, class_weight: ClassWeights, *, apart: bool = False) -> None:
        self.folds = folds
        if class_weight is None and not apart:
            self.groups, self.combine = _shared_groups(folds)
        else:
            self.groups = [
                (train, folds.training_weights(fold, class_weight))
                for fold, (train, _) in enumerate(folds.splits)
            ]
            self.combine = np.eye(len(folds.splits))
        self.apart = apart

    def sum_up(
        self,
        read: Callable[[Indices, int], Floats],
        d: int,
        *,
        chunk: int,
        run: Callable[[Sequence[tuple[Callable[..., None], tuple[int]]]], object],
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Pass over the rows once.

        Parameters
        ----------
        read : callable
            ``read(rows, fold)`` gives some rows; `fold` matters where each has its own.
        d : int
            Columns.
        chunk : int
            Rows that are read at a time.
        run : callable
            Calls (function, arguments) pairs, side by side if it likes.
        stop : callable
            Asked between chunks.

        Returns
        -------
        bool
            False if it was stopped.
        """
        classes, n_groups = self.folds.n_classes, len(self.groups)
        self.count = np.stack(
            [np.bincount(self.folds.y[rows], weight, minlength=classes) for rows, weight in self.groups]
        )
        self.sums = np.zeros((n_groups, classes, d))
        self.second = np.zeros((n_groups, d, d))
        for start in range(0, len(self.folds.y), chunk):
            if stop():
                return False
            where = np.arange(start, min(start + chunk, len(self.folds.y)))
            values = None if self.apart else read(where, 0)

            def add(group: int, start: int = start, values: Floats | None = values) -> None:
                rows, weight = self._part(group, start, start + chunk)
                if not len(rows):
                    return
                own = read(rows, group) if values is None else values[rows - start]
                if (weight != 1).any():
                    own = own * np.sqrt(weight).astype(own.dtype)[:, None]
                self.second[group] += own.T @ own
                member = (np.arange(classes)[:, None] == self.folds.y[rows]) * np.sqrt(weight)
                self.sums[group] += member.astype(own.dtype) @ own

            run([(add, (group,)) for group in range(n_groups)])
        return True

    def of(self, fold: int) -> Moments:
        """Moments of a fold's training part."""
        part = self.combine[fold]
        used = np.flatnonzero(part)
        second = self.second[used[0]] * part[used[0]]
        for group in used[1:]:
            second += part[group] * self.second[group]
        return Moments(part @ self.count, np.tensordot(part, self.sums, 1), second)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.second.nbytes + self.sums.nbytes

    def _part(self, group: int, start: int, stop: int) -> Group:
        rows, weight = self.groups[group]
        low, high = np.searchsorted(rows, (start, stop))
        return rows[low:high], weight[low:high]


def moment_bytes(folds: Folds, d: int, threads: int = 1) -> int:
    """Bytes of all folds' moments, and of solving with them: (folds + 1 + 3 threads) * d^2 * 8 and less."""
    groups = len(folds.splits) + 1
    return 8 * d * (d * (groups + 3 * threads) + groups * folds.n_classes)


def ridge_of_moments(moments: Moments, alphas: Sequence[float]) -> Iterator[tuple[Floats, Floats]]:
    """RidgeClassifier of each alpha: weights (d, k) and intercepts (k,). `second` is overwritten."""
    mean, share = moments.mean, moments.count / moments.weight
    target = 2 * (moments.sums - moments.count[:, None] * mean).T  # rows' products with -1/+1 targets
    offset = 2 * share - 1
    if len(share) == 2:
        target, offset = target[:, 1:], offset[1:]
    spread = subtract_product(moments.second, moments.weight * mean[:, None], mean[None])
    for weights in solve_penalised(spread, alphas, target):
        yield weights, offset - mean @ weights


def lda_of_moments(moments: Moments, shrinkages: Sequence[float]) -> Iterator[tuple[Floats, Floats, Floats]]:
    """`solve_lda` from moments: means (C, d), weights (d, C), offsets (C,). `second` is overwritten."""
    n, d, means = moments.weight, moments.second.shape[0], moments.means
    spread = subtract_product(moments.second, (means * moments.count[:, None]).T, means)
    trace = max(float(np.trace(spread)), 0.0) / n / d or 1.0
    strengths = [s * trace * n / (1 - s) for s in shrinkages]
    for shrinkage, inverse in zip(shrinkages, solve_penalised(spread, strengths, means.T), strict=True):
        weights = inverse * n / (1 - shrinkage)
        offset = np.log(moments.count / n) - 0.5 * np.einsum("cd,dc->c", means, weights)
        yield means, weights, offset


def solve_penalised(gram: Floats, strengths: Sequence[float | Floats], target: Floats) -> Iterator[Floats]:
    """(gram + diag(strength))^-1 target for each strength; in double precision where single would not do."""
    bare = np.diagonal(gram).astype(np.float64)
    floor = 1e-7 * float(bare.mean())  # the Gram matrix is single precision: below this it may be indefinite
    for strength in strengths:
        least = max(float(np.min(strength)), floor)
        # The diagonal's sum bounds the largest eigenvalue.
        plain = gram.dtype == np.float32 and bare.sum() < WELL_CONDITIONED * least
        system = gram.astype(np.float32 if plain else np.float64, order="C")
        system.ravel()[:: len(gram) + 1] = bare + np.maximum(strength, floor)
        factor = cho_factor(system.T, lower=True, overwrite_a=True, check_finite=False)  # .T: no copy
        yield cho_solve(factor, target.astype(system.dtype), overwrite_b=True, check_finite=False)


def subtract_product(matrix: Floats, left: Floats, right: Floats) -> Floats:
    """``matrix - left @ right`` in place, some rows at a time."""
    for start in range(0, len(matrix), SLAB):
        matrix[start : start + SLAB] -= left[start : start + SLAB] @ right
    return matrix


def _shared_groups(folds: Folds) -> tuple[list[Group], Floats]:
    """Disjoint parts of which every training part is a sum; else all rows, less what each fold leaves out."""
    n, n_folds = len(folds.y), len(folds.splits)
    trains = np.zeros((n, n_folds), bool)
    for fold, (train, _) in enumerate(folds.splits):
        trains[train, fold] = True
    patterns, pattern = np.unique(np.packbits(trains, axis=1), axis=0, return_inverse=True)
    if len(patterns) <= n_folds:
        parts = [np.flatnonzero(pattern == k) for k in range(len(patterns))]
        combine = np.array([trains[part[0]] for part in parts]).T.astype(float)
    else:
        parts = [np.arange(n), *(np.flatnonzero(~trains[:, fold]) for fold in range(n_folds))]
        combine = np.column_stack([np.ones(n_folds), -np.eye(n_folds)])
    return [(part, folds.row_weights(part)) for part in parts], combine
