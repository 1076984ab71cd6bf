"""``featx models``: list backbones, and where their weights come from."""

from __future__ import annotations

import argparse

from featx.cli.console import Console
from featx.exceptions import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument(
        "pattern", nargs="?", help="shell pattern, such as 'resnet*' (default: those whose weights are here)"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """List the models that match."""
    from featx.backbones import list_models, nearest_names

    models = list_models(args.pattern)
    if args.pattern is None:
        models = [model for model in models if model.available]
    if args.pattern and not models:
        raise UsageError(
            f"no model with weights matches {args.pattern!r}; nearest names: "
            f"{', '.join(nearest_names(args.pattern))}."
        )
    console.table(
        ["model", "weights", "input"],
        [[model.name, model.source, f"{model.input_size[0]}x{model.input_size[1]}"] for model in models],
    )
    if args.pattern is None:
        console.log("the weights of these are on this machine; `featx models 'resnet*'` searches all of timm")
    console.data(
        models=[
            {"name": m.name, "source": m.source, "available": m.available, "input_size": list(m.input_size)}
            for m in models
        ]
    )
    return 0 if models else 1
