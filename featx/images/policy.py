"""DecodePolicy: how an image becomes pixels, as one value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from featx.exceptions import UsageError
from featx.images.decoders import DECODERS, resolve_decoder
from featx.spec import DECODE_FIELDS, DECODES, FeatureSpec, check_pixels

MAX_PIXELS = 178_956_970
"""Twice the limit at which Pillow warns, where Pillow itself refuses: 0.5 GB of RGB."""


@dataclass(frozen=True, kw_only=True)
class DecodePolicy:
    """How the bytes of an image become RGB pixels.

    `of` makes the policy of a spec; extraction and fine-tuning both use it. All fields except `max_pixels`
    and `min_side` are fields of `FeatureSpec`, too.

    Parameters
    ----------
    decoder : str
        A name of `DECODERS`, or ``auto``. If the decoder is not installed (a model may come from another
        machine), Pillow decodes, with a remark.
    decode : {'exact', 'fast'}
        With ``fast`` the JPEG decoder shrinks very large photos by 2, 4 or 8 while it decodes.
    background : tuple of int
        RGB, 0 to 255. Transparent pixels are blended with it.
    pixel_range, bands : str
        As in `FeatureSpec`.
    max_pixels : int
        Larger images are refused before they are decoded.
    min_side : int
        ``fast`` never makes the shorter side smaller than this. With 0, no image is shrunk.

    Raises
    ------
    UsageError
        If a value is not allowed.
    """

    decoder: str = "auto"
    decode: str = "exact"
    background: tuple[int, int, int] = (255, 255, 255)
    pixel_range: str = "full"
    bands: str = ""
    max_pixels: int = MAX_PIXELS
    min_side: int = 0

    @classmethod
    def of(cls, spec: FeatureSpec, max_pixels: int) -> Self:
        """Make the policy of a spec.

        Parameters
        ----------
        spec : FeatureSpec
            With ``decode="fast"`` the image is never smaller than what it is then resized to.
        max_pixels : int
            Larger images are refused.
        """
        resized = max(math.floor(side / spec.crop_pct) for side in spec.input_size)
        return cls(
            **{name: getattr(spec, name) for name in DECODE_FIELDS},
            max_pixels=max_pixels,
            min_side=resized if spec.decode == "fast" else 0,
        )

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            object.__setattr__(self, "decoder", resolve_decoder(self.decoder))
        object.__setattr__(self, "background", tuple(int(channel) for channel in self.background))
        if self.decode not in DECODES:
            raise UsageError(f"decode {self.decode!r} is not known; choose one of {', '.join(DECODES)}.")
        check_pixels(self.pixel_range, self.bands)
        if len(self.background) != 3 or not all(0 <= channel <= 255 for channel in self.background):
            raise UsageError(f"background {self.background} is not a colour; give three numbers, 0 to 255.")
        if self.max_pixels < 1 or self.min_side < 0:
            raise UsageError(
                f"max_pixels {self.max_pixels} and min_side {self.min_side}: give at least 1 and 0."
            )
