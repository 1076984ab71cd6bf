"""The head that CONTRIBUTING.md adds works everywhere: search, save, load, predict, learning curve."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import image_classifier
from sklearn.datasets import load_digits

import featx
from featx.curves import curve_head, learning_curve
from featx.heads import HEADS, SCALINGS, decision_scores, make_pipeline
from featx.modelfile import dump_head, load_head
from featx.search import HeadSearchCV

RECIPE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text("utf-8")
X, Y = (part[:300] for part in load_digits(return_X_y=True))


@pytest.fixture(autouse=True)
def bayes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the file of the recipe and add its line to `HEADS`."""
    file = tmp_path / "bayes.py"
    file.write_text(RECIPE.split("### Adding a head")[1].split("```python\n")[1].split("```")[0])
    spec = importlib.util.spec_from_file_location("bayes", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bayes", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(HEADS, "bayes", module.BAYES)


def test_it_is_searched_and_predicts() -> None:
    search = HeadSearchCV(["bayes", "ridge"], n_trials=4, cv=3, random_state=0).fit(X, Y)
    tried = {trial.params["head"] for trial in search.study_.trials}
    assert tried == {"bayes", "ridge"}
    alone = HeadSearchCV(["bayes"], n_trials=2, cv=3, random_state=0).fit(X, Y)
    assert alone.best_params_["bayes__smoothing"] > 0
    assert alone.score(X, Y) > 0.8


@pytest.mark.parametrize("n_classes", [2, 10])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_it_is_saved_and_loaded(scaling: str, n_classes: int) -> None:
    pipeline = make_pipeline("bayes", {"smoothing": 0.01}, scaling, (64,), n_rows=300).fit(X, Y % n_classes)
    again = load_head(dump_head("bayes", pipeline), pipeline.classes_)
    np.testing.assert_array_equal(decision_scores(again, X), decision_scores(pipeline, X))


def test_it_classifies_images_from_a_file(class_folders: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"backbone": "test_resnet", "pretrained": False, "cut": None, "pool": "avg"}
    clf = image_classifier(
        **options, resize="crop", runtime="torch", heads=["bayes"], n_trials=1, cv=3, random_state=0
    ).fit(class_folders)
    assert clf.best_params_["head"] == "bayes"
    images = sorted(class_folders.rglob("*.png"))
    again = featx.load(clf.save(tmp_path / "model.featx")).set_params(extractor__runtime="torch")
    np.testing.assert_allclose(again.predict_proba(images), clf.predict_proba(images), rtol=0, atol=1e-12)


def test_it_draws_a_learning_curve_of_its_own() -> None:
    assert curve_head("bayes") == "bayes"
    curve = learning_curve(X, Y, head="bayes", n_repeats=1)
    assert curve.head == "bayes"
    assert curve.error[0] > curve.error[-1]
