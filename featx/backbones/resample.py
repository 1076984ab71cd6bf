"""torch's antialiased resize of uint8 images in NumPy, with the same bits.

Importing torch takes longer than resizing a few images without it, and `featx predict` often gets a single
image. The method is that of torch's CPU kernel (`aten/src/ATen/native/cpu/UpSampleKernel.cpp`,
`_compute_index_ranges_int16_weights`): Pillow's two passes, first horizontally, with weights rounded to 16
bits and the result between the passes to 8. About 15 times slower than torch's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Weights = NDArray[np.float64]

MAX_BITS = 22
"""Largest number of fraction bits of a weight; fewer if the largest weight does not fit into 16 bits."""


def resize(pixels: Pixels, size: tuple[int, int], mode: str) -> Pixels:
    """Resize as ``torch.nn.functional.interpolate(..., antialias=True)`` does.

    Parameters
    ----------
    pixels : array of shape (H, W, 3), uint8
    size : tuple of int
        Height and width.
    mode : {'bilinear', 'bicubic'}

    Returns
    -------
    array of shape (height, width, 3), uint8
    """
    height, width = size
    narrow = _along_first(pixels.swapaxes(0, 1), width, mode).swapaxes(0, 1)
    return _along_first(narrow, height, mode)


def _along_first(pixels: Pixels, size: int, mode: str) -> Pixels:
    length = len(pixels)
    if length == size:
        return pixels
    first, weights, bits = _weights(length, size, mode)
    total = np.full((size, *pixels.shape[1:]), 1 << (bits - 1), np.int32)  # rounds to nearest
    for tap in range(weights.shape[1]):
        total += weights[:, tap, None, None] * pixels[np.minimum(first + tap, length - 1)]
    resized: Pixels = np.clip(total >> bits, 0, 255).astype(np.uint8)
    return resized


def _weights(length: int, size: int, mode: str) -> tuple[NDArray[np.int64], NDArray[np.int32], int]:
    """First input pixel of each output pixel, (size,); the weights from there, (size, taps); their bits."""
    kernel, reach = KERNELS[mode]
    scale = length / size
    stretch = max(scale, 1.0)
    support = reach * stretch
    taps = np.arange(2 * math.ceil(support) + 1)
    centre = scale * (np.arange(size) + 0.5)
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    count = np.minimum((centre + support + 0.5).astype(np.int64), length) - first
    weights = kernel(np.abs((taps + first[:, None] - centre[:, None] + 0.5) * (1 / stretch)))
    weights[taps >= count[:, None]] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    largest = float(weights.max())
    bits = next(
        (bits for bits in range(MAX_BITS) if int(0.5 + largest * (1 << (bits + 1))) >= 1 << 15), MAX_BITS
    )
    scaled = weights * (1 << bits)
    return first, np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32), bits


def _triangle(x: Weights) -> Weights:
    return np.maximum(1 - x, 0)


def _cubic(x: Weights) -> Weights:
    """Keys' kernel with a = -0.5, as Pillow's and torch's antialiased bicubic."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((x - 5) * x + 8) * x * -0.5 + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


KERNELS: dict[str, tuple[Callable[[Weights], Weights], int]] = {
    "bilinear": (_triangle, 1),
    "bicubic": (_cubic, 2),
}
"""The kernel of each mode as a function of distance, and its reach, in pixels of the smaller image."""
