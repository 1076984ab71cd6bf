"""Write the pages of reference from the code (commands, heads, metrics, ...), and check links of all pages.

``python docs/build.py`` writes, ``python docs/build.py --check`` fails if anything would change.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)#\s]+)(?:#[^)]*)?\)|!\[[^\]]*\]\(([^)\s]+)\)")


def main() -> int:
    """Write or check; the number of faults is the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    written = {DOCS / name: write() for name, write in WRITTEN.items()}
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
        what = _summary(HEADS[name].make)
        by_default, weights = (
            "yes" if flag else "no" for flag in (name in DEFAULT_HEADS, HEADS[name].takes_weights)
        )
        parts.append(f"| `{name}` | {by_default} | {weights} | {what} |")
    return "\n".join(parts) + "\n"


def metrics() -> str:
    """The table of metrics."""
    from featx.evaluation.metrics import METRICS

    parts = [
        "# Metrics",
        "",
        "Written by `make docs` from `METRICS` in `featx/evaluation/metrics.py`. Each is in every",
        "evaluation, with a bootstrap 95 % interval. `--scoring` also takes any scorer of scikit-learn.",
        "",
        "| metric | better | depends on | classes count | what it is |",
        "|---|---|---|---|---|",
    ]
    for name, one in METRICS.items():
        better = "lower" if one.lower_is_better else "higher"
        basis = "probabilities" if one.of_probabilities else "the answer"
        classes = "the same" if one.equal_classes else "by their images"
        parts.append(f"| `{name}` | {better} | {basis} | {classes} | {_summary(one.function)} |")
    return "\n".join(parts) + "\n"


def checks() -> str:
    """The table of checks of a data set."""
    from featx.audit.checks import CHECKS

    parts = [
        "# Checks of a data set",
        "",
        "Written by `make docs` from `CHECKS` in `featx/audit/checks.py`. `featx check photos/` runs all of",
        "them, and `featx fit` those for which enough is known. `value` is a number of the finding in JSON.",
        "",
        "| check | what it does |",
        "|---|---|",
    ]
    parts += [f"| `{name}` | {_summary(check)} |" for name, check in CHECKS.items()]
    return "\n".join(parts) + "\n"


def formats() -> str:
    """The table of files that are read and written, by the endings that the code knows."""
    from featx.backbones.sources import WEIGHT_SUFFIXES
    from featx.cli.arguments import FIGURE_ENDINGS, MODEL_ENDINGS
    from featx.cli.predict import ENDINGS
    from featx.images.decode import EXTENSIONS
    from featx.images.folder import TABLE_EXTENSIONS
    from featx.stores.export import WRITERS

    needs = {"HEIF": "extra `heif`", "JXL": "a plugin of Pillow", "TIFF": "many bands: extra `tiff`"}
    tables = {
        "Images": [(f"{kind} image", ends, needs.get(kind, "")) for kind, ends in EXTENSIONS.items()],
        "Tables that are read": [
            ("manifest", [end], {".xlsx": "extra `excel`"}.get(end, "extra `parquet`" if ".p" in end else ""))
            for end in TABLE_EXTENSIONS
        ],
        "Files that are written and read": [
            ("model", MODEL_ENDINGS, ""),
            ("weights of a backbone (read only)", WEIGHT_SUFFIXES, ""),
            ("features: `featx extract -o`, `featx cache export -o`", list(WRITERS), ""),
            ("predictions: `featx predict -o`", ENDINGS, ""),
            ("graphs: `featx export`", [".onnx", ".xml", ".featx"], ".onnx: extra `onnx`"),
            ("figures: `featx show`, `--plot`", FIGURE_ENDINGS, ""),
        ],
    }
    parts = [
        "# File formats",
        "",
        "Written by `make docs` from the tables of the code. What an image is, its content says; an",
        "ending that names another format is a remark of the check.",
    ]
    for title, rows in tables.items():
        parts += ["", f"## {title}", "", "| what | endings | needs |", "|---|---|---|"]
        for what, ends, need in rows:
            parts.append(f"| {what} | {', '.join(f'`{end}`' for end in ends)} | {need} |")
    parts += [
        "",
        "A model file is a zip archive of JSON and safetensors members ([SECURITY.md](../SECURITY.md)). The",
        "cache is a folder of HDF5 files ([the store](reliability.md#the-store)). A manifest has the columns",
        "`path,label[,split,group,weight]`.",
    ]
    return "\n".join(parts) + "\n"


WHY_NOT_LOWER = {
    "Pillow": "colours of a TIFF beside a band that is not declared as transparency",
    "jinja2": "the lowest version that was tried",
    "joblib": "results come as they are ready (`generator_unordered`), in suites",
    "scipy": "the seed of a permutation test (`rng`), in suites",
    "numpy": "the lowest version that was tried",
    "openvino": "names of operations survive the conversion (`trace_kwargs`)",
    "onnx": "the lowest version that was tried",
    "optuna": "the lock of a journal that a killed process left is removed (`grace_period`)",
    "timm": "transformers are made without memory, to count parameters and operations",
    "torch": "modules are replaced by name (`set_submodule`), to fine-tune above a cut",
    "scikit-learn": "the tags of its estimators (`__sklearn_tags__`)",
    "simplejpeg": "the lowest version that was tried",
}
"""Reasons for a bound, by package or extra, where there is one."""

