"""Which blocks are worth a search: closed-form ridge with exact leave-one-out, alone and side by side.

A block standardised and divided by the square root of its width has a kernel; the kernel of blocks side by
side is the sum of theirs. So every block and every combination is scored by one Cholesky each, without a
fold and without a wide matrix. A group that must stay together is left out together, still in closed form.

Features that matter can also be picked one by one over all blocks, after Head2Toe (Evci et al., ICML 2022):
a linear model on everything with a group-lasso penalty, whose groups are a feature's weights for all
classes; the features of largest norm are kept. It is fitted on each fold's training rows alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, cholesky
from scipy.linalg.lapack import dpotri

from featx.rows import RowBlocks
from featx.solvers import sample_rows

Floats = NDArray[Any]
Indices = NDArray[np.intp]

SIDE_BY_SIDE = " + "
"""Joins the names of blocks in a representation's name."""

RELEVANT_COUNTS = (1024, 4096)
"""Features kept: about the width of a network's last layer, and four times that."""

SCREENED_ROWS = 1_000
"""Rows (stratified) that the screening looks at: its cost grows with their cube."""

FIRST_ROWS = 400
"""Rows that all blocks are first scored on; only the better ones are scored on `SCREENED_ROWS`."""

FINALISTS = 12
"""Blocks that are scored on `SCREENED_ROWS`: beside the best, the usual one and the best of each layer."""

ALPHAS = (0.1, 1.0, 10.0)
"""Ridge penalties tried for rows of unit length."""

PARTNERS = 8
"""Blocks that are tried beside the best ones."""

MOST_BLOCKS = 3
"""Blocks side by side at most."""

USUAL = "last:avg"
"""What everybody uses, and so the simplest of single blocks."""

SHORTLIST = 6
"""Representations that go into the search."""

PATH_STEPS = 15
"""Proximal steps of the group lasso; the ranking of features settles long before the optimum."""

TARGETS = 16
"""More classes than this are projected at random to as many targets: norms over classes are kept."""


@dataclass(frozen=True)
class Screened:
    """What the screening says of a representation.

    Parameters
    ----------
    name : str
        Its name: block names joined by `SIDE_BY_SIDE`.
    blocks : tuple of str
        Its blocks.
    width : int
        Columns.
    score : float
        Leave-one-out (leave-one-group-out) score, the larger the better.
    error : float
        Leave-one-out mean squared error on -1/+1 targets, for ties.
    alpha : float
        The penalty that gave them.
    seconds : float
        What scoring took.
    """

    name: str
    blocks: tuple[str, ...]
    width: int
    score: float
    error: float
    alpha: float
    seconds: float

    @property
    def rank(self) -> tuple[float, float]:
        """Sorts by score, then by error."""
        return (self.score, -self.error)


