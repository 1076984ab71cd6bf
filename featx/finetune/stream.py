"""Rows that are made when asked for: pictures decoded, freshly augmented, run through the frozen stem.

For what does not fit on the disk, and for networks that train as a whole. An epoch's number is the number
of the view, so the augmentation is the same code as the cached views', fresh each epoch and reproducible.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.state import LAUNCHES
from featx.backbones.transform import prepare
from featx.finetune.rows import Index
from featx.images import MAX_PIXELS, DecodePolicy, ImageSource, decode_picture, read_picture
from featx.spec import FeatureSpec

STEM_BATCH = 32
Stem = Callable[[NDArray[np.uint8]], NDArray[Any]]


class ImageRows:
    """Rows of images, computed at each reading.

    Parameters
    ----------
    sources : sequence of image sources
    spec : FeatureSpec
        How a picture is decoded and resized; its cut is the stem's.
    stem : callable, optional
        From a batch (n, H, W, 3), uint8, to rows; None leaves the pictures as they are, as (n, 3, H, W).
    shape : tuple of int
        Shape of one row.
    view_policy : str
        Augmentation of training epochs; ``"none"`` for none.
    n_jobs : int, optional
        Threads that decode.
    max_pixels : int
        Larger pictures are refused.
    """

    def __init__(
        self,
        sources: Sequence[ImageSource],
        spec: FeatureSpec,
        *,
        shape: tuple[int, ...],
        stem: Stem | None = None,
        view_policy: str = "none",
        n_jobs: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.shape = shape
        self.varies = view_policy != "none"
        self._sources, self._spec, self._stem, self._view_policy = sources, spec, stem, view_policy
        self._policy = DecodePolicy.of(spec, max_pixels)
        self._threads = n_jobs or os.cpu_count() or 1

    def __len__(self) -> int:
        return len(self._sources)

    def read(self, index: Index, *, epoch: int | None = None) -> NDArray[Any]:
        """See `RowSource.read`.

        Raises
        ------
        ImageError
            If a picture can no longer be read, or is larger than `max_pixels`.
        """
        spec = self._spec
        if epoch is not None and self.varies:
            spec = spec.replace(view=epoch + 1, view_policy=self._view_policy)
        with ThreadPoolExecutor(self._threads) as threads:
            pictures = np.stack(list(threads.map(lambda number: self._picture(int(number), spec), index)))
        if self._stem is None:
            return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
        starts = range(0, len(pictures), STEM_BATCH)
        return np.concatenate([self._stem(pictures[start : start + STEM_BATCH]) for start in starts])

    def _picture(self, number: int, spec: FeatureSpec) -> NDArray[np.uint8]:
        LAUNCHES.wait()
        picture = read_picture(self._sources[number])
        return prepare(decode_picture(picture, self._policy), spec, digest=picture.digest)
