"""What a command reads is never what it writes."""

from __future__ import annotations

import argparse
import os

from featx.exceptions import UsageError

OUTPUTS, INPUTS = ("output", "csv", "plot", "report"), ("data", "images", "apply", "fixes")
"""Options of files that commands write, and of those that they read."""


def refuse_overwriting(args: argparse.Namespace) -> None:
    """Refuse an output that is one of the inputs.

    Raises
    ------
    UsageError
        Naming it.
    """
    given = vars(args)
    read = [path for name in INPUTS for path in _listed(given.get(name))]
    for output in (path for name in OUTPUTS for path in _listed(given.get(name))):
        if any(_is_same_file(output, path) for path in read):
            raise UsageError(f"{output} is read by this command, and would be lost; choose another output.")


def _listed(value: object) -> list[str]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]


def _is_same_file(one: str, other: str) -> bool:
    try:
        return os.path.isfile(one) and os.path.samefile(one, other)
    except (OSError, ValueError):  # no such file, or no name of one
        return False
