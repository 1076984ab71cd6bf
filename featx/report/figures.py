"""The tutorial's figure, measured: higher start, higher slope, higher asymptote, or not.

Points and bands come in as plain data; matplotlib is imported when a figure is asked for, with the backend
that needs no screen.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featx.advice.measures import LayerScore
from featx.curves import LearningCurve, PowerLaw, fit_power_law
from featx.evaluation import Metric
from featx.exceptions import UsageError

if TYPE_CHECKING:
    from featx.advice.recommend import Advice

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ScorePath:
    """A score as it grows with labels, or with epochs.

    Parameters
    ----------
    name : str
        What it is of.
    x : tuple of float
        Labels or epochs, rising.
    score : tuple of Metric
        Accuracy at each.
    """

    name: str
    x: tuple[float, ...]
    score: tuple[Metric, ...]

    @classmethod
    def of_curve(cls, curve: LearningCurve, name: str) -> ScorePath:
        """Points of a learning curve."""
        return cls(name, tuple(curve.sizes.tolist()), curve.accuracy)

    @property
    def values(self) -> Floats:
        """The scores without their intervals."""
        return np.array([metric.value for metric in self.score])


@dataclass(frozen=True)
class TransferEffect:
    """Start, slope and end of a transferred against a from-scratch path, over the x they share.

    Parameters
    ----------
    start, end : tuple of float
        Score at the first and last shared x: transferred, from scratch.
    slope : tuple of float
        Rise over the first half of the shared x (in its logarithm): transferred, from scratch.
    over : tuple of float
        First and last shared x.
    """

    start: tuple[float, float]
    slope: tuple[float, float]
    end: tuple[float, float]
    over: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists of numbers, ready for JSON."""
        return {name: list(value) for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> TransferEffect:
        """Read what `to_dict` gave."""
        return cls(**{name: (value[0], value[1]) for name, value in plain.items()})

    def sentences(self) -> list[str]:
        """Which of the three claims hold here."""
        said = []
        for what, (own, scratch) in (("start", self.start), ("slope", self.slope), ("asymptote", self.end)):
            word = "Higher" if own > scratch else "No higher"
            said.append(f"{word} {what}: {own:.3f} against {scratch:.3f} from scratch.")
        return said


def compare_paths(transferred: ScorePath, scratch: ScorePath) -> TransferEffect:
    """Measure the three claims: higher start, higher slope, higher asymptote.

    Scores between points are interpolated over log x. A slope is the rise over the first half of the shared
    range: a path that starts at the top has little left to rise, and then its slope is the lower one.

    Raises
    ------
    UsageError
        If the two share no range of x.
    """
    low, high = max(transferred.x[0], scratch.x[0]), min(transferred.x[-1], scratch.x[-1])
    if low >= high:
        raise UsageError(
            f"{transferred.name} and {scratch.name} share no range of x; measure both on some of it."
        )
    at = np.array([low, np.sqrt(low * high), high])
    own, other = (np.interp(np.log(at), np.log(path.x), path.values) for path in (transferred, scratch))
    return TransferEffect(
        (float(own[0]), float(other[0])),
        (float(own[1] - own[0]), float(other[1] - other[0])),
        (float(own[2]), float(other[2])),
        (float(low), float(high)),
    )


def plot_curve(
    curve: LearningCurve,
    *,
    law: PowerLaw | None = None,
    scratch: ScorePath | None = None,
    ahead: float = 2.0,
    ax: Any = None,
) -> Any:
    """Draw a learning curve, its law's band up to `ahead` times the labels, and a from-scratch path.

    Parameters
    ----------
    curve : LearningCurve
        Measured points.
    law : PowerLaw, optional
        From `fit_power_law`; fitted here by default.
    scratch : ScorePath, optional
        A network trained from scratch, over the number of labels.
    ahead : float
        How far the band goes, in multiples of the labels at hand.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.

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
    top = ax.get_xaxis_transform()  # x in labels, y in parts of the height
    ax.text(curve.n, 0.02, "labels at hand ", rotation=90, fontsize=8, color="0.4", ha="right", transform=top)
    if scratch is not None:
        _points(ax, scratch, "C1", line=True)
    ax.set(xscale="log", xlabel="labelled images", ylabel="accuracy")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.legend(loc="upper left", fontsize=8)
    return ax


def plot_depth(layers: Sequence[LayerScore], *, random: Metric | None = None, ax: Any = None) -> Any:
    """Draw the probe's accuracy by depth, and the random twin's last features as a line.

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


def draw(advice: Advice, *, scratch: ScorePath | None = None) -> bytes:
    """The probe by depth and the learning curve of an advice, as PNG; what was not measured is left out."""
    panels = [advice.domain is not None, advice.curve is not None]
    if not any(panels):
        raise UsageError("this advice holds neither probes by depth nor a learning curve: nothing to draw.")
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
    """The figure that an axes belongs to, as PNG."""
    buffer = io.BytesIO()
    ax.figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    return buffer.getvalue()


def _axes(panels: int) -> list[Any]:
    """Axes side by side in a figure of their own that no screen and no global state knows of."""
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
