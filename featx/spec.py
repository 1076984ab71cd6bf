"""FeatureSpec: everything that features depend on, and nothing else.

Runs with equal specs share stored features; runs whose specs differ in one field do not. What changes
features by no more than rounding (runtime, device, batch size, threads) is not a field; it is recorded beside
the features.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featx.exceptions import StoreFormatError, UsageError
from featx.representation import BlockName

SPEC_FORMAT = 1
"""Raise it when the meaning of a field changes. Older features are then not used."""

RESIZES = ("crop", "squash", "pad")
PRECISIONS = ("fp32", "bf16", "fp16")
DTYPES = ("float16", "float32")
DECODES = ("exact", "fast")
RANGES = ("full", "minmax")

DECODE_FIELDS = ("decoder", "decode", "background", "pixel_range", "bands")
"""Fields of a spec that say how the bytes of an image become pixels."""

MAX_INPUT_PIXELS = 2**22
"""Most pixels of a network's input, such as 2048 × 2048; a forged file could ask for any amount of memory."""

LAST = "last"
"""Name of the cut that is the whole network without its classifier (timm's pre-logits features)."""


def check_pixels(pixel_range: str, bands: str) -> None:
    """Check a range and bands.

    Raises
    ------
    UsageError
        If the range is neither a word nor two numbers, or there are not one or three bands.
    """
    if not (isinstance(pixel_range, str) and isinstance(bands, str)):
        raise UsageError(
            f"pixel range {pixel_range!r} and bands {bands!r} are texts, such as 0,4095 and 3,2,1."
        )
    if pixel_range not in RANGES:
        parse_range(pixel_range)
    parse_bands(bands)


def parse_range(text: str) -> tuple[float, float]:
    """Read ``"low,high"``.

    Raises
    ------
    UsageError
        If it is not two finite numbers, the first the smaller one.
    """
    try:
        low, high = (float(part) for part in str(text).split(","))
    except ValueError:
        low = high = 0.0
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(
            f"pixel range {text!r} is not known; choose one of {', '.join(RANGES)}, or give two numbers, the "
            "values of black and white, such as 0,4095."
        )
    return low, high


def parse_bands(text: str) -> tuple[int, ...]:
    """Read ``"3,2,1"``; empty for no choice.

    Raises
    ------
    UsageError
        If it is not one or three numbers from 1.
    """
    try:
        bands = tuple(int(part) for part in str(text).split(",")) if text else ()
    except ValueError:
        bands = (0,)
    if len(bands) not in (0, 1, 3) or any(not 1 <= band <= 9999 for band in bands):
        raise UsageError(f"bands {text!r}: give one or three numbers from 1, such as 3,2,1.")
    return bands


