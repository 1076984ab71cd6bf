"""FeatureExtractor: features of images, read from the store or computed. Names are loaded at first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featx.extractor.estimator import DEFAULT_BACKBONE as DEFAULT_BACKBONE
    from featx.extractor.estimator import FeatureExtractor as FeatureExtractor
    from featx.extractor.estimator import Plan as Plan
    from featx.extractor.extraction import Extraction as Extraction
    from featx.extractor.fixed import SpecExtractor as SpecExtractor
    from featx.extractor.pipeline import Progress as Progress

_HOMES = {
    "DEFAULT_BACKBONE": "estimator",
    "Extraction": "extraction",
    "FeatureExtractor": "estimator",
    "Plan": "estimator",
    "Progress": "pipeline",
    "SpecExtractor": "fixed",
}

__all__ = ["DEFAULT_BACKBONE", "Extraction", "FeatureExtractor", "Plan", "Progress", "SpecExtractor"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
