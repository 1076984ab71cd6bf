"""``featx models``: backbones by name, and where their weights would come from."""

from __future__ import annotations

import argparse

from featx.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument(
        "pattern", nargs="?", help="shell pattern, e.g. 'resnet*' (default: those whose weights are here)"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """List matching models."""
    from featx.backbones import list_models

    rows = list_models(args.pattern)
    if args.pattern is None:
        rows = [row for row in rows if row.available]
    console.table(
        ["model", "weights", "input"],
        [[row.name, row.source, f"{row.input_size[0]}x{row.input_size[1]}"] for row in rows],
    )
    if args.pattern is None:
        console.log("these have their weights on this machine; `featx models 'resnet*'` searches all of timm")
    console.data(
        models=[
            {"name": r.name, "source": r.source, "available": r.available, "input_size": list(r.input_size)}
            for r in rows
        ]
    )
    return 0 if rows else 1
