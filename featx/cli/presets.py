"""``featx presets``: list the presets of a fit, and their networks with source, licence and size."""

from __future__ import annotations

import argparse

from featx.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare no options: the table is the same everywhere."""


def run(args: argparse.Namespace, console: Console) -> int:
    """List the presets, then the networks."""
    from featx.backbones import local_names
    from featx.classifier.presets import NETWORKS, PRESETS, describe

    here = set(local_names())
    for name, preset in PRESETS.items():
        default = " (default)" if name == "good" else ""
        console.text(f"{name}{default}: {preset.what}")
        console.text(f"  {describe(preset)}")
    console.text()
    used = {one.name: [name for name in PRESETS if one.name in PRESETS[name].networks] for one in NETWORKS}
    console.table(
        ["network", "presets", "source", "licence", "MB", "here"],
        [
            [
                one.name, ", ".join(used[one.name]), one.source, one.licence, one.megabytes,
                "yes" if one.name in here else "no",
            ]
            for one in NETWORKS
        ],
        right=(4,),
    )  # fmt: skip
    console.log("choose with --preset, such as `featx fit photos --preset quick`; options that you give win")
    console.data(
        presets={
            name: {"what": preset.what, "networks": list(preset.networks), "parameters": describe(preset)}
            for name, preset in PRESETS.items()
        },
        networks=[{**vars(one), "presets": used[one.name], "here": one.name in here} for one in NETWORKS],
    )
    return 0
