"""The training loop: phases over batches of features, with validation, best weights and resumption.

Each epoch seeds its own randomness (order, views, dropout, mixing) from (seed, phase, epoch). Therefore a
training that was interrupted resumes after its last epoch with the same result, bit for bit on a CPU.
Optimizers, schedules, parameter groups and the moving average are those of timm and torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from featx.backbones.state import LAUNCHES
from featx.exceptions import UsageError
from featx.finetune.checkpoint import Checkpoint
from featx.finetune.depthwise import Float32Depthwise
from featx.finetune.features import MEMORY, ArrayFeatures, FeatureSource, Index, batches
from featx.finetune.network import TailClassifier, prepare_phase, set_modes, trained_layers
from featx.finetune.phases import EXP_DECAY, Phase, TrainedLayer
from featx.records import Record

EVALUATION_BATCH = 64
"""Images of a batch without gradients."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Features, labels and weights, and which images are for training and validation.

    Parameters
    ----------
    features : FeatureSource
        Features at the cut.
    y : ndarray of shape (n,), int
        Class indices.
    n_classes : int
    train, validation : ndarray of int
        Images to train on, and to validate each epoch on. Without validation images the last epoch is kept.
    weights : ndarray of shape (n,), optional
        Weight of each image in the loss, mean about 1.
    class_weights : ndarray of shape (n_classes,), optional
        Weight of each class in the loss.
    """

    features: FeatureSource
    y: NDArray[np.intp]
    n_classes: int
    train: Index
    validation: Index
    weights: NDArray[np.float32] | None = None
    class_weights: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How the layers are trained.

    Parameters
    ----------
    phases : tuple of Phase
    seed : int
    device : str
    precision : {'fp32', 'bf16', 'fp16'}
        Of the forward pass in training; weights stay float32.
    monitor : {'accuracy', 'loss'}
        Validation metric that chooses the best epoch (the other one breaks ties).
    memory : int
        Bytes of features that are kept in memory.
    last_epochs : tuple of int, optional
        Last epoch of each phase, which is kept without regard to validation; schedules have their full
        length. A training on all images repeats in this way one with validation images.
    """

    phases: tuple[Phase, ...]
    seed: int = 0
    device: str = "cpu"
    precision: str = "fp32"
    monitor: str = "accuracy"
    memory: int = MEMORY
    last_epochs: tuple[int, ...] | None = None


@dataclass
class TrainingRun(Record):
    """State of a training, for its checkpoint: everything except data, settings and tensors.

    Parameters
    ----------
    phase, epoch : int
        Index of the current phase, and epochs done in it.
    since_best : int
        Epochs of the phase since the best one.
    best : tuple of int or None
        Phase and epoch of the best weights; (0, 0) are the initial ones.
    best_score : tuple of float or None
        Monitored metric of the best weights, and the other one.
    best_epochs : list of int
        Best epoch of each phase that is done; 0 if none of its epochs was better than before.
    history : list of dict
        Record of each epoch.
    """

    phase: int = 0
    epoch: int = 0
    since_best: int = 0
    best: tuple[int, int] | None = None
    best_score: tuple[float, float] | None = None
    best_epochs: list[int] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)


Listener = Callable[[dict[str, Any]], None]
"""Called with each epoch's record; it may raise an exception to stop (pruning by Optuna)."""


def train(
    module: TailClassifier,
    data: TrainingData,
    settings: TrainingSettings,
    *,
    checkpoint: Path | None = None,
    on_epoch: Listener | None = None,
    on_images: Callable[[int, str], None] | None = None,
) -> TrainingRun:
    """Train in place, phase after phase; at the end the module has the weights of its best epoch.

    Parameters
    ----------
    module : TailClassifier
        With an initialised head. Its initial weights are validated as epoch 0 and can be the best ones.
    data : TrainingData
    settings : TrainingSettings
    checkpoint : Path, optional
        File to resume from, and to write after each epoch.
    on_epoch, on_images : callable, optional
        Called with the record of each epoch; with the number of images done, and the stage in words.
    """
    if settings.precision == "fp16" and not settings.device.startswith("cuda"):
        raise UsageError("training in fp16 needs a CUDA device; use precision 'bf16' or 'fp32'.")
    module.to(settings.device)
    module.to(memory_format=torch.channels_last)  # a third less time for gradients of depthwise convolutions
    keeper = Checkpoint(checkpoint, module)
    run = TrainingRun.from_dict(state) if (state := keeper.load_run()) else TrainingRun()
    with torch.random.fork_rng(devices=_cuda_devices(settings.device)):
        if run.best_score is None and _chooses(data, settings):
            run.best_score = _score(*_validate(module, data, settings), settings.monitor)
            run.best = (0, 0)
            keeper.keep_best(module)
        while run.phase < len(settings.phases):
            if settings.phases[run.phase].epochs:
                _train_phase(module, data, settings, run, keeper, on_epoch, on_images)
            keeper.restore_best(module)
            run.best_epochs.append(run.best[1] if run.best is not None and run.best[0] == run.phase else 0)
            run.phase, run.epoch, run.since_best = run.phase + 1, 0, 0
    module.eval()
    return run


