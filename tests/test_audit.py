"""Checks of labelled images: copies, leaks, conflicting and suspicious labels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import cross_val_predict

from featx.audit import (
    AuditData,
    Finding,
    audit,
    find_conflicts,
    find_copies,
    find_leaks,
    find_suspicious_labels,
    first_copies,
    label_noise,
)
from featx.exceptions import DataError


def digests(*pictures: int) -> np.ndarray:
    """A digest for each number; equal numbers have equal digests."""
    return np.stack([np.full(32, number, np.uint8) for number in pictures])


def test_first_copies_are_positions_of_the_first_image_with_the_same_digest() -> None:
    assert first_copies(digests(5, 6, 5, 6, 5, 7)).tolist() == [0, 1, 0, 1, 0, 5]


def test_copies_are_found_and_named() -> None:
    found = find_copies(AuditData(["a", "b", "c", "d"], digests(1, 2, 1, 1)))
    assert found is not None
    assert (found.severity, found.indices, found.names, found.value) == ("warning", (2, 3), ("c", "d"), 2)
    assert "2 of 4 images are copies of others (same bytes): c; d" in found.sentence
    assert found.evidence == ("same bytes as a", "same bytes as a")
    assert found.beside == ((0,), (0,))


def test_a_test_image_that_is_also_trained_on_is_a_leak() -> None:
    names = ["a", "b", "c", "d", "e"]
    parts = np.array(["train", "train", "test", "test", "train"])
    found = find_leaks(AuditData(names, digests(1, 2, 1, 1, 2), parts=parts))
    assert found is not None
    assert (found.severity, found.indices, found.value) == ("error", (2, 3), 2)
    assert "2 test images have copies in an earlier part (same bytes)" in found.sentence


def test_copies_within_one_part_are_no_leak() -> None:
    parts = np.array(["test", "test", "train"])
    assert find_leaks(AuditData(list("abc"), digests(1, 1, 2), parts=parts)) is None


def test_a_picture_with_two_labels_is_a_conflict() -> None:
    data = AuditData(list("abcd"), digests(1, 2, 1, 2), np.array(["cat", "dog", "dog", "dog"]))
    found = find_conflicts(data)
    assert found is not None
    assert (found.severity, found.indices, found.value) == ("warning", (0, 2), 1)
    assert "1 image has several labels (copies or near copies): a is cat and c is dog." in found.sentence


def test_a_sentence_lists_five_names_and_escapes_them() -> None:
    names = [f"name\x1b{number}" for number in range(24)]
    found = find_copies(AuditData(names, digests(*[1] * 24)))
    assert found is not None
    assert "\x1b" not in found.sentence
    assert found.sentence.count("name") == 5
    assert "and 18 more" in found.sentence
    assert len(found.names) == 23


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2])
def test_flipped_labels_are_counted_and_named(share: float) -> None:
    X, y = load_digits(return_X_y=True)
    y = y.copy()
    rng = np.random.default_rng(0)
    flipped = rng.random(len(y)) < share
    y[flipped] = (y[flipped] + rng.integers(1, 10, flipped.sum())) % 10
    proba = cross_val_predict(
        LinearDiscriminantAnalysis(shrinkage=0.1, solver="lsqr"), X / 16, y, cv=5, method="predict_proba"
    )
    data = AuditData([f"{number}.png" for number in range(len(y))], labels=y, oof_proba=proba)
    noise = label_noise(y, proba)
    assert noise.rate.low <= flipped.mean() <= noise.rate.high
    assert noise.ceiling >= 1 - flipped.mean() - 0.01
    found = find_suspicious_labels(data)
    assert found is not None
    assert found.value == noise.rate.value
    if not share:
        assert found.severity == "note"
        return
    assert found.severity == "warning"
    assert flipped[list(found.indices)].mean() > 0.95
    assert found.suggestions[0] == f"relabel:{proba[found.indices[0]].argmax()}"
    assert f"{found.names[0]} is {y[found.indices[0]]}, predicted" in found.sentence


def test_a_prediction_that_is_mostly_wrong_does_not_judge_labels() -> None:
    X, y = load_digits(return_X_y=True)
    noisy = X[:, 20:28] + np.random.default_rng(0).normal(scale=5, size=(len(X), 8))
    proba = cross_val_predict(LinearDiscriminantAnalysis(), noisy, y, cv=5, method="predict_proba")
    assert 0.15 < (proba.argmax(axis=1) == y).mean() < 0.5
    found = find_suspicious_labels(AuditData(["x"] * len(y), labels=y, oof_proba=proba))
    assert found is not None
    assert found.severity == "note"
    assert "wrong more often than right, so it cannot judge labels" in found.sentence


def test_images_that_were_not_scored_are_left_out() -> None:
    proba = np.full((200, 2), np.nan)
    proba[:100] = [0.9, 0.1]
    assert label_noise(np.zeros(200, int), proba).n_anchors == 30


def test_too_few_predictions_limit_nothing() -> None:
    proba = np.tile([0.9, 0.1], (30, 1))
    assert label_noise(np.ones(30, int), proba).ceiling == 1.0


def test_confident_predictions_that_agree_are_not_suspicious() -> None:
    proba = np.tile([0.9, 0.1], (200, 1))
    assert find_suspicious_labels(AuditData(["x"] * 200, labels=np.zeros(200, int), oof_proba=proba)) is None
    with pytest.raises(DataError, match="200 labels"):
        label_noise(np.zeros(200, int), proba[:100])


def test_a_check_without_its_input_finds_nothing() -> None:
    assert audit(AuditData(list("abc"))) == ()


def test_findings_survive_json_in_the_order_of_the_table() -> None:
    data = AuditData(
        list("abcd"),
        digests(1, 2, 1, 2),
        np.array([0, 1, 1, 1]),
        np.array(["test", "test", "train", "test"]),
    )
    found = audit(data)
    assert [one.check for one in found] == ["leaks", "conflicts", "small_classes", "imbalance", "copies"]
    assert [Finding.from_dict(json.loads(json.dumps(one.to_dict()))) for one in found] == list(found)
