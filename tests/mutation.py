"""Mutation testing: change one operation of a module at a time, and see whether a test fails.

``make mutation``, or::

    python tests/mutation.py featx/splits.py --sample 200

Coverage tells which tests reach a line. Of every mutant only these tests run, the fastest first,
until one fails. A mutant that takes 10 times longer than the tests took is killed too. Docstrings, messages
of errors and warnings, and annotations are not changed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

TESTS = {
    "featx/splits.py": ["tests/test_splits.py", "tests/test_classifier.py"],
    "featx/evaluation": [
        "tests/test_evaluation.py",
        "tests/test_decision.py",
        "tests/test_conformal.py",
        "tests/test_report.py",
    ],
    "featx/stores": [
        "tests/test_stores.py",
        "tests/test_stores_hostile.py",
        "tests/test_stores_readonly.py",
        "tests/reliability/test_store_bit_rot.py",
        "tests/reliability/test_store_full_disk.py",
        "tests/reliability/test_store_writers.py",
        "tests/faults/test_fault_store.py",
    ],
}
"""Test files of each target."""

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATIONS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr, ast.MatMult: ast.Mult,
}  # fmt: skip
TYPES = ("NDArray", "tuple", "list", "dict", "Callable", "Iterator", "Sequence")
"""Names whose subscripts are types."""


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield (what changes, the node in its place) for an expression or a statement."""
    other: Any = copy.deepcopy(node)
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        other.ops = [COMPARISONS[type(node.ops[0])]()]
        yield "comparison", other
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OPERATIONS:
        other.op = OPERATIONS[type(node.op)]()
        yield "operation", other
    elif isinstance(node, ast.BoolOp):
        other.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and/or", other
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield "unary operator", other.operand
    elif isinstance(node, ast.Constant):
        value = node.value
        if isinstance(value, bool):
            yield "truth", ast.Constant(not value)
        elif isinstance(value, int | float):
            yield "number", ast.Constant(value + 1)
        elif isinstance(value, str):
            yield "text", ast.Constant("XX" + value)
    elif isinstance(node, ast.IfExp):
        other.body, other.orelse = other.orelse, other.body
        yield "conditional expression", other
    elif isinstance(node, ast.If | ast.While) and not isinstance(node.test, ast.Compare | ast.UnaryOp):
        other.test = ast.UnaryOp(ast.Not(), other.test)
        yield "condition", other
    elif isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        other.value = ast.Constant(None)
        yield "returned value", other
    elif isinstance(node, ast.Break | ast.Continue):
        yield "loop exit", ast.Continue() if isinstance(node, ast.Break) else ast.Break()
    elif isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield "statement", ast.Pass()


def says(node: ast.AST) -> bool:
    """Whether a node only makes a message: arguments of exceptions and warnings."""
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        return name.endswith(("Error", "Warning")) or name in ("warn", "warning", "debug", "info")
    return False


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Yield (parent, field, index, node) of what may change."""
    todo = [tree]
    while todo:
        parent = todo.pop()
        if isinstance(parent, ast.JoinedStr) or says(parent):
            continue
        for field, value in ast.iter_fields(parent):
            if field in ("annotation", "returns", "decorator_list", "bases"):
                continue
            if isinstance(parent, ast.Subscript) and getattr(parent.value, "id", "") in TYPES:
                continue
            for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if not isinstance(node, ast.AST) or isinstance(node, ast.Import | ast.ImportFrom):
                    continue
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    continue  # a docstring
                if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                    continue
                if hasattr(node, "lineno"):
                    yield parent, field, index, node
                todo.append(node)


def mutants(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield (line, description, source) of every mutant of a module."""
    tree = ast.parse(source)
    for parent, field, index, node in list(places(tree)):
        for kind, other in changes(node):
            held = getattr(parent, field)
            if index is None:
                setattr(parent, field, other)
            else:
                held[index] = other
            before, after = ast.unparse(node).split("\n")[0], ast.unparse(ast.fix_missing_locations(other))
            mutated = ast.unparse(tree)
            if index is None:
                setattr(parent, field, node)
            else:
                held[index] = node
            after = after.split("\n")[0]
            yield node.lineno, f"{kind}: {before[:70]}  ->  {after[:70]}", mutated  # type: ignore[attr-defined]