def describe(module: TailClassifier, phases: Sequence[Phase]) -> list[list[TrainedLayer]]:
    """Return what each phase would train: names, numbers of parameters, peak learning rates."""
    described: list[list[TrainedLayer]] = []
    for phase in phases:
        if not phase.epochs:
            described.append([])
            continue
        prepare_phase(module, phase)
        described.append(trained_layers(module, _parameter_groups(module, phase)))
    return described


def move_statistics(module: TailClassifier, batches: Iterable[Tensor]) -> None:
    """Replace the batch statistics that a prepared phase would update by means over batches.

    Parameters
    ----------
    module : TailClassifier
        As `prepare_phase` leaves it.
    batches : iterable of Tensor
        Features at the cut.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # the mean over all batches
    with torch.no_grad():
        for batch in batches:
            module.tail(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


def predict_logits(
    module: TailClassifier, features: FeatureSource, index: Index, settings: TrainingSettings
) -> NDArray[np.float32]:
    """Logits of shape (len(index), classes), float32, in evaluation mode."""
    module.eval()
    if not len(index):
        return np.empty((0, 0), np.float32)
    found = []
    with torch.inference_mode():
        for _, values in batches(features, index, EVALUATION_BATCH, memory=settings.memory):
            with LAUNCHES.alone(settings.device):
                logits = module(to_tensor(values, settings.device)).float()
            found.append(logits.cpu().numpy())
    return np.concatenate(found)


def _train_phase(
    module: TailClassifier,
    data: TrainingData,
    settings: TrainingSettings,
    run: TrainingRun,
    keeper: Checkpoint,
    on_epoch: Listener | None,
    on_images: Callable[[int, str], None] | None,
) -> None:
    phase = settings.phases[run.phase]
    prepare_phase(module, phase)
    trained: nn.Module = module
    if phase.trainable == "head":
        trained, data = _on_features(module, data, settings)
    optimizer = _make_optimizer(module, phase)
    steps = sum(
        1
        for _ in batches(
            _Counted(data.features), data.train, phase.batch_size, epoch=0, memory=settings.memory
        )
    )
    schedule = make_schedule(optimizer, phase, steps)
    average = _make_average(trained, phase)
    keeper.load_phase(run.phase, optimizer, average)
    scaler = torch.amp.GradScaler(enabled=settings.precision == "fp16")

    while not _is_over(run, settings, bool(len(data.validation))):
        run.epoch += 1
        record = _train_epoch(
            trained, module, data, settings, run, optimizer, schedule, average, scaler, steps, on_images
        )
        validated = average.module if average is not None else trained
        if len(data.validation):
            record["val_loss"], record["val_accuracy"] = _validate(validated, data, settings)
        if _chooses(data, settings):
            score = _score(record["val_loss"], record["val_accuracy"], settings.monitor)
            run.since_best += 1
            if run.best_score is None or score > run.best_score:
                run.best, run.best_score, run.since_best = (run.phase, run.epoch), score, 0
                keeper.keep_best(module, validated)
        else:
            run.best = (run.phase, run.epoch)
            keeper.keep_best(module, validated)
        run.history.append(record)
        keeper.save(run.to_dict(), module, optimizer, average)
        if on_epoch is not None:
            on_epoch(record)


def _chooses(data: TrainingData, settings: TrainingSettings) -> bool:
    """Whether validation chooses the epoch that is kept; else it is the last one."""
    return bool(len(data.validation)) and settings.last_epochs is None


def _is_over(run: TrainingRun, settings: TrainingSettings, validated: bool) -> bool:
    phase = settings.phases[run.phase]
    if settings.last_epochs is not None:
        return run.epoch >= settings.last_epochs[run.phase]
    impatient = phase.patience is not None and validated and run.since_best >= phase.patience
    return run.epoch >= phase.epochs or impatient


def _train_epoch(
    trained: nn.Module,
    module: TailClassifier,
    data: TrainingData,
    settings: TrainingSettings,
    run: TrainingRun,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    average: Any,
    scaler: torch.amp.GradScaler,
    steps: int,
    on_images: Callable[[int, str], None] | None,
) -> dict[str, Any]:
    phase = settings.phases[run.phase]
    epoch_seed = (settings.seed * 1_000_003 + run.phase * 1_009 + run.epoch) % (1 << 31)
    torch.manual_seed(epoch_seed)
    mix = _make_mix(phase, data)
    set_modes(module, phase)
    if trained is not module:
        trained.train()
    step = (run.epoch - 1) * steps
    schedule.step_update(step)
    rates = [group["lr"] for group in optimizer.param_groups]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    losses, right, seen = [], [], 0
    started, used = time.monotonic(), time.process_time()
    stage = f"phase {run.phase + 1} of {len(settings.phases)}, epoch {run.epoch} of {phase.epochs}"

    for numbers, batch in batches(
        data.features,
        data.train,
        phase.batch_size,
        epoch=epoch_seed,
        seed=settings.seed,
        memory=settings.memory,
    ):
        with LAUNCHES.alone(settings.device):
            inputs = to_tensor(batch, settings.device)
            targets = torch.from_numpy(data.y[numbers]).to(settings.device)
            inputs, mixed = mix(inputs, targets) if mix is not None else (inputs, targets)
            with in_precision(settings.precision, settings.device):
                logits = trained(inputs)
            loss = _loss(logits.float(), mixed, numbers, data, phase)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            if phase.clip_norm is not None:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(parameters, phase.clip_norm)
            scaler.step(optimizer)
            scaler.update()
            step += 1
            schedule.step_update(step)
            if average is not None:
                average.update(trained, step=step)
        losses.append(loss.detach() * len(numbers))  # summed at the end, so that no step waits for the GPU
        right.append((logits.detach().argmax(1) == targets).sum())
        seen += len(numbers)
        if on_images is not None:
            on_images(len(numbers), stage)
    total_loss = float(torch.stack(losses).sum())
    if not math.isfinite(total_loss):
        raise UsageError(
            f"training diverged in {stage}: the loss is not finite at a learning rate of {phase.lr:g}; use a "
            "smaller lr, a longer warmup, or clip_norm."
        )
    return {
        "phase": run.phase,
        "epoch": run.epoch,
        "loss": total_loss / seen,
        "accuracy": int(torch.stack(right).sum()) / seen,
        "lr": max(rates),
        "lr_lowest": min(rates),
        "seconds": time.monotonic() - started,
        "cpu_seconds": time.process_time() - used,
    }


def _loss(logits: Tensor, targets: Tensor, numbers: Index, data: TrainingData, phase: Phase) -> Tensor:
    losses = F.cross_entropy(logits, targets, label_smoothing=phase.label_smoothing, reduction="none")
    weights = torch.ones_like(losses)
    if data.weights is not None:
        weights = weights * torch.from_numpy(data.weights[numbers]).to(losses)
    if data.class_weights is not None:
        by_class = torch.from_numpy(data.class_weights).to(losses)
        weights = weights * (targets.to(losses.dtype) @ by_class if targets.ndim == 2 else by_class[targets])
    return (losses * weights).mean()


def _validate(module: nn.Module, data: TrainingData, settings: TrainingSettings) -> tuple[float, float]:
    """Log loss and accuracy on the validation images, without augmentation and weights."""
    logits = torch.from_numpy(predict_logits(module, data.features, data.validation, settings))  # type: ignore[arg-type]
    targets = torch.from_numpy(data.y[data.validation])
    return float(F.cross_entropy(logits, targets)), float((logits.argmax(1) == targets).float().mean())


def _score(loss: float, accuracy: float, monitor: str) -> tuple[float, float]:
    """Larger is better; the second value breaks ties."""
    return (accuracy, -loss) if monitor == "accuracy" else (-loss, accuracy)


def _on_features(
    module: TailClassifier, data: TrainingData, settings: TrainingSettings
) -> tuple[nn.Module, TrainingData]:
    """Run the frozen tail once, and train the head on its output.

    If augmentation changes the features each epoch, or the output exceeds the memory, nothing is changed:
    the features run through the frozen tail in each epoch.
    """
    head = nn.Sequential(module.dropout, module.head)
    whole = np.concatenate([data.train, data.validation])
    sample = data.features.read(whole[:1])
    with torch.inference_mode():
        width = module.eval().tail(to_tensor(sample, settings.device)).shape[1]
    if data.features.varies or len(data.features) * width * 4 > settings.memory:
        return module, data
    pooled = np.zeros((len(data.features), width), np.float32)
    with torch.inference_mode():
        for numbers, batch in batches(
            data.features, np.unique(whole), EVALUATION_BATCH, memory=settings.memory
        ):
            pooled[numbers] = module.tail(to_tensor(batch, settings.device)).float().cpu().numpy()
    return head, dataclasses.replace(data, features=ArrayFeatures(pooled))


def _make_optimizer(module: TailClassifier, phase: Phase) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2

    groups = _parameter_groups(module, phase)
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            groups, opt=phase.optimizer, lr=phase.lr, momentum=phase.momentum
        )
    except ValueError as error:
        raise UsageError(f"optimizer {phase.optimizer!r} (a name of timm.optim): {error}") from error
    return optimizer


def _parameter_groups(module: TailClassifier, phase: Phase) -> list[dict[str, Any]]:
    """Return timm's parameter groups (no decay of norms and biases), with separate groups for the head."""
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    kept = module.no_weight_decay()
    if phase.layer_decay < 1:
        groups = param_groups_layer_decay(
            module, phase.weight_decay, no_weight_decay_list=kept, layer_decay=phase.layer_decay
        )
    else:
        groups = param_groups_weight_decay(module, phase.weight_decay, no_weight_decay_list=kept)
    head = {id(p) for p in module.head.parameters()}
    split: list[dict[str, Any]] = []
    for group in groups:
        for in_head in (False, True):
            parameters = [p for p in group["params"] if (id(p) in head) == in_head]
            if parameters:
                lr = phase.head_lr if in_head and phase.head_lr is not None else phase.lr
                scale = 1.0 if in_head else group.get("lr_scale", 1.0)
                split.append(
                    {**group, "params": parameters, "lr": lr, "lr_scale": scale, "peak_lr": lr * scale}
                )
    return split


