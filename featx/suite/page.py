"""A suite's results as text, Markdown, LaTeX and one HTML page."""

from __future__ import annotations

import html
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from featx.suite.folder import finished
from featx.suite.ranking import Leaderboard, leaderboard

WILCOXON_DATA = 6
"""Fewest data sets with which Wilcoxon's test can find a difference at 5 %."""

HEADER = ("", "score", "95 % interval", "mean rank", "gap to best", "win rate", "seconds")


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
    """What the leaderboard says, in sentences."""
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


def to_markdown(board: Leaderboard) -> str:
    """The leaderboard as a Markdown table, with its sentences."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table_rows(board)]
    return "\n".join([*lines, "", *sentences(board), ""])


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


def to_html(rows: Sequence[dict[str, Any]], board: Leaderboard, title: str) -> str:
    """One page that needs no other file: leaderboard, figures, and a table of all results."""
    e = html.escape
    head = "".join(f"<th>{e(cell)}</th>" for cell in HEADER)
    body = "".join(
        "<tr>" + "".join(f"<td>{e(cell)}</td>" for cell in row) + "</tr>" for row in table_rows(board)
    )
    figures = [("Mean ranks; a bar joins what does not differ", rank_figure(board))]
    figures.append(("Score against seconds; the line joins what is not beaten in both", front_figure(board)))
    if curve := budget_figure(rows, board.metric):
        figures.append(("Score by number of labels", curve))
    drawn = "".join(f"<figure>{svg}<figcaption>{e(text)}</figcaption></figure>" for text, svg in figures)
    columns = ["data", "backbone", "features", "method", "budget", "seed", board.metric, "fit_s", "error"]
    cells = "".join(
        "<tr>" + "".join(f"<td>{e(_shown(row.get(key)))}</td>" for key in columns) + "</tr>" for row in rows
    )
    names = "".join(f"<th>{e(key)}</th>" for key in columns)
    out = "".join(f"<li>{e(text)}</li>" for text in board.left_out)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{e(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body><main>'
        f"<h1>{e(title)}</h1>{''.join(f'<p>{e(text)}</p>' for text in sentences(board))}"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{drawn}'
        f"{f'<h2>Without a result</h2><ul>{out}</ul>' if out else ''}"
        f'<h2>All results</h2><div class="wide"><table><thead><tr>{names}</tr></thead>'
        f"<tbody>{cells}</tbody></table></div></main></body></html>\n"
    )


def rank_figure(board: Leaderboard) -> str:
    """Critical-difference diagram (Demšar, 2006) as SVG."""
    standings = board.standings
    figure, ax = _figure(7, 0.28 * len(standings) + 1)
    for y, one in enumerate(standings):
        ax.plot([one.rank], [y], "o", color="C0")
        ax.text(
            -0.01,
            y,
            _short(one.name),
            ha="right",
            va="center",
            transform=ax.get_yaxis_transform(),
            fontsize=8,
        )
    for y, (first, last) in enumerate(_cliques([one.rank for one in standings], board.critical_difference)):
        x = standings[first].rank
        ax.plot(
            [x, standings[last].rank], [first - 0.35] * 2, color="0.3", linewidth=2.5, alpha=0.7 - 0.02 * y
        )
    ax.invert_yaxis()
    ax.set_yticks([])
    ax.set_xlabel("mean rank (1 is best)")
    return _svg(figure)


def _cliques(ranks: Sequence[float], distance: float) -> list[tuple[int, int]]:
    """Longest runs of sorted ranks that are within the distance; of one element none."""
    found: list[tuple[int, int]] = []
    for first in range(len(ranks)):
        last = max(i for i in range(first, len(ranks)) if ranks[i] - ranks[first] <= distance)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def front_figure(board: Leaderboard) -> str:
    """Mean score against mean seconds as SVG, with the front of what is not beaten in both."""
    figure, ax = _figure(7, 4)
    for one in board.standings:
        ax.plot([one.seconds], [one.score], "o", color="C0" if one.on_front else "0.6", markersize=5)
    front = sorted((one.seconds, one.score, one.name) for one in board.standings if one.on_front)
    ax.plot([x for x, _, _ in front], [y for _, y, _ in front], color="C0", linewidth=1)
    for x, y, name in front:
        ax.annotate(_short(name), (x, y), fontsize=7, xytext=(3, -9), textcoords="offset points")
    ax.set_xscale("log")
    ax.set_xlabel("seconds of fit and prediction")
    ax.set_ylabel(board.metric.replace("_", " "))
    return _svg(figure)


def budget_figure(rows: Sequence[dict[str, Any]], metric: str) -> str:
    """Mean score by number of training images for each method as SVG; empty for a single budget."""
    own = finished(rows)
    if len({str(row["budget"]) for row in own}) < 2:
        return ""
    figure, ax = _figure(7, 4)
    for method in dict.fromkeys(row["method"] for row in own):
        points: dict[str, list[tuple[float, float]]] = {}
        for row in own:
            if row["method"] == method and row.get(metric) is not None:
                points.setdefault(str(row["budget"]), []).append(
                    (row["n_train"] / row["n_classes"], row[metric])
                )
        line = sorted(tuple(np.mean(values, axis=0)) for values in points.values())
        if line:
            ax.plot([x for x, _ in line], [y for _, y in line], "o-", markersize=3, label=method)
    ax.set_xscale("log")
    ax.set_xlabel("training images of each class")
    ax.set_ylabel(metric.replace("_", " "))
    ax.legend(fontsize=7, frameon=False)
    return _svg(figure)


def summary(
    rows: Sequence[dict[str, Any]], metric: str = "accuracy", by: Sequence[str] | None = None
) -> Leaderboard:
    """The leaderboard of what differs between the results."""
    fields = ("backbone", "features", "method", "budget")
    own = finished(rows)
    varying = tuple(key for key in fields if len({str(row[key]) for row in own}) > 1)
    return leaderboard(rows, metric=metric, by=by or varying or ("method",))


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    ax = figure.add_subplot()
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax


def _svg(figure: Any) -> str:
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "featx"}):
        figure.savefig(
            stream,
            format="svg",
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
            transparent=True,
        )
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _short(name: str, most: int = 46) -> str:
    name = name.replace(".in1k", "").replace("tf_", "")
    return name if len(name) <= most else name[: most - 1] + "…"


def _shown(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


STYLE = """ :root{color-scheme:light dark;--line:#8884}body{font:16px/1.5 system-ui,sans-serif;margin:0}
main{max-width:62rem;margin:auto;padding:1rem}table{border-collapse:collapse;font-size:.85rem}
th,td{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:right}
th:first-child,td:first-child{text-align:left}.wide{overflow-x:auto}figure{margin:2rem 0} figure
svg{max-width:100%;height:auto;background:#fff;border-radius:4px}figcaption{font-size:.85rem;opacity:.8} """
