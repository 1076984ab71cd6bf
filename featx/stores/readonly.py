"""A cache on disk that this process may only read: new features are kept in the memory of this process."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from featx.exceptions import StoreError, StoreWarning
from featx.spec import FeatureSpec
from featx.stores.base import Ids
from featx.stores.hdf5 import HDF5Store
from featx.stores.layout import Freed, readable_root
from featx.stores.packing import PACK_BYTES


class ReadOnlyStore(HDF5Store):
    """`HDF5Store` without any write.

    Parameters
    ----------
    path : str or path-like
        A cache folder that exists.

    Raises
    ------
    StoreError
        If it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._notes: dict[tuple[str, str], dict[str, Any]] = {}
        self._warned = False

    @staticmethod
    def _open_root(path: Path) -> Path:
        return readable_root(path)

    def append(self, key: str, ids: Ids, features: NDArray[Any], spec: FeatureSpec) -> None:
        """Keep rows in memory, with a warning at the first."""
        if not self._warned and self.missing(key, ids).any():
            self._warned = True
            warnings.warn(
                f"the cache {self.path} can only be read, so new features are not stored. Make it writable, "
                "or name another (--cache-dir, FEATX_CACHE).",
                StoreWarning,
                stacklevel=2,
            )
        super().append(key, ids, features, spec)

    def commit(self) -> None:
        """Do nothing: rows stay in memory, readable in this process."""

    def close(self) -> None:
        """Do nothing."""

    def remember(self, kind: str, name: str, value: Mapping[str, Any]) -> None:
        """Keep a note in memory."""
        self._notes[kind, name] = dict(value)

    def recall(self, kind: str, name: str) -> dict[str, Any] | None:
        """See `FeatureStore.recall`."""
        return self._notes.get((kind, name)) or super().recall(kind, name)

    def pack(self, *, keys: Collection[str] | None = None, max_bytes: int = PACK_BYTES) -> Freed:
        """Refuse.

        Raises
        ------
        StoreError
        """
        raise StoreError(f"the cache {self.path} can only be read: nothing in it can be packed or deleted.")

    def prune(
        self, *, max_bytes: int | None = None, older_than_s: float | None = None, key: str | None = None
    ) -> Freed:
        """Refuse; see `pack`."""
        return self.pack()

    def __reduce__(self) -> tuple[type[HDF5Store], tuple[Path]]:
        return ReadOnlyStore, (self.path,)

    def _commit(self) -> None:
        """Do nothing."""
