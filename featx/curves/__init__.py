"""Accuracy by the number of labels: learning curves, few-shot evaluation and forecasts.

All sizes, folds and repeats of a curve are splits of one task for the batched solvers. Torch and Optuna are
not imported.
"""

from __future__ import annotations

from featx.curves.law import (
    BAND,
    ClassForecast,
    Forecast,
    PowerLaw,
    fit_power_law,
    forecast,
    gain_if_last_doubling_again,
    gain_if_no_change,
    interval_score,
)
from featx.curves.learning import LearningCurve, curve_head, learning_curve
from featx.curves.paths import ScorePath, TransferEffect, compare_paths
from featx.curves.shots import FewShot, ShotScore, few_shot

__all__ = [
    "BAND",
    "ClassForecast",
    "FewShot",
    "Forecast",
    "LearningCurve",
    "PowerLaw",
    "ScorePath",
    "ShotScore",
    "TransferEffect",
    "compare_paths",
    "curve_head",
    "few_shot",
    "fit_power_law",
    "forecast",
    "gain_if_last_doubling_again",
    "gain_if_no_change",
    "interval_score",
    "learning_curve",
]
