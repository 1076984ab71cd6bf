"""``featx fix``: write a manifest of the images with the actions of a table of issues applied."""

from __future__ import annotations

import argparse

from featx.cli import arguments
from featx.cli.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument("data", help="the images that were checked")
    parser.add_argument(
        "--apply",
        required=True,
        metavar="FILE",
        help="table of issues with the column `action` filled in: drop, relabel:CLASS, group:NAME or keep",
    )
    parser.add_argument(
        "-o",
        "--output",
        default="cleaned.csv",
        metavar="FILE",
        help="manifest to write (default cleaned.csv)",
    )
    parser.add_argument("--follow-links", action="store_true", help="follow symbolic links out of the folder")
    arguments.add_manifest(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Apply the actions and write the manifest; no image file is changed."""
    arguments.check_writable(args.output, arguments.TABLE_ENDINGS)
    from featx.audit import apply_fixes, read_fixes, write_manifest

    images = arguments.load(args, args.data)
    fixes = read_fixes(args.apply)
    fixed = apply_fixes(images, fixes)
    write_manifest(args.output, fixed)
    counts = {"drop": len(fixes.drop), "relabel": len(fixes.relabel), "group": len(fixes.group)}
    console.text(
        f"{len(fixed):,} of {len(images):,} images in {args.output}: {counts['drop']} dropped, "
        f"{counts['relabel']} relabelled, {counts['group']} grouped; no image file was changed"
    )
    if not len(fixes):
        console.warn(f"{args.apply} has no actions; fill in its column `action`.")
    console.data(output=args.output, images=len(fixed), actions=counts)
    return 0
