"""Fine-tuning: the layers above a cut, trained in phases on cached rows of the layer below, and judged."""

from __future__ import annotations

from featx.finetune.estimator import FineTunePlan, FineTuner
from featx.finetune.phases import Phase, default_phases
from featx.finetune.probe import Probe
from featx.finetune.rows import ArrayRows, StoredRows
from featx.finetune.tuned import FineTunedNetwork
from featx.finetune.verdict import Verdict, worth_trying

__all__ = [
    "ArrayRows",
    "FineTunePlan",
    "FineTunedNetwork",
    "FineTuner",
    "Phase",
    "Probe",
    "StoredRows",
    "Verdict",
    "default_phases",
    "worth_trying",
]
