"""Fine-tuning: train the layers above a cut in phases, and compare the result with the probe.

Names are loaded at first use: a model that only predicts needs few of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from featx.lazy import lazy_names

if TYPE_CHECKING:
    from featx.finetune.estimator import FineTuner as FineTuner
    from featx.finetune.features import ArrayFeatures as ArrayFeatures
    from featx.finetune.features import FeatureSource as FeatureSource
    from featx.finetune.features import StoredFeatures as StoredFeatures
    from featx.finetune.inputs import FineTunePlan as FineTunePlan
    from featx.finetune.phases import Phase as Phase
    from featx.finetune.phases import default_phases as default_phases
    from featx.finetune.phases import describe_phases as describe_phases
    from featx.finetune.probe import LinearProbe as LinearProbe
    from featx.finetune.recipes import RECIPES as RECIPES
    from featx.finetune.recipes import Recipe as Recipe
    from featx.finetune.tuned import FineTunedNetwork as FineTunedNetwork
    from featx.finetune.verdict import Verdict as Verdict
    from featx.finetune.verdict import worth_trying as worth_trying

_HOMES = {
    "ArrayFeatures": "features",
    "FeatureSource": "features",
    "FineTunePlan": "inputs",
    "FineTunedNetwork": "tuned",
    "FineTuner": "estimator",
    "LinearProbe": "probe",
    "Phase": "phases",
    "RECIPES": "recipes",
    "Recipe": "recipes",
    "StoredFeatures": "features",
    "Verdict": "verdict",
    "default_phases": "phases",
    "describe_phases": "phases",
    "worth_trying": "verdict",
}

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


__getattr__ = lazy_names(__name__, _HOMES)
