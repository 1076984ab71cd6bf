"""Facts of an image that need no network: its header, its colours, its sharpness and a small copy of it.

They are one array of numbers for each image, so that a feature store can keep them by the image's digest.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featx.exceptions import ImageError
from featx.images.decode import EXTENSIONS, FORMATS, open_header
from featx.images.picture import Picture, reason_of
from featx.images.pixels import orientation
from featx.images.policy import MAX_PIXELS, DecodePolicy
from featx.images.ranges import decode_to_see
from featx.tables import escape_name

SIDE = 160
"""Longest side in pixels at which brightness, sharpness and information are measured."""

THUMB = 32
"""Side in pixels of the small copy; the aspect is not kept."""

BORDER = 0.04
"""Width of the border strip, as a share of the side."""

MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F")
"""Modes by their code; any other mode is the last code plus one."""

CHANNELS = ("red", "green", "blue")
SCALARS = (
    "width", "height", "orientation", "n_frames", "n_bytes", "format", "mode", "has_exif", "has_profile",
    "quantisation", "brightness", "contrast", "dark", "light", "entropy", "sharpness",
    *(f"{channel}_{what}" for what in ("mean", "low", "high", "border") for channel in CHANNELS),
)  # fmt: skip
"""What an image's array begins with. Brightness, contrast and channels are on the scale 0 to 255."""

GREY_STEPS = 12
"""Differences of two channels from -12 to 12 are counted one by one."""

RATIO, RATIO_BINS, RATIO_FROM = 0.21, 21, 40
"""Log ratios of two channels from -0.21 to 0.21 are counted in 21 bins, of pixels that are not dark."""

TINTS = 2 * (2 * GREY_STEPS + 1 + RATIO_BINS)
"""Numbers of an image's tint."""

TINT_KINDS = (2 * GREY_STEPS + 1) * (RATIO_BINS + 1)
"""Pairs of a difference and a ratio; the last ratio stands for all that are not small."""

LENGTH = len(SCALARS) + TINTS + THUMB * THUMB
"""Numbers of an image."""

JPEG_START = b"\xff\xd8"

_LEVELS = np.arange(256.0)
_POLICY = DecodePolicy(decode="fast", min_side=SIDE, max_pixels=MAX_PIXELS)
_EXACT = replace(_POLICY, decode="exact", min_side=0)


@dataclass(frozen=True, eq=False)
class ImageFacts:
    """Facts of n images.

    Parameters
    ----------
    values : array of shape (n, len(SCALARS)), float32
        One column for each of `SCALARS`.
    tints : array of shape (n, TINTS), float32
        Shares of the pixels by the difference of red and green, and of green and blue, and by the logarithm
        of their ratios, where these are small. Grey things are at zero, unless an image has a tint.
    thumbs : array of shape (n, THUMB, THUMB, 3), uint8
        Upright small copies.
    """

    values: NDArray[np.float32]
    tints: NDArray[np.float32]
    thumbs: NDArray[np.uint8]

    @classmethod
    def of_rows(cls, rows: NDArray[np.float32]) -> ImageFacts:
        """Take apart arrays that `measure_facts` returned, shape (n, LENGTH)."""
        scalars, tints, thumbs = np.split(rows, (len(SCALARS), len(SCALARS) + TINTS), axis=1)
        packed = thumbs.astype(np.uint32)
        pixels = np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], axis=-1)
        return cls(scalars, tints, pixels.astype(np.uint8).reshape(-1, THUMB, THUMB, 3))

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """Return one of `SCALARS`, shape (n,)."""
        return self.values[:, SCALARS.index(name)]

    def take(self, chosen: NDArray[np.intp]) -> ImageFacts:
        """Return the facts of some images."""
        return ImageFacts(self.values[chosen], self.tints[chosen], self.thumbs[chosen])

    def joined(self, other: ImageFacts) -> ImageFacts:
        """Return these facts, and those of other images after them."""
        return ImageFacts(
            *(
                np.concatenate([getattr(one, name) for one in (self, other)])
                for name in ("values", "tints", "thumbs")
            )
        )

    def kinds(self) -> list[str]:
        """Name of each image's file format, as Pillow has it; empty for an image without a file."""
        return [FORMATS[code] if 0 <= code < len(FORMATS) else "" for code in self["format"].astype(int)]


def expected_format(name: str) -> str:
    """Return the format that the extension of a file name stands for, or an empty text."""
    lower = name.lower()
    return next((kind for kind, known in EXTENSIONS.items() if lower.endswith(known)), "")


def measure_facts(
    picture: Picture, decoded: Mapping[DecodePolicy, NDArray[Any]] | None = None
) -> NDArray[np.float32]:
    """Measure the facts of an image. Pixels of more than 8 bits are scaled by their own range.

    Facts are kept by the image's digest, which does not tell the range of a set that the image is in.

    Parameters
    ----------
    picture : Picture
        As `read_picture` returns it.
    decoded : mapping of DecodePolicy to array, optional
        Pixels of the image that were decoded for another purpose. They are used where they are those that
        this function would decode.

    Returns
    -------
    array of shape (LENGTH,), float32
        `SCALARS`, the tint, and the pixels of the small copy, 24 bits in each number.

    Raises
    ------
    ImageError
        As `decode_picture`.
    """
    known = (pixels for policy, pixels in (decoded or {}).items() if _is_own(picture, policy, pixels))
    pixels = next(known, None)
    if pixels is None:
        pixels = decode_to_see(picture, _POLICY)
    header = _header(picture, pixels.shape)
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=1.0)
    thumb = np.asarray(image.resize((THUMB, THUMB), Image.Resampling.BOX), np.uint32)
    packed = thumb[..., 0] << 16 | thumb[..., 1] << 8 | thumb[..., 2]
    tint = _tint(np.asarray(image))
    return np.concatenate([header, _appearance(image), tint, packed.ravel()]).astype(np.float32)


