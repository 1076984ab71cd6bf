"""Screen representations: ridge regression with exact leave-one-out, for blocks and combinations of blocks.

A block is standardised and divided by the square root of its width. The kernel of blocks side by side is
then the sum of their kernels. So one Cholesky factorisation scores a block or a combination, without folds
and without a wide matrix. Leaving out whole groups is exact too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, get_lapack_funcs

from featx.features import FeatureBlocks
from featx.representation import Representation, block_name, is_usual, layer_of
from featx.splits import stratified_sample
from featx.threads import map_in_threads

Floats = NDArray[Any]
Indices = NDArray[np.intp]

SCREENED_ROWS = 1_000
"""Largest number of rows (a stratified sample) that are screened; the cost grows with its cube."""

FIRST_ROWS = 400
"""Rows that all blocks are scored on first; only the better ones are scored on `SCREENED_ROWS`."""

FINALISTS = 12
"""Blocks that are scored on `SCREENED_ROWS`: the best ones, the best of each layer, and the usual one."""

ALPHAS = (0.1, 1.0, 10.0)
"""Ridge penalties that are tried, for rows of about unit length."""

DOUBLE_ROWS = 200
"""Fewer rows are scored in double precision; for more, single precision is enough."""

PARTNERS = 8
"""Blocks that are tried beside the best ones."""

MOST_BLOCKS = 3
"""Largest number of blocks side by side."""

SHORTLIST = 6
"""Representations that the search tries."""


@dataclass(frozen=True)
class Screened:
    """The screening's result for one representation.

    Parameters
    ----------
    representation : Representation
        The block, or the blocks side by side.
    width : int
        Number of columns.
    score : float
        Leave-one-out (leave-one-group-out) score; higher is better.
    error : float
        Leave-one-out mean squared error for targets -1 and +1; decides between equal scores.
    alpha : float
        Penalty of the best score.
    seconds : float
        Computing time.
    """

    representation: Representation
    width: int
    score: float
    error: float
    alpha: float
    seconds: float

    @property
    def name(self) -> str:
        """Text of the representation."""
        return str(self.representation)

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of its blocks."""
        return self.representation.blocks

    @property
    def rank(self) -> tuple[float, float]:
        """Sort key: by score, then by error."""
        return (self.score, -self.error)


