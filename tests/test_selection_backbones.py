"""Several backbones: they meet on a few images, and one goes on, or two side by side."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import image_classifier

import featx
from featx import FeatureExtractor, ImageClassifier
from featx.classifier.growth import grow
from featx.cli import main
from featx.exceptions import UsageError
from featx.images import load_images
from featx.selection.backbones import backbone_names, compare_backbones
from featx.selection.networks import gather, side_by_side

TINY: dict[str, Any] = {
    "pretrained": False, "runtime": "torch", "cut": "last", "pool": "avg", "resize": "crop",
    "heads": ["lda"], "n_trials": 1, "cv": 3, "n_repeats": 1, "n_jobs": 1, "random_state": 0,
}  # fmt: skip
NAMES = ["test_resnet", "test_efficientnet"]


def extractors(store: Any) -> dict[str, FeatureExtractor]:
    return {
        n: FeatureExtractor(n, pretrained=False, runtime="torch", n_jobs=1, store=store).fit() for n in NAMES
    }


def test_candidates_meet_on_the_same_images_and_costs_are_said_first(class_folders: Path) -> None:
    images = load_images(class_folders)
    codes = np.unique(images.labels, return_inverse=True)[1]
    said: list[str] = []
    found = compare_backbones(extractors(None), images, codes, n_all=1000, say=said.append)
    assert "all 1,000 images would take: test_resnet" in said[0]
    assert {one.name for one in found.scores} == set(NAMES)
    assert found.scores[0].leave_one_out >= found.scores[1].leave_one_out
    assert found.winners[0] == found.scores[0].name
    assert all(one.n == 24 and one.minutes > 0 for one in found.scores)
    assert np.isfinite([[one.log_me, one.h_score] for one in found.scores]).all()
    assert json.loads(json.dumps(found.to_dict()))["winners"] == list(found.winners)


def test_a_budget_of_nothing_leaves_one(class_folders: Path) -> None:
    images = load_images(class_folders)
    codes = np.unique(images.labels, return_inverse=True)[1]
    found = compare_backbones(extractors(None), images, codes, budget_s=1e-9)
    assert len(found.scores) == 1
    assert found.together is None
    assert "do not fit" in " ".join(found.sentences())


def test_names_are_kept_once_and_auto_is_what_is_here() -> None:
    assert backbone_names(["a", "b", "a"]) == ("a", "b")
    assert backbone_names("x") == ("x",)
    assert "tf_efficientnet_lite0.in1k" in backbone_names("auto")
    with pytest.raises(UsageError, match="names no network"):
        backbone_names([])


def test_two_networks_give_their_blocks_side_by_side(class_folders: Path) -> None:
    images = load_images(class_folders)
    alone = extractors("memory")
    rows = {name: own.extract(images.sources).blocks["last:avg:crop"] for name, own in alone.items()}
    both = side_by_side(list(extractors("memory").values()))
    assert list(both.specs_) == ["last:avg:crop", "test_efficientnet/last:avg:crop"]
    found = both.extract([*images.sources, b"no picture"], on_error="skip")
    assert found.kept.tolist() == list(range(24))
    assert len(found.skipped) == 1
    np.testing.assert_array_equal(found.blocks["test_efficientnet/last:avg:crop"], rows["test_efficientnet"])
    only = gather(
        {"test_efficientnet/last:avg:crop": both.specs_["test_efficientnet/last:avg:crop"]}, both.cards_,
        {"store": "memory", "runtime": "torch"},
    )  # fmt: skip
    assert [card.name for card in only.cards_] == ["test_efficientnet"]


@pytest.fixture
def of_two(class_folders: Path, monkeypatch: pytest.MonkeyPatch) -> ImageClassifier:
    """A classifier that uses both networks: what it would choose where both are better than one."""
    from featx.selection import backbones

    def both(*args: Any, **kwargs: Any) -> Any:
        return dataclasses.replace(compare_backbones(*args, **kwargs), winners=tuple(NAMES))

    monkeypatch.setattr(backbones, "compare_backbones", both)
    names = ["last:avg:crop", "test_efficientnet/last:avg:crop"]
    clf = image_classifier(NAMES, **TINY, representations=[names]).fit_with_test(class_folders)
    assert list(clf.specs_) == names
    return clf


def test_the_best_of_several_is_fitted_saved_and_loaded(class_folders: Path, tmp_path: Path) -> None:
    said: list[str] = []
    clf = image_classifier(NAMES, **TINY, callback=lambda event: said.append(event.message))
    clf.fit_with_test(class_folders)
    assert clf.backbone_comparison_ is not None
    assert [card.name for card in clf.cards_] == list(clf.backbone_comparison_.winners)
    assert any("images would take" in text for text in said)
    loaded = featx.load(clf.save(tmp_path / "m.featx")).set_params(extractor__runtime="torch")
    assert (loaded.predict(class_folders) == clf.predict(class_folders)).all()
    with pytest.raises(UsageError, match="checkpoint holds the weights of one network"):
        image_classifier(NAMES, **TINY, checkpoint="w.pt").fit(class_folders)


def test_two_backbones_predict_grow_and_travel_in_one_file(
    of_two: ImageClassifier, class_folders: Path, tmp_path: Path, six_more: Path
) -> None:
    proba = of_two.predict_proba(class_folders)
    loaded = featx.load(of_two.save(tmp_path / "m.featx"), store=None).set_params(
        extractor__runtime="torch", n_jobs=1
    )
    np.testing.assert_allclose(loaded.predict_proba(class_folders), proba, atol=5e-3)
    assert of_two.advice().n == sum(part == "train" for part in of_two.assignment_.values())
    grown, growth = grow(loaded, load_images(six_more))
    assert growth.n_added == 6
    assert [card.name for card in grown.cards_] == NAMES


def test_featx_fit_takes_several_backbones(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "fit", str(class_folders), "-o", str(tmp_path / "m.featx"), "--backbone", ",".join(NAMES),
        "--random-weights", "--runtime", "torch", "--cut", "last", "--pool", "avg", "--resize", "crop",
        "--heads", "lda", "--trials", "0", "--cv", "3", "--json",
    ]  # fmt: skip
    assert main([*argv, "--dry-run"]) == 0
    assert set(json.loads(capsys.readouterr().out)["backbones"]) == set(NAMES)
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)["backbones"]
    assert {one["name"] for one in found["scores"]} == set(NAMES)
