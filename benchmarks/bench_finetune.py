"""Fine-tuning against the tuned probe, against training from scratch, and what an epoch costs.

``python benchmarks/bench_finetune.py [--only epoch,catdog,far,scratch] [--sets a,b]`` writes
docs/finetuning.md (only when everything was run). Sets are looked for in FEATX_TEST_DATA
(default ../shared/data).

A set's images are dealt into folds; in each, probe and fine-tuner see the training folds only (the fine-tuner
takes its own validation and verdict parts from those) and both predict the fold. Predictions of all folds are
compared by one paired bootstrap over images, or over groups where there are any.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

from featx import HeadSearchCV
from featx.evaluation import compare
from featx.extractor import FeatureExtractor
from featx.finetune import FineTuner, Phase, Probe
from featx.images import ImageSet, load_images
from featx.scratch import ScratchClassifier
from featx.splits import image_groups, make_folds

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FEATX_TEST_DATA", ROOT.parent / "shared" / "data"))
BACKBONE = "tf_efficientnet_lite0.in1k"
SEED = 0
CUTS, POOLS = ["blocks.4", "blocks.6", None], ["avg", "grid2", "grid4"]


@dataclass(frozen=True)
class Job:
    """A set, how its pictures are resized, how it is dealt, and how it is fine-tuned."""

    name: str
    resize: str = "crop"
    folds: int = 5
    played: int = 5
    speakers: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


FAR = (
    Job("fsdd_spectrograms", "squash", folds=6, played=6, speakers=True),
    Job("sign_digits", "crop", played=3),
    Job("shape_edges16", "squash"),
    Job("shape_silhouettes16", "squash"),
    Job("omniglot_small1", "crop", played=2),
)
NEAR = (Job("catdog", "crop", played=2),)


def main() -> None:
    """Run the parts asked for and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="epoch,catdog,far,scratch", help="parts, separated by commas")
    parser.add_argument("--sets", help="of the far sets only these")
    options = parser.parse_args()
    page = ["# Fine-tuning", "", describe(SEED), ""]
    with tempfile.TemporaryDirectory() as cache:
        for part in options.only.split(","):
            page += PARTS[part](cache, options.sets)
    print("\n".join(page))
    if options.only == parser.get_default("only") and not options.sets:
        (ROOT / "docs" / "finetuning.md").write_text("\n".join(page) + "\n", encoding="utf-8")


# Against the probe ------------------------------------------------------------------------------------


def run_catdog(cache: str, _sets: str | None) -> list[str]:
    """Two phases on a near set."""
    return ["## A near set", "", *table(against_probe(job, cache) for job in NEAR)]


def run_far(cache: str, sets: str | None) -> list[str]:
    """Two phases on far sets."""
    jobs = [job for job in FAR if sets is None or job.name in sets.split(",")]
    return ["## Far sets", "", *table(against_probe(job, cache) for job in jobs)]


def against_probe(job: Job, cache: str) -> list[str]:
    """One row: both accuracies on all the folds played, the difference with its interval, the verdicts."""
    images = load(job)
    y = np.asarray(images.labels)
    pooled = FeatureExtractor(BACKBONE, cut=CUTS, pool=POOLS, resize=job.resize, store=cache)
    extraction = pooled.extract(images.sources)
    blocks, groups = extraction.blocks, image_groups(extraction.ids, images.groups)
    folds = make_folds(y, n_splits=job.folds, groups=groups, random_state=SEED)[: job.played]
    truth, ours, theirs, units, kept, minutes = [], [], [], [], 0, 0.0
    for train, test in folds:
        rows = blocks.take(train)
        search = HeadSearchCV(n_trials=20, random_state=SEED).fit(rows, y[train], groups=groups[train])
        began = time.perf_counter()
        tuner = FineTuner(
            FeatureExtractor(BACKBONE, resize=job.resize, store=cache), random_state=SEED, **job.settings
        ).fit(images.select(train), y[train], probe=Probe.of_search(search, rows))
        minutes += (time.perf_counter() - began) / 60
        ours.append(tuner.predict_proba(images.select(test)))
        theirs.append(search.predict_proba(blocks.take(test)))
        truth.append(np.searchsorted(tuner.classes_, y[test]))
        units.append(groups[test])
        assert tuner.verdict_ is not None
        kept += tuner.verdict_.kept
        print(job.name, len(truth), tuner.verdict_.reason, flush=True)
    found = compare(
        np.concatenate(truth), np.concatenate(ours), np.concatenate(theirs), groups=np.concatenate(units)
    )
    print(job.name, found, flush=True)
    return [
        job.name + (" (speakers as groups)" if job.speakers else ""), job.resize,
        f"{sum(map(len, truth)):,} of {len(y):,}", f"{found.value_b:.4f}", f"{found.value_a:.4f}",
        f"{100 * found.difference:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]",
        f"{found.mcnemar_p:.2g}", f"{kept} of {len(folds)}", f"{minutes / len(folds):.1f}",
    ]  # fmt: skip


