"""The choice between representations, and options tried for the winner, on features with a known result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from classifiers import image_classifier
from PIL import Image

import featx
from featx.features import FeatureBlocks
from featx.representation import Representation
from featx.selection.tuning import TunedHead, tune, tune_again

SETTINGS: dict[str, Any] = {
    "heads": ["ridge"], "n_trials": 0, "timeout": None, "cv": 3, "n_repeats": "auto", "scoring": "auto",
    "class_weight": None, "storage": None, "study_name": None, "n_jobs": 1, "random_state": 0,
}  # fmt: skip


def tuned(blocks: FeatureBlocks, y: np.ndarray, **changes: Any) -> TunedHead:
    return tune(blocks, y, groups=np.arange(len(y)), settings={**SETTINGS, "grid": "coarse", **changes})


def noisy(y: np.ndarray, width: int, *, signal: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(len(y), width)).astype(np.float32)
    rows[:, 0] += signal * y
    return rows


def test_a_cheaper_representation_that_is_as_good_is_used_and_reported() -> None:
    y = np.arange(120) % 2
    good = noisy(y, 8, signal=6)
    wide = np.hstack([good, 1e-3 * noisy(y, 56, signal=0)])  # the same information
    found = tuned(FeatureBlocks({"last:avg:crop": wide, "blocks.1:avg:crop": good}, 120), y)
    assert found.choice is not None
    assert found.blocks == ("blocks.1:avg:crop",)
    assert "does not differ significantly" in " ".join(found.choice.sentences())
    assert found.params["representation"] == "blocks.1:avg:crop"


def test_a_cheaper_representation_with_equal_accuracy_but_worse_probabilities_is_not_used() -> None:
    y = np.arange(300) % 2
    blocks = FeatureBlocks(
        {"last:avg:crop": noisy(y, 64, signal=30), "blocks.1:avg:crop": noisy(y, 8, signal=5.5, seed=1)}, 300
    )
    alone = tuned(blocks.only(["blocks.1:avg:crop"]), y).score
    found = tuned(blocks, y)
    assert found.score - alone < 0.01  # three images of 300
    assert found.blocks == ("last:avg:crop",)


def test_a_better_representation_is_used_even_if_it_is_wider() -> None:
    y = np.arange(150) % 2
    blocks = FeatureBlocks(
        {"last:avg:crop": noisy(y, 64, signal=8), "blocks.1:avg:crop": noisy(y, 8, signal=1, seed=1)}, 150
    )
    found = tuned(blocks, y)
    assert "last:avg:crop" in found.blocks
    assert found.choice is not None
    assert found.choice.best == found.choice.name


def test_a_single_representation_gives_no_choice() -> None:
    y = np.arange(60) % 2
    assert tuned(FeatureBlocks({"last:avg:crop": noisy(y, 8, signal=3)}, 60), y).choice is None


def test_a_decision_for_rare_classes_is_tried_where_it_may_be_wanted() -> None:
    y = (np.arange(400) % 10 == 0).astype(int)
    blocks = FeatureBlocks({"last:avg:crop": noisy(y, 6, signal=1.6)}, 400)
    rare, plain = tuned(blocks, y), tuned(blocks, y, scoring="accuracy")
    assert rare.scoring == "accuracy"
    assert [one.name.partition(",")[0] for one in rare.tried] == ["decision for rare classes"]
    assert rare.tried[0].kept
    recall = [
        [(own.decision.shares(own.oof_proba).argmax(axis=1) == y)[y == c].mean() for c in (0, 1)]
        for own in (rare, plain)
    ]
    assert np.mean(recall[0]) > np.mean(recall[1]) + 0.05
    np.testing.assert_allclose(rare.oof_proba, plain.oof_proba)
    assert plain.tried == ()
    assert plain.decision.is_argmax
    even = np.arange(400) % 2
    assert tuned(FeatureBlocks({"last:avg:crop": noisy(even, 6, signal=2)}, 400), even).tried == ()


@pytest.mark.parametrize(
    ("n", "changes", "n_splits"), [(500, {}, 3), (200, {}, 9), (200, {"n_repeats": 1}, 3)]
)
def test_folds_are_repeated_below_500_images(n: int, changes: dict[str, Any], n_splits: int) -> None:
    y = np.arange(n) % 2
    found = tuned(FeatureBlocks({"a": noisy(y, 4, signal=3)}, n), y, **changes)
    assert sum(name.startswith("split") for name in found.cv_results) == n_splits


def test_features_picked_over_blocks_are_used_again() -> None:
    y = np.arange(120) % 2
    blocks = FeatureBlocks({"a": noisy(y, 600, signal=9), "b": noisy(y, 600, signal=9, seed=1)}, 120)
    first = tuned(blocks, y, representations=[("relevant:1024",)])
    assert first.representation == Representation(("a", "b"), 1024)
    assert first.params["representation"] == "relevant:1024"
    again = tune_again(
        blocks.only(first.blocks), y, groups=np.arange(120), settings=SETTINGS, params=first.params,
    )  # fmt: skip
    assert again.representation.picked == 1024
    np.testing.assert_allclose(again.oof_proba, first.oof_proba, atol=1e-6)


def test_the_same_configuration_on_the_same_features_gives_the_same_classifier() -> None:
    y = (np.arange(300) % 8 == 0).astype(int)
    blocks = FeatureBlocks({"last:avg:crop": noisy(y, 6, signal=2), "b:avg:crop": noisy(y, 6, signal=1)}, 300)
    first = tuned(blocks, y)
    again = tune_again(
        blocks.only(first.blocks), y, groups=np.arange(300), settings=SETTINGS,
        params=first.params,
    )  # fmt: skip
    assert again.score == pytest.approx(first.score)
    np.testing.assert_allclose(again.oof_proba, first.oof_proba, atol=1e-6)
    assert again.decision == first.decision


def test_an_imbalanced_model_is_saved_with_what_was_tried(
    picture: Callable[..., Image.Image], tmp_path: Any
) -> None:
    rng = np.random.default_rng(0)
    rare = np.arange(100) % 6 == 0
    tints = [
        (int(25 * r) + int(v), 0, -int(25 * r)) for r, v in zip(rare, rng.normal(0, 18, 100), strict=True)
    ]
    pictures = [np.asarray(picture(seed, tint=tint)) for seed, tint in enumerate(tints)]
    clf = image_classifier(
        "test_resnet", pretrained=False, runtime="torch", cut=["layer1", "last"], pool="avg", resize="crop",
        heads=["lda", "nearest_mean"], n_trials=1, cv=3, n_jobs=1, random_state=0,
    ).fit(pictures, rare)  # fmt: skip
    assert clf.scoring_ == "accuracy"
    assert clf.choice_ is not None
    assert clf.tried_
    loaded = featx.load(clf.save(tmp_path / "m.featx"))
    assert loaded.tried_ == clf.tried_
    assert loaded.decision_ == clf.decision_
    assert loaded.operating_points_ == clf.operating_points_
    assert loaded.choice_ == clf.choice_
    rows = clf.extract(pictures).blocks
    np.testing.assert_allclose(loaded.proba_of_features(rows), clf.proba_of_features(rows), atol=1e-6)
    assert (clf.predict(pictures) == (clf.decision_function(pictures) > 0)).all()
