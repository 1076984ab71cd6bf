"""A suite's results as text, Markdown, LaTeX and one HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from featx.evaluation import METRICS
from featx.plot.base import BLUE, LINE, drawing
from featx.reporting.page import render
from featx.suite.folder import finished
from featx.suite.ranking import Leaderboard, Worth, leaderboard

Rows = Sequence[dict[str, Any]]
Worths = Sequence[Worth]

WILCOXON_DATA = 6
"""Fewest data sets with which Wilcoxon's test can find a difference at 5 %."""

WORTH_HEADER = ("", "difference", "95 % interval", "p", "seconds", "data sets")

HEADER = ("", "score", "95 % interval", "mean rank", "gap to best", "win rate", "seconds")


class Figure(NamedTuple):
    """A drawn figure of the page, as SVG, and what it shows."""

    svg: str
    caption: str


def table_rows(board: Leaderboard) -> list[list[str]]:
    """Cells of the leaderboard, in the order of `HEADER`."""
    several = len(board.data) > 1
    return [
        [
            one.name,
            f"{one.score:.4f}",
            f"[{one.low:.3f}, {one.high:.3f}]" if several else "",
            f"{one.rank:.2f}",
            f"{100 * one.gap:+.1f}",
            f"{one.win_rate:.0%}" if not math.isnan(one.win_rate) else "",
            f"{one.seconds:.2f}",
        ]
        for one in board.standings
    ]


def sentences(board: Leaderboard) -> list[str]:
    """The leaderboard in sentences."""
    first = board.standings[0]
    if len(board.data) == 1:
        metric = board.metric.replace("_", " ")
        return [f"{first.name} is the best on {board.data[0]}: {metric} {first.score:.4f}."]
    found = [f"{first.name} has the best mean rank ({first.rank:.2f}) over {len(board.data)} data sets."]
    if not math.isnan(board.friedman_p):
        differ = "differ" if board.friedman_p < 0.05 else "do not differ significantly"
        found.append(f"The ranks {differ} (Friedman's test, p = {board.friedman_p:.2g}).")
        found.append(
            "Two mean ranks differ significantly by Nemenyi's test if they are "
            f"{board.critical_difference:.2f} "
            "apart."
        )
    even = [name for name, p in board.wilcoxon.items() if p >= 0.05]
    if even and len(board.data) >= WILCOXON_DATA:
        found.append(
            f"Wilcoxon's test with Holm's correction does not tell it from {len(even)} of "
            f"{len(board.wilcoxon)} others."
        )
    return found


def to_markdown(board: Leaderboard, *, against: str = "", worths: Worths = ()) -> str:
    """The leaderboard as a Markdown table, with its sentences."""
    lines = [*_markdown(HEADER, table_rows(board)), "", *sentences(board), ""]
    if worths:
        lines += [
            f"Compared with {against}, in points:",
            "",
            *_markdown(WORTH_HEADER, worth_rows(worths)),
            "",
        ]
    return "\n".join(lines)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def to_latex(board: Leaderboard) -> str:
    """The leaderboard as a LaTeX table (package booktabs)."""

    def escape(text: str) -> str:
        for character in "\\&%$#_{}":
            text = text.replace(character, f"\\{character}" if character != "\\" else "\\textbackslash ")
        return text

    lines = ["\\begin{tabular}{l" + "r" * (len(HEADER) - 1) + "}", "\\toprule"]
    lines += [" & ".join(map(escape, HEADER)) + " \\\\", "\\midrule"]
    lines += [" & ".join(map(escape, row)) + " \\\\" for row in table_rows(board)]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def to_html(rows: Rows, board: Leaderboard, title: str, *, against: str = "", worths: Worths = ()) -> str:
    """Return one page that needs no other file: leaderboard, figures, and a table of all results."""
    several = len(board.data) > 1
    columns = ["data", "backbone", "features", "method", "budget", "seed", board.metric, "fit_s"]
    figures = [rank_figure(board)] if several else []
    figures += [front_figure(board)] if len(board.standings) > 1 else []
    curve = budget_figure(rows, board.metric)
    return render(
        "suite.html",
        title=title,
        sentences=sentences(board),
        head=HEADER,
        rows=table_rows(board),
        figures=figures + ([curve] if curve else []),
        against=against,
        worth_head=WORTH_HEADER,
        worths=worth_rows(worths),
        metric=board.metric.replace("_", " "),
        data_head=["", *board.data],
        by_data=[[one.name, *(f"{score:.4f}" for score in one.scores)] for one in board.standings]
        if several
        else [],
        left_out=board.left_out,
        all_head=columns,
        all=[[_shown(key, row.get(key)) for key in columns] for row in finished(rows)],
    )


def worth_rows(worths: Worths) -> list[list[str]]:
    """Cells of differences, in the order of `WORTH_HEADER`."""
    return [
        [
            one.name,
            f"{100 * one.difference:+.2f}",
            "" if math.isnan(one.low) else f"[{100 * one.low:+.2f}, {100 * one.high:+.2f}]",
            f"{one.p:.3f}",
            f"{one.seconds:.2f} ×",
            str(one.n_data),
        ]
        for one in worths
    ]


