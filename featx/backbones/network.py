"""A timm network with its card, and the stem that stops at a cut.

All families use the same code: timm's ``forward_intermediates`` returns maps of shape (N, C, H, W), and the
tokens beside them, for CNNs, ViTs, Swin, VGG and others. A stem takes a uint8 batch from the decoders,
normalises it inside the graph (this moves a quarter of the bytes, and a converted model needs no other code),
runs the network once up to the deepest cut, and pools. Deeper layers are removed.

This module imports torch; import it inside functions.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featx.backbones.card import BackboneCard, Tap
from featx.backbones.memory import lack_of_memory
from featx.backbones.pooling import POOL_FUNCTIONS, keep_all
from featx.exceptions import BackboneError, UsageError
from featx.spec import LAST, FeatureSpec

Network = Any
"""A timm network: a torch.nn.Module whose timm methods have no types."""

Output = tuple[Tensor, Tensor | None]
"""A map (N, C, H, W) and the other tokens (N, P, C), if any; both float32."""


class Backbone:
    """A pretrained network, ready to be cut.

    Parameters
    ----------
    card : BackboneCard
        Its name, weights and layers.
    module : torch.nn.Module
        The timm network, in evaluation mode, at the card's input size.
    """

    def __init__(self, card: BackboneCard, module: Network) -> None:
        self.card = card
        self.module = module

    def stem(self, specs: Sequence[FeatureSpec]) -> Stem:
        """Make the network up to the deepest cut of `specs`, with one pooled output for each.

        Parameters
        ----------
        specs : sequence of FeatureSpec
            Specs of this network that differ only in cut, pooling and final norm, or in what does not concern
            the network (resize, decoder, view, ...).

        Returns
        -------
        Stem
            In evaluation mode, on the network's device. It shares the tensors that it needs with this
            backbone. Those of later blocks are freed with the backbone.

        Raises
        ------
        UsageError
            If the specs are of another network, of several input sizes, or of a size that the network
            cannot run.
        """
        for spec in specs:
            if (spec.architecture, spec.weights) != (self.card.architecture, self.card.weights):
                raise UsageError(
                    f"a spec of {spec.architecture} with weights {spec.weights[:12]}… does not belong to "
                    f"{self.card.name} with weights {self.card.weights[:12]}…."
                )
        if len({(spec.input_size, spec.mean, spec.std) for spec in specs}) != 1:
            raise UsageError(
                "a stem has one input: give at least one spec, and specs that agree in input_size, mean, std."
            )
        return Stem(self.card, self.sized(specs[0].input_size), specs)

    def sized(self, input_size: tuple[int, int]) -> Network:
        """The network for an input size: itself, or one built from its tensors if its size is fixed.

        Position embeddings and the like are then resampled by timm, as it does for its own checkpoints.
        """
        if input_size == self.card.input_size or not self.card.fixed_input_size:
            return self.module
        import timm

        n_classes = self.module.num_classes
        state = {name: tensor.detach().cpu() for name, tensor in self.module.state_dict().items()}
        try:
            module = timm.create_model(
                self.card.name,
                pretrained=True,
                pretrained_cfg_overlay={"state_dict": state, "num_classes": n_classes, "label_offset": 0},
                num_classes=n_classes,
                img_size=input_size,
            )
        except (MemoryError, RuntimeError, AssertionError, ValueError) as error:
            raise _impossible_size(self.card, input_size, error) from error
        return module.eval().requires_grad_(False).to(next(self.module.parameters()).device)


class Stem(nn.Module):
    """uint8 images in, one pooled float32 output for each spec, in one pass.

    Takes a batch of shape (N, H, W, 3), uint8; returns a tuple of tensors, in the order of `specs`: (N, d),
    or unpooled (N, C, H, W) for maps and (N, L, C) for tokens.

    Attributes
    ----------
    specs : tuple of FeatureSpec
    input_size : tuple of int
        Height and width.
    shapes : tuple of tuple of int
        Measured shape of each output for one image.
    network : torch.nn.Module
        The cut network alone, with parameters of its own that share the backbone's storage. A runtime may
        cast it (``stem.network.bfloat16()``): normalisation and pooling stay in float32.
    """

    mean: Tensor
    scale: Tensor
    network: Network

    def __init__(self, card: BackboneCard, network: Network, specs: Sequence[FeatureSpec]) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.input_size = specs[0].input_size
        taps = {card.tap(spec.cut).index: spec.cut for spec in specs if spec.cut != LAST}
        self._cuts = [taps[index] for index in sorted(taps)]
        normed = {spec.final_norm for spec in specs if card.tap(spec.cut).has_norm}
        self._norms = sorted(normed or {False}) if taps else []  # one pass for each; mostly one
        self._whole = any(spec.cut == LAST for spec in specs)
        self._joint = self._whole and bool(taps) and card.one_pass
        self._options = _intermediate_options(network, sorted(taps))
        self._layout = _final_layout(network, _scaled_grid(card, self.input_size))
        self.network = borrow_tensors(network)
        if not self._whole:
            self.network.prune_intermediate_layers(sorted(taps), prune_norm=True not in self._norms)
        device = next(network.parameters()).device
        self.register_buffer("mean", torch.tensor(specs[0].mean, device=device) * 255, persistent=False)
        self.register_buffer("scale", 1 / (torch.tensor(specs[0].std, device=device) * 255), persistent=False)
        self.eval()
        self.shapes = self._measure(card)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Shape (N, H, W, 3), uint8, to one output for each spec."""
        x = self.normalise(images)
        taken: dict[tuple[str, bool], Output] = {}
        final: Tensor | None = None
        for norm in self._norms:
            joint = self._joint and final is None
            result = self.network.forward_intermediates(
                x, norm=norm, stop_early=not joint, intermediates_only=not joint, **self._options
            )
            if joint:
                final, result = result
            for cut, intermediate in zip(self._cuts, result, strict=True):
                taken[cut, norm] = _as_output(intermediate)
        if self._whole and final is None:
            final = self.network.forward_features(x)
        return tuple(self._pool(spec, taken, final) for spec in self.specs)

    def normalise(self, images: Tensor) -> Tensor:
        """Shape (N, H, W, 3), uint8, to the network's input (N, 3, H, W), channels-last in memory."""
        x = images.permute(0, 3, 1, 2).to(torch.float32)  # first: OpenVINO then normalises 10 times as fast
        x = (x - self.mean.view(3, 1, 1)) * self.scale.view(3, 1, 1)
        return x.to(next(self.network.parameters()).dtype)

    def _pool(
        self, spec: FeatureSpec, taken: Mapping[tuple[str, bool], Output], final: Tensor | None
    ) -> Tensor:
        if spec.cut != LAST:
            norm = spec.final_norm if spec.final_norm in self._norms else self._norms[0]
            return POOL_FUNCTIONS[spec.pool](*taken[spec.cut, norm])
        assert final is not None
        if spec.pool == "avg":
            features: Tensor = self.network.forward_head(final, pre_logits=True)
            return features.to(torch.float32)
        return POOL_FUNCTIONS[spec.pool](*self._layout(final))

    def _measure(self, card: BackboneCard) -> tuple[tuple[int, ...], ...]:
        example = torch.zeros(1, *self.input_size, 3, dtype=torch.uint8, device=self.mean.device)
        try:
            with torch.inference_mode():
                outputs = self(example)
        except (MemoryError, RuntimeError, AssertionError, ValueError) as error:
            raise _impossible_size(card, self.input_size, error) from error
        if not all(output.numel() for output in outputs):
            raise _impossible_size(card, self.input_size, "the output at the cut is empty")
        return tuple(tuple(output.shape[1:]) for output in outputs)


