"""Features as each fold scales them, and the products that fits share, without a copy for each fold."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.solvers.descent import inner_products
from featx.solvers.folds import Floats, Folds, Indices
from featx.solvers.moments import FoldMoments, moment_bytes

DEFAULT_MEMORY = 4 * 2**30
"""Bytes that the matrices of one group of fits may take."""

CHUNK_ROWS = 4096
"""Rows that are converted, scaled or compared at a time."""

SAMPLE_ROWS = 1024
"""Rows from which the size of the mean is estimated."""

DOUBLE_BELOW = 200_000
"""Matrices with fewer values are solved in double precision, which costs little for them."""


class Block:
    """The features of one block, centred on their common mean: the base of every scaling.

    Parameters
    ----------
    rows : array of shape (n, d)
        Any floating type; also a memory map, or an object that returns some rows by indexing.
    dtype : numpy dtype
        Of the computation.
    streamed : bool
        Whether rows are read and converted chunk by chunk whenever they are needed, instead of once. They
        are then centred on the mean of a sample.
    """

    def __init__(self, rows: Any, dtype: Any, *, streamed: bool = False) -> None:
        self.n, self.d = rows.shape
        self.dtype = dtype
        self.source = rows
        self.streamed = streamed
        total, count = np.zeros(self.d), 0
        for _, part in _chunks(_sample(rows) if streamed else rows):
            total += part.sum(axis=0, dtype=np.float64)
            count += len(part)
        self.center = (total / count).astype(dtype)
        self._base = None if streamed else self._centered(rows)
        self._gram: Floats | None = None
        self._computing = threading.Lock()

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

    def gram(self) -> Floats:
        """Inner products of all centred rows, shape (n, n); computed once."""
        with self._computing:
            if self._gram is None:
                base = self.take(slice(None))
                self._gram = base @ base.T
            return self._gram

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(own.nbytes for own in (self._base, self._gram) if own is not None)

    def lengths(self) -> Floats:
        """Euclidean length of each row before centring, 1 for rows of zeros."""
        squares = np.empty(self.n)
        for where, part in _chunks(self.source):
            squares[where] = np.einsum("ij,ij->i", part, part, dtype=np.float64)
        return _or_one(np.sqrt(squares))

    def _centered(self, rows: Floats) -> Floats:
        return np.asarray(np.subtract(rows, self.center, dtype=self.dtype, casting="unsafe"))


class ScaledFeatures:
    """The features of one representation as each fold scales them, without a copy for each fold.

    A scaling fitted on a fold's training rows is affine in each block, up to a factor for each row:
    ``z = (x - shift) * scale * norm``. So one base matrix serves all scalings and folds: products with it
    are corrected by the fold's `shift` and `scale` (of columns) and `norm` (of rows), and every fold's fits
    share one matrix product. Where rows are few, a fold's Gram matrix, the sum of its blocks', says all
    that any head needs to know.

    Parameters
    ----------
    blocks : sequence of arrays of shape (n, d_b), of Block, or of ScaledBlock
        Blocks side by side; each is scaled on its own.
    scaling : {'standard', 'l2', 'center_l2', 'none'}
        What is done to each block.
    folds : Folds
        Training parts of which the scaling is learnt.
    kept : sequence of bool arrays of shape (d_b, n_folds), optional
        For each block the columns that each fold uses, if not all (then `scaling` is 'standard').
    memory : int
        Gram matrices are kept while they take less than this many bytes.
    """

    def __init__(
        self,
        blocks: Sequence[Floats | Block | ScaledBlock],
        scaling: str,
        folds: Folds,
        *,
        kept: Sequence[NDArray[np.bool_]] | None = None,
        memory: int = DEFAULT_MEMORY // 2,
    ) -> None:
        self.folds = folds
        self.scaling = scaling
        self.parts = [
            block
            if isinstance(block, ScaledBlock)
            else ScaledBlock(block, scaling, folds, kept=None if kept is None else kept[number])
            for number, block in enumerate(blocks)
        ]
        self.n = self.parts[0].block.n
        self.d = sum(part.d for part in self.parts)
        self.height = self.d + 1
        self.intercepts = [-1]
        self.dtype = self.parts[0].block.dtype
        self.alike = all(part.alike for part in self.parts)
        matrices = sum(1 if part.alike else len(folds.splits) for part in self.parts)
        self.streamed = any(part.block.streamed for part in self.parts)
        self.apart = any(part.apart for part in self.parts)
        self.memory = memory
        self.moments: FoldMoments | None = None
        self.curvature: Any = None
        self.affords_gram = bool(matrices * self.n**2 * np.dtype(self.dtype).itemsize <= memory)

    def of_fold(self, fold: int, rows: Indices | slice = slice(None)) -> Floats:
        """Rows as a fold scales them, shape (n, d)."""
        parts = [part.of_fold(fold, rows) for part in self.parts]
        return parts[0] if len(parts) == 1 else np.hstack(parts)

    def gram(self, fold: int) -> Floats:
        """Inner products of all rows as a fold scales them, shape (n, n); not to be overwritten."""
        grams = [part.gram(fold) for part in self.parts]
        return grams[0] if len(grams) == 1 else np.asarray(sum(grams))

    def fold_products(self, fold: int, train: Indices, test: Indices) -> tuple[Floats, Floats]:
        """Inner products of training rows with one another, and of test rows with training rows."""
        gram = self.gram(fold)
        return gram[train].take(train, axis=1), gram[test].take(train, axis=1)

    @property
    def nbytes(self) -> int:
        """Bytes of the moments and of their curvature in memory."""
        return sum(own.nbytes for own in (self.moments, self.curvature) if own is not None)

    @property
    def by_gram(self) -> bool:
        """Whether fits are cheaper with inner products of rows than with columns."""
        return self.affords_gram and self.n <= 2 * self.d

    @property
    def by_moments(self) -> bool:
        """Whether closed forms use the moments of all folds at once; always if features are streamed."""
        if self.streamed:
            return True
        afforded = moment_bytes(self.folds, self.d) <= self.memory
        return self.n > 2 * self.d and not self.apart and afforded

    def base(self, rows: Indices | slice, fold: int) -> Floats:
        """Rows before a fold shifts and scales their columns; the same for all folds unless `apart`."""
        parts = [part.base(fold, rows) for part in self.parts]
        return parts[0] if len(parts) == 1 else np.hstack(parts)

    def affine(self, fold: int) -> tuple[Floats, Floats]:
        """A fold's `shift` and `scale` of the columns, (d,) each: its rows are ``(base - shift) * scale``."""
        shifts, scales = zip(*(part.affine(fold) for part in self.parts), strict=True)
        return np.concatenate(shifts), np.concatenate(scales)

    def score(self, fold: int, rows: Indices, solutions: Sequence[tuple[Floats, Floats]]) -> Iterator[Floats]:
        """Scores (m, k) of some rows, by each (weights (d, k), offsets (k,)) of the fold's scaled rows."""
        shift, scale = self.affine(fold)
        weights = np.hstack([own for own, _ in solutions]) * scale[:, None]
        offset = np.concatenate([own for _, own in solutions]) - shift @ weights
        weights = weights.astype(self.dtype)
        scores = np.empty((len(rows), len(offset)), self.dtype)
        for where, some in _chunks(rows):
            scores[where] = self.base(some, fold) @ weights + offset
        yield from np.split(scores, np.cumsum([len(own) for _, own in solutions])[:-1], axis=1)

    def squared_distances(self, fold: int, left: Indices, right: Indices) -> Floats:
        """Squared Euclidean distances between rows as a fold scales them, shape (len(left), len(right))."""
        if not self.affords_gram:
            return _squared_distances(self.of_fold(fold, left), self.of_fold(fold, right))
        gram = self.gram(fold)
        length = np.diagonal(gram)
        squares = gram[np.ix_(left, right)]
        squares *= -2
        squares += length[left][:, None]
        squares += length[right]
        return np.asarray(np.maximum(squares, 0, out=squares))

    def cosine_distances(self, fold: int, left: Indices, right: Indices) -> Floats:
        """1 - cosine between rows as a fold scales them, shape (len(left), len(right))."""
        if self.affords_gram:
            gram = self.gram(fold)
            length = _or_one(np.sqrt(np.maximum(np.diagonal(gram), 0)))
            similarity = gram[np.ix_(left, right)]
            similarity /= length[left][:, None]
            similarity /= length[right]
        else:
            a, b = self.of_fold(fold, left), self.of_fold(fold, right)
            similarity = (a / _lengths(a)) @ (b / _lengths(b)).T
        return np.asarray(np.clip(1 - similarity, 0, 2))

    def times(self, weights: Floats, fold: Indices) -> Floats:
        """Scores (n, k, b) of weights (d + 1, k, b), intercepts last; `fold` (b,) is whose scaling."""
        scores = np.zeros((self.n, *weights.shape[1:]), self.dtype)
        start = 0
        for part in self.parts:
            part.add_scores(scores, weights[start : start + part.d], fold)
            start += part.d
        scores += weights[-1]
        return scores

    def prepare(self, weights: Floats, fold: Indices) -> list[tuple[Floats, Floats]]:
        """Prepare the scoring of chunks by weights (d, k, b), block by block."""
        ends = np.cumsum([part.d for part in self.parts])
        return [
            part.prepare(weights[end - part.d : end].astype(self.dtype), fold)
            for part, end in zip(self.parts, ends, strict=True)
        ]

    def transposed_times(self, residuals: Floats, fold: Indices) -> Floats:
        """Gradients (d + 1, k, b) of residuals (n, k, b)."""
        parts = [part.gradient(residuals, fold) for part in self.parts]
        return np.concatenate([*parts, column_sums(residuals)[None]])

    def held_out(self, scores: Floats, weights: Floats, b: int, fold: int) -> Floats:
        """Scores (m, k) of a fold's test rows in problem b, whose scores and weights are given."""
        return np.asarray(scores[self.folds.splits[fold][1], :, b])

    def dots(self, a: Floats, b: Floats) -> Floats:
        """Inner product of each problem's two vectors (d + 1, k, b), shape (b,)."""
        return inner_products(a, b)


