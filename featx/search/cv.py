"""HeadSearchCV: the best representation, scaling and head for some rows, found by Optuna in seconds.

Shaped like scikit-learn's GridSearchCV. A coarse grid is computed first, all folds and values together,
and enters the study as finished trials; TPE then refines it in small batches. What comes out is a plain
scikit-learn pipeline and a calibration fitted on out-of-fold scores.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import sklearn
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import check_cv
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from threadpoolctl import threadpool_limits

from featx.exceptions import DataError, LabelError, SearchError, SearchWarning, UsageError
from featx.features import FeatureBlocks
from featx.heads import DEFAULT_HEADS, HEADS, LEARNT_SCALINGS, SCALINGS, decision_scores, make_pipeline
from featx.search.loop import Search, SearchProgress, n_threads
from featx.search.representations import (
    RELEVANT_COUNTS,
    SIDE_BY_SIDE,
    Screened,
    layers_add,
    screen_representations,
    shortlist,
)
from featx.search.scoring import Scorer, decided
from featx.search.space import RELEVANT, Space, identity
from featx.search.streaming import chunks_of, fit_pipeline_streamed
from featx.solvers import (
    CLASS_WEIGHTS,
    DEFAULT_MEMORY,
    KERNEL_ROWS,
    STREAM_ROWS,
    Folds,
    class_weights,
    moment_bytes,
    solve_lda,
    streamed_bytes,
)
from featx.solvers.closed import one_for_two
from featx.splits import check_labels, make_folds

Floats = NDArray[Any]

ROWS = "rows"
"""Name of the only block of a plain array."""


class HeadSearchCV(ClassifierMixin, BaseEstimator):
    """Choose and tune a classifier on rows by cross-validation, and calibrate it.

    Parameters
    ----------
    heads : sequence of str, optional
        Keys of ``featx.heads.HEADS``; by default the cheap ones (`DEFAULT_HEADS`).
    n_trials : int
        Trials that TPE adds to the coarse grid. With 0 nothing is searched: the first head's known-good
        point is fitted, with a warning, unless `grid` says what to evaluate.
    timeout : float, optional
        Seconds after which no new group of fits begins.
    cv : int, splitter or iterable of (train, test)
        Number of stratified (group-aware) folds, or scikit-learn's other forms.
    n_repeats : int
        How often the folds are drawn anew, where `cv` is a number.
    scoring : str or callable
        A metric of featx (``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``log_loss``, ``ece``), a
        scikit-learn scorer's name, or a callable ``(estimator, X, y)``.
    representations : 'auto', or sequence of tuples of block names
        Which blocks, alone or side by side, are tried for `FeatureBlocks`; ignored for arrays.
        ``("relevant:N",)`` is N features picked over all blocks.
    grid : {'auto', 'coarse', 'none'} or sequence of dict
        The coarse grid; ``auto`` leaves it out when `n_trials` is 0. A sequence holds configurations as in
        `best_params_`.
    scalings : sequence of str, optional
        Some of ``featx.heads.SCALINGS``; all by default.
    class_weight : None, 'balanced', 'sqrt', 'search', or dict
        Weights of classes. Heads that cannot use them are left out (`left_out_`), or tried without under
        ``'search'``.
    storage : str or optuna storage, optional
        Where the study is kept: a database URL, ``journal:///path``, or a path ending in ``.journal``.
        A search of the same space and data goes on where it stopped. A journal is ten times quicker than
        SQLite.
    study_name : str, optional
        By default made of hashes of the space and the data.
    n_jobs : int, optional
        Threads; by default all cores.
    refit : bool
        Whether the winner is fitted on all rows.
    one_se : bool
        Among several representations take the simplest that is within one standard error of the best.
    random_state : int, RandomState or None
        Seed of folds, sampler and heads.
    callback : callable, optional
        Called with `SearchProgress`.
    pruner : optuna pruner, 'median' or None
        Gives up configurations of heads that are evaluated fold by fold.
    memory : int
        Bytes that the matrices of one group of fits may take; more is computed in parts.
    kernel_rows : int
        Above as many training rows SVMs are screened on a stratified sample, labelled as approximate; an
        approximate winner is evaluated on all rows before it wins.
    stream_rows : int
        Above as many rows they are read chunk by chunk, from where they are kept, and never held together:
        ridge, LDA and the nearest mean go by second moments that one pass gives for all folds, linear models
        by L-BFGS whose steps are passes. Heads that need all rows are then left out unless `heads` names one
        (then all rows are held, and an SVM stays approximate). See `memory_`.

    Attributes
    ----------
    best_estimator_ : sklearn.pipeline.Pipeline
        The winner, fitted on all rows; plain scikit-learn.
    best_params_ : dict
        Its configuration.
    best_score_ : float
        Its mean score over the folds: the number used for selection, so on the hopeful side.
    best_blocks_ : tuple of str
        Blocks that `predict` needs, in order; () for arrays.
    calibration_ : featx.evaluation.Calibration
        Fitted on out-of-fold scores.
    oof_decision_, oof_proba_ : arrays of shape (n,) or (n, n_classes), and (n, n_classes)
        Out-of-fold decision scores and calibrated probabilities; NaN for rows that never scored.
    classes_ : array of shape (n_classes,)
        Labels.
    cv_results_ : dict of arrays
        One entry for each configuration, as in scikit-learn; also `origin`, `state`, `approximate`.
    study_ : optuna.Study
        All trials.
    screening_ : list of featx.search.representations.Screened
        Leave-one-out scores of blocks and combinations, best first; empty where nothing was screened.
    n_splits_ : int
        Folds, all drawings of them together.
    held_out_ : float
        Rows that a fold scores for each that it trains on, which the error of repeated folds depends on.
    left_out_ : dict
        Heads that could not be used, with the reason.
    memory_ : dict of str to int
        Bytes that a search of streamed rows took at most, whatever the number of rows: ``chunks`` of rows at
        hand, ``moments`` ((folds + 7 + 3 threads) * d^2 * 8), ``weights`` (25 arrays of the weights of all
        problems that are solved at once, a thirty-second of `memory`); and what grows with them, since there
        is an answer for each row and class: ``scores`` (eight times 8 * n * outputs). Empty where rows were
        held.
    n_features_in_ : int
        Columns that `predict` needs.

    Raises
    ------
    SearchError
        If no configuration could be fitted, with the first cause.
    LabelError
        If the labels cannot be learnt.
    """

    def __init__(
        self,
        heads: Sequence[str] | None = None,
        *,
        n_trials: int = 30,
        timeout: float | None = None,
        cv: Any = 5,
        n_repeats: int = 1,
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
        """Search, refit the winner on all rows, calibrate it.

        Parameters
        ----------
        X : array of shape (n, d) or FeatureBlocks
            Rows.
        y : array of shape (n,)
            Labels of any type.
        groups : array of shape (n,), optional
            Rows of a group stay in one fold.
        sample_weight : array of shape (n,), optional
            Weights in fitting, scaling, scoring and calibration.
        view : array of shape (n,), int, optional
            0 for the plain image; rows of other views train with their group and never score.

        Returns
        -------
        HeadSearchCV
            Itself.
        """
        search = self.search(X, y, groups=groups, sample_weight=sample_weight, view=view)
        self.settle(search)
        return self.refit_on(search) if self.refit else self

    def search(
        self,
        X: ArrayLike | FeatureBlocks,
        y: ArrayLike,
        *,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        view: ArrayLike | None = None,
    ) -> Search:
        """Evaluate configurations, and hand out the search with all that it holds, for `settle`.

        Parameters
        ----------
        X, y, groups, sample_weight, view
            As for `fit`.

        Returns
        -------
        featx.search.loop.Search
            It keeps what fits share, so settling on one configuration or another costs little.
        """
        begun = time.monotonic()
        blocks = self._read_rows(X, y)
        self._of_array = not isinstance(X, FeatureBlocks)
        self.classes_, codes = self._read_labels(y, blocks.n_rows)
        seed = self._seed()
        weight = None
        if sample_weight is not None:
            weight = _check_sample_weight(
                sample_weight, np.empty((blocks.n_rows, 1)), ensure_non_negative=True
            )
        folds = Folds(self._split(blocks, codes, groups, view, seed), codes, len(self.classes_), weight)
        of_class = (None, *CLASS_WEIGHTS) if self.class_weight == "search" else (self._class_weight(),)
        heads, scalings = self._heads(folds, weight), self._scalings()
        streamed = len(codes) > self.stream_rows and all(HEADS[name].streams for name in heads)
        space = Space(
            heads,
            self._representations(blocks, folds, groups, seed, begun, streamed=streamed),
            of_class,
            min(len(train) for train, _ in folds.splits),
            scalings,
            folds.n_classes,
        )
        search = Search(self, blocks, folds, space, seed, begun, streamed=streamed)
        search.run()
        self.study_ = search.study
        return search

    def settle(self, search: Search, config: Mapping[str, Any] | None = None) -> HeadSearchCV:
        """Take a configuration of a search, its winner by default, and calibrate it on out-of-fold scores.

        Parameters
        ----------
        search : featx.search.loop.Search
            Of this object, or of the one that this is a copy of.
        config : mapping, optional
            A configuration that was evaluated on all folds.

        Returns
        -------
        HeadSearchCV
            Itself.
        """
        winner = search.winner() if config is None else search.results[identity(dict(config))]
        choice = search.space.read(winner.config)
        self.best_params_ = dict(winner.config)
        self.best_score_ = winner.score
        names, _ = search.representation(choice.representation)
        self.best_blocks_ = () if self._of_array else names
        self.cv_results_ = search.table()
        self.best_index_ = int(
            np.argmax([identity(p) == identity(winner.config) for p in self.cv_results_["params"]])
        )
        self.n_splits_ = len(search.folds.splits)
        self.held_out_ = search.evaluator.held_out
        self.memory_: dict[str, int] = {}
        if search.streamed:
            widest = max(map(search.width, search.space.representations))
            self.memory_ = streamed_bytes(search.folds, widest, n_threads(self.n_jobs), self.memory)
        if not self._of_array:
            self.n_features_in_ = sum(search.blocks.width(name) for name in names)
        with threadpool_limits(limits=1):
            self.oof_decision_ = search.evaluator.decisions(winner.config)
        self.calibration_ = search.evaluator.calibrate(self.oof_decision_, choice.class_weight)
        self.oof_proba_ = self.calibration_.proba(self.oof_decision_)
        return self

    def refit_on(self, search: Search) -> HeadSearchCV:
        """Fit what was settled on to all rows.

        Parameters
        ----------
        search : featx.search.loop.Search
            As for `settle`.

        Returns
        -------
        HeadSearchCV
            Itself.
        """
        search.report("refit")
        choice = search.space.read(self.best_params_)
        names, columns = search.representation(choice.representation)
        widths = [search.blocks.width(name) for name in names]
        if search.streamed and columns is None:
            self.best_estimator_ = self._refit_streamed(search, names, choice)
            return self
        self.best_estimator_ = self._refit(
            search.blocks.stack(names),
            search.folds.y,
            choice,
            widths,
            columns,
            search.folds.weight,
            search.seed,
        )
        return self

    def predict(self, X: ArrayLike | FeatureBlocks) -> NDArray[Any]:
        """Return the most probable label of each row.

        Parameters
        ----------
        X : FeatureBlocks with at least the best blocks, or array of shape (n, n_features_in_)
            Rows; an array holds the best blocks side by side.
        """
        check_is_fitted(self)
        return np.asarray(self.classes_[decided(self.decision_function(X))])

    def predict_proba(self, X: ArrayLike | FeatureBlocks) -> Floats:
        """Calibrated probabilities, shape (n, n_classes)."""
        check_is_fitted(self)
        return self.calibration_.proba(self._decisions(X))

    def decision_function(self, X: ArrayLike | FeatureBlocks) -> Floats:
        """Calibrated logits: (n,) for two classes, whose sign decides, else (n, n_classes)."""
        check_is_fitted(self)
        return self.calibration_.scores(self._decisions(X))

    def __sklearn_tags__(self) -> Any:
        """Tags for scikit-learn: a classifier of dense two-dimensional rows."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        return tags

    def _decisions(self, X: ArrayLike | FeatureBlocks) -> Floats:
        if not hasattr(self, "best_estimator_"):
            raise UsageError(
                "this search was made with refit=False: it chose a head but has none to predict with."
            )
        if isinstance(X, FeatureBlocks):
            parts = chunks_of(X, self.best_blocks_ or tuple(X))
            return np.concatenate([decision_scores(self.best_estimator_, part) for _, part in parts])
        rows = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return decision_scores(self.best_estimator_, rows)

    def _read_rows(self, X: ArrayLike | FeatureBlocks, y: ArrayLike) -> FeatureBlocks:
        if isinstance(X, FeatureBlocks):
            if not len(X) or not X.n_rows:
                raise DataError(f"{len(X)} blocks of {X.n_rows} rows: there is nothing to learn from.")
            return X
        if y is None:
            raise LabelError("requires y to be passed, but the target y is None")
        rows = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        return _ArrayBlocks(rows)

    def _read_labels(self, y: ArrayLike, n: int) -> tuple[NDArray[Any], NDArray[np.intp]]:
        y = np.asarray(y) if hasattr(y, "__array__") and not hasattr(y, "dtype") else y
        labels = check_labels(sklearn.utils.column_or_1d(y, warn=True) if _is_column(y) else y)
        if len(labels) != n:
            raise LabelError(f"{n} rows, but {len(labels)} labels: inconsistent numbers of samples.")
        classes, codes = np.unique(labels, return_inverse=True)
        return classes, codes.astype(np.intp)

    def _seed(self) -> int:
        if isinstance(self.random_state, int | np.integer):
            return int(self.random_state)
        return int(sklearn.utils.check_random_state(self.random_state).randint(2**31))

    def _split(
        self, blocks: FeatureBlocks, codes: NDArray[np.intp], groups: Any, view: Any, seed: int
    ) -> tuple[tuple[NDArray[np.intp], NDArray[np.intp]], ...]:
        n = len(codes)
        plain = np.arange(n)
        if view is not None:
            view = np.asarray(view)
            if view.shape != (n,):
                raise DataError(f"view has shape {view.shape}, not ({n},): give a number for each row.")
            plain = np.flatnonzero(view == 0)
            if len(plain) < n and groups is None:
                raise DataError(
                    "views were passed without groups: a view must stay in its image's fold, so pass the "
                    "image of each row as its group."
                )
        own = None if groups is None else np.asarray(groups)
        if own is not None and own.shape != (n,):
            raise DataError(f"groups have shape {own.shape}, not ({n},): give one for each row.")
        base_groups = None if own is None else own[plain]
        if isinstance(self.cv, int | np.integer):
            splits = make_folds(
                self.classes_[codes[plain]],
                n_splits=int(self.cv),
                groups=base_groups,
                n_repeats=self.n_repeats,
                random_state=seed,
            )
        else:
            splitter = check_cv(self.cv, codes[plain], classifier=True)
            splits = [
                (np.asarray(a), np.asarray(b))
                for a, b in splitter.split(np.zeros(len(plain)), codes[plain], base_groups)
            ]
        if len(plain) == n:
            return tuple(splits)
        assert own is not None
        views = np.setdiff1d(np.arange(n), plain)
        full = []
        for train, test in splits:
            away = np.isin(own[views], own[plain[test]])
            full.append((np.sort(np.concatenate([plain[train], views[~away]])), plain[test]))
        return tuple(full)

    def _heads(self, folds: Folds, weight: Floats | None) -> tuple[str, ...]:
        asked = DEFAULT_HEADS if self.heads is None else tuple(self.heads)
        if isinstance(self.heads, str) or not asked or not set(asked) <= set(HEADS):
            raise UsageError(f"heads {self.heads!r} are not known; choose from {', '.join(HEADS)}.")
        self.left_out_: dict[str, str] = {}
        for name in asked:
            head = HEADS[name]
            if folds.n_classes < head.min_classes:
                self.left_out_[name] = "for two classes it is the same as another head"
            elif weight is not None and not head.takes_weights:
                self.left_out_[name] = "it cannot use sample weights"
            elif self.class_weight not in (None, "search") and not head.takes_weights:
                self.left_out_[name] = "it cannot use class weights"
            elif self.heads is None and len(folds.y) > self.stream_rows and not head.streams:
                self.left_out_[name] = (
                    f"it needs all rows in memory, and there are more than {self.stream_rows:,}; name it in "
                    "`heads` to try it all the same"
                )
        heads = tuple(name for name in dict.fromkeys(asked) if name not in self.left_out_)
        told = "; ".join(f"{name}: {why}" for name, why in self.left_out_.items())
        if not heads:
            raise SearchError(f"no head is left ({told}); choose another of {', '.join(HEADS)}.")
        if self.heads is not None and "weights" in told:
            warnings.warn(f"heads left out: {told}.", SearchWarning, stacklevel=3)
        return heads

    def _scalings(self) -> tuple[str, ...]:
        scalings = SCALINGS if self.scalings is None else tuple(self.scalings)
        if not scalings or not set(scalings) <= set(SCALINGS):
            raise UsageError(f"scalings {self.scalings!r} are not known; choose from {', '.join(SCALINGS)}.")
        return scalings

    def _representations(
        self,
        blocks: FeatureBlocks,
        folds: Folds,
        groups: Any,
        seed: int,
        begun: float,
        *,
        streamed: bool,
    ) -> tuple[str, ...]:
        """Names of what is searched, most promising first; screened where the user names none."""
        self.screening_: list[Screened] = []
        if len(blocks) == 1:
            return tuple(blocks)
        if not isinstance(self.representations, str):
            return _named(self.representations, blocks)
        if self.representations != "auto":
            raise UsageError(
                f"representations {self.representations!r}: pass 'auto' or tuples of block names."
            )
        scored = np.unique(np.concatenate([test for _, test in folds.splits]))
        scorer = Scorer(self.scoring, self.classes_)
        with threadpool_limits(limits=1):
            self.screening_ = screen_representations(
                blocks.take(scored) if len(scored) < len(folds.y) else blocks,
                folds.y[scored],
                folds.n_classes,
                score=None if scorer.of_probabilities else scorer,
                groups=None if groups is None else np.asarray(groups)[scored],
                random_state=seed,
                n_jobs=n_threads(self.n_jobs),
                deadline=float("inf") if self.timeout is None else begun + self.timeout / 2,
            )
        if streamed:
            threads = n_threads(self.n_jobs)
            fitting = [o for o in self.screening_ if moment_bytes(folds, o.width, threads) <= self.memory]
            return tuple(one.name for one in shortlist(fitting or self.screening_))
        names = [one.name for one in shortlist(self.screening_)]
        width = sum(blocks.width(name) for name in blocks)
        held = width * blocks.n_rows * 4 <= self.memory  # all blocks are, while features are picked
        if held and layers_add(self.screening_, len(scored)):
            names += [f"{RELEVANT}{count}" for count in RELEVANT_COUNTS if count < width]
        return tuple(names)

    def _class_weight(self) -> Any:
        if self.class_weight is None or self.class_weight in CLASS_WEIGHTS:
            return self.class_weight
        if not isinstance(self.class_weight, Mapping):
            raise UsageError(
                f"class_weight {self.class_weight!r} is not known; choose None, 'balanced', 'sqrt', 'search' "
                "or a dict of label to weight."
            )
        strange = set(self.class_weight) - set(self.classes_.tolist())
        if strange:
            raise UsageError(f"class_weight names labels that do not occur: {sorted(map(repr, strange))}.")
        return tuple(float(self.class_weight.get(label, 1.0)) for label in self.classes_.tolist())

    def _refit_streamed(self, search: Search, names: Sequence[str], choice: Any) -> Any:
        blocks, folds, seed = search.blocks, search.folds, search.seed
        widths, threads = [blocks.width(name) for name in names], n_threads(self.n_jobs)
        pipeline = make_pipeline(
            choice.head.name, choice.params, choice.scaling, widths, n_rows=blocks.n_rows, random_state=seed
        )
        with threadpool_limits(limits=1):
            return fit_pipeline_streamed(
                pipeline, blocks, names, folds, self.classes_, choice, n_jobs=threads, memory=self.memory
            )

    def _refit(
        self,
        rows: Floats,
        codes: NDArray[np.intp],
        choice: Any,
        widths: Sequence[int],
        columns: NDArray[np.intp] | None,
        weight: Floats | None,
        seed: int,
    ) -> Any:
        if not np.ptp(rows, axis=0).any():
            warnings.warn(
                f"all {len(rows)} rows are the same, every feature is constant: nothing can be learnt from "
                "them. The network or its weights see no difference between these images.",
                SearchWarning,
                stacklevel=3,
            )
        pipeline = make_pipeline(
            choice.head.name,
            choice.params,
            choice.scaling,
            widths,
            n_rows=len(rows),
            columns=None if columns is None else columns.tolist(),
            random_state=seed,
        )
        own = np.ones(len(rows)) if weight is None else weight
        of_class = class_weights(choice.class_weight, codes, own, len(self.classes_))
        both = None if weight is None and choice.class_weight is None else own * of_class[codes]
        learnt = weight if choice.scaling in LEARNT_SCALINGS else None
        return fit_pipeline(pipeline, rows, self.classes_[codes], scale_weight=learnt, head_weight=both)


