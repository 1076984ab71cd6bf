"""The examples of CONTRIBUTING.md: a metric, a check, a verb and a runtime are one file and one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import image_classifier
from sklearn.datasets import load_digits
from sklearn.metrics import top_k_accuracy_score

from featx import FeatureExtractor, HeadSearchCV
from featx.audit import CHECKS, AuditData, Finding, audit
from featx.backbones.runtimes import RUNTIMES, TOLERANCE, Runtime
from featx.cli import VERBS, Verb, main
from featx.evaluation import METRICS, compare, evaluate
from featx.exceptions import FeatxWarning, ImageWarning

RECIPES = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text("utf-8")


def code_of(title: str) -> str:
    """The code that a section of CONTRIBUTING.md shows."""
    return RECIPES.split(f"### {title}\n")[1].split("```python\n")[1].split("```")[0]


def example(title: str, name: str) -> types.ModuleType:
    """The module of that code."""
    module = types.ModuleType(name)
    exec(compile(code_of(title), f"CONTRIBUTING.md, {title}", "exec"), vars(module))
    return module


def test_the_files_and_lines_of_the_examples_belong_where_the_table_says(tmp_path: Path) -> None:
    shutil.copytree(Path(__file__).parents[1] / "featx", tmp_path / "featx")
    places = [
        ("a head", "HEADS", "heads.bayes", "BAYES"),
        ("an audit check", "CHECKS", "audit.single", "find_single_images"),
        ("a CLI verb", "VERBS", "cli.count", "run"),
        ("a runtime", "RUNTIMES", "backbones.runtimes.exported", "ExportedRuntime"),
    ]
    for title, table, module, name in places:
        code, line = code_of(f"Adding {title}"), RECIPES.split(f"The line in `{table}` is `")[1].split("`")[0]
        (tmp_path / "featx" / (module.replace(".", "/") + ".py")).write_text(code, "utf-8")
        file = tmp_path / RECIPES.split(f"`{table}` in `")[1].split("`")[0]
        begin, rest = file.read_text("utf-8").split(f"{table}: dict[")
        imported = f"from featx.{module} import {name}\n" if name in line else ""
        head, imports = begin.split("from __future__ import annotations\n")
        types_of, entries = rest.split("{", 1)
        head += f"from __future__ import annotations\n{imported}{imports}"
        file.write_text(f"{head}{table}: dict[{types_of}{{{line},{entries}", "utf-8")
    names = "'bayes' in HEADS, 'single_images' in CHECKS, 'count' in VERBS, 'torch-export' in RUNTIMES"
    script = (
        "from featx.heads import HEADS; from featx.audit import CHECKS; from featx.cli import VERBS;"
        f"from featx.backbones.runtimes import RUNTIMES; print({names})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "True True True True", done.stderr


@pytest.fixture
def top2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "top2", example("Adding a metric", "top2").TOP2)


@pytest.mark.usefixtures("top2")
def test_a_metric_is_evaluated_with_its_interval_and_compared() -> None:
    rng = np.random.default_rng(0)
    y, proba = rng.integers(0, 5, 200), rng.dirichlet(np.ones(5), 200)
    found = evaluate(y, proba, range(5)).metrics["top2"]
    assert found.value == pytest.approx(top_k_accuracy_score(y, proba, k=2))
    assert 0.2 < found.low < found.value < found.high < 0.5
    right = np.eye(5)[y]
    assert compare(y, right, proba, metric="top2").difference == pytest.approx(1 - found.value)
    perfect = evaluate(y, right, range(5)).metrics["top2"]
    assert (perfect.value, perfect.high) == (1, 1)
    assert 0.97 < perfect.low < 1  # 0.025 ** (1 / 200) = 0.982


@pytest.mark.usefixtures("top2")
def test_a_metric_is_a_scoring_of_the_search_and_of_the_classifier(class_folders: Path) -> None:
    X, y = (part[:300] for part in load_digits(return_X_y=True))
    search = HeadSearchCV(["ridge"], n_trials=2, cv=3, scoring="top2", random_state=0).fit(X, y)
    plain = HeadSearchCV(["ridge"], n_trials=2, cv=3, random_state=0).fit(X, y)
    assert plain.best_score_ < search.best_score_ <= 1
    tiny: dict[str, Any] = {"backbone": "test_resnet", "pretrained": False, "runtime": "torch", "cut": None}
    clf = image_classifier(
        **tiny, pool="avg", resize="crop", heads=["ridge"], n_trials=1, cv=3, scoring="top2", random_state=0
    ).fit_with_test(class_folders)
    assert clf.scoring_ == "top2"
    assert clf.evaluation_.metrics["top2"].value == 1  # there are two classes


def test_a_check_is_run_by_the_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    check = example("Adding an audit check", "single_images").find_single_images
    monkeypatch.setitem(CHECKS, "single_images", check)
    digests = np.stack([np.full(32, number, np.uint8) for number in (1, 2, 3)])
    found = {
        one.check: one for one in audit(AuditData(list("abc"), digests, np.array(["cat", "dog", "cat"])))
    }
    assert (found["single_images"].names, found["single_images"].value) == (("b",), 1)


def test_a_fit_warns_of_what_a_check_finds(class_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def few(data: AuditData) -> Finding:
        return Finding.of(data, "few", "warning", f"{len(data.names)} images are few.", [0], len(data.names))

    monkeypatch.setitem(CHECKS, "few", few)
    clf = image_classifier(
        "test_resnet", pretrained=False, runtime="torch", cut=None, pool="avg", resize="crop",
        heads=["ridge"], n_trials=1, cv=3, random_state=0,
    )  # fmt: skip
    with pytest.warns(ImageWarning, match="24 images are few"):
        clf.fit(class_folders)


def test_a_verb_is_listed_explained_and_run(
    class_folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "featx.cli.count", example("Adding a CLI verb", "featx.cli.count"))
    monkeypatch.setitem(VERBS, "count", Verb("featx.cli.count", "count the images of each class"))
    assert main(["--help"]) == 0
    assert "count the images of each class" in capsys.readouterr().out
    assert main(["count", "--help"]) == 0
    assert "--json" in capsys.readouterr().out
    assert main(["count", str(class_folders)]) == 0
    assert capsys.readouterr().out.split() == ["class", "images", "blue", "12", "red", "12"]
    assert main(["count", str(class_folders), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"classes": {"blue": 12, "red": 12}}
    assert main(["count", str(class_folders / "nowhere")]) == 1


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime("torch", ("cpu",), example("Adding a runtime", "exported").ExportedRuntime)
    monkeypatch.setitem(RUNTIMES, "torch-export", runtime)


def _features(class_folders: Path, runtime: str, precision: str = "fp32") -> Any:
    extractor = FeatureExtractor(
        "test_resnet", cut=["layer1", "last"], pretrained=False, store="memory", device="cpu",
        runtime=runtime, precision=precision,
    )  # fmt: skip
    return extractor.fit_transform(sorted(class_folders.glob("*/*")))


@pytest.mark.usefixtures("exported")
def test_a_runtime_computes_the_features_of_the_others(class_folders: Path) -> None:
    found, expected = _features(class_folders, "torch-export"), _features(class_folders, "torch")
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= TOLERANCE["fp32"] * np.abs(expected).max() + 1e-3  # float16


@pytest.mark.usefixtures("exported")
def test_what_a_runtime_cannot_convert_runs_on_torch(class_folders: Path) -> None:
    with pytest.warns(FeatxWarning, match="does not convert to torch-export"):
        found = _features(class_folders, "torch-export", "bf16")
    np.testing.assert_array_equal(found, _features(class_folders, "torch", "bf16"))
