"""Make the pictures of the README, of scikit-learn's handwritten digits: a report, and three of its figures.

``python docs/pictures.py`` takes two minutes. The picture of the report needs the extra ``browser`` and
Debian's Chromium; without them it is left as it is. The model uses the last layer alone, so that there are
mistakes to be seen.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image

import featx
from featx.cli.demo import write_digits
from featx.reporting.drawing import draw

FOLDER = Path(__file__).with_name("images")
FIGURES = ("map", "heat", "confusion")
WIDTH, HEIGHT = 1080, 1500
"""Size of the picture of the report in pixels."""


def main() -> None:
    """Fit, and write the pictures."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_digits(folder / "digits")
        clf = featx.ImageClassifier(cut="last", n_trials=5, random_state=0, store=folder / "cache")
        clf.fit_with_test(folder / "digits" / "learn")
        made = featx.report(clf, folder / "report.html", title="Report of digits.featx")
        for figure in FIGURES:
            write(figure, draw(made.known, made.sections, figure).to_png(dpi=90))
        photograph(folder / "report.html")


def write(name: str, png: bytes) -> None:
    """Write a picture with at most 256 colours, which takes a third of the bytes."""
    image = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    image.save(FOLDER / f"{name}.png", optimize=True)
    print(f"{name}.png {(FOLDER / f'{name}.png').stat().st_size / 1000:.0f} kB")


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