def fit_pipeline(
    pipeline: Any, rows: Floats, y: NDArray[Any], *, scale_weight: Floats | None, head_weight: Floats | None
) -> Any:
    """Fit a pipeline of `make_pipeline`; the scaler sees the user's weights, the head class weights too."""
    scaler, head = pipeline.named_steps["scale"], pipeline.named_steps["head"]
    if scale_weight is None:
        scaled = scaler.fit_transform(rows)
    else:
        with sklearn.config_context(enable_metadata_routing=True):
            _route_weights(scaler)
            scaled = scaler.fit(rows, sample_weight=scale_weight).transform(rows)
        _forget_routes(scaler)
    if isinstance(head, LinearDiscriminantAnalysis):
        _fit_lda(head, scaled, y)
        return pipeline
    if head_weight is None:
        with warnings.catch_warnings():
            # a column that is constant within classes: the nearest mean's variances are not used
            warnings.filterwarnings("ignore", message="self.within_class_std_dev_")
            head.fit(scaled, y)
        return pipeline
    with sklearn.config_context(enable_metadata_routing=True):
        _route_weights(head)
        head.fit(scaled, y, sample_weight=head_weight)
    _forget_routes(head)
    return pipeline


def _fit_lda(head: Any, rows: Floats, y: NDArray[Any]) -> None:
    """Fit what `LinearDiscriminantAnalysis` fits, from the smaller Gram matrix.

    Its own least-squares solution of a (d, d) system takes minutes on some thousand columns, and it keeps
    the covariance, which predictions do not need.
    """
    head.classes_, codes = np.unique(y, return_inverse=True)
    solved = solve_lda(rows.astype(np.float64), codes, len(head.classes_), [head.shrinkage])
    head.means_, weights, offset = next(solved)
    head.priors_ = np.bincount(codes) / len(codes)
    weights, offset = one_for_two(weights, offset)
    head.coef_, head.intercept_ = weights.T, offset
    head.n_features_in_ = rows.shape[1]


