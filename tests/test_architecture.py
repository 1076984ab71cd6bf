"""The imports are as docs/architecture.md says, without circles; work on numbers needs no torch."""

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
ENTRY_POINTS = ("__init__", "__main__")  # they only name what is in the package

LAYERS = {name: int(layer) for layer, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", PLAN, re.MULTILINE)}
WITHOUT_TORCH = re.findall(r"`(\w+)`", PLAN.split("These never import torch:")[1].split(", and all")[0])
MOST_LINES, MOST_CLASS_LINES = 600, 320
"""Lines of a file, and lines of a class without docstrings, which should not be shortened for a limit."""


def name_of(path: Path) -> str:
    return ".".join(("featx", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def part(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
INSIDE = {name: path for name, path in MODULES.items() if part(name) not in ENTRY_POINTS}


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Modules that a file imports anywhere, also in functions and for type checkers, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name.startswith("featx") and name not in MODULES:
                name = name.rpartition(".")[0]
            if name.startswith("featx") and name != name_of(path):
                yield name, node.lineno  # type: ignore[attr-defined]


def circle_from(graph: dict[str, set[str]]) -> list[str]:
    """A circle of the graph, or an empty list."""
    done: set[str] = set()
    for start in graph:
        stack, path = [(start, iter(sorted(graph[start])))], [start]
        while stack and start not in done:
            for other in stack[-1][1]:
                if other in path:
                    return [*path[path.index(other) :], other]
                if other not in done:
                    stack.append((other, iter(sorted(graph.get(other, ())))))
                    path.append(other)
                    break
            else:
                stack.pop()
                done.add(path.pop())
    return []


def test_the_table_names_every_part_and_no_other() -> None:
    assert {part(name) for name in INSIDE} == set(LAYERS)


@pytest.mark.parametrize("module", sorted(INSIDE))
def test_imports_go_to_lower_layers(module: str) -> None:
    own = part(module)
    for other, line in imports(INSIDE[module]):
        if part(other) not in (own, "__init__"):
            assert LAYERS[part(other)] < LAYERS[own], f"{INSIDE[module]}:{line}: {own} imports {part(other)}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: {other for other, _ in imports(path)} for name, path in MODULES.items()}
    assert circle_from(graph) == []


def test_a_circle_would_be_found() -> None:
    assert circle_from({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle_from({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_files_and_classes_are_short(module: str) -> None:
    text = MODULES[module].read_text(encoding="utf-8")
    assert text.count("\n") <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            assert code_lines(node) < MOST_CLASS_LINES, node.name


def code_lines(node: ast.ClassDef) -> int:
    documented = [each for each in ast.walk(node) if isinstance(each, ast.ClassDef | ast.FunctionDef)]
    texts = [each.body[0] for each in documented if ast.get_docstring(each) is not None]
    docs = sum((text.end_lineno or 0) - text.lineno + 1 for text in texts)
    return (node.end_lineno or 0) - node.lineno - docs


def test_no_public_type_has_the_name_of_another() -> None:
    homes: dict[str, list[str]] = {}
    for module, path in INSIDE.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module)
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def test_what_works_on_numbers_imports_no_torch() -> None:
    assert set(WITHOUT_TORCH) <= set(LAYERS)
    assert {"features", "heads", "search", "evaluation"} <= set(WITHOUT_TORCH)
    names = [name for name in INSIDE if part(name) in WITHOUT_TORCH]
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
