"""Fine-tuning: train the layers above a cut in phases, and compare the result with the probe."""

from __future__ import annotations

from featx.finetune.estimator import FineTuner
from featx.finetune.features import ArrayFeatures, FeatureSource, StoredFeatures
from featx.finetune.inputs import FineTunePlan
from featx.finetune.phases import Phase, default_phases, describe_phases
from featx.finetune.probe import LinearProbe
from featx.finetune.recipes import RECIPES, Recipe
from featx.finetune.tuned import FineTunedNetwork
from featx.finetune.verdict import Verdict, worth_trying

__all__ = [
    "RECIPES",
    "ArrayFeatures",
    "FeatureSource",
    "FineTunePlan",
    "FineTunedNetwork",
    "FineTuner",
    "LinearProbe",
    "Phase",
    "Recipe",
    "StoredFeatures",
    "Verdict",
    "default_phases",
    "describe_phases",
    "worth_trying",
]
