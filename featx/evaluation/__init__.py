"""Metrics with their uncertainty, comparisons of classifiers, and calibration."""

from __future__ import annotations

from featx.evaluation.calibration import Calibration, fit_calibration
from featx.evaluation.metrics import CONFIDENCE, METRICS, NORMAL, Metric, MetricEntry, has_equal_classes
from featx.evaluation.results import ClassScore, Comparison, Evaluation, class_indices, compare, evaluate

__all__ = [
    "CONFIDENCE",
    "METRICS",
    "NORMAL",
    "Calibration",
    "ClassScore",
    "Comparison",
    "Evaluation",
    "Metric",
    "MetricEntry",
    "class_indices",
    "compare",
    "evaluate",
    "fit_calibration",
    "has_equal_classes",
]
