"""Run the benchmarks and write docs/benchmarks.md.

``python benchmarks/run.py [--only extraction,search] [--rounds 5] [--quick] [--page]``. Each part leaves a
JSON file in benchmarks/out, and the page is made of all that are there, so that parts may be run one by one.
``--quick`` takes a few images and two rounds: it shows that everything runs and writes no page.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import bench_extraction
import bench_job
import bench_search
import bench_store
import page
from machine import describe
from pairs import OUT, SEED, Section, say

PARTS: dict[str, Callable[[int, bool], Section]] = {
    "extraction": bench_extraction.measure,
    "roofline": bench_extraction.measure_roofline,
    "stems": bench_extraction.measure_stems,
    "reuse": bench_extraction.measure_reuse,
    "search": bench_search.measure,
    "store": bench_store.measure,
    "job": bench_job.measure,
}
"""In the order of the page."""


def main() -> int:
    """Run the requested parts; the exit code says how many parts failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument(
        "--rounds", type=int, default=5, help="alternations (some parts take fewer; they say)"
    )
    parser.add_argument("--quick", action="store_true", help="few images, two rounds, no page")
    parser.add_argument("--page", action="store_true", help="only write the page from what is there")
    args = parser.parse_args()
    failed = [] if args.page else [part for part in args.only.split(",") if not run(part, args)]
    if not args.quick:
        page.write(tuple(PARTS))
        say("docs/benchmarks.md is written")
    for part in failed:
        say(f"{part} FAILED")
    return len(failed)


def run(part: str, args: argparse.Namespace) -> bool:
    """One part; a failure does not end the others."""
    say(f"--- {part}")
    began = time.monotonic()
    try:
        section = PARTS[part](2 if args.quick else args.rounds, args.quick)
    except Exception as error:  # the others are worth having
        say(f"{part}: {type(error).__name__}: {error}")
        return False
    seconds = time.monotonic() - began
    name = f"quick-{part}" if args.quick else part
    section.keep(name, seconds=seconds, machine=describe(SEED))
    say(f"--- {part} took {seconds:.0f} s; {OUT.name}/{name}.json")
    return True


if __name__ == "__main__":
    sys.exit(main())
