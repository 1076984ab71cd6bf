"""Where the rows of an epoch come from: an array, the store, or images that stream.

The training loop sees one face: so many rows of one shape, read by number, plain or as an epoch's
augmented version. Rows below a cut are large (400 kB each for ResNet-50 at layer3), so they are held in
memory only where they fit the budget, and are read in shuffled blocks otherwise.
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
"""Rows that stay neighbours when an epoch does not fit the memory: the store checks digests by 64."""
READ_ROWS = 512
"""Rows asked of the store at a time when all are to be held."""
MEMORY = 1 << 30
"""Bytes of rows held at once, by default."""


class RowSource(Protocol):
    """Rows of one shape, by number. `varies`: whether training sees other rows each epoch."""

    shape: tuple[int, ...]
    varies: bool

    def __len__(self) -> int:
        """Number of images."""
        ...

    def read(self, index: Index, *, epoch: int | None = None) -> NDArray[Any]:
        """Rows of shape (len(index), ...): plain, or as the training of an epoch sees them."""
        ...


class ArrayRows:
    """Rows in memory.

    Parameters
    ----------
    rows : ndarray of shape (n, ...) or (1 + views, n, ...)
        Rows; with `views`, the plain ones first.
    views : int
        Augmented versions of each row that `rows` holds besides the plain one.
    seed : int
        Decides which view of a row an epoch sees.
    """

    def __init__(self, rows: NDArray[Any], *, views: int = 0, seed: int = 0) -> None:
        self._rows = rows if views else rows[None]
        self.shape: tuple[int, ...] = tuple(self._rows.shape[2:])
        self.varies = views > 0
        self._views = views
        self._seed = seed

    def __len__(self) -> int:
        return int(self._rows.shape[1])

    def read(self, index: Index, *, epoch: int | None = None) -> NDArray[Any]:
        """See `RowSource.read`."""
        if epoch is None or not self._views:
            return np.asarray(self._rows[0, index])
        views = views_of_epoch(len(self), self._views, self._seed, epoch)[index]
        return np.asarray(self._rows[views, index])


class StoredRows:
    """Rows that the store keeps, read when needed; held from the first read on if they fit the budget.

    Parameters
    ----------
    store : FeatureStore
        Where they are.
    keys : sequence of str
        The spaces: the plain picture's first, then one for each augmented view.
    ids : ndarray of shape (n, 32), uint8
        The images.
    memory : int
        Bytes that may be held.
    seed : int
        Decides which view of a row an epoch sees.
    """

    def __init__(
        self, store: FeatureStore, keys: Sequence[str], ids: Ids, *, memory: int = MEMORY, seed: int = 0
    ) -> None:
        shape = store.row_shape(keys[0])
        if shape is None:
            raise KeyError(f"the store has no rows in the space {keys[0]}.")
        self.shape = shape
        self.varies = len(keys) > 1
        self._store, self._keys, self._ids, self._seed = store, tuple(keys), ids, seed
        self._dtype = np.dtype(store.keys()[keys[0]].dtype)
        self._fits = len(keys) * len(ids) * row_bytes(shape, self._dtype.itemsize) <= memory
        self._held: dict[int, NDArray[Any]] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, index: Index, *, epoch: int | None = None) -> NDArray[Any]:
        """See `RowSource.read`."""
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
        if view not in self._held:
            held = np.empty((len(self), *self.shape), self._dtype)
            for start in range(0, len(self), READ_ROWS):
                part = slice(start, start + READ_ROWS)
                rows = self._store.read(self._keys[view], self._ids[part])
                if not np.abs(rows).max() <= np.finfo(held.dtype).max:
                    held = held.astype(np.float32)  # the store keeps what overflows float16 as float32
                held[part] = rows
            self._held[view] = held
        return self._held[view][index]


def views_of_epoch(n: int, views: int, seed: int, epoch: int) -> Index:
    """Which version of each of n images an epoch sees, 0 (plain) to `views`, drawn evenly."""
    return np.random.default_rng((seed, 1, epoch)).integers(0, views + 1, n)


def row_bytes(shape: Sequence[int], itemsize: int = 2) -> int:
    """Bytes of one row on disk (float16 by default)."""
    return int(np.prod(shape, dtype=np.int64)) * itemsize


def batches(
    source: RowSource,
    index: Index,
    batch_size: int,
    *,
    epoch: int | None = None,
    seed: int = 0,
    memory: int = MEMORY,
) -> Iterator[tuple[Index, NDArray[Any]]]:
    """Batches of (numbers, rows), shuffled if `epoch` is given; the next window is read meanwhile.

    A window is as many rows as a quarter of the memory holds as float32; two of them are there at a time.
    What fits one window is shuffled freely; otherwise runs of neighbours are dealt out at random over the
    windows and rows are shuffled within them, so that the disk is read in runs.
    """
    window_rows = max(batch_size, memory // 4 // row_bytes(source.shape, 4))
    if epoch is not None:
        index = shuffled(index, window_rows, np.random.default_rng((seed, 0, epoch)))
    windows = np.array_split(index, -(-len(index) // window_rows))  # of even length: no batch of a single row

    def read(window: Index) -> NDArray[Any]:
        return source.read(window, epoch=epoch)

    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, windows[0])
        for number, window in enumerate(windows):
            rows = ahead.result()
            if number + 1 < len(windows):
                ahead = reader.submit(read, windows[number + 1])
            for part in np.array_split(np.arange(len(window)), -(-len(window) // batch_size)):
                yield window[part], rows[part]


def shuffled(index: Index, window_rows: int, rng: np.random.Generator) -> Index:
    """Shuffle within what memory holds (see `batches`)."""
    if len(index) <= window_rows:
        return rng.permutation(index)
    runs = [index[start : start + RUN] for start in range(0, len(index), RUN)]
    dealt = np.concatenate([runs[run] for run in rng.permutation(len(runs))])
    return np.concatenate(
        [rng.permutation(dealt[start : start + window_rows]) for start in range(0, len(dealt), window_rows)]
    )
