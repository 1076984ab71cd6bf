"""The contract of a store: append-only rows named by (spec, image digest).

A store never returns a row that was not appended under exactly that key and digest, and returns every
row whose append was committed. It knows nothing of images and networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from featx.spec import FeatureSpec

DIGEST_BYTES = 32
Ids = NDArray[np.uint8]
"""Digests of images, shape (n, 32), uint8."""


def as_ids(digests: Iterable[bytes]) -> Ids:
    """Stack 32-byte digests into an array of shape (n, 32)."""
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)


@runtime_checkable
class FeatureStore(Protocol):
    """What the extractor needs of a store. Safe to call from several threads."""

    def missing(self, key: str, ids: Ids) -> NDArray[np.bool_]:
        """Mask of the ids, shape (n,), that have no row in the space `key`."""
        ...

    def append(self, key: str, ids: Ids, features: NDArray[Any], spec: FeatureSpec) -> None:
        """Add rows of shape (n, ...). They are buffered; `commit` makes them durable.

        Rows that are not finite are refused with a ValueError; ids that are there already are ignored.
        """
        ...

    def commit(self) -> None:
        """Make every appended row durable and visible to other processes."""
        ...

    def read(self, key: str, ids: Ids) -> NDArray[Any]:
        """Rows of the ids in the caller's order, shape (n, ...); buffered rows count. KeyError if one is missing."""
        ...

    def row_shape(self, key: str) -> tuple[int, ...] | None:
        """Shape of one row of the space, or None if it is empty or unknown."""
        ...

    def keys(self) -> Mapping[str, FeatureSpec]:
        """Spaces that hold rows, with their specs."""
        ...

    def remember(self, kind: str, name: str, value: Mapping[str, Any]) -> None:
        """Keep a small JSON note (e.g. kind 'backbones': a weights digest by file stamp)."""
        ...

    def recall(self, kind: str, name: str) -> dict[str, Any] | None:
        """Read a note, or None."""
        ...

    def close(self) -> None:
        """Commit and let go of files."""
        ...