def make_schedule(optimizer: torch.optim.Optimizer, phase: Phase, steps: int) -> Any:
    """Make a timm scheduler; its ``step_update`` takes the number of steps done.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        The ``lr`` of its groups are the peaks, scaled by their ``lr_scale``.
    phase : Phase
        Its schedule, epochs and warm-up are used.
    steps : int
        Steps per epoch.
    """
    from timm.scheduler.cosine_lr import CosineLRScheduler
    from timm.scheduler.scheduler import Scheduler

    warmup = round(min(phase.warmup, phase.epochs) * steps)
    if phase.schedule == "cosine":
        return CosineLRScheduler(
            optimizer,
            t_initial=max(2, phase.epochs * steps - warmup),
            warmup_t=warmup,
            warmup_prefix=True,
            t_in_epochs=False,
        )

    class StepExp(Scheduler):  # type: ignore[misc]
        """Linear warm-up, constant, then times exp(-0.1) after each further epoch."""

        def _get_lr(self, t: int) -> list[float]:
            rise = min(1.0, t / warmup) if warmup else 1.0
            late = 0 if phase.schedule == "constant" else max(0, t // steps - phase.constant_epochs + 1)
            return [value * rise * math.exp(EXP_DECAY * late) for value in self.base_values]

    return StepExp(optimizer, "lr", t_in_epochs=False)


def _make_average(trained: nn.Module, phase: Phase) -> Any:
    if phase.ema is None:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(trained, decay=phase.ema, use_warmup=True)


def _make_mix(phase: Phase, data: TrainingData) -> Any:
    if not phase.mixes:
        return None
    from torchvision.transforms import v2

    if len(data.features.shape) != 3 or data.features.shape[0] != 3:
        raise UsageError(
            "mixup and cutmix mix images, not features of a layer; unfreeze='all' streams images."
        )
    kinds = ((v2.MixUp, phase.mixup), (v2.CutMix, phase.cutmix))
    mixes = [kind(alpha=alpha, num_classes=data.n_classes) for kind, alpha in kinds if alpha > 0]
    return v2.RandomChoice(mixes)


class _Counted:
    """Features whose batches are counted without reading."""

    varies = False

    def __init__(self, features: FeatureSource) -> None:
        self.shape = features.shape
        self._n = len(features)

    def __len__(self) -> int:
        return self._n

    def read(self, index: Index, *, epoch: int | None = None) -> NDArray[Any]:
        """Return an empty array of the right length."""
        return np.empty((len(index), 0), np.float32)


def to_tensor(features: NDArray[Any], device: str) -> Tensor:
    """Features as float32 on the device, maps in the channels-last format."""
    tensor = torch.from_numpy(np.ascontiguousarray(features)).to(device, non_blocking=True).float()
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


@contextlib.contextmanager
def in_precision(precision: str, device: str) -> Iterator[None]:
    """Context of the precision of the forward pass in training."""
    with contextlib.ExitStack() as contexts:
        if precision != "fp32":
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
            contexts.enter_context(torch.autocast(device.split(":")[0], dtype=dtype))
            if device.startswith("cpu"):
                contexts.enter_context(Float32Depthwise())
        yield


def _cuda_devices(device: str) -> list[int]:
    return [torch.device(device).index or 0] if device.startswith("cuda") else []
