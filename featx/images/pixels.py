"""From whatever a file holds to upright 8-bit RGB: colour spaces, bit depth, transparency, orientation.

`Image.convert("RGB")` alone clips 16 bits to 255, shows the colours hidden under transparency and leaves
photos on their side; each of these is decided here, once, for files, PIL images and arrays alike.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from featx.images.policy import DecodePolicy
from featx.spec import parse_bands, parse_range

Pixels = NDArray[Any]
Warn = Callable[[str], None]


def ignore_remark(remark: str) -> None:
    """Ignore a remark that is reported elsewhere."""


ORIENTATION = 0x0112  # the EXIF tag

DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""Pillow's modes of more than 8 bits."""

BAND_PIXELS = 1 << 20
"""Pixels that are converted to RGB at a time."""

MANAGED_MODES = ("CMYK", "LAB")
"""Modes whose colours mean little without a profile."""

REMARK_DEPTH = "more than 8 bits: scaled by the full range of its type (--range chooses another)"
REMARK_SATURATED = "more than 1 % of its pixels lie beyond the range, and become black or white (--range)"
SATURATED = 0.01
"""Fraction of pixels beyond the range from which `REMARK_SATURATED` is said."""

REMARK_PROFILE = "its colour profile cannot be used; converted without it"


def from_pillow(image: Image.Image) -> Pixels:
    """Upright pixels of a PIL image, nothing lost but the palette and the colour space.

    Returns
    -------
    array
        (H, W) bool, uint8, uint16, int32 or float32; (H, W, 3) or (H, W, 4) uint8.
    """
    image.load()
    return upright(np.ascontiguousarray(_plain(image, warn=ignore_remark)), orientation(image))


def rgb_from_pillow(
    image: Image.Image, policy: DecodePolicy, warn: Warn, *, keep_depth: bool = False
) -> Pixels:
    """Pixels of a loaded PIL image, shape (H, W, 3), not yet turned upright; see `rgb_from_pixels`."""
    if image.mode in (*DEEP_MODES, *MANAGED_MODES):  # scaled, or converted by a profile, as a whole
        return rgb_from_pixels(_plain(image, warn=warn), policy, warn, keep_depth=keep_depth)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, BAND_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):  # in bands: a copy in each mode on the way would take memory
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = rgb_from_pixels(_plain(band, warn=warn), policy, warn)
    return pixels


def rgb_from_pixels(pixels: Pixels, policy: DecodePolicy, warn: Warn, *, keep_depth: bool = False) -> Pixels:
    """RGB of shape (H, W, 3) from (H, W), (H, W, 3) or (H, W, 4) pixels of any of the dtypes above.

    It is uint8; with `keep_depth`, float32 from 0 to 255 for pixels of more than 8 bits.
    """
    pixels = chosen_bands(pixels, policy.bands)
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    elif pixels.dtype != np.uint8:
        deep = _deep_rgb(pixels, policy, warn)
        return deep if keep_depth else to_8_bits(deep)
    if pixels.ndim == 2:
        return np.repeat(pixels[:, :, None], 3, axis=2)
    return _lay_on(pixels, policy.background) if pixels.shape[2] == 4 else np.ascontiguousarray(pixels)


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8; a damaged EXIF block counts as none."""
    with contextlib.suppress(Exception):
        value = image.getexif().get(ORIENTATION, 1)
        return value if value in _TURNS else 1
    return 1


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn and mirror pixels as the EXIF orientation says."""
    return np.ascontiguousarray(_TURNS[orientation](pixels))


_TURNS: dict[int, Callable[[Pixels], Pixels]] = {  # EXIF 2.32, tag 274
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def _plain(image: Image.Image, *, warn: Warn) -> Pixels:
    """Pixels of a loaded image in a mode that NumPy holds: bool, deep grey, grey, RGB or RGBA."""
    if image.mode in DEEP_MODES:
        pixels = np.asarray(image)
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if image.mode in MANAGED_MODES:
        image = _to_srgb(image, warn)
    if image.has_transparency_data:
        return np.asarray(image if image.mode == "RGBA" else image.convert("RGBA"))
    return np.asarray(image if image.mode in ("1", "L", "RGB") else image.convert("RGB"))


def _to_srgb(image: Image.Image, warn: Warn) -> Image.Image:
    profile: Any = ImageCms.createProfile("LAB") if image.mode == "LAB" else image.info.get("icc_profile")
    if not profile:
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile) if isinstance(profile, bytes) else profile)
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        warn(REMARK_PROFILE)
        return image.convert("RGB")
    return converted or image.convert("RGB")


def chosen_bands(pixels: Pixels, text: str) -> Pixels:
    """The bands of a text such as ``"3,2,1"``; all for an empty one."""
    bands = parse_bands(text)
    if not bands:
        return pixels
    n_bands = 1 if pixels.ndim == 2 else pixels.shape[2]
    if max(bands) > n_bands:
        raise ValueError(f"band {max(bands)} was chosen (--bands), and there are {n_bands}")
    stacked = pixels[:, :, None] if pixels.ndim == 2 else pixels
    chosen = stacked[:, :, [band - 1 for band in bands]]
    return np.ascontiguousarray(chosen[:, :, 0] if len(bands) == 1 else chosen)


def to_8_bits(pixels: Pixels) -> Pixels:
    """Round values from 0 to 255 to uint8."""
    return np.rint(pixels).clip(0, 255).astype(np.uint8)


def _deep_rgb(pixels: Pixels, policy: DecodePolicy, warn: Warn) -> Pixels:
    """Deep pixels as float32 RGB from 0 to 255, on the background where they are transparent."""
    alpha = pixels[..., 3:] if pixels.ndim == 3 and pixels.shape[2] == 4 else None
    scaled = _scaled(pixels[..., :3] if alpha is not None else pixels, policy.pixel_range, warn)
    if alpha is not None:
        opaque = _scaled(alpha, "full", ignore_remark) / np.float32(255)
        scaled = scaled * opaque + np.asarray(policy.background, np.float32) * (1 - opaque)
    return np.repeat(scaled[:, :, None], 3, axis=2) if scaled.ndim == 2 else np.ascontiguousarray(scaled)


def _scaled(pixels: Pixels, pixel_range: str, warn: Warn) -> Pixels:
    """Scale deep pixels to 0..255, float32.

    ``full`` takes 0..65535 for integers (32-bit files hold 16-bit data in practice) and 0..1 for floats,
    as scikit-image does; ``minmax`` takes the image's own smallest and largest finite value.
    """
    values = np.nan_to_num(pixels.astype(np.float32))  # NaN is 0, infinities the largest float
    if pixel_range == "minmax":
        low, high = float(values.min()), float(values.max())
    elif pixel_range == "full":
        low, high = 0.0, 1.0 if pixels.dtype.kind == "f" else 65535.0
        warn(REMARK_DEPTH)
    else:
        low, high = parse_range(pixel_range)
    if float(np.mean((values < low) | (values > high))) > SATURATED:
        warn(REMARK_SATURATED)
    values = (np.clip(values, np.float32(low), np.float32(high)) - low) * np.float32(
        255.0 / (high - low) if high > low else 0.0
    )
    return values.clip(0, 255, out=values)


def _lay_on(pixels: Pixels, background: tuple[int, int, int]) -> Pixels:
    """Lay RGBA on a plain colour, as Pillow does, with one rounding."""
    base = Image.new("RGBA", (pixels.shape[1], pixels.shape[0]), (*background, 255))
    base.alpha_composite(Image.fromarray(np.ascontiguousarray(pixels)))
    return np.asarray(base.convert("RGB"))
