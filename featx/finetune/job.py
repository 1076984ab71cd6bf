"""One fine-tuning job: the network cut open, its rows, its probe, and trainings on parts of the images.

The torch side of `FineTuner`, loaded when something must be computed. It knows no scikit-learn manners and
makes no decisions: those are the estimator's.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import nn

from featx.backbones.network import Backbone
from featx.finetune import training
from featx.finetune.network import (
    TailClassifier,
    TrainedLayer,
    linear_head,
    make_head,
    prepare_phase,
)
from featx.finetune.phases import Phase, phases_to_json
from featx.finetune.probe import FittedProbe, Probe, fold_linear, logistic_probe
from featx.finetune.rows import MEMORY, Index, RowSource, batches
from featx.finetune.training import Listener, Recipe, Run, Task

PROOF_ROWS = 64
"""Rows on which the probe and the head made from it must agree."""
AGREEMENT = 0.05
"""Greatest deviation of their scores, relative to the largest: rows come from several runtimes."""


@dataclass(frozen=True)
class Training:
    """A finished training."""

    module: TailClassifier
    run: Run
    recipe: Recipe
    seconds: float
    """What it took, epochs before an interruption included."""


@dataclass(kw_only=True)
class Job:
    """What all trainings of a fit share.

    Parameters
    ----------
    backbone : Backbone
    cut : str or None
        None trains the whole network on pictures.
    tail : nn.Module
        The layers above the cut, as pretrained.
    rows : RowSource
        Rows at the cut, of all the images.
    y : ndarray of shape (n,), int
    n_classes : int
    head : {'probe', 'linear', 'mlp'}
    probe : Probe, optional
        The tuned classifier; a logistic regression on the last features where there is none.
    groups, weights, class_weights
        See `training.Task`.
    seed, device, precision, monitor, memory
        See `training.Recipe`.
    checkpoints : Path, optional
        Folder to resume from.
    on_rows : callable, optional
    """

    backbone: Backbone
    cut: str | None
    tail: nn.Module
    rows: RowSource
    y: NDArray[np.intp]
    n_classes: int
    head: str = "probe"
    probe: Probe | None = None
    groups: NDArray[Any] | None = None
    weights: NDArray[np.float32] | None = None
    class_weights: NDArray[np.float32] | None = None
    seed: int = 0
    device: str = "cpu"
    precision: str = "fp32"
    monitor: str = "accuracy"
    memory: int = MEMORY
    checkpoints: Path | None = None
    name: bytes = b""
    on_rows: Callable[[int, str], None] | None = None
    files: list[Path] = field(default_factory=list)
    _own_probes: dict[bytes, Probe] = field(default_factory=dict, init=False)

    def train(
        self,
        fit: Index,
        stop: Index,
        phases: tuple[Phase, ...],
        *,
        stops: tuple[int, ...] | None = None,
        on_epoch: Listener | None = None,
        resumable: bool = True,
    ) -> Training:
        """Train a fresh copy of the tail, with a head started on the rows to fit."""
        recipe = Recipe(
            phases=phases,
            seed=self.seed,
            device=self.device,
            precision=self.precision,
            monitor=self.monitor,
            memory=self.memory,
            stops=stops,
        )
        task = Task(
            rows=self.rows,
            y=self.y,
            n_classes=self.n_classes,
            fit=fit,
            stop=stop,
            weights=self.weights,
            class_weights=self.class_weights,
        )
        started = time.monotonic()
        module = self.fresh_module(fit, phases)
        path = self._checkpoint(recipe, fit, stop) if resumable else None
        run = training.train(module, task, recipe, checkpoint=path, on_epoch=on_epoch, on_rows=self.on_rows)
        seconds = max(time.monotonic() - started, sum(epoch["seconds"] for epoch in run.history))
        return Training(module, run, recipe, seconds)

    def fresh_module(self, fit: Index, phases: Sequence[Phase] = ()) -> TailClassifier:
        """The tail as pretrained, with a new head.

        Where batch statistics will move, those of the rows to fit are put in first and the head is fitted on
        the features that they give: one fitted on others would start on logits of another scale, and the
        first steps would throw away more than the head.
        """
        tail = copy.deepcopy(self.tail).requires_grad_(True)
        moving = next((phase for phase in phases if phase.epochs and phase.batch_norm != "frozen"), None)
        if moving is None or self.head != "probe":
            return TailClassifier(tail, self.first_head(fit))
        module = TailClassifier(tail, make_head("linear", self.features.shape[1], self.n_classes))
        prepare_phase(module, moving)
        training.move_statistics(module, (self._tensor(rows) for rows in self._batches(fit)))
        tail.requires_grad_(True)
        features = np.zeros_like(self.features)
        features[fit] = self._features(tail, fit)
        fitted = replace(self.own_probe(fit), rows=features).fit(self.y, fit, self.weights)
        folded = fold_linear(fitted.scores, features[fit[:PROOF_ROWS]])
        assert folded is not None  # a logistic regression is linear
        module.head = linear_head(*folded).to(self.device)
        return module

    def describe(self, phases: Sequence[Phase]) -> list[list[TrainedLayer]]:
        """What each phase would train."""
        width = self.backbone.card.num_features
        head = make_head("mlp" if self.head == "mlp" else "linear", width, self.n_classes)
        module = TailClassifier(copy.deepcopy(self.tail).requires_grad_(True), head)
        return training.describe(module, phases)

    def logits(self, trained: Training, index: Index) -> NDArray[np.float32]:
        """Logits of a training's network."""
        return training.predict_logits(trained.module, self.rows, index, trained.recipe)

    def proba(self, trained: Training, index: Index) -> NDArray[np.float64]:
        """Uncalibrated probabilities of a training's network."""
        return np.asarray(softmax(self.logits(trained, index).astype(np.float64), axis=1))

    def first_head(self, fit: Index) -> nn.Module:
        """The head that training starts from; one made of a probe has seen the rows to fit only."""
        if self.head != "probe":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                return make_head(self.head, self.features.shape[1], self.n_classes)
        folded = self._folded(self.fit_probe(fit)) if self.probe is not None else None
        if folded is None:
            own = self.own_probe(fit).fit(self.y, fit, self.weights)
            folded = fold_linear(own.scores, self.features[:PROOF_ROWS])
        assert folded is not None  # a logistic regression is linear
        return linear_head(*folded)

    def fit_probe(self, index: Index) -> FittedProbe:
        """The probe, fitted on some images."""
        return (self.probe or self.own_probe(index)).fit(self.y, index, self.weights)

    def own_probe(self, index: Index) -> Probe:
        """A logistic regression on the last features, its penalty chosen on these images alone."""
        key = index.tobytes()
        if key not in self._own_probes:
            self._own_probes[key] = logistic_probe(
                self.features, self.y, index, groups=self.groups, random_state=self.seed
            )
        return self._own_probes[key]

    def probe_proba(self, fitted: FittedProbe, index: Index) -> NDArray[np.float64]:
        """The probe's probabilities."""
        rows = self.features if self.probe is None else self.probe.rows
        return fitted.proba(rows[index])

    def _folded(self, fitted: FittedProbe) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Weights and bias of the probe, if it is linear in just these features."""
        assert self.probe is not None
        if self.probe.rows.shape[1] != self.features.shape[1]:
            return None
        folded = fold_linear(fitted.scores, self.probe.rows[:PROOF_ROWS])
        if folded is None:
            return None
        weight, bias = folded
        ours = self.features[:PROOF_ROWS] @ weight.T + bias
        theirs = self.probe.rows[:PROOF_ROWS] @ weight.T + bias
        agree = np.abs(ours - theirs).max() <= AGREEMENT * max(1.0, float(np.abs(theirs).max()))
        return folded if agree else None

    @cached_property
    def features(self) -> NDArray[np.float32]:
        """Last features of all the images before any training, shape (n, width)."""
        return self._features(self.tail, np.arange(len(self.rows)))

    def _features(self, tail: nn.Module, index: Index) -> NDArray[np.float32]:
        tail.eval()
        with torch.inference_mode():
            return np.concatenate(
                [tail(self._tensor(rows)).float().cpu().numpy() for rows in self._batches(index)]
            )

    def _batches(self, index: Index) -> Iterator[NDArray[Any]]:
        for _, rows in batches(self.rows, index, 64, memory=self.memory):
            yield rows

    def _tensor(self, rows: NDArray[Any]) -> torch.Tensor:
        return training.to_tensor(rows, self.device)

    def _checkpoint(self, recipe: Recipe, fit: Index, stop: Index) -> Path | None:
        """File of this very training: rows, labels, parts and recipe are in its name."""
        if self.checkpoints is None:
            return None
        digest = hashlib.sha256(self.name)
        for part in (self.y, fit, stop, self.weights, self.class_weights):
            digest.update(b"-" if part is None else np.ascontiguousarray(part).tobytes())
        settings = (
            phases_to_json(recipe.phases),
            recipe.seed,
            recipe.precision,
            recipe.monitor,
            recipe.stops,
        )
        digest.update(repr((settings, self.cut, self.head, self.backbone.card.weights)).encode())
        path = self.checkpoints / f"{digest.hexdigest()[:32]}.safetensors"
        self.files.append(path)
        return path