def _is_own(picture: Picture, policy: DecodePolicy, pixels: NDArray[Any]) -> bool:
    """Whether pixels that a policy decoded are the same as by `_POLICY`, which shrinks large JPEG files."""
    if replace(policy, max_pixels=MAX_PIXELS, pixel_range=_POLICY.pixel_range) != _EXACT:
        return False
    if pixels.dtype != np.uint8 or policy.max_pixels > MAX_PIXELS:
        return False
    is_jpeg = isinstance(picture.data, bytes) and picture.data.startswith(JPEG_START)
    return not is_jpeg or min(pixels.shape[:2]) < 2 * SIDE


def _header(picture: Picture, shape: tuple[int, ...]) -> list[float]:
    if isinstance(picture.data, np.ndarray):
        return [
            shape[1],
            shape[0],
            1,
            1,
            picture.data.nbytes,
            -1,
            0 if picture.data.ndim == 3 else 1,
            0,
            0,
            0,
        ]
    try:
        image, kind = open_header(picture.data, _POLICY, picture.name)
        turn = orientation(image)
        size = image.size if turn < 5 else image.size[::-1]
        tables = getattr(image, "quantization", None) or {}
        mode = MODES.index(image.mode) if image.mode in MODES else len(MODES)
        return [
            *size, turn, getattr(image, "n_frames", 1), len(picture.data), FORMATS.index(kind), mode,
            "exif" in image.info, "icc_profile" in image.info, sum(sum(table) for table in tables.values()),
        ]  # fmt: skip
    except Exception as error:  # a damaged file makes decoders raise anything
        raise ImageError(picture.name, escape_name(reason_of(error))) from error


def _appearance(image: Image.Image) -> list[float]:
    grey = image.convert("L")
    share = np.array(grey.histogram()) / (grey.width * grey.height)
    mean = share @ _LEVELS
    some = share[share > 0]
    flat = np.asarray(grey, np.int16)
    edges = flat[:-2, 1:-1] + flat[2:, 1:-1] + flat[1:-1, :-2] + flat[1:-1, 2:] - 4 * flat[1:-1, 1:-1]
    values = [
        mean, math.sqrt(share @ (_LEVELS - mean) ** 2), share[:32].sum(), share[224:].sum(),
        -(some @ np.log2(some)), edges.std(dtype=np.float32) if edges.size else 0.0,
    ]  # fmt: skip
    channels = np.array(image.histogram()).reshape(3, 256) / (image.width * image.height)
    below = channels.cumsum(axis=1)
    low, high = ((below < limit).sum(axis=1) for limit in (0.01, 0.99))
    return [*values, *channels @ _LEVELS, *low, *high, *_border(np.asarray(image))]


def _tint(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Shares of the pixels by small differences and ratios of their channels."""
    red, green, blue = np.ascontiguousarray(pixels.reshape(-1, 3).T)
    dark = np.maximum(np.maximum(red, green), blue) <= RATIO_FROM
    n_bright = max(1, len(dark) - int(np.count_nonzero(dark)))
    found = []
    for one, other in ((red, green), (green, blue)):
        kind = _tint_kinds()[one.astype(np.uint16) << 8 | other]
        kind[dark] += TINT_KINDS
        counts = np.bincount(kind, minlength=2 * TINT_KINDS).reshape(2, -1, RATIO_BINS + 1)
        found += [counts.sum(axis=(0, 2)) / len(dark), counts[0, :, :RATIO_BINS].sum(axis=0) / n_bright]
    return np.concatenate(found)


@functools.cache
def _tint_kinds() -> NDArray[np.uint16]:
    """Of each pair of values of two channels, the bin of their difference and the bin of their ratio."""
    value = np.arange(256)
    steps = np.clip(value[:, None] - value, -GREY_STEPS, GREY_STEPS) + GREY_STEPS
    logs = np.log(np.arange(1, 257, dtype=np.float32))
    ratio = np.floor((logs[:, None] - logs + RATIO) * (RATIO_BINS / (2 * RATIO)))
    near = np.where((ratio >= 0) & (ratio < RATIO_BINS), ratio, RATIO_BINS)
    return np.asarray(steps * (RATIO_BINS + 1) + near, np.uint16).ravel()


def _border(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Mean of each channel in the border strip."""
    rows, columns = (max(1, round(BORDER * side)) for side in pixels.shape[:2])
    parts = (pixels[:rows], pixels[-rows:], pixels[:, :columns], pixels[:, -columns:])
    strip = np.concatenate([part.reshape(-1, 3) for part in parts]).astype(np.float32)
    return np.asarray(np.ones(len(strip), np.float32) @ strip / len(strip))
