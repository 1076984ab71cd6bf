"""torch's antialiased resize of uint8 images in NumPy, with the same bits.

A served model has no torch in its process: importing it takes seconds and 200 MB. The method is that of
torch's CPU kernel (`aten/src/ATen/native/cpu/UpSampleKernel.cpp`, `_compute_index_ranges_int16_weights`):
Pillow's two passes, first horizontally, with weights rounded to 16 bits and the result between the passes to
8. The sums are whole numbers below the limit of the float type, so that a matrix product gives them exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Weights = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]

MAX_BITS = 22
"""Largest number of fraction bits of a weight; fewer if the largest weight does not fit into 16 bits."""

BLOCK = 16
"""Output pixels of one matrix product: their inputs overlap."""

MAX_PRODUCT = 1 << 18
"""Multiplications of one matrix product: OpenBLAS runs a larger one on several threads."""

STRIP_PIXELS = 1 << 20
"""Input pixels that are held as floats at a time."""


def resize(
    pixels: Pixels, size: tuple[int, int], mode: str, kept: tuple[int, int, int, int] | None = None
) -> Pixels:
    """Resize as ``torch.nn.functional.interpolate(..., antialias=True)`` does.

    Parameters
    ----------
    pixels : array of shape (H, W, 3), uint8
    size : tuple of int
        Height and width.
    mode : {'bilinear', 'bicubic'}
    kept : tuple of int, optional
        Top, left, bottom and right of the part of the result that is returned; default all of it.

    Returns
    -------
    array of shape (bottom - top, right - left, 3), uint8
    """
    top, left, bottom, right = kept or (0, 0, *size)
    down = _Pass(pixels.shape[0], size[0], mode, top, bottom)
    across = _Pass(pixels.shape[1], size[1], mode, left, right)
    part = pixels[down.begin : down.end, across.begin : across.end].transpose(2, 0, 1)
    narrow = np.empty((part.shape[1], 3, right - left), down.dtype)
    step = max(1, STRIP_PIXELS // part.shape[2])
    for row in range(0, part.shape[1], step):
        strip = across(part[:, row : row + step].astype(across.dtype).swapaxes(1, 2)).swapaxes(1, 2)
        narrow[row : row + step] = strip.swapaxes(0, 1)
    small = down(narrow.reshape(1, len(narrow), -1)).reshape(bottom - top, 3, right - left)
    return np.ascontiguousarray(small.astype(np.uint8).swapaxes(1, 2))


class _Pass:
    """The resize of one axis, of `length` pixels to `size`, of which those from `start` to `stop` are kept.

    Attributes
    ----------
    begin, end : int
        The pixels of the input that are needed.
    dtype : type
        Float type that holds all sums exactly.
    """

    dtype: type[np.floating[Any]] = np.float32

    def __init__(self, length: int, size: int, mode: str, start: int, stop: int) -> None:
        self.size, self.begin, self.end = stop - start, start, stop
        self._matrices: Floats | None = None
        if length == size:
            return
        first, weights, self._bits = _weights(length, size, mode)
        first, weights = first[start:stop], weights[start:stop]
        n_taps = weights.shape[1]
        self.begin, self.end = int(first[0]), min(int(first[-1]) + n_taps, length)
        largest = 255 * int(np.abs(weights).sum(axis=1).max()) + (1 << self._bits)
        if largest >= 1 << 24:  # float32 has not all whole numbers from here
            self.dtype = np.float64
        block = np.arange(self.size) // BLOCK
        lows = first[::BLOCK]
        window = min(int((first - lows[block]).max()) + n_taps, self.end - self.begin)
        self._lows = np.minimum(lows, self.end - window) - self.begin
        place = (first - self.begin - self._lows[block])[:, None] + np.arange(n_taps)
        self._matrices = np.zeros((len(lows), BLOCK, window + n_taps), self.dtype)
        self._matrices[block[:, None], (np.arange(self.size) % BLOCK)[:, None], place] = weights
        self._matrices = self._matrices[:, :, :window]  # beyond are weights of 0

    def __call__(self, rows: Floats) -> Floats:
        """Resize axis 1 of an array of shape (n, end - begin, m); the result has whole numbers, 0 to 255."""
        if self._matrices is None:
            return rows
        n, _, m = rows.shape
        out = np.empty((n, m, self.size), self.dtype).swapaxes(1, 2)
        if rows.flags.c_contiguous:
            out = np.empty((n, self.size, m), self.dtype)
        window = self._matrices.shape[2]
        step = max(1, MAX_PRODUCT // (BLOCK * window))
        for number, (low, matrix) in enumerate(zip(self._lows.tolist(), self._matrices, strict=True)):
            own = out[:, number * BLOCK : (number + 1) * BLOCK]
            matrix = matrix[: own.shape[1]]
            for column in range(0, m, step):
                some = slice(column, column + step)
                np.matmul(matrix, rows[:, low : low + window, some], out=own[:, :, some])
        out += 1 << (self._bits - 1)  # rounds to nearest
        out *= 2.0**-self._bits
        np.floor(out, out)
        return np.clip(out, 0, 255, out)


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
