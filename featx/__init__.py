"""featx computes features of images with pretrained networks, stores them, and fits classifiers on them.

Importing this package is fast: public names are loaded when they are first used. A search on cached features
never imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featx.lazy import lazy_names
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
    "Evaluation": "evaluation",
    "FeatureExtractor": "extractor",
    "FeatureSpec": "spec",
    "FineTuner": "finetune",
    "HeadSearchCV": "search",
    "ImageClassifier": "classifier",
    "Suite": "suite",
    "FeatureBlocks": "features",
    "check": "reporting",
    "report": "reporting",
    "Predictor": "classifier",
    "load": "classifier",
}

__all__ = [*_HOMES, "__version__"]

__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
