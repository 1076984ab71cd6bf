"""The search space: representation, scaling, head, parameters of the head, class weights.

Optuna keeps a configuration as a flat dictionary, for instance ``{"head": "rbf_svm", "scaling": "l2",
"rbf_svm__C": 10.0, "rbf_svm__gamma": 1.0}``. What the space has only one value of is left out. `SearchSpace`
translates it into a `Configuration`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from featx.heads import HEADS, SCALINGS, Head
from featx.representation import Representation
from featx.solvers import LINEAR

Params = dict[str, Any]
"""A configuration as Optuna keeps it."""

MANY_CLASSES = 20
"""With more classes the coarse grid tries linear models, which are solved for each class, in one scaling."""

PICKED_SCALING = "standard"
"""Scaling of picked features: the one that they were picked in."""


@dataclass(frozen=True)
class Configuration:
    """What to fit: a head with its parameters, on one scaling of one representation.

    Parameters
    ----------
    representation : Representation
        The features.
    scaling : str
        One of ``featx.heads.SCALINGS``.
    head : Head
        The classifier.
    params : mapping
        Parameters of the head, without prefix.
    class_weight : str, tuple of float or None
        Class weights.
    """

    representation: Representation
    scaling: str
    head: Head
    params: Mapping[str, Any]
    class_weight: Any = None

    @property
    def group(self) -> tuple[Representation, str, str, Any]:
        """Configurations of one group are fitted together."""
        return (self.representation, self.scaling, self.head.name, self.class_weight)


@dataclass(frozen=True)
class SearchSpace:
    """The space of configurations.

    Parameters
    ----------
    heads : tuple of str
        Keys of `HEADS`.
    representations : tuple of Representation
        The most promising first.
    class_weights : tuple
        Class weights to choose from: (None,), ("balanced",) or several.
    n_rows : int
        Rows of the smallest training part.
    scalings : tuple of str
        Some of `SCALINGS`.
    n_classes : int
        Number of classes.
    """

    heads: tuple[str, ...]
    representations: tuple[Representation, ...]
    class_weights: tuple[Any, ...]
    n_rows: int
    scalings: tuple[str, ...] = SCALINGS
    n_classes: int = 2

    @cached_property
    def by_text(self) -> dict[str, Representation]:
        """The representations by their texts."""
        return {str(one): one for one in self.representations}

    def suggest(self, trial: Any) -> Params:
        """Draw a configuration from an Optuna trial, or read that of a fixed trial."""
        params: Params = {}
        representation = self.representations[0]
        if len(self.representations) > 1:
            params["representation"] = trial.suggest_categorical("representation", list(self.by_text))
            representation = self.by_text[params["representation"]]
        params["head"] = trial.suggest_categorical("head", list(self.heads))
        head = HEADS[params["head"]]
        if representation.picked is None:
            params["scaling"] = trial.suggest_categorical("scaling", list(self.scalings))
        if len(self.class_weights) > 1 and head.takes_weights:
            params["class_weight"] = trial.suggest_categorical("class_weight", list(self.class_weights))
        own = head.suggest(trial, head.name + "__", self.n_rows)
        return params | {f"{head.name}__{name}": value for name, value in own.items()}

    def read(self, params: Mapping[str, Any]) -> Configuration:
        """Return the configuration of Optuna's parameters."""
        head = HEADS[params["head"]]
        prefix = head.name + "__"
        own = {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
        default = self.class_weights[0] if len(self.class_weights) == 1 else None
        text = params.get("representation")
        return Configuration(
            self.representations[0] if text is None else self.by_text[text],
            params.get("scaling", PICKED_SCALING),
            head,
            own,
            params.get("class_weight", default) if head.takes_weights else None,
        )

    def known_good(self, representation: Representation | None = None) -> list[Params]:
        """Return the default point of every head on a representation, by default the first."""
        own = representation or self.representations[0]
        return [
            self._params(own, HEADS[head], HEADS[head].grid[0], self._scalings(head)[0])
            for head in self.heads
        ]

    def grid(self, representation: Representation | None = None) -> list[Params]:
        """Return the coarse grid on a representation, by default the first; default points come first."""
        own = representation or self.representations[0]
        points = self.known_good(own)
        for head in self.heads:
            for scaling in self._scalings(head):
                points += [self._params(own, HEADS[head], point, scaling) for point in HEADS[head].grid]
        return unique(points)

    def quick_points(self) -> list[list[Params]]:
        """Return default points of the quickest heads (or of the first one), a list a representation."""
        quick = [head for head in self.heads if HEADS[head].quick] or [self.heads[0]]
        return [
            [self._params(own, HEADS[head], HEADS[head].grid[0], self._scalings(head)[0]) for head in quick]
            for own in self.representations
        ]

    def distributions(self, params: Params) -> dict[str, Any]:
        """Return Optuna's distributions of the parameters of a configuration."""
        import optuna

        trial = optuna.trial.FixedTrial(params)
        self.suggest(trial)
        return dict(trial.distributions)

    @property
    def key(self) -> str:
        """Short hash of the space. It is part of the study's name: each space has its own studies."""
        ranges = [str(self.distributions(params)) for params in self.known_good()]
        names = list(self.by_text)
        plain = [self.heads, names, self.class_weights, self.scalings, self.n_rows, ranges]
        return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:12]

    def _scalings(self, head: str) -> tuple[str, ...]:
        """Return the scalings of a head's coarse grid that the space has."""
        known = tuple(scaling for scaling in HEADS[head].scalings if scaling in self.scalings)
        is_slow = HEADS[head].solver in LINEAR and self.n_classes > MANY_CLASSES
        return (known[:1] if is_slow else known) or self.scalings[:1]

    def _params(
        self, representation: Representation, head: Head, point: Mapping[str, Any], scaling: str
    ) -> Params:
        params: Params = {"head": head.name}
        if representation.picked is None:
            params["scaling"] = scaling
        if len(self.representations) > 1:
            params["representation"] = str(representation)
        if len(self.class_weights) > 1 and head.takes_weights:
            params["class_weight"] = None
        return self.capped(params | {f"{head.name}__{key}": value for key, value in point.items()})

    def capped(self, params: Params) -> Params:
        """Return a configuration with no more neighbours than a fold has training rows."""
        return {
            name: min(value, self.n_rows) if name.endswith("__n_neighbors") else value
            for name, value in params.items()
        }


def identity(params: Mapping[str, Any]) -> str:
    """Return a text that is the same for equal configurations."""
    return json.dumps(params, sort_keys=True, default=float)


def unique(configs: Iterable[Params]) -> list[Params]:
    """Return the configurations in their order, without repeated ones."""
    return list({identity(params): params for params in configs}.values())


def group_configs(space: SearchSpace, configs: Sequence[Params]) -> list[list[int]]:
    """Return positions of configurations that are fitted together, in the order of first appearance."""
    groups: dict[Any, list[int]] = {}
    for position, params in enumerate(configs):
        groups.setdefault(space.read(params).group, []).append(position)
    return list(groups.values())
