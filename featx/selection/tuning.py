"""Tune a classifier on features: search, choose between representations, and try what may help.

The search compares representations and heads by one score each, and the best of many scores is partly luck.
So its winner is compared image by image with other representations, and a cheaper one that is as good is
used. Augmentation is then tried for the winner alone, on the same folds, and kept only if it helps there; so
is a decision for rare classes. This module sees features only, no images.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

from featx.evaluation import METRICS, Calibration, Decision, has_equal_classes
from featx.exceptions import SearchWarning
from featx.features import FeatureBlocks
from featx.heads import HEADS
from featx.records import Record
from featx.representation import Representation
from featx.search import HeadSearchCV, SearchProgress
from featx.search.evaluator import Result
from featx.search.loop import run
from featx.search.outcome import Results, best_of_each, table, winner
from featx.search.plan import SearchPlan, SearchSettings, make_plan
from featx.search.refit import Selected, refit, select
from featx.search.scoring import distances, standard_error
from featx.search.space import Params
from featx.selection.augmentation import PLAIN, Augmentation, augment, kinds_to_try
from featx.selection.choice import Candidate, Choice, choose
from featx.selection.imbalance import AUTO, IMBALANCED_FROM, fit_decision, imbalance_ratio
from featx.solvers import class_weights
from featx.splits import fold_repeats

SAME_METRICS = {"f1_macro": "macro_f1"}
"""scikit-learn's names of metrics that have another name in featx."""

LEAST_GAIN = 0.005
"""An option is kept if it helps by half a percentage point out of fold, and by more than a standard error."""

MOST_GIVEN_UP = 0.01
"""A cheaper representation is not used if its score is lower by more than a percentage point."""

NOISE_SHARE = 0.1
"""Share of the search's estimated seconds that noise may take, since it is tried without being requested."""

KIND_NAMES = {
    "noise": "feature-space noise",
    "rows": "views as training rows",
    "minority": "views of rare classes as training rows",
    "average": "features averaged over views",
    "average+rows": "averaged features, and views as training rows",
}


@dataclass(frozen=True)
class Tried(Record):
    """An option that was tried for the winner on the folds of the search.

    Parameters
    ----------
    name : str
        The option.
    score : float
        Mean score over the folds.
    gain : float
        Score minus that without the option.
    error : float or None
        Standard error of the gain over the folds; None if the gain comes from one score.
    kept : bool
        Whether it is part of the classifier.
    seconds : float
        Computing time.
    """

    name: str
    score: float
    gain: float
    error: float | None
    kept: bool
    seconds: float


@dataclass(frozen=True)
class Views:
    """Augmented views of the training images that may be used.

    Parameters
    ----------
    number : int
        Number of views of each image.
    policy : str
        Their augmentation policy.
    of : callable
        ``of(names)`` returns the features of these blocks for each view, by the names of the blocks; nothing
        if there is no time for views.
    seconds : callable
        Returns the seconds that are left for trying them.
    """

    number: int = 0
    policy: str = "none"
    of: Callable[[tuple[str, ...]], Sequence[FeatureBlocks]] = lambda names: ()
    seconds: Callable[[], float] = lambda: math.inf


