"""ImageClassifier, the front door: fit and predict on images, save and load."""

from __future__ import annotations

from featx.classifier.estimator import ImageClassifier, as_images
from featx.classifier.packing import load

__all__ = ["ImageClassifier", "as_images", "load"]
