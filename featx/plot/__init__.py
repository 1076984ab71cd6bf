"""Figures of results: each function draws plain data, and returns a `Display` with ``ax_`` and ``figure_``.

One style for all: colours that colour-blind people can tell apart (Okabe & Ito), intervals drawn, titles that
say what is seen. Matplotlib is imported when a figure is drawn, without a screen or pyplot's global state.
"""

from __future__ import annotations

from featx.plot.base import Display
from featx.plot.charts import (
    balance,
    calibration,
    classes,
    confusion,
    coverage,
    history,
    layers,
    learning,
    precision_recall,
    roc,
    scatter,
    sheet,
    training,
)

__all__ = [
    "Display",
    "balance",
    "calibration",
    "classes",
    "confusion",
    "coverage",
    "history",
    "layers",
    "learning",
    "precision_recall",
    "roc",
    "scatter",
    "sheet",
    "training",
]