class ScaledBlock:
    """How each fold scales one block. The last axis counts folds; its length is 1 if all folds are alike.

    Parameters
    ----------
    block : array of shape (n, d), or Block
        The rows.
    scaling : str
        As in `ScaledFeatures`.
    folds : Folds
        Training parts of which the scaling is learnt.
    kept : bool array of shape (d, n_folds), optional
        Columns that each fold uses, if not all.
    """

    def __init__(
        self, block: Floats | Block, scaling: str, folds: Folds, *, kept: NDArray[np.bool_] | None = None
    ) -> None:
        block = as_block(block)
        self.block, self.d = block, block.d
        self.alike = scaling in ("none", "l2") and kept is None
        self.uniform = scaling != "standard" and kept is None
        self.apart = scaling == "center_l2"
        self.shift: Floats = -block.center[:, None]  # (d, n_folds)
        self.scale: Floats | None = None  # (d, n_folds)
        self.norm: Floats | None = None  # (n, n_folds)
        self._grams: dict[int, Floats] = {}
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
        # Rows are centred on their common mean already, so single precision loses nothing here.
        share = _training_shares(folds).astype(self.block.dtype)
        mean, square = np.zeros((2, self.d, share.shape[1]))
        for where, part in self.block.chunks():
            mean += part.T @ share[where]
            square += np.square(part).T @ share[where]
        variance = square - mean**2
        # A column that does not vary keeps its size, as in StandardScaler. Off the common mean, where other
        # rows vary, its variance is what rounding leaves of its square.
        alike = variance <= 100 * np.finfo(share.dtype).eps * mean**2
        alike |= variance <= 1e-10 * (mean**2 + self.block.center[:, None].astype(np.float64) ** 2)
        self.shift = mean
        self.scale = factor / np.sqrt(np.where(alike, 1.0, variance))

    def _center(self, folds: Folds) -> None:
        share = _training_shares(folds).astype(self.block.dtype)
        mean = np.zeros((self.d, share.shape[1]), self.block.dtype)
        for where, part in self.block.chunks():
            mean += part.T @ share[where]
        squares = np.empty((self.block.n, share.shape[1]))
        for where, part in self.block.chunks():
            own = np.einsum("ij,ij->i", part, part)[:, None]
            squares[where] = own - 2 * (part @ mean) + (mean**2).sum(axis=0)
        self.shift = mean
        self.norm = 1 / _or_one(np.sqrt(np.maximum(squares, 0)))

    @property
    def nbytes(self) -> int:
        """Bytes of the Gram matrices in memory."""
        return sum(own.nbytes for own in self._grams.values())

    def gram(self, fold: int) -> Floats:
        """Inner products of all rows as a fold scales them, shape (n, n); computed once for each fold."""
        key = 0 if self.alike else fold
        if key not in self._grams:
            if self.uniform:
                self._grams[key] = self._corrected_gram(fold)
            else:
                rows = self.of_fold(fold, slice(None))
                self._grams[key] = rows @ rows.T
        return self._grams[key]

    def _corrected_gram(self, fold: int) -> Floats:
        """All columns alike: a shift and a factor for each row turn the block's Gram into the fold's."""
        shift = _column(self.shift, fold)
        along = np.concatenate([part @ shift for _, part in self.block.chunks()])
        gram = self.block.gram() - along[:, None]
        gram -= along - shift @ shift
        if self.norm is not None:
            norm = _column(self.norm, fold)
            gram *= norm[:, None]
            gram *= norm
        if self.scale is not None:
            gram *= self.scale[0, 0] ** 2
        return np.asarray(gram)

    def base(self, fold: int, rows: Indices | slice) -> Floats:
        """Rows before a fold shifts and scales their columns; of unit length where that is the scaling."""
        return self.block.take(rows) if self.norm is None else self.of_fold(fold, rows)

    def affine(self, fold: int) -> tuple[Floats, Floats]:
        """A fold's shift and scale of the columns of `base`, (d,) each."""
        if self.norm is not None:
            return np.zeros(self.d), np.ones(self.d)
        assert self.scale is not None
        return (
            np.broadcast_to(_column(self.shift, fold), self.d).astype(np.float64),
            np.broadcast_to(_column(self.scale, fold), self.d).astype(np.float64),
        )

    def of_fold(self, fold: int, rows: Indices | slice) -> Floats:
        """Rows as a fold scales them."""
        scaled = self.block.take(rows) - _column(self.shift, fold)
        if self.scale is not None:
            scaled *= _column(self.scale, fold)
        if self.norm is not None:
            scaled *= _column(self.norm, fold)[rows, None]
        return scaled

    def add_scores(self, scores: Floats, weights: Floats, fold: Indices) -> None:
        """Add this block's part to scores (n, k, b) of weights (d, k, b)."""
        ready = self.prepare(weights, fold)
        for where, part in self.block.chunks():
            scores[where] += self.chunk_scores(part, where, ready, fold)

    def gradient(self, residuals: Floats, fold: Indices) -> Floats:
        """Gradients (d, k, b) of residuals (n, k, b)."""
        shape = residuals.shape[1:]
        total, sums = np.zeros((self.d, *shape), self.block.dtype), np.zeros(shape, self.block.dtype)
        for where, part in self.block.chunks():
            own, own_sums = self.chunk_gradient(part, where, residuals[where], fold)
            total += own
            sums += own_sums
        return self.scale_gradient(total, sums, fold)

    def prepare(self, weights: Floats, fold: Indices) -> tuple[Floats, Floats]:
        """Weights (d, k, b) for unscaled rows, and what each fold's shift takes off their scores (k, b)."""
        if self.scale is not None:
            weights = weights * _columns(self.scale, fold)[:, None]
        shift = np.broadcast_to(_columns(self.shift, fold), weights[:, 0].shape)
        return weights, np.einsum("db,dkb->kb", shift, weights)

    def chunk_scores(self, part: Floats, where: slice, ready: tuple[Floats, Floats], fold: Indices) -> Floats:
        """Scores (m, k, b) of centred rows by what `prepare` gave."""
        weights, offset = ready
        own = (part @ weights.reshape(self.d, -1)).reshape(-1, *weights.shape[1:])
        own -= offset
        if self.norm is not None:
            own *= _columns(self.norm[where], fold)[:, None]
        return np.asarray(own)

    def chunk_gradient(
        self, part: Floats, where: slice, residuals: Floats, fold: Indices
    ) -> tuple[Floats, Floats]:
        """Products (d, k, b) of centred rows with residuals (m, k, b), and these' sums (k, b)."""
        if self.norm is not None:
            residuals = residuals * _columns(self.norm[where], fold)[:, None]
        product = part.T @ residuals.reshape(len(residuals), -1)
        return product.reshape(-1, *residuals.shape[1:]), column_sums(residuals)

    def scale_gradient(self, product: Floats, sums: Floats, fold: Indices) -> Floats:
        """Gradient of the scaled rows' weights, from products and sums of `chunk_gradient`."""
        gradient = product - _columns(self.shift, fold)[:, None] * sums
        if self.scale is not None:
            gradient *= _columns(self.scale, fold)[:, None]
        return np.asarray(gradient)


