"""Fine-tuning against the tuned probe, against training from scratch, and what an epoch costs.

``python benchmarks/bench_finetune.py PART [--sets a,b] [--folds 0,1]`` runs one part (``epoch``, ``catdog``,
``rule``, ``far``, ``scratch``, ``curve``) and keeps what it found as JSON, fold by fold, so that a part can
be run in pieces; ``page`` writes docs/finetuning.md from all that is kept; ``all`` does everything. What is
kept is not run again (``--again`` does). Sets are looked for in FEATX_TEST_DATA (default ../shared/data).

A set's images are dealt into folds; in each, probe and fine-tuner see the training folds only and both
predict the fold. Predictions of all folds are compared by one paired bootstrap over images, or over groups
where there are any.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from page import table
from scipy.stats import binomtest

from featx import HeadSearchCV, ImageClassifier
from featx.classifier.finetuning import AUTO_TIMEOUT
from featx.evaluation import compare
from featx.extractor import FeatureExtractor
from featx.finetune import FineTuner, Phase
from featx.finetune.recipes import HOPELESS, RECIPES
from featx.finetune.scratch import CONVNETS, ScratchClassifier
from featx.finetune.verdict import FEWEST_ERRORS, OPEN_TO, expected_gain, paired_error
from featx.images import ImageSet, image_digest, load_images
from featx.splits import image_groups, make_folds
from featx.stores.base import as_ids

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FEATX_TEST_DATA", ROOT.parent / "shared" / "data"))
KEPT = Path(os.environ.get("FEATX_BENCH", ROOT / "build" / "bench_finetune"))
"""Where results and rows are kept between the parts."""
BACKBONE = "tf_efficientnet_lite0.in1k"
SEED = 0
CUTS, POOLS = ["blocks.4", "blocks.6", None], ["avg", "grid2", "grid4"]

EVERYTHING = Phase(epochs=14, lr=1e-3, batch_norm="trained")
"""Far from the pretraining the batch statistics are others, so they are trained too."""
SMALL = EVERYTHING.replace(epochs=40, batch_size=16)
"""128 images to learn from: as many steps as smaller batches give."""


@dataclass(frozen=True)
class Job:
    """A set, how its pictures are resized, how it is dealt (and how often anew), and how it is fine-tuned."""

    name: str
    resize: str
    phase: Phase
    folds: int = 5
    played: int = 5
    repeats: int = 1
    speakers: bool = False
    side: int | None = None
    how: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """Its name, and what is kept together."""
        return self.name + (" (speakers as groups)" if self.speakers else "")

    @property
    def key(self) -> str:
        """Its name in those of files."""
        return self.name + ("-speakers" if self.speakers else "")

    @property
    def numbers(self) -> list[int]:
        """The folds that are played, those of the first deal before those of the next."""
        return [deal * self.folds + fold for deal in range(self.repeats) for fold in range(self.played)]


WHOLE = {"unfreeze": "all", "view_policy": "rotate=10,shear=8,shift=0.08,zoom=0.15,border=edge"}
SPEECH = {"unfreeze": "all", "view_policy": "shift=0.1,zoom=0.1,border=edge"}
FLIPPED = "flip=0.5,rotate=10,shift=0.08,zoom=0.15,border=edge"
UPPER = {"unfreeze": 2, "views": 8, "view_policy": FLIPPED}

TRYOUT_DEAL = 99
TRYOUTS = {
    "two stages, 8 cached views": Job(
        "shape_edges16", "squash", Phase(epochs=20, lr=5e-4, batch_size=16), settings=UPPER
    ),
} | {
    f"all layers at {side} pixels, rate {lr:g}": Job(
        "shape_edges16", "squash", SMALL.replace(lr=lr), side=side,
        settings={"unfreeze": "all", "view_policy": FLIPPED},
    )
    for side in (112, 160, 224)
    for lr in (5e-4, 1e-3)
}  # fmt: skip
"""Recipes for tiny sets, tried on another deal of shape_edges16 than those that count."""

SHAPES = TRYOUTS["all layers at 224 pixels, rate 0.0005"]
"""The best of them."""

FAR = (
    replace(SHAPES, repeats=4, how="all layers at 224 pixels, fresh augmentation"),
    replace(
        SHAPES, name="shape_silhouettes16", repeats=4, how="all layers at 224 pixels, fresh augmentation"
    ),
    Job(
        "omniglot_small1", "squash", EVERYTHING, side=80, settings=WHOLE,
        how="all layers at 80 pixels, fresh augmentation",
    ),
    Job(
        "sign_digits", "squash", EVERYTHING, side=112, settings=WHOLE,
        how="all layers at 112 pixels, fresh augmentation",
    ),
    Job(
        "fsdd_spectrograms", "squash", EVERYTHING.replace(epochs=20, lr=5e-4), side=128, settings=SPEECH,
        how="all layers at 128 pixels, fresh augmentation",
    ),
    Job(
        "fsdd_spectrograms", "squash", EVERYTHING.replace(epochs=12, mixup=0.4, cutmix=1.0), folds=6,
        played=6, speakers=True, side=64, settings=SPEECH,
        how="all layers at 64 pixels, fresh augmentation, mixup and cutmix",
    ),
)  # fmt: skip


def main() -> None:
    """Run the requested part."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("part", choices=[*PARTS, "page", "all"])
    parser.add_argument("--sets", help="of the far sets only these")
    parser.add_argument("--folds", help="only these folds, by number")
    parser.add_argument("--who", choices=["probe", "tuned"], help="of the two on far sets only this one")
    parser.add_argument("--nets", help="of the nets from scratch only these, by number")
    parser.add_argument("--again", action="store_true", help="run what is kept once more")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side (default 1)")
    options = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    for part in PARTS if options.part == "all" else [options.part]:
        if part in PARTS:
            PARTS[part](options)
    if options.part in ("page", "all"):
        (ROOT / "docs" / "finetuning.md").write_text(write_page(), encoding="utf-8")


