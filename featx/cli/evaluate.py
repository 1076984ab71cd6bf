"""``featx evaluate``: evaluate a saved classifier on labelled images."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from featx.cli import arguments
from featx.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    arguments.add_model(parser)
    arguments.add_isolate(parser)
    arguments.add_manifest(parser)
    parser.add_argument("data", help="labelled images: folder of class folders or manifest")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="CSV file to write: truth, answer and runner-up of each image"
    )
    arguments.add_decide(parser, None, "default: as the model was fitted")
    arguments.add_min_confidence(parser, "report coverage and accuracy above this probability")


def run(args: argparse.Namespace, console: Console) -> int:
    """Evaluate; warn about images that the model was trained on."""
    arguments.check_writable(args.output, arguments.TABLE_ENDINGS)
    from featx.classifier.fitting import evaluate_images
    from featx.classifier.grouping import near_trained
    from featx.classifier.record import ApartFromKin
    from featx.cli import render
    from featx.evaluation.answers import COLUMNS
    from featx.stores import open_store
    from featx.tables import write_csv

    clf = arguments.load_classifier(args, console.progress)
    images = arguments.load(args, args.data)
    render.data_set(console, images)
    if images.splits is not None and (images.splits == "test").any():
        images = images.select(images.splits == "test")
    extract = partial(clf.extract, images, on_error="skip")
    result, skipped = evaluate_images(
        clf.model_, clf._folds(), images, extract, clf.max_bad, args.min_confidence
    )
    render.evaluation(console, result, title=f"{args.data}, {result.n} images")
    with render.aside(console, "search for near copies"):
        assert result.answers is not None
        named = set(result.answers.names)
        kept = images.select([place for place, name in enumerate(images.names) if name in named])
        near = near_trained(clf.model_, kept, open_store(clf.store), isolate=args.isolate)
        render.apart(console, ApartFromKin.of(result, near))
    if args.output and result.answers is not None:
        rows = result.answers.rows()
        wrong = sum(row["answer"] != row["truth"] for row in rows)
        write_csv(args.output, COLUMNS, [list(row.values()) for row in rows])
        console.text(f"{len(rows):,} images, {wrong:,} mistaken, in {args.output}")
        console.data(output=args.output)
    return render.skipped(console, args, skipped, f"{Path(args.model).stem}-evaluate.csv")
