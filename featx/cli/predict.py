"""``featx predict``: label images with a saved classifier, one CSV row each."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from featx.cli import arguments
from featx.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("model", help="a .featx file")
    parser.add_argument("images", nargs="+", help="images, folders or a manifest")
    parser.add_argument("-o", "--output", metavar="FILE", help="CSV to write (default: print it)")
    parser.add_argument(
        "--top-k",
        type=arguments.whole(1),
        default=3,
        metavar="K",
        help="most probable labels to list (default 3)",
    )
    parser.add_argument(
        "--min-confidence", type=float, metavar="P", help="leave the label empty below this probability"
    )
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="weights of the backbone, where they cannot be found by name"
    )
    arguments.add_compute(parser)
    arguments.add_skipping(parser)
    arguments.add_cache(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Predict and write one row per picture, in order."""
    if args.output:
        arguments.check_writable(args.output)
    import numpy as np

    from featx.classifier import load
    from featx.cli import render
    from featx.images import load_paths
    from featx.tables import write_csv

    clf = load(args.model, store=arguments.store_of(args), checkpoint=args.checkpoint)
    clf.set_params(
        device=args.device,
        extractor__runtime=args.runtime,
        extractor__batch_size=args.batch_size,
        callback=console.progress,
    )
    images = load_paths(args.images, follow_links=args.follow_links, labelled=False)
    rows = clf.extract(images, on_error="raise" if args.strict else "skip")
    proba = clf.proba_of_features(rows.blocks)
    names = [images.names[index] for index in rows.kept]
    order = np.argsort(-proba, axis=1, kind="stable")[:, : min(max(args.top_k, 1), proba.shape[1])]
    predictions = [
        _prediction(name, p, best, clf.classes_, args.min_confidence)
        for name, p, best in zip(names, proba, order, strict=True)
    ]
    header = ["path", "label", "probability"] + [
        f"{what}_{k}" for k in range(1, order.shape[1] + 1) for what in ("label", "probability")
    ]
    if args.output:
        write_csv(args.output, header, (_csv_row(p) for p in predictions))
        console.text(f"{len(predictions):,} predictions in {args.output}")
    elif not args.json:
        write_csv(sys.stdout, header, (_csv_row(p) for p in predictions))
    console.data(predictions=predictions, output=args.output)
    target = Path(args.output or "predictions").with_suffix(".skipped.csv")
    return render.skipped(
        console,
        [*images.skipped, *rows.skipped],
        target,
        strict=args.strict,
        total=len(images) + len(images.skipped),
        max_bad=args.max_bad,
    )


def _prediction(
    name: str, proba: Any, best: Any, classes: Any, min_confidence: float | None
) -> dict[str, Any]:
    top = [{"label": _python(classes[index]), "probability": float(proba[index])} for index in best]
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


def _python(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
