"""Recipes of fine-tuning: halving among them, the budget, "auto" of ImageClassifier, on a tiny network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import image_classifier
from tinted import pictures

from featx import ImageClassifier
from featx.exceptions import UsageError
from featx.extractor import FeatureExtractor, Progress
from featx.finetune import RECIPES, FineTuner, Phase, Recipe
from featx.stores.memory import MemoryStore

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("one_torch_thread")


STEPS = Phase(epochs=4, batch_size=16, lr=1e-3)
SMALL = {
    "all-32": Recipe(unfreeze="all", phase=STEPS, few=STEPS, view_policy="rotate=5", side=32, source=""),
    "upper": Recipe(unfreeze=1, phase=STEPS, few=STEPS, view_policy="light", views=2, source=""),
    "all-48": Recipe(unfreeze="all", phase=STEPS, few=STEPS, view_policy="none", side=48, source=""),
}
"""Recipes of the same kinds as `RECIPES` that take a second."""


def extractor(**params: Any) -> FeatureExtractor:
    settings = {"pretrained": False, "store": MemoryStore(), "precision": "fp32", "runtime": "torch"}
    return FeatureExtractor("test_resnet", **(settings | {"input_size": 64} | params))


def stripes(n: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Grey noise with bright rows or columns: an untrained network's features hardly show the difference."""
    rng = np.random.default_rng(0)
    x, y = [], np.arange(n) % 2
    for code in y:
        pixels = rng.integers(0, 200, (48, 48, 3), np.uint8)
        where = rng.integers(0, 48, 3)
        pixels[(where,) if code else (slice(None), where)] = 255
        x.append(pixels)
    return x, np.array(["columns", "rows"])[y]


def test_recipes_are_halved_and_the_winner_is_compared_on_images_that_did_not_choose_it() -> None:
    x, y = stripes(60)
    told: list[str] = []
    tuner = FineTuner(
        extractor(), recipes=SMALL, n_verdicts=2, refit=False, random_state=0,
        callback=lambda event: told.append(event.message),
    ).fit(x, y)  # fmt: skip
    rungs = [text.split()[2].rstrip(":") for text in told if text.startswith("fine-tuning, recipe")]
    assert rungs[:3] == list(SMALL)  # the cheapest first
    assert tuner.recipe_ in SMALL
    assert tuner.unfreeze_ == SMALL[tuner.recipe_].unfreeze
    assert tuner.network_.spec.input_size[0] == (SMALL[tuner.recipe_].side or 64)
    if len(rungs) > 3:  # else there was nothing to gain
        assert len(rungs) == 5
        assert tuner.recipe_ in rungs[3:]
        assert 12 <= tuner.verdict_.n < 24  # two fifths, but for the images that chose
    assert tuner.predict(x).shape == (60,)


def test_recipes_are_ordered_by_cost_and_name_their_source() -> None:
    page = (Path(__file__).parents[1] / "docs" / "finetuning.md").read_text(encoding="utf-8")
    assert list(RECIPES) == ["all-80", "upper", "all-112"]
    for name, recipe in RECIPES.items():
        assert f"| {name} |" in page
        assert recipe.source in page
        assert [phase.epochs for phase in recipe.phases(100, 0.25)] == [0, recipe.few.epochs // 4]
        assert recipe.phases(1000)[1] == recipe.phase


def test_a_short_time_leaves_fewer_epochs_or_says_that_it_is_too_short() -> None:
    x, y = pictures(20)
    with pytest.raises(UsageError, match=r"no recipe of fine-tuning could be .*0 seconds are too short"):
        FineTuner(extractor(), recipes=SMALL, timeout=1e-6, random_state=0).fit(x, y)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"recipes": "best"}, "choose 'auto', a mapping or None"),
        ({"recipes": "auto", "n_trials": 2}, "allow no trials"),
        ({"recipes": "auto", "validation": 0}, "a share for validation"),
    ],
)
def test_what_does_not_go_with_a_recipe_is_said(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        FineTuner(extractor(), **settings).fit(*pictures(20))


def classifier(**params: Any) -> ImageClassifier:
    settings = {
        "backbone": "test_resnet", "pretrained": False, "runtime": "torch", "precision": "fp32",
        "input_size": 64, "n_trials": 1, "cut": None, "pool": "avg", "resize": "crop",
        "heads": ["logistic"], "cv": 3, "random_state": 0, "store": MemoryStore(),
        "fine_tune": "auto",
    }  # fmt: skip
    return image_classifier(**(settings | params))


def test_auto_tries_recipes_and_says_which_and_what_it_cost() -> None:
    x, _ = pictures(80)
    y = np.random.default_rng(1).permutation(["blue", "red"] * 40)  # the probe leaves errors
    events: list[Progress] = []
    clf = classifier(tuning={"n_verdicts": 1, "recipes": SMALL}, callback=events.append).fit(x, y)
    report = clf.fine_tune_
    assert report.tried
    assert report.reason.startswith(tuple(f"recipe {name}: " for name in SMALL))
    assert "minutes of training" in report.reason
    assert report.kept == (clf.network_ is not None)
    assert report.kept == (report.verdict.gain.value > 0)
    assert clf.predict_proba(x).shape == (80, 2)


def test_auto_leaves_the_search_s_head_where_no_time_is_left_for_a_recipe() -> None:
    x, _ = pictures(80)
    y = np.random.default_rng(1).permutation(["blue", "red"] * 40)  # the probe leaves errors
    clf = classifier(tuning={"timeout": 1e-6}).fit(x, y)
    assert (clf.fine_tune_.tried, clf.network_) == (False, None)
    assert "0 seconds are too short" in clf.fine_tune_.reason