def table(rows: Iterable[list[str]]) -> list[str]:
    """Markdown of the comparisons."""
    head = [
        "set", "resize", "test images", "probe", "fine-tuned", "difference, points [95 %]", "McNemar p",
        "kept by its own verdict", "minutes a fit",
    ]  # fmt: skip
    return [*markdown(head, rows), ""]


# What an epoch costs ----------------------------------------------------------------------------------

EPOCH_IMAGES, EPOCH_BATCH, REPEATS = 192, 32, 3
TWO_STAGES = ("blocks.5", "blocks.6")


def run_epoch(cache: str, _sets: str | None) -> list[str]:
    """Seconds per epoch of the same two stages on cached rows, and decoded each time; and of all layers."""
    images = load_images(str(DATA / "catdog"))
    picked = np.random.default_rng(SEED).permutation(len(images))[:EPOCH_IMAGES]
    some = images.select(picked)
    ways: dict[str, Callable[[], float]] = {
        "cached rows, last two stages": lambda: cached_epoch(some, cache),
        "PyTorch loop: decode, frozen layers, last two stages": lambda: plain_epoch(some, whole=False),
        "PyTorch loop: decode, all layers": lambda: plain_epoch(some, whole=True),
    }
    for way in ways.values():
        way()  # files in the page cache, rows in the store
    seconds = {name: [way() for _ in range(REPEATS)] for name, way in ways.items()}
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    fastest = next(iter(medians.values()))
    rows = [
        [
            name,
            f"{medians[name]:.1f}",
            f"{min(values):.1f}–{max(values):.1f}",
            f"{medians[name] / fastest:.1f}",
        ]
        for name, values in seconds.items()
    ]
    about = (
        f"One epoch of {EPOCH_IMAGES} catdog photos, {BACKBONE}, batches of {EPOCH_BATCH}, float32, AdamW; "
        f"median of {REPEATS}. The last two stages are {' and '.join(TWO_STAGES)}, with what lies above."
    )
    return ["## What an epoch costs", "", about, "", *markdown(["way", "s", "range", "ratio"], rows), ""]


def cached_epoch(images: ImageSet, cache: str) -> float:
    """Seconds of one epoch of the fine-tuner on rows of the store."""
    phases = (Phase(epochs=1, batch_size=EPOCH_BATCH, batch_norm="trained"),)
    tuner = FineTuner(
        FeatureExtractor(BACKBONE, store=cache), unfreeze="blocks.4", head="linear", phases=phases,
        validation=0, verdict=0, refit=False, random_state=SEED,
    ).fit(images, np.asarray(images.labels))  # fmt: skip
    return float(tuner.history_[0]["seconds"])


def plain_epoch(images: ImageSet, *, whole: bool) -> float:
    """Seconds of one epoch as it is commonly written: DataLoader, timm's transform, AdamW."""
    import timm
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    from featx.backbones import load_backbone

    network = load_backbone(BACKBONE, device="cpu").module
    network.reset_classifier(2)
    free = network if whole else [network.blocks[5], network.blocks[6], network.conv_head, network.bn2]
    network.requires_grad_(whole)
    for module in [] if whole else [*free, network.get_classifier()]:
        module.requires_grad_(True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    labels = np.unique(np.asarray(images.labels), return_inverse=True)[1]

    class Photos(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> Any:
            return transform(Image.open(images.sources[index]).convert("RGB")), int(labels[index])

    loader = DataLoader(Photos(), EPOCH_BATCH, shuffle=True, num_workers=os.cpu_count() or 1)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-4)
    network.train()
    began = time.perf_counter()
    for x, target in loader:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), target).backward()
        optimizer.step()
    return time.perf_counter() - began


