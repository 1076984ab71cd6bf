"""featx computes pretrained image features once, keeps them, and learns classifiers from them.

Importing this package is fast: public names are loaded when they are first used. A search on cached features
never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from featx.version import __version__ as __version__

if TYPE_CHECKING:
    from featx.classifier import ImageClassifier as ImageClassifier
    from featx.classifier import Predictor as Predictor
    from featx.classifier import load as load
    from featx.evaluation import Evaluation as Evaluation
    from featx.extractor import FeatureExtractor as FeatureExtractor
    from featx.features import FeatureBlocks as FeatureBlocks
    from featx.finetune import FineTuner as FineTuner
    from featx.reporting import check as check
    from featx.reporting import report as report
    from featx.search import HeadSearchCV as HeadSearchCV
    from featx.spec import FeatureSpec as FeatureSpec
    from featx.suite import Suite as Suite


_HOMES = {
    "Evaluation": "featx.evaluation",
    "FeatureExtractor": "featx.extractor",
    "FeatureSpec": "featx.spec",
    "FineTuner": "featx.finetune",
    "HeadSearchCV": "featx.search",
    "ImageClassifier": "featx.classifier",
    "Suite": "featx.suite",
    "FeatureBlocks": "featx.features",
    "check": "featx.reporting",
    "report": "featx.reporting",
    "Predictor": "featx.classifier",
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
