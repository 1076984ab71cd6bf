"""The training loop: phases over row blocks, with validation, best checkpoint and resumption.

Every epoch's chance (order, views, dropout, mixing) is seeded by (seed, phase, epoch), not by what ran
before, so a run that was killed goes on from its last epoch to the same result, bit for bit on a CPU.
The parts are timm's and torch's own: optimizers, schedules, parameter groups, moving average.
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
from featx.finetune.depthwise import SingleDepthwise
from featx.finetune.network import TailClassifier, TrainedLayer, prepare_phase, set_modes, trained_layers
from featx.finetune.phases import EXP_DECAY, Phase
from featx.finetune.rows import MEMORY, ArrayRows, Index, RowSource, batches

EVALUATION_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learnt from: rows, their classes and weights, and which of them for what.

    Parameters
    ----------
    rows : RowSource
        Rows at the cut.
    y : ndarray of shape (n,), int
        Class indices.
    n_classes : int
    fit, stop : ndarray of int
        Rows to train on, and to validate each epoch on (may be empty: then nothing is validated and the
        last epoch stands).
    weights : ndarray of shape (n,), optional
        Weight of each row in the loss, mean about 1.
    class_weights : ndarray of shape (n_classes,), optional
        Weight of each class in the loss.
    """

    rows: RowSource
    y: NDArray[np.intp]
    n_classes: int
    fit: Index
    stop: Index
    weights: NDArray[np.float32] | None = None
    class_weights: NDArray[np.float32] | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How it is learnt.

    Parameters
    ----------
    phases : tuple of Phase
    seed : int
    device : str
    precision : {'fp32', 'bf16', 'fp16'}
        Of the forward pass while training; weights stay float32.
    monitor : {'accuracy', 'loss'}
        What of the validation decides which epoch is best (the other breaks ties).
    memory : int
        Bytes of rows held at once.
    stops : tuple of int, optional
        Last epoch of each phase, which is kept whatever the validation says, on schedules of full length:
        how a run on all rows repeats one that could validate.
    """

    phases: tuple[Phase, ...]
    seed: int = 0
    device: str = "cpu"
    precision: str = "fp32"
    monitor: str = "accuracy"
    memory: int = MEMORY
    stops: tuple[int, ...] | None = None


@dataclass
class Run:
    """What a run has come to: all that a resumed one needs besides its task and recipe."""

    phase: int = 0
    epoch: int = 0
    since_best: int = 0
    best: tuple[int, int] | None = None
    best_score: tuple[float, float] | None = None
    stops: list[int] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)


Listener = Callable[[dict[str, Any]], None]
"""Called with each epoch's record; it may raise to stop (Optuna prunes so)."""


def train(
    module: TailClassifier,
    task: Task,
    recipe: Recipe,
    *,
    checkpoint: Path | None = None,
    on_epoch: Listener | None = None,
    on_rows: Callable[[int, str], None] | None = None,
) -> Run:
    """Train in place, phase after phase; at the end the module holds its best epoch's weights.

    Parameters
    ----------
    module : TailClassifier
        With its head initialised; the state it comes in is validated as epoch 0 and may stay the best.
    task, recipe
        See there.
    checkpoint : Path, optional
        File to go on from, and to write after each epoch.
    on_epoch, on_rows : callable, optional
        Told of each epoch's record, and of rows done (with the stage in words).
    """
    if recipe.precision == "fp16" and not recipe.device.startswith("cuda"):
        raise UsageError("training in fp16 needs a CUDA device; use precision 'bf16' or 'fp32'.")
    module.to(recipe.device)
    module.to(memory_format=torch.channels_last)  # depthwise convolutions run backward in two thirds the time
    keeper = Checkpoint(checkpoint, module)
    run = Run(**state) if (state := keeper.load_run()) else Run()
    with torch.random.fork_rng(devices=_cuda_devices(recipe.device)):
        if run.best_score is None and _chooses(task, recipe):
            run.best_score = _score(*_validate(module, task, recipe), recipe.monitor)
            run.best = (0, 0)
            keeper.keep_best(module)
        while run.phase < len(recipe.phases):
            if recipe.phases[run.phase].epochs:
                _train_phase(module, task, recipe, run, keeper, on_epoch, on_rows)
            keeper.restore_best(module)
            run.stops.append(run.best[1] if run.best is not None and run.best[0] == run.phase else 0)
            run.phase, run.epoch, run.since_best = run.phase + 1, 0, 0
    module.eval()
    return run


