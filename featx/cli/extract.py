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
from featx.exceptions import UsageError
from featx.tables import count

PATIENCE_S = 60.0
"""Seconds without any new image after which ``--wait`` computes what is missing."""

RAY_OPTIONS = ("workers", "worker_cpus", "column")
"""Options that need ``--ray``."""

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
    group = parser.add_argument_group("several processes or machines with one cache folder")
    group.add_argument(
        "--shard", metavar="K/N", help="compute only the K-th of N equal shares of the images, such as 3/16"
    )
    group.add_argument(
        "--wait",
        nargs="?",
        const=PATIENCE_S,
        type=arguments.seconds,
        metavar="TIME",
        help="wait for the features that other processes compute; what is still missing after this time "
        f"without any new image is computed here (default {PATIENCE_S:g}s)",
    )
    group = parser.add_argument_group("many machines by Ray (pip install 'featx[ray]')")
    group.add_argument(
        "--ray",
        metavar="auto|ADDRESS",
        help="compute on this Ray cluster (HOST:PORT); auto is the one that runs, else a new one on this "
        "machine. DATA may also be Parquet files with the bytes of images, WebDataset shards (.tar) or URLs",
    )
    group.add_argument(
        "--workers",
        type=arguments.whole(1),
        metavar="N",
        help="number of workers (default: one for each GPU, or for each group of --worker-cpus cores)",
    )
    group.add_argument(
        "--worker-cpus",
        type=arguments.whole(1),
        metavar="N",
        help="cores of a worker (default: those of the smallest machine, at most 8)",
    )
    group.add_argument(
        "--column", metavar="NAME", help="column of the bytes of images (default: found by its name)"
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
    from featx.extractor.shards import Shard
    from featx.stores.export import check_format

    if args.output:
        check_format(args.output)
    shard = Shard.read(args.shard) if args.shard else None
    if args.no_cache and (shard or args.wait is not None):
        raise UsageError("--shard and --wait need a cache that the processes share; leave out --no-cache.")
    if args.ray is not None:
        return _run_ray(args, console)
    given = [f"--{name.replace('_', '-')}" for name in RAY_OPTIONS if getattr(args, name) is not None]
    if given:
        raise UsageError(f"{', '.join(given)}: options of --ray; add --ray auto.")
    began = time.monotonic()
    images = arguments.load(args, args.data, labelled=False)
    render.data_set(console, images)
    # All images decide how they become pixels, so that each share is computed in the same way.
    extractor = arguments.feature_extractor(args, console.progress).fit(images.sources)
    own = images.select(shard.of(len(images))) if shard else images
    if shard:
        console.text(f"share {shard.number} of {shard.count}: {len(own):,} of {len(images):,} images")
    if args.dry_run:
        render.plan(console, extractor.plan(own.sources))
        return 0
    on_error = "raise" if args.strict else "skip"
    found, computed = None, 0
    if len(own) and (shard or args.wait is None):
        found = extractor.extract(own.sources, names=own.names, on_error=on_error)
        computed = found.computed
    if args.wait is not None:
        own, ids = images, _wait(extractor, images, args.wait, console)
        found = extractor.extract(images.sources, names=images.names, on_error=on_error, ids=ids)
        computed += found.computed
    if found is None:
        console.text("nothing to compute: there are more shares than images")
        return 0
    own_total = len(own) + len(images.skipped)
    kept = own.select(found.kept)
    return _say(
        args, console, found, kept.names, _labels(args, kept) if args.output else [],
        skipped=[*images.skipped, *found.skipped], total=own_total, computed=computed,
        seconds=time.monotonic() - began, shard=args.shard,
    )  # fmt: skip


def _run_ray(args: argparse.Namespace, console: Console) -> int:
    """Extract on a Ray cluster."""
    from featx.cli import render
    from featx.distributed import extract
    from featx.distributed.inputs import IMAGES, kind_of

    for name in ("shard", "wait", "dry_run", "no_cache"):
        if getattr(args, name) not in (None, False):
            raise UsageError(f"--ray and --{name.replace('_', '-')} exclude each other; leave one out.")
    began = time.monotonic()
    images = None
    if kind_of(args.data, args.column)[0] == IMAGES:
        images = arguments.load(args, args.data, labelled=False)
        render.data_set(console, images)
    found = extract(
        args.data if images is None else images,
        extractor=arguments.feature_extractor(args, console.progress),
        address=args.ray,
        workers=args.workers,
        worker_cpus=args.worker_cpus,
        column=args.column,
        on_error="raise" if args.strict else "skip",
    )
    assert found.pool is not None
    console.text(
        f"{count(len(found.workers), 'worker')} of {count(found.pool.cpus, 'core')}"
        + (" and a GPU" if found.pool.gpus else "")
        + f" on {count(found.pool.nodes, 'machine')}"
    )
    before = [] if images is None else images.skipped
    return _say(
        args, console, found, found.names,
        [] if images is None or not args.output else _labels(args, images.select(found.kept)),
        skipped=[*before, *found.skipped], total=len(found.names) + len(found.skipped) + len(before),
        computed=found.computed, seconds=time.monotonic() - began, workers=found.workers,
    )  # fmt: skip


def _say(
    args: argparse.Namespace,
    console: Console,
    found: Any,
    names: Sequence[str],
    labels: Sequence[Any],
    *,
    skipped: Sequence[Any],
    total: int,
    computed: int,
    seconds: float,
    **facts: Any,
) -> int:
    """Print what is in the cache now, write the output, and return the exit code."""
    from featx.cli import render

    console.text(f"{len(found.ids):,} images, {computed:,} computed, {seconds:.1f} s")
    console.table(
        ["tap:pool:resize", "columns", "space"],
        [[name, found.blocks.width(name), spec.key[:16]] for name, spec in found.specs.items()],
        right=(1,),
    )
    if args.output:
        _write(args, console, names, labels, found)
    console.data(
        images=len(found.ids),
        computed=computed,
        batch_size=found.batch_size,
        limit=found.limit,
        remarks=list(found.remarks),
        seconds=seconds,
        output=args.output,
        spaces={
            name: {"key": spec.key, "columns": found.blocks.width(name)} for name, spec in found.specs.items()
        },
        **facts,
    )
    return render.skipped(console, args, skipped, args.output or "extract", total=total)


def _wait(extractor: Any, images: Any, patience: float, console: Console) -> Any:
    """Wait for other processes; the digests of the images, or None if one cannot be read."""
    from featx.extractor.shards import wait_for
    from featx.images.picture import read_digests
    from featx.stores.base import as_ids

    digests, _ = read_digests(images.sources, images.names)
    known = as_ids(digest for digest in digests if digest is not None)
    keys = [spec.key for spec in extractor.specs_.values()]
    absent = wait_for(
        extractor.store_, keys, known, patience=patience,
        report=lambda left: console.log(f"{left:,} of {len(known):,} images are missing in the cache"),
    )  # fmt: skip
    if absent.any():
        console.log(f"no new image for {patience:g} s; {absent.sum():,} missing images are computed here")
    return known if len(known) == len(images) else None


def _write(
    args: argparse.Namespace, console: Console, paths: Sequence[str], labels: Sequence[Any], found: Any
) -> None:
    """Write the features, with the paths and labels where the format has a place for them."""
    from pathlib import Path

    from featx.stores.export import Table, export_table

    def slabs(names: Sequence[str]) -> Iterator[Any]:
        for start in range(0, len(paths), SLAB):
            where = slice(start, start + SLAB)
            yield found.ids[where], [found.blocks.part(name, where) for name in names]

    facts: dict[str, Sequence[Any]] = {"path": paths}
    if any(label is not None for label in labels):
        facts["label"] = labels
    shapes = {name: (found.blocks.width(name),) for name in found.specs}
    spec = json.dumps({name: json.loads(spec.to_json()) for name, spec in found.specs.items()})
    export_table(Table(len(paths), shapes, slabs, spec, facts), Path(args.output))
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
