"""The table of floors in docs/architecture.md is what the imports say; the number wing is free of torch."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "featx"
PLAN = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
DOORS = ("__init__", "__main__")  # outside the house: they only point to what is in it

FLOORS = {name: int(floor) for floor, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", PLAN, re.MULTILINE)}
ORDER = list(FLOORS)
NUMBER_WING = re.findall(r"`(\w+)`", PLAN.split("The number wing (")[1].split(")")[0])


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if room(path) not in DOORS]


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Rooms that a file imports anywhere, with the line; not what only a type checker imports."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        waiting += ast.iter_child_nodes(node)
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "featx" and len(parts) > 1 and parts[1] != "__version__":
                yield parts[1], node.lineno  # type: ignore[attr-defined]


def test_every_room_is_in_the_table_and_the_table_holds_no_other() -> None:
    assert {room(path) for path in modules()} == set(FLOORS)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_stairs_go_down_only(path: Path) -> None:
    own = room(path)
    for other, line in imports(path):
        if other == own:
            continue
        ground = FLOORS[own] == FLOORS[other] == 0 and ORDER.index(other) > ORDER.index(own)
        assert FLOORS[other] < FLOORS[own] or ground, f"{path}:{line}: {own} imports {other}"


def test_the_number_wing_is_known() -> None:
    assert set(NUMBER_WING) <= set(FLOORS)
    assert {"features", "heads", "search", "evaluation"} <= set(NUMBER_WING)


def test_the_number_wing_imports_no_torch() -> None:
    names = [
        ".".join(("featx", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for path in modules()
        if room(path) in NUMBER_WING
    ]
    code = (
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
        "    assert not {'torch', 'timm', 'torchvision'} & set(sys.modules), name"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]


@pytest.mark.parametrize(
    "start", ["import featx", "import featx.cli", "from featx.cli import main; main(['--help'])"]
)
def test_starting_imports_nothing_heavy(start: str) -> None:
    heavy = (
        "{'torch', 'timm', 'torchvision', 'sklearn', 'scipy', 'optuna', 'pandas', 'matplotlib', 'openvino'}"
    )
    code = (
        "import sys\n"
        "try:\n"
        f"    {start}\n"
        "except SystemExit:\n"
        "    pass\n"
        f"found = {heavy} & set(sys.modules)\n"
        "assert not found, found"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]


def test_public_names_load_from_their_homes() -> None:
    code = "import featx\nfor name in featx.__all__:\n    getattr(featx, name)\n    assert name in dir(featx)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