# From scratch -----------------------------------------------------------------------------------------

TUTORIAL_VIEWS = "flip=0.5,rotate=40,shift=0.2,shear=0.2,zoom=0.2,border=edge"
SMALL_DATA_VIEWS = "flip=0.5,rotate=15,shear=0.1,zoom=0.2,shift=0.1,border=edge"
SCRATCH = (
    ("four blocks", {"architecture": "four-blocks", "epochs": 30}),
    ("four blocks, L2", {"architecture": "four-blocks", "epochs": 30, "l2": 1e-3}),
    (
        "four blocks, augmentation, dropout",
        {"architecture": "four-blocks", "epochs": 60, "dropout": 0.5, "view_policy": TUTORIAL_VIEWS},
    ),
    (
        "three blocks, batch norm, dropout, augmentation",
        {
            "architecture": "three-blocks",
            "epochs": 40,
            "view_policy": SMALL_DATA_VIEWS,
        },
    ),
)


def run_scratch(cache: str, _sets: str | None) -> list[str]:
    """The tutorials' convnets on catdog, and the probe at the same numbers of images."""
    images = load_images(str(DATA / "catdog"))
    y = np.asarray(images.labels)
    train, test = make_folds(y, n_splits=5, random_state=SEED)[0]
    rows = []
    for name, settings in SCRATCH:
        began = time.perf_counter()
        net = ScratchClassifier(keep_best=False, random_state=SEED, **settings)
        net.fit(images.select(train), y[train])
        last = net.history_[-1]
        score = float((net.predict(images.select(test)) == y[test]).mean())
        best = max(record["stop_accuracy"] for record in net.history_)
        rows.append(
            [name, f"{net.n_parameters_:,}", str(len(net.history_)), f"{last['accuracy']:.3f}",
             f"{last['stop_accuracy']:.3f}", f"{best:.3f}", f"{score:.3f}",
             f"{(time.perf_counter() - began) / 60:.1f}"]
        )  # fmt: skip
        print(rows[-1], flush=True)
    head = [
        "net from scratch", "parameters", "epochs", "training", "validation, last epoch", "validation, best",
        "test", "minutes",
    ]  # fmt: skip
    return [
        "## From scratch: the tutorials' nets on catdog",
        "",
        f"{len(train):,} photos to learn from (a fifth of them for validation), {len(test)} to test on.",
        "",
        *markdown(head, rows),
        "",
        *learning_curve(images, y, train, test, cache),
    ]


def learning_curve(images: ImageSet, y: Any, train: Any, test: Any, cache: str) -> list[str]:
    """Higher start, higher slope, higher asymptote? Test accuracy by number of photos, with and without."""
    features = FeatureExtractor(BACKBONE, store=cache).fit_transform(images.sources)
    rng = np.random.default_rng(SEED)
    rows = []
    for n in (40, 160, 600, len(train)):
        some = rng.permutation(train)[:n]
        search = HeadSearchCV(n_trials=10, random_state=SEED).fit(features[some], y[some])
        probe = float((search.predict(features[test]) == y[test]).mean())
        net = ScratchClassifier("four-blocks", epochs=30, random_state=SEED).fit(images.select(some), y[some])
        scratch = float((net.predict(images.select(test)) == y[test]).mean())
        rows.append([str(n), f"{scratch:.3f}", f"{probe:.3f}"])
        print(rows[-1], flush=True)
    head = ["photos", "four blocks from scratch", "pretrained features + tuned head"]
    return ["Test accuracy by number of photos to learn from:", "", *markdown(head, rows), ""]


PARTS: dict[str, Callable[[str, str | None], list[str]]] = {
    "epoch": run_epoch,
    "catdog": run_catdog,
    "far": run_far,
    "scratch": run_scratch,
}


def load(job: Job) -> ImageSet:
    """The set; of spectrograms with the speaker in the file's name as the group."""
    images = load_images(str(DATA / job.name))
    if job.speakers:
        images.groups = np.array([Path(str(source)).stem.split("_")[1] for source in images.sources])
    return images


def markdown(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    """A table."""
    lines = ["| " + " | ".join(row) + " |" for row in [head, *rows]]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


if __name__ == "__main__":
    main()
