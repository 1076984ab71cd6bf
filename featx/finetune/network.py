"""The module that is trained: the layers above the cut and a new head on their pooled features.

Loaded only when something trains or predicts with a fine-tuned network: torch is imported at the top.
What a phase may change is decided here, by the network's own names, and said before it happens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featx.backbones.network import Backbone
from featx.backbones.split import split_backbone
from featx.exceptions import UsageError
from featx.finetune.phases import Phase

MLP_WIDTH = 512
"""Hidden units of ``head="mlp"``: the dense layer of the tutorials' small convnets."""
MLP_DROPOUT = 0.5
DROP_PATHS = ("drop_path", "drop_path1", "drop_path2")
"""What timm's residual blocks call their stochastic depth (identity or None where it is off)."""


@dataclass(frozen=True)
class TrainedLayer:
    """What a phase does to one group of parameters: names, how many numbers, how fast."""

    names: tuple[str, ...]
    parameters: int
    lr: float
    weight_decay: float

    def __str__(self) -> str:
        """One line: modules, number of tensors and of parameters, learning rate, weight decay."""
        modules = list(dict.fromkeys(name.rpartition(".")[0] for name in self.names))
        which = modules[0] if len(modules) == 1 else f"{modules[0]} … {modules[-1]}"
        return (
            f"{which}: {len(self.names)} tensors, {self.parameters:,} parameters, lr {self.lr:.2g}, "
            f"weight decay {self.weight_decay:g}"
        )


class TailClassifier(nn.Module):
    """``head(dropout(tail(x)))``: logits of shape (n, classes) from rows at the cut.

    Parameters
    ----------
    tail : nn.Module
        From rows at the cut to pooled features of shape (n, width).
    head : nn.Module
        From features to logits.
    """

    def __init__(self, tail: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.tail = tail
        self.dropout = nn.Dropout(0.0)
        self.head = head

    def forward(self, rows: Tensor) -> Tensor:
        """Logits of rows at the cut."""
        logits: Tensor = self.head(self.dropout(self.tail(rows)))
        return logits

    def group_matcher(self, coarse: bool = False) -> Any:
        """Layer of a parameter, for timm's layer-wise decay: the network's own, and the head on top."""
        layers = layer_numbers(self.tail)
        top = max(layers.values(), default=0) + 1
        return lambda name: layers.get(name.removeprefix("tail."), top)

    def no_weight_decay(self) -> set[str]:
        """Parameters that the network's authors never decay (position embeddings, class tokens)."""
        network = network_of(self.tail)
        names = network.no_weight_decay() if hasattr(network, "no_weight_decay") else set()
        prefix = "tail." + prefix_of(self.tail)
        return {prefix + name for name in names}


class WholeNetwork(nn.Module):
    """The tail of no cut at all: from pictures to pooled features, normalisation inside.

    Takes (n, 3, H, W) on the scale 0 to 255, so that pictures travel as uint8 and are mixed as they are.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("scale", 1 / (torch.tensor(std).view(1, 3, 1, 1) * 255), persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pre-logits features of shape (n, width)."""
        x = (pictures - self.mean) * self.scale
        features: Tensor = self.network.forward_head(self.network.forward_features(x), pre_logits=True)  # type: ignore[operator]
        return features


def open_tail(backbone: Backbone, cut: str | None, input_size: tuple[int, int]) -> nn.Module:
    """The layers above the cut, in evaluation mode, free to be trained; the whole network if there is no cut.

    Raises
    ------
    UnsupportedCutError
        If the network cannot be split there.
    """
    if cut is None:
        network = copy.deepcopy(backbone.sized(input_size))
        network.reset_classifier(0)
        tail: nn.Module = WholeNetwork(network, backbone.card.mean, backbone.card.std)
    else:
        tail = split_backbone(backbone, cut, input_size=input_size)[1]
    device = next(backbone.module.parameters()).device
    return tail.eval().requires_grad_(True).to(device)


def make_head(kind: str, width: int, n_classes: int) -> nn.Module:
    """A fresh head: ``linear`` (zeros: every class starts equal) or ``mlp`` (dense, ReLU, dropout)."""
    if kind == "mlp":
        return nn.Sequential(
            nn.Linear(width, MLP_WIDTH), nn.ReLU(), nn.Dropout(MLP_DROPOUT), nn.Linear(MLP_WIDTH, n_classes)
        )
    head = nn.Linear(width, n_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def linear_head(weight: NDArray[Any], bias: NDArray[Any]) -> nn.Linear:
    """A head of given weights, shape (classes, width), and bias, shape (classes,)."""
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight, np.float32)))
        head.bias.copy_(torch.from_numpy(np.ascontiguousarray(bias, np.float32)))
    return head


def prepare_phase(module: TailClassifier, phase: Phase) -> None:
    """Freeze and free parameters, set dropout and stochastic depth, as the phase says.

    Raises
    ------
    UsageError
        If the phase names nothing above the cut, or asks of the network what it has not.
    """
    chosen = chosen_names(module.tail, phase.trainable)
    for name, parameter in module.tail.named_parameters():
        parameter.requires_grad_(name in chosen)
    module.head.requires_grad_(phase.train_head)
    module.dropout.p = phase.dropout
    _set_drop_path(module.tail, phase.drop_path)
    set_modes(module, phase)


