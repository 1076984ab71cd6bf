"""The winner fitted on rows that are not in memory: a plain scikit-learn pipeline from passes.

Scalers are scikit-learn's own, fed chunk by chunk. A head's coefficients come from the solvers that scored
it; they are put where scikit-learn's own fit would put them, so that the pipeline predicts, is saved and is
loaded like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from featx.features import FeatureBlocks
from featx.heads.scaling import LEARNT_SCALINGS, standard_scalers
from featx.search.space import Configuration
from featx.solvers import CHUNK_ROWS, FitTask, Folds, ScaledFeatures, as_block, fit_streamed

Floats = NDArray[Any]


def fit_pipeline_streamed(
    pipeline: Pipeline,
    blocks: FeatureBlocks,
    names: Sequence[str],
    folds: Folds,
    classes: NDArray[Any],
    choice: Configuration,
    *,
    n_jobs: int,
    memory: int,
) -> Pipeline:
    """Fit a pipeline of `make_pipeline` on all rows of some blocks, side by side, without holding them.

    Parameters
    ----------
    pipeline : sklearn.pipeline.Pipeline
        Unfitted.
    blocks : FeatureBlocks
        Rows, read in chunks.
    names : sequence of str
        Blocks in the order of the pipeline's columns.
    folds : Folds
        Targets and weights; its splits are not looked at.
    classes : array of shape (n_classes,)
        Labels.
    choice : Configuration
        Head, scaling, parameters and class weights.
    n_jobs, memory : int
        As for `FitTask`.

    Returns
    -------
    sklearn.pipeline.Pipeline
        Itself, fitted.
    """
    _fit_scaler(pipeline.named_steps["scale"], blocks, names, folds, choice)
    whole = Folds(((np.arange(blocks.n_rows), np.arange(0)),), folds.y, folds.n_classes, folds.weight)
    rows = ScaledFeatures(
        [as_block(blocks.source(name)) for name in names], choice.scaling, whole, memory=memory
    )
    task = FitTask(rows, [choice.params], class_weight=choice.class_weight, n_jobs=n_jobs, memory=memory)
    head, fitted = pipeline.named_steps["head"], fit_streamed(task, choice.head.solver)
    assert choice.head.write_streamed is not None
    choice.head.write_streamed(head, fitted, classes)
    return pipeline


def chunks_of(blocks: FeatureBlocks, names: Sequence[str]) -> Iterator[tuple[slice, Floats]]:
    """Blocks side by side, some rows at a time."""
    for start in range(0, max(blocks.n_rows, 1), CHUNK_ROWS):
        where = slice(start, min(start + CHUNK_ROWS, blocks.n_rows))
        yield where, np.hstack([blocks.part(name, where) for name in names])


def _fit_scaler(
    scaler: Any, blocks: FeatureBlocks, names: Sequence[str], folds: Folds, choice: Configuration
) -> None:
    """Let scikit-learn fit it on two rows, for its form, and the means in it on all."""
    scaler.fit(np.hstack([blocks.part(name, slice(0, 2)) for name in names]))
    learning = list(standard_scalers(scaler))
    fresh = [(clone(standard), where) for standard, where in learning]
    if not fresh:
        return
    weight = folds.weight if choice.scaling in LEARNT_SCALINGS else None
    for rows, part in chunks_of(blocks, names):
        for standard, where in fresh:
            standard.partial_fit(part[:, where], sample_weight=None if weight is None else weight[rows])
    for (standard, _), (own, _) in zip(learning, fresh, strict=True):
        vars(standard).update(vars(own))