def rank_figure(board: Leaderboard) -> Figure:
    """Critical-difference diagram (Demšar, 2006)."""
    standings = board.standings
    with drawing(size=(7, 0.28 * len(standings) + 1.1)) as display:
        ax = display.ax_
        for y, one in enumerate(standings):
            ax.plot([one.rank], [y], "o", color=BLUE)
            ax.annotate(
                _short(one.name), (one.rank, y), xytext=(7, 0), textcoords="offset points", va="center"
            )
        ranks = [one.rank for one in standings]
        for first, last in _cliques(ranks, board.critical_difference):
            ax.plot([ranks[first], ranks[last]], [first - 0.35] * 2, color=LINE, linewidth=3, zorder=0)
        ax.invert_yaxis()
        ax.set_yticks([])
        ax.margins(x=0.3)
        ax.set(xlabel="mean rank (1 is best)", title=f"{_short(standings[0].name)} has the best mean rank")
    return Figure(display.to_svg("ranks"), "Mean ranks over the data sets; a bar joins what does not differ.")


def _cliques(ranks: Sequence[float], distance: float) -> list[tuple[int, int]]:
    """Longest runs of sorted ranks that are within the distance; of one element none."""
    found: list[tuple[int, int]] = []
    for first in range(len(ranks)):
        last = max(i for i in range(first, len(ranks)) if ranks[i] - ranks[first] <= distance)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def front_figure(board: Leaderboard) -> Figure:
    """Mean score against mean seconds, with the front of what is not beaten in both."""
    front = sorted((one.seconds, one.score, one.name) for one in board.standings if one.on_front)
    with drawing(size=(7, 4)) as display:
        ax = display.ax_
        for one in board.standings:
            ax.plot([one.seconds], [one.score], "o", color=BLUE if one.on_front else LINE, markersize=5)
        ax.plot([x for x, _, _ in front], [y for _, y, _ in front], color=BLUE, linewidth=1)
        _log_axis(ax)
        ax.margins(x=0.2, y=0.12)
        _label_points(ax, front)
        ax.set(
            xlabel="seconds of fit and prediction", ylabel=board.metric.replace("_", " "),
            title=f"{_short(front[0][2])} is the fastest of {len(board.standings)}",
        )  # fmt: skip
    return Figure(
        display.to_svg("front"), "Score against seconds; the line joins what is not beaten in both."
    )


def _label_points(ax: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """Write names beside points: in the first of a few places where a name covers no other one."""
    places = [(x, y) for y in (-11, 5, -22, 16, -33, 27) for x in (4, -4)]
    taken: list[Any] = []
    for x, y, name in points:
        for place in places:
            label = ax.annotate(
                _short(name), (x, y), xytext=place, textcoords="offset points",
                ha="left" if place[0] > 0 else "right",
            )  # fmt: skip
            own = label.get_window_extent()
            if not own.count_overlaps(taken) or place == places[-1]:
                break
            label.remove()
        taken.append(own)


def budget_figure(rows: Rows, metric: str) -> Figure | None:
    """Mean score by number of training images for each method; None for a single budget."""
    own = finished(rows)
    if len({str(row["budget"]) for row in own}) < 2:
        return None
    with drawing(size=(7, 4)) as display:
        ax = display.ax_
        ends = []
        for method in dict.fromkeys(row["method"] for row in own):
            points: dict[str, list[tuple[float, float]]] = {}
            for row in own:
                if row["method"] == method and row.get(metric) is not None:
                    points.setdefault(str(row["budget"]), []).append(
                        (row["n_train"] / row["n_classes"], row[metric])
                    )
            line = sorted(tuple(np.mean(values, axis=0)) for values in points.values())
            if line:
                drawn = ax.plot([x for x, _ in line], [y for _, y in line], "o-", markersize=3)[0]
                ends.append((*line[-1], method, drawn.get_color()))
        _log_axis(ax)
        ax.margins(x=0.05)
        _label_ends(ax, ends)
        ax.set(
            xlabel="training images of each class", ylabel=metric.replace("_", " "),
            title=f"{_short(_best_end(ends, metric))} has the best score with most labels",
        )  # fmt: skip
    return Figure(display.to_svg("budgets"), "Mean score of each method by number of labels.")


def _best_end(ends: list[tuple[float, float, str, Any]], metric: str) -> str:
    """Name of the method with the best score among those with most labels."""
    most = max(x for x, *_ in ends)
    return max((METRICS[metric].sign * y, name) for x, y, name, _ in ends if x == most)[1]


def _label_ends(ax: Any, ends: list[tuple[float, float, str, Any]]) -> None:
    """Write names beside the ends of lines, apart from each other."""
    low, high = ax.get_ylim()
    step, last = 0.045 * (high - low), -math.inf
    for x, y, name, color in sorted(ends, key=lambda end: end[1]):
        last = max(y, last + step)
        ax.annotate(
            _short(name), (x, last), xytext=(6, 0), textcoords="offset points", va="center", color=color,
            annotation_clip=False, fontsize=8,
        )  # fmt: skip


def _log_axis(ax: Any) -> None:
    """Seconds or counts on a logarithmic axis, with numbers as people write them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def summary(rows: Rows, metric: str = "accuracy", by: Sequence[str] | None = None) -> Leaderboard:
    """The leaderboard of what differs between the results."""
    return leaderboard(rows, metric=metric, by=by or varying(rows))


def varying(rows: Rows) -> tuple[str, ...]:
    """Return the fields that differ between the results."""
    fields = ("backbone", "features", "method", "budget")
    own = finished(rows)
    return tuple(key for key in fields if len({str(row[key]) for row in own}) > 1) or ("method",)


def _short(name: str, most: int = 46) -> str:
    name = name.replace(".in1k", "").replace("tf_", "")
    return name if len(name) <= most else name[: most - 1] + "…"


def _shown(key: str, value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}" if key.endswith("_s") else f"{value:.4f}"
    return "" if value is None else str(value)