def as_block(rows: Any) -> Block:
    """Return features as a block, in the precision that suits its size.

    An object that is not an array, but returns some rows by indexing, is read in chunks.
    """
    if isinstance(rows, Block):
        return rows
    return (
        Block(rows, _dtype(rows)) if isinstance(rows, np.ndarray) else Block(rows, np.float32, streamed=True)
    )


def _dtype(rows: Floats) -> Any:
    """Double precision for small problems in double precision; single for all others."""
    return np.float64 if rows.dtype == np.float64 and rows.size < DOUBLE_BELOW else np.float32


def _chunks(rows: Floats) -> Iterator[tuple[slice, Floats]]:
    for start in range(0, len(rows), CHUNK_ROWS):
        where = slice(start, min(start + CHUNK_ROWS, len(rows)))
        yield where, rows[where]


def _sample(rows: Any) -> Floats:
    """Some rows, evenly spaced."""
    return np.asarray(rows[np.unique(np.linspace(0, len(rows) - 1, SAMPLE_ROWS).astype(np.intp))])


def _column(values: Floats, fold: int) -> Floats:
    """Return a fold's column, or the only one."""
    return values[:, fold if values.shape[1] > 1 else 0]


def _columns(values: Floats, fold: Indices) -> Floats:
    """Return the columns of some problems' folds: (m, b), or (m, 1) if all folds are alike."""
    return values[:, fold] if values.shape[1] > 1 else values


def _squared_distances(left: Floats, right: Floats) -> Floats:
    squares = left @ right.T
    squares *= -2
    squares += np.einsum("ij,ij->i", left, left)[:, None]
    squares += np.einsum("ij,ij->i", right, right)
    return np.asarray(np.maximum(squares, 0, out=squares))


def _lengths(rows: Floats) -> Floats:
    return _or_one(np.sqrt(np.einsum("ij,ij->i", rows, rows)))[:, None]


def _training_shares(folds: Folds) -> Floats:
    """The user's weight of each row in each fold's training part, as shares of 1: (n, n_folds)."""
    mass = folds.masses(None)
    return np.asarray(mass / mass.sum(axis=0))


def column_sums(values: Floats) -> Floats:
    """Sum over rows by BLAS: quicker and more precise than NumPy's running sum in single precision."""
    flat = values.reshape(len(values), -1)
    return np.asarray(np.ones(len(values), values.dtype) @ flat).reshape(values.shape[1:])


def _or_one(values: Floats) -> Floats:
    return np.where(values == 0, values.dtype.type(1), values)
