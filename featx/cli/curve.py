"""``featx curve``: how the score grows with the number of labels, from k images a class to twice the set."""

from __future__ import annotations

import argparse
import os
from typing import Any

from featx.cli import arguments
from featx.cli.console import Console
from featx.exceptions import DataError, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument("data", help="labelled images: folder of class folders or manifest")
    parser.add_argument(
        "--shots",
        default="1,2,5,10,20",
        metavar="K,K,...",
        help="images of each class to learn from (default %(default)s)",
    )
    parser.add_argument(
        "--draws",
        type=arguments.whole(1),
        default=100,
        metavar="N",
        help="random samples for each k (default 100)",
    )
    parser.add_argument("--head", default="ridge", metavar="NAME", help="head to fit (default ridge)")
    arguments.add_plot(parser, "the learning curve with its band")
    arguments.add_seed(parser)
    arguments.add_jobs(parser)
    arguments.add_backbone(parser)
    parser.add_argument("--cut", default="last", metavar="TAP", help="layer (default: the last)")
    arguments.add_precision(parser)
    arguments.add_manifest(parser)
    arguments.add_skipping(parser)
    arguments.add_cache(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Extract features, fit on samples of the images, and report the scores."""
    arguments.check_writable(args.plot, arguments.FIGURE_ENDINGS)
    shots = _numbers(args.shots)
    import numpy as np

    from featx.cli import render
    from featx.curves import curve_head, few_shot, forecast, learning_curve
    from featx.splits import check_labels, image_groups
    from featx.threads import n_threads

    images = render.data_set(
        console,
        arguments.load(args, args.data),
        min_per_class=2,
    )
    if images.labels is None:
        raise DataError(f"{args.data}: there are no labels; give class folders or a manifest with labels.")
    check_labels(images.labels)
    found = arguments.feature_extractor(args, console.progress).extract(
        images.sources, names=images.names, on_error="raise" if args.strict else "skip"
    )
    read = images.select(found.kept)
    skipped = [*images.skipped, *found.skipped]
    code = render.skipped(console, args, skipped, "curve", total=len(read) + len(skipped))
    labels = np.asarray(read.labels)
    options: dict[str, Any] = {
        "groups": image_groups(found.ids, read.groups),
        "n_jobs": n_threads(args.jobs),
        "random_state": args.seed,
    }
    protocol = few_shot(found.blocks, labels, shots=shots, n_draws=args.draws, head=args.head, **options)
    curve = learning_curve(found.blocks, labels, head=curve_head(args.head), **options)
    more = forecast(curve)
    _print(console, protocol, curve, more)
    if args.plot:
        with render.aside(console, "figure"):
            from featx.reporting.figures import plot_curve, to_png

            render.figure(console, args.plot, to_png(plot_curve(curve)))
    console.data(
        few_shot=protocol.to_dict(),
        curve=curve.to_dict(),
        forecast=more.to_dict(),
        blocks=list(found.blocks),
        computed=found.computed,
        data=os.fspath(args.data),
    )
    return code


def _print(console: Console, protocol: Any, curve: Any, more: Any) -> None:
    from featx.cli import render

    draws = protocol.scores[0].draws
    console.text(f"k images of each of {protocol.n_classes} classes, {draws} samples, {protocol.head}")
    console.table(
        ["k", "mean recall", "95 % interval", "a single sample"],
        [
            [
                score.k,
                f"{score.accuracy.value:.3f}",
                render.interval(score.accuracy),
                f"{score.spread[0]:.3f} to {score.spread[1]:.3f}",
            ]
            for score in protocol.scores
        ],
        right=(0, 1),
    )
    if protocol.left_out:
        console.log(f"k = {', '.join(map(str, protocol.left_out))} left out: the smallest class is too small")
    console.text()
    console.text(f"learning curve, {curve.head}, out of fold ({curve.n_fits} fits)")
    render.scores(console, ["training images", "accuracy"], map(round, curve.sizes), curve.accuracy)
    console.text(
        f"expected gain from {more.n_then:,} labels instead of {more.n:,}: {more.gain.as_points()} "
        "(90 % interval)"
    )
    wins = [c for c in more.by_class if c.gain.value > 0][:3]
    if wins:
        named = ", ".join(f"{c.label} ({100 * c.gain.value:+.1f} points of recall)" for c in wins)
        console.text(f"largest gains: {named}")


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in arguments.listed(text) or []]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UsageError(f"--shots {text!r}: write whole numbers above 0, such as 1,2,5,10.")
    return found