def describe(name: str, source: str, module: Network) -> BackboneCard:
    """Measure a network and read its preprocessing: its card.

    Parameters
    ----------
    name : str
        timm's name, with the tag if given.
    source : str
        Origin of the weights.
    module : torch.nn.Module
        The timm network, in evaluation mode.

    Raises
    ------
    BackboneError
        If it does not give its layers.
    """
    from timm.data import resolve_model_data_config

    if not hasattr(module, "forward_intermediates"):
        raise BackboneError(
            f"{name}: {type(module).__name__} has no forward_intermediates, so its layers cannot be reached. "
            "All networks of timm 1.0.31 have it: pip install -U timm."
        )
    config = resolve_model_data_config(module)
    height, width = config["input_size"][1:]
    taps, num_features, one_pass = _measure_taps(module, (height, width))
    fixed = bool(module.pretrained_cfg.get("fixed_input_size"))
    return BackboneCard(
        name=name,
        architecture=name.partition(".")[0],
        weights=digest_tensors(module.state_dict()),
        source=source,
        licence=None if source.startswith("random:") else module.pretrained_cfg.get("license"),
        input_size=(height, width),
        fixed_input_size=fixed,
        resizable=not fixed or any("img_size" in _arguments(one) for one in type(module).__mro__[:-1]),
        multiple_of=_patch_side(module) if fixed else 1,
        crop_pct=float(config["crop_pct"]),
        crop_mode=config["crop_mode"],
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        taps=taps,
        num_features=num_features,
        one_pass=one_pass,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
    )