def screen_representations(
    blocks: FeatureBlocks,
    y: Indices,
    n_classes: int,
    *,
    score: Callable[[Floats, Indices], float] | None = None,
    groups: NDArray[Any] | None = None,
    max_rows: int = SCREENED_ROWS,
    combine: bool = True,
    random_state: int = 0,
    n_jobs: int = 1,
    deadline: float = float("inf"),
) -> list[Screened]:
    """Score every block, and combinations of the best, by ridge regression with exact leave-one-out.

    Parameters
    ----------
    blocks : FeatureBlocks
        The features; each block is loaded once and released.
    y : array of shape (n,), int
        Class indices.
    n_classes : int
        Number of classes.
    score : callable, optional
        ``score(decision, y)``, higher is better; accuracy by default.
    groups : array of shape (n,), optional
        Rows of a group are left out together.
    max_rows : int
        Size of the stratified sample that is used (groups may be split by the sampling).
    combine : bool
        Whether combinations are tried.
    random_state : int
        Seed of the sample.
    n_jobs : int
        Number of threads.
    deadline : float
        Value of `time.monotonic()` after which no further combination is tried.

    Returns
    -------
    list of Screened
        Best first.
    """
    names = [block_name(name) for name in blocks]
    alphas: dict[str, tuple[float, ...]] = dict.fromkeys(blocks, ALPHAS)
    if max_rows > FIRST_ROWS and len(y) > FIRST_ROWS and len(names) > FINALISTS:
        first = screen_representations(
            blocks,
            y,
            n_classes,
            score=score,
            groups=groups,
            max_rows=FIRST_ROWS,
            combine=False,
            random_state=random_state,
            n_jobs=n_jobs,
            deadline=deadline,
        )
        kept = {*_partners(first, FINALISTS), *filter(is_usual, names)}
        names = [name for name in names if name in kept]
        alphas = {one.blocks[0]: (one.alpha,) for one in first}  # the best penalty of a part of the rows
    rows = stratified_sample(y, max_rows, random_state)
    ridge = _LeaveOneOutRidge(y[rows], n_classes, None if groups is None else np.asarray(groups)[rows], score)
    kernels: dict[str, Floats] = {}

    def score_block(name: str) -> Screened:
        start = time.monotonic()
        scaled = _standardise(blocks.part(name, rows))
        blocks.release(name)
        width = blocks.width(name)
        kernels[name] = scaled @ scaled.T
        if width < len(rows) / 2:
            best = ridge.fit_columns(scaled, alphas[name])
        else:
            best = ridge.fit_kernel(kernels[name], alphas[name])
        return Screened(Representation((name,)), width, *best, time.monotonic() - start)

    found = map_in_threads(n_jobs, score_block, names)
    found.sort(key=lambda one: one.rank, reverse=True)
    if not combine or len(found) < 2:
        return found

    def score_combination(names: tuple[str, ...], alpha: float) -> Screened:
        start = time.monotonic()
        kernel = sum(kernels[name] for name in names) / len(names)
        best = ridge.fit_kernel(np.asarray(kernel), (alpha,))
        width = sum(blocks.width(name) for name in names)
        return Screened(Representation(names), width, *best, time.monotonic() - start)

    order = {name: position for position, name in enumerate(blocks)}
    partners = _partners(found)
    base, tried = found[0], set()
    for _ in range(MOST_BLOCKS - 1):
        combinations = [
            tuple(sorted((*base.blocks, p), key=order.__getitem__)) for p in partners if p not in base.blocks
        ]
        new = [names for names in dict.fromkeys(combinations) if names not in tried]
        if not new or time.monotonic() > deadline:
            break
        tried |= set(new)
        more = map_in_threads(n_jobs, partial(score_combination, alpha=base.alpha), new)
        found += more
        base = max(more, key=lambda one: one.rank)
    found.sort(key=lambda one: one.rank, reverse=True)
    return found


