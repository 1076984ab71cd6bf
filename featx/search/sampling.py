"""A plan on a sample of rows and classes, for heads that are expensive to fit on all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from featx.representation import Representation
from featx.search.feature_selection import PickedFeatures
from featx.search.plan import SearchPlan
from featx.search.scoring import Scorer
from featx.solvers import Folds
from featx.splits import stratified_sample

Indices = NDArray[np.intp]

FEW_CLASSES = 32
"""A sample keeps so many classes. With more, classes are sampled too, so that a class keeps its rows."""

SAMPLED_FOLDS = 3
"""Largest number of folds on a sample."""

TESTED = 0.5
"""Rows of a sample that test, for each one that trains."""


def sample_plan(plan: SearchPlan, representation: Representation, n_train: int) -> SearchPlan:
    """Return the plan of the same search of one representation on some rows of some classes.

    Rows of a sampled training part come from a training part of the plan, and rows of its test part from the
    same fold's test part, so that groups are still apart.

    Parameters
    ----------
    plan : SearchPlan
        The plan of all rows.
    representation : Representation
        The only representation of the sample.
    n_train : int
        Rows of a training part, about.
    """
    kept = _sampled_classes(plan, n_train)
    code = np.full(plan.folds.n_classes, -1)
    code[kept] = np.arange(len(kept))
    y = code[plan.folds.y]
    drawn = []
    for fold, (train, test) in enumerate(plan.folds.splits[:SAMPLED_FOLDS]):
        sizes = ((train, n_train), (test, max(1, round(TESTED * n_train))))
        drawn.append(tuple(_draw(y, rows, most, [plan.seed, fold]) for rows, most in sizes))
    rows = np.unique(np.concatenate([part for split in drawn for part in split]))
    splits = tuple((np.searchsorted(rows, train), np.searchsorted(rows, test)) for train, test in drawn)
    weight = None if plan.folds.weight is None else plan.folds.weight[rows]
    folds = Folds(splits, y[rows], len(kept), weight)
    blocks = plan.blocks.only(representation.blocks).take(rows)
    counts = () if representation.picked is None else (representation.picked,)
    return replace(
        plan,
        blocks=blocks,
        widths={name: plan.widths[name] for name in representation.blocks},
        classes=plan.classes[kept],
        folds=folds,
        space=replace(plan.space, representations=(representation,), n_rows=n_train, n_classes=len(kept)),
        scorer=plan.scorer if len(kept) == len(code) else Scorer(plan.scorer.scoring, plan.classes[kept]),
        streamed=False,
        streamed_bytes={},
        picked=PickedFeatures(blocks, folds, counts, plan.seed, plan.n_jobs),
    )


def _sampled_classes(plan: SearchPlan, n_train: int) -> Indices:
    """Return some of many classes: fewer in proportion to the rows, `FEW_CLASSES` at least."""
    n_classes = plan.folds.n_classes
    is_of_one = isinstance(plan.scorer.scoring, str) and ":" in plan.scorer.scoring
    share = n_train / len(plan.folds.splits[0][0])
    most = max(FEW_CLASSES, round(share * n_classes))
    if most >= n_classes or is_of_one or any(isinstance(own, tuple) for own in plan.space.class_weights):
        return np.arange(n_classes)
    count = np.zeros(n_classes)
    for train, test in plan.folds.splits[:SAMPLED_FOLDS]:  # a class must train and test
        count += np.minimum(1, np.bincount(plan.folds.y[train], minlength=n_classes))
        count += np.minimum(1, np.bincount(plan.folds.y[test], minlength=n_classes))
    known = np.flatnonzero(count == count.max())
    return np.sort(np.random.default_rng(plan.seed).permutation(known)[:most])


def _draw(y: Indices, rows: Indices, most: int, seed: list[int]) -> Indices:
    """Return a stratified sample of the rows whose class is kept."""
    own = rows[y[rows] >= 0]
    return own[stratified_sample(y[own], most, seed, per_class=2)]
