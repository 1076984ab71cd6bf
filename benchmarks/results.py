"""Held-out accuracy of `ImageClassifier` on the real image sets; writes docs/results.md.

``python benchmarks/results.py [--sets catdog,...]``; the sets are looked for in FEATX_TEST_DATA
(default ../shared/data).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from imbalance import TITLE
from machine import describe
from page import table

from featx import ImageClassifier
from featx.images import ImageSet, load_images

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FEATX_TEST_DATA", ROOT.parent / "shared" / "data"))
SEED = 0
BACKBONE = "tf_efficientnet_lite0.in1k"
SALTS = ("", "a", "b", "c", "d")


@dataclass(frozen=True)
class Job:
    """One row of the table: a set, how it is split, how many splits are drawn."""

    name: str
    split: str
    salts: tuple[str, ...] = SALTS


JOBS = (
    Job("catdog", "stable hash, 20 % test"),
    Job("clothing_dev", "the given test folder", ("",)),
    Job("sign_digits", "stable hash, 20 % test"),
    Job("fsdd_spectrograms", "stable hash, 20 % test"),
    Job("fsdd_spectrograms", "speakers as groups"),
    Job("shape_edges16", "stable hash, 20 % test"),
    Job("shape_silhouettes16", "stable hash, 20 % test"),
    Job("omniglot_small1", "stable hash, 20 % test", SALTS[:3]),
)


def main() -> None:
    """Run the jobs and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", help="only these, separated by commas (the page is then only printed)")
    chosen = parser.parse_args().sets
    jobs = [job for job in JOBS if not chosen or job.name in chosen.split(",")]
    with tempfile.TemporaryDirectory() as cache:
        rows = [measure(job, cache) for job in jobs]
    page = render(rows)
    print(page)
    if not chosen:
        path = ROOT / "docs" / "results.md"
        imbalanced = path.read_text(encoding="utf-8").partition(TITLE)[1:]
        path.write_text(page + ("\n" + "".join(imbalanced) if imbalanced[0] else ""), encoding="utf-8")


def measure(job: Job, cache: str) -> list[str]:
    """Fit on each split; means over the splits, and the seconds of the first, cold fit."""
    images = load(job)
    accuracies, balanced, seconds, chosen = [], [], [], []
    for salt in job.salts:
        began = time.perf_counter()
        clf = ImageClassifier(BACKBONE, random_state=SEED, store=cache).fit_with_test(images, split_salt=salt)
        seconds.append(time.perf_counter() - began)
        accuracies.append(clf.evaluation_.metrics["accuracy"])
        balanced.append(clf.evaluation_.metrics["balanced_accuracy"].value)
        blocks = (
            " + ".join(clf.best_blocks_) if len(clf.best_blocks_) < 4 else f"{len(clf.best_blocks_)} blocks"
        )
        chosen.append(f"{clf.best_params_['head']} on {blocks}")
        print(f"{job.name} [{salt}] {accuracies[-1].value:.4f} {seconds[-1]:.1f} s {chosen[-1]}", flush=True)
    values = [metric.value for metric in accuracies]
    first = accuracies[0]
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return [
        job.name, f"{len(images):,}", job.split, str(len(values)), f"{np.mean(values):.4f}{spread}",
        f"[{first.low:.3f}, {first.high:.3f}]", f"{np.mean(balanced):.4f}", f"{seconds[0]:.1f}",
        f"{np.median(seconds[1:]):.1f}" if len(seconds) > 1 else "", chosen[0],
    ]  # fmt: skip


def load(job: Job) -> ImageSet:
    """The set, with speakers as groups where the job says so."""
    images = load_images(DATA / job.name)
    if "speakers" in job.split:
        images.groups = np.array([Path(name).stem.split("_")[1] for name in images.names])
    return images


def render(rows: list[list[str]]) -> str:
    """The page."""
    header = [
        "set", "images", "test part", "splits", "accuracy (mean ± sd)", "95 % interval (first split)",
        "balanced accuracy", "cold fit, s", "warm fit, s", "selected (first split)",
    ]  # fmt: skip
    lines = [
        "# Results",
        "",
        "Held-out accuracy of `ImageClassifier(backbone).fit_with_test(...)`, otherwise with its defaults.",
        "The backbone is `tf_efficientnet_lite0.in1k` with its ImageNet weights; the training part selects",
        "everything else.",
        "Written by `python benchmarks/results.py`.",
        "",
        describe(SEED),
        "",
        *table(header, rows),
        "",
        "Deviations are over splits (salts). Intervals are bootstraps over the images of one test part.",
        "Cold: from `fit` to the evaluated model, with an empty cache; the first line includes imports and",
        "the conversion of the network. Other work may have run on the machine, so seconds are upper bounds.",
        "",
        "No network is fine-tuned here. [finetuning.md](finetuning.md) has the sets unlike ImageNet on which",
        "fine-tuning is better than these heads, and on which it is not, with intervals of the difference.",
        "",
        "[representation.md](representation.md) compares the selected representation with the last features",
        "and with an oracle. On shape_silhouettes16 (112 training images, 16 classes) it is worse than",
        "`LogisticRegression()` on the last features, but not significantly. These selections were tried:",
        "best accuracy, log loss or Brier score of out-of-fold predictions among configurations that do not",
        "differ by the corrected standard error (the Brier score is used), the simplest of these, fewer",
        "heads, and more repeats of the folds. On small sets they differ by less than their errors.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
