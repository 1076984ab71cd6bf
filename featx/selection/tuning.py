"""From rows to a tuned classifier: the search, an honest choice, and what may help beside it.

The search compares representations and heads by one score each, and the best of many scores is partly luck:
so its winner is compared image by image with its rivals, and a cheaper one that is as good is taken. What
may help besides (weights of classes, augmentation, thresholds) is tried for the winner alone, on the same
folds, and kept only if it helps there. Rows alone: nothing here sees a picture.
"""

from __future__ import annotations

import copy
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

from featx.curves import fold_repeats
from featx.evaluation import METRICS, Calibration
from featx.exceptions import SearchWarning
from featx.features import FeatureBlocks
from featx.heads import HEADS
from featx.search import HeadSearchCV, SearchProgress
from featx.search.loop import Search
from featx.search.representations import SIDE_BY_SIDE
from featx.search.scoring import distances, standard_error
from featx.selection.augmentation import PLAIN, Augmentation, augment, kinds_to_try
from featx.selection.choice import Candidate, Choice, choose
from featx.selection.imbalance import IMBALANCED_FROM, Adjustment, fit_adjustment, imbalance_ratio, metric_for
from featx.solvers import CLASS_WEIGHTS

AUTO = "auto"

Config = dict[str, Any]

OF_RARE_CLASSES = ("balanced_accuracy", "macro_f1")
"""Metrics to which every class counts alike: weights and thresholds are tried for these alone."""

SAME_METRICS = {"f1_macro": "macro_f1"}
"""scikit-learn's names of metrics that featx has under another."""

LEAST_GAIN = 0.005
"""What is tried besides is kept if it helps by half a point out of fold, and by a standard error."""

MOST_GIVEN_UP = 0.01
"""A cheaper representation is not taken if its score is lower by more than a point."""

NOISE_SHARE = 0.1
"""Part of the search's time that noise may take: it is tried without being asked for."""

KIND_NAMES = {
    "noise": "feature-space noise",
    "rows": "views as training rows",
    "minority": "views of rare classes as training rows",
    "average": "features averaged over views",
    "average+rows": "averaged features, and views as training rows",
}

MOST_REPEATS = 3
"""Drawings of the folds: more steady the score of few images little further, and take their time each."""


