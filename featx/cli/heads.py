"""``featx heads``: list the classifiers that a search can try."""

from __future__ import annotations

import argparse

from featx.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare no options: the list is the same everywhere."""


def run(args: argparse.Namespace, console: Console) -> int:
    """List the heads, those of a default search first."""
    from featx.heads import DEFAULT_HEADS, HEADS

    rows, listed = [], []
    for name in sorted(HEADS, key=lambda name: name not in DEFAULT_HEADS):
        head = HEADS[name]
        what = (head.make.__doc__ or "").strip().splitlines()[0]
        by_default = name in DEFAULT_HEADS
        rows.append([name, "yes" if by_default else "no", what])
        listed.append(
            {"name": name, "default": by_default, "takes_weights": head.takes_weights, "what": what}
        )
    console.table(["head", "by default", "what it is"], rows)
    console.log("choose with --heads, such as `featx fit photos --heads logistic,rbf_svm`")
    console.data(heads=listed)
    return 0
