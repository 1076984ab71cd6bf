"""Is a budget kept? Fits with `budget=`, and the seconds that they took.

``python benchmarks/budget.py [--images N] [--budgets 30s,1m,2m]``
prints a table; the images are those of clothing_dev in FEATX_TEST_DATA (default ../shared/data). Each fit has
an empty cache. The seconds are those of `fit`, without imports.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from machine import describe

from featx import ImageClassifier
from featx.duration import seconds_of
from featx.exceptions import FeatxWarning
from featx.images import load_images
from featx.splits import stratified_sample

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FEATX_TEST_DATA", ROOT.parent / "shared" / "data"))
SEED = 0


def main() -> None:
    """Fit with each preset and budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--budgets", default="30s,1m,2m")
    parser.add_argument("--presets", default="good,best")
    args = parser.parse_args()
    warnings.simplefilter("ignore", FeatxWarning)
    images = load_images(DATA / "clothing_dev")
    codes = np.unique(images.labels, return_inverse=True)[1]
    images = images.select(stratified_sample(codes, args.images, SEED, per_class=2))
    images.splits = None
    print(describe(SEED), "\n", flush=True)
    print(
        "| preset | budget, s | used, s | of the budget | steps, s | fine-tuning |\n" + "|---" * 6 + "|",
        flush=True,
    )
    for preset in args.presets.split(","):
        for given in args.budgets.split(","):
            with tempfile.TemporaryDirectory() as store:
                clf = ImageClassifier(preset=preset, budget=given, random_state=SEED, store=store)
                began = time.monotonic()
                clf.fit_with_test(images)
                used = time.monotonic() - began
            steps = ", ".join(f"{step} {s:.0f}" for step, s in clf.record_.seconds.items() if s >= 0.5)
            tuning = clf.record_.fine_tuning
            said = "" if tuning is None else tuning.reason.split(";")[0][:90]
            share = used / seconds_of(given)
            print(
                f"| {preset} | {seconds_of(given):.0f} | {used:.0f} | {share:.0%} | {steps} | {said} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
