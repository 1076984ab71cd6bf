"""Augmentation on rows: each kind's rows, what is kept, and that a kept one predicts the same everywhere."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import image_classifier

import featx
from featx.classifier.growth import grow
from featx.cli import main
from featx.exceptions import UsageError
from featx.features import FeatureBlocks
from featx.images import load_images
from featx.selection.augmentation import KINDS, NOISE, NOISE_COPIES, Augmentation, augment, kinds_to_try
from featx.selection.tuning import TunedHead, Views, tune

NAME = "last:avg:crop"
TINY: dict[str, Any] = {
    "backbone": "test_resnet", "pretrained": False, "runtime": "torch", "cut": None, "pool": "avg",
    "resize": "crop", "heads": ["ridge"], "n_trials": 1, "cv": 3, "n_repeats": 1, "n_jobs": 1,
    "random_state": 0,
}  # fmt: skip
Y = np.array([0, 0, 0, 0, 0, 0, 1, 1])


def block(seed: int = 0, n: int = 8) -> FeatureBlocks:
    return FeatureBlocks({NAME: np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)}, n)


def test_views_are_rows_that_never_score() -> None:
    plain, views = block(), [block(1), block(2)]
    found = augment("rows", plain, views, Y, random_state=0)
    assert found.image.tolist() == list(range(8)) * 3
    assert found.view.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    np.testing.assert_array_equal(found.blocks[NAME][8:16], views[0][NAME])


def test_averages_stand_for_their_image() -> None:
    plain, views = block(), [block(1), block(2)]
    mean = (plain[NAME] + views[0][NAME] + views[1][NAME]) / 3
    for kind in ("average", "average+rows"):
        found = augment(kind, plain, views, Y, random_state=0)
        np.testing.assert_allclose(found.blocks[NAME][found.view == 0], mean, atol=1e-6)
    assert len(found.view) == 8 * 4


def test_rare_classes_alone_get_as_many_views_as_they_lack() -> None:
    found = augment("minority", block(), [block(k) for k in range(1, 6)], Y, random_state=0)
    assert found.image.tolist() == [*range(8), 6, 7, 6, 7]  # 6 : 2 asks for two more of each


def test_noise_stays_within_each_feature_s_range_and_is_the_same_each_time() -> None:
    plain = block(n=50)
    found, again = (augment("noise", plain, (), np.zeros(50), random_state=3) for _ in range(2))
    rows = found.blocks[NAME]
    assert len(rows) == 50 * (1 + NOISE_COPIES)
    assert (rows >= plain[NAME].min(axis=0)).all()
    assert (rows <= plain[NAME].max(axis=0)).all()
    moved = np.abs(rows[50:100] - plain[NAME]) / np.ptp(plain[NAME], axis=0)
    assert 0 < moved.max() <= NOISE + 1e-6
    np.testing.assert_array_equal(rows, again.blocks[NAME])


def test_what_is_tried_depends_on_the_labels_and_on_what_was_asked() -> None:
    assert kinds_to_try(np.arange(1000) % 2, views=0) == ()
    assert kinds_to_try(np.arange(40) % 2, views=0) == ("noise",)
    assert "minority" not in kinds_to_try(np.arange(1000) % 2, views=2)
    assert set(kinds_to_try(np.arange(1000) % 10 == 0, views=2)) == set(KINDS) - {"none"}


def tuned(rows: list[np.ndarray], y: np.ndarray) -> TunedHead:
    blocks = [FeatureBlocks({NAME: own}, len(y)) for own in rows]
    settings = {
        "heads": ["ridge"], "n_trials": 0, "timeout": None, "cv": 3, "n_repeats": 1, "scoring": "accuracy",
        "class_weight": None, "storage": None, "study_name": None, "n_jobs": 1, "random_state": 0,
        "grid": "coarse",
    }  # fmt: skip
    views = Views(len(rows) - 1, "light", lambda names: [part.only(names) for part in blocks[1:]])
    return tune(blocks[0], y, groups=np.arange(len(y)), settings=settings, views=views)


def test_averages_are_kept_where_they_take_noise_away() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(300) % 2
    found = tuned([y[:, None] * 1.5 + rng.normal(size=(300, 4)) for _ in range(4)], y)
    assert found.augmentation.kind == "average"
    assert found.augmentation.views == 3
    assert found.augmentation.gain > 0.02
    assert [one.name for one in found.tried if one.kept] == ["features averaged over views"]
    assert found.oof_proba.shape == (300, 2)
    assert found.score > np.nanmax(found.cv_results["mean_test_score"])


def test_views_that_say_nothing_new_are_not_kept() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(300) % 2
    rows = y[:, None] * 1.5 + rng.normal(size=(300, 4))
    found = tuned([rows, rows, rows], y)
    assert found.augmentation == Augmentation()
    assert not any(one.kept for one in found.tried)
    assert found.params in found.cv_results["params"]


def test_views_are_computed_once_and_tried(class_folders: Path) -> None:
    clf = image_classifier(**TINY, views=2).fit_with_test(class_folders)
    names = {one.name for one in clf.tried_}
    assert {"views as training rows", "features averaged over views", "feature-space noise"} <= names
    assert image_classifier(**TINY, views=2).fit_with_test(class_folders).n_computed_ == 0
    for wrong in ({"views": -1}, {"views": 1, "view_policy": "none"}, {"views": 1, "view_policy": "odd"}):
        with pytest.raises(UsageError):
            image_classifier(**TINY, **wrong).fit(class_folders)


def test_a_kept_average_predicts_the_same_when_loaded_and_grows(
    class_folders: Path, tmp_path: Path, six_more: Path
) -> None:
    clf = image_classifier(**TINY).fit_with_test(class_folders)
    plain = clf.extract(class_folders).blocks[NAME]
    model = dataclasses.replace(clf.model_, augmentation=Augmentation("average", 2, "photo"))
    clf._fitted = dataclasses.replace(clf._fitted, model=model)
    rows = clf.extract(class_folders).blocks[NAME]
    assert rows.shape == plain.shape
    assert np.abs(rows - plain).max() > 1e-3
    loaded = featx.load(clf.save(tmp_path / "m.featx"), store=None).set_params(
        extractor__runtime="torch", n_jobs=1
    )
    assert loaded.augmentation_ == clf.augmentation_
    np.testing.assert_allclose(
        loaded.predict_proba(class_folders), clf.predict_proba(class_folders), atol=2e-3
    )
    grown, growth = grow(loaded, load_images(six_more))
    assert growth.n_added == 6
    assert grown.augmentation_ == clf.augmentation_


def test_featx_fit_takes_views(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "fit", str(class_folders), "-o", str(tmp_path / "m.featx"), "--backbone", "test_resnet",
        "--random-weights", "--runtime", "torch", "--cut", "last", "--pool", "avg", "--resize", "crop",
        "--heads", "ridge", "--trials", "0", "--cv", "3", "--views", "1", "--view-policy", "flip=1",
    ]  # fmt: skip
    assert main(argv) == 0
    assert "views as training rows:" in capsys.readouterr().out