@dataclass(frozen=True)
class Tried:
    """Something that was tried for the winner on the folds of the search.

    Parameters
    ----------
    name : str
        What.
    score : float
        Mean score over the folds.
    gain : float
        Score less that without it.
    error : float or None
        Standard error of the gain over the folds; None where it comes from one score.
    kept : bool
        Whether it is part of the classifier.
    seconds : float
        What trying it took.
    """

    name: str
    score: float
    gain: float
    error: float | None
    kept: bool
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON."""
        return dict(vars(self))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Tried:
        """Read what `to_dict` gave."""
        return cls(**plain)


@dataclass(frozen=True)
class Views:
    """Views of the training images that may be used.

    Parameters
    ----------
    number : int
        How many of each image.
    policy : str
        Their policy.
    of : callable
        ``of(names)`` gives the rows of these blocks for each view, by the blocks' names.
    """

    number: int = 0
    policy: str = "none"
    of: Callable[[tuple[str, ...]], Sequence[FeatureBlocks]] = lambda names: ()


@dataclass(frozen=True)
class Tuned:
    """A tuned classifier of rows, and how it came about.

    Parameters
    ----------
    search : HeadSearchCV
        The search.
    winner : HeadSearchCV
        What was taken: the search itself, or its configuration that was evaluated again and taken instead.
    scoring : str or callable
        What was maximised.
    n_repeats : int
        How often the folds were drawn.
    n : int
        Images; rows of views and noise come after theirs.
    params : dict
        The winner's configuration; it names its representation where the search had several.
    choice : Choice or None
        The winner against its rivals; None where there was a single representation.
    adjustment : Adjustment or None
        Offsets of the decision scores; None where none were tried or none helped.
    tried : tuple of Tried
        What was tried besides.
    augmentation : Augmentation
        What of augmentation was kept.
    """

    search: HeadSearchCV = field(repr=False)
    winner: HeadSearchCV = field(repr=False)
    scoring: str | Callable[..., float]
    n_repeats: int
    n: int
    params: Config
    choice: Choice | None = None
    adjustment: Adjustment | None = None
    tried: tuple[Tried, ...] = ()
    augmentation: Augmentation = PLAIN

    @property
    def calibration(self) -> Calibration:
        """From (adjusted) decision scores to probabilities."""
        return self.winner.calibration_ if self.adjustment is None else self.adjustment.calibration

    @property
    def oof_proba(self) -> NDArray[np.float64]:
        """Out-of-fold probabilities, shape (n, C)."""
        if self.adjustment is None:
            return np.asarray(self.winner.oof_proba_[: self.n])
        return self.adjustment.proba(self.winner.oof_decision_[: self.n])


def tune(
    blocks: FeatureBlocks,
    y: NDArray[Any],
    *,
    groups: NDArray[Any],
    weight: ArrayLike | None = None,
    settings: Mapping[str, Any],
    views: Views | None = None,
    callback: Callable[[SearchProgress], None] | None = None,
) -> Tuned:
    """Search, choose, try what may help.

    Parameters
    ----------
    blocks : FeatureBlocks
        Rows of all candidates.
    y : array of shape (n,)
        Labels.
    groups : array of shape (n,)
        Rows of a group stay in one fold.
    weight : array of shape (n,), optional
        Sample weights.
    settings : mapping
        Parameters of `HeadSearchCV`, of which `scoring`, `class_weight` and `n_repeats` may be ``"auto"``.
    views : Views, optional
        Views that may be used.
    callback : callable, optional
        As for `HeadSearchCV`.

    Returns
    -------
    Tuned
    """
    plain = resolve(settings, y)
    began = time.monotonic()
    search = HeadSearchCV(**plain, callback=callback)
    held = search.search(blocks, y, groups=groups, sample_weight=weight)
    search.settle(held)
    bench = Bench(blocks, y, groups, weight, plain)
    winner, choice = choose_representation(search, held, bench)
    winner.refit_on(held)
    params = dict(winner.best_params_)
    del held  # the matrices of all folds
    seconds = time.monotonic() - began
    tried: list[Tried] = []
    adjustment = None
    weighed = settings["class_weight"] == AUTO and imbalance_ratio(y) >= IMBALANCED_FROM
    weighed = weighed and plain["scoring"] in OF_RARE_CLASSES
    if weighed:
        winner, params = bench.try_class_weights(search, winner, params, tried)
    winner, params, augmentation = bench.try_augmentation(winner, params, views or Views(), seconds, tried)
    if weighed:
        adjustment = bench.try_adjustment(winner, tried)
    return Tuned(
        search, winner, plain["scoring"], plain["n_repeats"], len(y), params, choice, adjustment,
        tuple(tried), augmentation,
    )  # fmt: skip


def tune_again(
    blocks: FeatureBlocks,
    y: NDArray[Any],
    *,
    groups: NDArray[Any],
    settings: Mapping[str, Any],
    params: Config,
    adjusted: bool,
    views: Sequence[FeatureBlocks] = (),
    augmentation: Augmentation = PLAIN,
) -> Tuned:
    """A configuration that won before, on other rows: cross-validated and calibrated, nothing searched.

    Parameters
    ----------
    blocks, y, groups, settings
        As for `tune`; the blocks may be those of the winner alone.
    params : dict
        The configuration.
    adjusted : bool
        Whether decision scores were adjusted: the adjustment is then fitted anew, and kept if it helps still.
    views : sequence of FeatureBlocks
        Rows of each view, where the augmentation uses them.
    augmentation : Augmentation
        What was kept; it is used again.
    """
    plain = resolve(settings, y)
    bench = Bench(blocks, y, groups, None, plain)
    named = {"representation": SIDE_BY_SIDE.join(blocks), **params}
    winner = bench.on(augmentation.kind, tuple(blocks), views).evaluate([named])
    tried: list[Tried] = []
    adjustment = bench.try_adjustment(winner, tried) if adjusted else None
    return Tuned(
        winner, winner, plain["scoring"], plain["n_repeats"], len(y), named, None, adjustment,
        tuple(tried), augmentation,
    )  # fmt: skip


def resolve(settings: Mapping[str, Any], y: NDArray[Any]) -> dict[str, Any]:
    """The settings with every ``"auto"`` replaced by what it means for these labels, and a seed."""
    plain = {**settings, "one_se": False}  # `choose_representation` asks image by image instead
    if plain["scoring"] == AUTO:
        plain["scoring"] = metric_for(y)
    elif isinstance(plain["scoring"], str):
        plain["scoring"] = SAME_METRICS.get(plain["scoring"], plain["scoring"])
    if plain["class_weight"] == AUTO:
        plain["class_weight"] = None
    if plain["n_repeats"] == AUTO:
        plain["n_repeats"] = min(fold_repeats(len(y)), MOST_REPEATS)
    if not isinstance(plain["random_state"], int | np.integer):  # the same folds again and again
        plain["random_state"] = int(check_random_state(plain["random_state"]).randint(2**31 - 1))
    return plain


class Bench:
    """Single configurations on the folds of a search: where its winner meets its rivals.

    Parameters
    ----------
    blocks : FeatureBlocks
        Rows of all candidates.
    y, groups, weight : arrays of shape (n,)
        As in `tune`.
    settings : mapping
        The search's parameters; the seed draws the same folds.
    view : array of shape (n,), int, optional
        As for `HeadSearchCV.fit`.
    """

    def __init__(
        self,
        blocks: FeatureBlocks,
        y: NDArray[Any],
        groups: NDArray[Any],
        weight: ArrayLike | None,
        settings: Mapping[str, Any],
        view: NDArray[np.intp] | None = None,
    ) -> None:
        self.blocks, self.y, self.groups, self.view = blocks, y, groups, view
        self.weight = None if weight is None else np.asarray(weight)
        self.settings = dict(settings)
        self.codes = np.unique(y, return_inverse=True)[1]

    def evaluate(self, configs: Sequence[Config], *, refit: bool = True, **changes: Any) -> HeadSearchCV:
        """The best of configurations of one representation and head, evaluated as the search does it.

        Parameters
        ----------
        configs : sequence of dict
            As in `best_params_` of the search.
        refit : bool
            Whether the best is fitted on all rows.
        **changes
            Other parameters than the search's.
        """
        name = self.representation_of(configs[0])
        apart = {"representation"}
        if (
            self.settings["class_weight"] != "search" and "class_weight" in configs[0]
        ):  # kept beside the space
            apart.add("class_weight")
            changes = {"class_weight": configs[0]["class_weight"], **changes}
        own = [{key: value for key, value in config.items() if key not in apart} for config in configs]
        settings = {
            **self.settings, "heads": [configs[0]["head"]], "n_trials": 0, "grid": own, "refit": refit,
            "storage": None, "study_name": None, "representations": [tuple(name.split(SIDE_BY_SIDE))],
            **changes,
        }  # fmt: skip
        again = HeadSearchCV(**settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SearchWarning)  # the search has said it
            return again.fit(
                self.blocks, self.y, groups=self.groups, sample_weight=self.weight, view=self.view
            )

    def on(self, kind: str, names: Sequence[str], views: Sequence[FeatureBlocks]) -> Bench:
        """The same images with augmented rows of some blocks, on the same folds."""
        seed = self.settings["random_state"]
        rows = augment(kind, self.blocks.only(names), views, self.y, random_state=seed)
        weight = None if self.weight is None else self.weight[rows.image]
        return Bench(
            rows.blocks, self.y[rows.image], self.groups[rows.image], weight, self.settings, rows.view
        )

    def representation_of(self, config: Config) -> str:
        """Its name; a search of one block does not say it."""
        return str(config.get("representation", next(iter(self.blocks))))

    def try_class_weights(
        self, search: HeadSearchCV, winner: HeadSearchCV, params: Config, tried: list[Tried]
    ) -> tuple[HeadSearchCV, Config]:
        """The winner with weighted classes, if that helps; the head of the next best where its own cannot."""
        config = _best_that(search, lambda c: HEADS[c["head"]].takes_weights and _same(c, params))
        if config is None:
            return winner, params
        points = [config, *_grid_points(config)]
        for name in CLASS_WEIGHTS:
            began = time.monotonic()
            found = self.evaluate(points, class_weight=name)
            better = helps(winner, found)
            tried.append(_tried(f"class weights: {name}", winner, found, better, began))
            if better:
                winner, params = found, {**params, **found.best_params_, "class_weight": name}
        return winner, _without_foreign(params)

    def try_augmentation(
        self, winner: HeadSearchCV, params: Config, views: Views, seconds: float, tried: list[Tried]
    ) -> tuple[HeadSearchCV, Config, Augmentation]:
        """Noise and views for the winner; the best of what helps is kept."""
        kinds = kinds_to_try(self.y, views=views.number)
        used = winner.best_blocks_
        rows = views.of(used) if views.number and kinds else ()
        points = [params, *_grid_points(params)]
        best, kept, begun = winner, PLAIN, len(tried)
        for kind in kinds:
            began = time.monotonic()
            budget = max(NOISE_SHARE * seconds, 0.1) if kind == "noise" else seconds
            found = self.on(kind, used, rows).evaluate(points, timeout=budget)
            better = helps(winner, found) and found.best_score_ > best.best_score_
            tried.append(_tried(KIND_NAMES[kind], winner, found, better, began))
            if better:
                own = Augmentation(kind, views.number, views.policy, tried[-1].gain)
                best, kept = found, own if own.uses_views else Augmentation(kind, gain=own.gain)
        for place in range(begun, len(tried)):  # of several that help only the best is used
            if tried[place].score != best.best_score_:
                tried[place] = dataclasses.replace(tried[place], kept=False)
        return best, params if best is winner else {**params, **best.best_params_}, kept

    def try_adjustment(self, winner: HeadSearchCV, tried: list[Tried]) -> Adjustment | None:
        """Logit adjustment or thresholds, if they help on scores that they were not fitted on."""
        began = time.monotonic()
        decision = winner.oof_decision_[: len(self.y)]
        scored = np.isfinite(decision.reshape(len(self.y), -1)).all(axis=1)
        found = fit_adjustment(
            decision[scored],
            self.codes[scored],
            len(winner.classes_),
            metric=self.settings["scoring"],
            sample_weight=None if self.weight is None else self.weight[scored],
        )
        kept = found.kind != "none"
        gain = found.score - found.score_before
        name = {"logit": "logit adjustment", "threshold": "thresholds"}.get(found.kind, "logit or thresholds")
        tried.append(Tried(name, found.score, gain, None, kept, time.monotonic() - began))
        return found if kept else None


def choose_representation(
    search: HeadSearchCV, held: Search, bench: Bench
) -> tuple[HeadSearchCV, Choice | None]:
    """The search's winner, or a cheaper representation that is within a standard error and as good.

    Compared are the winner, the representation of the next best score, and the cheapest one that is as good:
    its score is within one standard error (of the difference over the folds) of the winner's, its
    probabilities are as near to the truth, give or take a standard error, and a paired test on the
    out-of-fold answers does not tell them apart.
    """
    best = dict(search.best_params_)
    rivals = {rival: dict(result.config) for rival, result in held.best_of_each().items()}
    name = bench.representation_of(best)
    others = [rival for rival in rivals if rival != name]
    if not others:
        return search, None
    errors = {rival: _gap(search, best, rivals[rival]) for rival in others}
    runner_up = others[0]
    near = [rival for rival in others if errors[rival][0] <= min(errors[rival][1], MOST_GIVEN_UP)]
    cheaper = [rival for rival in near if held.width(rival) < held.width(name)]
    settled = {name: search, runner_up: copy.copy(search).settle(held, rivals[runner_up])}
    costs = {name: float(held.width(name)), runner_up: math.inf}
    for rival in sorted(cheaper, key=held.width):
        own = settled.get(rival) or copy.copy(search).settle(held, rivals[rival])
        if _as_sure(search, own, bench):
            settled[rival], costs[rival] = own, float(held.width(rival))
            break
    scored = np.isfinite(search.oof_proba_).all(axis=1)
    scoring = bench.settings["scoring"]
    choice = choose(
        [Candidate(one, own.oof_proba_[scored], costs[one]) for one, own in settled.items()],
        bench.codes[scored],
        groups=bench.groups[scored],
        metric=scoring if isinstance(scoring, str) and scoring in METRICS else "accuracy",
        tolerance=min(max(errors[rival][1] for rival in settled if rival != name), MOST_GIVEN_UP),
        preferred=name,
    )
    return settled[choice.name], choice


def _as_sure(winner: HeadSearchCV, rival: HeadSearchCV, bench: Bench) -> bool:
    """Whether probabilities are no further from the truth than the winner's by more than a standard error."""
    scored = np.isfinite(winner.oof_proba_).all(axis=1)
    y = bench.codes[scored]
    worse = distances(y, rival.oof_proba_[scored]) - distances(y, winner.oof_proba_[scored])
    if bench.settings["scoring"] in OF_RARE_CLASSES:
        worse /= np.bincount(y)[y]
    of_group = np.bincount(np.unique(bench.groups[scored], return_inverse=True)[1], worse)
    return bool(worse.sum() <= math.sqrt(of_group @ of_group))


