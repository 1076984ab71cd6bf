"""Every code block of every page runs, in the order of the page and in one folder; every command parses."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import featx
from featx.audit.checks import CHECKS
from featx.cli import _parser, main
from featx.evaluation.metrics import METRICS
from featx.heads import HEADS

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SPEC = importlib.util.spec_from_file_location("build", ROOT / "docs" / "build.py")
build = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FENCED = re.compile(r"^```(bash|python|toml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
OWN_TESTS = {
    "CONTRIBUTING.md": "test_heads_recipe.py and test_recipes.py",
    "docs/scale.md": "test_shards.py, test_distributed.py and test_search_workers.py",
    "docs/suites.md": "test_suite.py",
}
"""Pages whose blocks other tests run, or whose own example is larger than a test."""

TINTS = {"cat": (90, -60, -60), "dog": (-60, -60, 90)}


def blocks(page: str) -> list[tuple[str, str]]:
    return FENCED.findall((ROOT / page).read_text(encoding="utf-8"))


def lines(text: str) -> Iterator[list[str]]:
    """Commands of a block, without comments, as words."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.replace("$SLURM_ARRAY_TASK_ID", "1"), comments=True)
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
        named = {name for names in re.findall(r"\[([\w,]+)\]", " ".join(words)) for name in names.split(",")}
        assert named <= set(PROJECT["optional-dependencies"]), words


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
    tables = {"all": photos, "patients": photos}
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


def test_every_page_of_the_site_is_in_a_table_of_contents() -> None:
    docs = ROOT / "docs"
    sources = [page for page in docs.rglob("*.md") if page.parent.name != "api"]
    sources += docs.glob("notebooks/*.ipynb")
    listed = {docs / "index"}
    for page in docs.rglob("*.md"):
        for toctree in re.findall(r"```{toctree}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            names = [line for line in toctree.splitlines() if line and not line.startswith(":")]
            listed |= {(page.parent / name).resolve() for name in names}
    assert {page.with_suffix("") for page in sources} == listed


def test_the_version_is_that_of_the_citation() -> None:
    (cited,) = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited == featx.__version__


def test_a_new_head_metric_and_check_are_in_their_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEADS, "new_head", HEADS["ridge"])
    monkeypatch.setitem(METRICS, "new_metric", METRICS["accuracy"])
    monkeypatch.setitem(CHECKS, "new_check", CHECKS["dark"])
    assert "| `new_head` |" in build.heads()
    assert "| `new_metric` |" in build.metrics()
    assert "| `new_check` |" in build.checks()


def test_notebooks_are_kept_without_outputs() -> None:
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells), path


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="make docs installs it")
    pytest.importorskip("ipykernel", reason="make docs installs it")
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=500, kernel_name="python3", resources=resources).execute()
    assert any(output.output_type == "display_data" or "data" in output
               for cell in notebook.cells for output in cell.get("outputs", []))  # fmt: skip


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """As `make docs` does, without the notebooks, which a test of their own executes."""
    pytest.importorskip("myst_nb", reason="make docs installs it")
    pytest.importorskip("furo", reason="make docs installs it")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-D", "nb_execution_mode=off"]
    run = subprocess.run(
        [*command, str(ROOT / "docs"), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    page = (tmp_path / "api" / "featx.ImageClassifier.html").read_text(encoding="utf-8")
    assert "fit_with_test" in page