def shortlist(found: Sequence[Screened], most: int = SHORTLIST) -> list[Screened]:
    """Choose representations for the search; return them best first.

    The average of the last features, which is common practice, is always among them. The others are the best
    single blocks and the best combinations.
    """
    single = [one for one in found if len(one.blocks) == 1]
    combined = [one for one in found if len(one.blocks) > 1]
    usual = [one for one in single if is_usual(one.blocks[0])] or single[:1]
    kept = {one.name: one for one in [*usual[:1], *single[: max(1, most // 2)]]}
    for one in combined:
        if len(kept) >= most:
            break
        kept[one.name] = one
    return sorted(kept.values(), key=lambda one: one.rank, reverse=True)


def layers_add(found: Sequence[Screened], n_rows: int) -> bool:
    """Return whether blocks side by side are better than the best single one by more than a standard error.

    If they are not, one layer is enough, and features need not be picked over all layers.
    """
    single = max((one.score for one in found if len(one.blocks) == 1), default=0.0)
    combined = max((one.score for one in found if len(one.blocks) > 1), default=0.0)
    n_rows = min(n_rows, SCREENED_ROWS)
    return combined - single > math.sqrt(max(single * (1 - single), 0.0) / n_rows)


def _partners(single: Sequence[Screened], most: int = PARTNERS) -> list[str]:
    """Return blocks to combine with others: the best of each layer, which differ most, then the best."""
    names = [one.blocks[0] for one in single]
    best_of_layer: dict[str, str] = {}
    for name in names:
        best_of_layer.setdefault(layer_of(name), name)
    return list(dict.fromkeys([*best_of_layer.values(), *names]))[:most]


def _standardise(rows: Floats) -> Floats:
    """Scale columns to unit variance, divided by the square root of their number."""
    rows = np.asarray(rows, np.float32)
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    scaled = rows - mean
    spread = np.sqrt(np.einsum("ij,ij->j", scaled, scaled) / len(rows))
    spread[spread <= 1e-6 * np.abs(mean)] = np.inf  # constant columns become 0
    spread[spread == 0] = np.inf
    scaled *= 1 / spread / math.sqrt(rows.shape[1])
    return np.asarray(scaled)


class _LeaveOneOutRidge:
    """Ridge regression with an intercept and exact leave-one-out, by rows or by groups.

    With the hat matrix H, the residuals of a group that was left out are (I - H_gg)^-1 (I - H)_g y; for a
    single row this is r / (1 - h).
    """

    def __init__(
        self,
        y: Indices,
        n_classes: int,
        groups: NDArray[Any] | None,
        score: Callable[[Floats, Indices], float] | None,
    ) -> None:
        self.y = y
        self.score = score or _accuracy
        dtype = np.float64 if len(y) < DOUBLE_ROWS else np.float32
        self.target = np.where(np.arange(n_classes) == y[:, None], 1, -1).astype(dtype)
        if n_classes == 2:
            self.target = self.target[:, 1:]
        self.groups: list[Indices] | None = None
        if groups is not None:
            code = np.unique(groups, return_inverse=True)[1]
            if code.max() + 1 < len(code):
                order = np.argsort(code, kind="stable")
                self.groups = np.split(order, np.flatnonzero(np.diff(code[order])) + 1)

    def fit_kernel(self, kernel: Floats, alphas: Sequence[float]) -> tuple[float, float, float]:
        """Return the best (score, error, alpha) for a kernel (n, n) of centred rows."""
        n = len(kernel)
        factorise, invert = get_lapack_funcs(("potrf", "potri"), (self.target,))
        results = []
        for alpha in alphas:
            system = kernel.astype(self.target.dtype)
            system.ravel()[:: n + 1] += alpha
            factor, failed = factorise(system.T, lower=True, overwrite_a=True)  # LAPACK's order: no copy
            assert not failed
            solution = cho_solve((factor, True), self.target, check_finite=False)
            residual = alpha * solution - self.target.mean(axis=0)
            remainder, _ = invert(factor, lower=True, overwrite_c=True)  # only the lower half is filled
            remainder *= alpha
            remainder -= 1 / n  # I - H
            results.append((*self._rate(residual, remainder, None), alpha))
        return max(results, key=lambda own: (own[0], -own[1]))

    def fit_columns(self, rows: Floats, alphas: Sequence[float]) -> tuple[float, float, float]:
        """Return the best (score, error, alpha) for centred rows with fewer columns than rows."""
        rows = rows.astype(self.target.dtype)
        gram = rows.T @ rows
        results = []
        for alpha in alphas:
            system = gram.copy()
            system.ravel()[:: rows.shape[1] + 1] += alpha
            half = cho_solve(cho_factor(system, lower=True, check_finite=False), rows.T)  # (d, n)
            residual = self.target - rows @ (half @ self.target) - self.target.mean(axis=0)
            results.append((*self._rate(residual, None, (rows, half)), alpha))
        return max(results, key=lambda own: (own[0], -own[1]))

    def _rate(
        self, residual: Floats, remainder: Floats | None, factors: tuple[Floats, Floats] | None
    ) -> tuple[float, float]:
        n = len(residual)
        if self.groups is None:
            if remainder is not None:
                own = np.diagonal(remainder)
            else:
                assert factors is not None
                own = 1 - 1 / n - np.einsum("nd,dn->n", *factors)
            left_out = residual / np.maximum(own, 1e-12)[:, None]
        else:
            left_out = np.empty_like(residual)
            for rows in self.groups:
                if remainder is not None:
                    half = np.tril(remainder[np.ix_(rows, rows)])  # rows are sorted
                    own = half + np.tril(half, -1).T
                else:
                    assert factors is not None
                    own = np.eye(len(rows)) - 1 / n - factors[0][rows] @ factors[1][:, rows]
                left_out[rows] = np.linalg.lstsq(own, residual[rows], rcond=None)[0]
        decision = self.target - left_out
        scores = decision[:, 0] if decision.shape[1] == 1 else decision
        return self.score(scores, self.y), float(np.mean(left_out**2))


def _accuracy(decision: Floats, y: Indices) -> float:
    best = decision > 0 if decision.ndim == 1 else decision.argmax(axis=1)
    return float(np.mean(best == y))
