"""Features that are computed when they are read: images are decoded, augmented and run through frozen layers.

This is for features that do not fit on the disk, and for networks that are trained as a whole. The number of
the epoch is the number of the augmented view, so the augmentation is the same code as for stored views,
different in each epoch and reproducible.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.state import LAUNCHES
from featx.backbones.transform import prepare
from featx.finetune.features import Index
from featx.images import MAX_PIXELS, DecodePolicy, ImageSource, Picture, decode_picture, read_picture
from featx.images.pixels import Warn, ignore_remark
from featx.images.sandbox import Sandboxes
from featx.spec import FeatureSpec
from featx.threads import n_threads

if TYPE_CHECKING:
    from featx.backbones.network import Backbone

STEM_BATCH = 32
"""Images that run through the frozen layers at a time."""


class StemFunction:
    """The frozen layers below a cut: from uint8 images (n, H, W, 3) to features, in torch.

    Parameters
    ----------
    backbone : Backbone
    spec : FeatureSpec
        Its cut is the upper end of the layers.
    """

    def __init__(self, backbone: Backbone, spec: FeatureSpec) -> None:
        self._stem = backbone.stem([spec])
        self.shape: tuple[int, ...] = self._stem.shapes[0]

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features of one batch."""
        import torch

        device = next(self._stem.parameters()).device
        with torch.inference_mode():
            features = self._stem(torch.from_numpy(images).to(device))[0]
            return np.asarray(features.float().cpu().numpy())


class StreamedFeatures:
    """Features of images, computed at each read.

    Parameters
    ----------
    sources : sequence of image sources
    spec : FeatureSpec
        How an image is decoded and resized.
    stem : StemFunction, optional
        The frozen layers; without them the images are returned as (n, 3, H, W).
    view_policy : str, default "none"
        Augmentation of training epochs; ``"none"`` for none.
    max_pixels : int, optional
        Larger images are refused.
    isolate : bool, default False
        Decode in other processes.
    """

    def __init__(
        self,
        sources: Sequence[ImageSource],
        spec: FeatureSpec,
        *,
        stem: StemFunction | None = None,
        view_policy: str = "none",
        max_pixels: int = MAX_PIXELS,
        isolate: bool = False,
    ) -> None:
        self.shape: tuple[int, ...] = (3, *spec.input_size) if stem is None else stem.shape
        self.varies = view_policy != "none"
        self._sources, self._spec, self._stem, self._view_policy = sources, spec, stem, view_policy
        self._work: _Prepare | Sandboxes = _Prepare(DecodePolicy.of(spec, max_pixels))
        if isolate:
            self._work = Sandboxes(self._work, spec, max_pixels, n_threads())
            weakref.finalize(self, self._work.close)

    def __len__(self) -> int:
        return len(self._sources)

    def read(self, index: Index, *, epoch: int | None = None) -> NDArray[Any]:
        """See `FeatureSource.read`.

        Raises
        ------
        ImageError
            If an image can no longer be read, or is larger than `max_pixels`.
        """
        spec = self._spec
        if epoch is not None and self.varies:
            spec = spec.replace(view=epoch + 1, view_policy=self._view_policy)
        with ThreadPoolExecutor(n_threads()) as threads:
            images = np.stack(list(threads.map(lambda number: self._picture(int(number), spec), index)))
        if self._stem is None:
            return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        starts = range(0, len(images), STEM_BATCH)
        return np.concatenate([self._stem(images[start : start + STEM_BATCH]) for start in starts])

    def _picture(self, number: int, spec: FeatureSpec) -> NDArray[np.uint8]:
        LAUNCHES.wait()
        return self._work(read_picture(self._sources[number]), spec, ignore_remark)[0]


@dataclass(frozen=True)
class _Prepare:
    policy: DecodePolicy

    def __call__(self, picture: Picture, spec: FeatureSpec, warn: Warn) -> list[NDArray[np.uint8]]:
        pixels = decode_picture(picture, self.policy, keep_depth=True)
        return [prepare(pixels, spec, digest=picture.digest)]
