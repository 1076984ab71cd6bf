"""The winner fitted on rows that are not in memory: a plain scikit-learn pipeline from passes.

Scalers are scikit-learn's own, fed chunk by chunk. A head's coefficients come from the solvers that scored
it; they are put where scikit-learn's own fit would put them, so that the pipeline predicts, is saved and is
loaded like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import LabelBinarizer, StandardScaler

from featx.features import FeatureBlocks
from featx.heads import LEARNT_SCALINGS
from featx.search.space import Configuration
from featx.solvers import CHUNK_ROWS, Fitted, Folds, ScaledRows, Task, as_block, fit_streamed

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
        As for `Task`.

    Returns
    -------
    sklearn.pipeline.Pipeline
        Itself, fitted.
    """
    _fit_scaler(pipeline.named_steps["scale"], blocks, names, folds, choice)
    whole = Folds(((np.arange(blocks.n_rows), np.arange(0)),), folds.y, folds.n_classes, folds.weight)
    rows = ScaledRows([as_block(blocks.source(name)) for name in names], choice.scaling, whole, memory=memory)
    task = Task(rows, [choice.params], class_weight=choice.class_weight, n_jobs=n_jobs, memory=memory)
    head, fitted = pipeline.named_steps["head"], fit_streamed(task, choice.head.solver)
    head.n_features_in_ = rows.d
    SETTERS[type(head).__name__](head, fitted, classes)
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
    learning = list(_standards(scaler, slice(None)))
    fresh = [(clone(standard), where) for standard, where in learning]
    if not fresh:
        return
    weight = folds.weight if choice.scaling in LEARNT_SCALINGS else None
    for rows, part in chunks_of(blocks, names):
        for standard, where in fresh:
            standard.partial_fit(part[:, where], sample_weight=None if weight is None else weight[rows])
    for (standard, _), (own, _) in zip(learning, fresh, strict=True):
        vars(standard).update(vars(own))


def _standards(scaler: Any, where: Any) -> Iterator[tuple[StandardScaler, Any]]:
    """Scalers that learn, with the columns that they see."""
    if isinstance(scaler, StandardScaler):
        yield scaler, where
    elif isinstance(scaler, Pipeline):
        yield from _standards(scaler.steps[0][1], where)
    elif isinstance(scaler, ColumnTransformer):
        for name, own, columns in scaler.transformers_:
            if name != "remainder":
                yield from _standards(own, columns)


def _set_linear(head: Any, fitted: Fitted, classes: NDArray[Any]) -> None:
    head.classes_, head.n_iter_ = classes, np.array([fitted.passes], np.int32)
    head.coef_, head.intercept_ = fitted.weights.T.copy(), fitted.intercept


def _set_svm(head: Any, fitted: Fitted, classes: NDArray[Any]) -> None:
    _set_linear(head, fitted, classes)
    head.n_iter_ = fitted.passes


def _set_one_vs_rest(head: Any, fitted: Fitted, classes: NDArray[Any]) -> None:
    head.label_binarizer_ = LabelBinarizer(sparse_output=True).fit(classes)
    head.classes_, head.estimators_ = classes, []
    for weights, intercept in zip(fitted.weights.T, fitted.intercept, strict=True):
        one = clone(head.estimator)
        one.n_features_in_ = head.n_features_in_
        _set_linear(one, Fitted(weights[:, None], intercept[None], passes=fitted.passes), np.array([0, 1]))
        head.estimators_.append(one)


def _set_ridge(head: Any, fitted: Fitted, classes: NDArray[Any]) -> None:
    head._label_binarizer = LabelBinarizer(pos_label=1, neg_label=-1).fit(classes)
    head.classes_, head.n_iter_, head.solver_ = classes, None, "cholesky"
    head.coef_, head.intercept_ = fitted.weights.T.copy(), fitted.intercept


def _set_lda(head: Any, fitted: Fitted, classes: NDArray[Any]) -> None:
    head.classes_, head.means_ = classes, fitted.means
    head.priors_ = fitted.count / fitted.count.sum()
    head.coef_, head.intercept_ = fitted.weights.T.copy(), fitted.intercept


def _set_nearest_mean(head: Any, fitted: Fitted, classes: NDArray[Any]) -> None:
    n, n_classes = fitted.count.sum(), len(classes)
    head.classes_, head.centroids_ = classes, fitted.means
    head.class_prior_ = np.full(n_classes, 1 / n_classes)
    deviation = np.sqrt(fitted.within / max(n - n_classes, 1))
    head.within_class_std_dev_ = deviation
    spread = np.sqrt(1 / fitted.count - 1 / n)[:, None] * (deviation + np.median(deviation))
    center = fitted.count @ fitted.means / n
    head.deviations_ = (fitted.means - center) / np.where(spread == 0, 1, spread)


SETTERS: dict[str, Callable[[Any, Fitted, NDArray[Any]], None]] = {
    "LogisticRegression": _set_linear,
    "OneVsRestClassifier": _set_one_vs_rest,
    "LinearSVC": _set_svm,
    "RidgeClassifier": _set_ridge,
    "LinearDiscriminantAnalysis": _set_lda,
    "NearestCentroid": _set_nearest_mean,
}
"""How each head that streams takes its numbers."""
