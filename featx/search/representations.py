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
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, get_lapack_funcs

from featx.features import FeatureBlocks
from featx.representation import layer_of
from featx.solvers import Folds, ScaledBlock, sample_rows
from featx.solvers.task import threads

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

DOUBLE_ROWS = 200
"""Fewer rows are scored in double precision; with more, single precision is finer than their number."""

PARTNERS = 8
"""Blocks that are tried beside the best ones."""

MOST_BLOCKS = 3
"""Blocks side by side at most."""

USUAL = "last:avg"
"""What everybody uses, and so the simplest of single blocks."""

SHORTLIST = 6
"""Representations that go into the search."""

PATH_STEPS = 10
"""Proximal steps of the group lasso; the ranking of features settles long before the optimum."""

POWER_STEPS = 5
"""Steps of the power iteration: features share one strong direction, which is found at once."""

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
        kept = {*_partners(first, FINALISTS), *(one.name for one in first if one.name.startswith(USUAL))}
        names = [name for name in names if name in kept]
        alphas = {one.name: (one.alpha,) for one in first}  # what suits some rows suits more of them
    rows = sample_rows(y, n_classes, max_rows, random_state)
    ridge = _LeaveOut(y[rows], n_classes, None if groups is None else np.asarray(groups)[rows], score)
    kernels: dict[str, Floats] = {}

    def alone(name: str) -> Screened:
        begun = time.monotonic()
        scaled = _standardised(blocks.part(name, rows))
        blocks.release(name)
        width = blocks.width(name)
        kernels[name] = scaled @ scaled.T
        if width < len(rows) / 2:
            best = ridge.narrow(scaled, alphas[name])
        else:
            best = ridge.of_kernel(kernels[name], alphas[name])
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


def layers_add(found: Sequence[Screened], n_rows: int) -> bool:
    """Whether blocks side by side beat the best single one by more than a standard error.

    Where they don't, one layer says what there is to say, and picking features over all of them is time lost.
    """
    alone = max((one.score for one in found if len(one.blocks) == 1), default=0.0)
    together = max((one.score for one in found if len(one.blocks) > 1), default=0.0)
    n_rows = min(n_rows, SCREENED_ROWS)
    return together - alone > math.sqrt(max(alone * (1 - alone), 0.0) / n_rows)


def pick_relevant(
    blocks: FeatureBlocks,
    y: Indices,
    n_classes: int,
    parts: Sequence[Indices],
    counts: Sequence[int],
    *,
    random_state: int = 0,
    n_jobs: int = 1,
) -> dict[int, list[Indices]]:
    """Pick features over all blocks by a group lasso on each part's rows.

    Parameters
    ----------
    blocks : FeatureBlocks
        The blocks; columns are counted over all of them, in their order.
    y : array of shape (n,), int
        Class indices.
    n_classes : int
        Number of classes.
    parts : sequence of index arrays
        Training rows of each fold; of a stratified sample, about `SCREENED_ROWS` of each are used.
    counts : sequence of int
        Numbers of features to keep.
    random_state : int
        Seed of samples and projections.
    n_jobs : int
        Threads.

    Returns
    -------
    dict of int to list of index arrays
        For each count, each part's columns, sorted.
    """
    every = np.unique(np.concatenate(parts))
    most = SCREENED_ROWS * len(parts) // max(1, len(parts) - 1)  # so that a fold's training part has as many
    rows = every[sample_rows(y[every], n_classes, most, random_state)]
    targets = _targets(y, n_classes, random_state)[rows]
    inside = np.column_stack([np.isin(rows, part) for part in parts])
    norms = _group_lasso(blocks, rows, targets, inside, n_jobs)
    return {count: [np.sort(np.argsort(-own, kind="stable")[:count]) for own in norms] for count in counts}


