"""Images of more than 8 bits or 4 bands: their pixels as the file stores them.

Pillow decodes 16-bit colour to its high bytes. The low bytes are decoded in a second pass, with the other
byte order. Files of more bands than Pillow knows, or that Pillow misreads, are read by tifffile, if it is
installed.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[Any]

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

BITS, PLANAR, EXTRA_SAMPLES, SAMPLE_FORMAT = 258, 284, 338, 339
"""Tags of TIFF 6.0: bits of a sample, whether bands stand one after the other (2), what samples beside the
colours mean, and the type of samples."""

SIGNED = 2
"""Value of `SAMPLE_FORMAT` for signed integers."""

ALPHA = {1, 2, 999}
"""Values of `EXTRA_SAMPLES` for transparency; 999 is what Corel Draw writes."""

MOST_BANDS = 6
"""Bands of a TIFF that Pillow reads; of more it prints a message."""

OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}

REMARK_BAND = "a fourth band that is not declared as transparency is left out (--bands chooses bands)"
REMARK_BANDS = "more than 4 bands; the first three are used (--bands chooses others, such as 4,3,2)"

START = 32
"""Bytes of a file that show whether a PNG has 16 bits."""


def raw_mode(image: Any) -> str:
    """Return how Pillow reads the samples of a file, such as ``RGB;16B``; empty if that is not known."""
    if not getattr(image, "tile", None):
        return ""
    args = image.tile[0][3]
    found = args[0] if isinstance(args, tuple) and args else args
    return found if isinstance(found, str) else ""


def is_deep_colour(image: Image.Image) -> bool:
    """Whether an image that is not yet loaded has colours of 16 bits."""
    return ";16" in raw_mode(image) and image.mode in ("RGB", "RGBA")


def has_undeclared_band(image: Image.Image) -> bool:
    """Whether a TIFF has a fourth band that it does not declare as transparency."""
    tags = getattr(image, "tag_v2", None)
    if tags is None or image.mode not in ("RGB", "RGBA") or not raw_mode(image).startswith("RGB"):
        return False
    declared = tags.get(EXTRA_SAMPLES, ())
    values = set(declared) if isinstance(declared, tuple) else {declared}
    has_more = image.mode == "RGBA" or raw_mode(image).startswith("RGBX")
    return has_more and not values & ALPHA


def stored_pixels(open_again: Callable[[], Image.Image]) -> Pixels:
    """Return all bands of a colour image as its file stores them, uint8 or uint16, shape (H, W, 3 or 4).

    Parameters
    ----------
    open_again : callable
        Opens the file and reads its header.
    """
    image = open_again()
    raw = raw_mode(image)
    if raw == "LA;16B":  # grey and alpha of a PNG: its four bytes, as Pillow has no second pass for it
        parts = _load(image, "RGBA", "RGBA").astype(np.uint16)
        grey, alpha = parts[..., 0] << 8 | parts[..., 1], parts[..., 2] << 8 | parts[..., 3]
        return np.stack([grey, grey, grey, alpha], axis=-1)
    kept = raw.replace("RGBX", "RGBA").replace("RGBa", "RGBA")
    mode = "RGBA" if kept.startswith("RGBA") else image.mode
    high = _load(image, mode, kept)
    if ";16" not in raw:
        return high
    base, _, order = kept.partition(";16")
    low = _load(open_again(), mode, f"{base};16{OTHER_ORDER[order or 'L']}")
    return high.astype(np.uint16) << 8 | low


def _load(image: Any, mode: str, raw: str) -> Pixels:
    image._mode = mode
    image.tile = [tile._replace(args=_with_raw(tile[3], raw)) for tile in image.tile]
    image.load()
    return np.asarray(image)


def _with_raw(args: Any, raw: str) -> Any:
    return (raw, *args[1:]) if isinstance(args, tuple) else raw


def read_tiff(data: bytes) -> Pixels:
    """Read a TIFF that Pillow does not know, by tifffile; shape (H, W) or (H, W, bands).

    Raises
    ------
    ValueError
        If tifffile is not installed, or the file holds no image.
    """
    try:
        import tifffile
    except ImportError as error:
        raise ValueError(
            "a TIFF of bands or a type that Pillow does not read; `pip install 'featx[tiff]'` reads it"
        ) from error
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        pixels = page.asarray()
        if page.planarconfig == 2 and pixels.ndim == 3:  # bands one after the other
            pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim not in (2, 3) or pixels.dtype.kind not in "uifb":
        raise ValueError(f"a TIFF of shape {pixels.shape} and type {pixels.dtype}, which is not an image")
    return np.asarray(pixels)


def tiff_tags(data: bytes) -> dict[int, Any]:
    """Tags of a TIFF from its first directory; empty if that is damaged, or the file is none."""
    from PIL import TiffImagePlugin

    if not data.startswith(TIFF_STARTS):
        return {}
    stream = io.BytesIO(data)
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(stream.read(8))
        stream.seek(tags.next)
        tags.load(stream)
        return dict(tags)
    except Exception:  # the decoder says what is wrong
        return {}


def tiff_shape(tags: Mapping[int, Any]) -> tuple[int, int, int]:
    """Width, height and bands of a TIFF; zeros if they are damaged."""
    try:
        return int(tags.get(256, 0)), int(tags.get(257, 0)), int(tags.get(277, 1)) if tags else 0
    except (TypeError, ValueError):
        return 0, 0, 0


def has_deep_planes(tags: Mapping[int, Any]) -> bool:
    """Whether a TIFF has bands of more than 8 bits one after the other, which Pillow reads as bytes."""
    return tags.get(PLANAR) == 2 and max(_all(tags, BITS), default=8) > 8 and len(_all(tags, BITS)) > 1


def is_signed_8_bit(tags: Mapping[int, Any]) -> bool:
    """Whether a TIFF has signed samples of 8 bits, which Pillow reads as unsigned ones."""
    return set(_all(tags, SAMPLE_FORMAT)) == {SIGNED} and set(_all(tags, BITS)) == {8}


def _all(tags: Mapping[int, Any], tag: int) -> tuple[Any, ...]:
    value = tags.get(tag, ())
    return value if isinstance(value, tuple) else (value,)


def is_deep_start(start: bytes) -> bool:
    """Whether a file that begins so may have more than 8 bits; of PNG and JPEG it is known."""
    if not start or start.startswith(b"\xff\xd8\xff"):
        return False
    return start[24] == 16 if start.startswith(b"\x89PNG") and len(start) > 24 else True
