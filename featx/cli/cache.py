"""``featx cache``: list, check, merge, delete and export cached features."""

from __future__ import annotations

import argparse
import dataclasses
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from featx.cli import arguments
from featx.cli.console import Console
from featx.exceptions import UsageError

if TYPE_CHECKING:
    from featx.stores.hdf5 import HDF5Store

NAMED = 5
"""Missing images that are named for each space; ``--json`` names all."""

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions of the verb and their options."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    for name, summary, run_action in (
        ("ls", "list the spaces: features of one spec each", _ls),
        ("verify", "read all features and check their digests", _verify),
        ("pack", "merge small segments", _pack),
        ("prune", "delete the least recently used spaces", _prune),
        ("export", "write one space to a file", _export),
    ):
        action = actions.add_parser(name, help=summary, description=summary.capitalize() + ".")
        action.set_defaults(run=run_action)
        arguments.add_cache(action)
        if name == "ls":
            action.add_argument(
                "--missing",
                nargs="+",
                metavar="DATA",
                help="also say how many of these images lack features in each space",
            )
            action.add_argument("--follow-links", action="store_true", help="of DATA: follow symbolic links")
        if name == "prune":
            action.add_argument(
                "--max-size", type=_size, metavar="SIZE", help="most disk space to keep, such as 20GB"
            )
            action.add_argument(
                "--older-than",
                type=arguments.seconds,
                metavar="AGE",
                help="delete spaces not used for this long, such as 90d",
            )
            action.add_argument(
                "--space",
                metavar="KEY",
                help="delete this space (key or its beginning, see `featx cache ls`)",
            )
        if name == "export":
            action.add_argument(
                "space", help="key of a space, or its first characters (see `featx cache ls`)"
            )
            action.add_argument(
                "-o",
                "--output",
                required=True,
                metavar="FILE",
                help="file to write: .npz, .csv, .parquet, .h5, or .npy (features only)",
            )


def _ls(args: argparse.Namespace, console: Console) -> int:
    from featx.cli.render import duration, size_text

    store = _store(args)
    usage = store.usage()
    images, lacking = _missing(args, console, store, [space.key for space in usage])
    rows = []
    for space in usage:
        what = f"{space.spec.architecture} {space.spec.block}" if space.spec else "(made by a newer featx)"
        age = f"{duration(max(time.time() - space.last_used, 0))} ago"
        row = [space.key[:16], what, f"{space.rows:,}", space.segments, size_text(space.n_bytes), age]
        rows.append(row + ([f"{len(lacking[space.key]):,}"] if args.missing else []))
    header = ["space", "spec", "images", "segments", "size", "used", "missing"]
    console.table(header if args.missing else header[:-1], rows, right=(2, 3, 4, 5, 6))
    console.text(f"{size_text(sum(space.n_bytes for space in usage))} in {store.path}")
    for space in usage:
        if lost := lacking.get(space.key):
            some = ", ".join(lost[:NAMED]) + (", ..." if len(lost) > NAMED else "")
            console.text(f"{space.key[:16]}: {len(lost):,} of {images:,} images are missing: {some}")
    console.data(
        path=str(store.path),
        spaces=[
            {
                "key": space.key,
                "spec": None if space.spec is None else dataclasses.asdict(space.spec),
                "rows": space.rows,
                "segments": space.segments,
                "bytes": space.n_bytes,
                "quarantined": space.quarantined,
                "last_used": space.last_used,
                **({"missing": lacking[space.key]} if args.missing else {}),
            }
            for space in usage
        ],
    )
    return 0


def _missing(
    args: argparse.Namespace, console: Console, store: HDF5Store, keys: list[str]
) -> tuple[int, dict[str, list[str]]]:
    """Number of images, and the names of those that lack features, for each space."""
    if not args.missing:
        return 0, {}
    import numpy as np

    from featx.images import load_paths
    from featx.images.picture import read_digests
    from featx.stores.base import as_ids

    images = load_paths(args.missing, labelled=False, follow_links=args.follow_links)
    digests, unread = read_digests(images.sources, images.names)
    for error in list(unread.values())[:NAMED]:
        console.warn(str(error))
    known = [place for place, digest in enumerate(digests) if digest is not None]
    ids = as_ids(digest for digest in digests if digest is not None)
    return len(known), {
        key: [images.names[known[place]] for place in np.flatnonzero(store.missing(key, ids))] for key in keys
    }


def _verify(args: argparse.Namespace, console: Console) -> int:
    found = _store(args).verify()
    console.text(
        f"features of {found.rows:,} images in {found.segments:,} segments of {found.spaces} spaces are valid"
    )
    if found.restored:
        console.text(f"{found.restored:,} segments in quarantine are intact; they are used again")
    for path, reason in found.bad:
        console.text(f"set aside: {path}: {reason}; its features are computed again when they are needed")
    console.data(
        rows=found.rows,
        segments=found.segments,
        restored_segments=found.restored,
        bad_segments=len(found.bad),
        bad=[{"path": str(path), "reason": reason} for path, reason in found.bad],
    )
    return 1 if found.bad else 0


def _pack(args: argparse.Namespace, console: Console) -> int:
    from featx.cli.render import size_text

    freed = _store(args).pack()
    console.text(f"{freed.segments:,} small segments ({size_text(freed.n_bytes)}) merged into larger ones")
    console.data(merged_segments=freed.segments, bytes=freed.n_bytes)
    return 0


def _prune(args: argparse.Namespace, console: Console) -> int:
    from featx.cli.render import size_text

    limits = args.max_size is not None or args.older_than is not None
    if limits == (args.space is not None):
        raise UsageError(
            "give --max-size 20GB, --older-than 90d, or both; or --space KEY to delete one space."
        )
    freed = _store(args).prune(max_bytes=args.max_size, older_than_s=args.older_than, key=args.space)
    console.text(f"{freed.segments:,} segments deleted, {size_text(freed.n_bytes)} freed")
    console.data(deleted_segments=freed.segments, bytes=freed.n_bytes)
    return 0


def _export(args: argparse.Namespace, console: Console) -> int:
    arguments.check_writable(args.output)
    from featx.stores.export import check_format

    check_format(args.output)
    rows = _store(args).export(args.space, args.output)
    console.text(f"features of {rows:,} images in {args.output}")
    console.data(rows=rows, output=args.output)
    return 0


def _store(args: argparse.Namespace) -> HDF5Store:
    from featx.remote import is_address
    from featx.stores import open_store

    if args.no_cache:
        raise UsageError("`featx cache` needs a cache; give --cache-dir instead of --no-cache.")
    named = args.cache_dir if args.cache_dir is None or is_address(args.cache_dir) else Path(args.cache_dir)
    store: Any = open_store(named)
    return cast("HDF5Store", store)


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B?)", text.upper())
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r}: write a size such as 500MB or 20GB")
    unit = match[2] if match[2].endswith("B") or not match[2] else match[2] + "B"
    return int(float(match[1]) * UNITS["" if unit == "B" else unit])
