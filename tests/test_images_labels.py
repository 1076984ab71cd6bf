"""Labels in other spellings: what is matched, what is warned of, what is refused."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest

from featx.images import match_labels
from featx.images.labels import doubtful_labels

NFD = unicodedata.normalize("NFD", "café")


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ([0, 1, 1], ["0", "1"], ["0", "1", "1"]),
        (["0", "1"], [0, 1], [0, 1]),
        ([0.0, 1.0], ["0", "1"], ["0", "1"]),
        ([0, 1], [0.0, 1.0], [0.0, 1.0]),
        ([0, 1, 2], ["000", "001", "002"], ["000", "001", "002"]),
        ([True, False], ["True", "False"], ["True", "False"]),
        (["Cat", "DOG"], ["cat", "dog"], ["cat", "dog"]),
        ([NFD, "dog"], ["café", "dog"], ["café", "dog"]),
        ([" cat", "dog\u200b"], ["cat", "dog"], ["cat", "dog"]),
        (["STRASSE"], ["Straße", "Weg"], ["Straße"]),
        (["cat", "Dog"], ["cat", "dog"], ["cat", "dog"]),
        ([3, 0], ["0", "1"], ["3", "0"]),  # a new class beside texts is a text, too
    ],
)
def test_a_label_that_is_written_otherwise_is_matched_one_to_one(labels, classes, expected) -> None:
    found, said = match_labels(np.array(labels), np.array(classes))
    assert found.tolist() == expected
    assert [type(value) for value in found.tolist()] == [type(value) for value in expected]
    assert said.startswith("labels are read as the classes that are known: ")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["cat", "dog"], ["cat", "dog"]),
        ([0, 1], [0, 1]),
        (["Cat", "CAT"], ["cat", "dog"]),  # two labels for one class
        (["cat"], ["Cat", "CAT"]),  # two classes for one label
        (["cat", "Cat"], ["cat", "dog"]),  # the class is taken by a label that is written alike
        (["bird"], ["cat", "dog"]),
        (["1"], ["01", "001"]),
        ([True], [1, 0]),
    ],
)
def test_what_is_the_same_or_ambiguous_stays_as_it_is(labels, classes) -> None:
    found, said = match_labels(np.array(labels), np.array(classes))
    assert (found.tolist(), said) == (labels, "")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["Cat", "cat", "dog"], "'Cat' (1 images) and 'cat' (1 images) differ only by case"),
        (["ÄPFEL", "äpfel"], "differ only by case"),
        (["a", "b", "nan"], "1 images have the label 'nan'"),
        (["a", "b", "None", "None"], "2 images have the label 'None'"),
        (["a", "N/A"], "'N/A'"),
    ],
)
def test_labels_that_look_like_a_mistake_are_named(labels, message) -> None:
    assert message in doubtful_labels(np.array(labels))[0]


@pytest.mark.parametrize("labels", [["cat", "dog"], [1, 2], [0.5, 1.0], ["Nancy", "Anna"]])
def test_ordinary_labels_are_not_remarked(labels) -> None:
    assert doubtful_labels(np.array(labels)) == []
