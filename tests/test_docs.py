"""Every code block of the README and of the docstrings runs, and every name on show exists."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import featx
from featx.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, picture: Callable[..., Any]) -> Path:
    """The folders that the README speaks of: photos/ with two classes, test/, new/."""
    for part, start in (("photos", 0), ("test", 100)):
        for label, tint in (("cat", (90, -60, -60)), ("dog", (-60, -60, 90))):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for seed in range(12):
                picture(start + seed + 50 * (label == "cat"), tint=tint).save(folder / f"{seed}.jpg")
    (tmp_path / "new").mkdir()
    picture(999).save(tmp_path / "new" / "who.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_s_python_runs(photos: Path) -> None:
    namespace: dict[str, Any] = {}
    assert blocks("python")
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)


def test_the_readme_s_commands_run(photos: Path) -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("featx ")]
    assert len(lines) >= 4
    for line in lines:
        assert main(shlex.split(line, comments=True)[1:]) == 0, line


def test_the_readme_s_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z-]+)", README):
        assert f"\n{target}:" in makefile


def modules_with_examples() -> Iterator[str]:
    for path in sorted(Path(featx.__file__).parent.rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts).removesuffix(".__init__")


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_the_docstrings_examples_run(name: str, photos: Path) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert (found.failed, found.attempted > 0) == (0, True)


def test_every_public_name_loads() -> None:
    for name in featx.__all__:
        assert getattr(featx, name) is not None


def test_importing_featx_imports_nothing_heavy() -> None:
    code = "import sys, featx; print([m for m in ('torch', 'timm', 'sklearn', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_the_documents_are_up_to_date() -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "build.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
