"""Does a choice among several networks cost accuracy? `ImageClassifier()` against one network.

``python benchmarks/networks.py [--sets grey,...] [--ways one,auto] [--cache DIR]``
writes docs/networks.md; the image sets are looked for in FEATX_TEST_DATA (default ../shared/data). What was
measured is kept in DIR/networks.json, so that a second call goes on where the first stopped.

The sets are derived from real ones by what changes the images: fewer pixels, grey, rotation, inverted grey
values, noise. Each is drawn twice, with training images of the same number in each class. Both fits have the
same images, folds and seed, and an empty cache. Seconds are those of the whole fit.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from PIL import Image, ImageFilter, ImageOps

from featx import ImageClassifier
from featx.evaluation import METRICS
from featx.exceptions import FeatxWarning
from featx.images import ImageSet, load_images

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FEATX_TEST_DATA", ROOT.parent / "shared" / "data"))
SEED = 0
SEEDS = (0, 1)
TESTED = 400
"""Most test images."""
TRIALS = 10
"""Optuna trials of all fits."""
WIDTH = 120
WAYS: dict[str, dict[str, Any]] = {
    "one": {"backbone": "tf_efficientnet_lite0.in1k"},
    "auto": {},
    "all": {"backbone": "auto", "backbone_budget": 600.0},
}
"""Parameters of the fits: one network, the default, and a comparison without the default's limit."""

