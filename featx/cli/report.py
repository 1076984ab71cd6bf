"""``featx report``: write one page of what a model does, how good it is, and where it fails."""

from __future__ import annotations

import argparse

from featx.cli import arguments
from featx.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    arguments.add_model(parser)
    parser.add_argument(
        "data",
        nargs="?",
        help="images of the fit, or new labelled images; without them there are no thumbnails",
    )
    parser.add_argument(
        "-o",
        "--output",
        default="report.html",
        metavar="FILE",
        help="HTML file to write (default report.html)",
    )

    arguments.add_embedding(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Write the page, and the same content as JSON beside it."""
    arguments.check_writable(args.output, arguments.PAGE_ENDINGS)
    from pathlib import Path

    from featx.reporting import report

    clf = arguments.load_classifier(args, console.progress)
    images = None if args.data is None else arguments.load(args, args.data)
    made = report(clf, args.output, images, title=f"Report of {Path(args.model).name}", embedding=args.map)
    written(console, args.output, made)
    return 0


def written(console: Console, path: str, made: object) -> None:
    """Print the answer and the path of a report."""
    answer = made.sections["answer"]  # type: ignore[attr-defined]
    console.text(f"{answer['good']} {answer['fails']}")
    console.text(f"report    {path}")
    console.data(report=path, answer=answer)
