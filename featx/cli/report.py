"""``featx report``: write one page of what a model does, how good it is, and where it fails."""

from __future__ import annotations

import argparse
from typing import Any

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
    parser.add_argument(
        "--scratch",
        action="store_true",
        help="also train a small network from scratch on parts of the training images among DATA, and draw "
        "its accuracy (minutes)",
    )
    arguments.add_embedding(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Write the page, and the same content as JSON beside it."""
    arguments.check_writable(args.output, arguments.PAGE_ENDINGS)
    from pathlib import Path

    from featx.reporting import report

    clf = arguments.load_classifier(args, console.progress)
    images = None if args.data is None else arguments.load(args, args.data)
    title = f"Report of {Path(args.model).name}"
    scratch = _from_scratch(args, console, clf, images) if args.scratch else None
    made = report(clf, args.output, images, title=title, embedding=args.map, scratch=scratch)
    written(console, args.output, made)
    return 0


def _from_scratch(args: argparse.Namespace, console: Console, clf: Any, images: Any) -> Any:
    """Train a small network on parts of the training images; return its accuracy by their number."""
    import numpy as np

    from featx.classifier.inputs import with_digests
    from featx.exceptions import UsageError
    from featx.finetune.scratch import scratch_path

    known = clf.model_.images
    place = np.empty(0, np.intp)
    if images is not None:
        images = with_digests(images)
        trained = {one.tobytes() for one in known.ids[~known.is_test]}
        place = np.flatnonzero([one.tobytes() in trained for one in images.ids])
    if not len(place) or images.labels is None:
        raise UsageError("--scratch needs the labelled training images; give the images of the fit as DATA.")
    some = images.select(place)
    console.log("training a small convolutional network from scratch, on parts of the images")
    groups = known.units_of(some.ids)
    seed = clf.random_state or 0
    return scratch_path(some, some.labels, groups=groups, random_state=seed, callback=console.progress)


def written(console: Console, path: str, made: object) -> None:
    """Print the answer and the path of a report."""
    answer = made.sections["answer"]  # type: ignore[attr-defined]
    console.text(f"{answer['good']} {answer['fails']}")
    console.text(f"report    {path}")
    console.data(report=path, answer=answer)
