"""A disk that is full (a real one of 2 MB) and a limit on the size of files."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "full_disk.py"


def test_a_full_disk_loses_nothing_says_how_much_is_free_and_the_next_run_goes_on(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("no unshare to mount a small disk in")
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path]
    if (tried := subprocess.run(probe, capture_output=True, text=True, check=False)).returncode:
        pytest.skip(f"no small disk can be mounted here: {tried.stderr.strip()}")
    command = ["unshare", "-rm", sys.executable, SCRIPT, "tmpfs", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print("\n" + done.stdout)


def test_a_limit_on_file_size_loses_nothing_and_the_next_run_goes_on(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "limit", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
