"""BackboneCard: what makes specs of a network's features without loading the network.

A card is plain data, without torch: a warm run makes its specs from a card in the store's notes and never
loads the network. Shapes are measured in a dummy run, since timm's ``num_features`` and ``num_chs`` are not
always the widths of the outputs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featx.backbones.views import ViewPolicy, name_policy
from featx.exceptions import UnknownTapError, UsageError
from featx.records import Record
from featx.spec import LAST, FeatureSpec

POOL_WIDTHS: Mapping[str, int] = {
    "avg": 1,
    "max": 1,
    "gem": 1,
    "avg+max": 2,
    "cls": 1,
    "cls+avg": 2,
    "grid2": 4,
    "grid4": 16,
}
"""Columns per channel of each pooling; ``none`` keeps the whole shape."""

POOLS = (*POOL_WIDTHS, "none")

GRIDS = {"grid2": 2, "grid4": 4}
CLASS_TOKEN_POOLS = ("cls", "cls+avg")

MAX_RANDOM = 250_000_000
"""Most random weights of a network that a model file names: 1 GB."""

NATIVE_RESIZES = {"center": "crop", "squash": "squash", "border": "pad"}
"""timm's ``crop_mode`` in the words of `FeatureSpec.resize`."""


@dataclass(frozen=True, kw_only=True)
class Tap(Record):
    """A layer whose output can be used as features.

    Parameters
    ----------
    name : str
        Name of the module in timm's ``feature_info``, e.g. ``"layer3"``; ``"last"`` for the final features.
    index : int
        Position in ``feature_info``, from 0; ``"last"`` follows the deepest.
    channels : int
        Channels of the map, or width of a token.
    reduction : int
        Input pixels per cell of the map, as timm states it; 0 without a map.
    shape : tuple of int
        Shape of the unpooled output of one image at the default input size: ``(C, H, W)`` for a map,
        ``(L, C)`` for tokens (class and register tokens first), ``(d,)`` for a vector.
    grid : tuple of int
        Height and width of the map, or of the image's tokens; ``()`` for a vector.
    kind : {'map', 'tokens', 'vector'}
        ``tokens`` if there are tokens beside those of the map.
    has_cls : bool
        Whether the first token is a class token.
    has_norm : bool
        Whether the network's final norm can be applied here and changes the output.
    """

    name: str
    index: int
    channels: int
    reduction: int
    shape: tuple[int, ...]
    grid: tuple[int, ...] = ()
    kind: str = "vector"
    has_cls: bool = False
    has_norm: bool = False

    @property
    def words(self) -> str:
        """Name and shape, e.g. ``"layer3 (1024×14×14)"``."""
        return f"{self.name} ({'×'.join(map(str, self.shape))})"


