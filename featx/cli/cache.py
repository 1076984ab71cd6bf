"""``featx cache``: what is kept, whether it is sound, and making it smaller."""

from __future__ import annotations

import argparse
import re

from featx.cli import arguments
from featx.cli.console import Console
from featx.exceptions import UsageError

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare one sub-verb per action."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, summary, run_action in (
        ("ls", "list the spaces of rows", _ls),
        ("verify", "read everything and check every digest", _verify),
        ("pack", "merge small segments", _pack),
        ("prune", "delete the spaces that were not used for longest", _prune),
        ("export", "write one space to a .npz file", _export),
    ):
        action = actions.add_parser(name, help=summary, description=summary.capitalize() + ".")
        action.set_defaults(run=run_action)
        arguments.add_cache(action)
        if name == "prune":
            action.add_argument("--max-size", type=_size, metavar="SIZE", help="keep at most this, e.g. 20GB")
            action.add_argument("--older-than", type=_age, metavar="AGE", help="delete what was not used for, e.g. 90d")
            action.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
        if name == "export":
            action.add_argument("space", help="the key of a space, or its beginning, as `featx cache ls` shows it")
            action.add_argument("-o", "--output", required=True, metavar="FILE", help=".npz to write")


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", text.upper())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r}: write a size like 500MB or 20GB")
    unit = match[2] if match[2].endswith("B") or not match[2] else match[2] + "B"
    return int(float(match[1]) * UNITS["" if unit == "B" else unit])


def _age(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h|d|w)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r}: write an age like 12h, 90d or 8w")
    return float(match[1]) * SECONDS[match[2]]
