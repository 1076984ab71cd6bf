"""``featx predict``: label images with a saved classifier, one CSV row for each image."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from featx.cli import arguments
from featx.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    arguments.add_model(parser)
    parser.add_argument("images", nargs="+", help="images, folders or a manifest")
    parser.add_argument("-o", "--output", metavar="FILE", help="CSV file to write (default: print it)")
    parser.add_argument(
        "--top-k",
        type=arguments.whole(1),
        default=3,
        metavar="K",
        help="number of most probable labels to list (default 3)",
    )
    arguments.add_min_confidence(parser, "leave the label empty below this probability")


def run(args: argparse.Namespace, console: Console) -> int:
    """Predict, and write one row for each image, in their order."""
    arguments.check_writable(args.output)
    import numpy as np

    from featx.cli import render
    from featx.images import load_paths
    from featx.tables import write_csv

    clf = arguments.load_classifier(args, console.progress)
    images = load_paths(args.images, follow_links=args.follow_links, labelled=False)
    found = clf.extract(images, on_error="raise" if args.strict else "skip")
    proba = clf.proba_of_features(found.blocks)
    names = [images.names[index] for index in found.kept]
    order = np.argsort(-proba, axis=1, kind="stable")[:, : min(args.top_k, proba.shape[1])]
    predictions = [
        _prediction(name, p, best, clf.classes_, args.min_confidence)
        for name, p, best in zip(names, proba, order, strict=True)
    ]
    header = ["path", "label", "probability"] + [
        f"{what}_{k}" for k in range(1, order.shape[1] + 1) for what in ("label", "probability")
    ]
    if args.output:
        write_csv(args.output, header, map(_csv_row, predictions))
        console.text(f"{len(predictions):,} predictions in {args.output}")
    elif not args.json:
        write_csv(sys.stdout, header, map(_csv_row, predictions))
    console.data(predictions=predictions, output=args.output)
    skipped = [*images.skipped, *found.skipped]
    total = len(images) + len(images.skipped)
    return render.skipped(console, args, skipped, args.output or "predictions", total=total)


def _prediction(
    name: str, proba: Any, best: Any, classes: Any, min_confidence: float | None
) -> dict[str, Any]:
    top = [{"label": classes[index].item(), "probability": float(proba[index])} for index in best]
    sure = min_confidence is None or top[0]["probability"] >= min_confidence
    return {
        "path": name,
        "label": top[0]["label"] if sure else None,
        "probability": top[0]["probability"],
        "top": top,
    }


def _csv_row(prediction: dict[str, Any]) -> list[Any]:
    label = "" if prediction["label"] is None else prediction["label"]
    row = [prediction["path"], label, f"{prediction['probability']:.6f}"]
    for entry in prediction["top"]:
        row += [entry["label"], f"{entry['probability']:.6f}"]
    return row
