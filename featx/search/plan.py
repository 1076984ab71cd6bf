"""SearchPlan: what a search computes, as one frozen value; and how it is made from data and settings."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sklearn
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import check_cv
from sklearn.utils.validation import _check_sample_weight, check_non_negative
from threadpoolctl import threadpool_limits

from featx.exceptions import DataError, LabelError, SearchError, SearchWarning, UsageError
from featx.features import FeatureBlocks
from featx.heads import DEFAULT_HEADS, HEADS, SCALINGS, check_heads
from featx.representation import Representation, block_name, is_picked
from featx.search.costs import PASSES, Sizes, default_budget, group_seconds, linear_seconds
from featx.search.feature_selection import RELEVANT_COUNTS, PickedFeatures
from featx.search.scoring import Scorer
from featx.search.screening import Screened, layers_add, screen_representations, shortlist
from featx.search.space import Params, SearchSpace, group_configs, unique
from featx.solvers import CLASS_WEIGHTS, Folds, moment_bytes, streamed_bytes
from featx.solvers.descent import PRECISE
from featx.splits import check_labels, fold_repeats, make_folds
from featx.threads import n_threads

AUTO = "auto"

FOLDS, TRIALS = 5, 30
"""Number of folds of ``cv="auto"``, and largest number of trials of ``n_trials="auto"``."""

USUAL_WIDTH = 1_280
"""Columns of the last features of the default network."""

LINEAR_SHARE = 0.5
"""Share of the budget that a linear model on all folds, and its last fit, may take."""

CONVERGED_SHARE = 0.25
"""Share of the budget that linear models take to converge beyond what a comparison needs."""

FEWEST_SCORED = 2_000
"""Rows that are scored at least where folds are left out: the standard error of an accuracy is then 1 %."""

Floats = NDArray[Any]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class SearchProgress:
    """State of a search; passed to its callback after every batch.

    Parameters
    ----------
    done, total : int
        Number of configurations that were evaluated, and that are planned.
    best_score : float
        Best mean score so far.
    best_params : dict
        Its configuration.
    seconds : float
        Time since the start of the search.
    eta_s : float
        Estimated time to the end in seconds (NaN at first).
    stage : {'grid', 'tpe', 'refit'}
        Current step.
    """

    done: int
    total: int
    best_score: float
    best_params: dict[str, Any]
    seconds: float
    eta_s: float
    stage: str


@dataclass(frozen=True)
class SearchSettings:
    """The parameters of `HeadSearchCV`, which documents them."""

    heads: Sequence[str] | None
    n_trials: int | str
    budget: float | str | None
    timeout: float | None
    cv: Any
    n_repeats: int | str
    scoring: str | Callable[..., float]
    representations: Any
    grid: Any
    scalings: Sequence[str] | None
    class_weight: Any
    storage: Any
    study_name: str | None
    n_jobs: int | None
    refit: bool
    one_se: bool
    random_state: Any
    callback: Callable[[SearchProgress], None] | None
    pruner: Any
    memory: int
    kernel_rows: int
    stream_rows: int


@dataclass(frozen=True)
class SearchPlan:
    """What a search computes: data, folds, space, objective and budget.

    Parameters
    ----------
    settings : SearchSettings
        The parameters from which the plan was made.
    blocks : FeatureBlocks
        The features.
    widths : mapping of str to int
        Number of columns of each block that the representations use.
    classes : array of shape (n_classes,)
        Labels.
    folds : Folds
        Splits, class indices, sample weights.
    held_out : float
        Test rows for each training row, which the error of repeated folds depends on.
    space : SearchSpace
        Configurations to choose from.
    scorer : Scorer
        The objective.
    grid : tuple of dict
        Configurations that are evaluated before TPE draws others.
    is_coarse : bool
        Whether the grid is the coarse one, which is evaluated in stages.
    seed : int
        Seed of the sampler and of the heads.
    budget : float
        Seconds of computing that the search may plan, by the estimates of `featx.search.costs`.
    start, deadline : float
        Values of `time.monotonic()` when the search was started, and after which no new group of fits is
        started.
    n_jobs : int
        Number of threads.
    streamed : bool
        Whether the features are read in chunks for every pass instead of being kept in memory.
    streamed_bytes : mapping of str to int
        Largest number of bytes of a search of streamed features, by purpose; else empty.
    picked : PickedFeatures
        Features that are picked over all blocks.
    left_out : mapping of str to str
        Heads that cannot be used, with the reason.
    screening : tuple of Screened
        Results of the screening of representations, best first; empty if none was done.
    """

    settings: SearchSettings
    blocks: FeatureBlocks
    widths: Mapping[str, int]
    classes: NDArray[Any]
    folds: Folds
    held_out: float
    space: SearchSpace
    scorer: Scorer
    grid: tuple[Params, ...]
    is_coarse: bool
    seed: int
    budget: float
    start: float
    deadline: float
    n_jobs: int
    streamed: bool
    streamed_bytes: Mapping[str, int]
    picked: PickedFeatures
    left_out: Mapping[str, str]
    screening: tuple[Screened, ...] = ()

    @property
    def n_trials(self) -> int:
        """Largest number of trials of TPE."""
        return TRIALS if self.settings.n_trials == AUTO else int(self.settings.n_trials)

    @property
    def sizes(self) -> Sizes:
        """Sizes of the problems, for estimates of their cost."""
        train, test = self.folds.splits[0]
        return Sizes(len(train), len(test), len(self.folds.splits), self.folds.n_classes)

    def seconds_of(self, configs: Sequence[Params]) -> float:
        """Return the estimated seconds of evaluating configurations on all folds."""
        return sum(
            group_seconds(group, group[0].representation.width(self.widths), self.sizes)
            for group in (
                [self.space.read(configs[place]) for place in places]
                for places in group_configs(self.space, configs)
            )
        )

    def passes(self, width: int, n_fits: int) -> int:
        """Return how many passes over the rows linear models may take until they have converged.

        Parameters
        ----------
        width : int
            Columns.
        n_fits : int
            Number of models that are fitted together.
        """
        one = n_fits * linear_seconds(self.sizes.n_train, width, self.sizes.outputs, passes=1)
        return int(np.clip(CONVERGED_SHARE * self.budget / one, PASSES, PRECISE["max_iterations"]))


def make_plan(
    blocks: FeatureBlocks,
    y: ArrayLike,
    settings: SearchSettings,
    *,
    groups: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    view: ArrayLike | None = None,
) -> SearchPlan:
    """Check the data and the settings, and make the plan of a search.

    Representations are screened here if the settings name none.

    Parameters
    ----------
    blocks : FeatureBlocks
        The features.
    y : array of shape (n,)
        Labels of any type.
    settings : SearchSettings
        Parameters of `HeadSearchCV`.
    groups, sample_weight, view
        As for `HeadSearchCV.fit`.

    Raises
    ------
    DataError, LabelError, UsageError, SearchError
        If the data or the settings cannot be used.
    """
    start = time.monotonic()
    if not len(blocks) or not blocks.n_rows:
        raise DataError(f"{len(blocks)} blocks of {blocks.n_rows} rows: pass at least one block with rows.")
    classes, codes = read_labels(y, blocks.n_rows)
    seed = read_seed(settings.random_state)
    weight = None
    if sample_weight is not None:
        weight = _check_sample_weight(sample_weight, np.empty((blocks.n_rows, 1)))
        check_non_negative(weight, "`sample_weight`")
    splits = read_splits(settings, classes, codes, groups, view, seed)
    n_images = blocks.n_rows if view is None else int(np.sum(np.asarray(view) == 0))
    budget = read_budget(settings.budget, n_images)
    if settings.cv == AUTO:
        splits = _affordable(splits, len(classes), budget)
    folds = Folds(splits, codes, len(classes), weight)
    of_classes = read_class_weights(settings.class_weight, classes)
    left_out = _left_out(settings, folds)
    heads = _heads(settings, left_out)
    scalings = SCALINGS if settings.scalings is None else tuple(settings.scalings)
    if not scalings or not set(scalings) <= set(SCALINGS):
        raise UsageError(f"scalings {settings.scalings!r} are not known; choose from {', '.join(SCALINGS)}.")
    scorer = Scorer(settings.scoring, classes)
    n_jobs = n_threads(settings.n_jobs)
    streamed = len(codes) > settings.stream_rows and all(HEADS[name].streams for name in heads)
    screening: tuple[Screened, ...] = ()
    representations = _named_representations(settings.representations, blocks)
    timeout = float("inf") if settings.timeout is None else settings.timeout
    if not representations:
        screening = _screen(
            blocks, folds, scorer, groups, seed=seed, n_jobs=n_jobs, deadline=start + timeout / 2
        )
        representations = _promising(screening, blocks, folds, settings.memory, n_jobs, streamed=streamed)
    n_train = min(len(train) for train, _ in folds.splits)
    space = SearchSpace(heads, representations, of_classes, n_train, scalings, folds.n_classes)
    grid = tuple(read_grid(settings.grid, space, with_trials=settings.n_trials != 0))
    names = dict.fromkeys(name for one in representations for name in one.blocks)
    widths = {name: blocks.width(name) for name in names}
    widest = max(one.width(widths) for one in representations)
    counts = tuple(one.picked for one in representations if one.picked is not None)
    return SearchPlan(
        settings=settings,
        blocks=blocks,
        widths=widths,
        classes=classes,
        folds=folds,
        held_out=float(np.mean([len(test) / len(train) for train, test in folds.splits])),
        space=space,
        scorer=scorer,
        grid=grid,
        is_coarse=isinstance(settings.grid, str) and len(grid) > 1,
        seed=seed,
        budget=budget,
        start=start,
        deadline=start + timeout,
        n_jobs=n_jobs,
        streamed=streamed,
        streamed_bytes=streamed_bytes(folds, widest, n_jobs, settings.memory) if streamed else {},
        picked=PickedFeatures(blocks, folds, counts, seed, n_jobs),
        left_out=left_out,
        screening=screening,
    )


def read_labels(y: ArrayLike, n: int) -> tuple[NDArray[Any], Indices]:
    """Check the labels of n rows; return the classes and the class indices."""
    y = np.asarray(y) if hasattr(y, "__array__") and not hasattr(y, "dtype") else y
    is_column = isinstance(y, np.ndarray) and y.ndim == 2 and y.shape[1] == 1
    labels = check_labels(sklearn.utils.column_or_1d(y, warn=True) if is_column else y)
    if len(labels) != n:
        raise LabelError(f"{n} rows, but {len(labels)} labels: inconsistent numbers of samples.")
    classes, codes = np.unique(labels, return_inverse=True)
    return classes, codes.astype(np.intp)


def read_seed(random_state: Any) -> int:
    """Return an integer seed; draw one from a random state."""
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(sklearn.utils.check_random_state(random_state).randint(2**31))


def read_splits(
    settings: SearchSettings,
    classes: NDArray[Any],
    codes: Indices,
    groups: ArrayLike | None,
    view: ArrayLike | None,
    seed: int,
) -> tuple[tuple[Indices, Indices], ...]:
    """Return training and test rows of each fold; rows of views train with their group, and never test."""
    n = len(codes)
    plain = np.arange(n)
    if view is not None:
        view = np.asarray(view)
        if view.shape != (n,):
            raise DataError(f"view has shape {view.shape}, not ({n},): give a number for each row.")
        plain = np.flatnonzero(view == 0)
        if len(plain) < n and groups is None:
            raise DataError(
                "views were passed without groups: a view must stay in its image's fold, so pass the image "
                "of each row as its group."
            )
    own = None if groups is None else np.asarray(groups)
    if own is not None and own.shape != (n,):
        raise DataError(f"groups have shape {own.shape}, not ({n},): give one for each row.")
    plain_groups = None if own is None else own[plain]
    if isinstance(settings.cv, int | np.integer | str):
        splits = make_folds(
            classes[codes[plain]],
            n_splits=FOLDS if settings.cv == AUTO else int(settings.cv),
            groups=plain_groups,
            n_repeats=fold_repeats(len(plain)) if settings.n_repeats == "auto" else int(settings.n_repeats),
            random_state=seed,
        )
    else:
        splitter = check_cv(settings.cv, codes[plain], classifier=True)
        splits = [
            (np.asarray(train), np.asarray(test))
            for train, test in splitter.split(np.zeros(len(plain)), codes[plain], plain_groups)
        ]
    if own is None or len(plain) == n:
        return tuple(splits)
    views = np.setdiff1d(np.arange(n), plain)
    full = []
    for train, test in splits:
        in_test = np.isin(own[views], own[plain[test]])
        full.append((np.sort(np.concatenate([plain[train], views[~in_test]])), plain[test]))
    return tuple(full)


def read_budget(budget: Any, n_rows: int) -> float:
    """Return the seconds of computing that a search may plan."""
    if budget is None:
        return math.inf
    if budget == AUTO:
        return default_budget(n_rows)
    if not isinstance(budget, int | float | np.number) or not budget > 0:
        raise UsageError(
            f"budget {budget!r}: give a positive number of seconds, 'auto', or None for no limit."
        )
    return float(budget)


def _affordable(
    splits: tuple[tuple[Indices, Indices], ...], n_classes: int, budget: float
) -> tuple[tuple[Indices, Indices], ...]:
    """Return as many of the folds as leave time for a linear model: of many rows, a few folds are enough.

    Folds are left out while one linear model of `USUAL_WIDTH` columns on all of them, and its last fit, take
    more than `LINEAR_SHARE` of the budget, and the others have `FEWEST_SCORED` rows to score.
    """
    n_test, kept = len(splits[0][1]), len(splits)
    one = linear_seconds((FOLDS - 1) * n_test, USUAL_WIDTH, 1 if n_classes == 2 else n_classes)
    while kept > 1 and (kept + 1) * one > LINEAR_SHARE * budget and (kept - 1) * n_test >= FEWEST_SCORED:
        kept -= 1
    return splits[:kept]


def read_class_weights(class_weight: Any, classes: NDArray[Any]) -> tuple[Any, ...]:
    """Return the class weights that the search chooses from: names, None, or a weight for each class."""
    if class_weight == "search":
        return (None, *CLASS_WEIGHTS)
    if class_weight is None or class_weight in CLASS_WEIGHTS:
        return (class_weight,)
    if not isinstance(class_weight, Mapping):
        raise UsageError(
            f"class_weight {class_weight!r} is not known; choose None, 'balanced', 'sqrt', 'search' "
            "or a dict of label to weight."
        )
    unknown = set(class_weight) - set(classes.tolist())
    if unknown:
        raise UsageError(f"class_weight names labels that do not occur: {sorted(map(repr, unknown))}.")
    return (tuple(float(class_weight.get(label, 1.0)) for label in classes.tolist()),)


def read_grid(grid: Any, space: SearchSpace, *, with_trials: bool) -> list[Params]:
    """Return the configurations that are evaluated before TPE draws others."""
    if isinstance(grid, str) and grid == "auto":
        grid = "coarse" if with_trials else "none"
    if isinstance(grid, str):
        if grid not in ("coarse", "none"):
            raise UsageError(f"grid {grid!r} is not known; choose auto, coarse, none, or configurations.")
        return space.grid() if grid == "coarse" else space.known_good()[:1]
    configs = unique([space.capped(params) for params in grid])
    for params in configs:
        try:
            space.distributions(params)
        except (KeyError, ValueError) as error:
            raise UsageError(f"grid: {params} is not in the searched space ({error}).") from error
    if not configs:
        raise UsageError("grid is empty; pass configurations as in best_params_, or 'none'.")
    return configs


def _left_out(settings: SearchSettings, folds: Folds) -> dict[str, str]:
    """Check the names of the heads; return those that cannot be used, with the reason."""
    requested = DEFAULT_HEADS if settings.heads is None else tuple(settings.heads)
    check_heads(settings.heads)
    left_out: dict[str, str] = {}
    for name in requested:
        head = HEADS[name]
        if folds.n_classes < head.min_classes:
            left_out[name] = "for two classes it is the same as another head"
        elif folds.weight is not None and not head.takes_weights:
            left_out[name] = "it cannot use sample weights"
        elif settings.class_weight not in (None, "search") and not head.takes_weights:
            left_out[name] = "it cannot use class weights"
        elif settings.heads is None and len(folds.y) > settings.stream_rows and not head.streams:
            left_out[name] = (
                f"it needs all rows in memory, and there are more than {settings.stream_rows:,}; name it in "
                "`heads` to try it nevertheless"
            )
    return left_out


def _heads(settings: SearchSettings, left_out: Mapping[str, str]) -> tuple[str, ...]:
    requested = DEFAULT_HEADS if settings.heads is None else tuple(settings.heads)
    heads = tuple(name for name in dict.fromkeys(requested) if name not in left_out)
    reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
    if not heads:
        raise SearchError(f"no head is left ({reasons}); choose another of {', '.join(HEADS)}.")
    if settings.heads is not None and "weights" in reasons:
        warnings.warn(f"heads left out: {reasons}.", SearchWarning, stacklevel=4)
    return heads


def _named_representations(wanted: Any, blocks: FeatureBlocks) -> tuple[Representation, ...]:
    """Return the representations that the user names, or the only one; empty if they are to be screened."""
    if len(blocks) == 1 and not any(isinstance(names, Representation) for names in wanted):
        return (Representation((block_name(next(iter(blocks))),)),)
    if isinstance(wanted, str):
        if wanted != "auto":
            raise UsageError(f"representations {wanted!r}: pass 'auto' or tuples of block names.")
        return ()
    found = []
    for names in wanted:
        if isinstance(names, Representation):
            found.append(names)
            continue
        own = (names,) if isinstance(names, str) else tuple(names)
        if len(own) == 1 and is_picked(own[0]):
            found.append(Representation.read(own[0], blocks))
            continue
        if not own or not set(own) <= set(blocks):
            raise UsageError(f"representation {own!r}: choose blocks from {', '.join(blocks)}.")
        found.append(Representation(tuple(map(block_name, own))))
    if not found:
        raise UsageError("representations is empty; pass 'auto' or tuples of block names.")
    return tuple(dict.fromkeys(found))


def _screen(
    blocks: FeatureBlocks,
    folds: Folds,
    scorer: Scorer,
    groups: ArrayLike | None,
    *,
    seed: int,
    n_jobs: int,
    deadline: float,
) -> tuple[Screened, ...]:
    scored = np.unique(np.concatenate([test for _, test in folds.splits]))
    with threadpool_limits(limits=1):
        return tuple(
            screen_representations(
                blocks.take(scored) if len(scored) < len(folds.y) else blocks,
                folds.y[scored],
                folds.n_classes,
                score=None if scorer.of_probabilities else scorer,
                groups=None if groups is None else np.asarray(groups)[scored],
                random_state=seed,
                n_jobs=n_jobs,
                deadline=deadline,
            )
        )


def _promising(
    screening: Sequence[Screened],
    blocks: FeatureBlocks,
    folds: Folds,
    memory: int,
    n_jobs: int,
    *,
    streamed: bool,
) -> tuple[Representation, ...]:
    """Return the representations to search, most promising first."""
    if streamed:
        small = [one for one in screening if moment_bytes(folds, one.width, n_jobs) <= memory]
        return tuple(one.representation for one in shortlist(small or screening))
    chosen = [one.representation for one in shortlist(screening)]
    width = sum(blocks.width(name) for name in blocks)
    n_scored = len(np.unique(np.concatenate([test for _, test in folds.splits])))
    fits = width * blocks.n_rows * 4 <= memory  # all blocks are in memory while features are picked
    if fits and layers_add(screening, n_scored):
        names = tuple(map(block_name, blocks))
        chosen += [Representation(names, count) for count in RELEVANT_COUNTS if count < width]
    return tuple(chosen)