def play(tasks: Mapping[str, Callable[[], dict[str, Any]]], options: argparse.Namespace) -> None:
    """Run what is not kept, in so many processes."""
    left = [name for name in tasks if options.again or not (KEPT / f"{name}.json").exists()]
    if options.jobs == 1:
        for name in left:
            keep(name, tasks[name])
        return
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as processes:
        for done in [processes.submit(keep, name, tasks[name]) for name in left]:
            done.result()


def keep(name: str, run: Callable[[], dict[str, Any]]) -> None:
    """Run, and keep what it found, with its date, machine and minutes."""
    began = time.perf_counter()
    found = {"machine": describe(SEED), **run()}
    text = json.dumps({**found, "minutes": (time.perf_counter() - began) / 60})
    (KEPT / f"{name}.json").write_text(text)
    print(name, {key: value for key, value in found.items() if not isinstance(value, list)}, flush=True)


def read(name: str) -> dict[str, Any]:
    """What is kept under a name, empty if nothing is."""
    path = KEPT / f"{name}.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


# Against the probe ------------------------------------------------------------------------------------


def run_far(options: argparse.Namespace) -> None:
    """Far sets, fold by fold."""
    tasks: dict[str, Callable[[], dict[str, Any]]] = {}
    for job in FAR:
        if options.sets and job.name not in options.sets.split(","):
            continue
        numbers = job.numbers if options.folds is None else map(int, options.folds.split(","))
        if options.who != "tuned":
            Fold(job, 0).rows  # noqa: B018  (extracted once, whatever runs side by side)
        for number in numbers:
            fold = Fold(job, number)
            for who, answer in {"probe": fold.play_probe, "tuned": fold.play_tuner}.items():
                if options.who in (None, who):
                    tasks[f"far-{job.key}-{number}-{who}"] = answer
    play(tasks, options)


def run_tryout(options: argparse.Namespace) -> None:
    """Recipes for the shapes, on another deal of one of the two."""
    play(
        {
            f"tryout-{number}-{fold}": Fold(job, TRYOUT_DEAL * job.folds + fold).play_tuner
            for number, job in enumerate(TRYOUTS.values())
            for fold in range(job.folds)
        },
        options,
    )


