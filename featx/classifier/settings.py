"""The parameters of ImageClassifier: what its nested estimators share with it, and what a saved model keeps.

People reach for some twenty parameters of the classifier itself. All others are those of the nested
estimators (`extractor`, `search`, `fine_tuner`), which the classifier completes with its own. What a saved
model needs to be fitted again is taken from the signatures, so that no parameter can be forgotten.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state

from featx.backbones import is_model_file
from featx.backbones.views import name_policy
from featx.classifier.budget import Budget
from featx.classifier.presets import PRESET, is_given, with_preset
from featx.duration import seconds_of
from featx.evaluation import check_decide
from featx.exceptions import UsageError
from featx.extractor import DEFAULT_BACKBONE, FeatureExtractor, Progress
from featx.finetune import FineTuner, Phase
from featx.progress import shown_by
from featx.records import from_plain, to_plain
from featx.search import HeadSearchCV
from featx.selection.backbones import backbone_names, refuse_checkpoint
from featx.selection.candidates import AUTO
from featx.stores import open_store
from featx.threads import n_threads

SHARED: Mapping[str, tuple[type, tuple[str, ...]]] = {
    "extractor": (
        FeatureExtractor,
        ("backbone", "cut", "pool", "resize", "store", "device", "n_jobs", "callback"),
    ),
    "search": (
        HeadSearchCV,
        (
            "heads", "n_trials", "cv", "scoring", "class_weight", "n_jobs", "random_state",
            "callback",
        ),
    ),
    "fine_tuner": (FineTuner, ("backbone", "class_weight", "random_state", "callback")),
}  # fmt: skip
"""For each nested estimator its class, and the parameters that it takes from the classifier."""

MACHINE_PARAMS = (
    "checkpoint", "allow_download", "store", "runtime", "device", "batch_size", "max_pixels", "isolate",
    "n_jobs", "callback",
)  # fmt: skip
"""Parameters of the extractor that do not change features: a loaded model takes them from where it runs."""

LOCAL = frozenset(
    {
        "store", "device", "n_jobs", "callback", "verbose",
        "extractor__checkpoint", "extractor__allow_download", "extractor__runtime", "extractor__batch_size",
        "extractor__isolate",
        "search__storage", "search__study_name", "fine_tuner__checkpoints",
    }
)  # fmt: skip
"""Parameters that belong to one machine: a saved model does not keep them."""

FINE_TUNE = (AUTO, True, False)

NAMED_BUDGET_S = 600.0
"""Seconds for a comparison of backbones that were all named, where no limit is given."""


@dataclass(frozen=True)
class FitSettings:
    """The parameters of a fit, checked and completed.

    Parameters
    ----------
    backbones : tuple of str
        Candidates.
    optional : bool
        Whether candidates that cannot be used are left out; otherwise they are an error.
    recipe : dict
        Parameters of `FeatureExtractor` that features depend on.
    machine : dict
        The others, with the store opened.
    search : dict
        Parameters of `HeadSearchCV`; scoring and n_repeats may be ``"auto"``.
    decide : str or mapping
        How labels follow from probabilities.
    fine_tune : {"auto", True, False}
        Whether to fine-tune.
    fine_tuner : dict
        Parameters of `FineTuner` that were given.
    views : int
        Augmented views of each image that may be used.
    view_policy : str
        Their augmentation policy.
    backbone_budget : float or "auto"
        Seconds for the comparison of backbones.
    budget : Budget
        Time of the whole fit.
    max_bad : float
        Fraction of images that may be unreadable.
    auto_groups : bool
        Whether near copies and images of one source are groups.
    seed : int
        Of samples that the selection draws.
    random_state : int or None
        As given.
    callback : callable or None
        Called with `Progress` events.
    """

    backbones: tuple[str, ...]
    optional: bool
    recipe: Mapping[str, Any]
    machine: Mapping[str, Any]
    search: Mapping[str, Any]
    decide: str | Mapping[Any, float]
    fine_tune: bool | str
    fine_tuner: Mapping[str, Any]
    views: int
    view_policy: str
    backbone_budget: float | str
    budget: Budget
    max_bad: float
    auto_groups: bool
    seed: int
    random_state: Any
    callback: Callable[[Any], None] | None

    @property
    def n_threads(self) -> int:
        """Threads of the selection."""
        return n_threads(self.machine["n_jobs"])

    def say(self, message: str, *, stage: str = "backbones") -> None:
        """Report a message as progress."""
        self.report(Progress(0, 0, stage=stage, message=message))

    def report(self, event: Progress) -> None:
        """Pass an event to the callback."""
        if self.callback is not None:
            self.callback(event)


def settings_of(clf: BaseEstimator) -> FitSettings:
    """Check and complete the parameters of an `ImageClassifier`.

    Raises
    ------
    UsageError
        If a parameter is not known, or a nested estimator sets one that the classifier gives it.
    """
    given = clf.get_params(deep=False)
    for nested in SHARED:
        _refuse_shared(nested, given[nested])
    params = with_preset(given)
    if not any(params["fine_tune"] is one or params["fine_tune"] == one == AUTO for one in FINE_TUNE):
        raise UsageError(f"fine_tune {params['fine_tune']!r} is not known; choose 'auto', True or False.")
    check_decide(params["decide"], AUTO)
    extractor = nested_params("extractor", params)
    has_own_weights = extractor["checkpoint"] is not None or not extractor["pretrained"]
    if has_own_weights and given["backbone"] == PRESET:  # they are of one network
        params["backbone"] = extractor["backbone"] = DEFAULT_BACKBONE
    names = backbone_names(params["backbone"])
    named = params["backbone"]
    optional = named == AUTO if isinstance(named, str) else AUTO in named
    limit = params["backbone_budget"]
    if limit == AUTO and not optional:  # every network was named
        limit = NAMED_BUDGET_S
    machine = {name: extractor.pop(name) for name in MACHINE_PARAMS} | {"callback": callback_of(params)}
    recipe = extractor
    refuse_checkpoint(names, machine["checkpoint"])
    search = nested_params("search", params)
    search.pop("callback")  # the search reports through that of the classifier
    views, policy = _views(recipe)
    return FitSettings(
        backbones=names,
        optional=optional,
        recipe={**recipe, "view": 0, "view_policy": "none", "backbone": params["backbone"]},
        machine={**machine, "store": open_store(params["store"])},
        search=search,
        decide=params["decide"],
        fine_tune=params["fine_tune"],
        fine_tuner=_given(params["fine_tuner"]),
        views=views,
        view_policy=policy,
        backbone_budget=limit if limit == AUTO else seconds_of(limit),
        budget=Budget(params["budget"]),
        max_bad=params["max_bad"],
        auto_groups=params["auto_groups"],
        seed=int(check_random_state(params["random_state"]).randint(2**31 - 1)),
        random_state=params["random_state"],
        callback=callback_of(params),
    )


def machine_of(clf: BaseEstimator) -> dict[str, Any]:
    """Parameters of the extractor that do not change features."""
    given = clf.get_params(deep=False)
    params = {**nested_params("extractor", given), "callback": callback_of(given)}
    return {name: params[name] for name in MACHINE_PARAMS}


def callback_of(params: Mapping[str, Any]) -> Callable[[Any], None]:
    """Return the callback of a classifier: its own, or one that draws bars, as `verbose` says."""
    return shown_by(params["callback"], params["verbose"])


def nested_params(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a nested estimator, completed with those that it takes from the classifier.

    Parameters
    ----------
    name : str
        A key of `SHARED`.
    params : mapping
        Parameters of the classifier.
    """
    _, shared = SHARED[name]
    own = params[name].get_params(deep=False)
    return {**own, **{one: params[one] for one in shared}}