@dataclass(frozen=True)
class TunedHead:
    """A tuned classifier of features, and how it was found.

    Parameters
    ----------
    params : dict
        Its configuration; it names its representation if the search had several, or if features are picked.
    score : float
        Mean score over the folds: it was used to select, so it is optimistic.
    representation : Representation
        Features that it uses.
    blocks : tuple of str
        Blocks that it needs, in order.
    pipeline : sklearn.pipeline.Pipeline
        Fitted on all rows.
    classes : array of shape (n_classes,)
        Labels.
    calibration : Calibration
        Maps decision values to probabilities of classes that are weighted by `class_weights`.
    class_weights : tuple of float
        Weights of the classes.
    oof_proba : array of shape (n, n_classes)
        Out-of-fold probabilities of the images, calibrated to the training frequencies.
    decision : Decision
        How labels follow from probabilities.
    scoring : str or callable
        The objective.
    cv_results : dict of arrays
        One entry for each configuration of the search.
    study : optuna.Study
        All trials.
    left_out : dict of str to str
        Heads that the search did not fit on all images, and why.
    choice : Choice or None
        Comparison of the winner with other representations; None if there was a single one.
    tried : tuple of Tried
        Options that were tried.
    augmentation : Augmentation
        The augmentation that was kept.
    """

    params: Params
    score: float
    representation: Representation
    blocks: tuple[str, ...]
    pipeline: Any = field(repr=False)
    classes: NDArray[Any]
    calibration: Calibration
    class_weights: tuple[float, ...]
    oof_proba: NDArray[np.float64] = field(repr=False)
    decision: Decision
    scoring: str | Callable[..., float]
    cv_results: Mapping[str, Any] = field(repr=False)
    study: Any = field(repr=False)
    left_out: Mapping[str, str] = field(default_factory=dict)
    choice: Choice | None = None
    tried: tuple[Tried, ...] = ()
    augmentation: Augmentation = PLAIN


@dataclass(frozen=True)
class _Data:
    """Features, labels, groups and weights; `view` marks rows that never test, as in `HeadSearchCV.fit`."""

    blocks: FeatureBlocks
    y: NDArray[Any]
    groups: NDArray[Any]
    weight: NDArray[Any] | None
    view: NDArray[np.intp] | None = None

    def plan(self, settings: SearchSettings) -> SearchPlan:
        return make_plan(
            self.blocks, self.y, settings, groups=self.groups, sample_weight=self.weight, view=self.view
        )

    def augmented(self, kind: str, names: Sequence[str], views: Sequence[FeatureBlocks], seed: int) -> _Data:
        """The same images with augmented rows of some blocks, on the same folds."""
        rows = augment(kind, self.blocks.only(names), views, self.y, random_state=seed)
        weight = None if self.weight is None else self.weight[rows.image]
        return _Data(rows.blocks, self.y[rows.image], self.groups[rows.image], weight, rows.view)


@dataclass(frozen=True)
class _Fitted:
    """A selected configuration, with the plan of its evaluation and its parameters in the whole space."""

    plan: SearchPlan
    selected: Selected
    params: Params


def tune(
    blocks: FeatureBlocks,
    y: NDArray[Any],
    *,
    groups: NDArray[Any],
    weight: ArrayLike | None = None,
    settings: Mapping[str, Any],
    views: Views | None = None,
    callback: Callable[[SearchProgress], None] | None = None,
) -> TunedHead:
    """Search, choose between representations, and try what may help.

    Parameters
    ----------
    blocks : FeatureBlocks
        Features of all candidates.
    y : array of shape (n,)
        Labels.
    groups : array of shape (n,)
        Rows of a group stay in one fold.
    weight : array of shape (n,), optional
        Sample weights.
    settings : mapping
        Parameters of `HeadSearchCV`; `scoring` and `n_repeats` may be ``"auto"``.
    views : Views, optional
        Views that may be used.
    callback : callable, optional
        As for `HeadSearchCV`.
    """
    plain = resolve(settings, y)
    data = _Data(blocks, y, groups, None if weight is None else np.asarray(weight))
    plan = data.plan(dataclasses.replace(plain, callback=callback or plain.callback))
    results = run(plan)
    record = {"cv_results": table(results), "study": results.study, "left_out": results.left_out}
    seconds = plan.seconds_of([dict(result.params) for result in results.found])
    selected, choice = choose_representation(results, data)
    del results  # it keeps the matrices of all folds in memory
    best = _Fitted(plan, selected, selected.params)
    tried: list[Tried] = []
    best, augmentation = _try_augmentation(best, data, plain, views or Views(), seconds, tried)
    return _tuned(best, data, plain, settings["scoring"], record, tried, augmentation, choice)


