"""FeatureExtractor: features of images, read from the store or computed."""

from __future__ import annotations

from featx.extractor.estimator import DEFAULT_BACKBONE, FeatureExtractor, Plan
from featx.extractor.extraction import Extraction
from featx.extractor.pipeline import Progress

__all__ = ["DEFAULT_BACKBONE", "Extraction", "FeatureExtractor", "Plan", "Progress"]
