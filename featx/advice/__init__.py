"""From plain values (scores by layer, curves, timings): what to do next.

`recommend` weighs what was measured; `measures` and `backbones` turn rows into such values; `choice` asks
whether a winner is really better; `imbalance` moves decisions in favour of rare classes; `figure` draws.
No torch, and nothing here embeds a picture: the classifier orders what it needs.
"""

from __future__ import annotations

from featx.advice.backbones import BackboneScore, HalvingPlan, plan_halving, rank_backbones, survivors
from featx.advice.choice import Candidate, Choice, choose
from featx.advice.figure import ScorePath, TransferEffect, compare_paths, plot_curve, plot_depth, to_png
from featx.advice.from_rows import Twin, advise_on_rows
from featx.advice.imbalance import (
    IMBALANCED_FROM,
    Adjustment,
    fit_adjustment,
    imbalance_ratio,
    logit_offsets,
    metric_for,
    shift_scores,
    threshold_offsets,
    views_for_minority,
)
from featx.advice.measures import (
    LayerScore,
    Probe,
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
    Representation,
    advise,
    fine_tune_from,
    judge_domain,
)

__all__ = [
    "IMBALANCED_FROM",
    "Adjustment",
    "Advice",
    "BackboneScore",
    "Candidate",
    "Choice",
    "Domain",
    "FineTuning",
    "HalvingPlan",
    "LayerScore",
    "Option",
    "Probe",
    "Representation",
    "ScorePath",
    "TransferEffect",
    "Twin",
    "advise",
    "advise_on_rows",
    "choose",
    "compare_paths",
    "depth_profile",
    "effective_rank",
    "fine_tune_from",
    "fit_adjustment",
    "h_score",
    "imbalance_ratio",
    "judge_domain",
    "log_me",
    "logit_offsets",
    "metric_for",
    "plan_halving",
    "plot_curve",
    "plot_depth",
    "probe",
    "rank_backbones",
    "shift_scores",
    "survivors",
    "threshold_offsets",
    "to_png",
    "views_for_minority",
]
