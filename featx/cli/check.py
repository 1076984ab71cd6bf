"""``featx check``: look for problems of a data set, before a model is fitted."""

from __future__ import annotations

import argparse
import textwrap

from featx.cli import arguments
from featx.cli.console import Console

WIDTH, INDENT = 100, " " * 9
"""Columns of a finding's sentence on a terminal."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument("data", help="images, as for `featx fit`; labels are not necessary")
    parser.add_argument("-o", "--output", metavar="FILE", help="HTML page to write, with thumbnails")
    parser.add_argument(
        "--csv",
        metavar="FILE",
        help="table of issues to write, one row for each image of each finding; fill in its column `action`",
    )
    parser.set_defaults(cut=None)
    arguments.add_backbone(parser)
    arguments.add_precision(parser)
    group = parser.add_argument_group("images")
    arguments.add_jobs(group)
    group.add_argument("--follow-links", action="store_true", help="follow symbolic links out of the folder")
    arguments.add_manifest(parser)
    arguments.add_cache(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Check the images, print the findings, and write the page and the table."""
    arguments.check_writable(args.output, arguments.PAGE_ENDINGS)
    arguments.check_writable(args.csv, arguments.TABLE_ENDINGS)
    from featx.reporting import check
    from featx.reporting.findings import TITLES

    extractor = arguments.feature_extractor(args, console.progress)
    images = arguments.load(args, args.data)
    found = check(images, extractor=extractor, n_jobs=args.jobs, callback=console.progress, title=args.data)
    console.text(found.answer())
    for finding in found.findings:
        title = TITLES.get(finding.check, finding.check)
        console.text(f"\n{finding.severity:8} {title}")
        console.text(textwrap.fill(finding.sentence, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT))
    if args.output:
        found.to_html(args.output)
    if args.csv:
        found.to_csv(args.csv)
    written = [("page", args.output), ("issues", args.csv)]
    if args.output or args.csv:
        console.text()
    for what, path in written:
        if path:
            console.text(f"{what:8} {path}")
    if args.csv:
        console.text(f"         fill in the column action, then: featx fit {args.data} --fixes {args.csv}")
    console.data(**found.to_dict(), output=args.output, csv=args.csv)
    return 0