OF_DEVELOPERS = ("test", "check", "browser", "docs", "dev")


EXTRAS = {
    "parquet": "manifests, features and predictions in parquet",
    "excel": "manifests in `.xlsx`",
    "lite": "weights of two larger networks (46 MB), which then take part by default",
    "openvino": "the runtime, on processors where it is no dependency",
    "onnx": "export as ONNX, and its runtime",
    "intelex": "support vector machines of scikit-learn-intelex, which can be faster on Intel processors",
    "simplejpeg": "another JPEG decoder",
    "tiff": "TIFF of many bands",
    "remote": "images and caches at `s3://`, `gs://`, `hf://` and `https://` addresses",
    "heif": "HEIC photos",
    "ray": "extraction on a Ray cluster (lowest version with pandas 3)",
    "dask": "fits of trees on a Dask cluster",
    "postgresql": "searches by several machines with a PostgreSQL database",
    "grpc": "searches by several machines with a gRPC server",
}
"""What each extra is for."""


def versions() -> str:
    """The table of the lowest versions of the dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    parts = [
        "# Versions",
        "",
        "Written by `make docs` from `pyproject.toml`. `make test-oldest` runs the fast tests with the",
        "lowest versions, `make test` with the newest, both on Python 3.11 and Linux. Newer Pythons, macOS",
        f"and Windows are untested. The lowest Python is {project['requires-python'].strip('>=')}, for",
        "`typing.Self` and `tomllib`.",
        "",
        "`make test-oldest` installs the extras `parquet`, `excel`, `lite` and `simplejpeg`. The lowest",
        "versions of the other extras were not tested together.",
        "",
        "Before 1.0.31, timm does not return the layers of 21 families of networks (CoaT, ConViT, ConvMixer,",
        "CrossViT, CSPNet, DenseNet, DLA, DPN, HRNet, Inception, NASNet, NFNet, PNASNet, SelecSLS, SENet,",
        "Sequencer, VGG, Visformer, Xception). With such a timm, these networks are an error in featx.",
        "",
        "| package | lowest version | extra | why not lower |",
        "|---|---|---|---|",
    ]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    for extra, listed in groups.items():
        if extra in OF_DEVELOPERS:
            continue
        for name, version in re.findall(r"^([\w-]+)>=([\w.]+)", "\n".join(listed), re.MULTILINE):
            shown = f"`{extra}`" if extra else ""
            why = WHY_NOT_LOWER.get(extra, WHY_NOT_LOWER.get(name, ""))
            parts.append(f"| {name} | {version} | {shown} | {why} |")
    parts += ["", "## Extras", "", "As in `pip install '.[parquet]'`.", "", "| extra | for |", "|---|---|"]
    parts += [f"| `{extra}` | {EXTRAS[extra]} |" for extra in groups if extra and extra not in OF_DEVELOPERS]
    return "\n".join(parts) + "\n"


def api() -> str:
    """The page that makes autosummary write a page for each public name."""
    import featx
    from featx import plot

    def table(module: str, names: list[str]) -> list[str]:
        listed = [f"   {name}" for name in names]
        head = ["```{eval-rst}", f".. currentmodule:: {module}", ".. autosummary::", "   :toctree: api", ""]
        return [*head, *listed, "```"]

    def kind(name: str) -> str:
        return "classes" if isinstance(getattr(featx, name), type) else "functions"

    parts = [
        "# API",
        "",
        "Written by `make docs` from `featx.__all__` and `featx.plot.__all__`.",
    ]
    public = [name for name in featx.__all__ if not name.startswith("_")]
    for title in ("classes", "functions"):
        parts += ["", f"## {title.capitalize()}", ""]
        parts += table("featx", sorted(name for name in public if kind(name) == title))
    parts += [
        "",
        "## Figures",
        "",
        "Functions of plain data that return a `Display` with `ax_` and `figure_`.",
        "",
    ]
    parts += table("featx.plot", list(plot.__all__))
    return "\n".join(parts) + "\n"


WRITTEN = {
    "cli.md": cli_reference,
    "presets.md": presets,
    "heads.md": heads,
    "metrics.md": metrics,
    "checks.md": checks,
    "formats.md": formats,
    "versions.md": versions,
    "api.md": api,
}
"""The pages that are written, and what writes them."""


def pages() -> list[Path]:
    """The documents of the repository."""
    return sorted([*ROOT.glob("*.md"), *(page for page in DOCS.rglob("*.md") if page.parent.name != "api")])


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    found = [first or second for first, second in LINK.findall(page.read_text(encoding="utf-8"))]
    return [link for link in found if "://" not in link and not (page.parent / link).exists()]


def _summary(function: Any) -> str:
    """First sentence of a docstring, for a cell of a table."""
    text = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
    return text.replace("|", "\\|")


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
