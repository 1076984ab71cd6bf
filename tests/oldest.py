"""``python tests/oldest.py``: print the lowest versions that pyproject.toml allows, as constraints."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BOUND = re.compile(r"([\w-]+)>=([\w.]+)")


def bounds() -> dict[str, str]:
    """Lowest versions of what the package and its extra ``test`` require."""
    extras = PROJECT["optional-dependencies"]
    named = re.findall(r"featx\[([\w,]+)\]", " ".join(extras["test"]))
    listed = [*PROJECT["dependencies"], *extras["test"]]
    listed += [one for names in named for name in names.split(",") for one in extras[name]]
    return dict(match.groups() for one in listed if (match := BOUND.match(one)))


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in bounds().items()))
