"""Features computed by several machines with Ray Data. Names are loaded at first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featx.lazy import lazy_names

if TYPE_CHECKING:
    from featx.distributed.extraction import RayExtraction as RayExtraction
    from featx.distributed.extraction import extract as extract

__all__ = ["RayExtraction", "extract"]

__getattr__ = lazy_names(__name__, dict.fromkeys(__all__, "extraction"))