@dataclass
class Fold:
    """One fold of a set, and what answers of each of the two are kept."""

    job: Job
    number: int

    def play_probe(self) -> dict[str, Any]:
        """Answers of the tuned head on frozen features."""
        y, rows, (train, test) = np.asarray(self.images.labels), self.rows, self.parts
        search = self.search().fit(rows.take(train), y[train], groups=self.groups[train])
        answers = search.predict(rows.take(test))
        return {"head": str(search.best_params_["head"]), **self.answered(answers)}

    def play_tuner(self) -> dict[str, Any]:
        """Answers of the network that started from it; the probe's settings are not searched again."""
        job, y, (train, test) = self.job, np.asarray(self.images.labels), self.parts
        tuner = FineTuner(
            FeatureExtractor(BACKBONE, resize=job.resize, input_size=job.side, store=KEPT / "rows"),
            phases=(Phase(trainable="head", epochs=0), job.phase), validation=0, verdict=0, refit=False,
            random_state=SEED, **job.settings,
        )  # fmt: skip
        tuner.fit(self.images.select(train), y[train])
        return self.answered(tuner.predict(self.images.select(test)))

    def answered(self, answers: Any) -> dict[str, Any]:
        """Class numbers of the truth and of the answers."""
        y, test = np.asarray(self.images.labels), self.parts[1]
        classes = np.unique(y)
        return {
            "accuracy": float((answers == y[test]).mean()),
            "truth": np.searchsorted(classes, y[test]).tolist(),
            "answers": np.searchsorted(classes, answers).tolist(),
            "groups": self.groups[test].tolist(),
        }

    def search(self) -> HeadSearchCV:
        """The search for the probe."""
        return HeadSearchCV(n_trials=20, random_state=SEED)

    @cached_property
    def images(self) -> ImageSet:
        """The set."""
        return load(self.job)

    @cached_property
    def extraction(self) -> Any:
        """Pooled rows of all the images."""
        pooled = FeatureExtractor(BACKBONE, cut=CUTS, pool=POOLS, resize=self.job.resize, store=KEPT / "rows")
        return pooled.extract(self.images.sources)

    @property
    def rows(self) -> Any:
        """Blocks of them."""
        return self.extraction.blocks

    @cached_property
    def groups(self) -> Any:
        """Images that must not be parted."""
        ids = as_ids(image_digest(source) for source in self.images.sources)
        return image_groups(ids, self.images.groups)

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """Positions to learn from and to answer."""
        y, (deal, fold) = np.asarray(self.images.labels), divmod(self.number, self.job.folds)
        return make_folds(y, n_splits=self.job.folds, groups=self.groups, random_state=SEED + deal)[fold]


def far_results() -> Iterable[tuple[Job, int, int, Any, list[float]]]:
    """Of each far set of which a fold was played by both: folds, answers, comparison, minutes of each."""
    for job in FAR:
        played = [[read(f"far-{job.key}-{n}-{who}") for who in ("tuned", "probe")] for n in job.numbers]
        both = [fold for fold in played if all(fold)]
        if not both:
            continue
        truth, groups = (np.concatenate([fold[0][name] for fold in both]) for name in ("truth", "groups"))
        answers = [np.concatenate([fold[who]["answers"] for fold in both]) for who in (0, 1)]
        n_classes = 1 + int(max(truth.max(), *(one.max() for one in answers)))
        verdict = compare(truth, *(one_hot(one, n_classes) for one in answers), groups=groups)
        minutes = [float(np.mean([fold[who]["minutes"] for fold in both])) for who in (1, 0)]
        yield job, len(both), len(truth), verdict, minutes


def far_row(job: Job, folds: int, n: int, verdict: Any, minutes: list[float]) -> list[str]:
    """Its line of the table."""
    return [
        job.words,
        job.how,
        f"{n:,} ({folds} of {job.folds} folds)"
        if folds <= job.folds
        else f"{n:,} ({folds} folds, {job.folds} in each draw)",
        f"{verdict.value_b:.3f}",
        f"{verdict.value_a:.3f}",
        f"{100 * verdict.difference:+.1f} [{100 * verdict.low:+.1f}, {100 * verdict.high:+.1f}]",
        f"{minutes[0]:.1f}, {minutes[1]:.1f}",
    ]


def one_hot(answers: Any, n_classes: int) -> Any:
    """Probabilities that give the same answers."""
    return np.eye(n_classes)[answers]


def run_catdog(options: argparse.Namespace) -> None:
    """The front door on a near set, with its own verdict, and without the rule that spares the attempt."""
    play({"catdog": play_catdog}, options)


def play_catdog() -> dict[str, Any]:
    """Accuracy on a stable test part with the network that fine-tuning leaves, and what "auto" says."""
    found: dict[str, Any] = {}
    for choice in ("auto", True):
        clf = ImageClassifier(
            fine_tune=choice, resize="crop", n_trials=20, store=KEPT / "rows", random_state=SEED
        ).fit_with_test(DATA / "catdog")
        assert clf.fine_tune_ is not None
        found[str(choice)] = {
            "reason": clf.fine_tune_.reason,
            "kept": clf.fine_tune_.kept,
            "test": clf.evaluation_.metrics["accuracy"].value,
            "n_test": clf.evaluation_.n,
            "phases": list(clf.fine_tune_.phases),
            "disk": clf.fine_tune_.disk,
        }
    return found


# The rule that keeps a network ------------------------------------------------------------------------


