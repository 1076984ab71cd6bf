"""``featx evaluate``: score a saved classifier on labelled images that it has not seen."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from featx.cli import arguments
from featx.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("model", help="a .featx file")
    parser.add_argument("data", help="labelled images: folder of class folders or manifest")
    parser.add_argument(
        "--min-confidence",
        type=float,
        metavar="P",
        help="report coverage and accuracy above this probability",
    )
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="weights of the backbone, where they cannot be found by name"
    )
    arguments.add_compute(parser)
    arguments.add_skipping(parser)
    arguments.add_cache(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Evaluate; warn of images that the model was trained on."""
    from featx.classifier import load
    from featx.classifier.fitting import evaluate_images
    from featx.cli import render
    from featx.images import load_images

    clf = load(args.model, store=arguments.store_of(args), checkpoint=args.checkpoint)
    clf.set_params(
        device=args.device,
        extractor__runtime=args.runtime,
        extractor__batch_size=args.batch_size,
        callback=console.progress,
        max_bad=0.0 if args.strict else args.max_bad,
    )
    images = load_images(args.data, follow_links=args.follow_links)
    if images.splits is not None and (images.splits == "test").any():
        images = images.select(images.splits == "test")
    extract = partial(clf.extract, images, on_error="skip")
    result, skipped = evaluate_images(clf.model_, images, extract, clf.max_bad, args.min_confidence)
    render.evaluation(console, result, title=f"{args.data}, {result.n} images")
    return render.skipped(
        console, skipped, Path(f"{Path(args.model).stem}-evaluate.skipped.csv"), strict=args.strict
    )
