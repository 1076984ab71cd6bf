"""FeatureExtractor: images to rows, reading what is kept, computing what is missing."""

from __future__ import annotations

from featx.extractor.estimator import DEFAULT_BACKBONE, Extraction, FeatureExtractor, Plan
from featx.extractor.pipeline import Progress

__all__ = ["DEFAULT_BACKBONE", "Extraction", "FeatureExtractor", "Plan", "Progress"]
