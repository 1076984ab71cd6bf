"""``featx add``: add new labelled images to a model; only new images are computed."""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

from featx.cli import arguments
from featx.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    arguments.add_model(parser)
    arguments.add_isolate(parser)
    arguments.add_manifest(parser)
    parser.add_argument("data", nargs="+", help="new labelled images: folders of class folders or manifests")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="file to write (default: replace the given model)"
    )
    parser.add_argument(
        "--old", metavar="DIR", help="images of the first fit, if the cache does not have their features"
    )
    arguments.add_trials(
        parser, 0, "of a new search (0: search anew only if a rival is now better beyond chance)"
    )
    arguments.add_jobs(parser)
    parser.add_argument(
        "--no-auto-groups",
        action="store_true",
        help="let new images stand in another part than their near copies",
    )
    arguments.add_test_part(parser, "of the new images", "as the model was fitted with")


def run(args: argparse.Namespace, console: Console) -> int:
    """Grow, save, and say what changed."""
    output = args.output or args.model
    arguments.check_writable(output, arguments.MODEL_ENDINGS)
    from featx.classifier.growth import grow
    from featx.cli import render
    from featx.images import load_images

    began = time.monotonic()
    clf = arguments.load_classifier(args, console.progress).set_params(n_jobs=args.jobs)
    if args.no_auto_groups:
        clf.set_params(auto_groups=False)
    images = render.data_set(console, arguments.load(args, args.data))
    old = None if args.old is None else load_images(args.old, follow_links=args.follow_links)
    grown, growth = grow(
        clf, images, old=old, test_size=args.test_size, split_salt=args.split_salt, n_trials=args.trials
    )
    path = grown.save(output)
    for sentence in growth.sentences():
        console.text(sentence)
    _print(console, growth)
    render.saved(console, path, time.monotonic() - began)
    console.data(growth=growth.to_dict(), computed=growth.computed)
    total = len(images) + len(images.skipped)
    return render.skipped(console, args, grown.skipped_, output, total=total)


def _print(console: Console, growth: Any) -> None:
    from featx.cli import render

    console.text()
    console.text(f"classes on the test part, {growth.n_test} images")
    console.table(
        ["class", "recall before", "now", "change", "95 % interval", "images", ""],
        [
            [
                change.label,
                "new" if math.isnan(change.before) else f"{change.before:.2f}",
                f"{change.after:.2f}",
                f"{change.difference.value:+.2f}",
                render.interval(change.difference, "+.2f"),
                change.n,
                change.verdict,
            ]
            for change in growth.by_class[: render.MAX_CLASSES_SHOWN]
        ],
        right=(1, 2, 3, 5),
    )
