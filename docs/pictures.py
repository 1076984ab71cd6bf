"""Make the pictures of the README and of the site, of scikit-learn's handwritten digits.

``python docs/pictures.py`` takes some minutes. The picture of the report needs the extra ``browser`` and
Debian's Chromium; without them it is left as it is. The model of the report uses the last layer alone, so
that there are mistakes to be seen.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import featx
from featx import plot
from featx.cli import main as run
from featx.cli.demo import write_digits
from featx.finetune import Phase
from featx.images import ImageSet, load_images
from featx.reporting.drawing import draw

NETWORK = "tf_efficientnet_lite0.in1k"
FOLDER = Path(__file__).with_name("images")
FIGURES = ("map", "heat", "confusion", "learning", "features")
SOME = 500
"""Digits that the models learn from and are tested on."""

OF_LAYERS = ("layers", "history")
WIDTH, HEIGHT = 1080, 1500
"""Size of the picture of the report in pixels."""


def main() -> None:
    """Fit, and write the pictures."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_digits(folder / "digits")
        images = load_images(folder / "digits" / "learn")
        images = images.select(np.sort(np.random.default_rng(0).permutation(len(images))[:SOME]))
        augment = ["show", "augment", str(folder / "digits" / "new"), "-o", str(folder / "augment.png")]
        run([*augment, "--images", "2", "--views", "5", "--cache-dir", str(folder / "cache")])
        write("augment", (folder / "augment.png").read_bytes())
        write("balance", plot.balance(imbalanced(images.labels)).to_png(dpi=90))
        settings = {"n_trials": 5, "random_state": 0, "store": folder / "cache"}
        clf = featx.ImageClassifier(NETWORK, cut="last", **settings).fit_with_test(images)
        made = featx.report(clf, folder / "report.html", title="Report of digits.featx")
        for figure in FIGURES:
            write(figure, draw(made.known, made.sections, figure).to_png(dpi=90))
        photograph(folder / "report.html")
        layered = featx.ImageClassifier(NETWORK, **settings).fit_with_test(images)
        made = featx.report(layered)
        for figure in OF_LAYERS:
            write(figure, draw(made.known, made.sections, figure).to_png(dpi=90))
        write("training", plot.training(tuned(images, folder / "cache")).to_png(dpi=90))


def imbalanced(labels: Any) -> Any:
    """Leave out images, so that class k has 1 / (k + 1) of those of class 0."""
    rank = np.array([np.sum(labels[:i] == label) for i, label in enumerate(labels)])
    return labels[rank < np.array([50 / (int(label) + 1) for label in labels])]


def tuned(images: ImageSet, store: Path) -> Any:
    """Epochs of the training of the last stage on some digits."""
    half = images.select(range(0, len(images), 2))
    tuner = featx.FineTuner(
        featx.FeatureExtractor(NETWORK, store=store),
        unfreeze=1,
        head="linear",
        phases=[Phase(epochs=8)],
        verdict=0,
        refit=False,
        random_state=0,
    )
    tuner.fit(half.sources, half.labels)
    return tuner.history_


def write(name: str, png: bytes) -> None:
    """Write a picture with at most 256 colours, which takes a third of the bytes."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.thumbnail((WIDTH, HEIGHT))
    image = image.quantize(256, dither=Image.Dither.NONE)
    image.save(FOLDER / f"{name}.png", optimize=True)
    print(f"{name}.png {(FOLDER / f'{name}.png').stat().st_size / 1000:.0f} kB", flush=True)


def photograph(page: Path) -> None:
    """Write the picture of a page in a browser."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        print("report.png is left as it is: the extra browser, or Chromium, is not installed")
        return
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        opened.goto(page.as_uri())
        write("report", opened.screenshot())
        browser.close()


if __name__ == "__main__":
    main()
