"""Write the CLI reference from the parsers, presets and heads from their tables, and check links and pages.

``python docs/build.py`` writes, ``python docs/build.py --check`` fails if anything would change.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "cli.md"
PRESETS = ROOT / "docs" / "presets.md"
HEADS = ROOT / "docs" / "heads.md"
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)#\s]+)(?:#[^)]*)?\)|!\[[^\]]*\]\(([^)\s]+)\)")


def main() -> int:
    """Write or check; the number of faults is the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    written = {REFERENCE: cli_reference(), PRESETS: presets(), HEADS: heads()}
    faults = [
        f"{page.relative_to(ROOT)}: no such file: {link}" for page in pages() for link in broken_links(page)
    ]
    for page, text in written.items():
        if check and (not page.exists() or page.read_text(encoding="utf-8") != text):
            faults.append(f"docs/{page.name} does not match the code; run `make docs`")
        if not check:
            page.write_text(text, encoding="utf-8")
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"documents: {len(pages())} pages, {len(faults)} faults")
    return min(len(faults), 1)


def cli_reference() -> str:
    """Every verb's ``--help``, as one page."""
    from featx.cli import VERBS

    parts = ["# Command line", "", "Written by `make docs` from the parsers.", "", _help_block([])]
    for verb in VERBS:
        parts += ["", f"## featx {verb}", "", _help_block([verb])]
        parts += [
            part
            for action in _actions(verb)
            for part in ("", f"### featx {verb} {action}", "", _help_block([verb, action]))
        ]
    return "\n".join(parts) + "\n"


def presets() -> str:
    """The table of presets, and that of their networks."""
    from featx.classifier.presets import NETWORKS, PRESETS

    parts = [
        "# Presets",
        "",
        "Written by `make docs` from `featx/classifier/presets.py`; `featx presets` shows the same.",
        'Choose one with `featx fit photos --preset quick` or `ImageClassifier(preset="quick")`.',
        "A parameter that you give wins over the preset.",
        "",
        "| parameter | " + " | ".join(PRESETS) + " |",
        "|---|" + "---|" * len(PRESETS),
    ]
    names = dict.fromkeys(name for preset in PRESETS.values() for name in preset.params)
    for name in names:
        values = [repr(one.params[name]) if name in one.params else "" for one in PRESETS.values()]
        parts.append(f"| `{name}` | " + " | ".join(f"`{value}`" if value else "" for value in values) + " |")
    parts += ["", *(f"* **{name}**: {preset.what}" for name, preset in PRESETS.items()), ""]
    parts += [
        "`auto` stands for the networks whose weights are on this machine: the packaged ones, and those of",
        "timm's repositories in the hub's local cache. Networks of the hub are downloaded for `best` alone,",
        "after size and licence were said; those that cannot be had, or would take too long, are left out,",
        "and the reason is given.",
        "",
        "| network | presets | source | licence | MB |",
        "|---|---|---|---|---|",
    ]
    for one in NETWORKS:
        used = ", ".join(name for name in PRESETS if one.name in PRESETS[name].networks)
        extra = f" (extra `{one.extra}`)" if one.extra else ""
        parts.append(f"| {one.name} | {used} | {one.source}{extra} | {one.licence} | {one.megabytes} |")
    return "\n".join(parts) + "\n"


def heads() -> str:
    """The table of classifiers that a search can try."""
    from featx.heads import DEFAULT_HEADS, HEADS

    parts = [
        "# Heads",
        "",
        "Written by `make docs` from `featx/heads`; `featx heads` shows the same. Choose them with",
        '`featx fit photos --heads logistic,rbf_svm` or `ImageClassifier(heads=["logistic", "rbf_svm"])`.',
        "",
        "| head | by default | takes weights | what it is |",
        "|---|---|---|---|",
    ]
    for name in sorted(HEADS, key=lambda name: name not in DEFAULT_HEADS):
        what = (HEADS[name].make.__doc__ or "").strip().splitlines()[0].replace("|", "\\|")
        by_default, weights = (
            "yes" if flag else "no" for flag in (name in DEFAULT_HEADS, HEADS[name].takes_weights)
        )
        parts.append(f"| `{name}` | {by_default} | {weights} | {what} |")
    return "\n".join(parts) + "\n"


def pages() -> list[Path]:
    """The documents of the repository."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    found = [first or second for first, second in LINK.findall(page.read_text(encoding="utf-8"))]
    return [link for link in found if "://" not in link and not (page.parent / link).exists()]


def _help_block(words: list[str]) -> str:
    return f"```text\n{_help(words)}```"


def _help(words: list[str]) -> str:
    from featx.cli import main as featx_main

    os.environ["COLUMNS"] = "100"  # argparse folds by the terminal's width
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        featx_main([*words, "--help"])
    if "--help-all" in out.getvalue():  # where --help lists some options only
        out.seek(0)
        out.truncate()
        with contextlib.redirect_stdout(out):
            featx_main([*words, "--help-all"])
    return out.getvalue()


def _actions(verb: str) -> list[str]:
    match = re.search(r"^  ACTION\n((?:    \S.*\n|      +\S.*\n)+)", _help([verb]), re.MULTILINE)
    return re.findall(r"^    (\S+)", match.group(1), re.MULTILINE) if match else []


if __name__ == "__main__":
    sys.exit(main())
