"""``featx advise``: measure what to do next with labelled images: layer, labels, fine-tuning, backbone."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from featx.cli import arguments
from featx.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument(
        "data", help="labelled images: folder of class folders or manifest; a test part is not used"
    )
    arguments.add_plot(parser, "accuracy by layer and by number of labels")
    parser.add_argument(
        "--others",
        metavar="NAME[,NAME...]",
        help="backbones to compare on at most 500 images (see `featx models`)",
    )
    parser.add_argument(
        "--budget",
        type=arguments.seconds,
        default=600.0,
        metavar="TIME",
        help="time for other backbones, such as 90s or 10m (default 10m)",
    )
    parser.add_argument(
        "--scratch",
        action="store_true",
        help="also train a small convolutional network from scratch on parts of the images (minutes)",
    )
    arguments.add_search(parser)
    arguments.add_backbone(parser)
    parser.add_argument("--cut", metavar="TAP[,TAP...]|auto", help="layers to compare (default auto: all)")
    arguments.add_precision(parser)
    arguments.add_manifest(parser)
    arguments.add_skipping(parser)
    arguments.add_cache(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Fit on the training part, measure, and say what to do."""
    arguments.check_writable(args.plot, arguments.FIGURE_ENDINGS)
    from featx.advice import sentences
    from featx.cli import render
    from featx.stores import open_store

    began = time.monotonic()
    images = render.data_set(
        console,
        arguments.load(args, args.data),
        min_per_class=2,
    )
    if images.splits is not None and (images.splits == "test").any():
        images = images.select(images.splits != "test")
    store = open_store(arguments.store_of(args))  # one store for the fit and for the advice
    clf = arguments.classifier(args, console.progress, store=store).fit(images)
    console.log("measuring: layers, learning curve, label noise, the network with random weights")
    advice = clf.advice(
        others=arguments.listed(args.others) or (), budget_s=args.budget, random_state=args.seed
    )
    _print(console, advice)
    scratch = None
    if args.scratch:
        with render.aside(console, "network from scratch"):
            scratch = _from_scratch(args, console, clf.training_.images, advice)
    if args.plot:
        with render.aside(console, "figure"):
            from featx.reporting.figures import plot_advice

            render.figure(console, args.plot, plot_advice(advice, scratch=scratch))
    seconds = time.monotonic() - began
    console.data(
        advice=advice.to_dict(), sentences=sentences(advice), seconds=seconds, data=os.fspath(args.data)
    )
    return render.skipped(console, args, clf.skipped_, "advise")


def _from_scratch(args: argparse.Namespace, console: Console, images: Any, advice: Any) -> Any:
    """Compare with a small network trained from scratch: start, slope and asymptote of both curves."""
    from featx.cli import render
    from featx.curves import ScorePath, compare_paths
    from featx.finetune.scratch import scratch_path

    console.log("training a small convolutional network from scratch, on parts of the images")
    path = scratch_path(
        images,
        images.labels,
        groups=images.groups,
        random_state=args.seed,
        device=args.device,
        callback=console.progress,
    )
    own = ScorePath.of_curve(advice.curve, "pretrained features")
    effect = compare_paths(own, path) if len(path.x) > 1 else None
    console.text()
    render.scores(console, ["training images", "from scratch"], map(round, path.x), path.score)
    for sentence in effect.sentences() if effect is not None else ():
        console.text(sentence)
    console.data(
        scratch=[{"n": x, **m.to_dict()} for x, m in zip(path.x, path.score, strict=True)],
        transfer=None if effect is None else effect.to_dict(),
    )
    return path


def _print(console: Console, advice: Any) -> None:
    """Print sentences, then the measured values."""
    from featx.advice import sentences
    from featx.cli import render

    for sentence in sentences(advice):
        console.text(sentence)
    if advice.domain is not None:
        console.text()
        console.text("ridge classifier on each layer (out of fold)")
        console.table(
            ["layer", "accuracy", "95 % interval", "against the last", "effective rank", "columns"],
            [
                [
                    layer.block,
                    f"{layer.accuracy.value:.3f}",
                    render.interval(layer.accuracy),
                    f"{100 * layer.over_last.value:+.1f} points",
                    f"{layer.effective_rank:.0f}",
                    layer.width,
                ]
                for layer in advice.domain.layers
            ],
            right=(1, 3, 4, 5),
        )
    console.text()
    console.text("what could be done")
    console.table(
        ["what", "gain, points", "90-95 % interval", "minutes", "worth it", "why"],
        [_row(option) for option in advice.options],
        right=(1, 3),
    )


def _row(option: Any) -> list[str]:
    from featx.advice.words import ACTIONS
    from featx.cli import render

    what = ACTIONS[option.action].format(what=option.what)
    gain = option.gain
    shown = (
        ("", "") if gain is None else (f"{100 * gain.value:+.1f}", render.interval(gain, ".1f", scale=100))
    )
    minutes = f"{option.minutes:.0f}" if option.minutes > 0 else ""
    worth = "done" if option.done else "yes" if option.worthwhile else "no"
    return [what, *shown, minutes, worth, option.evidence[0]]