@dataclass(frozen=True, kw_only=True)
class FeatureSpec:
    """All that determines one block of features.

    Parameters
    ----------
    architecture : str
        timm's name without the tag, e.g. ``"resnet50"``.
    weights : str
        Hex sha256 of the loaded tensors (names, dtypes, shapes and bytes).
    cut : str
        ``"last"`` for the pre-logits features, else a name in timm's ``feature_info``.
    pool : str
        ``avg``, ``max``, ``gem``, ``avg+max``, ``cls``, ``cls+avg``, ``grid2``, ``grid4`` or ``none``.
    final_norm : bool
        Whether a transformer's final norm is applied to an intermediate cut.
    input_size : tuple of int
        Height and width fed to the network, in pixels.
    resize : {'crop', 'squash', 'pad'}
        How images that are not square are resized: centre crop, change of aspect ratio, or padding.
    crop_pct : float
        Fraction of the resized image that the centre crop keeps (timm's meaning).
    interpolation : str
        timm's name: ``bicubic``, ``bilinear``, ...
    mean, std : tuple of float
        Channel normalisation, on the scale 0 to 1.
    background : tuple of int
        RGB, 0 to 255: transparent pixels are blended with it, and ``pad`` fills with it.
    pixel_range : str
        How values of more than 8 bits are scaled: by the range of their type (``full``), by that of each
        image (``minmax``), or from ``"low,high"`` to black and white.
    bands : str
        Bands that are red, green and blue, counted from 1, such as ``"3,2,1"``; one band is grey. Empty for
        the colours that the file declares.
    decoder : str
        Name of the JPEG decoder. Each has its own features, even if decoders agree within tolerance.
    decode : {'exact', 'fast'}
        With ``fast`` the JPEG decoder shrinks by powers of two before resizing.
    view : int
        0 is the plain image, k the k-th deterministic augmentation.
    view_policy : str
        Name (or digest) of the augmentation policy; ``"none"`` for view 0.
    precision : {'fp32', 'bf16', 'fp16'}
        Compute precision.
    dtype : {'float16', 'float32'}
        How features are stored. Those that overflow float16 are stored as float32.
    format : int
        Version of the fields' meaning.
    """

    architecture: str
    weights: str
    cut: str = LAST
    pool: str = "avg"
    final_norm: bool = True
    input_size: tuple[int, int]
    resize: str = "crop"
    crop_pct: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    background: tuple[int, int, int] = (255, 255, 255)
    pixel_range: str = "full"
    bands: str = ""
    decoder: str
    decode: str = "exact"
    view: int = 0
    view_policy: str = "none"
    precision: str = "fp32"
    dtype: str = "float16"
    format: int = SPEC_FORMAT

    def __post_init__(self) -> None:
        for name in ("input_size", "mean", "std", "background"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, allowed in (
            ("resize", RESIZES),
            ("precision", PRECISIONS),
            ("dtype", DTYPES),
            ("decode", DECODES),
        ):
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"{name} {getattr(self, name)!r} is not known; choose one of {', '.join(allowed)}."
                )
        if not all(side > 0 for side in self.input_size) or math.prod(self.input_size) > MAX_INPUT_PIXELS:
            raise UsageError(
                f"input_size {self.input_size} is not possible; choose a height and width of at most "
                f"{MAX_INPUT_PIXELS:,} pixels together (2048 × 2048)."
            )
        check_pixels(self.pixel_range, self.bands)
        if self.view < 0 or (self.view == 0) != (self.view_policy == "none"):
            raise UsageError(
                f"view {self.view} with policy {self.view_policy!r}: view 0 is the plain image "
                "(policy 'none'), views from 1 need a policy."
            )

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, shortest round-trip floats."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> FeatureSpec:
        """Read `to_json`'s text.

        Raises
        ------
        StoreFormatError
            If a newer featx wrote it, or it has fields that this version does not know.
        """
        fields: Any = json.loads(text)
        if not isinstance(fields, dict) or not isinstance(fields.get("format", 0), int):
            raise StoreFormatError("a feature spec is damaged: it is not what featx writes.")
        known = {field.name for field in dataclasses.fields(cls)}
        if fields.get("format", 0) > SPEC_FORMAT or not set(fields) <= known:
            raise StoreFormatError(
                f"a feature spec of format {fields.get('format')} was written by a newer featx "
                f"(this one reads up to {SPEC_FORMAT}); upgrade featx or use another cache directory."
            )
        try:
            return cls(**fields)
        except (TypeError, ValueError, AttributeError, UsageError) as error:
            raise StoreFormatError("a feature spec is damaged: it is not what featx writes.") from error

    @functools.cached_property
    def key(self) -> str:
        """Hex sha256 of the canonical JSON. It names the space of features in a store."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def block(self) -> BlockName:
        """Name of the block of features, e.g. ``"blocks.4:grid4:squash"``; its network is empty."""
        return BlockName(self.cut, self.pool, self.resize, view=self.view)

    def differing(self, other: FeatureSpec) -> Mapping[str, tuple[Any, Any]]:
        """Fields that differ, with both values."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}

    def replace(self, **changes: Any) -> FeatureSpec:
        """Copy with some fields changed."""
        return dataclasses.replace(self, **changes)
