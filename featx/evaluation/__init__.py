"""Metrics with their uncertainty, comparisons of classifiers, calibration and decisions."""

from __future__ import annotations

from featx.evaluation.calibration import Calibration, fit_calibration
from featx.evaluation.decision import (
    ARGMAX,
    BALANCED,
    Decision,
    OperatingPoint,
    check_decide,
    inverse_shares,
    make_decision,
)
from featx.evaluation.metrics import CONFIDENCE, METRICS, NORMAL, Metric, MetricEntry, has_equal_classes
from featx.evaluation.results import ClassScore, Comparison, Evaluation, class_indices, compare, evaluate
from featx.evaluation.shortfall import shortfall

__all__ = [
    "ARGMAX",
    "BALANCED",
    "CONFIDENCE",
    "METRICS",
    "NORMAL",
    "Calibration",
    "ClassScore",
    "Comparison",
    "Decision",
    "Evaluation",
    "Metric",
    "MetricEntry",
    "OperatingPoint",
    "check_decide",
    "class_indices",
    "compare",
    "evaluate",
    "fit_calibration",
    "has_equal_classes",
    "inverse_shares",
    "make_decision",
    "shortfall",
]
