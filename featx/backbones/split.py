"""Split a network into two parts, ``tail(stem(x)) == network(x)``, and check this for each network.

The tail is the network itself, in which every module that has run before the cut is replaced by one that
returns its input. So no forward code of timm is repeated here, and parameters keep timm's names. Some cuts do
not work (inside a residual block; arithmetic between modules before the cut). Then the outputs differ, and
the check at creation reports it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from featx.backbones.network import Backbone, Network, Stem, borrow_tensors
from featx.exceptions import UnsupportedCutError
from featx.spec import LAST

CHECK_IMAGES = 2
"""Batch size of the check: the smallest with which batch normalisation can be trained."""

TOLERANCE = 1e-4
"""Largest difference that the check allows, as a fraction of the largest value. float32 kernels may add in
another order for another memory layout. A wrong tail differs by far more."""

SUGGESTIONS = 2
"""Number of working cuts that the error message names."""

POSITION_PARAMETERS = {"cls_token", "dist_token", "reg_token", "pos_embed"}
"""Parameters that a transformer's ``_pos_embed`` adds; a tail does not need them."""

LAYOUTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "as is": lambda x: x,
    "channels last": lambda x: x.permute(0, 2, 3, 1),
    "tokens": lambda x: x.flatten(2).transpose(1, 2),
}
"""From the unpooled output of a stem to the tensor inside the network. The first layout that passes is
used."""


class Tail(nn.Module):
    """The layers above a cut: from the unpooled output of a stem to pre-logits features, (N, d).

    Attributes
    ----------
    network : torch.nn.Module
        The timm network without the layers up to the cut and without its classifier. Its tensors are copies
        and trainable. Names of modules and parameters are timm's.
    cut : str
    """

    def __init__(self, network: Network, cut: str, layout: str) -> None:
        super().__init__()
        self.network = network
        self.cut = cut
        self.layout = layout

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps (N, C, H, W) or tokens (N, L, C), as ``pool="none"`` returns them, to features."""
        x = inputs.clone(memory_format=torch.channels_last if inputs.ndim == 4 else torch.contiguous_format)
        x = LAYOUTS[self.layout](x)  # a clone, since activations in place may follow
        if self.cut != LAST:
            x = self.network.forward_features(x)
        features: Tensor = self.network.forward_head(x, pre_logits=True)
        return features


def split_backbone(
    backbone: Backbone, cut: str | int | None, *, input_size: int | tuple[int, int] | None = None
) -> tuple[Stem, Tail]:
    """Split a network into stem and tail at a cut.

    Parameters
    ----------
    backbone : Backbone
    cut : str, int or None
        As for `BackboneCard.resolve_cut`. At ``"last"`` the tail leads from the final features to the
        pre-logits ones (pooling; hidden layers for VGG and MobileNetV3).
    input_size : int or tuple of int, optional
        Height and width; the network's own by default.

    Returns
    -------
    stem, tail
        The stem has one unpooled output. The tail's tensors are copies and can be trained. In evaluation and
        in training mode, its outputs and its batch statistics are those of the whole network.

    Raises
    ------
    UnknownTapError
        If there is no such cut.
    UnsupportedCutError
        If the network cannot be split there; the message names the nearest cuts that work.
    """
    card = backbone.card
    tap = card.tap(cut)
    size = card.resolve_input_size(input_size)
    parts, reason = _try_split(backbone, tap.name, size)
    if parts is not None:
        return parts
    below = [other for other in card.taps[:-1] if other is not tap]  # above the last there is nothing
    others = sorted(below, key=lambda other: abs(other.index - tap.index))
    working = (other.words for other in others if _try_split(backbone, other.name, size)[0] is not None)
    near = ", ".join(word for word, _ in zip(working, range(SUGGESTIONS), strict=False))
    raise UnsupportedCutError(
        f"{card.name} cannot be split at {tap.words}: {reason}. "
        + (f"Nearest cuts that work: {near}." if near else "None of its cuts works.")
        + " The whole network can be trained without one (unfreeze='all')."
    )


def _try_split(backbone: Backbone, cut: str, size: tuple[int, int]) -> tuple[tuple[Stem, Tail] | None, str]:
    """Return both parts if a layout passes the check, else the reason."""
    card = backbone.card
    if "none" not in card.pools(cut):
        return None, "its output there is a vector"
    stem = backbone.stem([card.spec(cut, "none", final_norm=False, input_size=size, decoder="none")])
    check = _Check(backbone.sized(size), cut, stem)
    reason = ""
    for layout in LAYOUTS:
        tail = Tail(check.cut_network(), cut, layout)
        reason = check.fault(tail)
        if not reason:
            return (stem, tail), ""
    return None, reason


class Pass(nn.Module):
    """Replaces a module that has run: returns its first input."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the input."""
        return x