def set_modes(module: TailClassifier, phase: Phase) -> None:
    """Put what trains into training mode and leave the rest as it predicts, batch statistics as asked."""
    module.eval()
    module.dropout.train()
    _train_where_free(module)
    if phase.batch_norm == "trained":
        return
    for part in module.tail.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.train(phase.batch_norm == "all")


def _train_where_free(part: nn.Module) -> None:
    parameters = list(part.parameters())
    if parameters and all(parameter.requires_grad for parameter in parameters):
        part.train()
        return
    for child in part.children():
        _train_where_free(child)


def chosen_names(tail: nn.Module, trainable: str | int | tuple[str, ...]) -> set[str]:
    """Names of the tail's parameters that a phase's `trainable` means."""
    names = [name for name, _ in tail.named_parameters()]
    if trainable == "head":
        return set()
    if trainable in ("tail", "all"):
        return set(names)
    prefix = prefix_of(tail)
    if isinstance(trainable, tuple):
        return _under(names, trainable, prefix)
    tap = _tap_below(tail, trainable)
    return set(names) if tap is None else _above(tail, names, prefix + tap)


def _under(names: list[str], modules: tuple[str, ...], prefix: str) -> set[str]:
    chosen: set[str] = set()
    for module in modules:
        found = {n for n in names if n == prefix + module or n.startswith(f"{prefix}{module}.")}
        if not found:
            known = sorted({n.removeprefix(prefix).rsplit(".", 1)[0] for n in names})
            raise UsageError(
                f"no parameters under {module!r} above the cut; there are {', '.join(known[:12])}"
                f"{', ...' if len(known) > 12 else ''}. Unfreeze more, or name one of these."
            )
        chosen |= found
    return chosen


def _above(tail: nn.Module, names: list[str], tap: str) -> set[str]:
    """Parameters of modules that are defined after the tap's (timm defines them in the order of running)."""
    modules = [name for name, _ in tail.named_modules()]
    inside = [i for i, name in enumerate(modules) if name == tap or name.startswith(f"{tap}.")]
    if not inside:  # the tap lies at or below the cut: everything here is above it
        return set(names)
    above = set(modules[inside[-1] + 1 :])
    return {name for name in names if name.rpartition(".")[0] in above}


def _tap_below(tail: nn.Module, trainable: str | int) -> str | None:
    """Name of the tap above which `trainable` (so many stages, or the tap's own name) trains."""
    if isinstance(trainable, str):
        return trainable
    taps = [info["module"] for info in network_of(tail).feature_info]
    return None if trainable >= len(taps) else str(taps[-1 - trainable])


def network_of(tail: nn.Module) -> Any:
    """The timm network inside a tail (itself, where the tail is the network)."""
    return getattr(tail, "network", tail)


def prefix_of(tail: nn.Module) -> str:
    """What the tail puts before the network's own names."""
    return "network." if hasattr(tail, "network") else ""


def layer_numbers(tail: nn.Module) -> dict[str, int]:
    """Layer of each parameter, counted from the cut up, by timm's matcher where the network has one."""
    from timm.models import group_parameters

    network, prefix = network_of(tail), prefix_of(tail)
    if not hasattr(network, "group_matcher"):
        return {name: 0 for name, _ in tail.named_parameters()}
    layers = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    return {prefix + name: int(layer) for name, layer in layers.items()}


def trained_layers(module: TailClassifier, groups: Iterable[dict[str, Any]]) -> list[TrainedLayer]:
    """What an optimizer's groups train, by the network's names and at their peak learning rates."""
    prefix = "tail." + prefix_of(module.tail)
    names = {id(p): name.removeprefix(prefix) for name, p in module.named_parameters()}
    return [
        TrainedLayer(
            tuple(names[id(p)] for p in group["params"]),
            sum(p.numel() for p in group["params"]),
            float(group.get("peak_lr", group["lr"])),
            float(group["weight_decay"]),
        )
        for group in groups
    ]


def _set_drop_path(tail: nn.Module, rate: float) -> None:
    """Give the residual blocks stochastic depth, from 0 at the cut linearly to `rate` at the top."""
    from timm.layers import DropPath

    places = [
        (block, name)
        for block in tail.modules()
        for name in DROP_PATHS
        if isinstance(getattr(block, name, ...), (nn.Identity, DropPath, type(None)))
    ]
    if rate and not places:
        raise UsageError(
            f"drop_path {rate} needs residual blocks above the cut, and there are none; use drop_path=0."
        )
    for number, (block, name) in enumerate(places):
        now = getattr(block, name)
        if isinstance(now, DropPath):
            now.drop_prob = rate * (number + 1) / len(places)
        elif rate:
            setattr(block, name, DropPath(rate * (number + 1) / len(places)))
