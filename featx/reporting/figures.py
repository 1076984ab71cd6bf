"""Figures of results: learning curves and probes by depth.

The data come in as plain values. Matplotlib is imported when a figure is drawn, with a backend that needs no
screen.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from featx.advice import Advice, LayerScore
from featx.curves import LearningCurve, PowerLaw, ScorePath, fit_power_law
from featx.evaluation import Metric
from featx.exceptions import UsageError


def plot_curve(
    curve: LearningCurve,
    *,
    law: PowerLaw | None = None,
    scratch: ScorePath | None = None,
    ahead: float = 2.0,
    ax: Any = None,
) -> Any:
    """Draw a learning curve, the band of its power law, and a network trained from scratch.

    Parameters
    ----------
    curve : LearningCurve
        Measured points.
    law : PowerLaw, optional
        From `fit_power_law`; fitted here by default.
    scratch : ScorePath, optional
        Accuracy of a network trained from scratch, by the number of labels.
    ahead : float
        Right end of the band, in multiples of the number of labels.
    ax : matplotlib Axes, optional
        A new figure by default.

    Returns
    -------
    matplotlib.axes.Axes
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax = ax if ax is not None else _axes(1)[0]
    law = law if law is not None else fit_power_law(curve)
    x = np.geomspace(curve.sizes[0], ahead * curve.n, 60)
    band = [law.accuracy(float(m)) for m in x]
    ax.fill_between(x, [m.low for m in band], [m.high for m in band], alpha=0.2, color="C0", linewidth=0)
    ax.plot(x, [m.value for m in band], color="C0", label="pretrained features: power law, 90 % band")
    _points(ax, ScorePath.of_curve(curve, "measured"), "C0")
    ax.axvline(curve.n, color="0.6", linestyle=":", linewidth=1)
    top = ax.get_xaxis_transform()  # x in labels, y as a fraction of the height
    ax.text(curve.n, 0.02, "labels now ", rotation=90, fontsize=8, color="0.4", ha="right", transform=top)
    if scratch is not None:
        _points(ax, scratch, "C1", line=True)
    ax.set(xscale="log", xlabel="labelled images", ylabel="accuracy")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.legend(loc="upper left", fontsize=8)
    return ax


def plot_depth(layers: Sequence[LayerScore], *, random: Metric | None = None, ax: Any = None) -> Any:
    """Draw the accuracy of probes by depth, and that of random weights as a line.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = ax if ax is not None else _axes(1)[0]
    x = np.arange(len(layers))
    value = np.array([layer.accuracy.value for layer in layers])
    low, high = (np.array([getattr(layer.accuracy, side) for layer in layers]) for side in ("low", "high"))
    ax.errorbar(x, value, [value - low, high - value], marker="o", capsize=3, color="C0", label="probe")
    if random is not None:
        ax.axhline(random.value, color="C1", linestyle="--", label="last features, random weights")
        ax.legend(loc="lower right", fontsize=8)
    ax.set_xticks(x, [layer.block.replace(":", "\n") for layer in layers], fontsize=8)
    ax.set(xlabel="layer", ylabel="accuracy")
    return ax


def plot_advice(advice: Advice, *, scratch: ScorePath | None = None) -> bytes:
    """Draw the probes by depth and the learning curve side by side, as PNG.

    Parameters
    ----------
    advice : Advice
    scratch : ScorePath, optional
        Accuracy of a network trained from scratch on the same images, by the number of labels.

    Raises
    ------
    UsageError
        If the advice has neither probes by depth nor a learning curve.
    """
    panels = [advice.domain is not None, advice.curve is not None]
    if not any(panels):
        raise UsageError("this advice has neither probes by depth nor a learning curve: nothing to draw.")
    axes = iter(_axes(sum(panels)))
    ax: Any = None
    if advice.domain is not None:
        ax = next(axes)
        last, ahead = advice.domain.layers[-1].accuracy, advice.domain.over_random
        random = None if ahead is None else Metric(last.value - ahead.value, math.nan, math.nan)
        plot_depth(advice.domain.layers, random=random, ax=ax)
    if advice.curve is not None:
        ax = next(axes)
        plot_curve(advice.curve, scratch=scratch, ax=ax)
    return to_png(ax)


def to_png(ax: Any, *, dpi: int = 120) -> bytes:
    """Return the figure of an axes as PNG."""
    buffer = io.BytesIO()
    ax.figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    return buffer.getvalue()


def _axes(panels: int) -> list[Any]:
    """Return axes side by side in a new figure, without a screen or pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * panels, 4), layout="constrained")
    FigureCanvasAgg(figure)
    return list(figure.subplots(1, panels, squeeze=False)[0])


def _points(ax: Any, path: ScorePath, color: str, *, line: bool = False) -> None:
    low, high = (np.array([getattr(metric, side) for metric in path.score]) for side in ("low", "high"))
    errors = [np.maximum(path.values - low, 0), np.maximum(high - path.values, 0)]
    ax.errorbar(
        path.x, path.values, errors, fmt="o-" if line else "o", capsize=3, color=color, label=path.name
    )
