"""Phases of training as plain values: what is trained, for how long, and with which learning rate.

Fine-tuning is a sequence of phases. Torch is not imported here, since the command line builds phases too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from featx.exceptions import UsageError

SCHEDULES = ("cosine", "step-exp", "constant")
BATCH_NORMS = ("frozen", "trained", "all")
HEADS = {
    "probe": "as the probe, or as a logistic regression where that is not linear in the last features",
    "linear": "from zeros",
    "mlp": "from random weights",
}
"""Initial weights of the new head."""

PATIENCE = 6
"""Epochs. Accuracy falls when the layers below a good head start to change, and needs some to recover."""
EXP_DECAY = -0.1
"""Logarithm of the factor per epoch of the ``step-exp`` schedule (Keras tutorials)."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of training.

    Parameters
    ----------
    trainable : 'head', 'tail', int, str or tuple of str
        What is trained besides the head: nothing (``"head"``), everything above the cut (``"tail"``), the
        last k stages of the network, everything above a layer, or only the modules named by a tuple, e.g.
        ``("blocks.5",)``.
    train_head : bool
        Whether the head is trained too.
    epochs : int
        Passes over the images; 0 leaves the phase out.
    lr : float
        Peak learning rate of the last layer.
    head_lr : float, optional
        Peak learning rate of the head; the same as `lr` by default.
    optimizer : str
        timm's name (``adamw``, ``sgd``, ``rmsprop``, ``lamb``, ...).
    momentum : float
        For optimizers that have one.
    layer_decay : float
        Factor from the learning rate of a layer to that of the layer below (ELECTRA, BEiT).
    weight_decay : float
        Decoupled or L2, depending on the optimizer; not on norms and biases.
    schedule : {'cosine', 'step-exp', 'constant'}
        Cosine to zero; constant for `constant_epochs` and then times exp(-0.1) per epoch; or constant.
    warmup : float
        Epochs of linear warm-up.
    constant_epochs : int
        For ``step-exp``.
    batch_size : int
        Images per step.
    label_smoothing : float
        Share of the target that is distributed over all classes.
    mixup, cutmix : float
        Alpha of the Beta distribution, 0 for none; only for streamed images.
    clip_norm : float, optional
        Maximal norm of the whole gradient.
    ema : float, optional
        Decay of the moving average of the weights; it is validated and kept instead of the weights.
    patience : int, optional
        Epochs without improvement on the validation images after which the phase ends.
    batch_norm : {'frozen', 'trained', 'all'}
        Which batch statistics are updated: none, those of trained layers, or all above the cut. Images
        unlike those of the pretraining have other statistics; their update makes the initial head worse.
    dropout : float
        Dropout before the head's first layer.
    drop_path : float
        Stochastic depth of the last residual block; it decreases linearly to 0 at the cut.
    """

    trainable: str | int | tuple[str, ...] = "tail"
    train_head: bool = True
    epochs: int = 12
    lr: float = 3e-4
    head_lr: float | None = None
    optimizer: str = "adamw"
    momentum: float = 0.9
    layer_decay: float = 1.0
    weight_decay: float = 0.05
    schedule: str = "cosine"
    warmup: float = 1.0
    constant_epochs: int = 10
    batch_size: int = 32
    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    clip_norm: float | None = 1.0
    ema: float | None = None
    patience: int | None = None
    batch_norm: str = "frozen"
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.trainable, list):
            object.__setattr__(self, "trainable", tuple(self.trainable))
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("batch_norm", self.batch_norm, BATCH_NORMS)
        for name in ("epochs", "lr", "weight_decay", "warmup", "constant_epochs", "mixup", "cutmix"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"a phase's {name} is {getattr(self, name)!r}; it must be 0 or more.")
        for name in ("label_smoothing", "dropout", "drop_path"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"a phase's {name} is {getattr(self, name)!r}; it must be in [0, 1).")
        for name in ("layer_decay", "ema"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UsageError(f"a phase's {name} is {value!r}; it must be in (0, 1].")
        if self.batch_size < 2:
            raise UsageError(f"a phase's batch_size is {self.batch_size!r}; it must be 2 or more.")
        if self.trainable == "head" and not self.train_head and self.epochs:
            raise UsageError("a phase must train the layers above the cut, the head, or both.")

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed by mixup or cutmix, which needs images."""
        return self.mixup > 0 or self.cutmix > 0

    def replace(self, **changes: Any) -> Phase:
        """Copy with some fields changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class TrainedLayer:
    """One group of parameters that a phase trains.

    Parameters
    ----------
    names : tuple of str
    parameters : int
        Number of scalars.
    lr : float
        Peak learning rate.
    weight_decay : float
    """

    names: tuple[str, ...]
    parameters: int
    lr: float
    weight_decay: float

    def __str__(self) -> str:
        """Modules, number of tensors and of parameters, learning rate, weight decay."""
        modules = list(dict.fromkeys(name.rpartition(".")[0] for name in self.names))
        which = modules[0] if len(modules) == 1 else f"{modules[0]} … {modules[-1]}"
        return (
            f"{which}: {len(self.names)} tensors, {self.parameters:,} parameters, lr {self.lr:.2g}, "
            f"weight decay {self.weight_decay:g}"
        )


def default_phases(head: str) -> tuple[Phase, ...]:
    """Return the two phases of a head: first the head alone, then also the layers above the cut.

    A head that starts as the probe needs no first phase (LP-FT, Kumar et al. 2022). Other heads are trained
    for 25 epochs first, as in the Keras tutorials; this runs on pooled features and is fast.
    """
    _check_choice("head", head, HEADS)
    first = Phase(trainable="head", epochs=0 if head == "probe" else 25, lr=1e-3, weight_decay=1e-4)
    return (first, Phase(patience=PATIENCE))


def describe_phases(
    phases: Sequence[Phase], trained: Sequence[Sequence[TrainedLayer]], head: str = "probe"
) -> list[str]:
    """Describe what each phase trains: names, numbers of parameters, learning rates; one line each."""
    lines = []
    for number, (phase, layers) in enumerate(zip(phases, trained, strict=True), 1):
        if not phase.epochs:
            lines.append(f"phase {number} of {len(phases)}: left out, the head starts {HEADS[head]}")
            continue
        total = sum(layer.parameters for layer in layers)
        lines.append(
            f"phase {number} of {len(phases)}: at most {phase.epochs} epochs of {phase.optimizer}, "
            f"{total:,} parameters"
        )
        lines += [f"  {layer}" for layer in layers]
    return lines


def _check_choice(name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise UsageError(f"{name} {value!r} is not known; choose one of {', '.join(allowed)}.")
