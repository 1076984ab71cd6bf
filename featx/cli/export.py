"""``featx export``: write a model as an ONNX or OpenVINO graph, or as a file that runs without torch."""

from __future__ import annotations

import argparse

from featx.cli import arguments
from featx.cli.console import Console

TARGETS = ("onnx", "openvino", "featx")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument("model", help="a .featx file")
    parser.add_argument(
        "--to",
        required=True,
        choices=TARGETS,
        help="onnx or openvino: one graph from resized images to probabilities and labels; featx: the model "
        "file with its networks inside, for featx on a machine without torch",
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="file to write: .onnx, .xml or .featx"
    )
    parser.add_argument(
        "--resizing",
        action="store_true",
        help="with --to onnx: the graph takes one photo of any size, and resizes it",
    )
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="weights of the backbone, if they are not found by name"
    )
    arguments.add_allow_download(parser)
    arguments.add_cache(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Write the file, and say how far its probabilities are from featx's."""
    arguments.check_writable(args.output)
    from featx.classifier.exporting import export_model

    done = export_model(
        args.model,
        args.output,
        args.to,
        resizing=args.resizing,
        store=arguments.store_of(args),
        checkpoint=args.checkpoint,
        allow_download=bool(args.allow_download),
    )
    for name in done.files:
        console.text(f"written   {name}")
    if done.inputs:
        console.text(f"inputs    {', '.join(done.inputs)}")
        console.text(f"checked   probabilities within {done.difference:.1e} of featx's on synthetic images")
    else:
        console.text("checked   the networks inside give the features of the model")
    console.data(
        files=list(done.files), inputs=list(done.inputs), difference=done.difference, bytes=done.n_bytes
    )
    return 0
