"""``featx curve``: how the score grows with the labels, from k images a class to twice what there is."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from featx.cli import arguments
from featx.cli.console import Console
from featx.exceptions import DataError, UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("data", help="labelled images: folder of class folders or manifest")
    parser.add_argument(
        "--shots", default="1,2,5,10,20", metavar="K,K,...", help="images of each class to learn from"
    )
    parser.add_argument(
        "--draws", type=int, default=100, metavar="N", help="drawings for each k (default 100)"
    )
    parser.add_argument("--head", default="ridge", metavar="NAME", help="head to fit (default ridge)")
    parser.add_argument("--plot", metavar="FILE", help="draw the learning curve with its band, as PNG")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, metavar="N", help="threads")
    arguments.add_backbone(parser)
    parser.add_argument("--cut", default="last", metavar="TAP", help="layer (default: the last)")
    arguments.add_precision(parser)
    arguments.add_skipping(parser)
    arguments.add_cache(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Extract, draw, score."""
    if args.plot:
        arguments.check_writable(args.plot)
    shots = _numbers(args.shots)
    import numpy as np

    from featx.cli import render
    from featx.curves import curve_head, few_shot, forecast, learning_curve
    from featx.files import atomic_write
    from featx.images import load_images
    from featx.splits import check_labels, image_groups

    images = render.data_set(console, load_images(args.data, follow_links=args.follow_links), min_per_class=2)
    if images.labels is None:
        raise DataError(f"{args.data}: no labels here; give class folders or a manifest with labels.")
    check_labels(images.labels)
    rows = arguments.extractor(
        args,
        backbone=args.backbone,
        cut=args.cut,
        pool=args.pool or "avg",
        resize=args.resize or "crop",
        store=arguments.store_of(args),
        device=args.device,
        callback=console.progress,
    ).extract(images.sources, names=images.names, on_error="raise" if args.strict else "skip")
    images = images.select(rows.kept)
    labels, groups = np.asarray(images.labels), image_groups(rows.ids, images.groups)
    jobs = args.jobs or 1
    protocol = few_shot(
        rows.blocks, labels, shots=shots, n_draws=args.draws, head=args.head, groups=groups, n_jobs=jobs,
        random_state=args.seed,
    )  # fmt: skip
    curve = learning_curve(
        rows.blocks, labels, head=curve_head(args.head), groups=groups, n_jobs=jobs, random_state=args.seed
    )
    more = forecast(curve)
    _print(console, protocol, curve, more)
    if args.plot:
        from featx.report.figures import plot_curve, to_png

        atomic_write(args.plot, to_png(plot_curve(curve)))
        console.text(f"figure    {args.plot}")
    console.data(
        few_shot=protocol.to_dict(),
        curve=curve.to_dict(),
        forecast=more.to_dict(),
        blocks=list(rows.blocks),
        computed=rows.computed,
        data=os.fspath(args.data),
    )
    return render.skipped(
        console,
        [*images.skipped, *rows.skipped],
        Path("curve.skipped.csv"),
        strict=args.strict,
        total=len(images) + len(images.skipped) + len(rows.skipped),
        max_bad=args.max_bad,
    )


def _print(console: Console, protocol: Any, curve: Any, more: Any) -> None:
    draws = protocol.scores[0].draws
    console.text(f"k images of each of {protocol.n_classes} classes, {draws} drawings, {protocol.head}")
    console.table(
        ["k", "mean recall", "95 % interval", "a single drawing"],
        [
            [
                score.k,
                f"{score.accuracy.value:.3f}",
                f"[{score.accuracy.low:.3f}, {score.accuracy.high:.3f}]",
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
    console.table(
        ["training images", "accuracy", "95 % interval"],
        [
            [f"{size:.0f}", f"{accuracy.value:.3f}", f"[{accuracy.low:.3f}, {accuracy.high:.3f}]"]
            for size, accuracy in zip(curve.sizes, curve.accuracy, strict=True)
        ],
        right=(0, 1),
    )
    gain = more.gain
    console.text(
        f"{more.n_then:,} labels instead of {more.n:,} are expected to bring {100 * gain.value:+.1f} points "
        f"[{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] (90 % band)"
    )
    wins = [c for c in more.by_class if c.gain.value > 0][:3]
    if wins:
        named = ", ".join(f"{c.label} ({100 * c.gain.value:+.1f} points of recall)" for c in wins)
        console.text(f"most of it for {named}")


def _numbers(text: str) -> list[int]:
    try:
        found = [int(part) for part in arguments.listed(text) or []]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UsageError(f"--shots {text!r}: write whole numbers above 0, such as 1,2,5,10.")
    return found
