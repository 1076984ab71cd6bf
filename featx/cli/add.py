"""``featx add``: take new labelled images into a model; only they are computed, and test stays test."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from featx.cli import arguments
from featx.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("model", help="a .featx file")
    parser.add_argument("data", nargs="+", help="new labelled images: folders of class folders or manifests")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="where to save the grown model (default: over the old one)"
    )
    parser.add_argument(
        "--old", metavar="DIR", help="images it was fitted on, where this cache does not know them"
    )
    parser.add_argument(
        "--trials",
        type=int,
        default=0,
        metavar="N",
        help="search anew with N trials (default 0: refit what won before)",
    )
    parser.add_argument(
        "--test-size",
        type=float,
        default=0.2,
        metavar="F",
        help="held-out fraction of the new images (default 0.2); old ones stay where they were",
    )
    parser.add_argument("--split-salt", default="", metavar="TEXT", help="as the model was fitted with")
    parser.add_argument("--jobs", type=int, metavar="N", help="threads of the search")
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="weights of the backbone, where they cannot be found by name"
    )
    arguments.add_compute(parser)
    arguments.add_skipping(parser)
    arguments.add_cache(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Grow, save, say what changed."""
    output = args.output or args.model
    arguments.check_writable(output)
    from featx.classifier import load
    from featx.classifier.growth import grow
    from featx.cli import render
    from featx.images import load_images, load_paths

    began = time.monotonic()
    clf = load(args.model, store=arguments.store_of(args), checkpoint=args.checkpoint)
    clf.set_params(
        device=args.device,
        extractor__runtime=args.runtime,
        extractor__batch_size=args.batch_size,
        n_jobs=args.jobs,
        callback=console.progress,
        max_bad=0.0 if args.strict else args.max_bad,
    )
    images = render.data_set(console, load_paths(args.data, follow_links=args.follow_links))
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
    return render.skipped(
        console,
        list(grown.skipped_),
        Path(output).with_suffix(".skipped.csv"),
        strict=args.strict,
        total=len(images) + len(images.skipped),
        max_bad=args.max_bad,
    )


def _print(console: Console, growth: Any) -> None:
    console.text()
    console.text(f"classes on the test part, {growth.n_test} images")
    console.table(
        ["class", "recall before", "now", "change", "95 % interval", "images", ""],
        [
            [
                change.label,
                "new" if change.before != change.before else f"{change.before:.2f}",
                f"{change.after:.2f}",
                f"{change.difference.value:+.2f}",
                f"[{change.difference.low:+.2f}, {change.difference.high:+.2f}]",
                change.n,
                change.verdict,
            ]
            for change in growth.by_class[:12]
        ],
        right=(1, 2, 3, 5),
    )
