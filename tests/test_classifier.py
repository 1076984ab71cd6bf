"""ImageClassifier: the contract that scikit-learn's own checks cannot hold it to, on real pixels."""

from __future__ import annotations

import hashlib
import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import image_classifier
from PIL import Image
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.svm import SVC

import featx
from featx import FeatureExtractor, ImageClassifier
from featx.exceptions import (
    DataError,
    ImageError,
    ImageWarning,
    LabelError,
    ModelFileError,
    TooManyBadImagesError,
)

TINY: dict[str, Any] = {
    "backbone": "test_resnet",
    "pretrained": False,
    "runtime": "torch",
    "n_trials": 2,
    "cut": None,
    "pool": "avg",
    "resize": "crop",
    "heads": ["logistic"],
    "cv": 3,
    "random_state": 0,
}
"""A network of a few thousand random weights: enough to tell red pictures from blue ones."""


@pytest.fixture
def paths(class_folders: Path) -> list[str]:
    return [str(path) for path in sorted(class_folders.rglob("*.png"))]


@pytest.fixture
def labels(paths: list[str]) -> list[str]:
    return [Path(path).parent.name for path in paths]


@pytest.fixture
def fitted(paths: list[str], labels: list[str]) -> ImageClassifier:
    return image_classifier(**TINY).fit(paths, labels)


def test_paths_and_labels_are_learnt(fitted: ImageClassifier, paths: list[str], labels: list[str]) -> None:
    assert fitted.classes_.tolist() == ["blue", "red"]
    assert fitted.score(paths, labels) >= 0.9
    assert set(fitted.best_params_) >= {"head"}
    assert len(fitted.study_.trials) > 2


def test_a_folder_is_learnt_without_labels_beside_it(class_folders: Path) -> None:
    clf = image_classifier(**TINY).fit(class_folders)
    assert clf.classes_.tolist() == ["blue", "red"]
    assert sorted(set(clf.assignment_.values())) == ["train"]


def test_predict_is_the_argmax_of_predict_proba(fitted: ImageClassifier, paths: list[str]) -> None:
    proba = fitted.predict_proba(paths)
    assert proba.shape == (24, 2)
    np.testing.assert_allclose(proba.sum(1), 1, atol=1e-9)
    assert (fitted.classes_[proba.argmax(1)] == fitted.predict(paths)).all()
    assert ((fitted.decision_function(paths) > 0) == (fitted.predict(paths) == "red")).all()


def test_bytes_arrays_pil_and_paths_of_the_same_pixels_get_the_same_row(
    fitted: ImageClassifier, paths: list[str]
) -> None:
    picture = Image.open(paths[0])
    sources = [paths[0], Path(paths[0]), Path(paths[0]).read_bytes(), picture, np.asarray(picture)]
    proba = fitted.predict_proba(sources)
    np.testing.assert_allclose(proba, np.repeat(proba[:1], 5, axis=0), atol=1e-3)


def test_labels_keep_their_type(paths: list[str], labels: list[str]) -> None:
    numbers = np.array([7 if label == "red" else -1 for label in labels])
    clf = image_classifier(**TINY).fit(paths, numbers)
    assert clf.classes_.dtype.kind == "i"
    assert clf.classes_.tolist() == [-1, 7]
    booleans = image_classifier(**TINY).fit(paths, numbers > 0)
    assert booleans.classes_.dtype == bool


def test_a_second_fit_computes_nothing(paths: list[str], labels: list[str], fitted: ImageClassifier) -> None:
    assert fitted.n_computed_ == 24
    assert image_classifier(**TINY).fit(paths, labels).n_computed_ == 0


def test_renaming_every_file_computes_nothing(class_folders: Path, fitted: ImageClassifier) -> None:
    for path in sorted(class_folders.rglob("*.png")):
        path.rename(path.with_name(f"renamed-{path.name}"))
    assert image_classifier(**TINY).fit(class_folders).n_computed_ == 0


def test_new_images_alone_are_computed(
    class_folders: Path, fitted: ImageClassifier, picture: Callable[..., Image.Image]
) -> None:
    for number in range(5):
        picture(500 + number, tint=(90, -60, -60)).save(class_folders / "red" / f"new_{number}.png")
    assert image_classifier(**TINY).fit(class_folders).n_computed_ == 5


def test_another_input_size_is_a_new_space_and_the_message_says_so(
    paths: list[str], labels: list[str], fitted: ImageClassifier
) -> None:
    clf = image_classifier(**TINY, input_size=96).fit(paths, labels)
    assert clf.n_computed_ == 24
    assert any("input_size" in remark for remark in clf.remarks_)


def test_a_refit_forgets_the_first_fit(fitted: ImageClassifier, paths: list[str]) -> None:
    fitted.fit(paths, ["a", "b", "c"] * 8)
    assert fitted.classes_.tolist() == ["a", "b", "c"]
    assert fitted.predict_proba(paths).shape == (24, 3)


def test_an_unfitted_classifier_says_so(paths: list[str]) -> None:
    with pytest.raises(NotFittedError):
        image_classifier().predict(paths)


def test_clone_repr_and_params_round_trip(fitted: ImageClassifier) -> None:
    copy = clone(fitted)
    assert not hasattr(copy, "classes_")
    nested = ("extractor", "search", "fine_tuner")
    assert {name: value for name, value in copy.get_params().items() if name not in nested} == {
        name: value for name, value in fitted.get_params().items() if name not in nested
    }
    assert "test_resnet" in repr(copy)
    assert copy.set_params(n_trials=9).n_trials == 9


def test_a_pickled_classifier_predicts_the_same(fitted: ImageClassifier, paths: list[str]) -> None:
    twin = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(twin.predict_proba(paths), fitted.predict_proba(paths))


