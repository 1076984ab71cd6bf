"""MemoryStore: features in memory, for ``--no-cache``, for predictions in a service, and for tests."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.spec import FeatureSpec
from featx.stores.base import Ids, as_stored, check_append, check_shape, find_nearest


class MemoryStore:
    """Features in dictionaries. A copy (`sklearn.base.clone`) is the store itself."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[bytes, NDArray[Any]]] = {}
        self._specs: dict[str, FeatureSpec] = {}
        self._notes: dict[tuple[str, str], dict[str, Any]] = {}
        self._lock = threading.Lock()

    def missing(self, key: str, ids: Ids) -> NDArray[np.bool_]:
        """See `FeatureStore.missing`."""
        rows = self._rows.get(key, {})
        return np.array([digest.tobytes() not in rows for digest in ids], dtype=bool)

    def append(self, key: str, ids: Ids, features: NDArray[Any], spec: FeatureSpec) -> None:
        """See `FeatureStore.append`."""
        check_append(key, ids, features, spec)
        rows = as_stored(features, spec.dtype)
        if not rows:
            return
        with self._lock:
            check_shape(rows[0].shape, self.row_shape(key))
            space = self._rows.setdefault(key, {})
            self._specs[key] = spec
            for digest, row in zip(ids, rows, strict=True):
                space.setdefault(digest.tobytes(), row)

    def commit(self) -> None:
        """Nothing to do: features are visible as soon as they are appended."""

    def read(self, key: str, ids: Ids) -> NDArray[Any]:
        """See `FeatureStore.read`."""
        rows = self._rows.get(key, {})
        if not len(ids):
            return np.empty((0, *(self.row_shape(key) or (0,))), np.float32)
        return np.stack([rows[digest.tobytes()] for digest in ids]).astype(np.float32, copy=False)

    def row_shape(self, key: str) -> tuple[int, ...] | None:
        """See `FeatureStore.row_shape`."""
        return next((row.shape for row in self._rows.get(key, {}).values()), None)

    def keys(self) -> Mapping[str, FeatureSpec]:
        """See `FeatureStore.keys`."""
        return dict(self._specs)

    def nearest(self, spec: FeatureSpec) -> tuple[FeatureSpec, Mapping[str, tuple[Any, Any]]] | None:
        """See `FeatureStore.nearest`."""
        return find_nearest(spec, self.keys().values())

    def remember(self, kind: str, name: str, value: Mapping[str, Any]) -> None:
        """See `FeatureStore.remember`."""
        self._notes[kind, name] = copy.deepcopy(dict(value))

    def recall(self, kind: str, name: str) -> dict[str, Any] | None:
        """See `FeatureStore.recall`."""
        return copy.deepcopy(self._notes.get((kind, name)))

    def folder(self, kind: str) -> None:
        """See `FeatureStore.folder`."""

    def close(self) -> None:
        """Nothing to close."""

    def __deepcopy__(self, memo: dict[int, Any]) -> MemoryStore:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())
