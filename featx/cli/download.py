"""``featx download``: download the weights of a backbone, for later use without a network."""

from __future__ import annotations

import argparse

from featx.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument("name", help="timm model, such as resnet50.a1_in1k")


def run(args: argparse.Namespace, console: Console) -> int:
    """Download the weights, or say where they already are."""
    from featx.backbones import download

    path = download(args.name)
    console.text(f"{args.name}: {path}")
    console.data(name=args.name, path=str(path))
    return 0
