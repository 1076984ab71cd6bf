"""What to do next, from plain measured values: scores by layer, learning curves, times.

`measures` turns features into such values, `recommend` weighs them, `words` says them. No torch, and nothing
here embeds an image: the classifier extracts what is needed.
"""

from __future__ import annotations

from featx.advice.from_rows import Twin, advise_on_rows
from featx.advice.measures import LayerScore, Probe, depth_profile, effective_rank, h_score, log_me, probe
from featx.advice.recommend import (
    Advice,
    Domain,
    FineTuning,
    Option,
    Representation,
    advise,
    fine_tune_from,
    judge_domain,
)

__all__ = [
    "Advice",
    "Domain",
    "FineTuning",
    "LayerScore",
    "Option",
    "Probe",
    "Representation",
    "Twin",
    "advise",
    "advise_on_rows",
    "depth_profile",
    "effective_rank",
    "fine_tune_from",
    "h_score",
    "judge_domain",
    "log_me",
    "probe",
]
