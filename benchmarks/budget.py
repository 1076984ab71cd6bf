"""Is a budget kept? Fits with `budget=`, and the seconds that they took.

``python benchmarks/budget.py [--images N] [--budgets 30s,1m,3m]``
writes docs/budget.md; the images are those of clothing_dev in FEATX_TEST_DATA (default ../shared/data). Each
fit has an empty cache. The seconds are those of `fit_with_test`, without imports.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import textwrap
import time
import warnings
from pathlib import Path

import numpy as np
from machine import describe

from featx import ImageClassifier
from featx.duration import seconds_of
from featx.exceptions import FeatxWarning
from featx.images import ImageSet, load_images
from featx.splits import stratified_sample

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FEATX_TEST_DATA", ROOT.parent / "shared" / "data"))
SEED = 0

INTRODUCTION = """
`--budget 10m` (`ImageClassifier(budget='10m')`) limits a whole fit: features, choice of networks, search,
views, fine-tuning and the evaluation. Each stage may use the share of the time left that is its expected
gain over that of all stages to come; what it does not use, the next ones get. Expected gains are shares of
the remaining errors (`EXPECTED` in `featx/classifier/budget.py`). The comparison of networks measures
whether an earlier layer is better than the last one; then fine-tuning is expected to gain more. Networks,
resizings and views whose features would take too long are left out before they are computed. Features of
all images are computed in any case, and a step that has begun is finished.
"""


def main() -> None:
    """Fit with each preset and budget, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--budgets", default="30s,60s,3m")
    parser.add_argument("--presets", default="good,best")
    args = parser.parse_args()
    warnings.simplefilter("ignore", FeatxWarning)
    images = load_images(DATA / "clothing_dev")
    codes = np.unique(images.labels, return_inverse=True)[1]
    images = images.select(stratified_sample(codes, args.images, SEED, per_class=2))
    images.splits = None
    rows = []
    for preset in args.presets.split(","):
        for given in args.budgets.split(","):
            rows.append(measure(images, preset, given))
            print(rows[-1], flush=True)
    (ROOT / "docs" / "budget.md").write_text(render(rows, args.images), encoding="utf-8")


def measure(images: ImageSet, preset: str, given: str) -> str:
    """Fit with an empty cache; one line of the table."""
    with tempfile.TemporaryDirectory() as store:
        clf = ImageClassifier(preset=preset, budget=given, random_state=SEED, store=store)
        began = time.monotonic()
        clf.fit_with_test(images)
        used = time.monotonic() - began
    steps = ", ".join(f"{step} {s:.0f}" for step, s in clf.record_.seconds.items() if s >= 0.5)
    tuning = clf.record_.fine_tuning
    said = "" if tuning is None else tuning.reason.split(";")[0][:90]
    share = used / seconds_of(given)
    cells = [preset, f"{seconds_of(given):.0f}", f"{used:.0f}", f"{share:.0%}", steps, said]
    return f"| {' | '.join(cells)} |"


def render(rows: list[str], images: int) -> str:
    """The page."""
    lines = [
        "# The budget",
        "",
        *textwrap.wrap(" ".join(INTRODUCTION.split()), 120),
        "",
        f"{images} photos of clothing_dev, an empty cache. Written by `python benchmarks/budget.py`.",
        "",
        describe(SEED),
        "",
        "| preset | budget, s | used, s | of the budget | steps, s | fine-tuning |",
        "|---" * 6 + "|",
        *rows,
        "",
        "Other work ran on the machine. A fit that is ready before its budget ends does not use the rest.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