def describe(module: TailClassifier, phases: Sequence[Phase]) -> list[list[TrainedLayer]]:
    """What each phase would train: names, numbers of parameters, peak learning rates."""
    described: list[list[TrainedLayer]] = []
    for phase in phases:
        if not phase.epochs:
            described.append([])
            continue
        prepare_phase(module, phase)
        described.append(trained_layers(module, _parameter_groups(module, phase)))
    return described


def move_statistics(module: TailClassifier, batches: Iterable[Tensor]) -> None:
    """Put the means over batches in place of the batch statistics that a prepared phase would move.

    Parameters
    ----------
    module : TailClassifier
        As `prepare_phase` leaves it.
    batches : iterable of Tensor
        Rows at the cut.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # the mean over all batches
    with torch.no_grad():
        for rows in batches:
            module.tail(rows)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


def predict_logits(
    module: TailClassifier, rows: RowSource, index: Index, recipe: Recipe
) -> NDArray[np.float32]:
    """Logits of shape (len(index), classes), float32, in evaluation mode."""
    module.eval()
    if not len(index):
        return np.empty((0, 0), np.float32)
    found = []
    with torch.inference_mode():
        for _, values in batches(rows, index, EVALUATION_BATCH, memory=recipe.memory):
            with LAUNCHES.alone(recipe.device):
                logits = module(to_tensor(values, recipe.device)).float()
            found.append(logits.cpu().numpy())
    return np.concatenate(found)


def _train_phase(
    module: TailClassifier,
    task: Task,
    recipe: Recipe,
    run: Run,
    keeper: Checkpoint,
    on_epoch: Listener | None,
    on_rows: Callable[[int, str], None] | None,
) -> None:
    phase = recipe.phases[run.phase]
    prepare_phase(module, phase)
    trained: nn.Module = module
    if phase.trainable == "head":
        trained, task = _on_features(module, task, recipe)
    optimizer = _make_optimizer(module, phase)
    steps = sum(
        1 for _ in batches(_Counted(task.rows), task.fit, phase.batch_size, epoch=0, memory=recipe.memory)
    )
    schedule = make_schedule(optimizer, phase, steps)
    average = _make_average(trained, phase)
    keeper.load_phase(run.phase, optimizer, average)
    scaler = torch.amp.GradScaler(enabled=recipe.precision == "fp16")

    while not _is_over(run, recipe, bool(len(task.stop))):
        run.epoch += 1
        record = _train_epoch(
            trained, module, task, recipe, run, optimizer, schedule, average, scaler, steps, on_rows
        )
        judged = average.module if average is not None else trained
        if len(task.stop):
            record["stop_loss"], record["stop_accuracy"] = _validate(judged, task, recipe)
        if _chooses(task, recipe):
            score = _score(record["stop_loss"], record["stop_accuracy"], recipe.monitor)
            run.since_best += 1
            if run.best_score is None or score > run.best_score:
                run.best, run.best_score, run.since_best = (run.phase, run.epoch), score, 0
                keeper.keep_best(module, judged)
        else:
            run.best = (run.phase, run.epoch)
            keeper.keep_best(module, judged)
        run.history.append(record)
        keeper.save(dataclasses.asdict(run), module, optimizer, average)
        if on_epoch is not None:
            on_epoch(record)


def _chooses(task: Task, recipe: Recipe) -> bool:
    """Whether validation decides which epoch is kept; else it is the last."""
    return bool(len(task.stop)) and recipe.stops is None


def _is_over(run: Run, recipe: Recipe, validated: bool) -> bool:
    phase = recipe.phases[run.phase]
    if recipe.stops is not None:
        return run.epoch >= recipe.stops[run.phase]
    impatient = phase.patience is not None and validated and run.since_best >= phase.patience
    return run.epoch >= phase.epochs or impatient


def _train_epoch(
    trained: nn.Module,
    module: TailClassifier,
    task: Task,
    recipe: Recipe,
    run: Run,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    average: Any,
    scaler: torch.amp.GradScaler,
    steps: int,
    on_rows: Callable[[int, str], None] | None,
) -> dict[str, Any]:
    phase = recipe.phases[run.phase]
    epoch_seed = (recipe.seed * 1_000_003 + run.phase * 1_009 + run.epoch) % (1 << 31)
    torch.manual_seed(epoch_seed)
    mix = _make_mix(phase, task)
    set_modes(module, phase)
    if trained is not module:
        trained.train()
    step = (run.epoch - 1) * steps
    schedule.step_update(step)
    rates = [group["lr"] for group in optimizer.param_groups]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    losses, right, seen = [], [], 0
    started, used = time.monotonic(), time.process_time()
    stage = f"phase {run.phase + 1} of {len(recipe.phases)}, epoch {run.epoch} of {phase.epochs}"

    for numbers, rows in batches(
        task.rows, task.fit, phase.batch_size, epoch=epoch_seed, seed=recipe.seed, memory=recipe.memory
    ):
        with LAUNCHES.alone(recipe.device):
            inputs = to_tensor(rows, recipe.device)
            targets = torch.from_numpy(task.y[numbers]).to(recipe.device)
            inputs, mixed = mix(inputs, targets) if mix is not None else (inputs, targets)
            with in_precision(recipe.precision, recipe.device):
                logits = trained(inputs)
            loss = _loss(logits.float(), mixed, numbers, task, phase)
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
        losses.append(loss.detach() * len(numbers))  # summed at the end: a GPU is not waited for each step
        right.append((logits.detach().argmax(1) == targets).sum())
        seen += len(numbers)
        if on_rows is not None:
            on_rows(len(numbers), stage)
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


def _loss(logits: Tensor, targets: Tensor, numbers: Index, task: Task, phase: Phase) -> Tensor:
    losses = F.cross_entropy(logits, targets, label_smoothing=phase.label_smoothing, reduction="none")
    weights = torch.ones_like(losses)
    if task.weights is not None:
        weights = weights * torch.from_numpy(task.weights[numbers]).to(losses)
    if task.class_weights is not None:
        by_class = torch.from_numpy(task.class_weights).to(losses)
        weights = weights * (targets.to(losses.dtype) @ by_class if targets.ndim == 2 else by_class[targets])
    return (losses * weights).mean()


def _validate(module: nn.Module, task: Task, recipe: Recipe) -> tuple[float, float]:
    """Log loss and accuracy on the validation rows, which training sees plain and unweighted."""
    logits = torch.from_numpy(predict_logits(module, task.rows, task.stop, recipe))  # type: ignore[arg-type]
    targets = torch.from_numpy(task.y[task.stop])
    return float(F.cross_entropy(logits, targets)), float((logits.argmax(1) == targets).float().mean())


def _score(loss: float, accuracy: float, monitor: str) -> tuple[float, float]:
    """Larger is better; the second entry breaks ties."""
    return (accuracy, -loss) if monitor == "accuracy" else (-loss, accuracy)


def _on_features(module: TailClassifier, task: Task, recipe: Recipe) -> tuple[nn.Module, Task]:
    """A frozen tail gives the same features each epoch: run it once, and train the head on those.

    Where views or streaming make every epoch's rows differ, or the features exceed the memory, the rows go
    through the frozen tail each time.
    """
    head = nn.Sequential(module.dropout, module.head)
    whole = np.concatenate([task.fit, task.stop])
    sample = task.rows.read(whole[:1])
    with torch.inference_mode():
        width = module.eval().tail(to_tensor(sample, recipe.device)).shape[1]
    if task.rows.varies or len(task.rows) * width * 4 > recipe.memory:
        return module, task
    features = np.zeros((len(task.rows), width), np.float32)
    with torch.inference_mode():
        for numbers, rows in batches(task.rows, np.unique(whole), EVALUATION_BATCH, memory=recipe.memory):
            features[numbers] = module.tail(to_tensor(rows, recipe.device)).float().cpu().numpy()
    return head, dataclasses.replace(task, rows=ArrayRows(features))


def _make_optimizer(module: TailClassifier, phase: Phase) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2

    groups = _parameter_groups(module, phase)
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            groups, opt=phase.optimizer, lr=phase.lr, momentum=phase.momentum
        )
    except ValueError as error:
        raise UsageError(f"optimizer {phase.optimizer!r} (a name of timm.optim) says: {error}") from error
    return optimizer


def _parameter_groups(module: TailClassifier, phase: Phase) -> list[dict[str, Any]]:
    """Groups as timm makes them (norms and biases are not decayed), the head in groups of its own."""
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    kept = module.no_weight_decay()
    if phase.layer_decay < 1:
        groups = param_groups_layer_decay(
            module, phase.weight_decay, no_weight_decay_list=kept, layer_decay=phase.layer_decay
        )
    else:
        groups = param_groups_weight_decay(module, phase.weight_decay, no_weight_decay_list=kept)
    head = {id(p) for p in module.head.parameters()}
    parted: list[dict[str, Any]] = []
    for group in groups:
        for in_head in (False, True):
            parameters = [p for p in group["params"] if (id(p) in head) == in_head]
            if parameters:
                lr = phase.head_lr if in_head and phase.head_lr is not None else phase.lr
                scale = 1.0 if in_head else group.get("lr_scale", 1.0)
                parted.append(
                    {**group, "params": parameters, "lr": lr, "lr_scale": scale, "peak_lr": lr * scale}
                )
    return parted


def make_schedule(optimizer: torch.optim.Optimizer, phase: Phase, steps: int) -> Any:
    """Make a timm scheduler that is told the number of steps done (``step_update``).

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Its groups' ``lr`` are the peaks, scaled by their ``lr_scale``.
    phase : Phase
        It names the schedule.
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