def tune_again(
    blocks: FeatureBlocks,
    y: NDArray[Any],
    *,
    groups: NDArray[Any],
    settings: Mapping[str, Any],
    params: Params,
    views: Sequence[FeatureBlocks] = (),
    augmentation: Augmentation = PLAIN,
) -> TunedHead:
    """Cross-validate, calibrate and fit a known configuration on other rows, without a search.

    Parameters
    ----------
    blocks, y, groups, settings
        As for `tune`; the blocks are those that the configuration uses.
    params : dict
        The configuration.
    views : sequence of FeatureBlocks
        Features of each view, if the augmentation uses views.
    augmentation : Augmentation
        The augmentation to use.
    """
    plain = resolve(settings, y)
    data = _Data(blocks, y, groups, None)
    representation = Representation.read(str(params.get("representation", "")), blocks)
    params = {"representation": str(representation), **params}
    rows = data.augmented(augmentation.kind, tuple(blocks), views, plain.random_state)
    results = _evaluate([params], representation, rows, plain)
    assert results is not None
    record = {"cv_results": table(results), "study": results.study}
    best = _Fitted(results.plan, select(results, winner(results)), params)
    return _tuned(best, data, plain, settings["scoring"], record, [], augmentation)


def resolve(settings: Mapping[str, Any], y: NDArray[Any]) -> SearchSettings:
    """Return the settings of the search with every ``"auto"`` replaced by its value, and with a seed."""
    plain = {**settings, "one_se": False}  # `choose_representation` compares image by image instead
    if plain["scoring"] == AUTO:
        plain["scoring"] = "accuracy"
    elif isinstance(plain["scoring"], str):
        plain["scoring"] = SAME_METRICS.get(plain["scoring"], plain["scoring"])
    if plain["n_repeats"] == AUTO:
        plain["n_repeats"] = fold_repeats(len(y))
    if not isinstance(plain["random_state"], int | np.integer):  # every evaluation uses the same folds
        plain["random_state"] = int(check_random_state(plain["random_state"]).randint(2**31 - 1))
    return SearchSettings(**HeadSearchCV(**plain).get_params(deep=False))


def choose_representation(results: Results, data: _Data) -> tuple[Selected, Choice | None]:
    """Select the search's winner, or a cheaper representation that is as good.

    Compared are the winner, the representation of the next best score, and the cheapest one that is as good:
    its score is within one standard error (of the difference over the folds) of the winner's, its
    probabilities are as close to the true classes, within a standard error, and a paired test on the
    out-of-fold predictions finds no significant difference.
    """
    plan, best = results.plan, winner(results)
    name = best.configuration.representation
    first = select(results, best)
    of_each = best_of_each(results)
    others = [own for own in of_each if own != name]
    if not others:
        return first, None
    width = {own: own.width(plan.widths) for own in (name, *others)}
    behind = {own: _difference(best, of_each[own], plan.held_out) for own in others}
    runner_up = others[0]
    near = [own for own in others if behind[own][0] <= min(behind[own][1], MOST_GIVEN_UP)]
    cheaper = [own for own in near if width[own] < width[name]]
    selected = {name: first, runner_up: select(results, of_each[runner_up])}
    costs = {name: float(width[name]), runner_up: math.inf}
    scoring = plan.scorer.scoring
    codes = plan.folds.y
    for own in sorted(cheaper, key=width.__getitem__):
        candidate = selected.get(own) or select(results, of_each[own])
        if _has_as_good_probabilities(
            candidate, first, codes, data.groups, weighed=has_equal_classes(scoring)
        ):
            selected[own], costs[own] = candidate, float(width[own])
            break
    scored = np.isfinite(first.oof_proba).all(axis=1)
    choice = choose(
        [Candidate(str(own), one.oof_proba[scored], costs[own]) for own, one in selected.items()],
        codes[scored],
        groups=data.groups[scored],
        metric=scoring if isinstance(scoring, str) and scoring in METRICS else "accuracy",
        tolerance=min(max(behind[own][1] for own in selected if own != name), MOST_GIVEN_UP),
        preferred=str(name),
    )
    return next(one for own, one in selected.items() if str(own) == choice.name), choice


