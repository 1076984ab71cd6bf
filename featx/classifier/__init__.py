"""ImageClassifier: fit and predict on images, save and load. Names are loaded at first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featx.classifier.estimator import ImageClassifier as ImageClassifier
    from featx.classifier.inputs import as_images as as_images
    from featx.classifier.loading import load as load
    from featx.classifier.predictor import Predictor as Predictor

_HOMES = {
    "ImageClassifier": "estimator",
    "Predictor": "predictor",
    "as_images": "inputs",
    "load": "loading",
}

__all__ = ["ImageClassifier", "Predictor", "as_images", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
