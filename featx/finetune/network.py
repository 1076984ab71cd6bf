"""The trained module: the layers above the cut and a new head on their pooled features.

Torch is imported at the top, so this module is imported only for training and prediction. It also decides
which parameters a phase trains, by their names in the network.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featx.backbones.network import Backbone
from featx.backbones.split import split_backbone
from featx.exceptions import UsageError
from featx.finetune.phases import Phase, TrainedLayer

MLP_WIDTH = 512
"""Hidden units of ``head="mlp"``, as the dense layer of the small convnets of the Keras tutorials."""
MLP_DROPOUT = 0.5
DROP_PATHS = ("drop_path", "drop_path1", "drop_path2")
"""Names of stochastic depth in timm's residual blocks (identity or None if it is off)."""


class TailClassifier(nn.Module):
    """``head(dropout(tail(x)))``: logits of shape (n, classes) from features at the cut.

    Parameters
    ----------
    tail : nn.Module
        From features at the cut to pooled features of shape (n, width).
    head : nn.Module
        From pooled features to logits.
    """

    def __init__(self, tail: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.tail = tail
        self.dropout = nn.Dropout(0.0)
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """Logits of features at the cut."""
        logits: Tensor = self.head(self.dropout(self.tail(features)))
        return logits

    def group_matcher(self, coarse: bool = False) -> Any:
        """Layer number of a parameter, for timm's layer-wise decay; the head is the last layer."""
        layers = layer_numbers(self.tail)
        top = max(layers.values(), default=0) + 1
        return lambda name: layers.get(name.removeprefix("tail."), top)

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay by the network's definition (position embeddings, class tokens)."""
        network = network_of(self.tail)
        names = network.no_weight_decay() if hasattr(network, "no_weight_decay") else set()
        prefix = "tail." + prefix_of(self.tail)
        return {prefix + name for name in names}


class WholeNetwork(nn.Module):
    """The whole network as a tail: from images to pooled features, with normalisation.

    The input is (n, 3, H, W) from 0 to 255, so that images stay uint8 until they are used.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("scale", 1 / (torch.tensor(std).view(1, 3, 1, 1) * 255), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Pre-logits features of shape (n, width)."""
        x = (images - self.mean) * self.scale
        features: Tensor = self.network.forward_head(self.network.forward_features(x), pre_logits=True)  # type: ignore[operator]
        return features


def open_tail(backbone: Backbone, cut: str | None, input_size: tuple[int, int]) -> nn.Module:
    """Return the layers above the cut, in evaluation mode with gradients; without a cut the whole network.

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
    """Return a new head: ``linear`` (zeros: all classes are equal) or ``mlp`` (dense, ReLU, dropout)."""
    if kind == "mlp":
        return nn.Sequential(
            nn.Linear(width, MLP_WIDTH), nn.ReLU(), nn.Dropout(MLP_DROPOUT), nn.Linear(MLP_WIDTH, n_classes)
        )
    head = nn.Linear(width, n_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def linear_head(weight: NDArray[Any], bias: NDArray[Any]) -> nn.Linear:
    """Return a linear head with weights of shape (classes, width) and bias of shape (classes,)."""
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight, np.float32)))
        head.bias.copy_(torch.from_numpy(np.ascontiguousarray(bias, np.float32)))
    return head


def prepare_phase(module: TailClassifier, phase: Phase) -> None:
    """Freeze and unfreeze parameters, and set dropout and stochastic depth for a phase.

    Raises
    ------
    UsageError
        If the phase names no module above the cut, or needs residual blocks that are not there.
    """
    chosen = chosen_names(module.tail, phase.trainable)
    for name, parameter in module.tail.named_parameters():
        parameter.requires_grad_(name in chosen)
    module.head.requires_grad_(phase.train_head)
    module.dropout.p = phase.dropout
    _set_drop_path(module.tail, phase.drop_path)
    set_modes(module, phase)


def set_modes(module: TailClassifier, phase: Phase) -> None:
    """Set trained modules to training mode and the others to evaluation mode; batch norms as in the phase."""
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
    """Return the names of the tail's parameters that `trainable` of a phase selects."""
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
    """Select parameters of modules that are defined after the tap (timm defines them in execution order)."""
    modules = [name for name, _ in tail.named_modules()]
    inside = [i for i, name in enumerate(modules) if name == tap or name.startswith(f"{tap}.")]
    if not inside:  # the tap is at or below the cut: the whole tail is above it
        return set(names)
    above = set(modules[inside[-1] + 1 :])
    return {name for name in names if name.rpartition(".")[0] in above}


def _tap_below(tail: nn.Module, trainable: str | int) -> str | None:
    """Return the tap above which is trained: by its name, or by the number of stages above it."""
    if isinstance(trainable, str):
        return trainable
    taps = [info["module"] for info in network_of(tail).feature_info]
    return None if trainable >= len(taps) else str(taps[-1 - trainable])


def network_of(tail: nn.Module) -> Any:
    """Return the timm network in a tail (which can be the tail itself)."""
    return getattr(tail, "network", tail)


def prefix_of(tail: nn.Module) -> str:
    """Return the prefix of the network's parameter names in the tail."""
    return "network." if hasattr(tail, "network") else ""


def layer_numbers(tail: nn.Module) -> dict[str, int]:
    """Return the layer number of each parameter, from the cut up, by timm's matcher if there is one."""
    from timm.models import group_parameters

    network, prefix = network_of(tail), prefix_of(tail)
    if not hasattr(network, "group_matcher"):
        return {name: 0 for name, _ in tail.named_parameters()}
    layers = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    return {prefix + name: int(layer) for name, layer in layers.items()}


def trained_layers(module: TailClassifier, groups: Iterable[dict[str, Any]]) -> list[TrainedLayer]:
    """Describe an optimizer's groups, with parameter names of the network and peak learning rates."""
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
    """Set stochastic depth of the residual blocks, increasing linearly from 0 at the cut to `rate`."""
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
