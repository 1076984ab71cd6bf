"""The report and the check in a browser: no request, no error, no scroll at 360 px; hover, click and keys.

Needs Debian's Chromium (``apt-get install chromium``) and ``pip install playwright axe-playwright-python``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import image_classifier
from PIL import Image

import featx
from featx import FeatureExtractor

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (apt-get install chromium)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report with mistakes and a check with findings, of noise in three classes."""
    folder = tmp_path_factory.mktemp("pages")
    rng = np.random.default_rng(0)
    for label in ("cat", "dog", "a class with a long, long name"):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(12):
            noise = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((64, 48))
            noise.save(folder / "photos" / label / f"{number}.png")
    Image.open(folder / "photos/cat/0.png").resize((48, 36)).save(folder / "photos/dog/copy.png")
    clf = image_classifier("test_resnet", pretrained=False, runtime="torch", cut=None, pool="avg")
    clf.set_params(resize="crop", heads=["ridge"], n_trials=1, cv=3, store="memory", random_state=0)
    found = {"report": folder / "report.html", "check": folder / "check.html"}
    featx.report(clf.fit_with_test(folder / "photos", test_size=0.3), found["report"])
    extractor = FeatureExtractor("test_resnet", pretrained=False, runtime="torch", store="memory")
    featx.check(folder / "photos", extractor=extractor).to_html(found["check"])
    return found


class Opened:
    """A page, with what it logged and requested."""

    def __init__(self, browser: Any, path: Path, width: int, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("name", ["report", "check"])
def test_a_page_loads_nothing_logs_nothing_and_fits(
    name: str, width: int, scheme: str, browser: Any, pages: dict[str, Path]
) -> None:
    opened = Opened(browser, pages[name], width, scheme)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == width
    assert opened.messages == []
    assert [url for url in opened.requests if not url.startswith("data:")] == [pages[name].as_uri()]
    assert opened.page.evaluate("[...document.images].every((image) => image.hidden || image.complete)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["report", "check"])
def test_axe_finds_nothing_serious(name: str, scheme: str, browser: Any, pages: dict[str, Path]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    results = axe.Axe().run(Opened(browser, pages[name], 1280, scheme).page)
    serious = [one for one in results.response["violations"] if one["impact"] in ("serious", "critical")]
    assert [(one["id"], one["nodes"][0]["html"]) for one in serious] == []


def test_a_cell_of_the_confusion_matrix_shows_its_mistakes(browser: Any, pages: dict[str, Path]) -> None:
    page = Opened(browser, pages["report"], 1280).page
    cell = page.locator(".confusion button").first
    truth, answer = cell.get_attribute("data-truth"), cell.get_attribute("data-answer")
    cell.focus()
    page.keyboard.press("Enter")
    visible = page.locator("#mistake-list > li:visible")
    every = page.locator("#mistake-list > li")
    assert 0 < visible.count() < every.count()
    for item in visible.all():
        assert (item.get_attribute("data-truth"), item.get_attribute("data-answer")) == (truth, answer)
    page.locator("#all").click()
    assert visible.count() == every.count()
    page.locator("#filter").select_option("0")
    assert 0 < visible.count() < every.count()
    assert "shown" in page.locator("#shown").inner_text()


def test_a_point_of_the_map_shows_its_image_by_pointer_and_by_keyboard(
    browser: Any, pages: dict[str, Path]
) -> None:
    page = Opened(browser, pages["report"], 1280).page
    tip = page.locator("#tip")
    assert not tip.is_visible()
    page.locator("#points g").nth(3).hover(force=True)
    assert tip.is_visible()
    page.mouse.move(5, 5)
    assert not tip.is_visible()
    page.locator("#points").focus()
    page.keyboard.press("ArrowRight")
    first = tip.inner_text()
    page.keyboard.press("ArrowRight")
    assert tip.inner_text() != first
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_the_map_is_coloured_by_class_error_or_part(browser: Any, pages: dict[str, Path]) -> None:
    page = Opened(browser, pages["report"], 1280).page
    circles = page.locator("#points circle")
    read = "all => all.map(one => [one.dataset.part, one.getAttribute('class')])"
    before = circles.evaluate_all(read)
    page.locator("#colours").select_option("part")
    found = circles.evaluate_all(read)
    assert {(part, name.split()[0]) for part, name in found} == {("train", "c0"), ("test", "c1")}
    assert page.locator(".legend:visible").inner_text().split() == ["training", "test", "new"]
    page.locator("#colours").select_option("error")
    assert {(name.split()[0], "ring" in name) for _, name in circles.evaluate_all(read)} == {
        ("c0", False), ("c1", True),
    }  # fmt: skip
    page.locator("#colours").select_option("class")
    assert circles.evaluate_all(read) == before


def test_the_report_prints(browser: Any, pages: dict[str, Path]) -> None:
    pdf = Opened(browser, pages["report"], 1280).page.pdf()
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 20_000