def test_it_works_in_cross_val_score(paths: list[str], labels: list[str]) -> None:
    scores = cross_val_score(image_classifier(**TINY), paths, labels, cv=2)
    assert scores.mean() >= 0.8


def test_the_extractor_works_in_pipelines_and_searches(paths: list[str], labels: list[str]) -> None:
    pipe = make_pipeline(FeatureExtractor("test_resnet", pretrained=False, runtime="torch", cut=1), SVC())
    assert cross_val_score(pipe, paths, labels, cv=2).mean() >= 0.8
    grid = GridSearchCV(pipe, {"svc__C": [1, 10]}, cv=2).fit(paths, labels)
    assert grid.best_score_ >= 0.8
    calibrated = CalibratedClassifierCV(pipe, cv=2).fit(paths, labels)
    assert calibrated.predict_proba(paths).shape == (24, 2)


def test_shuffled_labels_score_at_chance(
    paths: list[str], picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    pictures = [np.asarray(picture(seed)) for seed in range(200)]
    shuffled = np.random.default_rng(0).permutation(["a", "b"] * 100)
    clf = image_classifier(**TINY).fit_with_test(pictures, shuffled, test_size=0.5)
    accuracy = clf.evaluation_.metrics["accuracy"]
    assert accuracy.low <= 0.5 <= accuracy.high


def test_an_unreadable_picture_is_set_aside_and_listed(
    paths: list[str], labels: list[str], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("not a picture")
    with pytest.warns(ImageWarning, match=r"1 of 25 images cannot be used: .*bad\.jpg: text, not an image"):
        clf = image_classifier(**TINY).fit([*paths, str(bad)], [*labels, "red"])
    assert [skipped.name for skipped in clf.skipped_] == [str(bad)]
    assert clf.skipped_[0].label == "red"
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        clf.predict([str(bad)])


def test_too_many_unreadable_pictures_stop_the_fit(
    paths: list[str], labels: list[str], tmp_path: Path
) -> None:
    bad = []
    for number in range(3):
        bad.append(tmp_path / f"bad{number}.jpg")
        bad[-1].write_bytes(b"")
    with pytest.raises(TooManyBadImagesError, match=r"bad0\.jpg: empty file"):
        image_classifier(**TINY).fit([*paths, *bad], [*labels, *"rrr"])
    clf = image_classifier(**TINY, max_bad=0.5)
    with pytest.warns(ImageWarning):
        assert len(clf.fit([*paths, *bad], [*labels, *["red"] * 3]).skipped_) == 3


def test_lengths_that_differ_are_named(paths: list[str]) -> None:
    with pytest.raises(DataError, match="24 images but 3 labels"):
        image_classifier(**TINY).fit(paths, ["a", "b", "c"])


def test_one_class_alone_is_refused(paths: list[str]) -> None:
    with pytest.raises(LabelError, match="red"):
        image_classifier(**TINY).fit(paths, ["red"] * 24)


def test_an_unknown_label_cannot_be_scored(fitted: ImageClassifier, paths: list[str]) -> None:
    with pytest.raises(LabelError, match="green"):
        fitted.score(paths, ["green"] * 24)


def test_the_held_out_part_is_never_trained_on(class_folders: Path) -> None:
    clf = image_classifier(**TINY).fit_with_test(class_folders, test_size=0.25)
    parts = list(clf.assignment_.values())
    assert clf.evaluation_.n == parts.count("test") > 0
    assert clf.oof_evaluation_.n == parts.count("train")


def test_a_saved_model_predicts_the_same_without_cache_and_training_data(
    fitted: ImageClassifier, paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, labels = fitted.predict_proba(paths), fitted.predict(paths)
    fitted.save(tmp_path / "m.featx")
    monkeypatch.setenv("FEATX_CACHE", str(tmp_path / "another-cache"))
    loaded = featx.load(tmp_path / "m.featx")
    np.testing.assert_allclose(loaded.predict_proba(paths), expected, atol=2e-3)  # a float16 step of a row
    assert loaded.predict(paths).tolist() == labels.tolist()
    assert loaded.classes_.dtype == fitted.classes_.dtype
    assert loaded.best_params_ == fitted.best_params_
    assert not (tmp_path / "another-cache").exists()


def test_a_loaded_model_predicts_from_several_threads(
    fitted: ImageClassifier, paths: list[str], tmp_path: Path
) -> None:
    loaded = featx.load(fitted.save(tmp_path / "m.featx"))
    expected = loaded.predict_proba(paths)
    results: list[Any] = [None] * 4

    def work(place: int) -> None:
        results[place] = loaded.predict_proba(paths)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_a_tampered_model_file_is_refused(fitted: ImageClassifier, tmp_path: Path) -> None:
    path = fitted.save(tmp_path / "m.featx")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelFileError):
        featx.load(path)


def test_sample_weights_reach_the_heads(paths: list[str], labels: list[str]) -> None:
    weights = np.ones(24)
    clf = image_classifier(**TINY).fit(paths, labels, sample_weight=weights)
    assert clf.classes_.tolist() == ["blue", "red"]


def test_evaluating_training_images_is_said(class_folders: Path) -> None:
    clf = image_classifier(**TINY).fit_with_test(class_folders, test_size=0.25)
    paths = sorted(class_folders.rglob("*.png"))
    of_part = {part: [p for p in paths if clf.assignment_[digest(p)] == part] for part in ("train", "test")}
    with pytest.warns(
        ImageWarning, match=rf"trained on {len(of_part['train'])} of these {len(paths)} images"
    ):
        clf.evaluate(class_folders)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clf.evaluate([str(p) for p in of_part["test"]], [p.parent.name for p in of_part["test"]])


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
