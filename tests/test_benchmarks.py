"""The benchmarks' statistics, and the targets of their page."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a script of the benchmarks by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in [
        name for name, one in sys.modules.items() if str(BENCHMARKS) in str(getattr(one, "__file__", ""))
    ]:
        del sys.modules[name]


def test_a_ratio_is_of_neighbours_in_time(module: Any) -> None:
    # both sides twice as slow in the third round: its ratio is the others' all the same
    spread = module("pairs").ratios([8.0, 8.0, 16.0], [2.0, 2.0, 4.0])
    assert (spread.low, spread.median, spread.high, spread.n) == (4.0, 4.0, 4.0, 3)


def test_quartiles_lie_between_the_sorted_values(module: Any) -> None:
    spread = module("pairs").Spread.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (spread.low, spread.median, spread.high) == (2.0, 3.0, 4.0)


def test_one_measurement_is_its_own_spread(module: Any) -> None:
    assert module("pairs").Spread.of([7.0]) == module("pairs").Spread(7.0, 7.0, 7.0, 1)


@pytest.mark.parametrize(
    ("value", "words"), [(0.0123456, "0.0123"), (3.14159, "3.14"), (218.7, "219"), (12345.6, "12,346")]
)
def test_numbers_have_three_digits_and_no_exponent(module: Any, value: float, words: str) -> None:
    assert module("pairs").number(value) == words


def test_the_page_says_what_is_not_reached_and_why(module: Any) -> None:
    page = module("page")
    figure = {"value": 3.0, "low": 2.9, "high": 3.2, "n": 5, "check": "equal"}
    slow = next(target for target in page.TARGETS if target.figure == "large.timm-loop.fp32")
    text = "\n".join(page.summary({slow.figure: figure, "job.warm": figure}))
    assert "| at least 5.00 × | 3.00 × | 2.90 × | **no** | equal |" in text
    assert "| at most 4.00 s | 3.00 s | 3.20 s | yes | equal |" in text
    assert slow.why in text


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_names_and_keywords_of_featx_that_a_script_uses_exist(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "featx":
            home = importlib.import_module(node.module or "")
            for name in node.names:
                if not hasattr(home, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")
                found[name.asname or name.name] = getattr(home, name.name)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and callable(found.get(node.func.id))
        ):
            parameters = inspect.signature(found[node.func.id]).parameters
            if not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
                given = {keyword.arg for keyword in node.keywords if keyword.arg}
                assert given <= set(parameters), f"line {node.lineno}: {node.func.id}"