def helps(before: HeadSearchCV, after: HeadSearchCV) -> bool:
    """Whether the second is better by `LEAST_GAIN` and by more than a standard error over the same folds."""
    gain = _fold_scores(after) - _fold_scores(before)
    return bool(gain.mean() >= LEAST_GAIN and gain.mean() > standard_error(gain, before.held_out_))


def _tried(name: str, before: HeadSearchCV, after: HeadSearchCV, kept: bool, began: float) -> Tried:
    gain = _fold_scores(after) - _fold_scores(before)
    return Tried(
        name,
        float(after.best_score_),
        float(gain.mean()),
        standard_error(gain, before.held_out_),
        kept,
        time.monotonic() - began,
    )


def _best_that(search: HeadSearchCV, suits: Callable[[Config], bool]) -> Config | None:
    return next((config for config in _ranked(search) if suits(config)), None)


def _ranked(search: HeadSearchCV) -> list[Config]:
    """Configurations that were evaluated on all folds and all rows, best first."""
    table = search.cv_results_
    order = np.argsort(-np.nan_to_num(table["mean_test_score"], nan=-np.inf), kind="stable")
    whole = (table["state"] == "complete") & (table["approximate"] == "")
    return [dict(table["params"][i]) for i in order if whole[i]]


def _same(config: Config, other: Config) -> bool:
    return config.get("representation") == other.get("representation")


def _grid_points(config: Config) -> list[Config]:
    """The coarse values of a configuration's head, with its scaling and representation."""
    head = HEADS[config["head"]]
    kept = {key: value for key, value in config.items() if not key.startswith(f"{head.name}__")}
    return [kept | {f"{head.name}__{key}": value for key, value in point.items()} for point in head.grid]


def _without_foreign(params: Config) -> Config:
    """Drop parameters of a head that is no longer the one."""
    own = f"{params['head']}__"
    return {key: value for key, value in params.items() if "__" not in key or key.startswith(own)}


def _gap(search: HeadSearchCV, first: Config, second: Config) -> tuple[float, float]:
    """Mean and standard error of the first one's score less the second's, over the folds."""
    worse = _fold_scores(search, first) - _fold_scores(search, second)
    return float(worse.mean()), standard_error(worse, search.held_out_)


def _fold_scores(search: HeadSearchCV, config: Config | None = None) -> NDArray[np.float64]:
    """Scores of a configuration (the best) in each fold."""
    table = search.cv_results_
    at = search.best_index_ if config is None else table["params"].index(config)
    return np.array([table[f"split{fold}_test_score"][at] for fold in range(search.n_splits_)])