def helps(before: Selected, after: Selected) -> bool:
    """Return whether a score improves by `LEAST_GAIN` and by more than a standard error over the folds."""
    gain = after.scores - before.scores
    return bool(gain.mean() >= LEAST_GAIN and gain.mean() > standard_error(gain, before.held_out))


def _evaluate(
    configs: Sequence[Params],
    representation: Representation,
    data: _Data,
    settings: SearchSettings,
    budget: float = math.inf,
    optional: bool = False,
    **changes: Any,
) -> Results | None:
    """Evaluate configurations of one representation and head, in the same way as the search.

    Returns None if that is optional and the budget does not suffice for the first one.

    Parameters
    ----------
    configs : sequence of dict
        Configurations of the search.
    representation : Representation
        Their representation.
    data : _Data
        Rows.
    settings : SearchSettings
        Those of the search; the seed gives the same folds.
    budget : float
        Estimated seconds: the first configuration is evaluated, and of the others those that fit.
    optional : bool
        Whether the first one must fit, too.
    **changes
        Settings that differ from those of the search.
    """
    if representation.picked is not None:  # over the blocks that are left
        representation = Representation.read(str(representation), data.blocks)
    plan = data.plan(
        dataclasses.replace(
            settings,
            heads=[configs[0]["head"]],
            n_trials=0,
            grid=[
                {name: value for name, value in own.items() if name != "representation"} for own in configs
            ],
            storage=None,
            study_name=None,
            representations=[representation],
            callback=None,
            **changes,
        )
    )
    kept: list[Params] = []
    for params in plan.grid:
        if plan.seconds_of([*kept, params]) <= budget or not (kept or optional):
            kept.append(params)
    if not kept:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SearchWarning)  # the search has given the same warnings
        return run(dataclasses.replace(plan, grid=type(plan.grid)(kept)))


def _try_augmentation(
    before: _Fitted,
    data: _Data,
    settings: SearchSettings,
    views: Views,
    seconds: float,
    tried: list[Tried],
) -> tuple[_Fitted, Augmentation]:
    """Try noise and views; keep the best one that helps."""
    kinds = kinds_to_try(data.y, views=views.number)
    names = before.selected.blocks
    rows = views.of(names) if views.number and kinds else ()
    if not rows:
        kinds = kinds_to_try(data.y, views=0)
    points = [before.params, *_grid_points(before.params)]
    best, kept, first = before, PLAIN, len(tried)
    for place, kind in enumerate(kinds):
        start = time.monotonic()
        left = views.seconds() / (len(kinds) - place) if rows else math.inf
        limit = {"timeout": max(left, 0.1)} if math.isfinite(left) else {}
        results = _evaluate(
            points,
            before.selected.configuration.representation,
            data.augmented(kind, names, rows, settings.random_state),
            settings,
            budget=NOISE_SHARE * seconds if kind == "noise" else seconds,
            optional=not rows,  # noise, which nobody requested
            **limit,
        )
        if results is None:
            continue
        selected = select(results, winner(results))
        is_better = helps(before.selected, selected) and selected.score > best.selected.score
        tried.append(_tried(KIND_NAMES[kind], before.selected, selected, is_better, start))
        if is_better:
            own = Augmentation(kind, views.number, views.policy, tried[-1].gain)
            kept = own if own.uses_views else Augmentation(kind, gain=own.gain)
            best = _Fitted(results.plan, selected, {**before.params, **selected.params})
    for place in range(first, len(tried)):  # if several help, only the best is kept
        if tried[place].score != best.selected.score:
            tried[place] = dataclasses.replace(tried[place], kept=False)
    return best, kept


