"""Sphinx builds the site of these pages: ``make docs``, into ``build/docs/html``. Nothing is downloaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from featx.version import __version__

project, author, copyright = "featx", "the featx developers", "the featx developers"
version = release = __version__
extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["build"]
templates_path = ["templates"]

html_theme = "furo"
html_title = f"featx {release}"

myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "attrs_inline"]
nb_output_stderr = "remove"
nb_execution_mode = "cache"
nb_execution_cache_path = str(Path(__file__).parents[1] / "build" / "docs" / "notebooks")
nb_execution_timeout = 300
nb_execution_raise_on_error = True

autosummary_generate = True
autodoc_typehints = "none"
numpydoc_show_class_members = False

AROUND = {"CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md", "CHANGELOG.md": "changelog.md"}
"""Documents above this folder, and the pages here that show them."""


def setup(app: Any) -> None:
    """Let links to documents above this folder lead to the pages that show them."""

    def replace(app: Any, name: str, source: list[str]) -> None:
        source[0] = re.sub(r"(?<=\]\()(?:\.\./)+([A-Z]+\.md)", lambda m: AROUND.get(m[1], m[0]), source[0])

    app.connect("source-read", replace)