def saved_params(clf: Any) -> tuple[dict[str, Any], list[str]]:
    """Parameters that a saved model keeps, as plain values, and the names of those that cannot be kept.

    Parameters
    ----------
    clf : ImageClassifier
        Fitted. A backbone that is a saved model is kept by its network's name, since local paths are not
        portable.
    """
    kept, left_out = {}, []
    params = clf.get_params(deep=True)
    if names_a_file(params["backbone"]):
        params["backbone"] = clf.card_.name
    for name, value in params.items():
        outer, _, inner = name.partition("__")
        if name in SHARED or name in LOCAL or (inner and inner in SHARED[outer][1]):
            continue
        try:
            kept[name] = _encode(value)
        except TypeError:
            left_out.append(name)
    return kept, left_out


def restore_params(clf: BaseEstimator, saved: Mapping[str, Any]) -> None:
    """Set the parameters that `saved_params` returned.

    Raises
    ------
    ValueError
        If a parameter is not known, or names a local file.
    """
    known = set(clf.get_params(deep=True)) - LOCAL - set(SHARED)
    unknown = sorted(set(saved) - known)
    if unknown:
        raise ValueError(f"unknown parameters {', '.join(unknown)[:200]}")
    values = {name: _decode(value) for name, value in saved.items()}
    if names_a_file(values.get("backbone")):
        raise ValueError(f"the backbone {values['backbone']!r:.80}, which is a file")
    clf.set_params(**values)


