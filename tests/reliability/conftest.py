"""A folder in memory for the thousands of small caches that are made, damaged and thrown away."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a disk, so that syncing costs nothing."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path / "memory"
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="featx-") as folder:
        yield Path(folder)
