"""RowBlocks: a lazy mapping from a block's name to its rows.

Several taps, pools and resizes reach the search without one dense, wide matrix: a block (one
representation, one array of shape (n, d)) is loaded when it is first asked for. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rows = NDArray[np.float32]


class RowBlocks(Mapping[str, Rows]):
    """Named blocks of rows of the same images, each loaded on first use and kept.

    Parameters
    ----------
    loaders : mapping of str to callable or array
        For each block's name (e.g. ``"blocks.4:grid4:squash"``) an array of shape (n_rows, d), or a
        function without arguments that returns it.
    n_rows : int
        Number of rows of every block.
    widths : mapping of str to int, optional
        Columns of blocks, where they are known without loading.
    """

    def __init__(
        self,
        loaders: Mapping[str, Callable[[], ArrayLike] | ArrayLike],
        n_rows: int,
        *,
        widths: Mapping[str, int] | None = None,
    ) -> None:
        self._loaders = dict(loaders)
        self._loaded: dict[str, Rows] = {}
        self._widths = dict(widths or {})
        self.n_rows = n_rows

    def __getitem__(self, name: str) -> Rows:
        if name not in self._loaded:
            source = self._loaders[name]
            rows = np.asarray(source() if callable(source) else source, dtype=np.float32)
            if rows.ndim != 2 or len(rows) != self.n_rows:
                raise ValueError(f"block {name!r} has shape {rows.shape}, not ({self.n_rows}, d).")
            self._loaded[name] = rows
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaders)

    def __len__(self) -> int:
        """Number of blocks, as for any mapping; `n_rows` counts the rows."""
        return len(self._loaders)

    def width(self, name: str) -> int:
        """Columns of a block; loads it only if they are not known."""
        return self._widths[name] if name in self._widths else self[name].shape[1]

    def release(self, name: str) -> None:
        """Forget a loaded block; it is loaded again when asked for."""
        if callable(self._loaders[name]):
            self._loaded.pop(name, None)

    def stack(self, names: Sequence[str]) -> Rows:
        """Blocks side by side, shape (n_rows, sum of widths), in the order of `names`."""
        if len(names) == 1:
            return self[names[0]]
        return np.hstack([self[name] for name in names])

    def take(self, rows: ArrayLike) -> RowBlocks:
        """The same blocks for some rows (indices or a mask), still lazy."""
        index = np.asarray(rows)
        index = np.flatnonzero(index) if index.dtype == bool else index

        def part(name: str) -> Callable[[], Rows]:
            return lambda: self[name][index]

        return RowBlocks({name: part(name) for name in self}, len(index), widths=self._widths)

    def only(self, names: Sequence[str]) -> RowBlocks:
        """The mapping restricted to some blocks."""

        def load(name: str) -> Callable[[], Rows]:
            return lambda: self[name]

        widths = {name: self._widths[name] for name in names if name in self._widths}
        return RowBlocks({name: load(name) for name in names}, self.n_rows, widths=widths)
