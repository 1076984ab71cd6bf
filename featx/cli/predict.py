"""``featx predict``: label images with a saved classifier, one row of a table for each image."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from featx.cli import arguments
from featx.cli.console import Console
from featx.files import atomic_write
from featx.tables import require_pyarrow, write_csv, write_parquet

ENDINGS = (".csv", ".json", ".parquet")
"""Formats of predictions."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    arguments.add_model(parser)
    arguments.add_isolate(parser)
    arguments.add_manifest(parser)
    parser.add_argument("images", nargs="+", help="images, folders or a manifest")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="file to write: .csv, .json or .parquet (default: print CSV)"
    )
    parser.add_argument(
        "--top-k",
        type=arguments.whole(1),
        default=3,
        metavar="K",
        help="number of most probable labels to list (default 3)",
    )
    arguments.add_decide(parser, None, "default: as the model was fitted")
    arguments.add_min_confidence(parser, "leave the label empty below this probability")
    parser.add_argument(
        "--flag-unlike",
        type=arguments.number(0, 100),
        metavar="P",
        help="mark images that are at least as unlike the training images as this percentile, such as 99",
    )
    parser.add_argument(
        "--coverage",
        type=arguments.fraction,
        metavar="F",
        help="add a set of labels that holds the truth in this share of images like the training images",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Predict, and write one row for each image, in their order."""
    arguments.check_writable(args.output, ENDINGS)
    if args.output and arguments.ending_of(args.output) == ".parquet":
        require_pyarrow(args.output)
    import numpy as np

    from featx.cli import render

    clf = _load(args, console.progress)
    images = arguments.load(args, args.images, labelled=False)
    for remark in images.remarks:
        console.log(remark)
    found = clf.extract(images, on_error="raise" if args.strict else "skip")
    model = clf.model_
    proba = model.proba(found.blocks)
    answers = model.decision.shares(proba).argmax(axis=1)
    names = [images.names[index] for index in found.kept]
    order = np.argsort(-proba, axis=1, kind="stable")[:, : min(args.top_k, proba.shape[1])]
    unlike = model.unlike(found.blocks, found.ids)
    predictions = [
        _prediction(name, p, answer, best, model.classes, args.min_confidence)
        for name, p, answer, best in zip(names, proba, answers, order, strict=True)
    ]
    for prediction, value in zip(predictions, unlike.tolist(), strict=True):
        prediction["unlike"] = round(value, 2)
        if args.flag_unlike is not None:
            prediction["flag"] = "unlike" if value >= args.flag_unlike else ""
    if args.coverage is not None:
        for prediction, labels in zip(predictions, clf.sets_of(proba, args.coverage), strict=True):
            prediction["labels"] = labels
    header = ["path", "label", "probability"] + [
        f"{what}_{k}" for k in range(1, order.shape[1] + 1) for what in ("label", "probability")
    ]
    header += [name for name in ("unlike", "flag", "labels") if predictions and name in predictions[0]]
    if args.output:
        _write(args.output, header, predictions)
        console.text(f"{len(predictions):,} predictions in {args.output}")
    elif not args.json:
        write_csv(sys.stdout, header, map(_csv_row, predictions))
    console.data(predictions=predictions, output=args.output)
    render.unlike(console, unlike, args.flag_unlike)
    skipped = [*images.skipped, *found.skipped]
    total = len(images) + len(images.skipped)
    return render.skipped(console, args, skipped, args.output or "predictions", total=total)


def _load(args: argparse.Namespace, callback: Callable[[Any], None]) -> Any:
    """Load the `Predictor` that the options of `add_model` describe: it starts in a moment."""
    from featx.classifier import Predictor

    predictor = Predictor(
        args.model,
        runtime=args.runtime,
        device=args.device,
        batch_size=args.batch_size,
        store=arguments.store_of(args),
        checkpoint=args.checkpoint,
        allow_download=bool(args.allow_download),
        isolate=args.isolate,
        callback=callback,
    )
    if args.decide is not None:
        predictor.decide(arguments.decision(args.decide, predictor.classes_.tolist()))
    return predictor


def _prediction(
    name: str, proba: Any, answer: Any, best: Any, classes: Any, min_confidence: float | None
) -> dict[str, Any]:
    """Label, its probability, and the most probable labels, of which it may not be the first."""
    probability = float(proba[answer])
    sure = min_confidence is None or probability >= min_confidence
    return {
        "path": name,
        "label": classes[answer].item() if sure else None,
        "probability": probability,
        "top": [{"label": classes[index].item(), "probability": float(proba[index])} for index in best],
    }


def _write(path: str, header: list[str], predictions: list[dict[str, Any]]) -> None:
    """Write the predictions in the format that the ending of the path names."""
    ending = arguments.ending_of(path)
    if ending == ".json":
        text = json.dumps(predictions, indent=2, ensure_ascii=False) + "\n"
        atomic_write(path, text.encode(errors="backslashreplace"))  # bytes of names that are not UTF-8
    elif ending == ".parquet":
        write_parquet(path, header, [_row(prediction) for prediction in predictions])
    else:
        write_csv(path, header, map(_csv_row, predictions))


def _row(prediction: dict[str, Any]) -> list[Any]:
    row = [prediction["path"], prediction["label"], prediction["probability"]]
    for entry in prediction["top"]:
        row += [entry["label"], entry["probability"]]
    return row + _more(prediction)


def _csv_row(prediction: dict[str, Any]) -> list[Any]:
    label = "" if prediction["label"] is None else prediction["label"]
    row = [prediction["path"], label, f"{prediction['probability']:.6f}"]
    for entry in prediction["top"]:
        row += [entry["label"], f"{entry['probability']:.6f}"]
    return row + _more(prediction)


def _more(prediction: dict[str, Any]) -> list[Any]:
    """The last cells; a set of labels is one cell."""
    cells = [prediction[name] for name in ("unlike", "flag") if name in prediction]
    return cells + (["; ".join(map(str, prediction["labels"]))] if "labels" in prediction else [])
