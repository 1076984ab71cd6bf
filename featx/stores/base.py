"""FeatureStore: the interface of stores, which hold append-only features by spec and image digest.

A store never returns features that were not appended under exactly that key and digest, and returns all that
were committed. It knows nothing of images and networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from featx.spec import FeatureSpec

FORMAT = 1
"""Version of the layout on disk: the name of the cache's inner folder and an attribute of every segment."""

DIGEST_BYTES = 32
Ids = NDArray[np.uint8]
"""Digests of images, shape (n, 32), uint8."""


def as_ids(digests: Iterable[bytes]) -> Ids:
    """Stack 32-byte digests into an array of shape (n, 32)."""
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)


def as_stored(features: NDArray[Any], dtype: str) -> list[NDArray[Any]]:
    """Features as they are stored: float16 if all values of an image fit, else float32.

    Parameters
    ----------
    features : array-like, shape (n, ...)
        Rows of any shape.
    dtype : {'float16', 'float32'}
        The spec's stored dtype.

    Raises
    ------
    ValueError
        If a row is not finite in float32; the message names the rows.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        rows = np.array(features, np.float32)
        halves = rows.astype(np.float16)
    bad = np.flatnonzero(~_finite(rows))
    if len(bad):
        some = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise ValueError(
            f"{len(bad)} of {len(rows)} rows are not finite (rows {some}); such rows are never stored."
        )
    if dtype == "float32":
        return list(rows)
    return [half if fits else row for row, half, fits in zip(rows, halves, _finite(halves), strict=True)]


def check_append(key: str, ids: Ids, features: NDArray[Any], spec: FeatureSpec) -> None:
    """Refuse an append whose parts do not belong together.

    Raises
    ------
    ValueError
        If the key is not the spec's, the ids are not (n, 32) uint8, or the numbers of rows differ.
    """
    if spec.key != key:
        raise ValueError(
            f"the spec's key is {spec.key[:16]}, not {key[:16]}: rows go to the space of their own spec."
        )
    if ids.dtype != np.uint8 or ids.ndim != 2 or ids.shape[1] != DIGEST_BYTES:
        raise ValueError(f"ids have shape {ids.shape} and dtype {ids.dtype}, not (n, {DIGEST_BYTES}) uint8.")
    if len(ids) != len(features):
        raise ValueError(f"{len(ids)} ids for {len(features)} rows.")


def check_shape(came: tuple[int, ...], kept: tuple[int, ...] | None) -> None:
    """Refuse rows of another shape than the space's (ValueError); None is a space without rows."""
    if kept is not None and came != kept:
        raise ValueError(f"rows of shape {came} in a space whose rows have shape {kept}.")


def find_nearest(
    spec: FeatureSpec, specs: Iterable[FeatureSpec]
) -> tuple[FeatureSpec, Mapping[str, tuple[Any, Any]]] | None:
    """Of some specs the one that differs from `spec` in the fewest fields, with those fields.

    Returns
    -------
    tuple of FeatureSpec and mapping, or None
        The neighbour and ``{field: (value of spec, value of the neighbour)}``; None if there is no other.
    """
    others = [(other, spec.differing(other)) for other in specs if other.key != spec.key]
    return min(others, key=lambda pair: len(pair[1]), default=None)


def explain_miss(spec: FeatureSpec, differing: Mapping[str, tuple[Any, Any]]) -> str:
    """Message: why the nearest space cannot be used; the stored value of each field comes first.

    Parameters
    ----------
    spec : FeatureSpec
        The requested spec.
    differing : mapping
        As `FeatureStore.nearest` gives it.
    """
    fields = ", ".join(
        f"{name} (cached: {theirs}, now: {mine})" for name, (mine, theirs) in differing.items()
    )
    return f"no cached features of {spec.architecture} {spec.block}: the nearest space differs in {fields}."


def _finite(rows: NDArray[Any]) -> NDArray[np.bool_]:
    """Mask of the rows, shape (n,), that are finite throughout."""
    finite: NDArray[np.bool_] = np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)))
    return finite


@runtime_checkable
class FeatureStore(Protocol):
    """Interface of a store. Its methods may be called from several threads."""

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
        """Read the features of ids in the caller's order, float32, shape (n, ...), also those in the buffer.

        KeyError if one is missing. That can happen although `missing` did not report it: it is damaged, or
        another process pruned it. Then call `missing` again and compute it.
        """
        ...

    def row_shape(self, key: str) -> tuple[int, ...] | None:
        """Shape of one row of the space, or None if it is empty or unknown."""
        ...

    def keys(self) -> Mapping[str, FeatureSpec]:
        """Spaces that hold rows, with their specs."""
        ...

    def nearest(self, spec: FeatureSpec) -> tuple[FeatureSpec, Mapping[str, tuple[Any, Any]]] | None:
        """The other space that differs in the fewest fields, with ``{field: (spec's, its)}``, or None."""
        ...

    def remember(self, kind: str, name: str, value: Mapping[str, Any]) -> None:
        """Store a small JSON note (e.g. kind 'backbones': a card and the stamp of its file)."""
        ...

    def recall(self, kind: str, name: str) -> dict[str, Any] | None:
        """Read a note, or None."""
        ...

    def folder(self, kind: str) -> Path | None:
        """Folder of other files that belong to the cache (kind "models", "decoding"); None in memory.

        It may not exist yet.
        """
        ...

    def close(self) -> None:
        """Commit and close files."""
        ...
