"""What every runtime agrees on: the request, the compiled network, and how far features may differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import BackboneError
from featx.spec import FeatureSpec

if TYPE_CHECKING:
    import torch

Batch = NDArray[np.uint8]
"""Prepared images, shape (n, height, width, 3)."""

TOLERANCE = {"fp32": 1e-4, "bf16": 6e-2, "fp16": 1e-2}
"""Largest difference between the features of two runtimes, relative to the largest value of an image."""


class Compiled(Protocol):
    """A stem ready to run. Up to `streams` threads may call it at the same time."""

    name: str
    device: str
    precision: str
    streams: int

    def __call__(self, batch: Batch) -> list[NDArray[np.float32]]:
        """Compute the features of a batch for each spec, in the order of the specs."""
        ...

    def close(self) -> None:
        """Free the memory of the network."""
        ...


@dataclass(frozen=True)
class Request:
    """What a runtime compiles; see `compile_stem`."""

    make_stem: Callable[[], torch.nn.Module]
    specs: Sequence[FeatureSpec]
    device: str
    precision: str
    n_threads: int
    model_cache: Path | None
    keep: bool = True
    graph: bytes | None = None


class ConversionError(BackboneError):
    """A runtime cannot convert this network. torch can run it."""


def agree(rows: NDArray[Any], others: NDArray[Any], precision: str) -> bool:
    """Whether two arrays of features, shape (n, ...), agree within `TOLERANCE`."""
    first, second = (np.asarray(part, np.float64).reshape(len(part), -1) for part in (rows, others))
    if not first.size:
        return first.shape == second.shape
    scale = np.maximum(np.abs(second).max(axis=1), np.finfo(np.float32).tiny)
    return bool((np.abs(first - second).max(axis=1) <= TOLERANCE[precision] * scale).all())