def recipes_part() -> list[str]:
    """Return the table of recipes."""
    head = [
        "recipe",
        "trained",
        "input",
        "augmented images",
        "epochs, rate, batch",
        "below 500 images",
        "set by",
    ]
    rows = [
        [
            name,
            "all layers" if one.unfreeze == "all" else f"the last {one.unfreeze} stages",
            f"{one.side} pixels" if one.side else "as the probe's",
            f"{one.views} stored for each" if one.views else "afresh in each epoch",
            *(f"{phase.epochs}, {phase.lr:g}, {phase.batch_size}" for phase in (one.phase, one.few)),
            one.source,
        ]
        for name, one in RECIPES.items()
    ]
    return [
        '`fine_tune="auto"` chooses among these recipes by successive halving, the cheapest first: each is '
        "trained for a quarter of its epochs, and the better half of them for all epochs. Training stops "
        "after the first quarter if the probability of a gain, from the validation images, is below "
        f"{HOPELESS:g}. All trainings together take at most {AUTO_TIMEOUT / 60:.0f} minutes "
        "(`fine_tuner__timeout`), with fewer epochs if necessary. Fine-tuning is not tried if the probe is "
        f"wrong on fewer than {FEWEST_ERRORS} training images, or if the images are like those of the "
        "pretraining and the expected gain is too small.",
        "",
        "The network is calibrated on the validation images. Its probabilities are not averaged with those "
        "of the probe, since the probe needs the features of the original network, and so a second forward "
        "pass for each prediction.",
        "",
        *table(head, rows),
    ]


RULE_SIZES = (128, 300, 1000)
RULE_LIMITS = (0.5, 0.35, 0.1)
RULE_GAINS = (0.062, -0.014, 0.033, 0.009, -0.002, -0.019, 0.001)
"""True gains to draw from: the differences of the far sets and the near set."""
RULE_LOSSES = (-0.005, -0.01, -0.02, -0.04)
DIFFER = 0.12
"""Share of images that only one of the two gets right; more where the gain is larger."""
RULE_REPEATS = 2000


def run_rule(options: argparse.Namespace) -> None:
    """Simulate the verdict, and the rule of significance on as many images."""
    play({"rule": play_rule}, options)


