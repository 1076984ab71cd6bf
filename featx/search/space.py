"""What a search may choose: representation, scaling, head, its parameters, class weights.

A configuration is the flat dictionary that Optuna keeps, e.g. ``{"head": "rbf_svm", "scaling": "l2",
"rbf_svm__C": 10.0, "rbf_svm__gamma": 1.0}``; what has a single choice is left out of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featx.heads import HEADS, SCALINGS, Head
from featx.solvers import LINEAR

Config = dict[str, Any]

RELEVANT = "relevant:"
"""Begins the name of a representation of features picked over all blocks; the number kept follows."""

MANY_CLASSES = 20
"""Above as many the coarse grid tries linear models, which iterate over all outputs, in one scaling only."""

PICKED_SCALING = "standard"


@dataclass(frozen=True)
class Choice:
    """A configuration, read: what to build and on which rows."""

    representation: str
    scaling: str
    head: Head
    params: Mapping[str, Any]
    class_weight: str | None

    @property
    def group(self) -> tuple[str, str, str, str | None]:
        """What is computed together shares this."""
        return (self.representation, self.scaling, self.head.name, self.class_weight)


@dataclass(frozen=True)
class Space:
    """The space of configurations.

    Parameters
    ----------
    heads : tuple of str
        Keys of `HEADS`.
    representations : tuple of str
        Names, the most promising first.
    class_weights : tuple
        Class weightings to choose from: (None,), ("balanced",) or several.
    n_rows : int
        Rows of the smallest training part.
    scalings : tuple of str
        Some of `SCALINGS`.
    n_classes : int
        Number of classes.
    """

    heads: tuple[str, ...]
    representations: tuple[str, ...]
    class_weights: tuple[str | None, ...]
    n_rows: int
    scalings: tuple[str, ...] = SCALINGS
    n_classes: int = 2

    def suggest(self, trial: Any) -> Config:
        """Draw a configuration from an Optuna trial (or read it off a fixed one)."""
        config: Config = {}
        if len(self.representations) > 1:
            config["representation"] = trial.suggest_categorical("representation", list(self.representations))
        config["head"] = trial.suggest_categorical("head", list(self.heads))
        head = HEADS[config["head"]]
        if not _is_picked(config.get("representation", self.representations[0])):
            config["scaling"] = trial.suggest_categorical("scaling", list(self.scalings))
        if len(self.class_weights) > 1 and head.takes_weights:
            config["class_weight"] = trial.suggest_categorical("class_weight", list(self.class_weights))
        own = head.suggest(trial, head.name + "__", self.n_rows)
        return config | {f"{head.name}__{name}": value for name, value in own.items()}

    def read(self, config: Config) -> Choice:
        """Spell a configuration out."""
        head = HEADS[config["head"]]
        prefix = head.name + "__"
        params = {
            name.removeprefix(prefix): value for name, value in config.items() if name.startswith(prefix)
        }
        default = self.class_weights[0] if len(self.class_weights) == 1 else None
        return Choice(
            config.get("representation", self.representations[0]),
            config.get("scaling", PICKED_SCALING),
            head,
            params,
            config.get("class_weight", default) if head.takes_weights else None,
        )

    def known_good(self, representation: str | None = None) -> list[Config]:
        """Each head's known-good point on a representation (the first): what is tried before all else."""
        name = representation or self.representations[0]
        return [
            self._config(name, HEADS[head], HEADS[head].grid[0], self._scalings(head)[0])
            for head in self.heads
        ]

    def grid(self, representation: str | None = None) -> list[Config]:
        """Return the coarse grid on a representation (the first), known-good points first."""
        name = representation or self.representations[0]
        points = self.known_good(name)
        for head in self.heads:
            for scaling in self._scalings(head):
                points += [self._config(name, HEADS[head], point, scaling) for point in HEADS[head].grid]
        return unique(points)

    def quick_points(self) -> list[Config]:
        """Known-good points of the quickest heads (or of the first one) on every representation."""
        quick = [head for head in self.heads if HEADS[head].quick] or [self.heads[0]]
        return unique(
            self._config(name, HEADS[head], HEADS[head].grid[0], self._scalings(head)[0])
            for name in self.representations
            for head in quick
        )

    def distributions(self, config: Config) -> dict[str, Any]:
        """Optuna's distributions of a configuration's parameters."""
        import optuna

        trial = optuna.trial.FixedTrial(config)
        self.suggest(trial)
        return dict(trial.distributions)

    @property
    def key(self) -> str:
        """Short hash of the space: part of a study's name, so that studies of another space are not mixed."""
        ranges = [str(self.distributions(config)) for config in self.known_good()]
        plain = [self.heads, self.representations, self.class_weights, self.scalings, self.n_rows, ranges]
        return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:12]

    def _scalings(self, head: str) -> tuple[str, ...]:
        """Scalings of a head's coarse grid that the space has."""
        known = tuple(scaling for scaling in HEADS[head].scalings if scaling in self.scalings)
        dear = HEADS[head].solver in LINEAR and self.n_classes > MANY_CLASSES
        return (known[:1] if dear else known) or self.scalings[:1]

    def _config(self, representation: str, head: Head, point: Mapping[str, Any], scaling: str) -> Config:
        config: Config = {"head": head.name}
        if not _is_picked(representation):
            config["scaling"] = scaling
        if len(self.representations) > 1:
            config["representation"] = representation
        if len(self.class_weights) > 1 and head.takes_weights:
            config["class_weight"] = None
        own = dict(point)
        if "n_neighbors" in own:
            own["n_neighbors"] = min(own["n_neighbors"], self.n_rows)
        return config | {f"{head.name}__{key}": value for key, value in own.items()}


def _is_picked(representation: str) -> bool:
    """Whether single features were picked: these are always standardised, as they were when picked."""
    return representation.startswith(RELEVANT)


def identity(config: Config) -> str:
    """Text that two equal configurations share."""
    return json.dumps(config, sort_keys=True, default=float)


def unique(configs: Iterable[Config]) -> list[Config]:
    """Configurations without repeats, in order."""
    return list({identity(config): config for config in configs}.values())


def group_configs(space: Space, configs: Sequence[Config]) -> list[list[int]]:
    """Positions of configurations that are computed together, in the order of first appearance."""
    groups: dict[tuple[str, str, str, str | None], list[int]] = {}
    for position, config in enumerate(configs):
        groups.setdefault(space.read(config).group, []).append(position)
    return list(groups.values())
