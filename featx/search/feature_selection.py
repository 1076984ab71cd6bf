"""Pick single features over all blocks, after Head2Toe (Evci et al., ICML 2022).

A linear model on all features is fitted with a group-lasso penalty. The weights of one feature for all
classes are a group. The features whose weights have the largest norms are picked. This is done on the
training rows of each fold alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.features import FeatureBlocks
from featx.search.screening import SCREENED_ROWS
from featx.solvers import Folds, ScaledBlock
from featx.splits import stratified_sample
from featx.threads import map_in_threads

Floats = NDArray[Any]
Indices = NDArray[np.intp]

RELEVANT_COUNTS = (1024, 4096)
"""Numbers of picked features: about the width of a network's last layer, and four times that."""

PATH_STEPS = 10
"""Proximal steps of the group lasso; the ranking of features is stable long before the optimum."""

POWER_STEPS = 5
"""Steps of the power iteration; features share one strong direction, which is found at once."""

TARGETS = 16
"""With more classes, targets are projected at random to this number; norms over classes are preserved."""


@dataclass(frozen=True)
class PickedFeatures:
    """Features that are picked over all blocks: computed on first use, then kept.

    Parameters
    ----------
    blocks : FeatureBlocks
        The features; columns are counted over all blocks, in their order.
    folds : Folds
        Splits and targets.
    counts : tuple of int
        Numbers of features that will be requested.
    random_state : int
        Seed.
    n_jobs : int
        Number of threads.
    """

    blocks: FeatureBlocks
    folds: Folds
    counts: tuple[int, ...]
    random_state: int
    n_jobs: int
    _columns: dict[int, list[Indices]] = field(default_factory=dict, init=False, repr=False)

    def of_folds(self, count: int) -> list[Indices]:
        """Return the columns that are picked on the training rows of each fold, sorted."""
        return self._picked(count)[:-1]

    def of_all_rows(self, count: int) -> tuple[tuple[str, ...], Indices]:
        """Return the blocks that have columns picked on all rows, and these columns, counted over them."""
        columns = self._picked(count)[-1]
        widths = np.array([self.blocks.width(block) for block in self.blocks])
        starts = np.cumsum(widths) - widths
        inside = [
            columns[(columns >= start) & (columns < start + width)] - start
            for start, width in zip(starts, widths, strict=True)
        ]
        used = [number for number, own in enumerate(inside) if len(own)]
        offsets = np.cumsum(widths[used]) - widths[used]
        kept = np.concatenate([inside[number] + offset for number, offset in zip(used, offsets, strict=True)])
        names = list(self.blocks)
        return tuple(names[number] for number in used), kept

    def load(self, columns: Indices) -> Floats:
        """Return columns, counted over all blocks, side by side."""
        widths = [self.blocks.width(block) for block in self.blocks]
        ends = np.cumsum(widths)
        return np.hstack(
            [
                self.blocks[block][:, columns[(columns >= end - width) & (columns < end)] - (end - width)]
                for block, width, end in zip(self.blocks, widths, ends, strict=True)
            ]
        )

    def _picked(self, count: int) -> list[Indices]:
        if not self._columns:
            columns = pick_relevant(
                self.blocks,
                self.folds.y,
                self.folds.n_classes,
                [*(train for train, _ in self.folds.splits), np.arange(self.blocks.n_rows)],
                self.counts,
                random_state=self.random_state,
                n_jobs=self.n_jobs,
            )
            self._columns.update(columns)
        return self._columns[count]


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
    """Pick features over all blocks by a group lasso on the rows of each part.

    Parameters
    ----------
    blocks : FeatureBlocks
        The features; columns are counted over all blocks, in their order.
    y : array of shape (n,), int
        Class indices.
    n_classes : int
        Number of classes.
    parts : sequence of index arrays
        Training rows of each fold. About `SCREENED_ROWS` of each are used, a stratified sample.
    counts : sequence of int
        Numbers of features to keep.
    random_state : int
        Seed of samples and projections.
    n_jobs : int
        Number of threads.

    Returns
    -------
    dict of int to list of index arrays
        For each count the columns of each part, sorted.
    """
    every = np.unique(np.concatenate(parts))
    most = SCREENED_ROWS * len(parts) // max(1, len(parts) - 1)  # a training part then has about that many
    rows = every[stratified_sample(y[every], most, random_state)]
    targets = _targets(y, n_classes, random_state)[rows]
    inside = np.column_stack([np.isin(rows, part) for part in parts])
    norms = _group_lasso(blocks, rows, targets, inside, n_jobs)
    return {count: [np.sort(np.argsort(-own, kind="stable")[:count]) for own in norms] for count in counts}


def _group_lasso(
    blocks: FeatureBlocks, rows: Indices, targets: Floats, inside: NDArray[np.bool_], n_jobs: int
) -> Floats:
    """Run proximal steps (FISTA, Beck and Teboulle 2009); return the norms of the weights, (n_parts, d).

    The parts take their steps together, since most of the time is spent on reading the rows. They share one
    matrix, with the standardisation of each part (`ScaledBlock`); `inside` (n, n_parts) marks the rows of
    each part.
    """
    which = np.arange(inside.shape[1])
    splits = tuple((np.flatnonzero(own), np.flatnonzero(~own)) for own in inside.T)
    folds = Folds(splits, np.zeros(len(rows), np.intp), 1)

    def standardise(name: str) -> ScaledBlock:
        part = ScaledBlock(blocks[name][rows], "standard", folds)
        assert part.scale is not None
        part.scale = part.scale * np.asarray(math.sqrt(part.d), part.scale.dtype)  # single features
        return part

    scaled = map_in_threads(n_jobs, standardise, list(blocks))
    members = inside[:, None]

    def fitted(weights: Sequence[Floats]) -> Floats:
        def scores(one: tuple[ScaledBlock, Floats]) -> Floats:
            own = np.zeros((len(rows), *one[1].shape[1:]), np.float32)
            one[0].add_scores(own, one[1], which)
            return own

        both = list(zip(scaled, weights, strict=True))
        return np.asarray(sum(map_in_threads(n_jobs, scores, both)) * members)

    def gradients(residual: Floats) -> list[Floats]:
        return map_in_threads(n_jobs, lambda part: part.gradient(residual, which), scaled)

    mean = np.einsum("nk,nb->kb", targets, inside / inside.sum(axis=0))
    centered = ((targets[:, :, None] - mean) * members).astype(np.float32)
    # Lipschitz constant of the least squares of each part, by power iteration.
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
    # Features with zero weights are ranked by their gradients.
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
