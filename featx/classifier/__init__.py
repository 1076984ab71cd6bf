"""ImageClassifier: fit and predict on images, save and load."""

from __future__ import annotations

from featx.classifier.estimator import ImageClassifier, load
from featx.classifier.inputs import as_images

__all__ = ["ImageClassifier", "as_images", "load"]
