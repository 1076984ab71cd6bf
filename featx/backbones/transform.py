"""From a decoded picture to the network's input, on timm's own grid, in uint8.

A crop that is half a pixel off costs more than bfloat16 does, so sizes and offsets are those of timm's
evaluation transform (torchvision's Resize and CenterCrop) to the pixel. The resize is torch's antialiased
one on channels-last uint8, which is several times faster than Pillow's and within a grey level of it. It
releases the GIL and runs on the calling thread alone; where torch is not loaded, the first few pictures are
resized without it, to the same bits. Normalisation is the stem's.
"""

from __future__ import annotations

import math
import sys

import numpy as np
from numpy.typing import NDArray

from featx.backbones.resample import resize
from featx.exceptions import UsageError
from featx.spec import FeatureSpec

Picture = NDArray[np.uint8]
"""RGB, shape (H, W, 3)."""

TORCH_MODES = ("bilinear", "bicubic")
"""Antialiased resizes that torch has for uint8; Pillow does the others."""

PILLOW_MODES = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")

PIXELS_WITHOUT_TORCH = 6_000_000
"""So many are resized in the time that importing torch takes (0.07 s for a million, 2 cores of an EPYC)."""

WASTE_LIMIT = 16
"""A resize that makes this many times the pixels that are kept is restricted to those (by Pillow): a line of
1×5,000 pixels would grow to 256×1,280,000 on the way to its crop."""


def prepare(picture: Picture, spec: FeatureSpec, *, digest: bytes | None = None) -> Picture:
    """Resize and crop (or pad) a picture as its spec says.

    Parameters
    ----------
    picture : array of shape (H, W, 3), uint8
        Upright, RGB.
    spec : FeatureSpec
        ``crop``: the shorter side to ``floor(size / crop_pct)``, then the centre. ``squash``: both sides to
        ``floor(size / crop_pct)``, then the centre (the whole picture where ``crop_pct`` is 1). ``pad``: the
        longer side likewise, then bars in `spec.background` (or the centre).
    digest : bytes, optional
        The picture's sha256, which seeds its views; needed where ``spec.view`` is not 0.

    Returns
    -------
    array of shape (h, w, 3), uint8, contiguous
        Of `spec.input_size`.

    Raises
    ------
    UsageError
        If the spec names an interpolation that there is not, or a view without a digest.
    """
    if spec.view == 0:
        return _fit(picture, spec)
    if digest is None:
        raise UsageError(f"view {spec.view} of a picture is drawn by its digest; none was given.")
    from featx.backbones.views import draw_view

    view = draw_view(spec.view_policy, spec.view, digest)
    return view.finish(_fit(view.crop(picture), spec), spec.background)


def _fit(picture: Picture, spec: FeatureSpec) -> Picture:
    """The plain picture on the network's grid."""
    height, width = spec.input_size
    size = _resized(picture.shape[:2], spec)
    top, left = _centre(size[0], height), _centre(size[1], width)
    kept = (max(top, 0), max(left, 0), min(top + height, size[0]), min(left + width, size[1]))
    resized = _resize(picture, size, kept, spec.interpolation)
    if resized.shape[:2] == (height, width):
        return resized
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = spec.background if spec.resize == "pad" else 0  # torchvision's crop pads with black
    y, x = max(-top, 0), max(-left, 0)
    canvas[y : y + resized.shape[0], x : x + resized.shape[1]] = resized
    return canvas


def _resized(shape: tuple[int, ...], spec: FeatureSpec) -> tuple[int, int]:
    """Height and width of the resized picture before the crop."""
    target = [math.floor(side / spec.crop_pct) for side in spec.input_size]
    if spec.resize == "squash":
        return target[0], target[1]
    if spec.resize == "crop" and target[0] == target[1]:  # torchvision.transforms.Resize(int)
        height, width = shape
        if height <= width:
            return target[0], max(int(target[0] * width / height), 1)
        return max(int(target[0] * height / width), 1), target[0]
    ratios = [side / goal for side, goal in zip(shape, target, strict=True)]  # timm's ResizeKeepRatio
    ratio = max(ratios) if spec.resize == "pad" else min(ratios)
    return max(round(shape[0] / ratio), 1), max(round(shape[1] / ratio), 1)


def _centre(size: int, wanted: int) -> int:
    """First pixel of the centre crop, rounded as torchvision does; negative where pixels are wanting."""
    if size >= wanted:
        return round((size - wanted) / 2.0)
    return -((wanted - size) // 2)


def _resize(
    picture: Picture, size: tuple[int, int], kept: tuple[int, int, int, int], interpolation: str
) -> Picture:
    """The part `kept` (top, left, bottom, right) of the picture resized to `size`."""
    if interpolation not in PILLOW_MODES:
        raise UsageError(f"interpolation {interpolation!r} is not one of {', '.join(PILLOW_MODES)}.")
    top, left, bottom, right = kept
    if size[0] * size[1] > WASTE_LIMIT * (bottom - top) * (right - left):
        return _resize_part(picture, size, kept, interpolation)
    if picture.shape[:2] == size:
        resized = picture
    elif interpolation in TORCH_MODES:
        by_torch = "torch" in sys.modules or _is_worth_torch(picture)
        resized = (_resize_by_torch if by_torch else resize)(picture, size, interpolation)
    else:
        resized = _resize_by_pillow(picture, size, interpolation)
    return np.ascontiguousarray(resized[top:bottom, left:right])


_without_torch = 0


def _is_worth_torch(picture: Picture) -> bool:
    """Whether importing torch takes less time than what was resized without it, this picture included."""
    global _without_torch
    _without_torch += int(picture.shape[0]) * int(picture.shape[1])
    return _without_torch > PIXELS_WITHOUT_TORCH


def _resize_by_torch(picture: Picture, size: tuple[int, int], interpolation: str) -> Picture:
    import torch
    from torch.nn.functional import interpolate

    pixels = np.require(picture, requirements=["C", "W"])  # torch refuses read-only arrays
    batch = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)  # a view, channels last
    with torch.inference_mode():
        resized = interpolate(batch, size=size, mode=interpolation, antialias=True)
    result: Picture = resized[0].permute(1, 2, 0).numpy()
    return result


def _resize_by_pillow(
    picture: Picture,
    size: tuple[int, int],
    interpolation: str,
    box: tuple[float, float, float, float] | None = None,
) -> Picture:
    from PIL import Image

    filter_ = Image.Resampling[interpolation.upper()]
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), filter_, box=box))


def _resize_part(
    picture: Picture, size: tuple[int, int], kept: tuple[int, int, int, int], interpolation: str
) -> Picture:
    """The same grid, but only its kept pixels, from the part of the picture that lies under them."""
    top, left, bottom, right = kept
    height, width = picture.shape[:2]
    step_y, step_x = height / size[0], width / size[1]
    box = (left * step_x, top * step_y, min(right * step_x, width), min(bottom * step_y, height))
    return _resize_by_pillow(picture, (bottom - top, right - left), interpolation, box)