def _make_mix(phase: Phase, task: Task) -> Any:
    if not phase.mixes:
        return None
    from torchvision.transforms import v2

    if len(task.rows.shape) != 3 or task.rows.shape[0] != 3:
        raise UsageError(
            "mixup and cutmix mix pictures, and these are rows of a layer; unfreeze='all' streams pictures."
        )
    kinds = ((v2.MixUp, phase.mixup), (v2.CutMix, phase.cutmix))
    mixes = [kind(alpha=alpha, num_classes=task.n_classes) for kind, alpha in kinds if alpha > 0]
    return v2.RandomChoice(mixes)


class _Counted:
    """Rows whose batches are only counted, not read."""

    varies = False

    def __init__(self, rows: RowSource) -> None:
        self.shape = rows.shape
        self._n = len(rows)

    def __len__(self) -> int:
        return self._n

    def read(self, index: Index, *, epoch: int | None = None) -> NDArray[Any]:
        """Nothing, of the right length."""
        return np.empty((len(index), 0), np.float32)


def to_tensor(rows: NDArray[Any], device: str) -> Tensor:
    """Rows as float32 on the device, maps in the memory order that convolutions like."""
    tensor = torch.from_numpy(np.ascontiguousarray(rows)).to(device, non_blocking=True).float()
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


@contextlib.contextmanager
def in_precision(precision: str, device: str) -> Iterator[None]:
    """The precision of a training's forward pass, as a context."""
    with contextlib.ExitStack() as contexts:
        if precision != "fp32":
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
            contexts.enter_context(torch.autocast(device.split(":")[0], dtype=dtype))
            if device == "cpu":
                contexts.enter_context(SingleDepthwise())
        yield


def _cuda_devices(device: str) -> list[int]:
    return [torch.device(device).index or 0] if device.startswith("cuda") else []