def _group_lasso(
    blocks: FeatureBlocks, rows: Indices, targets: Floats, inside: NDArray[np.bool_], n_jobs: int
) -> Floats:
    """Norm of each feature's weights after proximal steps (FISTA, Beck and Teboulle 2009), (n_parts, d).

    All parts take their steps together, since what a step costs is reading the rows: they share one matrix,
    with each part's own standardisation (`ScaledBlock`), and `inside` (n, n_parts) says who learns from what.
    """
    which = np.arange(inside.shape[1])
    splits = tuple((np.flatnonzero(own), np.flatnonzero(~own)) for own in inside.T)
    folds = Folds(splits, np.zeros(len(rows), np.intp), 1)

    def standardised(name: str) -> ScaledBlock:
        part = ScaledBlock(blocks[name][rows], "standard", folds)
        assert part.scale is not None
        part.scale = part.scale * np.asarray(math.sqrt(part.d), part.scale.dtype)  # a feature is a feature
        return part

    scaled = _threads(n_jobs, standardised, list(blocks))
    members = inside[:, None]

    def fitted(weights: Sequence[Floats]) -> Floats:
        def scores(one: tuple[ScaledBlock, Floats]) -> Floats:
            own = np.zeros((len(rows), *one[1].shape[1:]), np.float32)
            one[0].add_scores(own, one[1], which)
            return own

        both = list(zip(scaled, weights, strict=True))
        return np.asarray(sum(_threads(n_jobs, scores, both)) * members)

    def gradients(residual: Floats) -> list[Floats]:
        return _threads(n_jobs, lambda part: part.gradient(residual, which), scaled)

    mean = np.einsum("nk,nb->kb", targets, inside / inside.sum(axis=0))
    centered = ((targets[:, :, None] - mean) * members).astype(np.float32)
    # The Lipschitz constant of each part's least squares, by power iteration from where the classes differ.
    image, bound = centered[:, :1], np.ones(len(which), np.float32)
    for _ in range(POWER_STEPS):
        image = fitted(gradients(image / np.linalg.norm(image, axis=0)))
        bound = 1.05 * np.linalg.norm(image, axis=0)[0]
    gradient = gradients(centered)
    penalty = 0.05 * np.max([np.linalg.norm(own, axis=1).max(axis=0) for own in gradient], axis=0)
    weights = [np.zeros_like(own) for own in gradient]
    ahead, pace = weights, 1.0
    for _ in range(PATH_STEPS):
        downhill = gradients(centered - fitted(ahead))
        stepped = [
            _shrink(own + step / bound, penalty / bound) for own, step in zip(ahead, downhill, strict=True)
        ]
        faster = (1 + math.sqrt(1 + 4 * pace**2)) / 2
        ahead = [new + (pace - 1) / faster * (new - old) for new, old in zip(stepped, weights, strict=True)]
        weights, pace = stepped, faster
    norm = np.concatenate([np.linalg.norm(own, axis=1) for own in weights]).T
    # Features that the penalty put to zero are ranked by how far they are from entering.
    left = gradients(centered - fitted(weights))
    near = np.concatenate([np.linalg.norm(own, axis=1) for own in left]).T
    return np.where(norm > 0, 1 + norm / _largest(norm), near / _largest(near))


def _largest(values: Floats) -> Floats:
    return np.asarray(np.maximum(values.max(axis=1, keepdims=True), 1e-30))


def _shrink(weights: Floats, by: Floats) -> Floats:
    norm = np.linalg.norm(weights, axis=1, keepdims=True)
    return np.asarray(weights * np.maximum(0, 1 - by / np.maximum(norm, 1e-30)), np.float32)


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
        first.setdefault(layer_of(one.name), one.name)
    return list(dict.fromkeys([*first.values(), *(one.name for one in alone)]))[:most]


def _standardised(rows: Floats) -> Floats:
    """Columns of unit variance, divided by the square root of their number."""
    rows = np.asarray(rows, np.float32)
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    scaled = rows - mean
    spread = np.sqrt(np.einsum("ij,ij->j", scaled, scaled) / len(rows))
    spread[spread <= 1e-6 * np.abs(mean)] = np.inf  # a constant column says nothing
    spread[spread == 0] = np.inf
    scaled *= 1 / spread / math.sqrt(rows.shape[1])
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

    def of_kernel(self, kernel: Floats, alphas: Sequence[float]) -> tuple[float, float, float]:
        """Best (score, error, alpha) for a kernel (n, n) of centred rows."""
        n = len(kernel)
        factorise, invert = get_lapack_funcs(("potrf", "potri"), (self.target,))
        tried = []
        for alpha in alphas:
            system = kernel.astype(self.target.dtype)
            system.ravel()[:: n + 1] += alpha
            factor, failed = factorise(system.T, lower=True, overwrite_a=True)  # as LAPACK takes it: no copy
            assert not failed
            solution = cho_solve((factor, True), self.target, check_finite=False)
            residual = alpha * solution - self.target.mean(axis=0)
            remainder, _ = invert(factor, lower=True, overwrite_c=True)  # fills the lower half only
            remainder *= alpha
            remainder -= 1 / n  # I - H
            tried.append((*self._rate(residual, remainder, None), alpha))
        return max(tried, key=lambda own: (own[0], -own[1]))

    def narrow(self, rows: Floats, alphas: Sequence[float]) -> tuple[float, float, float]:
        """Best (score, error, alpha) for centred rows with fewer columns than rows."""
        rows = rows.astype(self.target.dtype)
        gram = rows.T @ rows
        tried = []
        for alpha in alphas:
            system = gram.copy()
            system.ravel()[:: rows.shape[1] + 1] += alpha
            half = cho_solve(cho_factor(system, lower=True, check_finite=False), rows.T)  # (d, n)
            residual = self.target - rows @ (half @ self.target) - self.target.mean(axis=0)
            tried.append((*self._rate(residual, None, (rows, half)), alpha))
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
                    half = np.tril(remainder[np.ix_(rows, rows)])  # rows are in order
                    own = half + np.tril(half, -1).T
                else:
                    assert factors is not None
                    own = np.eye(len(rows)) - 1 / n - factors[0][rows] @ factors[1][:, rows]
                left_out[rows] = np.linalg.lstsq(own, residual[rows], rcond=None)[0]
        decision = self.target - left_out
        shown = decision[:, 0] if decision.shape[1] == 1 else decision
        return self.score(shown, self.y), float(np.mean(left_out**2))


def _accuracy(decision: Floats, y: Indices) -> float:
    best = decision > 0 if decision.ndim == 1 else decision.argmax(axis=1)
    return float(np.mean(best == y))


def _threads(n_jobs: int, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return threads(n_jobs, [(function, (item,)) for item in items])
