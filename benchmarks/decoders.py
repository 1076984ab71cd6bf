"""Decode speed of every JPEG decoder installed, side by side on real photos; what `auto` is ordered by.

``python benchmarks/decoders.py [--rounds 7]``; the photos are looked for in FEATX_TEST_DATA (default
../shared/data). Rounds alternate over the decoders, so that a busy machine is busy for all of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from machine import describe

from featx.exceptions import UsageError
from featx.images import DECODERS, DecodePolicy, Picture, decode_picture, load_images, read_picture

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FEATX_TEST_DATA", ROOT.parent / "shared" / "data"))
THREADS = (1, 2)


def main() -> None:
    """Measure and print a table of images/s (median of the rounds) and of agreement with Pillow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    photos = [read_picture(source) for source in load_images(DATA / "catdog").sources[::7]]
    policies = {name: DecodePolicy(decoder=name) for name in DECODERS if installed(name)}
    seconds: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds + 1):
        for name, policy in policies.items():
            for threads in THREADS:
                seconds.setdefault((name, threads), []).append(measure(photos, policy, threads))
    print(f"{len(photos)} photos of catdog, {rounds} rounds. {describe('none')}\n")
    print(f"| decoder | {' | '.join(f'{n} thread(s), images/s' for n in THREADS)} | pixels as Pillow's |")
    print("|---|" + "---|" * (len(THREADS) + 1))
    for name, policy in policies.items():
        medians = (statistics.median(seconds[name, threads][1:]) for threads in THREADS)  # the first warms up
        rates = " | ".join(f"{len(photos) / median:,.0f}" for median in medians)
        print(f"| {name} | {rates} | {agreement(photos, policy)} of {len(photos)} |")


def installed(name: str) -> bool:
    """Whether the decoder can be measured here."""
    try:
        return DecodePolicy(decoder=name).decoder == name
    except UsageError:
        return False


def measure(photos: list[Picture], policy: DecodePolicy, threads: int) -> float:
    """Seconds to decode all photos."""
    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        for _ in pool.map(lambda photo: decode_picture(photo, policy), photos):
            pass
        return time.perf_counter() - began


def agreement(photos: list[Picture], policy: DecodePolicy) -> int:
    """Number of photos with exactly Pillow's pixels."""
    judge = DecodePolicy(decoder="pillow")
    return sum(np.array_equal(decode_picture(each, policy), decode_picture(each, judge)) for each in photos)


if __name__ == "__main__":
    main()
