"""``featx demo``: the main job on scikit-learn's handwritten digits, offline, nothing to download.

The pictures are real, small and unlike ImageNet. Each step is the command a person would type, printed
and then run through the same `main`, so the demo cannot drift from the command line.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
from pathlib import Path

from featx.cli.console import Console
from featx.exceptions import UsageError

LEARN, SCORE = 1500, 200
"""Of the 1,797 digits: how many to learn from (a fifth of them held out) and to evaluate on; the rest are
predicted without a label."""

SIDE = 64
"""Pixels: the bundled digits are 8x8, enlarged so that a person can look at them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument(
        "-o", "--output", default="demo-output", metavar="DIR", help="folder to write (default demo-output)"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Write the pictures, then check, fit, evaluate, predict."""
    folder = Path(args.output)
    if folder.exists() and not (folder / "digits").is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} exists and is not a demo's folder; choose another with --output.")
    shutil.rmtree(folder / "digits", ignore_errors=True)
    write_digits(folder / "digits")
    model, cache = folder / "digits.featx", folder / "cache"
    steps = [
        ["doctor", "--cache-dir", str(cache)],
        ["fit", str(folder / "digits/learn"), "-o", str(model), "--cache-dir", str(cache)],
        ["evaluate", str(model), str(folder / "digits/score"), "--cache-dir", str(cache)],
        [
            "predict",
            str(model),
            str(folder / "digits/new"),
            "-o",
            str(folder / "predictions.csv"),
            "--cache-dir",
            str(cache),
        ],
    ]
    for step in steps:
        if code := _step(console, step):
            return code
    _say_what_next(console, folder)
    console.data(folder=str(folder))
    return 0


def write_digits(folder: Path) -> None:
    """Write the digits as PNG: ``learn/`` and ``score/`` with a folder per class, ``new/`` without labels."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    for place, index in enumerate(order):
        part = "learn" if place < LEARN else "score" if place < LEARN + SCORE else "new"
        target = folder / part if part == "new" else folder / part / str(digits.target[index])
        target.mkdir(parents=True, exist_ok=True)
        grey = (255 - digits.images[index] * (255 / 16)).round().astype(np.uint8)
        picture = Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        picture.save(target / f"digit_{index:04d}.png")


def _step(console: Console, arguments: list[str]) -> int:
    from featx.cli import main

    console.text(f"\n$ featx {shlex.join(arguments)}")
    return main([*arguments, *(["--quiet"] if console.quiet else [])])


def _say_what_next(console: Console, folder: Path) -> None:
    console.text(f"\nmade in {folder}/")
    for name, what in (
        ("digits/", "the pictures"),
        ("digits.featx", "the model: one safe file"),
        ("predictions.csv", "label, probability and runners-up of each new picture"),
        ("cache/", "the rows; a second run computes none of them again"),
    ):
        console.text(f"  {name:16} {what}")
    console.text("\nnow with your own pictures, one folder per class:")
    console.text("  featx fit photos/ -o photos.featx")
    console.text("  featx predict photos.featx new-photos/ -o predictions.csv")
