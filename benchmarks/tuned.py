"""Is `ImageClassifier(fine_tune="auto")` better than the tuned head?

``python benchmarks/tuned.py [--sets edges,...] [--splits N] [--minutes M] [--cache DIR]`` writes its section
of docs/finetuning.md; the sets are looked for in FEATX_TEST_DATA (default ../shared/data). No recipe is
given. Both fits have the same images, split, folds and seed. What was measured is kept in tuned.json beside
this file, so that a second call, also on another machine, goes on where the first stopped. The section has
all rows of that file. To measure a split again, delete its row.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from page import table

from featx import ImageClassifier
from featx.exceptions import FeatxWarning
from featx.images import ImageSet, load_images

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FEATX_TEST_DATA", ROOT.parent / "shared" / "data"))
ROWS = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "finetuning.md"
TITLE = '## `fine_tune="auto"` against the tuned head\n'
SEED = 0
BACKBONE = "tf_efficientnet_lite0.in1k"


@dataclass(frozen=True)
class Job:
    """A set, the number of its splits, and whether speakers are groups."""

    name: str
    splits: int
    speakers: bool = False

    @property
    def key(self) -> str:
        """Its name on the page."""
        return self.name + (" (speakers as groups)" if self.speakers else "")


JOBS = (
    Job("shape_edges16", 5),
    Job("shape_silhouettes16", 5),
    Job("omniglot_small1", 2),
    Job("sign_digits", 2),
    Job("fsdd_spectrograms", 2),
    Job("fsdd_spectrograms", 2, speakers=True),
    Job("catdog", 2),
    Job("clothing_dev", 2),
    Job("skin6", 2),
    Job("azure_trees2", 1),
)


def main() -> None:
    """Fit what is missing, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--sets", help="measure only these, by a part of the name")
    parser.add_argument("--splits", type=int, help="at most so many splits of each set")
    parser.add_argument("--minutes", type=float, default=60, help="limit of each fine-tuning (default 60)")
    parser.add_argument("--cache", help="folder for features (default: a temporary one)")
    args = parser.parse_args()
    wanted = [job for job in JOBS if not args.sets or any(part in job.key for part in args.sets.split(","))]
    with tempfile.TemporaryDirectory() as scratch:
        kept = Kept(ROWS)
        for split in range(max(job.splits for job in wanted)):
            for job in wanted:
                if split < min(job.splits, args.splits if args.splits is not None else job.splits):
                    kept.get(job, split, Path(args.cache or scratch), args.minutes)
    text = render(kept.rows, args.minutes)
    print(text)
    page = PAGE.read_text(encoding="utf-8").partition(TITLE)
    rest = page[2].partition("\n## ")
    PAGE.write_text(page[0].rstrip() + "\n\n" + text + rest[1] + rest[2], encoding="utf-8")


class Kept:
    """Results by set and split, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, job: Job, split: int, cache: Path, minutes: float) -> None:
        """Measure a split that is not there."""
        key = f"{job.key}/{split}"
        if key not in self.rows:
            self.rows[key] = {"measured": describe(SEED), **measure(job, split, cache, minutes)}
            self.path.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")
            print(key, self.rows[key], flush=True)


def measure(job: Job, split: int, cache: Path, minutes: float) -> dict[str, Any]:
    """Fit without and with fine-tuning; held-out accuracies, and what was done."""
    images = load(job)
    found: dict[str, Any] = {}
    for way in (False, "auto"):
        clf = ImageClassifier(BACKBONE, fine_tune=way, random_state=SEED, store=cache)
        clf.set_params(fine_tuner__timeout=60 * minutes)
        began = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FeatxWarning)
            clf.fit_with_test(images, split_salt=str(split))
        seconds = (time.process_time() - began) / (os.cpu_count() or 1)
        name = "tuned" if way else "probe"
        found[name] = {"accuracy": clf.evaluation_.metrics["accuracy"].value, "seconds": seconds}
    report = clf.fine_tune_
    found |= {"n": clf.evaluation_.n, "tried": report.tried, "kept": report.kept, "reason": report.reason}
    return found


def load(job: Job) -> ImageSet:
    """The set; of spectrograms with the speaker in the file's name as the group."""
    images = load_images(str(DATA / job.name))
    if job.speakers:
        images.groups = np.array([Path(str(source)).stem.split("_")[1] for source in images.sources])
    return images


def render(rows: dict[str, dict[str, Any]], minutes: float) -> str:
    """The section of the page."""
    lines, means = [], []
    for job in JOBS:
        own = [rows[key] for split in range(job.splits) if (key := f"{job.key}/{split}") in rows]
        if not own:
            continue
        probe, tuned = (np.array([row[way]["accuracy"] for row in own]) for way in ("probe", "tuned"))
        gain = 100 * (tuned - probe)
        means.append(gain.mean())
        error = f" ± {gain.std(ddof=1) / np.sqrt(len(own)):.1f}" if len(own) > 1 else ""
        seconds = [np.mean([row[way]["seconds"] for row in own]) / 60 for way in ("probe", "tuned")]
        lines.append(
            [
                job.key, str(len(own)), str(own[0]["n"]), f"{probe.mean():.3f}", f"{tuned.mean():.3f}",
                f"{gain.mean():+.1f}{error}", f"{sum(row['tried'] for row in own)} of {len(own)}",
                f"{sum(row['kept'] for row in own)} of {len(own)}", f"{seconds[0]:.1f} → {seconds[1]:.1f}",
            ]
        )  # fmt: skip
    left = [job.key for job in JOBS if f"{job.key}/0" not in rows]
    head = [
        "set", "splits", "test images", "tuned head", "auto", "difference, points", "tried", "kept",
        "minutes",
    ]  # fmt: skip
    return "\n".join(
        [
            TITLE,
            f'`ImageClassifier("{BACKBONE}")` without fine-tuning and with',
            '`fine_tune="auto"`, no recipe given: accuracy on held-out test parts (20 % by a stable hash, or',
            "the given one), mean over splits ± the standard error of the difference. A fine-tuning takes",
            f"at most {minutes:g} minutes of clock time. Minutes are processor time of the whole fit,",
            "divided by the number of cores.",
            "Written by `python benchmarks/tuned.py`.",
            "",
            *dict.fromkeys(row["measured"] for row in rows.values()),
            "",
            *table(head, lines),
            "",
            *(f"Not measured yet: {', '.join(left)}.\n" for _ in left[:1]),
            f"Lowest mean difference of a set: {min(means):+.1f} points; mean of all: {np.mean(means):+.1f}.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