def names_a_file(backbone: Any) -> bool:
    """Whether a backbone, or one of several, is a saved model."""
    names = [backbone] if isinstance(backbone, str) else backbone or ()
    return any(isinstance(name, str) and is_model_file(name) for name in names)


def _refuse_shared(nested: str, estimator: Any) -> None:
    """Refuse what would be ignored."""
    kind, shared = SHARED[nested]
    if not isinstance(estimator, kind):
        raise UsageError(f"{nested} is a {type(estimator).__name__}; pass a {kind.__name__}.")
    defaults = inspect.signature(kind).parameters
    for name in shared:
        value = getattr(estimator, name)
        if is_given(value, defaults[name].default):
            raise UsageError(
                f"{nested}__{name}={value!r:.80} would be ignored: {nested} takes {name} from the "
                f"classifier. Pass {name} to ImageClassifier."
            )


def _given(estimator: BaseEstimator) -> dict[str, Any]:
    """Parameters that are not the defaults; what featx measures replaces defaults, never what was given."""
    defaults = inspect.signature(type(estimator)).parameters
    params = estimator.get_params(deep=False)
    return {name: value for name, value in params.items() if is_given(value, defaults[name].default)}


def _views(recipe: Mapping[str, Any]) -> tuple[int, str]:
    """Number and policy of the augmented views that the extractor allows."""
    view = recipe["view"]
    views = list(view) if isinstance(view, list | tuple | range | np.ndarray) else [view]
    number, policy = len(views) - 1, name_policy(recipe["view_policy"])
    if not views or views != list(range(number + 1)) or (number and policy == "none"):
        raise UsageError(
            f"extractor__view={view!r} with view_policy {policy!r}: give 0 alone, or range(k + 1) for k "
            "augmented views and a policy such as 'light'."
        )
    return number, policy


def _encode(value: Any) -> Any:
    """JSON of a parameter; what is not JSON is an object with its type.

    Raises
    ------
    TypeError
        If it cannot be saved.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, tuple | range):
        return {"type": type(value).__name__, "value": [_encode(item) for item in value]}
    if isinstance(value, Mapping):
        return {"type": "dict", "value": [[_encode(key), _encode(item)] for key, item in value.items()]}
    if isinstance(value, Phase):
        return {"type": "Phase", "value": to_plain(value)}
    raise TypeError(f"a {type(value).__name__} cannot be saved")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind, inner = value["type"], value["value"]
    if kind == "tuple":
        return tuple(_decode(item) for item in inner)
    if kind == "range":
        items = [int(item) for item in inner]
        return range(items[0], items[-1] + 1) if items else range(0)
    if kind == "dict":
        return {_decode(key): _decode(item) for key, item in inner}
    if kind == "Phase":
        return from_plain(Phase, inner, "phase")
    raise ValueError(f"unknown type {kind!r:.80}")