def digest_tensors(state: Mapping[str, Tensor]) -> str:
    """Hex sha256 of tensors: names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _measure_taps(module: Network, input_size: tuple[int, int]) -> tuple[tuple[Tap, ...], int, bool]:
    """Taps from a dummy run on seeded noise, the width of the pre-logits features, and `one_pass`."""
    noise = torch.randn(1, 3, *input_size, generator=torch.Generator().manual_seed(0))
    noise = noise.to(next(module.parameters()).device)
    names, reductions = _feature_info(module)
    options = _intermediate_options(module, list(range(len(names))))
    with torch.inference_mode():
        final = module.forward_features(noise)
        num_features = module.forward_head(final, pre_logits=True).shape[1]
        joint, raw = module.forward_intermediates(noise, **options)
        outputs = [_as_output(one) for one in raw]
        try:
            raw = module.forward_intermediates(noise, norm=True, intermediates_only=True, **options)
            normed = [_as_output(one) for one in raw]
        except (RuntimeError, AssertionError):  # the norm does not fit the widths of earlier stages
            normed = outputs
    has_cls = getattr(module, "cls_token", None) is not None
    taps = [
        _make_tap(
            name, index, reduction, output, has_cls=has_cls, has_norm=not torch.equal(output[0], normal[0])
        )
        for index, (name, reduction, output, normal) in enumerate(
            zip(names, reductions, outputs, normed, strict=True)
        )
    ]
    try:
        whole = _final_layout(module, taps[-1].grid)(final)
    except RuntimeError:  # the final features do not have the layout of the deepest map
        last = Tap(name=LAST, index=len(taps), channels=num_features, reduction=0, shape=(num_features,))
    else:
        last = _make_tap(LAST, len(taps), reductions[-1], whole, has_cls=has_cls)
    return (*taps, last), num_features, isinstance(final, Tensor) and torch.equal(joint, final)


def _make_tap(
    name: str, index: int, reduction: int, output: Output, *, has_cls: bool, has_norm: bool = False
) -> Tap:
    map_, extra = output
    return Tap(
        name=name,
        index=index,
        channels=map_.shape[1],
        reduction=reduction,
        shape=tuple(keep_all(map_, extra).shape[1:]),
        grid=tuple(map_.shape[2:]),
        kind="map" if extra is None else "tokens",
        has_cls=has_cls and extra is not None,
        has_norm=has_norm,
    )


def _feature_info(module: Network) -> tuple[list[str], list[int]]:
    """Names and reductions of the points of timm's ``feature_info`` (a list, or an object that wraps one)."""
    info = getattr(module.feature_info, "info", module.feature_info)
    return [point["module"] for point in info], [int(point["reduction"]) for point in info]


def _intermediate_options(module: Network, indices: list[int]) -> dict[str, Any]:
    options: dict[str, Any] = {"indices": indices, "output_fmt": "NCHW"}
    if _prefix_tokens(module) and "return_prefix_tokens" in _arguments(module.forward_intermediates):
        options["return_prefix_tokens"] = True
    return options


def _prefix_tokens(module: Network) -> int:
    """Number of class, register and other tokens before those of the image."""
    return int(getattr(module, "num_prefix_tokens", 0) or 0)


def _as_output(intermediate: Tensor | tuple[Tensor, Tensor]) -> Output:
    """Read a map, or timm's pair of map and prefix tokens."""
    if isinstance(intermediate, Tensor):
        return intermediate.to(torch.float32), None
    map_, extra = intermediate
    return map_.to(torch.float32), extra.to(torch.float32)


def _final_layout(module: Network, grid: tuple[int, ...]) -> Callable[[Tensor], Output]:
    """Return a function that reads ``forward_features`` as a map and the other tokens."""
    n_extra = _prefix_tokens(module)
    channels_last = str(getattr(module, "output_fmt", "NCHW")).endswith("NHWC")

    def read(final: Tensor) -> Output:
        if not isinstance(final, Tensor) or final.ndim not in (3, 4):  # some give a list of branches
            raise RuntimeError("the final features are neither a map nor tokens")
        final = final.to(torch.float32)
        if final.ndim == 4:
            return (final.permute(0, 3, 1, 2) if channels_last else final), None
        map_ = final[:, n_extra:].transpose(1, 2).reshape(final.shape[0], -1, *grid)
        return map_, (final[:, :n_extra] if n_extra else None)

    return read


def _scaled_grid(card: BackboneCard, input_size: tuple[int, int]) -> tuple[int, ...]:
    """Grid of the final tokens at another input size: patches of the same size in pixels."""
    return tuple(
        size * cells // default
        for size, cells, default in zip(input_size, card.taps[-1].grid, card.input_size, strict=False)
    )


def borrow_tensors(module: Network) -> Network:
    """Copy the modules and share the tensors' storage. Pruning or casting the copy keeps the original."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    memo: dict[int, Any] = {
        id(tensor): nn.Parameter(tensor.detach(), requires_grad=False)
        if isinstance(tensor, nn.Parameter)
        else tensor.detach()
        for tensor in tensors
    }
    return copy.deepcopy(module, memo)


def _patch_side(module: Network) -> int:
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", None) or 1
    return max(patch) if isinstance(patch, Sequence) else int(patch)


def _arguments(call: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(call).parameters


def _impossible_size(
    card: BackboneCard, input_size: tuple[int, int], reason: object
) -> BackboneError | UsageError:
    lack = lack_of_memory(reason) if isinstance(reason, Exception) else None
    if lack:
        return BackboneError(
            f"{card.name}: {lack} for one image of {input_size} pixels; choose a smaller "
            "input_size or backbone, or free memory."
        )
    return UsageError(
        f"{card.name} cannot run on images of {input_size} pixels ({str(reason).splitlines()[0]}); "
        f"its default is {card.input_size}."
    )
