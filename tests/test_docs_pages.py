"""Every code block of every page runs, in the order of the page and in one folder; every command parses."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from featx.cli import _parser, main

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FENCED = re.compile(r"^```(bash|python|toml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
OWN_TESTS = {
    "CONTRIBUTING.md": "test_heads_recipe.py and test_recipes.py",
    "docs/suites.md": "test_suite.py",
}
"""Pages whose blocks other tests run, or whose own example is larger than a test."""

TINTS = {"cat": (90, -60, -60), "dog": (-60, -60, 90)}


def blocks(page: str) -> list[tuple[str, str]]:
    return FENCED.findall((ROOT / page).read_text(encoding="utf-8"))


def lines(text: str) -> Iterator[list[str]]:
    """Commands of a block, without comments, as words."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


PAGES = [
    name
    for page in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
    if blocks(name := page.relative_to(ROOT).as_posix())
]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_parses(page: str) -> None:
    for language, text in blocks(page):
        for words in lines(text) if language == "bash" else ():
            check_command(words)


def check_command(words: list[str]) -> None:
    if words[0] == "featx":
        _parser(words[1:]).parse_args(words[1:])
    elif words[0] == "make":
        assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8"), words
    elif words[0] in ("python", ".venv/bin/python"):
        assert (ROOT / words[1]).is_file(), words
    elif words[0] == "pip":
        assert set(re.findall(r"\[([\w,]+)\]", " ".join(words))) <= set(PROJECT["optional-dependencies"])
    else:
        raise AssertionError(f"no test of {words}")


def folders(root: Path, picture: Callable[..., Image.Image]) -> None:
    """What the pages speak of: photos/, test/ and more/ with two classes, new/ without, tables of images."""
    for part, start, n in (("photos", 0, 12), ("test", 100, 6), ("more", 200, 6)):
        for label, tint in TINTS.items():
            folder = root / part / label
            folder.mkdir(parents=True)
            for seed in range(n):
                wrong = label == "dog" and seed == 11  # a label that is wrong, so that there is a mistake
                made = picture(start + seed + 50 * (label == "cat"), tint=TINTS["cat"] if wrong else tint)
                made.save(folder / f"{seed}.jpg")
    (root / "new").mkdir()
    picture(999).save(root / "new" / "who.jpg")
    photos = sorted((root / "photos").glob("*/*.jpg"))
    tables = {"all": photos, "part1": photos[::2], "part2": photos[1::2], "patients": photos}
    for name, paths in tables.items():
        with (root / f"{name}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["path", "label", "group"][: 3 if name == "patients" else 2])
            for number, path in enumerate(paths):
                row = [path.relative_to(root).as_posix(), path.parent.name, f"patient-{number % 12 // 2}"]
                table.writerow(row[: 3 if name == "patients" else 2])
    (root / "suite.toml").write_text(SUITE)


SUITE = """
name = "pages"
seeds = 2
[[data]]
name = "photos"
path = "photos"
[[backbone]]
name = "tf_efficientnet_lite0.in1k"
[[method]]
name = "logistic"
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, picture: Callable[..., Image.Image]) -> Path:
    """The folders, a model of the photos, and a cache that has the features of all images."""
    root = tmp_path_factory.mktemp("pages")
    folders(root, picture)
    cache = ["--cache-dir", str(root / "cache"), "--quiet"]
    fit = ["fit", str(root / "photos"), "-o", str(root / "pets.featx"), "--resize", "crop"]
    assert main([*fit, *cache]) == 0
    return root


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs(page: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page in OWN_TESTS:
        pytest.skip(f"tested by {OWN_TESTS[page]}")
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEATX_CACHE", str(tmp_path / "cache"))
    namespace: dict[str, Any] = {}
    for language, text in blocks(page):
        if language == "bash":
            for words in lines(text):
                if words[0] == "featx":
                    assert main(words[1:]) == 0, words
        elif language == "python" and "sys.argv" not in text:  # a script: test_export.py runs it
            exec(compile(text, page, "exec"), namespace)
