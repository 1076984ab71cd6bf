"""A store in memory: for tests, for ``--no-cache`` and for predicting in a service."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.spec import FeatureSpec
from featx.stores.base import Ids


class MemoryStore:
    """Rows in dictionaries; gone with the process."""

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
        if spec.key != key:
            raise ValueError("the spec's key is not the space's key.")
        if len(ids) != len(features):
            raise ValueError(f"{len(ids)} ids for {len(features)} rows.")
        if not np.isfinite(features).all():
            raise ValueError("rows that are not finite are never stored.")
        with self._lock:
            space = self._rows.setdefault(key, {})
            self._specs[key] = spec
            for digest, row in zip(ids, features, strict=True):
                space.setdefault(digest.tobytes(), np.array(row))

    def commit(self) -> None:
        """Nothing to do: rows are visible as soon as they are appended."""

    def read(self, key: str, ids: Ids) -> NDArray[Any]:
        """See `FeatureStore.read`."""
        rows = self._rows.get(key, {})
        if not len(ids):
            return np.empty((0, *(self.row_shape(key) or (0,))), np.float32)
        return np.stack([rows[digest.tobytes()] for digest in ids])

    def row_shape(self, key: str) -> tuple[int, ...] | None:
        """See `FeatureStore.row_shape`."""
        return next((row.shape for row in self._rows.get(key, {}).values()), None)

    def keys(self) -> Mapping[str, FeatureSpec]:
        """See `FeatureStore.keys`."""
        return dict(self._specs)

    def remember(self, kind: str, name: str, value: Mapping[str, Any]) -> None:
        """See `FeatureStore.remember`."""
        self._notes[kind, name] = copy.deepcopy(dict(value))

    def recall(self, kind: str, name: str) -> dict[str, Any] | None:
        """See `FeatureStore.recall`."""
        return copy.deepcopy(self._notes.get((kind, name)))

    def close(self) -> None:
        """Nothing to let go of."""
