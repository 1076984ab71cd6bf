"""From a decoded image to the network's input, with timm's geometry, in uint8.

Images of more than 8 bits are resized as floats, and rounded to the 8 bits of the input at the end.

A crop that is half a pixel off costs more accuracy than bfloat16 does. So sizes and offsets are exactly those
of timm's evaluation transform (torchvision's Resize and CenterCrop). The resize is torch's antialiased one on
channels-last uint8, which is several times faster than Pillow's and differs by at most one grey level. It
releases the GIL and runs on the calling thread only. If torch is not loaded, NumPy gives the same bits, about
as fast as Pillow. The stem normalises.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.resample import resize
from featx.exceptions import UsageError
from featx.spec import FeatureSpec

Pixels = NDArray[Any]
"""RGB, shape (H, W, 3), uint8; or float32 from 0 to 255."""

TORCH_MODES = ("bilinear", "bicubic")
"""Antialiased resizes that torch has for uint8; Pillow does the others."""

PILLOW_MODES = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")

MAX_RESIZED_RATIO = 16
"""If a resize makes more than this many times the pixels that the crop keeps, Pillow computes only the kept
ones: an image of 1×5,000 pixels would grow to 256×1,280,000 before its crop."""


def prepare(pixels: Pixels, spec: FeatureSpec, *, digest: bytes | None = None) -> Pixels:
    """Resize and crop (or pad) an image as its spec says.

    Parameters
    ----------
    pixels : array of shape (H, W, 3), uint8, or float32 from 0 to 255
        Upright, RGB.
    spec : FeatureSpec
        ``crop``: the shorter side to ``floor(size / crop_pct)``, then the centre. ``squash``: both sides to
        ``floor(size / crop_pct)``, then the centre (the whole image if ``crop_pct`` is 1). ``pad``: the
        longer side likewise, then bars of `spec.background` (or the centre).
    digest : bytes, optional
        The sha256 of the image, which seeds its views; needed if ``spec.view`` is not 0.

    Returns
    -------
    array of shape (h, w, 3), uint8, contiguous
        Of `spec.input_size`.

    Raises
    ------
    UsageError
        If the interpolation of the spec is not known, or a view is requested without a digest.
    """
    if spec.view == 0:
        return _fit(pixels, spec)
    if digest is None:
        raise UsageError(f"view {spec.view} of an image needs the digest of the image; give `digest`.")
    from featx.backbones.views import draw_view

    view = draw_view(spec.view_policy, spec.view, digest)
    return view.finish(_fit(view.crop(pixels), spec), spec.background)


def _fit(pixels: Pixels, spec: FeatureSpec) -> Pixels:
    """Resize and crop to the network's input size, without a view."""
    height, width = spec.input_size
    size = _resized(pixels.shape[:2], spec)
    top, left = _centre(size[0], height), _centre(size[1], width)
    kept = (max(top, 0), max(left, 0), min(top + height, size[0]), min(left + width, size[1]))
    resized = _resize(pixels, size, kept, spec.interpolation)
    if resized.dtype != np.uint8:
        resized = np.rint(resized).clip(0, 255).astype(np.uint8)
    if resized.shape[:2] == (height, width):
        return resized
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = spec.background if spec.resize == "pad" else 0  # torchvision's crop pads with black
    y, x = max(-top, 0), max(-left, 0)
    canvas[y : y + resized.shape[0], x : x + resized.shape[1]] = resized
    return canvas


def _resized(shape: tuple[int, ...], spec: FeatureSpec) -> tuple[int, int]:
    """Height and width after the resize, before the crop."""
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


def _centre(size: int, target: int) -> int:
    """First pixel of the centre crop, rounded as torchvision does; negative if the image is too small."""
    if size >= target:
        return round((size - target) / 2.0)
    return -((target - size) // 2)


def _resize(
    pixels: Pixels, size: tuple[int, int], kept: tuple[int, int, int, int], interpolation: str
) -> Pixels:
    """The part `kept` (top, left, bottom, right) of the image resized to `size`."""
    if interpolation not in PILLOW_MODES:
        raise UsageError(f"interpolation {interpolation!r} is not one of {', '.join(PILLOW_MODES)}.")
    top, left, bottom, right = kept
    if size[0] * size[1] > MAX_RESIZED_RATIO * (bottom - top) * (right - left):
        return _resize_part(pixels, size, kept, interpolation)
    if pixels.shape[:2] == size:
        resized = pixels
    elif interpolation in TORCH_MODES:
        if pixels.dtype == np.uint8 and "torch" not in sys.modules:
            return resize(pixels, size, interpolation, kept)
        resized = _resize_by_torch(pixels, size, interpolation)
    else:
        resized = _resize_by_pillow(pixels, size, interpolation)
    return np.ascontiguousarray(resized[top:bottom, left:right])


def _resize_by_torch(pixels: Pixels, size: tuple[int, int], interpolation: str) -> Pixels:
    import torch
    from torch.nn.functional import interpolate

    writable = np.require(pixels, requirements=["C", "W"])  # torch refuses read-only arrays
    batch = torch.from_numpy(writable).permute(2, 0, 1).unsqueeze(0)  # a view, channels last
    with torch.inference_mode():
        resized = interpolate(batch, size=size, mode=interpolation, antialias=True)
    result: Pixels = resized[0].permute(1, 2, 0).numpy()
    return result


def _resize_by_pillow(
    pixels: Pixels,
    size: tuple[int, int],
    interpolation: str,
    box: tuple[float, float, float, float] | None = None,
) -> Pixels:
    from PIL import Image

    filter_ = Image.Resampling[interpolation.upper()]
    parts = [pixels] if pixels.dtype == np.uint8 else np.moveaxis(pixels, 2, 0)  # floats: one band at a time
    resized = [Image.fromarray(part).resize((size[1], size[0]), filter_, box=box) for part in parts]
    return np.asarray(resized[0]) if len(resized) == 1 else np.dstack([np.asarray(one) for one in resized])


def _resize_part(
    pixels: Pixels, size: tuple[int, int], kept: tuple[int, int, int, int], interpolation: str
) -> Pixels:
    """Compute only the kept pixels of the same resize, from the part of the image under them."""
    top, left, bottom, right = kept
    height, width = pixels.shape[:2]
    step_y, step_x = height / size[0], width / size[1]
    box = (left * step_x, top * step_y, min(right * step_x, width), min(bottom * step_y, height))
    return _resize_by_pillow(pixels, (bottom - top, right - left), interpolation, box)
