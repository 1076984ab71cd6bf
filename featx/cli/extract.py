"""``featx extract``: fill the cache, so that a laptop can tune on what a large machine computed."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from featx.cli import arguments
from featx.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("data", nargs="+", help="images, folders or a manifest")
    parser.add_argument("-o", "--output", metavar="FILE", help="also write the rows to this .npz")
    parser.add_argument(
        "--cut", "--taps", dest="cut", metavar="TAP[,TAP...]|all", help="layers to tap (default: the last)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be computed and how long it takes here"
    )
    arguments.add_backbone(parser)
    arguments.add_precision(parser)
    parser.add_argument(
        "--dtype", default="float16", choices=["float16", "float32"], help="how rows are kept"
    )
    arguments.add_skipping(parser)
    arguments.add_cache(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Extract; say what is in the cache now."""
    if args.output:
        arguments.check_writable(args.output)
    from featx.cli import render
    from featx.images import load_paths

    began = time.monotonic()
    images = load_paths(args.data, follow_links=args.follow_links, labelled=False)
    render.data_set(console, images)
    extractor = arguments.extractor(
        args,
        backbone=args.backbone,
        cut="all" if args.cut == "all" else arguments.one_or_list(args.cut, "last"),
        pool=arguments.one_or_list(args.pool, "avg"),
        resize=arguments.one_or_list(args.resize, "crop"),
        store=arguments.store_of(args),
        device=args.device,
        callback=console.progress,
    )
    if args.dry_run:
        render.plan(console, extractor.plan(images.sources))
        return 0
    rows = extractor.extract(images.sources, names=images.names, on_error="raise" if args.strict else "skip")
    seconds = time.monotonic() - began
    console.text(f"{len(rows.ids):,} images, {rows.computed:,} computed, {seconds:.1f} s")
    console.table(
        ["tap:pool:resize", "columns", "space"],
        [[name, rows.blocks.width(name), spec.key[:16]] for name, spec in rows.specs.items()],
        right=(1,),
    )
    if args.output:
        _write_npz(args.output, [images.names[index] for index in rows.kept], rows)
        console.text(f"rows in {args.output}")
    console.data(
        images=len(rows.ids),
        computed=rows.computed,
        batch_size=rows.batch_size,
        limit=rows.limit,
        remarks=list(rows.remarks),
        seconds=seconds,
        output=args.output,
        spaces={
            name: {"key": spec.key, "columns": rows.blocks.width(name)} for name, spec in rows.specs.items()
        },
    )
    return render.skipped(
        console,
        [*images.skipped, *rows.skipped],
        Path(args.output or "extract").with_suffix(".skipped.csv"),
        strict=args.strict,
        total=len(images) + len(images.skipped),
        max_bad=args.max_bad,
    )


def _write_npz(path: str | os.PathLike[str], names: list[str], rows: object) -> None:
    import io

    import numpy as np

    from featx.files import atomic_write

    buffer = io.BytesIO()
    np.savez(buffer, names=np.array(names), ids=rows.ids, **dict(rows.blocks))  # type: ignore[attr-defined]
    atomic_write(path, buffer.getbuffer())