def play_rule() -> dict[str, Any]:
    """Mean points that each rule gains, trainings, and the most that it loses where the network is worse."""
    found: dict[str, Any] = {}
    for n in RULE_SIZES:
        rng = np.random.default_rng(SEED)
        for name, limit in {"significant": None, **{str(limit): limit for limit in RULE_LIMITS}}.items():
            mean = [
                (kept * gain, trainings)
                for gain in rng.choice(RULE_GAINS, RULE_REPEATS)
                for kept, trainings in [simulate(n, gain, limit, rng)]
            ]
            lost = [
                -loss * np.mean([simulate(n, loss, limit, rng)[0] for _ in range(RULE_REPEATS // 2)])
                for loss in RULE_LOSSES
            ]
            gained, trainings = np.mean(mean, axis=0)
            found[f"{n} {name}"] = [100 * gained, trainings, 100 * max(lost)]
    return found


def simulate(n: int, gain: float, limit: float | None, rng: np.random.Generator) -> tuple[bool, int]:
    """Whether a network of this gain is kept, and after how many trainings; by the sign test for None."""
    differ = max(DIFFER, 1.2 * abs(gain))
    shares = [(differ + gain) / 2, (differ - gain) / 2, 1 - differ]
    counts = rng.multinomial(n // 5, shares, 5).cumsum(axis=0)
    if limit is None:
        better, worse, _ = counts[-1]
        return bool(better > worse and binomtest(better, better + worse).pvalue < 0.05), 5
    trainings = 0
    for better, worse, equal in counts:
        trainings += 1
        difference = np.repeat([1.0, -1.0, 0.0], [better, worse, equal])
        found, chance = expected_gain(float(difference.mean()), paired_error(difference))
        if not limit <= chance < OPEN_TO:
            break
    return found.value > 0, trainings


def rule_part() -> list[str]:
    """Return the table of the rules."""
    found = read("rule")
    if not found:
        return []
    head = ["training images", "rule", "mean gain, points", "trainings", "largest mean loss, points"]
    names = {"significant": "sign test, p < 0.05, on all images"} | {
        str(limit): f"expected gain above 0; further parts while P(gain > 0) is {limit:g} to {OPEN_TO:g}"
        for limit in RULE_LIMITS
    }
    rows = [
        [
            str(n),
            words,
            *(f"{value:.{digits}f}" for value, digits in zip(found[f"{n} {name}"], (2, 1, 2), strict=True)),
        ]
        for n in RULE_SIZES
        for name, words in names.items()
    ]
    return [
        "featx splits the training images into five parts. It trains on the other parts, compares network "
        "and probe on one part, and repeats this for further parts until the result is clear. This is a "
        "simulation of rules for the decision. True gains are drawn from the differences on the near set and "
        f"the far sets below. Exactly one of network and probe is right on {DIFFER:.0%} of the images, or on "
        "more for larger gains. The last column is the largest of the mean losses in accuracy where the "
        "network is truly worse by 0.5, 1, 2 or 4 points. featx uses the rule from 0.35 "
        "(`featx.finetune.verdict`).",
        "",
        *table(head, rows),
    ]


# What an epoch costs ----------------------------------------------------------------------------------

EPOCH_IMAGES, EPOCH_IMAGES_ALL, EPOCH_BATCH, REPEATS = 256, 64, 32, 2
"""Photos of an epoch; fewer where all layers train, which takes a fifth of a second for each."""
STAGES = ("blocks.5", "blocks.6")
WAYS = {
    "cached": "featx: cached features, last two stages",
    "single": "the same in float32",
    "two": "PyTorch loop: decode, augment, frozen layers, last two stages",
    "mixed": "the same in bfloat16 by autocast",
    "all": "PyTorch loop: decode, augment, all layers",
}


def run_epoch(options: argparse.Namespace) -> None:
    """Seconds per epoch of the same two stages on cached rows, and decoded each time; and of all layers."""
    from featx.backbones.runtimes import resolve_device

    device = resolve_device("auto")
    play({f"epoch-{device}": partial(time_epochs, device)}, options)


def time_epochs(device: str) -> dict[str, Any]:
    """Seconds a photo, of the clock and of the processor, in turns so that other work falls on all alike."""
    import torch

    from featx.backbones.runtimes import resolve_precision

    images = load_images(str(DATA / "catdog"))
    picked = np.random.default_rng(SEED).permutation(len(images))
    few = images.select(picked[:EPOCH_BATCH])
    ways: dict[str, Callable[[ImageSet], tuple[float, float]]] = {
        "cached": lambda images: cached_epoch(images, "auto"),
        "single": lambda images: cached_epoch(images, "fp32"),
        "two": lambda images: plain_epoch(images, device, whole=False),
        "mixed": lambda images: plain_epoch(images, device, whole=False, mixed=True),
        "all": lambda images: plain_epoch(images, device, whole=True),
    }
    counts = dict.fromkeys(ways, EPOCH_IMAGES) | {"all": EPOCH_IMAGES_ALL}
    if device != "cpu":  # fast enough for all of them
        counts = dict.fromkeys(ways, len(images))
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for way in ways.values():
        way(few)  # code warm
    for _ in range(REPEATS):
        for name, way in ways.items():
            wall, processor = way(images.select(picked[: counts[name]]))
            seconds[name].append((wall / counts[name], processor / counts[name]))
    return {
        "seconds": seconds,
        "counts": counts,
        "threads": torch.get_num_threads(),
        "precision": resolve_precision("auto", device),
    }


def cached_epoch(images: ImageSet, precision: str) -> tuple[float, float]:
    """Seconds of the second epoch on rows of the store: the first one reads them into memory."""
    phases = (Phase(epochs=2, batch_size=EPOCH_BATCH, batch_norm="trained"),)
    tuner = FineTuner(
        FeatureExtractor(BACKBONE, store=KEPT / "rows"), unfreeze="blocks.4", head="linear", phases=phases,
        precision=precision, validation=0, verdict=0, refit=False, random_state=SEED,
    )  # fmt: skip
    tuner.fit(images, np.asarray(images.labels))
    record = tuner.history_[1]
    return record["seconds"], record["cpu_seconds"]


def plain_epoch(images: ImageSet, device: str, *, whole: bool, mixed: bool = False) -> tuple[float, float]:
    """One epoch as it is commonly written: torchvision's tutorial transform, AdamW; a worker for each core
    where the network is elsewhere.

    Decoding in this process makes its processor time countable; on two busy cores workers gain nothing.
    """
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    from featx.backbones import load_backbone

    network = load_backbone(BACKBONE, device="cpu").module
    network.reset_classifier(2)
    network.to(device)
    free = network if whole else [network.blocks[5], network.blocks[6], network.conv_head, network.bn2]
    network.requires_grad_(whole)
    for module in [] if whole else [*free, network.get_classifier()]:
        module.requires_grad_(True)
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    labels = np.unique(np.asarray(images.labels), return_inverse=True)[1]

    class Photos(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> Any:
            return transform(Image.open(images.sources[index]).convert("RGB")), int(labels[index])

    workers = 0 if device == "cpu" else os.cpu_count() or 0
    loader = DataLoader(Photos(), EPOCH_BATCH, shuffle=True, num_workers=workers, pin_memory=device != "cpu")
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-4)
    network.train()
    began, used = time.perf_counter(), time.process_time()
    for x, target in loader:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            logits = network(x.to(device, non_blocking=True))
            loss = torch.nn.functional.cross_entropy(logits, target.to(device, non_blocking=True))
        loss.backward()
        optimizer.step()
    float(loss.detach())  # waits for the device
    return time.perf_counter() - began, time.process_time() - used


# From scratch -----------------------------------------------------------------------------------------

TUTORIAL_VIEWS = "flip=0.5,rotate=40,shift=0.2,shear=0.2,zoom=0.2,border=edge"
SMALL_DATA_VIEWS = "flip=0.5,rotate=15,shear=0.1,zoom=0.2,shift=0.1,border=edge"
FOUR = dataclasses.replace(CONVNETS["four-blocks"], lr=5e-4)
"""Five times the tutorial's rate and a third of its epochs: the page is made on a few processor cores."""
SCRATCH: tuple[tuple[str, dict[str, Any]], ...] = (
    ("four blocks", {"net": FOUR, "epochs": 30}),
    ("four blocks, L2", {"net": FOUR, "epochs": 30, "l2": 1e-4}),
    (
        "four blocks, augmentation, dropout",
        {"net": dataclasses.replace(FOUR, dropout=0.5), "epochs": 24, "view_policy": TUTORIAL_VIEWS},
    ),
    (
        "three blocks, batch norm, dropout, augmentation",
        {"net": "three-blocks", "epochs": 20, "view_policy": SMALL_DATA_VIEWS},
    ),
)


def run_scratch(options: argparse.Namespace) -> None:
    """The tutorials' convnets on catdog."""
    numbers = range(len(SCRATCH)) if options.nets is None else map(int, options.nets.split(","))
    play({f"scratch-{number}": partial(play_scratch, number) for number in numbers}, options)


def play_scratch(number: int) -> dict[str, Any]:
    """One net: accuracies of its last epoch, and on photos that it never saw."""
    images, y, train, test = catdog()
    net = ScratchClassifier(keep_best=False, random_state=SEED, **SCRATCH[number][1])
    net.fit(images.select(train), y[train])
    last = net.history_[-1]
    return {
        "parameters": net.n_parameters_,
        "epochs": len(net.history_),
        "training": last["accuracy"],
        "validation": last["val_accuracy"],
        "best": max(record["val_accuracy"] for record in net.history_),
        "test": float((net.predict(images.select(test)) == y[test]).mean()),
        "n_train": len(train),
        "n_test": len(test),
    }


SIZES = (40, 160, 600)


def run_curve(options: argparse.Namespace) -> None:
    """Higher start, higher slope, higher asymptote? Test accuracy by number of photos."""
    play({f"curve-{size}": partial(play_curve, size) for size in SIZES}, options)


def play_curve(size: int) -> dict[str, Any]:
    """The four-block net and the probe on as many photos."""
    images, y, train, test = catdog()
    some = np.random.default_rng(SEED).permutation(train)[:size]
    features = FeatureExtractor(BACKBONE, store=KEPT / "rows").fit_transform(images.sources)
    search = HeadSearchCV(n_trials=10, random_state=SEED).fit(features[some], y[some])
    net = ScratchClassifier(FOUR, epochs=12, random_state=SEED).fit(images.select(some), y[some])
    return {
        "probe": float((search.predict(features[test]) == y[test]).mean()),
        "scratch": float((net.predict(images.select(test)) == y[test]).mean()),
    }


def catdog() -> tuple[ImageSet, Any, Any, Any]:
    """The photos, their labels, and one stratified fold of five."""
    images = load_images(str(DATA / "catdog"))
    y = np.asarray(images.labels)
    train, test = make_folds(y, n_splits=5, random_state=SEED)[0]
    return images, y, train, test


# The page ---------------------------------------------------------------------------------------------


def write_page() -> str:
    """Markdown of all that is kept."""
    lines = ["# Fine-tuning", "", INTRODUCTION, ""]
    for heading, (part, files) in SECTIONS.items():
        if body := part():  # what was not run is not there
            lines += [f"## {heading}", "", *machines(files), *body, ""]
    return "\n".join(lines).rstrip() + "\n"


INTRODUCTION = (
    "Figures of `featx.finetune`; written by `python benchmarks/bench_finetune.py page` from the stored "
    "results of that benchmark. Other work ran at the same time, so minutes are upper bounds. The *probe* is "
    "the tuned classifier on frozen features. A *near set* has images like those of ImageNet, a *far set* "
    "has others."
)


def machines(files: str) -> Iterable[str]:
    """Where a section's figures are from, one paragraph for each machine."""
    kept = sorted(KEPT.glob(f"{files}.json"))
    for line in dict.fromkeys(str(read(path.stem)["machine"]) for path in kept):
        yield from (line, "")


def epoch_part() -> list[str]:
    """Return a table for each device."""
    lines = []
    for device in ("cpu", "cuda"):
        if found := read(f"epoch-{device}"):
            lines += [*epoch_table(found, device), ""]
    return lines[:-1]


def epoch_table(found: dict[str, Any], device: str) -> list[str]:
    """Return the table of one device: clock time, and processor time on a CPU."""
    best = {name: np.array(runs).min(0) for name, runs in found["seconds"].items()}
    clocks = {"clock": 0, "processor": 1} if device == "cpu" else {"clock": 0}
    rows = [
        [
            words,
            *(f"{1000 * best[name][k]:.{1 if device == 'cpu' else 2}f}" for k in clocks.values()),
            *(f"{best[name][k] / best['cached'][k]:.1f}" for k in clocks.values()),
        ]
        for name, words in WAYS.items()
    ]
    head = ["way", *(f"ms a photo, {clock}" for clock in clocks), *(f"ratio, {clock}" for clock in clocks)]
    last = max(clocks.values())
    two, mixed, whole, single = (
        best[name][last] / best["cached"][last] for name in ("two", "mixed", "all", "single")
    )
    counts = found["counts"]
    photos = f"{counts['cached']:,} catdog photos"
    if counts["all"] != counts["cached"]:
        photos += f" ({counts['all']} where all layers train)"
    where = {
        "cpu": f"On a processor, {found['threads']} thread(s)",
        "cuda": "On a GPU; the loops decode with a worker for each core",
    }[device]
    precision = {"bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}[found["precision"]]
    lines = [
        f"{where}: an epoch of {photos}, {BACKBONE}, batches of {EPOCH_BATCH}, AdamW; minimum of {REPEATS} "
        f"runs taken in turns. The last two stages are {' and '.join(STAGES)}, with the layers above them. "
        f"featx trains in the fastest precision of the device, here {precision}"
        f"{' but for depthwise convolutions' if device == 'cpu' else ''}; the loops use float32, as is "
        "common, and once autocast.",
        "",
        *table(head, rows),
        "",
        f"The loop in float32 takes {two:.1f} times as long as featx for the same two stages, and "
        f"{whole:.1f} times as long for all layers. With both in float32 it takes {two / single:.1f} times "
        f"as long, with both in {precision} {mixed:.1f} times.",
    ]
    if device == "cpu":
        lines[-1] += (
            " bfloat16 speeds up the frozen layers, which have no backward pass, more than the trained ones. "
            "What remains of an epoch on cached features is the forward and backward pass of the two stages. "
            "The clock includes waiting for other work on the machine."
        )
    else:
        lines[-1] += (
            " Here the loops are limited by the decoding of images, and featx by the launch of kernels, "
            "since batches of 32 are small for this GPU."
        )
    return lines


def catdog_part() -> list[str]:
    """Return what `ImageClassifier` reports on catdog."""
    found = read("catdog")
    if not found:
        return []
    auto, tried = found["auto"], found["True"]
    before = (
        "Measured before the rule above was introduced, when a network was kept only if it was significantly "
        "better."
    )
    return [
        *([] if "expected gain" in tried["reason"] else [before, ""]),
        f'catdog, {tried["n_test"]} test photos. `fine_tune="auto"`: {auto["reason"]} '
        f"Test accuracy {auto['test']:.4f}.",
        "",
        f"`fine_tune=True`: {tried['reason']} Test accuracy {tried['test']:.4f}. "
        f"{tried['disk'][:1].upper()}{tried['disk'][1:]}.",
        "",
        "```text",
        *tried["phases"],
        "```",
    ]


FAR_WORDS = (
    "The settings are the same for all folds of a set. Those of the shapes are the best of the table "
    "below. Those of omniglot_small1 were chosen on its first fold without augmentation, and are used for "
    "sign_digits without further selection. Those of fsdd_spectrograms by speakers were chosen on one "
    "speaker. The first fold of omniglot_small1 also showed that the head must be fitted with the batch "
    "statistics of the trained network; `FineTuner` does this."
)


def tryout_lines() -> list[str]:
    """Return the table of settings that were tried for the shapes."""
    rows = []
    for number, (name, job) in enumerate(TRYOUTS.items()):
        right = [read(f"tryout-{number}-{fold}").get("accuracy") for fold in range(job.folds)]
        if played := [one for one in right if one is not None]:
            rows.append([name, f"{np.mean(played):.3f}", f"{len(played)} of {job.folds}"])
    if not rows:
        return []
    head = ["settings", "held-out accuracy", "folds"]
    about = "Settings for 128 images, tried on folds of shape_edges16 that are not in the table above:"
    return ["", about, "", *table(head, rows)]


def far_part() -> list[str]:
    """Return the table of the far sets, and the sets on which fine-tuning is better."""
    results = list(far_results())
    if not results:
        return []
    head = [
        "set", "what is trained", "predictions for held-out images", "probe", "fine-tuned",
        "difference, points [95 %]", "minutes a fold: probe, fine-tuning",
    ]  # fmt: skip
    won, lost, even = (
        [job.words for job, _, _, found, _ in results if found.verdict == verdict]
        for verdict in ("a", "b", "not distinguishable")
    )
    lines = [
        "Probe: `HeadSearchCV` over the layers blocks.4, blocks.6 and last with three poolings at 224 "
        "pixels. Fine-tuning starts from a logistic regression on the last layer and trains on all training "
        "folds for a fixed number of epochs. The two are compared on the held-out folds. Intervals are "
        "bootstraps over images (over speakers where they are groups). If folds are drawn more than once, an "
        "image is resampled with all its predictions. " + FAR_WORDS,
        "",
        *table(head, [far_row(*result) for result in results]),
        "",
    ]
    if won:
        lines.append(f"The fine-tuned network is significantly better on {listed(won)}.")
    if lost:
        lines.append(f"The probe is significantly better on {listed(lost)}.")
    if even:
        lines.append(f"The two do not differ significantly on {listed(even)}.")
    missing = [job.words for job in FAR if job.key not in {found[0].key for found in results}]
    if missing:
        lines.append(f"Not complete yet: {listed(missing)}.")
    return [*lines, *tryout_lines()]


def scratch_words() -> list[str]:
    """Return a sentence about training and test accuracy of the nets."""
    found = {augmented: [] for augmented in (False, True)}  # type: dict[bool, list[dict[str, Any]]]
    for number, (_, settings) in enumerate(SCRATCH):
        if one := read(f"scratch-{number}"):
            found["view_policy" in settings].append(one)
    if not all(found.values()):
        return []
    plain, augmented = (
        {
            name: " to ".join(f"{100 * value:.0f}" for value in dict.fromkeys(ends))
            for name in ("training", "validation", "test")
            for ends in [[min(one[name] for one in group), max(one[name] for one in group)]]
        }
        for group in (found[False], found[True])
    )
    return [
        f"Without augmentation the final accuracy is {plain['training']} % in training and "
        f"{plain['validation']} % in validation ({plain['test']} % on the test photos): the nets overfit. "
        f"With augmentation and dropout it is {augmented['training']} % in training and "
        f"{augmented['validation']} % in validation ({augmented['test']} % on the test photos).",
    ]


def listed(names: list[str]) -> str:
    """Join names for a sentence."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def scratch_part() -> list[str]:
    """Return the tables of the nets from scratch."""
    rows = []
    for number, (name, _) in enumerate(SCRATCH):
        if found := read(f"scratch-{number}"):
            rows.append(
                [name, f"{found['parameters']:,}", str(found["epochs"]), f"{found['training']:.3f}",
                 f"{found['validation']:.3f}", f"{found['best']:.3f}", f"{found['test']:.3f}",
                 f"{found['minutes']:.1f}"]
            )  # fmt: skip
    if not rows:
        return []
    head = [
        "net from scratch", "parameters", "epochs", "training", "validation, last epoch", "validation, best",
        "test", "minutes",
    ]  # fmt: skip
    about = (
        "1,119 training photos (a fifth of them for validation), 280 test photos; the network of the last "
        "epoch is tested. Four blocks: F. Chollet's net, at five times its learning rate; three blocks: that "
        'of "Small data strikes back" ([the tutorials](tutorials/index.md)). The nets without augmentation '
        "ran on the CPU machine, the others at the same time on the GPU machine."
    )
    lines = [about, "", *table(head, rows), "", *scratch_words()]
    curve = [(size, found) for size in SIZES if (found := read(f"curve-{size}"))]
    if curve:
        points = [[str(size), f"{found['scratch']:.3f}", f"{found['probe']:.3f}"] for size, found in curve]
        header = ["photos", "four blocks from scratch", "pretrained features + tuned head"]
        lines += ["", "Test accuracy by number of photos:", "", *table(header, points)]
    return lines


SECTIONS: Mapping[str, tuple[Callable[[], list[str]], str]] = {
    "What an epoch costs": (epoch_part, "epoch-*"),
    "Recipes": (recipes_part, ""),
    "The rule for keeping a network": (rule_part, "rule"),
    "A near set": (catdog_part, "catdog"),
    "Far sets": (far_part, "far-*"),
    "From scratch: the tutorials' nets on catdog": (scratch_part, "[sc]*r*[eh]-*"),
}
PARTS: Mapping[str, Callable[[argparse.Namespace], None]] = {
    "epoch": run_epoch,
    "catdog": run_catdog,
    "rule": run_rule,
    "tryout": run_tryout,
    "far": run_far,
    "scratch": run_scratch,
    "curve": run_curve,
}


def load(job: Job) -> ImageSet:
    """The set; of spectrograms with the speaker in the file's name as the group."""
    images = load_images(str(DATA / job.name))
    if job.speakers:
        images.groups = np.array([Path(str(source)).stem.split("_")[1] for source in images.sources])
    return images


if __name__ == "__main__":
    main()
