"""FeatureExtractor: images to rows, reading what is kept, computing what is missing."""

from __future__ import annotations

from featx.extractor.estimator import Extraction, FeatureExtractor, Plan
from featx.extractor.pipeline import Progress

__all__ = ["Extraction", "FeatureExtractor", "Plan", "Progress"]
