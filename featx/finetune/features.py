"""Features that the upper layers are trained on: from an array, from the store, or computed when read.

The training loop reads features of one shape by the number of the image, unchanged or as augmented for an
epoch. Features of a lower layer are large (400 kB an image for ResNet-50 at layer3). They are kept in memory
only if they fit the budget, else they are read in shuffled blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featx.stores.base import FeatureStore, Ids

Index = NDArray[np.intp]
RUN = 64
"""Neighbours that stay together when an epoch does not fit into memory: the store checks digests by 64."""
READ_IMAGES = 512
"""Images that are read from the store at a time when all are kept in memory."""
MEMORY = 1 << 30
"""Bytes of features that are kept in memory, by default."""


class FeatureSource(Protocol):
    """Features of one shape by the number of the image.

    Attributes
    ----------
    shape : tuple of int
        Shape for one image.
    varies : bool
        Whether augmentation changes the features each epoch.
    """

    shape: tuple[int, ...]
    varies: bool

    def __len__(self) -> int:
        """Number of images."""
        ...

    def read(self, index: Index, *, epoch: int | None = None) -> NDArray[Any]:
        """Features of shape (len(index), ...), unchanged, or augmented for an epoch."""
        ...


class ArrayFeatures:
    """Features in memory.

    Parameters
    ----------
    features : ndarray of shape (n, ...)
    """

    varies = False

    def __init__(self, features: NDArray[Any]) -> None:
        self._features = features
        self.shape: tuple[int, ...] = tuple(features.shape[1:])

    def __len__(self) -> int:
        return len(self._features)

    def read(self, index: Index, *, epoch: int | None = None) -> NDArray[Any]:
        """See `FeatureSource.read`."""
        return np.asarray(self._features[index])


class StoredFeatures:
    """Features of the store. They are kept in memory after the first read if they fit the budget.

    Parameters
    ----------
    store : FeatureStore
    keys : sequence of str
        Keys of the specs: of the plain images first, then of each augmented view.
    ids : ndarray of shape (n, 32), uint8
        Digests of the images.
    memory : int
        Bytes that may be kept in memory.
    seed : int
        Seed of the view of each image and epoch.
    """

    def __init__(
        self, store: FeatureStore, keys: Sequence[str], ids: Ids, *, memory: int = MEMORY, seed: int = 0
    ) -> None:
        shape = store.row_shape(keys[0])
        if shape is None:
            raise KeyError(f"the store has no features with the key {keys[0]}.")
        self.shape = shape
        self.varies = len(keys) > 1
        self._store, self._keys, self._ids, self._seed = store, tuple(keys), ids, seed
        self._dtype = np.dtype(store.keys()[keys[0]].dtype)
        self._fits = len(keys) * len(ids) * feature_bytes(shape, self._dtype.itemsize) <= memory
        self._in_memory: dict[int, NDArray[Any]] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, index: Index, *, epoch: int | None = None) -> NDArray[Any]:
        """See `FeatureSource.read`."""
        if epoch is None or not self.varies:
            return self._read_view(0, index)
        views = views_of_epoch(len(self), len(self._keys) - 1, self._seed, epoch)[index]
        rows = np.empty((len(index), *self.shape), np.float32)
        for view in np.unique(views):
            rows[views == view] = self._read_view(int(view), index[views == view])
        return rows

    def _read_view(self, view: int, index: Index) -> NDArray[Any]:
        if not self._fits:
            return self._store.read(self._keys[view], self._ids[index])
        if view not in self._in_memory:
            loaded = np.empty((len(self), *self.shape), self._dtype)
            for start in range(0, len(self), READ_IMAGES):
                part = slice(start, start + READ_IMAGES)
                rows = self._store.read(self._keys[view], self._ids[part])
                if not np.abs(rows).max() <= np.finfo(loaded.dtype).max:
                    loaded = loaded.astype(np.float32)  # the store has float32 where float16 overflows
                loaded[part] = rows
            self._in_memory[view] = loaded
        return self._in_memory[view][index]


def views_of_epoch(n: int, views: int, seed: int, epoch: int) -> Index:
    """View of each of n images in an epoch, 0 (plain) to `views`, drawn uniformly."""
    return np.random.default_rng((seed, 1, epoch)).integers(0, views + 1, n)


def feature_bytes(shape: Sequence[int], itemsize: int = 2) -> int:
    """Bytes of the features of one image (float16 by default)."""
    return int(np.prod(shape, dtype=np.int64)) * itemsize


def batches(
    source: FeatureSource,
    index: Index,
    batch_size: int,
    *,
    epoch: int | None = None,
    seed: int = 0,
    memory: int = MEMORY,
) -> Iterator[tuple[Index, NDArray[Any]]]:
    """Yield batches of (numbers, features), shuffled if `epoch` is given.

    Images are read in windows of a quarter of the memory (as float32), the next one in the background.
    Images that fit into one window are fully shuffled. Otherwise runs of neighbours are distributed over the
    windows at random and shuffled within a window, so that the disk is read in runs.
    """
    window_size = max(batch_size, memory // 4 // feature_bytes(source.shape, 4))
    if epoch is not None:
        index = shuffled(index, window_size, np.random.default_rng((seed, 0, epoch)))
    windows = np.array_split(
        index, -(-len(index) // window_size)
    )  # of equal length: no batch of a single image

    def read(window: Index) -> NDArray[Any]:
        return source.read(window, epoch=epoch)

    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, windows[0])
        for number, window in enumerate(windows):
            values = ahead.result()
            if number + 1 < len(windows):
                ahead = reader.submit(read, windows[number + 1])
            for part in np.array_split(np.arange(len(window)), -(-len(window) // batch_size)):
                yield window[part], values[part]


def shuffled(index: Index, window_size: int, rng: np.random.Generator) -> Index:
    """Shuffle as far as a window of memory allows (see `batches`)."""
    if len(index) <= window_size:
        return rng.permutation(index)
    runs = [index[start : start + RUN] for start in range(0, len(index), RUN)]
    mixed = np.concatenate([runs[run] for run in rng.permutation(len(runs))])
    return np.concatenate(
        [rng.permutation(mixed[start : start + window_size]) for start in range(0, len(mixed), window_size)]
    )
