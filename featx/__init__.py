"""featx turns an image file into a row of numbers once, keeps the row, and learns from the rows.

Importing this package is instant: public names load when they are first used, so that the command line
answers at once and a laptop that tunes from cached rows never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featx.classifier import ImageClassifier as ImageClassifier
    from featx.classifier import load as load
    from featx.evaluation import Evaluation as Evaluation
    from featx.extractor import FeatureExtractor as FeatureExtractor
    from featx.features import FeatureBlocks as FeatureBlocks
    from featx.search import HeadSearchCV as HeadSearchCV
    from featx.spec import FeatureSpec as FeatureSpec

__version__ = "0.1.0"

_HOMES = {
    "Evaluation": "featx.evaluation",
    "FeatureExtractor": "featx.extractor",
    "FeatureSpec": "featx.spec",
    "HeadSearchCV": "featx.search",
    "ImageClassifier": "featx.classifier",
    "FeatureBlocks": "featx.features",
    "load": "featx.classifier",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'featx' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
