"""``featx extract``: compute features into the cache, for example on a large machine for a small one."""

from __future__ import annotations

import argparse
import io
import time
from typing import Any

from featx.cli import arguments
from featx.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument("data", nargs="+", help="images, folders or a manifest")
    parser.add_argument("-o", "--output", metavar="FILE", help="also write the features to this .npz file")
    parser.add_argument(
        "--cut", "--taps", dest="cut", metavar="TAP[,TAP...]|all", help="layers (default: the last)"
    )
    arguments.add_dry_run(parser)
    arguments.add_backbone(parser)
    arguments.add_precision(parser)
    parser.add_argument(
        "--dtype", default="float16", choices=["float16", "float32"], help="type of the stored features"
    )
    arguments.add_skipping(parser)
    arguments.add_cache(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Extract, and say what is in the cache now."""
    arguments.check_writable(args.output)
    from featx.cli import render
    from featx.images import load_paths

    began = time.monotonic()
    images = load_paths(args.data, follow_links=args.follow_links, labelled=False)
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
        _write_npz(args.output, [images.names[index] for index in found.kept], found)
        console.text(f"features in {args.output}")
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


def _write_npz(path: str, names: list[str], found: Any) -> None:
    import numpy as np

    from featx.files import atomic_write

    buffer = io.BytesIO()
    np.savez(buffer, names=np.array(names), ids=found.ids, **dict(found.blocks))
    atomic_write(path, buffer.getbuffer())
