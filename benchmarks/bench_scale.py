"""What many images cost on one machine: seconds, memory and bytes of each step.

``python benchmarks/bench_scale.py files --count 200000 --folder DIR`` cuts as many small JPEG files from the
real image sets, no two alike, and times the verbs on them: a dry run, the extraction, the same again, the
check, the fit, the report and growing by 10,000 images.

``python benchmarks/bench_scale.py rows --count 1000000 --folder DIR`` makes a million small files, stores
drawn features for them (1,280 columns, 10 classes; see `bench_growth.draw_rows`), and times fit, report and
growing by 10,000 files, whose features are really computed.

Each verb runs in a process of its own, whose wall-clock time, processor time and peak of memory are printed.
Files, features and what was measured stay in DIR, so that a second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench_growth import draw_rows, extract
from machine import describe
from page import table
from pairs import DATA, SEED
from PIL import Image

from featx import FeatureExtractor
from featx.images import load_images, read_digests
from featx.stores import open_store

CLASSES = 10
NEW = 10_000
"""Images by which a set grows."""

SIDE = 64
"""Pixels of a file's sides."""

CHUNK = 20_000
"""Rows that are stored at a time."""

BACKBONE = "tf_efficientnet_lite0.in1k"
EXTRACTION = ["--backbone", BACKBONE, "--cut", "last", "--pool", "avg", "--resize", "crop"]


def main() -> None:
    """Make what is missing, run the verbs, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("what", choices=["files", "rows"])
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    measured = Measured(args.folder / f"{args.what}.json", args.count)
    photos, new, cache = (args.folder / name for name in ("photos", "new", "cache"))
    if args.what == "files":
        measured.time("making the files", lambda: cut_files(photos, args.count))
        measured.time("making new files", lambda: cut_files(new, NEW, first=args.count))
    else:
        measured.time("making the files", lambda: name_files(photos, args.count))
        measured.time("making new files", lambda: cut_files(new, NEW, first=args.count))
        measured.time("storing drawn rows", lambda: store_rows(photos, cache, args.count))
    common = ["--cache-dir", str(cache), "--quiet"]
    model, page = str(args.folder / "m.featx"), str(args.folder / "m.html")
    fit = ["fit", str(photos), "-o", model, *common, *EXTRACTION, "--no-auto-groups"]
    if args.what == "files":
        extraction = ["extract", str(photos), *common, *EXTRACTION]
        measured.run("extract --dry-run", [*extraction, "--dry-run"])
        measured.run("extract", extraction)
        measured.run("extract, all in the cache", extraction)
        measured.run(
            "check",
            ["check", str(photos), *common, "--backbone", BACKBONE, "--csv", str(args.folder / "i.csv")],
        )
    measured.run("fit", fit)
    measured.run("report", ["report", model, "-o", page, *common])
    measured.run(f"add of {NEW:,} images", ["add", model, str(new), "-o", model, *common])
    print(describe(SEED), "\n")
    print("\n".join(measured.table()))
    n_bytes = sum(path.stat().st_size for path in cache.rglob("*.h5"))
    print(f"\nfeatures on disk: {n_bytes / 1e9:.2f} GB, {n_bytes / (args.count + NEW):.0f} bytes an image")


class Measured:
    """What the steps took, in a file.

    Parameters
    ----------
    path : Path
    count : int
        Number of images.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.path, self.count = path, count
        self.steps: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def keep(self, name: str, step: dict[str, Any]) -> None:
        """Keep and print what a step took."""
        self.steps[name] = step
        self.path.write_text(json.dumps(self.steps, indent=1))
        print(name, step, flush=True)

    def time(self, name: str, make: Callable[[], None]) -> None:
        """Time a call in this process, unless it was made before."""
        if name not in self.steps:
            began = time.perf_counter()
            make()
            self.keep(name, {"seconds": time.perf_counter() - began})

    def run(self, name: str, arguments: list[str]) -> None:
        """Time a verb in its own process, unless it was run before."""
        if name in self.steps:
            return
        began = time.perf_counter()
        code = "from featx.cli import console; console()"
        child = os.posix_spawn(sys.executable, [sys.executable, "-c", code, *arguments], os.environ)
        _, status, used = os.wait4(child, 0)
        if os.waitstatus_to_exitcode(status) not in (0, 3):
            raise SystemExit(f"featx {' '.join(arguments)}: {os.waitstatus_to_exitcode(status)}")
        processor = used.ru_utime + used.ru_stime
        self.keep(
            name,
            {"seconds": time.perf_counter() - began, "processor": processor, "memory": used.ru_maxrss / 1e6},
        )

    def table(self) -> list[str]:
        """Lines of a Markdown table."""
        rows = [
            [
                name, f"{step['seconds']:.0f}",
                f"{step['processor']:.0f}" if "processor" in step else "",
                f"{step['memory']:.2f}" if "memory" in step else "",
            ]
            for name, step in self.steps.items()
        ]  # fmt: skip
        return table(["step", "seconds", "processor seconds", "peak of memory, GB"], rows)


def cut_files(folder: Path, count: int, first: int = 0) -> None:
    """Write squares cut from the real images, in ten class folders; each has its own place and brightness."""
    images = load_images(DATA / "sign_digits")
    codes = np.unique(np.asarray(images.labels), return_inverse=True)[1]
    pictures = [
        np.asarray(Image.open(str(source)).convert("RGB").resize((100, 100))) for source in images.sources
    ]
    for number in range(first, first + count):
        rng = np.random.default_rng([SEED, number])
        which = int(rng.integers(len(pictures)))
        top, left = rng.integers(0, 100 - SIDE, 2)
        pixels = pictures[which][top : top + SIDE, left : left + SIDE] * rng.uniform(0.7, 1.1)
        place = _place(folder, int(codes[which]), number)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place, quality=90)


def name_files(folder: Path, count: int) -> None:
    """Write tiny files that differ in a comment only: their features are drawn."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 128, np.uint8)).save(buffer, "JPEG")
    start, rest = buffer.getvalue()[:2], buffer.getvalue()[2:]
    for number in range(count):
        comment = number.to_bytes(8, "big")
        head = b"\xff\xfe" + (2 + len(comment)).to_bytes(2, "big") + comment
        _place(folder, number % CLASSES, number).write_bytes(start + head + rest)


def _place(folder: Path, code: int, number: int) -> Path:
    place = folder / f"class{code}" / f"{number // 10_000:03d}-{number:07d}.jpg"
    if not place.parent.exists():
        place.parent.mkdir(parents=True)
    return place


def store_rows(photos: Path, cache: Path, count: int) -> None:
    """Store drawn rows for the files."""
    images = load_images(photos)
    extractor = FeatureExtractor(BACKBONE, cut="last", pool="avg", resize="crop", store=cache)
    extractor.fit([str(source) for source in images.sources[:2]])
    (spec,) = extractor.specs_.values()
    rows, y = draw_rows(count, CLASSES, extract()[1])
    place = {label: list(np.flatnonzero(y == code)) for code, label in enumerate(np.unique(images.labels))}
    store = open_store(cache)
    for begin in range(0, count, CHUNK):
        sources = list(images.sources[begin : begin + CHUNK])
        digests, errors = read_digests(sources)
        assert not errors
        ids = np.stack([np.frombuffer(digest, np.uint8) for digest in digests if digest is not None])
        own = [place[label].pop() for label in images.labels[begin : begin + CHUNK]]
        store.append(spec.key, ids, rows[own], spec)
    store.commit()
    store.close()


if __name__ == "__main__":
    main()
