"""ImageClassifier: fit and predict on images, save and load. Names are loaded at first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featx.lazy import lazy_names

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


__getattr__ = lazy_names(__name__, _HOMES)