class Recorder:
    """pytest plugin: the seconds of each test, and its name for coverage."""

    def __init__(self, coverage: Any) -> None:
        self.seconds: dict[str, float] = {}
        self._coverage = coverage

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._coverage.switch_context(nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._coverage.switch_context("")

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration


def run_pytest(folder: Path, arguments: list[str], measured: str | None = None) -> int:
    """Run pytest in the folder, in this process, and record the lines of a module or package `measured`."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    import pytest

    arguments = ["-q", "-p", "no:cacheprovider", "--basetemp", str(folder / "tmp"), *arguments]
    if measured is None:
        return int(pytest.main(["-x", *arguments]))
    import coverage

    recording = coverage.Coverage(include=[f"{folder}/{measured}*"], data_file=None)
    recorder = Recorder(recording)
    recording.start()
    code = int(pytest.main(["-m", "not slow and not gpu", *arguments], plugins=[recorder]))
    recording.stop()
    data = recording.get_data()
    reach: dict[str, dict[int, list[str]]] = {}
    for path in data.measured_files():
        lines = data.contexts_by_lineno(path)
        reach[os.path.relpath(path, folder)] = {line: [c for c in lines[line] if c] for line in lines}
    (folder / "measured.json").write_text(json.dumps([reach, recorder.seconds]))
    return code


def fork(folder: Path, arguments: list[str], seconds: float, measured: str | None = None) -> int:
    """Run pytest in a fork of this process, which has imported what is slow to; 124 if it takes too long."""
    child = os.fork()
    if not child:
        code = 3
        try:
            os.setsid()
            said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(said, 1)
            os.dup2(said, 2)
            resource.setrlimit(resource.RLIMIT_AS, (16 << 30, resource.RLIM_INFINITY))
            code = run_pytest(folder, arguments, measured)
        finally:
            os._exit(code)
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return abs(os.waitstatus_to_exitcode(status))
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 124


def copy_tree(folder: Path) -> Path:
    """Copy what the tests need, without compiled modules: they could be taken for changed ones."""
    for name in ("featx", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def warm_up() -> None:
    """Import what the tests need, but nothing of featx."""
    import h5py  # noqa: F401
    import hypothesis  # noqa: F401
    import pandas  # noqa: F401
    import scipy.stats  # noqa: F401
    import sklearn.linear_model
    import sklearn.model_selection  # noqa: F401
    import timm  # noqa: F401
    import torch  # noqa: F401


def statement_lines(tree: ast.AST, line: int) -> range:
    """Lines of the innermost statement at a line; of a compound statement only its head."""
    best = range(line, line + 1)
    size = 10**9
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt):
            continue
        body = getattr(node, "body", None)
        end = body[0].lineno - 1 if body else node.end_lineno or node.lineno
        if node.lineno <= line <= end and end - node.lineno < size:
            best, size = range(node.lineno, end + 1), end - node.lineno
    return best


def in_function(tree: ast.AST, line: int) -> bool:
    """Whether a line is in the body of a function, and so does not run when the module is imported."""
    return any(
        isinstance(node, ast.FunctionDef) and node.body[0].lineno <= line <= (node.end_lineno or 0)
        for node in ast.walk(tree)
    )


def judge(folder: Path, path: str, line: int, source: str, known: Any) -> str:
    """Return "killed", "late" (killed by its time), "survived" or "not reached" of a mutant's source."""
    reach = {int(line): tests for line, tests in known[0].get(path, {}).items()}
    seconds: dict[str, float] = known[1]
    text = (folder / path).read_text()
    tree = ast.parse(text)
    tests = {test for at in statement_lines(tree, line) for test in reach.get(at, ())}
    if not tests:
        if in_function(tree, line):
            return "not reached"
        tests = {test for names in reach.values() for test in names}
    order = sorted(tests, key=lambda test: seconds.get(test, 0.0))
    try:
        (folder / path).write_text(source)
        shutil.rmtree(folder / "tmp", ignore_errors=True)
        limit = 20 + 10 * sum(seconds.get(test, 0.0) for test in order)
        code = fork(folder, order, limit)
    finally:
        (folder / path).write_text(text)
    return {0: "survived", 124: "late"}.get(code, "killed")


def target_of(path: str) -> str:
    return next(target for target in TESTS if path == target or path.startswith(target + "/"))


def work(share: list[tuple[str, tuple[int, str, str]]], output: Path) -> None:
    """Judge a share of the mutants in a copy of the tree; one line of JSON for each."""
    warm_up()
    with tempfile.TemporaryDirectory() as name:
        folder = copy_tree(Path(name))
        known: dict[str, Any] = {}
        for path, change in share:
            target = target_of(path)
            if target not in known:
                if fork(folder, TESTS[target], 3600, measured=target):
                    raise SystemExit(f"the tests of {target} fail:\n{(folder / 'said').read_text()[-3000:]}")
                known[target] = json.loads((folder / "measured.json").read_text())
            line, what, source = change
            result = judge(folder, path, line, source, known[target])
            with output.open("a") as lines:
                lines.write(json.dumps([result, path, line, what]) + "\n")


def main() -> None:
    """Judge a sample of the mutants of the modules, and print the survivors and the shares killed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="*", default=list(TESTS), help="modules or packages")
    parser.add_argument("--sample", type=int, default=200, help="mutants of each target; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--least", type=float, default=85, help="per cent to kill; exit code 1 below it")
    parser.add_argument("--output", type=Path, help="a file for one line of JSON a mutant")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chosen: list[tuple[str, tuple[int, str, str]]] = []
    for given in args.paths:
        files = sorted((ROOT / given).rglob("*.py")) if (ROOT / given).is_dir() else [ROOT / given]
        every = [(str(file.relative_to(ROOT)), one) for file in files for one in mutants(file.read_text())]
        sample = random.Random(args.seed).sample(every, min(args.sample or len(every), len(every)))
        print(f"{given}: {len(sample)} of {len(every)} mutants", flush=True)
        chosen += sorted(sample, key=lambda one: (one[0], one[1][0]))
    with tempfile.TemporaryDirectory() as name:
        output = args.output or Path(name) / "results"
        output.unlink(missing_ok=True)
        shares = [chosen[first :: args.jobs] for first in range(args.jobs)]
        jobs = [multiprocessing.Process(target=work, args=(share, output)) for share in shares]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
        results = [json.loads(line) for line in output.read_text().splitlines()]
    low = len(results) < len(chosen)
    for result, path, line, what in sorted(results):
        if result in ("survived", "not reached"):
            print(f"{result}: {path}:{line}: {what}")
    for target in sorted({target_of(path) for path, _ in chosen}):
        of_target = [result for result, path, *_ in results if target_of(path) == target]
        killed = sum(result in ("killed", "late") for result in of_target)
        share = 100 * killed / max(1, len(of_target))
        low |= share < args.least
        print(f"{target}: {killed} of {len(of_target)} mutants killed ({share:.0f} %)")
    sys.exit(low)


if __name__ == "__main__":
    main()
