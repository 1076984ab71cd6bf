"""The values of black and white in images of more than 8 bits ("deep"), chosen from a sample of a set."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featx.exceptions import ImageError, ImageWarning
from featx.images.decode import decode_picture, deep_pixels
from featx.images.deep import START, is_deep_start
from featx.images.locate import spread
from featx.images.picture import ImageSource, Picture, read_picture, read_start
from featx.images.pixels import Warn, ignore_remark
from featx.images.policy import DecodePolicy
from featx.images.sandbox import Sandboxes
from featx.remote import RemotePath
from featx.spec import parse_range

HEADERS = 512
"""Files of a set whose first bytes are looked at."""

SAMPLE = 48
"""Deep images of a set whose pixels are looked at."""

PIXELS = 4096
"""Pixels of each of them."""

USUAL = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)
"""Values of white that cameras and programs use."""

TAILS = (0.1, 99.9)
"""Percentiles of the sample that become black and white."""

NO_DATA = (-9999.0, -99999.0, -32768.0, 32767.0, 65535.0)
"""Values that programs write where there is no data. They are not looked at where they lie far from all
others, and neither are numbers from `HUGE` on."""

HUGE = 1e20
"""As the fill values of netCDF, and the smallest and largest float."""

DARK = 1 / 15
"""Share of the range below which all values of an image are too dark: 12 bits in 16 bits, 8 in 12."""

DARK_IMAGES = 0.05
"""Share of the sample from which so dark images are another kind, and no single dark ones."""

DEEP_EXTENSIONS = (".png", ".tif", ".tiff", ".pgm", ".ppm", ".pnm", ".pfm", ".jp2", ".j2k", ".jxl", ".apng")
"""Endings of files that may have more than 8 bits; a file without ending may, too."""


def choose_range(sources: Sequence[ImageSource], policy: DecodePolicy, *, isolate: bool = False) -> str:
    """Choose the range of a set: ``"full"`` if it has no deep images, else ``"low,high"``.

    Black is 0, or the smallest value if that is negative or more than a tenth of the largest. White is the
    largest value. Both are percentiles of the sample, made round, so that a set that grows keeps its range:
    to the next of `USUAL` where black is 0, else to two digits. Sets of integers and floats have the range
    ``full``. Values that stand for no data are not looked at.

    Parameters
    ----------
    sources : sequence of image sources
        The set.
    policy : DecodePolicy
        How images are decoded; its range is not used.
    isolate : bool
        Decode in another process.

    Warns
    -----
    ImageWarning
        Some images use so little of the range that they become nearly black.
    """
    if not isolate:
        return _choose(sources, policy, sample_values)
    with Sandboxes(sample_values, policy, policy.max_pixels) as sandboxes:
        return _choose(sources, policy, sandboxes)


def sample_values(picture: Picture, policy: DecodePolicy, warn: Warn) -> list[NDArray[Any]]:
    """Some values of an image of more than 8 bits, and whether they are floats; empty for other images.

    Raises
    ------
    ImageError
        If it cannot be decoded.
    """
    pixels = deep_pixels(picture, policy)
    if pixels is None:
        return []
    flat = pixels.reshape(-1)
    return [
        flat[:: max(1, len(flat) // PIXELS)].astype(np.float64),
        np.array([pixels.dtype.kind == "f"], np.uint8),
    ]


def own_range(picture: Picture, policy: DecodePolicy) -> str:
    """Choose the range of one image, as `choose_range` does of a set.

    Raises
    ------
    ImageError
        If it has more than 8 bits and cannot be decoded.
    """
    data = picture.data
    if isinstance(data, np.ndarray) and data.dtype.itemsize == 1:
        return "full"
    if isinstance(data, bytes) and not is_deep_start(data[:START]):
        return "full"
    found = sample_values(picture, policy, ignore_remark)
    return _round_range(found[0]) if found else "full"


def decode_to_see(picture: Picture, policy: DecodePolicy) -> NDArray[np.uint8]:
    """Decode an image that people look at; one of more than 8 bits by its own range.

    Raises
    ------
    ImageError
        If it cannot be decoded.
    """
    return decode_picture(picture, replace(policy, pixel_range=own_range(picture, policy)))


def _choose(
    sources: Sequence[ImageSource],
    policy: DecodePolicy,
    sample: Callable[[Picture, DecodePolicy, Warn], list[NDArray[Any]]],
) -> str:
    likely = [sources[index] for index in spread(len(sources), HEADERS) if _may_be_deep(sources[index])]
    values, kinds = [], set()
    for index in spread(len(likely), SAMPLE):
        try:
            found = sample(read_picture(likely[index]), policy, ignore_remark)
        except ImageError:
            continue
        if found:
            values.append(found[0])
            kinds.add(bool(found[1][0]))
    if len(kinds) != 1:  # floats beside integers: each by its type
        return "full"
    chosen = _round_range(np.concatenate(values))
    if chosen != "full":
        _warn_of_dark(chosen, values)
    return chosen


def _warn_of_dark(found: str, values: Sequence[NDArray[Any]]) -> None:
    """Warn if some images of a sample become nearly black, and others do not."""
    low, high = parse_range(found)
    varied = [known for one in values if len(known := _known(one)) and known.max() > known.min()]
    tops = np.array([np.percentile(one, TAILS[1]) for one in varied])
    dark = tops - low < DARK * (high - low)
    if dark.sum() > max(1, DARK_IMAGES * len(tops)):
        warnings.warn(
            f"{int(dark.sum())} of {len(tops)} images of more than 8 bits in a sample become nearly black "
            f"where {low:g} is black and {high:g} is white: they have fewer bits or another scale. "
            "Convert them to one scale, or let each image have its own (--range minmax).",
            ImageWarning,
            stacklevel=3,
        )


def _known(values: NDArray[Any]) -> NDArray[Any]:
    """The values without those that stand for no data."""
    values = values[np.isfinite(values) & (np.abs(values) < HUGE)]
    for value in NO_DATA:
        rest = values[values != value]
        if len(rest) < len(values) and len(rest):
            low, high = float(rest.min()), float(rest.max())
            spread = high - low
            values = rest if value < low - spread or value > high + spread else values
    return values


def _may_be_deep(source: ImageSource) -> bool:
    if isinstance(source, np.ndarray):
        return source.dtype.kind in "uif" and source.dtype.itemsize > 1
    if isinstance(source, Image.Image):
        return source.mode in ("I", "F") or source.mode.startswith("I;")
    if isinstance(source, bytes | bytearray | memoryview):
        return is_deep_start(bytes(source[:START]))
    path = os.fsdecode(source)
    extension = os.path.splitext(path)[1].lower()
    if extension and extension not in DEEP_EXTENSIONS:
        return False
    if isinstance(source, RemotePath):
        return True  # the few that are sampled are read anyway
    return is_deep_start(read_start(path, START))


def _round_range(values: NDArray[Any]) -> str:
    values = _known(values)
    if not len(values):
        return "full"
    low, high = (float(value) for value in np.percentile(values, TAILS))
    low, high = (min(low, high), max(low, high))
    if 0 <= low <= 0.1 * high:
        low = 0.0
    if low == 0.0:
        near = next((top for top in USUAL if 0.25 * top < high <= top), None)
        if near is not None:
            return f"0,{near:g}"
    digit = 10.0 ** (math.floor(math.log10(high - low)) - 1) if high > low else 1.0
    low, high = math.floor(low / digit) * digit, math.ceil(high / digit) * digit
    return f"{low:.9g},{high if high > low else low + digit:.9g}"
