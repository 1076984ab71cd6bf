"""Which label follows from probabilities: stored apart, changed without a fit, and harmless by default."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import image_classifier
from PIL import Image

import featx
from featx import ImageClassifier
from featx.cli import main
from featx.evaluation import evaluate, make_decision
from featx.exceptions import LabelError, UsageError
from featx.images import load_images
from featx.selection.imbalance import fit_decision

TINY: dict[str, Any] = {
    "backbone": "test_resnet", "pretrained": False, "runtime": "torch", "cut": ["layer1", "last"],
    "pool": "avg", "resize": "crop", "heads": ["lda", "ridge"], "n_trials": 1, "cv": 3, "n_jobs": 1,
    "random_state": 0,
}  # fmt: skip
CHOICES: list[Any] = ["argmax", "balanced", {"rare": 4.0}, {"rare": 1e9, "usual": 0.5}]


@pytest.fixture(scope="module")
def pictures() -> tuple[list[np.ndarray], np.ndarray]:
    """Noisy tints of a class with 84 pictures and one with 16, which overlap."""
    rng = np.random.default_rng(0)
    rare = np.arange(100) % 6 == 0
    tints = rng.normal(0, 20, 100) + 25 * rare
    pixels = rng.integers(60, 120, (100, 40, 40, 3)) + tints[:, None, None, None] * [1, 0, -1]
    return list(pixels.clip(0, 255).astype(np.uint8)), np.where(rare, "rare", "usual")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The pictures go through the network once."""
    return str(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def fitted(pictures: tuple[list[np.ndarray], np.ndarray], store: str) -> ImageClassifier:
    return image_classifier(**TINY, store=store).fit_with_test(*pictures)


@pytest.mark.parametrize("decide", ["auto", *CHOICES], ids=str)
def test_labels_follow_from_probabilities_that_do_not_change(
    fitted: ImageClassifier, pictures: tuple[list[np.ndarray], np.ndarray], decide: Any
) -> None:
    clf, images = fitted, pictures[0]
    proba = clf.predict_proba(images)
    try:
        clf.set_params(decide=decide)  # no fit
        assert (clf.predict_proba(images) == proba).all()
        decided = proba * clf.decision_.weights
        answers = clf.predict(images)
        assert (answers == clf.classes_[decided.argmax(axis=1)]).all()
        assert ((clf.decision_function(images) > 0) == (answers == clf.classes_[1])).all()
    finally:
        clf.set_params(decide="auto")
    assert (clf.predict(images, decide=decide) == answers).all()  # for one call


def test_a_balanced_decision_and_costs_are_what_they_say(
    fitted: ImageClassifier, pictures: tuple[list[np.ndarray], np.ndarray]
) -> None:
    images = pictures[0]
    proba = fitted.predict_proba(images)
    known = fitted.model_.images
    n = np.bincount(known.codes[~known.is_test])
    assert fitted.classes_.tolist() == ["rare", "usual"]
    assert (fitted.predict(images, decide="argmax") == fitted.classes_[proba.argmax(1)]).all()
    rare = fitted.predict(images, decide="balanced") == "rare"
    assert (rare == (proba[:, 0] / n[0] > proba[:, 1] / n[1])).all()
    assert rare.sum() > (fitted.predict(images, decide="argmax") == "rare").sum()
    costly = fitted.predict(images, decide={"rare": 4})
    assert ((costly == "rare") == (4 * proba[:, 0] > proba[:, 1])).all()
    assert (fitted.predict(images, decide={"usual": 1e12}) == "usual").all()


def test_a_decision_is_saved_and_can_be_changed_after_loading(
    fitted: ImageClassifier, pictures: tuple[list[np.ndarray], np.ndarray], tmp_path: Path
) -> None:
    images = pictures[0]
    for decide in CHOICES:
        try:
            loaded = featx.load(fitted.set_params(decide=decide).save(tmp_path / "m.featx"))
            assert loaded.decision_ == fitted.decision_
            assert (loaded.predict(images) == fitted.predict(images)).all()
            fitted.set_params(decide="auto")
            assert loaded.set_params(decide="auto").decision_ == fitted.decision_
        finally:
            fitted.set_params(decide="auto")


@pytest.mark.parametrize(
    ("decide", "error", "message"),
    [
        ({"common": 2.0}, LabelError, "'common', which is not a class; give costs of 'rare', 'usual'"),
        ({"rare": 0}, UsageError, "the cost of 'rare' is 0; give a number above 0"),
        ({"rare": float("nan")}, UsageError, "give a number above 0"),
        ("median", UsageError, "decide 'median' is not known; choose"),
        (3, UsageError, "decide 3 is not known"),
    ],
)
def test_what_is_no_decision_is_refused_before_the_work(
    fitted: ImageClassifier,
    pictures: tuple[list[np.ndarray], np.ndarray],
    decide: Any,
    error: Any,
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        fitted.predict(pictures[0], decide=decide)
    unfit = image_classifier(**{**TINY, "backbone": "no_such_network"}, decide=decide)
    with pytest.raises(error, match=message):
        unfit.fit(*pictures)


def test_an_attribute_of_an_unknown_decision_is_absent(fitted: ImageClassifier) -> None:
    try:
        fitted.set_params(decide="median")
        assert not hasattr(fitted, "model_")
        assert not hasattr(fitted, "decision_")
        assert hasattr(fitted, "classes_")
    finally:
        fitted.set_params(decide="auto")


def test_the_test_part_is_scored_by_the_decision(
    pictures: tuple[list[np.ndarray], np.ndarray], store: str
) -> None:
    plain, costly = (
        image_classifier(**TINY, store=store, decide=decide).fit_with_test(*pictures)
        for decide in ("argmax", {"rare": 1e9})
    )
    assert costly.evaluation_.confusion[:, 1].sum() == 0  # all are predicted as rare
    assert costly.oof_evaluation_.confusion[:, 1].sum() == 0
    assert costly.evaluation_["log_loss"] == plain.evaluation_["log_loss"]
    assert costly.evaluation_["ece"] == plain.evaluation_["ece"]
    points = {point.name: point for point in plain.operating_points_}
    assert points["argmax"].used
    assert not points["balanced"].used
    assert points["argmax"].accuracy == plain.evaluation_["accuracy"]
    assert points["argmax"].macro_f1 == pytest.approx(plain.evaluation_["macro_f1"])
    assert [point.name for point in costly.operating_points_ if point.used] == ["costs"]


def test_class_weights_change_the_decision_and_not_what_probabilities_mean(
    pictures: tuple[list[np.ndarray], np.ndarray], store: str
) -> None:
    images, labels = pictures
    weighted = image_classifier(**{**TINY, "heads": ["ridge"]}, class_weight="balanced", store=store)
    weighted.fit(images, labels)
    shares = [np.mean(labels == label) for label in weighted.classes_]
    np.testing.assert_allclose(weighted.oof_proba_.mean(axis=0), shares, atol=0.05)  # and not one half
    assert weighted.decision_.weights[0] / weighted.decision_.weights[1] == pytest.approx(
        np.divide(*shares[::-1])
    )
    rare = weighted.predict(images) == "rare"
    assert rare.sum() > (weighted.predict(images, decide="argmax") == "rare").sum()


def test_the_command_line_takes_and_shows_decisions(
    tmp_path: Path, pictures: tuple[list[np.ndarray], np.ndarray], capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (pixels, label) in enumerate(zip(*pictures, strict=True)):
        (tmp_path / "set" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "set" / label / f"{number}.png")
    model = str(tmp_path / "m.featx")
    tiny = [
        "--backbone",
        "test_resnet",
        "--random-weights",
        "--runtime",
        "torch",
        "--cut",
        "last",
        "--pool",
        "avg",
    ]
    options = [*tiny, "--resize", "crop", "--heads", "ridge", "--trials", "0", "--cv", "3"]
    assert main(["fit", str(tmp_path / "set"), "-o", model, "--decide", "rare=2.5", *options]) == 0
    shown = capsys.readouterr().out
    assert "costs (used)" in shown
    assert all(name in shown for name in ("argmax ", "balanced ", "macro F1"))

    def labels(*more: str) -> list[str]:
        capsys.readouterr()
        assert main(["predict", model, str(tmp_path / "set"), *more]) == 0
        return [row["label"] for row in csv.DictReader(capsys.readouterr().out.splitlines())]

    assert set(labels("--decide", "rare=1000000000")) == {"rare"}
    assert labels() == labels("--decide", "rare=2.5")
    assert labels("--decide", "balanced").count("rare") > labels("--decide", "argmax").count("rare")
    assert main(["predict", model, str(tmp_path / "set"), "--decide", "blue=2"]) == 1
    assert "'blue', which is not a class" in capsys.readouterr().err
    assert main(["evaluate", model, str(tmp_path / "set"), "--decide", "median"]) == 2
    assert "'median' is not known" in capsys.readouterr().err


def test_the_probability_beside_a_label_is_its_own(
    fitted: ImageClassifier, pictures: tuple[list[np.ndarray], np.ndarray]
) -> None:
    proba = np.array([[0.3, 0.7], [0.1, 0.9]])
    decision = make_decision({"rare": 3}, ["rare", "usual"], [1, 5])
    found = evaluate([0, 1], proba, [0, 1], decision=decision, abstain_below=0.5, n_boot=10)
    assert found["accuracy"] == 1.0
    assert found.coverage == 0.5  # the first label is predicted with a probability of 0.3
    assert found["log_loss"] == evaluate([0, 1], proba, [0, 1], n_boot=10)["log_loss"]


# The decision that is found ------------------------------------------------------------------------------


def overlapping(n: int, shares: list[float], skill: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """True classes, and their exact posterior probabilities given one noisy measurement for each class."""
    rng = np.random.default_rng(seed)
    y = rng.choice(len(shares), n, p=shares)
    evidence = rng.normal(size=(n, len(shares))) + skill * np.eye(len(shares))[y]
    raw = np.exp(skill * evidence + np.log(shares))
    return y, raw / raw.sum(axis=1, keepdims=True)


def test_rare_classes_are_favoured_where_macro_f1_gains_more_than_accuracy_loses() -> None:
    y, proba = overlapping(2000, [0.8, 0.15, 0.05], 1.5)
    found = fit_decision(proba, y)
    assert found.kept
    assert 0 < found.tau < 1
    assert found.gain > max(found.error, -found.accuracy)
    fresh, its = overlapping(20_000, [0.8, 0.15, 0.05], 1.5, seed=1)
    before, after = (evaluate(fresh, its, range(3), decision=own, n_boot=2) for own in (None, found.decision))
    assert after["macro_f1"] > before["macro_f1"] + 0.01
    assert after["accuracy"] > before["accuracy"] - 0.02


def test_a_class_that_cannot_be_told_from_another_changes_nothing() -> None:
    """As in a set whose rare class has copies of a usual one: to favour it costs accuracy and F1 of both."""
    y, proba = overlapping(1500, [0.55, 0.45], 2.0)
    twin = (np.random.default_rng(1).random(1500) < 0.1) & (y == 0)
    y = np.where(twin, 2, y)
    proba = np.column_stack([0.9 * proba[:, 0], proba[:, 1], 0.1 * proba[:, 0]])
    found = fit_decision(proba, y)
    assert not found.kept
    assert found.decision.is_argmax


def test_what_is_chance_is_not_kept() -> None:
    kept = [
        fit_decision(proba, y).kept
        for seed in range(20)
        for y, proba in [overlapping(60, [0.85, 0.15], 0.0, seed)]  # nothing can be learnt
    ]
    assert sum(kept) <= 3


def test_a_requested_metric_is_served_at_the_cost_of_accuracy() -> None:
    y, proba = overlapping(2000, [0.9, 0.1], 1.0)
    found = fit_decision(proba, y, scoring="balanced_accuracy")
    assert found.kept
    assert found.gain > 0.1
    assert found.accuracy < 0
    assert found.tau > fit_decision(proba, y).tau


def test_images_of_one_group_are_one_piece_of_evidence() -> None:
    y, proba = overlapping(40, [0.8, 0.2], 1.2)
    copies = np.repeat(np.arange(40), 25)
    assert fit_decision(proba[copies], y[copies], groups=copies).error > 3 * (
        fit_decision(proba[copies], y[copies]).error
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::featx.exceptions.ImageWarning")  # 75 images have two labels
def test_the_default_does_no_harm_on_overlapping_skin_lesions(real_data: Path) -> None:
    images = load_images(real_data / "skin6")
    chosen = np.random.default_rng(0).permutation(len(images))[:400]
    train, test = (images.select(part) for part in (chosen[:200], chosen[200:]))
    accuracy = {}
    for scoring in ("auto", "accuracy"):
        clf = ImageClassifier(
            cut=None, pool="avg", resize="crop", heads=["ridge"], n_trials=0, scoring=scoring, random_state=0
        ).set_params(search__grid="coarse")
        accuracy[scoring] = clf.fit(train).evaluate(test)["accuracy"]
    assert accuracy["auto"] >= accuracy["accuracy"] - 0.03
