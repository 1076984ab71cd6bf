"""The texts of featx that advise an option, a command or a parameter, read from its source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from featx.cli import VERBS

ADVISES = re.compile(rf"--[a-z]|\bfeatx ({'|'.join(VERBS)})\b|pip install|git lfs|\b[a-z_]+=[^ ]|[a-z]=[ )]")
OF_HELP = ("help", "epilog", "description")


def advising_texts(package: Path) -> Iterator[tuple[str, str]]:
    """Place and text of each; a field of an f-string is written as ``{}``. Help of options is left out."""
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        left_out: set[int] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) or (isinstance(node, ast.keyword) and node.arg in OF_HELP):
                inner = node.value
                docstring = isinstance(inner, ast.Constant)
                left_out |= (
                    {id(n) for n in ast.walk(inner)} if isinstance(node, ast.keyword) or docstring else set()
                )
            elif isinstance(node, ast.JoinedStr):
                left_out |= {id(part) for part in node.values}
        for node in ast.walk(tree):
            if id(node) in left_out or not isinstance(node, ast.Constant | ast.JoinedStr):
                continue
            text = _text(node)
            if " " in text and ADVISES.search(text):
                yield f"{path.relative_to(package.parent)}:{node.lineno}", text


def _text(node: ast.Constant | ast.JoinedStr) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
