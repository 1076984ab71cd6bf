"""``featx bench``: run a benchmark suite, show its results, and compare two runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from featx.cli import arguments
from featx.cli.console import Console
from featx.exceptions import UsageError

REGRESSION = 1
"""Exit code of a run that is worse."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument(
        "what", nargs="+", metavar="SUITE.toml | show DIR | diff OLD NEW",
        help="a suite file to run; a results folder to show; two results folders to compare",
    )  # fmt: skip
    parser.add_argument("-o", "--output", metavar="DIR", help="results folder of a run (default: results)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what a run would compute, and how long it takes"
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="compute the parts of the suite again that failed before"
    )
    parser.add_argument(
        "--metric", default="accuracy", metavar="NAME", help="metric to rank by (default accuracy)"
    )
    parser.add_argument(
        "--against", metavar="NAME", help="show: paired comparison of each row with this one over data sets"
    )
    parser.add_argument("--html", metavar="FILE", help="show: write one page with tables and figures")
    parser.add_argument("--latex", metavar="FILE", help="show: write the leaderboard as a LaTeX table")
    parser.add_argument("--markdown", metavar="FILE", help="show: write the leaderboard as a Markdown table")
    parser.add_argument(
        "--fail-below", type=float, metavar="POINTS",
        help="diff: exit with 1 if a mean is significantly lower by more than this (such as -0.5)",
    )  # fmt: skip
    arguments.add_jobs(parser)
    arguments.add_cache(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Run, show or compare, and return the exit code."""
    from featx.evaluation import METRICS

    if args.metric not in METRICS:
        raise UsageError(f"--metric {args.metric!r} is not known; choose one of {', '.join(METRICS)}.")
    verb, *folders = args.what
    if verb == "show":
        return _show(args, console, *_folders(folders, 1, "show DIR"))
    if verb == "diff":
        return _diff(args, console, *_folders(folders, 2, "diff OLD NEW"))
    if folders:
        raise UsageError("give one suite file, `show DIR`, or `diff OLD NEW`.")
    return _run(args, console, verb)


def _folders(given: list[str], count: int, usage: str) -> list[str]:
    if len(given) != count:
        raise UsageError(f"write `featx bench {usage}`.")
    return given


def _run(args: argparse.Namespace, console: Console, path: str) -> int:
    from featx.suite import Suite

    output = args.output or "results"
    suite = Suite.from_toml(path, store=args.cache_dir, n_jobs=args.jobs)
    if args.dry_run:
        plan = suite.plan(output)
        console.text(f"{plan.cells:,} cells, {plan.done:,} of them done ({plan.failed:,} failed)")
        console.text(
            f"{plan.images:,} images to compute, about {plan.extract_s / 60:.1f} minutes and "
            f"{plan.gigabytes:.2f} GB; then about {plan.fit_s / 60:.1f} minutes of fits"
        )
        for note in plan.notes:
            console.warn(note)
        console.data(**plan.__dict__)
        return 0

    def report(cell: str, done: int, total: int, left: float | None) -> None:
        eta = f", about {left / 60:.1f} minutes left" if left is not None and done < total else ""
        console.log(f"{done}/{total}  {cell}{eta}")

    results = suite.run(output, retry_failed=args.retry_failed, report=report)
    args.metric = suite.config.metric if args.metric == "accuracy" else args.metric
    return _show(args, console, str(results.path))


def _show(args: argparse.Namespace, console: Console, folder: str) -> int:
    from featx.files import atomic_write
    from featx.suite import ResultsFolder, page
    from featx.suite.ranking import differences

    rows = ResultsFolder(folder).rows()
    board = page.summary(rows, args.metric)
    for text in page.sentences(board):
        console.text(text)
    console.text()
    numbers = range(1, len(page.HEADER))
    console.table([args.metric.replace("_", " "), *page.HEADER[1:]], page.table_rows(board), right=numbers)
    worths = (
        differences(rows, args.against, metric=args.metric, by=page.varying(rows)) if args.against else []
    )
    compared: dict[str, Any] = {"against": args.against or "", "worths": worths}
    if worths:
        console.text()
        console.table(
            [f"compared with {args.against}", *page.WORTH_HEADER[1:]],
            page.worth_rows(worths),
            right=range(1, 6),
        )
    for text in board.left_out:
        console.warn(text)
    title = f"Suite {Path(folder).name}"
    writers: tuple[tuple[str | None, Callable[[], str]], ...] = (
        (args.html, lambda: page.to_html(rows, board, title, **compared)),
        (args.latex, lambda: page.to_latex(board)),
        (args.markdown, lambda: page.to_markdown(board, **compared)),
    )
    for target, write in writers:
        if target:
            atomic_write(Path(target), write().encode())
            console.text(f"written   {target}")
    console.data(leaderboard=board.to_dict(), compared=[worth.to_dict() for worth in worths], folder=folder)
    return 0


def _diff(args: argparse.Namespace, console: Console, old: str, new: str) -> int:
    from featx.suite import ResultsFolder
    from featx.suite.ranking import compare_runs

    changes, paired = compare_runs(ResultsFolder(old).rows(), ResultsFolder(new).rows(), metric=args.metric)
    console.text(
        f"{args.metric.replace('_', ' ')} of {new} minus {old}, in points; "
        + ("the same test images" if paired else "other test images: means over seeds")
    )
    console.table(
        ["", "difference", "95 % interval", "p (worse)", "data sets"],
        [
            [
                c.name,
                f"{100 * c.difference:+.2f}",
                f"[{100 * c.low:+.2f}, {100 * c.high:+.2f}]",
                f"{c.p:.3f}",
                c.n_data,
            ]
            for c in changes
        ],
        right=(1, 2, 3, 4),
    )
    console.data(changes=[change.to_dict() for change in changes], paired=paired)
    if args.fail_below is None:
        return 0
    worse = [c for c in changes if 100 * c.difference < args.fail_below and c.p < 0.05]
    for change in worse:
        console.warn(f"{change.name} is worse by {-100 * change.difference:.2f} points (p = {change.p:.3f}).")
    return REGRESSION if worse else 0
