"""FeatureBlocks: a lazy mapping from the name of a block to its features.

A block is the features of one layer, pooling and resizing: an array of shape (n, d). It is loaded at its
first use, so the matrix of all blocks is never needed. Some rows of a block can be read without the others,
so a block may be larger than the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

Rows = NDArray[np.float32]
Some = NDArray[np.intp] | slice
"""Which rows: indices or a slice."""

CHUNK_ROWS = 4096
"""Rows that are read at once where a block is not in memory."""


class FeatureBlocks(Mapping[str, Rows]):
    """Named blocks of features of the same images, each loaded on first use.

    Parameters
    ----------
    loaders : mapping of str to callable or array
        For each block's name (e.g. ``"blocks.4:grid4:squash"``) an array of shape (n_rows, d), or a
        function without arguments that returns it.
    n_rows : int
        Number of rows of every block.
    widths : mapping of str to int, optional
        Numbers of columns, where they are known without loading.
    readers : mapping of str to callable, optional
        Functions of an array of row indices that return these rows only. A block with a reader needs no
        loader. Arrays and memory maps need no reader.
    """

    def __init__(
        self,
        loaders: Mapping[str, Callable[[], ArrayLike] | ArrayLike],
        n_rows: int,
        *,
        widths: Mapping[str, int] | None = None,
        readers: Mapping[str, Callable[[NDArray[np.intp]], ArrayLike]] | None = None,
    ) -> None:
        self._readers = dict(readers or {})
        every = np.arange(n_rows)
        whole = {name: partial(read, every) for name, read in self._readers.items()}
        self._loaders: dict[str, Callable[[], ArrayLike] | ArrayLike] = {**whole, **loaders}
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

    def __reduce__(self) -> tuple[type[FeatureBlocks], tuple[dict[str, Rows], int]]:
        """A pickle holds the features: another process may not have what they are read from."""
        return FeatureBlocks, ({name: self[name] for name in self}, self.n_rows)

    def __copy__(self) -> FeatureBlocks:
        return self.only(list(self))

    def __deepcopy__(self, memo: object) -> FeatureBlocks:
        return self.only(list(self))

    def __len__(self) -> int:
        """Number of blocks; `n_rows` is the number of rows."""
        return len(self._loaders)

    def part(self, name: str, rows: Some) -> Rows:
        """Return some rows of a block, shape (m, d); only these are read where possible."""
        if name in self._loaded:
            return self._loaded[name][rows]
        source = self._loaders[name]
        if name in self._readers:
            index = np.arange(self.n_rows)[rows] if isinstance(rows, slice) else rows
            return np.asarray(self._readers[name](index), dtype=np.float32)
        if not callable(source) and np.ndim(source) == 2 and len(source) == self.n_rows:  # type: ignore[arg-type]
            return np.asarray(source[rows], dtype=np.float32)  # type: ignore[index]
        return self[name][rows]

    def source(self, name: str) -> BlockSource:
        """Return a block as an object that is indexed like an array, without loading it."""
        return BlockSource(self, name)

    def width(self, name: str) -> int:
        """Number of columns of a block; reads one row if it is not known."""
        if name not in self._widths:
            self._widths[name] = self.part(name, slice(0, 1)).shape[1]
        return self._widths[name]

    def release(self, name: str) -> None:
        """Drop a loaded block from memory; it is loaded again when it is used."""
        if callable(self._loaders[name]):
            self._loaded.pop(name, None)

    def stack(self, names: Sequence[str]) -> Rows:
        """Blocks side by side, shape (n_rows, sum of widths), in the order of `names`."""
        if len(names) == 1:
            return self[names[0]]
        return np.hstack([self[name] for name in names])

    def chunks(self, names: Sequence[str]) -> Iterator[tuple[slice, Rows]]:
        """Blocks side by side, `CHUNK_ROWS` rows at a time, each with the slice that it is of."""
        for start in range(0, max(self.n_rows, 1), CHUNK_ROWS):
            where = slice(start, min(start + CHUNK_ROWS, self.n_rows))
            yield where, np.hstack([self.part(name, where) for name in names])

    def take(self, rows: ArrayLike) -> FeatureBlocks:
        """The same blocks for some rows (indices or a mask), still lazy."""
        index = np.asarray(rows)
        index = np.flatnonzero(index) if index.dtype == bool else index

        def load(name: str) -> Callable[[], Rows]:
            return lambda: self[name][index]

        def read(name: str) -> Callable[[NDArray[np.intp]], Rows]:
            return lambda some: self.part(name, index[some])

        return FeatureBlocks(
            {name: load(name) for name in self},
            len(index),
            widths=self._widths,
            readers={name: read(name) for name in self},
        )

    def only(self, names: Sequence[str]) -> FeatureBlocks:
        """The mapping restricted to some blocks."""
        return self.renamed({name: name for name in names})

    def renamed(self, names: Mapping[str, str]) -> FeatureBlocks:
        """Some blocks under new names: ``{new: old}``."""

        def load(old: str) -> Callable[[], Rows]:
            return lambda: self[old]

        return FeatureBlocks(
            {new: load(old) for new, old in names.items()},
            self.n_rows,
            widths={new: self._widths[old] for new, old in names.items() if old in self._widths},
            readers={new: partial(self.part, old) for new, old in names.items()},
        )


class BlockSource:
    """A block that is indexed like an array: `shape`, `dtype`, and ``source[rows]``.

    Parameters
    ----------
    blocks : FeatureBlocks
        The blocks.
    name : str
        Name of the block.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, blocks: FeatureBlocks, name: str) -> None:
        self.blocks, self.name = blocks, name
        self.shape = (blocks.n_rows, blocks.width(name))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Some) -> Rows:
        return self.blocks.part(self.name, rows)
