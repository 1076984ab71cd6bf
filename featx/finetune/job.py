"""One fine-tuning job: a network split at a cut, its features, its probe, and trainings on some images.

This is the torch side of `FineTuner`; the estimator decides what is trained and kept.
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import nn

from featx.backbones.finetuned import BASE, lay_over
from featx.backbones.network import digest_tensors
from featx.backbones.runtimes import resolve_precision
from featx.evaluation import Calibration
from featx.finetune import training
from featx.finetune.features import FeatureSource, Index, batches
from featx.finetune.inputs import FineTuneInputs
from featx.finetune.network import TailClassifier, linear_head, make_head, open_tail, prepare_phase
from featx.finetune.phases import Phase, TrainedLayer
from featx.finetune.probe import FittedProbe, LinearProbe, fold_linear, initial_probe, logistic_probe
from featx.finetune.training import Listener, TrainingData, TrainingRun, TrainingSettings
from featx.finetune.tuned import FineTunedNetwork

CHECKED_IMAGES = 64
"""Images on which the probe and the head that is made from it must agree."""
AGREEMENT = 0.05
"""Largest difference of their scores, relative to the largest score: features come from several runtimes."""


@dataclass(frozen=True)
class TrainingResult:
    """A finished training."""

    module: TailClassifier
    run: TrainingRun
    settings: TrainingSettings
    seconds: float
    """Training time, including epochs before an interruption."""


@dataclass(kw_only=True)
class Job:
    """What all trainings above one cut have in common.

    Parameters
    ----------
    inputs : FineTuneInputs
    cut : str or None
        None trains the whole network on images.
    unfreeze : int or str
        The value of `FineTuner.unfreeze` for the cut.
    tail : nn.Module
        The pretrained layers above the cut.
    features : FeatureSource
        Features of all images at the cut.
    y : ndarray of shape (n,), int
    n_classes : int
    head : {'probe', 'linear', 'mlp'}
    probe : LinearProbe, optional
        The tuned classifier; by default a logistic regression on the last features.
    weights, class_weights
        See `TrainingData`.
    device, precision, monitor
        See `TrainingSettings`.
    checkpoints : Path, optional
        Folder of checkpoints.
    on_images : callable, optional
        See `training.train`.
    """

    inputs: FineTuneInputs
    cut: str | None
    unfreeze: int | str
    tail: nn.Module
    features: FeatureSource
    y: NDArray[np.intp]
    n_classes: int
    head: str
    probe: LinearProbe | None
    weights: NDArray[np.float32] | None
    class_weights: NDArray[np.float32] | None
    device: str
    precision: str
    monitor: str
    checkpoints: Path | None
    on_images: Callable[[int, str], None] | None = None
    files: list[Path] = field(default_factory=list)
    _own_probes: dict[bytes, LinearProbe] = field(default_factory=dict, init=False)

    @property
    def groups(self) -> NDArray[Any] | None:
        """Groups of the images."""
        return self.inputs.groups

    def train(
        self,
        train: Index,
        validation: Index,
        phases: tuple[Phase, ...],
        *,
        last_epochs: tuple[int, ...] | None = None,
        on_epoch: Listener | None = None,
        resumable: bool = True,
    ) -> TrainingResult:
        """Train a copy of the pretrained tail, with a head that is initialised on the training images."""
        settings = TrainingSettings(
            phases=phases,
            seed=self.inputs.settings.seed,
            device=self.device,
            precision=self.precision,
            monitor=self.monitor,
            memory=self.inputs.settings.memory,
            last_epochs=last_epochs,
        )
        data = TrainingData(
            features=self.features,
            y=self.y,
            n_classes=self.n_classes,
            train=train,
            validation=validation,
            weights=self.weights,
            class_weights=self.class_weights,
        )
        started = time.monotonic()
        module = self.new_module(train, phases)
        path = self._checkpoint(settings, train, validation) if resumable else None
        run = training.train(
            module, data, settings, checkpoint=path, on_epoch=on_epoch, on_images=self.on_images
        )
        seconds = max(time.monotonic() - started, sum(epoch["seconds"] for epoch in run.history))
        return TrainingResult(module, run, settings, seconds)

    def new_module(self, train: Index, phases: Sequence[Phase] = ()) -> TailClassifier:
        """Return the pretrained tail with a new head.

        If batch statistics will be updated, they are first set to those of the training images, and the head
        is fitted on the resulting features. Otherwise the first update would change the scale of the logits,
        and the first steps would destroy the initial head.
        """
        tail = copy.deepcopy(self.tail).requires_grad_(True)
        moving = next((phase for phase in phases if phase.epochs and phase.batch_norm != "frozen"), None)
        if moving is None or self.head != "probe":
            return TailClassifier(tail, self.first_head(train))
        module = TailClassifier(tail, make_head("linear", self.pooled.shape[1], self.n_classes))
        prepare_phase(module, moving)
        training.move_statistics(module, (self._tensor(batch) for batch in self._batches(train)))
        tail.requires_grad_(True)
        pooled = np.zeros_like(self.pooled)
        pooled[train] = self._pool(tail, train)
        fitted = initial_probe(pooled).fit(self.y, train, self.weights)
        folded = fold_linear(fitted.scores, pooled[train[:CHECKED_IMAGES]])
        assert folded is not None  # a logistic regression is linear
        module.head = linear_head(*folded).to(self.device)
        return module

    def describe(self, phases: Sequence[Phase]) -> list[list[TrainedLayer]]:
        """Return what each phase would train."""
        width = self.inputs.card.num_features
        head = make_head("mlp" if self.head == "mlp" else "linear", width, self.n_classes)
        module = TailClassifier(copy.deepcopy(self.tail).requires_grad_(True), head)
        return training.describe(module, phases)

    def logits(self, trained: TrainingResult, index: Index) -> NDArray[np.float32]:
        """Logits of a trained network."""
        return training.predict_logits(trained.module, self.features, index, trained.settings)

    def proba(self, trained: TrainingResult, index: Index) -> NDArray[np.float64]:
        """Uncalibrated probabilities of a trained network."""
        return np.asarray(softmax(self.logits(trained, index).astype(np.float64), axis=1))

    def network(
        self,
        trained: TrainingResult,
        classes: NDArray[Any],
        calibration: Calibration,
        verdict: Mapping[str, Any] | None,
    ) -> FineTunedNetwork:
        """Return the trained network, ready to predict and to be saved."""
        inputs = self.inputs
        spec = inputs.spec(self.unfreeze)
        state = dict(trained.module.state_dict())
        if inputs.card.source.startswith(
            "file:"
        ):  # its weights cannot be loaded by name, so they are included
            state |= {BASE + name: value for name, value in inputs.backbone.module.state_dict().items()}
        before = inputs.backbone.sized(spec.input_size).state_dict()
        return FineTunedNetwork(
            card=inputs.card,
            spec=spec,
            weights=digest_tensors(lay_over(before, state)),
            whole=self.cut is None,
            head="mlp" if self.head == "mlp" else "linear",
            classes=classes,
            tensors={name: value.detach().cpu().numpy().copy() for name, value in state.items()},
            calibration=calibration,
            history=trained.run.history,
            verdict=verdict,
            checkpoint=inputs.params["checkpoint"],
            allow_download=inputs.params["allow_download"],
            device=inputs.params["device"],
        )

    def first_head(self, train: Index) -> nn.Module:
        """Return the initial head; one that is made from a probe is fitted on the training images only."""
        if self.head != "probe":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.inputs.settings.seed)
                return make_head(self.head, self.pooled.shape[1], self.n_classes)
        folded = self._folded(self.fit_probe(train)) if self.probe is not None else None
        if folded is None:
            own = initial_probe(self.pooled).fit(self.y, train, self.weights)
            folded = fold_linear(own.scores, self.pooled[:CHECKED_IMAGES])
        assert folded is not None  # a logistic regression is linear
        return linear_head(*folded)

    def fit_probe(self, index: Index) -> FittedProbe:
        """Return the probe, fitted on some images."""
        return (self.probe or self.own_probe(index)).fit(self.y, index, self.weights)

    def own_probe(self, index: Index) -> LinearProbe:
        """Return a logistic regression on the last features, its penalty chosen on these images."""
        key = index.tobytes()
        if key not in self._own_probes:
            self._own_probes[key] = logistic_probe(
                self.pooled, self.y, index, groups=self.groups, random_state=self.inputs.settings.seed
            )
        return self._own_probes[key]

    def probe_proba(self, fitted: FittedProbe, index: Index) -> NDArray[np.float64]:
        """Return the probabilities of the probe."""
        features = self.pooled if self.probe is None else self.probe.features
        return fitted.proba(features[index])

    def _folded(self, fitted: FittedProbe) -> tuple[NDArray[Any], NDArray[Any]] | None:
        """Return weights and bias of the probe, or None if it is not linear in the last features."""
        assert self.probe is not None
        if self.probe.features.shape[1] != self.pooled.shape[1]:
            return None
        folded = fold_linear(fitted.scores, self.probe.features[:CHECKED_IMAGES])
        if folded is None:
            return None
        weight, bias = folded
        ours = self.pooled[:CHECKED_IMAGES] @ weight.T + bias
        theirs = self.probe.features[:CHECKED_IMAGES] @ weight.T + bias
        agree = np.abs(ours - theirs).max() <= AGREEMENT * max(1.0, float(np.abs(theirs).max()))
        return folded if agree else None

    @cached_property
    def pooled(self) -> NDArray[np.float32]:
        """Last features of all images before training, shape (n, width)."""
        return self._pool(self.tail, np.arange(len(self.features)))

    def _pool(self, tail: nn.Module, index: Index) -> NDArray[np.float32]:
        tail.eval()
        with torch.inference_mode():
            return np.concatenate(
                [tail(self._tensor(batch)).float().cpu().numpy() for batch in self._batches(index)]
            )

    def _batches(self, index: Index) -> Iterator[NDArray[Any]]:
        for _, batch in batches(self.features, index, 64, memory=self.inputs.settings.memory):
            yield batch

    def _tensor(self, batch: NDArray[Any]) -> torch.Tensor:
        return training.to_tensor(batch, self.device)

    def _checkpoint(self, settings: TrainingSettings, train: Index, validation: Index) -> Path | None:
        """Return the file of this training; its name is a digest of features, labels, parts and settings."""
        if self.checkpoints is None:
            return None
        digest = hashlib.sha256(self.inputs.digest(self.unfreeze))
        for part in (self.y, train, validation, self.weights, self.class_weights):
            digest.update(b"-" if part is None else np.ascontiguousarray(part).tobytes())
        own = (settings.phases, settings.seed, settings.precision, settings.monitor, settings.last_epochs)
        digest.update(repr((own, self.cut, self.head, self.inputs.card.weights)).encode())
        path = self.checkpoints / f"{digest.hexdigest()[:32]}.safetensors"
        self.files.append(path)
        return path


def open_job(
    inputs: FineTuneInputs,
    unfreeze: int | str,
    *,
    precision: str,
    **settings: Any,
) -> Job:
    """Split the network and open its features.

    Parameters
    ----------
    inputs : FineTuneInputs
    unfreeze : int or str
        See `FineTuner`.
    precision : str
        See `FineTuner`.
    **settings
        Other parameters of `Job`.
    """
    device = str(next(inputs.backbone.module.parameters()).device)
    cut = inputs.cut(unfreeze)
    tail = open_tail(
        inputs.backbone, cut, inputs.spec(unfreeze).input_size
    )  # fails before anything is extracted
    return Job(
        inputs=inputs,
        cut=cut,
        unfreeze=unfreeze,
        tail=tail,
        features=inputs.features(unfreeze),
        device=device,
        precision=resolve_precision(precision, device),
        **settings,
    )
