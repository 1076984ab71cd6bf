"""Fault tests write beside themselves nowhere, and share one fitted model."""

from __future__ import annotations

from pathlib import Path

import pytest
from staging import FIT, classes, featx


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of skipped pictures land in the working directory where no output is named."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos/` (red and blue), a `cache/` of their rows and the fitted `m.featx`."""
    folder = tmp_path_factory.mktemp("shared")
    classes(folder / "photos")
    said = featx("fit", folder / "photos", "-o", folder / "m.featx", *FIT, "--cache-dir", folder / "cache")
    assert said.code == 0, said.err
    return folder
