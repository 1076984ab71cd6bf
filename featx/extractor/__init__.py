"""FeatureExtractor: features of images, read from the store or computed. Names are loaded at first use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featx.lazy import lazy_names

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


__getattr__ = lazy_names(__name__, _HOMES)
