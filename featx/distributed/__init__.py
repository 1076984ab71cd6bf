"""Features computed by many machines, with Ray Data. Names are loaded at first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featx.distributed.extraction import RayExtraction as RayExtraction
    from featx.distributed.extraction import extract as extract

__all__ = ["RayExtraction", "extract"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.extraction"), name)
    globals()[name] = value
    return value
