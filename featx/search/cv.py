"""HeadSearchCV: search for the best representation, scaling and classifier head with Optuna.

Its interface is that of scikit-learn's GridSearchCV. A coarse grid is computed first, for all folds and
values together, and added to the study as finished trials; TPE then refines it in small batches. The result
is a plain scikit-learn pipeline, and a calibration that is fitted on out-of-fold scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from featx.exceptions import LabelError, UsageError
from featx.features import FeatureBlocks
from featx.heads import decision_scores
from featx.search.loop import run
from featx.search.outcome import table, winner
from featx.search.plan import SearchProgress, SearchSettings, make_plan
from featx.search.refit import refit, select
from featx.search.scoring import decided
from featx.search.streaming import chunks_of
from featx.solvers import DEFAULT_MEMORY, KERNEL_ROWS, STREAM_ROWS

Floats = NDArray[Any]

ROWS = "rows"
"""Name of the only block of a plain array."""


class HeadSearchCV(ClassifierMixin, BaseEstimator):
    """Select and tune a classifier on features by cross-validation, and calibrate it.

    Parameters
    ----------
    heads : sequence of str, optional
        Keys of ``featx.heads.HEADS``; by default the cheap ones (`DEFAULT_HEADS`).
    n_trials : int or 'auto'
        Number of trials of TPE, in addition to the coarse grid. ``auto`` is at most 30, and none where they
        cannot help: see `featx.search.loop`. With 0 there is no search: the default parameters of the first
        head are fitted, with a warning, unless `grid` is a sequence of configurations.
    budget : float, 'auto' or None
        Estimated seconds of computation that the search may plan. ``auto`` is what the extraction of as many
        images takes with the default network: 5 ms a row, and at least 5 s. Times are estimated (for two
        cores), not measured, so that the same data give the same search on a busy machine. None sets no
        limit.
    timeout : float, optional
        Limit of the measured time in seconds: no new group of fits is started after it.
    cv : 'auto', int, splitter or iterable of (train, test)
        Number of stratified (group-aware) folds, or scikit-learn's other forms. ``auto`` is 5; only some of
        these are evaluated where a linear model on all of them would take most of the budget.
    n_repeats : int or 'auto'
        How often the folds are drawn, if `cv` is a number; ``auto`` depends on the number of rows.
    scoring : str or callable
        A metric of featx (``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``log_loss``, ``ece``), the
        name of a scikit-learn scorer, or a callable ``(estimator, X, y)``.
    representations : 'auto', or sequence of tuples of block names
        Blocks, alone or side by side, that are tried for `FeatureBlocks`; ignored for arrays.
        ``("relevant:N",)`` is N features that are picked over all blocks.
    grid : {'auto', 'coarse', 'none'} or sequence of dict
        The coarse grid; ``auto`` leaves it out if `n_trials` is 0. A sequence holds configurations as in
        `best_params_`; more neighbours than a fold has training rows count as that many.
    scalings : sequence of str, optional
        Some of ``featx.heads.SCALINGS``; all by default.
    class_weight : None, 'balanced', 'sqrt', 'search', or dict
        Weights of classes. Heads that cannot use them are left out (`left_out_`); with ``'search'`` they are
        tried without weights.
    storage : str or optuna storage, optional
        Storage of the study: a database URL, ``journal:///path``, or a path that ends in ``.journal``. A
        search of the same space and data continues from there. A journal is ten times faster than SQLite.
    study_name : str, optional
        By default it is made of hashes of the space and the data.
    n_jobs : int, optional
        Number of threads; all cores by default.
    refit : bool
        Whether the best configuration is fitted on all rows.
    one_se : bool
        Whether the simplest representation that is within one standard error of the best is selected.
    random_state : int, RandomState or None
        Seed of folds, sampler and heads.
    callback : callable, optional
        Called with `SearchProgress` after every batch.
    pruner : optuna pruner, 'median' or None
        Prunes configurations of heads that are evaluated fold by fold.
    memory : int
        Bytes that the matrices of one group of fits may take; larger ones are computed in parts.
    kernel_rows : int
        With more training rows, SVMs are evaluated on a stratified sample of this size, and labelled
        approximate. An approximate winner is evaluated on all rows before it is selected.
    stream_rows : int
        With more rows, features are read in chunks from their storage and never kept in memory together.
        Ridge, LDA and nearest mean are fitted from second moments, which one pass gives for all folds; linear
        models are fitted by L-BFGS with one pass for each step. Heads that need all rows in memory are left
        out unless `heads` names one; then all rows are loaded, and an SVM stays approximate. See `memory_`.

    Attributes
    ----------
    best_estimator_ : sklearn.pipeline.Pipeline
        The best configuration, fitted on all rows; plain scikit-learn.
    best_params_ : dict
        The best configuration.
    best_score_ : float
        Its mean score over the folds. It was used to select, so it is optimistic.
    best_index_ : int
        Its index in `cv_results_`.
    best_blocks_ : tuple of str
        Blocks that `predict` needs, in order; () for arrays.
    calibration_ : featx.evaluation.Calibration
        Fitted on out-of-fold scores.
    oof_decision_ : array of shape (n,) or (n, n_classes)
        Out-of-fold decision values; NaN for rows that were never tested.
    oof_proba_ : array of shape (n, n_classes)
        Calibrated out-of-fold probabilities; NaN for rows that were never tested.
    classes_ : array of shape (n_classes,)
        Labels.
    cv_results_ : dict of arrays
        One entry for each configuration, as in scikit-learn; in addition `origin`, `state`, `approximate` and
        `brier`.
    study_ : optuna.Study
        All trials.
    screening_ : list of featx.search.screening.Screened
        Leave-one-out scores of blocks and combinations, best first; empty if none were screened.
    n_splits_ : int
        Number of folds, of all repeats together.
    held_out_ : float
        Test rows for each training row, which the error of repeated folds depends on.
    left_out_ : dict
        Heads that could not be used or were not fitted on all rows, with the reason.
    memory_ : dict of str to int
        Largest number of bytes of a search of streamed features; empty for features in memory. Independent of
        the number of rows are ``chunks`` of rows, ``moments`` ((folds + 7 + 3 threads) * d^2 * 8) and
        ``weights`` (25 arrays of the weights of all problems that are solved together, a thirty-second of
        `memory`). Proportional to it are ``scores`` (eight times 8 * n * outputs).
    n_features_in_ : int
        Number of columns that `predict` needs.

    Raises
    ------
    SearchError
        If no configuration could be fitted; the message names the first cause.
    LabelError
        If the labels cannot be learnt.
    """

    def __init__(
        self,
        heads: Sequence[str] | None = None,
        *,
        n_trials: int | str = "auto",
        budget: float | str | None = "auto",
        timeout: float | None = None,
        cv: Any = "auto",
        n_repeats: int | str = 1,
        scoring: str | Callable[..., float] = "accuracy",
        representations: Any = "auto",
        grid: Any = "auto",
        scalings: Sequence[str] | None = None,
        class_weight: Any = None,
        storage: Any = None,
        study_name: str | None = None,
        n_jobs: int | None = None,
        refit: bool = True,
        one_se: bool = True,
        random_state: Any = None,
        callback: Callable[[SearchProgress], None] | None = None,
        pruner: Any = "median",
        memory: int = DEFAULT_MEMORY,
        kernel_rows: int = KERNEL_ROWS,
        stream_rows: int = STREAM_ROWS,
    ) -> None:
        self.heads = heads
        self.n_trials = n_trials
        self.budget = budget
        self.timeout = timeout
        self.cv = cv
        self.n_repeats = n_repeats
        self.scoring = scoring
        self.representations = representations
        self.grid = grid
        self.scalings = scalings
        self.class_weight = class_weight
        self.storage = storage
        self.study_name = study_name
        self.n_jobs = n_jobs
        self.refit = refit
        self.one_se = one_se
        self.random_state = random_state
        self.callback = callback
        self.pruner = pruner
        self.memory = memory
        self.kernel_rows = kernel_rows
        self.stream_rows = stream_rows

    def fit(
        self,
        X: ArrayLike | FeatureBlocks,
        y: ArrayLike,
        *,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        view: ArrayLike | None = None,
    ) -> HeadSearchCV:
        """Search, calibrate the best configuration, and fit it on all rows.

        Parameters
        ----------
        X : array of shape (n, d) or FeatureBlocks
            Features.
        y : array of shape (n,)
            Labels of any type.
        groups : array of shape (n,), optional
            Rows of a group stay in one fold.
        sample_weight : array of shape (n,), optional
            Weights for fitting, scaling, scoring and calibration.
        view : array of shape (n,), int, optional
            0 for the plain image; rows of other views are in the training part of their group's folds only.

        Returns
        -------
        self

        Raises
        ------
        LabelError
            If the labels cannot be learnt.
        UsageError
            If a parameter is not valid.
        SearchError
            If no configuration could be fitted.
        """
        blocks = X if isinstance(X, FeatureBlocks) else self._array_blocks(X, y)
        is_array = isinstance(blocks, _ArrayBlocks)
        settings = SearchSettings(**self.get_params(deep=False))
        plan = make_plan(blocks, y, settings, groups=groups, sample_weight=sample_weight, view=view)
        results = run(plan)
        best = winner(results)
        selected = select(results, best)
        self.classes_ = plan.classes
        self.left_out_ = {**plan.left_out, **results.left_out}
        self.screening_ = list(plan.screening)
        self.study_ = results.study
        self.cv_results_ = table(results)
        self.best_index_ = results.found.index(best)
        self.best_params_ = selected.params
        self.best_score_ = selected.score
        self.best_blocks_ = () if is_array else selected.blocks
        self.n_splits_ = len(plan.folds.splits)
        self.held_out_ = plan.held_out
        self.memory_ = plan.streamed_bytes
        if not is_array:
            self.n_features_in_ = sum(blocks.width(name) for name in selected.blocks)
        self.calibration_ = selected.calibration
        self.oof_decision_, self.oof_proba_ = selected.oof_decision, selected.oof_proba
        if self.refit:
            self.best_estimator_ = refit(plan, selected)
        return self

    def predict(self, X: ArrayLike | FeatureBlocks) -> NDArray[Any]:
        """Predict the label of each row.

        Parameters
        ----------
        X : FeatureBlocks with at least the best blocks, or array of shape (n, n_features)
            Features; an array has the best blocks side by side.

        Returns
        -------
        array of shape (n,)
            Labels, in the type of `classes_`.

        Raises
        ------
        UsageError
            If the search was made with ``refit=False``.
        """
        check_is_fitted(self)
        return np.asarray(self.classes_[decided(self.decision_function(X))])

    def predict_proba(self, X: ArrayLike | FeatureBlocks) -> Floats:
        """Return calibrated probabilities, shape (n, n_classes), float64; X as for `predict`."""
        check_is_fitted(self)
        return self.calibration_.proba(self._decisions(X))

    def decision_function(self, X: ArrayLike | FeatureBlocks) -> Floats:
        """Return calibrated logits, shape (n,) for two classes, else (n, n_classes); X as for `predict`."""
        check_is_fitted(self)
        return self.calibration_.scores(self._decisions(X))

    def __sklearn_tags__(self) -> Any:
        """Return tags for scikit-learn: a classifier of dense two-dimensional arrays."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        return tags

    def _decisions(self, X: ArrayLike | FeatureBlocks) -> Floats:
        if not hasattr(self, "best_estimator_"):
            raise UsageError("the search was made with refit=False: there is no fitted head to predict with.")
        if isinstance(X, FeatureBlocks):
            parts = chunks_of(X, self.best_blocks_ or tuple(X))
            return np.concatenate([decision_scores(self.best_estimator_, part) for _, part in parts])
        rows = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return decision_scores(self.best_estimator_, rows)

    def _array_blocks(self, X: ArrayLike, y: ArrayLike) -> _ArrayBlocks:
        if y is None:
            raise LabelError("requires y to be passed, but the target y is None")
        rows = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        return _ArrayBlocks(rows)


class _ArrayBlocks(FeatureBlocks):
    """A plain array as the only block, in its own precision."""

    def __init__(self, rows: Floats) -> None:
        super().__init__({ROWS: rows}, len(rows), widths={ROWS: rows.shape[1]})
        self._loaded[ROWS] = rows
