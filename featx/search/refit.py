"""Take a configuration of a search: calibrate it on out-of-fold scores, and fit it on all rows."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from threadpoolctl import threadpool_limits

from featx.evaluation import Calibration
from featx.exceptions import SearchWarning
from featx.heads import LEARNT_SCALINGS, make_pipeline
from featx.search.evaluator import Result
from featx.search.outcome import Results
from featx.search.plan import SearchPlan
from featx.search.scoring import calibrate
from featx.search.space import Configuration, Params
from featx.search.streaming import fit_pipeline_streamed
from featx.solvers import (
    LINEAR,
    FitTask,
    Folds,
    ScaledFeatures,
    as_block,
    class_weights,
    fit_linear,
    solve_lda,
)
from featx.solvers.closed import one_for_two

Floats = NDArray[Any]


ONE_THREAD = 50_000_000
"""Features of all rows up to which BLAS gets one thread for a linear model: `LogisticRegression` of 2,000
rows and 5,000 columns took 0.37 s, and 1.4 s with two threads on a busy machine (2 cores, 2026-11-29)."""


@dataclass(frozen=True)
class Selected:
    """A configuration that was selected from the results of a search.

    Parameters
    ----------
    params : dict
        The configuration as Optuna keeps it.
    configuration : Configuration
        The same, as a value.
    score : float
        Mean score over the folds.
    scores : array of shape (n_folds,)
        Score of each fold.
    held_out : float
        Test rows for each training row.
    blocks : tuple of str
        Blocks that it needs, in order.
    columns : array of int, optional
        Columns of these blocks that it uses; None for all.
    oof_decision : array of shape (n,) or (n, n_classes)
        Out-of-fold decision values; NaN for rows that never test.
    calibration : Calibration
        Fitted on `oof_decision`.
    oof_proba : array of shape (n, n_classes)
        Calibrated out-of-fold probabilities.
    """

    params: Params
    configuration: Configuration
    score: float
    scores: Floats = field(repr=False)
    held_out: float
    blocks: tuple[str, ...]
    columns: NDArray[np.intp] | None = field(repr=False)
    oof_decision: Floats = field(repr=False)
    calibration: Calibration
    oof_proba: Floats = field(repr=False)


def select(results: Results, result: Result) -> Selected:
    """Select a configuration of a search, and calibrate it.

    Parameters
    ----------
    results : Results
        The search.
    result : Result
        One of its results, evaluated on all folds.
    """
    plan, configuration = results.plan, result.configuration
    representation = configuration.representation
    blocks, columns = representation.blocks, None
    if representation.picked is not None:
        blocks, columns = plan.picked.of_all_rows(representation.picked)
    with threadpool_limits(limits=1):
        decision = results.decisions(result.params)
    calibration = calibrate(decision, plan.folds, configuration.class_weight)
    return Selected(
        dict(result.params),
        configuration,
        result.score,
        np.array(result.scores),
        plan.held_out,
        blocks,
        columns,
        decision,
        calibration,
        calibration.proba(decision),
    )


def refit(plan: SearchPlan, selected: Selected) -> Any:
    """Fit a selected configuration on all rows of a plan.

    Parameters
    ----------
    plan : SearchPlan
        Features, labels and weights.
    selected : Selected
        What to fit.

    Returns
    -------
    sklearn.pipeline.Pipeline
        The fitted pipeline.
    """
    blocks, folds, configuration = plan.blocks, plan.folds, selected.configuration
    pipeline = make_pipeline(
        configuration.head.name,
        configuration.params,
        configuration.scaling,
        [blocks.width(name) for name in selected.blocks],
        n_rows=blocks.n_rows,
        columns=None if selected.columns is None else selected.columns.tolist(),
        random_state=plan.seed,
    )
    if plan.streamed and selected.columns is None:
        with threadpool_limits(limits=1):
            return fit_pipeline_streamed(
                pipeline,
                blocks,
                selected.blocks,
                folds,
                plan.classes,
                configuration,
                n_jobs=plan.n_jobs,
                memory=plan.settings.memory,
            )
    rows = blocks.stack(selected.blocks)
    if not np.ptp(rows, axis=0).any():
        warnings.warn(
            f"all features are constant: the {len(rows)} rows are equal, so that nothing can "
            "be learnt. The network or its weights give the same features for all images.",
            SearchWarning,
            stacklevel=3,
        )
    scale_weight = folds.weight if configuration.scaling in LEARNT_SCALINGS else None
    head_weight = None
    if folds.weight is not None or configuration.class_weight is not None:
        own = folds.row_weights(np.arange(len(rows)))
        head_weight = own * class_weights(configuration.class_weight, folds.y, own, folds.n_classes)[folds.y]
    scaler = fit_scaler(pipeline.named_steps["scale"], rows, scale_weight)
    if configuration.head.solver in LINEAR:
        with threadpool_limits(limits=1 if rows.size <= ONE_THREAD else None):
            _fit_linear(pipeline, plan, selected, rows)
        return pipeline
    return fit_head(pipeline, scaler.transform(rows), plan.classes[folds.y], head_weight)


def _fit_linear(pipeline: Any, plan: SearchPlan, selected: Selected, rows: Floats) -> None:
    """Fit the linear head of a pipeline by the solver of the search, within a number of passes."""
    folds, configuration = plan.folds, selected.configuration
    whole = Folds(((np.arange(len(rows)), np.arange(0)),), folds.y, folds.n_classes, folds.weight)
    ends = np.cumsum([plan.blocks.width(name) for name in selected.blocks])[:-1]
    parts = np.split(rows, ends, axis=1) if selected.columns is None else [rows[:, selected.columns]]
    memory = plan.settings.memory
    features = ScaledFeatures([as_block(part) for part in parts], configuration.scaling, whole, memory=memory)
    task = FitTask(
        features,
        [configuration.params],
        class_weight=configuration.class_weight,
        n_jobs=plan.n_jobs,
        memory=memory,
        passes=plan.passes(features.d, 1),
    )
    write = configuration.head.write_streamed
    assert write is not None
    write(pipeline.named_steps["head"], fit_linear(task, configuration.head.solver), plan.classes)


def fit_scaler(scaler: Any, rows: Floats, weight: Floats | None) -> Any:
    """Fit a scaler, with sample weights if there are some, and return it."""
    if weight is None:
        return scaler.fit(rows)
    with sklearn.config_context(enable_metadata_routing=True):
        _route_weights(scaler)
        scaler.fit(rows, sample_weight=weight)
    _remove_routes(scaler)
    return scaler


def fit_head(pipeline: Any, scaled: Floats, y: NDArray[Any], head_weight: Floats | None) -> Any:
    """Fit the head of a pipeline on scaled rows by scikit-learn; `head_weight` has the class weights too."""
    head = pipeline.named_steps["head"]
    if isinstance(head, LinearDiscriminantAnalysis):
        _fit_lda(head, scaled, y)
        return pipeline
    if head_weight is None:
        with warnings.catch_warnings():
            # for columns that are constant within classes; the variances of the nearest mean are not used
            warnings.filterwarnings("ignore", message="self.within_class_std_dev_")
            head.fit(scaled, y)
        return pipeline
    with sklearn.config_context(enable_metadata_routing=True):
        _route_weights(head)
        head.fit(scaled, y, sample_weight=head_weight)
    _remove_routes(head)
    return pipeline


def _fit_lda(head: Any, rows: Floats, y: NDArray[Any]) -> None:
    """Fit a `LinearDiscriminantAnalysis` from the smaller Gram matrix.

    Its own fit solves a (d, d) least-squares problem, which takes minutes for some thousand columns, and it
    keeps the covariance, which is not needed to predict.
    """
    head.classes_, codes = np.unique(y, return_inverse=True)
    solved = solve_lda(rows.astype(np.float64), codes, len(head.classes_), [head.shrinkage])
    head.means_, weights, offset = next(solved)
    head.priors_ = np.bincount(codes) / len(codes)
    weights, offset = one_for_two(weights, offset)
    head.coef_, head.intercept_ = weights.T, offset
    head.n_features_in_ = rows.shape[1]


def _route_weights(estimator: Any) -> None:
    """Request sample weights for every step that takes them."""
    inner = [part for part in _parts_of(estimator) if hasattr(part, "fit")]
    for part in inner:
        _route_weights(part)
    if not inner and hasattr(estimator, "set_fit_request"):
        estimator.set_fit_request(sample_weight=True)


def _remove_routes(estimator: Any) -> None:
    """Undo `_route_weights` after the fit: requests cannot be saved, and are not needed to predict."""
    vars(estimator).pop("_metadata_request", None)
    for part in _parts_of(estimator):
        _remove_routes(part)


def _parts_of(value: Any) -> list[Any]:
    """Return the estimators directly inside an estimator: steps, transformers, clones."""
    found = []
    for own in vars(value).values() if isinstance(value, BaseEstimator) else value:
        if isinstance(own, BaseEstimator):
            found.append(own)
        elif isinstance(own, list | tuple):
            found += _parts_of(own)
    return found
