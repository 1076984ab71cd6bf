"""Write docs/benchmarks.md from the results in benchmarks/out; `TARGETS` is the table of targets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from machine import cpu
from pairs import OUT, ROOT, number

PAGE = ROOT / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Target:
    """A target for a figure.

    Parameters
    ----------
    figure : str
        Its name among the parts' figures.
    what : str
        In words.
    bound : float
        In `unit`.
    unit : {'×', '%', 's', ''}
        Percentages are given as fractions.
    at_most : bool
        Whether smaller is better.
    flag : str
        The CPU's instruction set without which it does not bind.
    why : str
        What is known of it where it is not reached.
    """

    figure: str
    what: str
    bound: float
    unit: str = "×"
    at_most: bool = False
    flag: str = ""
    why: str = ""

    def reached(self, value: float) -> bool:
        """Whether a value reaches the target."""
        return value <= self.bound if self.at_most else value >= self.bound

    def text(self, value: float) -> str:
        """A value in its unit."""
        if self.unit == "%":
            return f"{100 * value:.0f} %"
        return f"{number(value, 3 if self.unit else 4)} {self.unit}".strip()


AMX = "without AMX, bf16 gains half of the target; then only the fp32 ratios count."
KERNELS = (
    "in fp32 nearly all of the time is the forward pass; the ratio is that of OpenVINO's kernels on two "
    "cores to torch's on two threads."
)
OVERHEAD = (
    "what is left is Python between the stages (hash, look up, stack, commit) and the first batches, which "
    "are small while the batch size is being found; the column of processor time tells it from waiting."
)
SEARCH = (
    "the naive study gains by the BLAS of its machine, too, and support vector machines with a precomputed "
    "kernel are libsvm's on either side."
)

TARGETS = (
    Target("lite0.timm-loop.fp32", "catdog against timm's documented loop, same features", 4, why=KERNELS),
    Target("lite0.embetter.fp32", "catdog against embetter, same features", 4, why=KERNELS),
    Target("lite0.timm-loop.bf16", "catdog against timm's loop, bf16", 8, flag="amx_bf16", why=AMX),
    Target("lite0.embetter.bf16", "catdog against embetter, bf16", 8, flag="amx_bf16", why=AMX),
    Target(
        "large.timm-loop.fp32",
        "photos of 2,000×1,500 against timm's loop, same features",
        5,
        why="full decoding of a large JPEG is libjpeg-turbo's work for everybody; only the resize, the "
        "network and the second core can be won. `--decode fast` decodes scaled.",
    ),
    Target("roofline.fp32", "of the roofline on 1,399 photos, fp32", 0.9, "%", why=OVERHEAD),
    Target("roofline.bf16", "of the roofline on 1,399 photos, bf16", 0.9, "%", why=OVERHEAD),
    Target(
        "memory",
        "peak memory with 12 times as many photos",
        1.1,
        at_most=True,
        why="queues fill and the allocator keeps what they held; digests are 32 bytes an image.",
    ),
    Target("search.naive", "50 configurations at 1,399×2 against the naive study", 15, why=SEARCH),
    Target(
        "search.worse",
        "by how much its best score is lower",
        0.001,
        "",
        at_most=True,
        why="one photo of 1,399 is 0.0007.",
    ),
    Target("search.5000x10", "the same at 5,000×10 (*calculated*)", 30, why=SEARCH),
    Target("store.million", "store of a million images: open, find and serve 1,400", 0.5, "s", at_most=True,
           why="reading 1,400 scattered features is the larger part."),
    Target("job.cold", "`featx fit` on catdog, cold, 200 and more configurations", 20, "s", at_most=True,
           why="imports of PyTorch and scikit-learn, opening and converting the network, and the passes of "
               "1,399 photos and of 400 more for other resizings follow one another; the search "
               "of a warm fit comes on top. See *The whole job*."),
    Target("job.warm", "`featx fit` on catdog, warm", 4, "s", at_most=True,
           why="two seconds are imports, the rest the search over layers, poolings and heads: its products "
               "wait for memory, and its Cholesky factors for the interpreter's lock, so two cores do little "
               "more than one."),
    Target("job.predict", "`featx predict` on one new photo, converted network kept", 3, "s", at_most=True,
           why="imports of scikit-learn and OpenVINO are most of it."),
)  # fmt: skip
"""All targets; the median is compared with the bound."""


def write(parts: Sequence[str]) -> None:
    """Write the page from the parts that are there."""
    found = {part: json.loads(path.read_text(encoding="utf-8")) for part in parts
             if (path := OUT / f"{part}.json").exists()}  # fmt: skip
    PAGE.write_text(render(found), encoding="utf-8")


def render(parts: dict[str, dict[str, Any]]) -> str:
    """The page as Markdown."""
    figures = {name: figure for part in parts.values() for name, figure in part["figures"].items()}
    lines = [
        "# Benchmarks",
        "",
        "featx and other tools in alternation (A, B, A, B, ...), each in a warmed-up process of its own, "
        "with equal work and compared results. A ratio is the median of the ratios of the rounds; its "
        "quartiles are in brackets. Written by `make bench`; the scripts are in `benchmarks/`.",
        "",
        *machines(parts),
        "",
        "## Targets",
        "",
        *summary(figures),
    ]
    for part in parts.values():
        lines += ["", f"## {part['title']}", "", part["about"]]
        for each in part["tables"]:
            lines += [
                "",
                *([each["before"], ""] if each["before"] else []),
                *table(each["header"], each["rows"]),
            ]
            lines += ["", each["after"]] if each["after"] else []
    return "\n".join(lines) + "\n"


def machines(parts: dict[str, dict[str, Any]]) -> list[str]:
    """Machines and dates, with the parts that ran there."""
    places: dict[str, list[str]] = {}
    for name, part in parts.items():
        places.setdefault(part["machine"], []).append(f"{name} ({part['seconds']:.0f} s)")
    return [f"{machine} Parts: {', '.join(names)}." for machine, names in places.items()]


def summary(figures: dict[str, dict[str, Any]]) -> list[str]:
    """Table of targets and measured values, and why a target was not reached."""
    rows, reasons = [], []
    for target in TARGETS:
        figure = figures.get(target.figure)
        if figure is None:
            rows.append([target.what, bound_text(target), "not run", "", "", ""])
            continue
        good = target.reached(figure["value"])
        binds = not target.flag or target.flag in cpu()
        verdict = "yes" if good else ("**no**" if binds else f"no ({target.flag} is missing: does not count)")
        worse = figure["high"] if target.at_most else figure["low"]
        spread = target.text(worse) if figure["n"] > 1 else "one run"
        value = target.text(figure["value"])
        rows.append([target.what, bound_text(target), value, spread, verdict, figure["check"]])
        if not good:
            reasons.append(f"* {target.what}: {target.why or 'not yet explained.'}")
    header = ["what", "target", "median", "quartile on the worse side", "reached", "equal results"]
    lines = table(header, rows)
    return [*lines, "", "Targets that are not reached:", "", *dict.fromkeys(reasons)] if reasons else lines


def bound_text(target: Target) -> str:
    """The bound in words."""
    return f"{'at most' if target.at_most else 'at least'} {target.text(target.bound)}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in [header, *rows]]
    return [lines[0], "|" + "---|" * len(header), *lines[1:]]