@dataclass(frozen=True, kw_only=True)
class BackboneCard(Record):
    """A network's name, weights, preprocessing and taps.

    Parameters
    ----------
    name : str
        timm's name as given, e.g. ``"resnet50.a1_in1k"``.
    architecture : str
        The name without the tag.
    weights : str
        Hex sha256 of the loaded tensors.
    source : str
        Origin of the weights: ``file:NAME``, ``package:NAME``, ``hub`` or ``random:SEED``.
    licence : str or None
        Licence of the weights, as timm states it; None if unknown (or random).
    input_size : tuple of int
        Default height and width, in pixels.
    fixed_input_size : bool
        Whether the network must be built anew for another input size.
    resizable : bool
        Whether another input size is possible.
    multiple_of : int
        Input sizes must be multiples of this (the patch size of transformers, in pixels).
    crop_pct, crop_mode, interpolation, mean, std
        timm's resolved preprocessing for these weights.
    taps : tuple of Tap
        In order of depth, ending with ``"last"``.
    num_features : int
        Measured width of the pre-logits features.
    one_pass : bool
        Whether one forward pass gives ``"last"`` and the other taps.
    parameters : int
        Number of parameters of the whole network.
    """

    name: str
    architecture: str
    weights: str
    source: str
    licence: str | None
    input_size: tuple[int, int]
    fixed_input_size: bool
    resizable: bool
    multiple_of: int
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    taps: tuple[Tap, ...]
    num_features: int
    one_pass: bool
    parameters: int

    def resolve_cut(self, cut: str | int | None) -> str:
        """Name of a cut.

        Parameters
        ----------
        cut : str, int or None
            None or ``"last"`` for the pre-logits features, a tap's name, or a number (also as text, as the
            command line gives it): 0 is the shallowest tap, -1 the deepest one of ``feature_info``. A number
            never means ``"last"``.

        Raises
        ------
        UnknownTapError
            If there is no such tap. The message lists the taps with their shapes.
        """
        if cut is None:
            return LAST
        names = [tap.name for tap in self.taps]
        if cut in names:
            return str(cut)
        inner = names[:-1]
        number = _as_int(cut)
        if number is not None and -len(inner) <= number < len(inner):
            return inner[number]
        raise UnknownTapError(
            f"cut {cut!r} is not in {self.name}; choose one of {', '.join(tap.words for tap in self.taps)}, "
            f"or a number from {-len(inner)} to {len(inner) - 1}."
        )

    def tap(self, cut: str | int | None) -> Tap:
        """The tap of a cut (see `resolve_cut`)."""
        name = self.resolve_cut(cut)
        return next(tap for tap in self.taps if tap.name == name)

    def pools(self, cut: str | int | None = None) -> tuple[str, ...]:
        """Poolings that a cut allows.

        At ``"last"``, ``avg`` means the network's own pre-logits features, as timm returns them with
        ``num_classes=0`` (the global average for most, the class token for many ViTs, hidden layers for VGG
        and MobileNetV3). All other poolings there use the final features before that.
        """
        tap = self.tap(cut)
        if tap.kind == "vector":
            return ("avg",)
        return tuple(
            pool
            for pool in POOLS
            if (tap.has_cls or pool not in CLASS_TOKEN_POOLS)
            and (pool not in GRIDS or min(tap.grid) >= GRIDS[pool])
        )

    def width(self, spec: FeatureSpec) -> int:
        """Number of features of a spec, flattened.

        Raises
        ------
        UsageError
            For ``pool="none"`` at another than the default input size, if the size of the map is not the
            input size divided by the tap's reduction. ``Backbone.stem([spec]).shapes`` measures it.
        """
        tap = self.tap(spec.cut)
        if tap.name == LAST and spec.pool == "avg":
            return self.num_features
        if spec.pool != "none":
            return tap.channels * POOL_WIDTHS[spec.pool]
        if spec.input_size == self.input_size:
            return math.prod(tap.shape)
        if tap.grid != _cells(self.input_size, tap.reduction):
            raise UsageError(
                f"the width of {tap.name} unpooled at input size {spec.input_size} is not known without "
                f"running {self.name}; use its default {self.input_size}, or a pooling."
            )
        extra_tokens = tap.shape[0] - math.prod(tap.grid) if tap.kind == "tokens" else 0
        return tap.channels * (extra_tokens + math.prod(_cells(spec.input_size, tap.reduction)))

    def spec(
        self,
        cut: str | int | None = None,
        pool: str = "avg",
        *,
        decoder: str,
        resize: str = "crop",
        input_size: int | tuple[int, int] | None = None,
        final_norm: bool = True,
        view_policy: str | ViewPolicy = "none",
        **fields: Any,
    ) -> FeatureSpec:
        """The spec of one block of features of this network.

        Parameters
        ----------
        cut, pool
            See `resolve_cut` and `pools`.
        resize : {'crop', 'squash', 'pad'}
            ``crop`` is timm's own geometry for these weights: a centre crop for nearly all; some were trained
            squashed, and for those it is the same as ``squash``. ``squash`` and ``pad`` show the whole
            image.
        input_size : int or tuple of int, optional
            Height and width in pixels; default as the weights were trained.
        final_norm : bool
            Whether a transformer's final norm is applied to an intermediate cut. Elsewhere it makes no
            difference, and the spec then has True, so that equal features share a space.
        view_policy : str or ViewPolicy
            A name (``light``, ``photo``, ``document``, ``medical``) or a custom policy or its text, for
            `view` from 1.
        decoder, **fields
            Other fields of `FeatureSpec`: decode, background, pixel_range, bands, view, precision, dtype.

        Raises
        ------
        UnknownTapError, UsageError
            If the network has no such cut, the cut no such pooling, or the network no such input size.
        """
        tap = self.tap(cut)
        if pool not in self.pools(tap.name):
            raise UsageError(
                f"pool {pool!r} is not possible at {tap.words} of {self.name}; "
                f"choose one of {', '.join(self.pools(tap.name))}."
            )
        native = NATIVE_RESIZES[self.crop_mode]
        geometry = native if resize == "crop" else resize
        return FeatureSpec(
            architecture=self.architecture,
            weights=self.weights,
            cut=tap.name,
            pool=pool,
            final_norm=final_norm or not tap.has_norm,
            input_size=self.resolve_input_size(input_size),
            resize=geometry,
            crop_pct=self.crop_pct if geometry == native else 1.0,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            decoder=decoder,
            view_policy=name_policy(view_policy),
            **fields,
        )

    def resolve_input_size(self, input_size: int | tuple[int, int] | None) -> tuple[int, int]:
        """Height and width; a single number makes a square, None the default.

        Raises
        ------
        UsageError
            If the network cannot take that size.
        """
        if input_size is None:
            return self.input_size
        pair = tuple(input_size) if isinstance(input_size, Sequence) else (input_size, input_size)
        if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
            raise UsageError(
                f"input_size {input_size!r} is not a number of pixels or a pair (height, width) of them."
            )
        if pair == self.input_size:
            return self.input_size
        if not self.resizable:
            raise UsageError(f"{self.name} takes images of {self.input_size} pixels only, not {pair}.")
        if any(side % self.multiple_of for side in pair):
            nearest = [
                max(self.multiple_of, self.multiple_of * round(side / self.multiple_of)) for side in pair
            ]
            raise UsageError(
                f"input_size {pair} does not suit {self.name}: its sides must be multiples of "
                f"{self.multiple_of}, e.g. {tuple(nearest)}."
            )
        return pair[0], pair[1]

    def to_json(self) -> str:
        """The card as JSON text."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> BackboneCard:
        """Read `to_json`'s text.

        Raises
        ------
        TypeError, ValueError
            If it is not the text of a card.
        """
        return cls.from_dict(json.loads(text))


def check_random(card: BackboneCard) -> None:
    """Refuse a card of a model file with too many random weights.

    Pretrained weights are on this machine already. Random ones would be made, as many as the name says.

    Raises
    ------
    ValueError
        If there are more than `MAX_RANDOM` of them.
    """
    if card.source.startswith("random:") and not 0 < card.parameters <= MAX_RANDOM:
        raise ValueError(
            f"{card.name} with {card.parameters:,} random weights; a model file can have {MAX_RANDOM:,}"
        )


def _as_int(cut: str | int) -> int | None:
    try:
        return int(cut)
    except ValueError:
        return None


def _cells(input_size: tuple[int, int], reduction: int) -> tuple[int, ...]:
    return tuple(math.ceil(side / reduction) for side in input_size) if reduction else ()