def _decide(
    proba: NDArray[np.float64],
    weights: tuple[float, ...],
    data: _Data,
    scoring: str | Callable[..., float],
    tried: list[Tried],
) -> Decision:
    """Return the decision: that of the class weights, one for rare classes, or the most probable class.

    A decision for rare classes is tried where a metric of equal classes was requested, or none and the
    classes are imbalanced.
    """
    if len(set(weights)) > 1:
        return Decision("class weights", weights)
    start = time.monotonic()
    wanted = has_equal_classes(scoring) if scoring != AUTO else imbalance_ratio(data.y) >= IMBALANCED_FROM
    if not wanted:
        return Decision.argmax(len(weights))
    scored = np.isfinite(proba).all(axis=1)
    codes = np.unique(data.y, return_inverse=True)[1][scored]
    found = fit_decision(
        proba[scored], codes, groups=data.groups[scored], scoring=None if scoring == AUTO else str(scoring)
    )
    metric = "balanced accuracy" if scoring == "balanced_accuracy" else "macro F1"
    name = f"decision for rare classes, {metric} (accuracy {100 * found.accuracy:+.1f})"
    seconds = time.monotonic() - start
    tried.append(Tried(name, found.value, found.gain, found.error, found.kept, seconds))
    return found.decision


def _tuned(
    best: _Fitted,
    data: _Data,
    settings: SearchSettings,
    scoring: str | Callable[..., float],
    record: Mapping[str, Any],
    tried: list[Tried],
    augmentation: Augmentation,
    choice: Choice | None = None,
) -> TunedHead:
    """Fit the best configuration on all rows; `scoring` is as it was given."""
    selected, n = best.selected, len(data.y)
    representation, params = selected.configuration.representation, best.params
    if representation.picked is not None:  # `tune_again` cannot know it from the blocks
        params = {"representation": str(representation), **params}
    classes, folds = best.plan.classes, best.plan.folds
    plain = np.arange(n)  # the rows that are scored come first
    weights = class_weights(
        selected.configuration.class_weight, folds.y[plain], folds.row_weights(plain), len(classes)
    )
    trained = tuple(weights.tolist())
    oof_proba = Decision("", tuple((1 / weights).tolist())).shares(selected.oof_proba[:n])
    decision = _decide(oof_proba, trained, data, scoring, tried)
    return TunedHead(
        params=params,
        score=selected.score,
        representation=representation,
        blocks=selected.blocks,
        pipeline=refit(best.plan, selected),
        classes=classes,
        calibration=selected.calibration,
        class_weights=trained,
        oof_proba=oof_proba,
        decision=decision,
        scoring=settings.scoring,
        choice=choice,
        tried=tuple(tried),
        augmentation=augmentation,
        **record,
    )


def _has_as_good_probabilities(
    candidate: Selected, best: Selected, codes: NDArray[np.intp], groups: NDArray[Any], *, weighed: bool
) -> bool:
    """Return whether probabilities are as close to the true classes as the best, within a standard error."""
    scored = np.isfinite(best.oof_proba).all(axis=1)
    y = codes[scored]
    worse = distances(y, candidate.oof_proba[scored]) - distances(y, best.oof_proba[scored])
    if weighed:
        worse /= np.bincount(y)[y]
    of_group = np.bincount(np.unique(groups[scored], return_inverse=True)[1], worse)
    return bool(worse.sum() <= math.sqrt(of_group @ of_group))


def _difference(first: Result, second: Result, held_out: float) -> tuple[float, float]:
    """Return mean and standard error over the folds of the first score minus the second."""
    worse = np.subtract(first.scores, second.scores)
    return float(worse.mean()), standard_error(worse, held_out)


def _tried(name: str, before: Selected, after: Selected, kept: bool, start: float) -> Tried:
    gain = after.scores - before.scores
    error = standard_error(gain, before.held_out)
    return Tried(name, after.score, float(gain.mean()), error, kept, time.monotonic() - start)


def _grid_points(params: Params) -> list[Params]:
    """Return the coarse values of a configuration's head, with its scaling and representation."""
    head = HEADS[params["head"]]
    kept = {key: value for key, value in params.items() if not key.startswith(f"{head.name}__")}
    return [kept | {f"{head.name}__{key}": value for key, value in point.items()} for point in head.grid]