def screen_representations(
    blocks: RowBlocks,
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
    blocks : RowBlocks
        The blocks; each is loaded once and released.
    y : array of shape (n,), int
        Class indices.
    n_classes : int
        Number of classes.
    score : callable, optional
        ``score(decision, y)``, the larger the better; accuracy by default.
    groups : array of shape (n,), optional
        Rows of a group are left out together.
    max_rows : int
        A stratified sample of as many rows is used (whole groups are not kept together in it).
    combine : bool
        Whether combinations are tried.
    random_state : int
        Seed of the sample.
    n_jobs : int
        Threads.
    deadline : float
        `time.monotonic()` after which no further combination is tried.

    Returns
    -------
    list of Screened
        Best first.
    """
    names = list(blocks)
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
        kept = {*_partners(first, FINALISTS), *(one.name for one in first if one.name.startswith(USUAL))}
        names = [name for name in names if name in kept]
    rows = sample_rows(y, n_classes, max_rows, random_state)
    ridge = _LeaveOut(y[rows], n_classes, None if groups is None else np.asarray(groups)[rows], score)
    kernels: dict[str, Floats] = {}

    def alone(name: str) -> Screened:
        begun = time.monotonic()
        scaled = _standardised(blocks[name][rows])
        blocks.release(name)
        width = blocks.width(name)
        kernels[name] = scaled @ scaled.T
        best = ridge.narrow(scaled) if width < len(rows) / 2 else ridge.of_kernel(kernels[name], ALPHAS)
        return Screened(name, (name,), width, *best, time.monotonic() - begun)

    found = _threads(n_jobs, alone, names)
    found.sort(key=lambda one: one.rank, reverse=True)
    if not combine or len(found) < 2:
        return found

    def together(names: tuple[str, ...], alpha: float) -> Screened:
        begun = time.monotonic()
        kernel = sum(kernels[name] for name in names) / len(names)
        best = ridge.of_kernel(np.asarray(kernel), (alpha,))
        width = sum(blocks.width(name) for name in names)
        return Screened(SIDE_BY_SIDE.join(names), names, width, *best, time.monotonic() - begun)

    order = {name: position for position, name in enumerate(blocks)}
    partners = _partners(found)
    base, tried = found[0], set()
    for _ in range(MOST_BLOCKS - 1):
        pairs = [
            tuple(sorted((*base.blocks, p), key=order.__getitem__)) for p in partners if p not in base.blocks
        ]
        wanted = [names for names in dict.fromkeys(pairs) if names not in tried]
        if not wanted or time.monotonic() > deadline:
            break
        tried |= set(wanted)
        more = _threads(n_jobs, partial(together, alpha=base.alpha), wanted)
        found += more
        base = max(more, key=lambda one: one.rank)
    found.sort(key=lambda one: one.rank, reverse=True)
    return found


def shortlist(found: Sequence[Screened], most: int = SHORTLIST) -> list[Screened]:
    """Representations worth a search: the simplest, the best alone, the best combinations; best first.

    The last features' average, what everybody uses, is always among them.
    """
    alone = [one for one in found if len(one.blocks) == 1]
    combined = [one for one in found if len(one.blocks) > 1]
    usual = [one for one in alone if one.name.startswith(USUAL)] or alone[:1]
    kept = {one.name: one for one in [*usual[:1], *alone[: max(1, most // 2)]]}
    for one in combined:
        if len(kept) >= most:
            break
        kept[one.name] = one
    return sorted(kept.values(), key=lambda one: one.rank, reverse=True)


def pick_relevant(
    blocks: RowBlocks,
    y: Indices,
    n_classes: int,
    parts: Sequence[Indices],
    counts: Sequence[int],
    *,
    random_state: int = 0,
) -> dict[int, list[Indices]]:
    """Pick features over all blocks by a group lasso on each part's rows.

    Parameters
    ----------
    blocks : RowBlocks
        The blocks; columns are counted over all of them, in their order.
    y : array of shape (n,), int
        Class indices.
    n_classes : int
        Number of classes.
    parts : sequence of index arrays
        Training rows of each fold; at most `SCREENED_ROWS` of each are used.
    counts : sequence of int
        Numbers of features to keep.
    random_state : int
        Seed of samples and projections.

    Returns
    -------
    dict of int to list of index arrays
        For each count, each part's columns, sorted.
    """
    targets = _targets(y, n_classes, random_state)
    norms = []
    for number, part in enumerate(parts):
        rows = part[sample_rows(y[part], n_classes, SCREENED_ROWS, random_state + number)]
        norms.append(_group_lasso(blocks, rows, targets[rows]))
    return {count: [np.sort(np.argsort(-own, kind="stable")[:count]) for own in norms] for count in counts}


def _group_lasso(blocks: RowBlocks, rows: Indices, targets: Floats) -> Floats:
    """Norm of each feature's weights after proximal steps (FISTA, Beck and Teboulle 2009)."""
    scaled = [_standardised(blocks[name][rows], weigh=False) for name in blocks]
    centered = targets - targets.mean(axis=0)
    bound = _top_eigenvalue(scaled, len(rows))
    gradient = [part.T @ centered for part in scaled]
    penalty = 0.05 * max(float(np.sqrt((own**2).sum(axis=1)).max()) for own in gradient)
    weights = [np.zeros_like(own) for own in gradient]
    ahead, pace = weights, 1.0
    for _ in range(PATH_STEPS):
        residual = centered - sum(part @ own for part, own in zip(scaled, ahead, strict=True))
        stepped = [
            _shrink(own + part.T @ residual / bound, penalty / bound)
            for part, own in zip(scaled, ahead, strict=True)
        ]
        faster = (1 + math.sqrt(1 + 4 * pace**2)) / 2
        ahead = [new + (pace - 1) / faster * (new - old) for new, old in zip(stepped, weights, strict=True)]
        weights, pace = stepped, faster
    norm = np.concatenate([np.sqrt((own**2).sum(axis=1)) for own in weights])
    # Features that the penalty put to zero are ranked by how far they are from entering.
    residual = centered - sum(part @ own for part, own in zip(scaled, weights, strict=True))
    near = np.concatenate([np.sqrt(((part.T @ residual) ** 2).sum(axis=1)) for part in scaled])
    return np.asarray(np.where(norm > 0, 1 + norm / max(norm.max(), 1e-30), near / max(near.max(), 1e-30)))


def _shrink(weights: Floats, by: float) -> Floats:
    norm = np.sqrt((weights**2).sum(axis=1, keepdims=True))
    return np.asarray(weights * np.maximum(0, 1 - by / np.maximum(norm, 1e-30)))


def _top_eigenvalue(scaled: Sequence[Floats], n: int) -> float:
    """Lipschitz constant of the least-squares gradient, by power iteration on the rows' side."""
    vector = np.random.default_rng(0).standard_normal(n).astype(scaled[0].dtype)
    value = 1.0
    for _ in range(12):
        vector /= np.linalg.norm(vector)
        image = sum(part @ (part.T @ vector) for part in scaled)
        value = float(np.linalg.norm(image))
        vector = np.asarray(image)
    return value * 1.05


def _targets(y: Indices, n_classes: int, random_state: int) -> Floats:
    one_hot = np.where(np.arange(n_classes) == y[:, None], 1, -1).astype(np.float32)
    if n_classes == 2:
        return one_hot[:, 1:]
    if n_classes <= TARGETS:
        return one_hot
    rng = np.random.default_rng(random_state)
    mixing = rng.standard_normal((n_classes, TARGETS)) / math.sqrt(TARGETS)
    return np.asarray(one_hot @ mixing.astype(np.float32))


def _partners(alone: Sequence[Screened], most: int = PARTNERS) -> list[str]:
    """Blocks to try beside others: the best, but first the best of each layer, since they differ most."""
    first: dict[str, str] = {}
    for one in alone:
        first.setdefault(one.name.split(":")[0], one.name)
    return list(dict.fromkeys([*first.values(), *(one.name for one in alone)]))[:most]


def _standardised(rows: Floats, *, weigh: bool = True) -> Floats:
    rows = np.asarray(rows, np.float32)
    mean = rows.mean(axis=0, dtype=np.float64)
    scaled = rows - mean.astype(np.float32)
    spread = np.sqrt(np.einsum("ij,ij->j", scaled, scaled, dtype=np.float64) / len(rows))
    spread[spread <= 1e-6 * np.abs(mean)] = np.inf  # a constant column says nothing
    spread[spread == 0] = np.inf
    scaled *= (1 / spread / (math.sqrt(rows.shape[1]) if weigh else 1)).astype(np.float32)
    return np.asarray(scaled)


class _LeaveOut:
    """Exact leave-one-out of ridge regression with an intercept, by rows or by groups.

    With the hat matrix H, the residuals of a group that was left out are (I - H_gg)^-1 (I - H)_g y
    (for a single row the well-known r / (1 - h)).
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
        self.target = np.where(np.arange(n_classes) == y[:, None], 1.0, -1.0)
        if n_classes == 2:
            self.target = self.target[:, 1:]
        self.groups: list[Indices] | None = None
        if groups is not None:
            code = np.unique(groups, return_inverse=True)[1]
            if code.max() + 1 < len(code):
                order = np.argsort(code, kind="stable")
                self.groups = np.split(order, np.flatnonzero(np.diff(code[order])) + 1)

    def of_kernel(self, kernel: Floats, alphas: Sequence[float]) -> tuple[float, float, float]:
        """Best (score, error, alpha) for a kernel (n, n) of centred rows."""
        n = len(kernel)
        tried = []
        for alpha in alphas:
            remainder = alpha * _inverse(kernel, alpha) - 1 / n  # I - H
            tried.append((*self._rate(remainder @ self.target, remainder, None), alpha))
        return max(tried, key=lambda own: (own[0], -own[1]))

    def narrow(self, rows: Floats) -> tuple[float, float, float]:
        """Best (score, error, alpha) for centred rows with fewer columns than rows."""
        d = rows.shape[1]
        double = rows.astype(np.float64)
        gram = double.T @ double
        tried = []
        for alpha in ALPHAS:
            system = gram.copy()
            system.ravel()[:: d + 1] += alpha
            half = cho_solve(cho_factor(system, lower=True, check_finite=False), double.T)  # (d, n)
            residual = self.target - double @ (half @ self.target) - self.target.mean(axis=0)
            tried.append((*self._rate(residual, None, (double, half)), alpha))
        return max(tried, key=lambda own: (own[0], -own[1]))

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
                    own = remainder[np.ix_(rows, rows)]
                else:
                    assert factors is not None
                    own = np.eye(len(rows)) - 1 / n - factors[0][rows] @ factors[1][:, rows]
                left_out[rows] = np.linalg.lstsq(own, residual[rows], rcond=None)[0]
        decision = self.target - left_out
        shown = decision[:, 0] if decision.shape[1] == 1 else decision
        return self.score(shown, self.y), float(np.mean(left_out**2))


def _inverse(kernel: Floats, alpha: float) -> Floats:
    """(kernel + alpha I)^-1 of a symmetric matrix."""
    system = kernel.astype(np.float64)
    system.ravel()[:: len(kernel) + 1] += alpha
    factor = cholesky(system, lower=True, overwrite_a=True, check_finite=False)
    inverse, _ = dpotri(factor, lower=True, overwrite_c=True)  # fills the lower half only
    return np.asarray(np.tril(inverse) + np.tril(inverse, -1).T)


def _accuracy(decision: Floats, y: Indices) -> float:
    best = decision > 0 if decision.ndim == 1 else decision.argmax(axis=1)
    return float(np.mean(best == y))


def _threads(n_jobs: int, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    if n_jobs == 1 or len(items) == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(n_jobs, len(items))) as pool:
        return list(pool.map(function, items))
