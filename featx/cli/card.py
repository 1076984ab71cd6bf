"""``featx card``: write a model card in Markdown."""

from __future__ import annotations

import argparse

from featx.cli import arguments
from featx.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    arguments.add_model(parser)
    parser.add_argument("-o", "--output", metavar="FILE", help="Markdown file to write (default: print it)")


def run(args: argparse.Namespace, console: Console) -> int:
    """Write or print the card."""
    arguments.check_writable(args.output, arguments.TEXT_ENDINGS)
    from pathlib import Path

    from featx.files import atomic_write
    from featx.reporting import model_card

    text = model_card(arguments.load_classifier(args, console.progress), Path(args.model).name)
    if args.output:
        atomic_write(args.output, text.encode("utf-8", "backslashreplace"))
        console.text(f"card      {args.output}")
    else:
        console.text(text)
    console.data(card=text, output=args.output)
    return 0