INTRODUCTION = (
    "`ImageClassifier()`, which compares the networks on this machine (the three packaged ones), against one "
    "network, `ImageClassifier('tf_efficientnet_lite0.in1k')` (one → default). Written by "
    "`python benchmarks/networks.py`, whose first lines say how the sets are made; nothing was tuned on them."
)

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def fewer(pixels: int) -> Change:
    """Reduce the longer side."""

    def change(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        small = image.copy()
        small.thumbnail((pixels, pixels), Image.Resampling.BOX)
        return small

    return change


def grey(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Without colour."""
    return ImageOps.grayscale(image)


def rotated(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """By up to 45 degrees."""
    return image.rotate(rng.uniform(-45, 45), Image.Resampling.BILINEAR)


def inverted(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """As a negative."""
    return ImageOps.invert(image)


def noisy(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Blurred, with noise."""
    values = np.asarray(image.filter(ImageFilter.GaussianBlur(image.width / 60)), np.float64)
    return Image.fromarray(np.clip(values + rng.normal(0, 25, values.shape), 0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Derived:
    """A set that is derived from another one.

    Parameters
    ----------
    source : str
        Folder of the images.
    what : str
        What is changed.
    change : callable
        Changes an image.
    train : int
        Training images, the same number of each class.
    classes : int
        Most classes, drawn by chance.
    """

    source: str
    what: str
    change: Change
    train: int
    classes: int = 100

    @property
    def name(self) -> str:
        """Its name in the table."""
        return f"{self.source}, {self.what}"


SETS = (
    Derived("clothing_dev", "grey", grey, 300),
    Derived("catdog", "40 pixels", fewer(40), 200),
    Derived("sign_digits", "rotated", rotated, 300),
    Derived("fsdd_spectrograms", "inverted", inverted, 400),
    Derived("omniglot_small1", "40 characters, rotated", rotated, 400, 40),
    Derived("skin6", "32 pixels", fewer(32), 300),
    Derived("clothing_dev", "noisy", noisy, 500),
    Derived("sign_digits", "20 pixels", fewer(20), 1000),
)


def main() -> None:
    """Measure what is not yet kept, then write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", help="only these, by a part of the name (the page is then only printed)")
    parser.add_argument("--ways", default="one,auto", help=f"of {', '.join(WAYS)} (default one,auto)")
    parser.add_argument("--cache", help="folder for images and results (default: a temporary one)")
    args = parser.parse_args()
    warnings.simplefilter("ignore", FeatxWarning)
    wanted = args.sets.split(",") if args.sets else [""]
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(args.cache or temporary)
        cache.mkdir(parents=True, exist_ok=True)
        kept = cache / "networks.json"
        found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
        for seed in SEEDS:
            for own in SETS:
                if not any(part in own.name for part in wanted):
                    continue
                for way in args.ways.split(","):
                    key = f"{own.name}|{seed}|{way}"
                    if key not in found:
                        found[key] = measure(*derive(own, seed, cache), WAYS[way])
                        kept.write_text(json.dumps(found, indent=1))
                        print(key, found[key], flush=True)
    page = render(found)
    print(page)
    if not args.sets:
        (ROOT / "docs" / "networks.md").write_text(page, encoding="utf-8")


def derive(own: Derived, seed: int, cache: Path) -> tuple[ImageSet, ImageSet]:
    """Draw training and test images, and write what is changed."""
    images = load_images(DATA / own.source)
    labels = np.asarray(images.labels)
    rng = np.random.default_rng([seed, len(labels)])
    classes = rng.permutation(np.unique(labels))[: own.classes]
    each = own.train // len(classes)
    train, test = [], []
    for label in classes:
        members = rng.permutation(np.flatnonzero(labels == label))
        train += members[:each].tolist()
        test += members[each:][: TESTED // len(classes)].tolist()
    folder = cache / "images" / f"{own.name}-{seed}".replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    sources = {}
    for number in train + test:
        sources[number] = folder / f"{number:05}.png"
        if not sources[number].exists():
            with Image.open(images.sources[number]) as image:
                plain = ImageOps.exif_transpose(image).convert("RGB")
            plain.thumbnail((320, 320))
            own.change(plain, np.random.default_rng([seed, number])).save(sources[number])
    return tuple(
        ImageSet([str(sources[n]) for n in part], names=[images.names[n] for n in part], labels=labels[part])
        for part in (train, test)
    )  # type: ignore[return-value]


def measure(train: ImageSet, test: ImageSet, params: dict[str, Any]) -> dict[str, Any]:
    """Fit with an empty cache, and evaluate on the test images."""
    with tempfile.TemporaryDirectory() as store:
        clf = ImageClassifier(n_trials=TRIALS, random_state=SEED, store=store, **params).fit(train)
        proba = clf.predict_proba(test)
    y = np.searchsorted(clf.classes_, test.labels)
    found = {name: float(METRICS[name](y, proba)) for name in ("accuracy", "log_loss")}
    compared = clf.backbone_comparison_
    return {
        **found,
        "seconds": dict(clf.record_.seconds),
        "networks": [card.name for card in clf.cards_],
        "selected": f"{clf.best_params_['head']} on {' + '.join(clf.best_blocks_)}",
        "train": len(train),
        "test": len(test),
        "compared": [] if compared is None else compared.sentences(),
    }


def render(found: dict[str, Any]) -> str:
    """The page."""
    rows, gains, ratios = [], [], []
    for name in dict.fromkeys(key.split("|")[0] for key in found):
        pairs = [(found.get(f"{name}|{seed}|one"), found.get(f"{name}|{seed}|auto")) for seed in SEEDS]
        pairs = [(one, auto) for one, auto in pairs if one and auto]
        if not pairs:
            continue
        cells = [name, str(pairs[0][0]["train"]), str(len(pairs))]
        ways = list(zip(*pairs, strict=True))
        for metric in ("accuracy", "log_loss"):
            means = [np.mean([fit[metric] for fit in way]) for way in ways]
            cells += [" → ".join(f"{mean:.3f}" for mean in means)]
        seconds = [[sum(fit["seconds"].values()) for fit in way] for way in ways]
        cells.append(" → ".join(f"{np.mean(way):.0f}" for way in seconds))
        cells.append("; ".join(" + ".join(map(short, auto["networks"])) for _, auto in pairs))
        rows.append(cells)
        gains += [auto["accuracy"] - one["accuracy"] for one, auto in pairs]
        ratios += [two / one for one, two in zip(*seconds, strict=True)]
    gains = 100 * np.asarray(gains)
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    summary = (
        f"Mean change of the accuracy over {len(gains)} splits: {gains.mean():+.1f} points (standard error "
        f"{error:.1f}; lowest {gains.min():+.1f}, highest {gains.max():+.1f}; {(gains > 0).sum()} higher, "
        f"{(gains == 0).sum()} equal, {(gains < 0).sum()} lower). Median ratio of the seconds "
        f"{np.median(ratios):.2f}, lower quartile {np.quantile(ratios, 0.25):.2f}: for such small sets, most "
        "of it is loading a second network, and a search with its layers. Other work ran on the machine, and "
        "these fits had one thread at low priority, so seconds are upper bounds."
    )
    lines = [
        "# The choice of a network",
        "",
        *textwrap.wrap(INTRODUCTION, WIDTH),
        "",
        describe(SEED),
        "",
        "| set | training images | splits | accuracy | log loss | seconds | networks |",
        "|" + "---|" * 7,
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *textwrap.wrap(summary, WIDTH),
    ]
    return "\n".join(lines) + "\n"


def short(network: str) -> str:
    """The name without what all have in common."""
    return network.removeprefix("tf_efficientnet_").removesuffix(".in1k")


if __name__ == "__main__":
    main()
