"""Phases: what a stretch of training may change, for how long and how fast, as plain values.

Fine-tuning is a tuple of these, so a third phase or a surgical choice of block is another value, not
another code path. No torch here: the command line and the search build phases too.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from featx.exceptions import ModelFileError, UsageError

SCHEDULES = ("cosine", "step-exp", "constant")
BATCH_NORMS = ("frozen", "trained", "all")
HEADS = ("probe", "linear", "mlp")

PATIENCE = 6
"""Epochs: a probe's head is thrown back when the layers below it start to move, and needs some to recover."""
EXP_DECAY = -0.1
"""Log of the factor per epoch of the ``step-exp`` schedule, as the Keras tutorials have it."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of training.

    Parameters
    ----------
    trainable : 'head', 'tail', int, str or tuple of str
        What may change besides the head: nothing (``"head"``), everything above the cut (``"tail"``), the
        last k stages of the network, everything above a tap, or (surgically) only the modules that a tuple
        names, e.g. ``("blocks.5",)``.
    train_head : bool
        Whether the head may change too.
    epochs : int
        Passes over the rows; 0 leaves the phase out.
    lr : float
        Peak learning rate of the top layer.
    head_lr : float, optional
        Peak learning rate of the head; the same as `lr` by default.
    optimizer : str
        timm's name (``adamw``, ``sgd``, ``rmsprop``, ``lamb``, ...).
    momentum : float
        For optimizers that have one.
    layer_decay : float
        Each layer below the top learns at this multiple of the rate of the one above (ELECTRA, BEiT).
    weight_decay : float
        Decoupled or L2, as the optimizer has it; never on norms and biases.
    schedule : {'cosine', 'step-exp', 'constant'}
        Cosine to zero; constant for `constant_epochs` and then times exp(-0.1) per epoch; or constant.
    warmup : float
        Epochs of linear warm-up.
    constant_epochs : int
        For ``step-exp``.
    batch_size : int
        Rows per step.
    label_smoothing : float
        Share of the target that is spread over all classes.
    mixup, cutmix : float
        Alpha of the Beta distribution, 0 for none; only where images stream.
    clip_norm : float, optional
        Greatest norm of the whole gradient.
    ema : float, optional
        Decay of the moving average of the weights that is validated and kept instead of the raw ones.
    patience : int, optional
        Epochs without a better validation after which the phase ends.
    batch_norm : {'frozen', 'trained', 'all'}
        Whose batch statistics move: nobody's, those of trained layers, or all above the cut. Pictures far
        from the pretraining have other statistics: moving them at once throws away the head's start.
    dropout : float
        Before the head's first layer.
    drop_path : float
        Stochastic depth of the last residual block; it falls linearly to 0 at the cut.
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
            raise UsageError("a phase that trains neither the tail nor the head trains nothing.")

    @property
    def mixes(self) -> bool:
        """Whether batches are mixed, which needs images."""
        return self.mixup > 0 or self.cutmix > 0

    def replace(self, **changes: Any) -> Phase:
        """Copy with some fields changed."""
        return dataclasses.replace(self, **changes)


def default_phases(head: str) -> tuple[Phase, ...]:
    """Return the two phases of a head: it alone first, then the layers above the cut as well.

    A head taken from the tuned probe needs no first phase (LP-FT, Kumar et al. 2022); a fresh one gets the
    tutorials' 25 frozen epochs, which run on pooled features and cost next to nothing.
    """
    _check_choice("head", head, HEADS)
    first = Phase(trainable="head", epochs=0 if head == "probe" else 25, lr=1e-3, weight_decay=1e-4)
    return (first, Phase(patience=PATIENCE))


def phases_to_json(phases: Iterable[Phase]) -> str:
    """Text that `phases_from_json` reads."""
    return json.dumps([dataclasses.asdict(phase) for phase in phases], sort_keys=True)


def phases_from_json(text: str) -> tuple[Phase, ...]:
    """Read phases.

    Raises
    ------
    ModelFileError
        If the text is not a list of phases of this version.
    """
    try:
        entries: list[Mapping[str, Any]] = json.loads(text)
        return tuple(Phase(**entry) for entry in entries)
    except (ValueError, TypeError) as error:
        raise ModelFileError(f"the phases of a fine-tuned network cannot be read: {error}") from error


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"{name} {value!r} is not known; choose one of {', '.join(allowed)}.")
