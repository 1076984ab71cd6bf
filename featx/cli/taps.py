"""``featx taps``: list the layers of a backbone whose output can be used, with their shapes."""

from __future__ import annotations

import argparse
import dataclasses

from featx.cli import arguments
from featx.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument("name", nargs="?", default=arguments.DEFAULT_BACKBONE, help="timm model")
    arguments.add_weights(parser)
    arguments.add_cache(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """List the taps of one network."""
    from featx.backbones import open_card
    from featx.stores import open_store

    store = open_store(arguments.store_of(args))
    card = open_card(
        args.name,
        checkpoint=args.checkpoint,
        pretrained=not args.random_weights,
        allow_download=args.allow_download,
        store=store,
    )
    height, width = card.input_size
    console.text(
        f"{card.name}: {card.parameters / 1e6:.1f} M parameters, input {height}x{width}, "
        f"weights {card.source}, licence {card.licence or 'unknown'}"
    )
    console.table(
        ["tap", "number", "shape", "stride", "pools"],
        [
            [t.name, t.index, "x".join(map(str, t.shape)), t.reduction, ", ".join(card.pools(t.name))]
            for t in card.taps
        ],
        right=(1, 3),
    )
    console.data(
        name=card.name,
        source=card.source,
        weights=card.weights,
        input_size=list(card.input_size),
        taps=[dataclasses.asdict(tap) for tap in card.taps],
    )
    return 0
