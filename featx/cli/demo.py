"""``featx demo``: check, fit, evaluate and predict on scikit-learn's handwritten digits, without a network.

Each step is a command that is printed and then run by `featx.cli.main`.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
from pathlib import Path

from featx.cli.console import Console
from featx.exceptions import UsageError

LEARN, SCORE = 1500, 200
"""How many of the 1,797 digits are for `fit` and for `evaluate`; the others are for `predict`."""

SIDE = 64
"""Size in pixels to which the digits, which are 8x8, are enlarged."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    parser.add_argument(
        "-o", "--output", default="demo-output", metavar="DIR", help="folder to write (default demo-output)"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Write the images, then check, fit, evaluate and predict."""
    folder = Path(args.output)
    if folder.exists() and not (folder / "digits").is_dir() and any(folder.iterdir()):
        raise UsageError(f"{folder} exists and was not made by the demo; choose another with --output.")
    shutil.rmtree(folder / "digits", ignore_errors=True)
    write_digits(folder / "digits")
    model, cache = folder / "digits.featx", folder / "cache"
    for step in (
        ["doctor"],
        ["fit", folder / "digits/learn", "-o", model, "--report", folder / "report.html"],
        ["evaluate", model, folder / "digits/score"],
        ["predict", model, folder / "digits/new", "-o", folder / "predictions.csv"],
    ):
        if code := _step(console, [*map(str, step), "--cache-dir", str(cache)]):
            return code
    _print_next_steps(console, folder)
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
        image = Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        image.save(target / f"digit_{index:04d}.png")


def _step(console: Console, arguments: list[str]) -> int:
    from featx.cli import main

    console.text(f"\n$ featx {shlex.join(arguments)}")
    return main([*arguments, *(["--quiet"] if console.quiet else [])])


def _print_next_steps(console: Console, folder: Path) -> None:
    console.text(f"\nwritten to {folder}/")
    for name, what in (
        ("digits/", "the images"),
        ("digits.featx", "the model"),
        ("report.html", "how good the model is, every mistake, and the findings on the data"),
        ("predictions.csv", "label, probability and next labels of each new image"),
        ("cache/", "the features; a second run reads them from here"),
    ):
        console.text(f"  {name:16} {what}")
    console.text("\nnext, with your own images in one folder per class:")
    console.text("  featx fit photos/ -o photos.featx")
    console.text("  featx predict photos.featx new-photos/ -o predictions.csv")
    console.text(f"\nopen {folder}/report.html in a browser")
