"""``featx advise``: what to do next with these images, measured: layer, labels, fine-tuning, backbone."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from featx.cli import arguments
from featx.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument(
        "data", help="labelled images: folder of class folders or manifest; a test part is not looked at"
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="draw accuracy by layer and by number of labels, as PNG"
    )
    parser.add_argument(
        "--others",
        metavar="NAME[,NAME...]",
        help="backbones to compare on at most 500 images (see `featx models`)",
    )
    parser.add_argument(
        "--budget", type=float, default=600.0, metavar="S", help="seconds for other backbones (default 600)"
    )
    parser.add_argument(
        "--scratch",
        action="store_true",
        help="train a small convnet from nothing on parts of the images, for the plot (minutes)",
    )
    parser.add_argument(
        "--heads", metavar="A,B,...", help="heads to try (default: the cheap ones; see the docs)"
    )
    parser.add_argument(
        "--trials", type=int, default=20, metavar="N", help="Optuna trials beyond the grid (default 20)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, metavar="N", help="threads of the search")
    arguments.add_backbone(parser)
    parser.add_argument("--cut", metavar="TAP[,TAP...]|auto", help="layers to compare (default auto: all)")
    arguments.add_precision(parser)
    arguments.add_skipping(parser)
    arguments.add_cache(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Fit on the training part, measure, say what to do."""
    if args.plot:
        arguments.check_writable(args.plot)
    from featx.advice import sentences
    from featx.classifier import ImageClassifier
    from featx.cli import render
    from featx.files import atomic_write
    from featx.images import load_images
    from featx.stores import open_store

    began = time.monotonic()
    images = render.data_set(console, load_images(args.data, follow_links=args.follow_links), min_per_class=2)
    if images.splits is not None and (images.splits == "test").any():
        images = images.select(images.splits != "test")
    clf = ImageClassifier(
        args.backbone,
        cut=arguments.one_or_list(args.cut, "auto"),
        pool=arguments.one_or_list(args.pool, "auto"),
        resize=arguments.one_or_list(args.resize, "auto"),
        heads=arguments.listed(args.heads),
        n_trials=args.trials,
        max_bad=0.0 if args.strict else args.max_bad,
        store=open_store(arguments.store_of(args)),  # one store for the fit and for the advice
        device=args.device,
        n_jobs=args.jobs,
        random_state=args.seed,
        callback=console.progress,
        extractor=arguments.extractor(args),
    ).fit(images)
    console.log("measuring: layers, learning curve, label noise, the network with random weights")
    advice = clf.advice(
        others=arguments.listed(args.others) or (), budget_s=args.budget, random_state=args.seed
    )
    _print(console, advice)
    scratch = _from_scratch(args, console, clf, advice) if args.scratch else None
    if args.plot:
        from featx.report.figures import plot_advice

        atomic_write(args.plot, plot_advice(advice, scratch=scratch))
        console.text(f"figure    {args.plot}")
    seconds = time.monotonic() - began
    console.data(
        advice=advice.to_dict(), sentences=sentences(advice), seconds=seconds, data=os.fspath(args.data)
    )
    return render.skipped(console, list(clf.skipped_), Path("advise.skipped.csv"), strict=args.strict)


def _from_scratch(args: argparse.Namespace, console: Console, clf: Any, advice: Any) -> Any:
    """The tutorial's claims, measured: higher start, higher slope, higher asymptote."""
    from featx.curves import ScorePath, compare_paths
    from featx.finetune.scratch import scratch_path

    console.log("training a small convnet from nothing, on parts of the images")
    images = clf.training_.images
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
    console.table(
        ["training images", "from scratch", "95 % interval"],
        [[f"{x:.0f}", f"{m.value:.3f}", _interval(m)] for x, m in zip(path.x, path.score, strict=True)],
        right=(0, 1),
    )
    for sentence in effect.sentences() if effect is not None else ():
        console.text(sentence)
    console.data(
        scratch=[{"n": x, **m.to_dict()} for x, m in zip(path.x, path.score, strict=True)],
        transfer=None if effect is None else effect.to_dict(),
    )
    return path


def _print(console: Console, advice: Any) -> None:
    """Words first, then the numbers behind them."""
    from featx.advice import sentences

    for sentence in sentences(advice):
        console.text(sentence)
    if advice.domain is not None:
        console.text()
        console.text("probe by layer (ridge, out of fold)")
        console.table(
            ["layer", "accuracy", "95 % interval", "against the last", "effective rank", "columns"],
            [
                [
                    layer.block,
                    f"{layer.accuracy.value:.3f}",
                    _interval(layer.accuracy),
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

    what = ACTIONS[option.action].format(what=option.what)
    gain = option.gain
    shown = ("", "") if gain is None else (f"{100 * gain.value:+.1f}", _interval(gain, scale=100))
    minutes = f"{option.minutes:.0f}" if option.minutes > 0 else ""
    worth = "done" if option.done else "yes" if option.worthwhile else "no"
    return [what, *shown, minutes, worth, option.evidence[0]]


def _interval(metric: Any, *, scale: float = 1) -> str:
    digits = 3 if scale == 1 else 1
    return f"[{scale * metric.low:.{digits}f}, {scale * metric.high:.{digits}f}]"
