"""The options of a quick fit on the command line, for tests that read what a command says."""

from __future__ import annotations

from collections.abc import Callable

TINY = ["--backbone", "test_resnet", "--random-weights", "--runtime", "torch"]
FAST = [*TINY, "--cut", "last", "--pool", "avg", "--resize", "crop", "--trials", "1", "--cv", "2"]
RIDGE = [*FAST, "--heads", "ridge"]

Answer = Callable[..., tuple[int, str]]
"""``answer("fit", folder, ...)``: the exit code, and what was said on both streams."""
