"""``featx extract``: compute features into the cache, for example on a large machine for a small one."""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from featx.cli import arguments
from featx.cli.console import Console

SLAB = 4096
"""Images whose features are written at once."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument("data", nargs="+", help="images, folders or a manifest")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="also write the features, with paths and labels, to this file: .npz, .csv, .parquet, .h5, or "
        ".npy (features only)",
    )
    parser.add_argument(
        "--cut", "--taps", dest="cut", metavar="TAP[,TAP...]|all", help="layers (default: the last)"
    )
    arguments.add_dry_run(parser)
    arguments.add_backbone(parser)
    arguments.add_precision(parser)
    parser.add_argument(
        "--dtype", default="float16", choices=["float16", "float32"], help="type of the stored features"
    )
    arguments.add_manifest(parser)
    arguments.add_skipping(parser)
    arguments.add_cache(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Extract, and say what is in the cache now."""
    arguments.check_writable(args.output)
    from featx.cli import render
    from featx.stores.export import check_format

    if args.output:
        check_format(args.output)

    began = time.monotonic()
    images = arguments.load(args, args.data, labelled=False)
    render.data_set(console, images)
    extractor = arguments.feature_extractor(args, console.progress)
    if args.dry_run:
        render.plan(console, extractor.plan(images.sources))
        return 0
    found = extractor.extract(images.sources, names=images.names, on_error="raise" if args.strict else "skip")
    seconds = time.monotonic() - began
    console.text(f"{len(found.ids):,} images, {found.computed:,} computed, {seconds:.1f} s")
    console.table(
        ["tap:pool:resize", "columns", "space"],
        [[name, found.blocks.width(name), spec.key[:16]] for name, spec in found.specs.items()],
        right=(1,),
    )
    if args.output:
        _write(args, console, images.select(found.kept), found)
    console.data(
        images=len(found.ids),
        computed=found.computed,
        batch_size=found.batch_size,
        limit=found.limit,
        remarks=list(found.remarks),
        seconds=seconds,
        output=args.output,
        spaces={
            name: {"key": spec.key, "columns": found.blocks.width(name)} for name, spec in found.specs.items()
        },
    )
    skipped = [*images.skipped, *found.skipped]
    total = len(images) + len(images.skipped)
    return render.skipped(console, args, skipped, args.output or "extract", total=total)


def _write(args: argparse.Namespace, console: Console, images: Any, found: Any) -> None:
    """Write the features, with the paths and labels where the format has a place for them."""
    from pathlib import Path

    from featx.stores.export import Table, export_table

    def slabs(names: Sequence[str]) -> Iterator[Any]:
        for start in range(0, len(images), SLAB):
            where = slice(start, start + SLAB)
            yield found.ids[where], [found.blocks.part(name, where) for name in names]

    facts: dict[str, Sequence[Any]] = {"path": images.names}
    labels = _labels(args, images)
    if any(label is not None for label in labels):
        facts["label"] = labels
    shapes = {name: (found.blocks.width(name),) for name in found.specs}
    spec = json.dumps({name: json.loads(spec.to_json()) for name, spec in found.specs.items()})
    export_table(Table(len(images), shapes, slabs, spec, facts), Path(args.output))
    beside = "" if arguments.ending_of(args.output) == ".npy" else f", with {' and '.join(facts)}"
    console.text(f"features in {args.output}{beside}")
    if not beside:
        console.log("a .npy file has no place for paths and labels; .npz, .csv, .parquet and .h5 have")


def _labels(args: argparse.Namespace, images: Any) -> list[Any]:
    """Labels of the images, as a fit would read them; None where there is none."""
    from featx.exceptions import DataError

    try:
        with warnings.catch_warnings(action="ignore"):  # said when the images were found
            labelled = arguments.load(args, args.data)
    except DataError:  # these folders are no classes
        return [None] * len(images)
    if labelled.labels is None:
        return [None] * len(images)
    label_of = dict(zip(map(str, labelled.sources), labelled.labels.tolist(), strict=True))
    return [label_of.get(str(source)) for source in images.sources]
