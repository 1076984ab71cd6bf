"""Display: drawn axes, and how they become a file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STYLE = Path(__file__).with_name("featx.mplstyle")

INK, LINE, BLUE, ORANGE, GREEN = "#1c2025", "#b9c0c9", "#0072b2", "#d55e00", "#009e73"
"""Colours of text, lines and marks (of Okabe & Ito). In a page they become those of its theme."""

THEMED = {
    INK: "var(--ink)",
    LINE: "var(--line)",
    BLUE: "var(--mark)",
    ORANGE: "var(--mark2)",
    GREEN: "var(--mark3)",
}

LONGEST, UNDER_IMAGE = 24, 14
"""Characters of a class name on a figure, and under an image of a sheet."""


@dataclass(frozen=True, eq=False)
class Display:
    """A drawn figure.

    Attributes
    ----------
    ax_ : matplotlib.axes.Axes
    figure_ : matplotlib.figure.Figure
    """

    ax_: Any
    figure_: Any

    def to_png(self, *, dpi: int = 150) -> bytes:
        """Return the figure as PNG."""
        buffer = io.BytesIO()
        self.figure_.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
        return buffer.getvalue()

    def to_svg(self, name: str = "figure") -> str:
        """Return the figure as an SVG element for a page, in the colours of its theme.

        Parameters
        ----------
        name : str
            Another name for each figure of a page: names inside are made from it.
        """
        import matplotlib

        images = [image for ax in self.figure_.axes for image in ax.get_images()]
        before = [image.get_interpolation() for image in images]
        for image in images:
            image.set_interpolation("none")  # the browser scales them: 3 times as fast, and sharper
        buffer = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
            self.figure_.savefig(
                buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None}
            )
        for image, interpolation in zip(images, before, strict=True):
            image.set_interpolation(interpolation)
        svg = buffer.getvalue()
        svg = svg[svg.index("<svg") :]
        for color, variable in THEMED.items():
            svg = svg.replace(color, variable)
        return svg.replace("<svg", '<svg role="img" aria-hidden="true"', 1)


@contextmanager
def drawing(ax: Any = None, *, size: tuple[float, float] | None = None, rows: int = 1) -> Iterator[Display]:
    """Give axes in featx's style: those of the caller, or new ones; of several rows, the first."""
    import matplotlib
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colors = {f"{name}.color": INK for name in ("text", "xtick", "ytick")}
    colors |= {"axes.labelcolor": INK, "axes.edgecolor": LINE, "grid.color": LINE}
    with matplotlib.style.context(STYLE), matplotlib.rc_context(colors):
        if ax is None:
            figure = Figure(figsize=size)
            FigureCanvasAgg(figure)
            ax = figure.subplots(rows, sharex=True, squeeze=False)[0, 0]
        yield Display(ax, ax.figure)


def abbreviated(text: str, longest: int = LONGEST) -> str:
    """A text without its middle, if it is long: names that are alike often differ at the end."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[: longest - half - 1]}…{text[-half:]}"


def short(name: Any, longest: int = LONGEST) -> str:
    """A class name that fits on a figure; `$` is no formula."""
    text = abbreviated(str(name), longest)
    return text.encode("utf-8", "backslashreplace").decode().replace("$", r"\$")
