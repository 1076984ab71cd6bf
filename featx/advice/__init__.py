"""What to do next, from measured values: scores by layer, learning curves, costs.

`measures` computes such values from features, `recommend` derives options from them, and `words` describes
the result in sentences. Nothing here extracts features or imports torch.
"""

from __future__ import annotations

from featx.advice.from_features import RandomBaseline, advise_on_features
from featx.advice.measures import (
    BackboneScore,
    LayerScore,
    ProbeResult,
    depth_profile,
    effective_rank,
    h_score,
    log_me,
    probe,
)
from featx.advice.recommend import (
    Advice,
    Domain,
    FineTuning,
    Option,
    RepresentationScore,
    advise,
    assess_domain,
    fine_tune_from,
)
from featx.advice.words import sentences

__all__ = [
    "Advice",
    "BackboneScore",
    "Domain",
    "FineTuning",
    "LayerScore",
    "Option",
    "ProbeResult",
    "RandomBaseline",
    "RepresentationScore",
    "advise",
    "advise_on_features",
    "assess_domain",
    "depth_profile",
    "effective_rank",
    "fine_tune_from",
    "h_score",
    "log_me",
    "probe",
    "sentences",
]
