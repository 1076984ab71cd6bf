"""The documented install without torch names all other dependencies."""

from __future__ import annotations

import re
from pathlib import Path

from torch_free import NEED_TORCH, dependencies

PAGE = Path(__file__).resolve().parents[1] / "docs" / "serving.md"


def test_the_documented_list_is_that_of_the_dependencies_without_torch() -> None:
    (listed,) = re.findall(r"^pip install (h5py .*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert listed.split() == dependencies()
    assert not set(listed.split()) & set(NEED_TORCH)
