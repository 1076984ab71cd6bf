"""``featx download``: fetch a backbone's weights once, for offline use."""

from __future__ import annotations

import argparse

from featx.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("name", help="timm model, e.g. resnet50.a1_in1k")


def run(args: argparse.Namespace, console: Console) -> int:
    """Download, or say where the weights already are."""
    from featx.backbones import download

    path = download(args.name)
    console.text(f"{args.name}: {path}")
    console.data(name=args.name, path=str(path))
    return 0
