"""Workers of a Ray cluster against one process on the same machine: images a second, and what Ray adds.

``python benchmarks/bench_ray.py IMAGES`` (a folder of image files; at most ``--count`` of them are used), in
an environment with ``featx[ray]``.

Equal work: the default network, every image read, decoded and computed once into an empty cache. The one
process has all cores, each worker its share of them. The converted network is in the cache of every run, so
that none converts it. Ray's own start is measured apart, since a cluster is started once.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from machine import describe

from featx import FeatureExtractor
from featx.distributed import extract
from featx.images import load_images


def copied(images: list[str], folder: Path) -> list[Path]:
    """Copies of the images, so that the first run does not read them from a colder disk than the others."""
    folder.mkdir()
    paths = [folder / f"{number:06d}{Path(image).suffix}" for number, image in enumerate(images)]
    for image, path in zip(images, paths, strict=True):
        shutil.copyfile(image, path)
    return paths


def alone(paths: list[Path], store: Path, cores: int) -> dict[str, float]:
    """One process, all cores."""
    began = time.perf_counter()
    found = FeatureExtractor(store=store, n_jobs=cores).extract(paths, on_error="skip")
    return {"seconds": time.perf_counter() - began, "computed": found.computed}


def by_workers(paths: list[Path], store: Path, cores: int, workers: int) -> dict[str, float]:
    """Workers of a running cluster; the time to the first images is that of starting them."""
    first: list[float] = []
    began = time.perf_counter()

    def note(event: Any) -> None:
        if event.done and not first:
            first.append(time.perf_counter() - began)

    found = extract(
        paths,
        store=store,
        workers=workers,
        worker_cpus=max(1, cores // workers),
        block_rows=128,
        on_error="skip",
        callback=note,
    )
    return {"seconds": time.perf_counter() - began, "computed": found.computed, "first": first[0]}


def main() -> int:
    """Measure in turns, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images")
    parser.add_argument("--count", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    images = [str(source) for source in load_images(args.images, labelled=False).sources[: args.count]]
    with tempfile.TemporaryDirectory() as folder:
        paths = copied(images, Path(folder, "images"))
        warm = Path(folder, "warm")
        FeatureExtractor(store=warm).extract(paths[:8])  # converts the network
        began = time.perf_counter()
        ray.init(address="local", num_cpus=cores, logging_level=logging.ERROR, log_to_driver=False)
        start = time.perf_counter() - began
        runs: dict[str, list[dict[str, float]]] = {"one process": [], f"{args.workers} workers": []}
        for number in range(args.repeats):
            for name, measured in runs.items():
                store = Path(folder, f"{name} {number}")
                shutil.copytree(warm / "v1" / "models", store / "v1" / "models")
                if name == "one process":
                    measured.append(alone(paths, store, cores))
                else:
                    measured.append(by_workers(paths, store, cores, args.workers))
                print(name, measured[-1], file=sys.stderr, flush=True)
                shutil.rmtree(store)
        ray.shutdown()
    print(f"{describe(0)} Ray {ray.__version__}. {len(paths):,} images, medians of {args.repeats} runs.\n")
    print("| | images/s | seconds | to the first block, s | images/s after it |\n|---|---:|---:|---:|---:|")
    for name, measured in runs.items():
        seconds = statistics.median(one["seconds"] for one in measured)
        first = statistics.median(one.get("first", 0.0) for one in measured)
        rest = len(paths) / seconds if not first else (len(paths) - 128 * args.workers) / (seconds - first)
        print(
            f"| {name} | {len(paths) / seconds:.0f} | {seconds:.1f} | {first:.1f} | {rest:.0f} |"
            if first
            else f"| {name} | {len(paths) / seconds:.0f} | {seconds:.1f} | | |"
        )
    print(f"\nStarting Ray on this machine: {start:.1f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