def _route_weights(estimator: Any) -> None:
    """Let sample weights reach every step that takes them."""
    inner = [part for part in _parts_of(estimator) if hasattr(part, "fit")]
    for part in inner:
        _route_weights(part)
    if not inner and hasattr(estimator, "set_fit_request"):
        estimator.set_fit_request(sample_weight=True)


def _forget_routes(estimator: Any) -> None:
    """Undo `_route_weights` on what was fitted: requests cannot be saved, and predicting needs none."""
    vars(estimator).pop("_metadata_request", None)
    for part in _parts_of(estimator):
        _forget_routes(part)


def _parts_of(value: Any) -> list[Any]:
    """Estimators directly inside an estimator: its steps, transformers, copies."""
    found = []
    for own in vars(value).values() if isinstance(value, BaseEstimator) else value:
        if isinstance(own, BaseEstimator):
            found.append(own)
        elif isinstance(own, list | tuple):
            found += _parts_of(own)
    return found


class _ArrayBlocks(FeatureBlocks):
    """A plain array as the only block, in its own precision."""

    def __init__(self, rows: Floats) -> None:
        super().__init__({ROWS: rows}, len(rows), widths={ROWS: rows.shape[1]})
        self._loaded[ROWS] = rows


def _is_column(y: Any) -> bool:
    return isinstance(y, np.ndarray) and y.ndim == 2 and y.shape[1] == 1


def _named(wanted: Any, blocks: FeatureBlocks) -> tuple[str, ...]:
    """Names of the representations that the user lists."""
    found = []
    for names in wanted:
        own = (names,) if isinstance(names, str) else tuple(names)
        picked = len(own) == 1 and own[0].removeprefix(RELEVANT).isdecimal() and own[0].startswith(RELEVANT)
        if not picked and (not own or not set(own) <= set(blocks)):
            raise UsageError(f"representation {own!r}: choose blocks from {', '.join(blocks)}.")
        found.append(SIDE_BY_SIDE.join(own))
    if not found:
        raise UsageError("representations is empty; pass 'auto' or tuples of block names.")
    return tuple(dict.fromkeys(found))