class PassPositions:
    """Replaces a transformer's ``_pos_embed``: the tokens already have their positions.

    Parameters
    ----------
    rest : tuple
        What the method returns besides the tokens (rotary embeddings, which depend on the input size only).
    """

    def __init__(self, rest: tuple[Any, ...] | None) -> None:
        self.rest = rest

    def __call__(self, x: Tensor, *args: Any) -> Any:
        """Return tokens, shape (N, L, C), and `rest`."""
        if self.rest is None:
            return x
        return (x, *(one.to(x.device) if isinstance(one, Tensor) else one for one in self.rest))


class _Check:
    """Outputs of the whole network for a noise batch, and the modules that ran before the cut."""

    def __init__(self, network: Network, cut: str, stem: Stem) -> None:
        self.network = network
        generator = torch.Generator().manual_seed(0)
        shape = (CHECK_IMAGES, *stem.input_size, 3)
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).to(stem.mean.device)
        with torch.no_grad():
            self.input = stem(images)[0]
            x = stem.normalise(images)
            self.finished, self.positions = _find_finished(_with_own_buffers(network), cut, x)
            self.evaluated = _features(_with_own_buffers(network).eval(), x)
            trained = _with_own_buffers(network).train()
            for name in self.finished:
                trained.get_submodule(name).eval()
            self.trained = _seeded(lambda: _features(trained, x))
            self.buffers = dict(trained.named_buffers())

    def cut_network(self) -> Network:
        """Copy the network, with its tensors, without the modules that ran before the cut."""
        network = borrow_tensors(self.network)
        for name in self.finished:
            network.set_submodule(name, Pass())
        classifiers = network.get_classifier()
        classifiers = classifiers if isinstance(classifiers, (tuple, list)) else [classifiers]
        for name, module in list(network.named_modules()):
            if any(module is classifier for classifier in classifiers):
                network.set_submodule(name, nn.Identity())
        if hasattr(network, "_pos_embed"):
            network._pos_embed = PassPositions(self.positions)
            for name in POSITION_PARAMETERS & {name for name, _ in network.named_parameters(recurse=False)}:
                setattr(network, name, None)
        return copy.deepcopy(network).requires_grad_(True)

    def fault(self, tail: Tail) -> str:
        """Return an empty text if the tail computes what the network does, else the reason."""
        x = self.input.clone()
        trained = copy.deepcopy(tail).train()
        try:
            with torch.no_grad():
                evaluated = tail.eval()(x)
                in_training = _seeded(lambda: trained(x))
        except Exception as error:  # a network may raise anything for an unexpected input
            first = (str(error).splitlines() or [type(error).__name__])[0]
            return f"its upper layers do not run alone ({first})"
        if not _same(evaluated, self.evaluated):
            return "its upper layers alone give other features than the whole network"
        if not _same(in_training, self.trained):
            return "its upper layers alone give other features than the whole network in training"
        for name, buffer in trained.network.named_buffers():
            if not _same(buffer, self.buffers[name]):
                return f"its upper layers alone update other statistics in training ({name})"
        return "" if torch.equal(x, self.input) else "its upper layers write into their input"


def _find_finished(network: Network, cut: str, x: Tensor) -> tuple[list[str], tuple[Any, ...] | None]:
    """Names of the outermost modules that only run before the cut, and further outputs of ``_pos_embed``."""
    before: set[str] = set()
    after: set[str] = set()
    passed = False
    positions: tuple[Any, ...] | None = None

    def note(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            nonlocal passed
            (after if passed else before).add(name)
            passed = passed or name == cut

        return hook

    def embed(*args: Any) -> Any:
        nonlocal positions
        result = original(*args)
        positions = tuple(result[1:]) if isinstance(result, tuple) else None
        return result

    for name, module in network.named_modules():
        module.register_forward_hook(note(name))
    if hasattr(network, "_pos_embed"):
        original = network._pos_embed
        network._pos_embed = embed
    final = network.forward_features(x)
    passed = passed or cut == LAST
    network.forward_head(final, pre_logits=True)
    finished = before - after if passed else set()
    return sorted(name for name in finished if not _ancestors(name) & finished), positions


def _ancestors(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts))}


def _features(network: Network, x: Tensor) -> Tensor:
    features: Tensor = network.forward_head(network.forward_features(x), pre_logits=True)
    return features


def _with_own_buffers(network: Network) -> Network:
    """Share the parameters, and copy the batch statistics, which may change."""
    own = borrow_tensors(network)
    for module in own.modules():
        module._buffers |= {name: one.clone() for name, one in module._buffers.items() if one is not None}
    return own


def _seeded(run: Callable[[], Tensor]) -> Tensor:
    """Run with a fixed random state, so that dropout is the same, and keep the caller's state."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return run()


def _same(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    difference = (found.to(torch.float32) - expected.to(torch.float32)).abs().max()
    return bool(difference <= TOLERANCE * expected.to(torch.float32).abs().max())
