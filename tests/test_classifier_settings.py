"""Parameters of the classifier and of its nested estimators: shared, checked, saved and restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import image_classifier
from sklearn.model_selection import GridSearchCV

import featx
from featx import FeatureExtractor, HeadSearchCV, ImageClassifier
from featx.classifier.parts import ONLY_AFTER_FIT
from featx.classifier.settings import LOCAL, SHARED, restore_params, saved_params
from featx.exceptions import FeatxWarning, UsageError
from featx.finetune import Phase

OTHER_VALUES: dict[str, Any] = {
    "cut": ["blocks.4", "last"],
    "input_size": (96, 128),
    "view": range(3),
    "background": (0, 0, 0),
    "class_weight": {0: 1.0, 3: 2.5},
    "grid": [{"head": "ridge", "ridge__alpha": 1.0, "scaling": "none"}],
    "phases": (Phase(trainable="head", epochs=1), Phase(epochs=2, lr=1e-4)),
    "scoring": "macro_f1",
    "pruner": None,
    "unfreeze": "layer3",
    "fine_tune": "auto",
    "random_state": 7,
}
"""Values for parameters whose type cannot be told from the default."""


def other_value(name: str, value: Any) -> Any:
    """Another value than the default, of its type."""
    inner = name.rpartition("__")[2]
    if inner in OTHER_VALUES:
        return OTHER_VALUES[inner]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 2
    return f"{value}-changed"


def kept_names() -> list[str]:
    names = []
    for name in ImageClassifier().get_params(deep=True):
        outer, _, inner = name.partition("__")
        if name not in SHARED and name not in LOCAL and not (inner and inner in SHARED[outer][1]):
            names.append(name)
    return sorted(names)


@pytest.mark.parametrize("name", kept_names())
def test_every_parameter_that_is_not_of_one_machine_survives_saving(name: str) -> None:
    clf = ImageClassifier()
    value = other_value(name, clf.get_params()[name])
    clf.set_params(**{name: value})
    plain, left_out = saved_params(clf)
    assert not left_out
    other = ImageClassifier()
    restore_params(other, plain)
    assert other.get_params()[name] == value
    assert type(other.get_params()[name]) is type(value)


def test_a_parameter_is_shared_by_the_signature_of_both() -> None:
    own = ImageClassifier().get_params(deep=False)
    for nested, (kind, shared) in SHARED.items():
        assert set(shared) <= set(own) & set(kind().get_params(deep=False)), nested


@pytest.mark.parametrize("name", ["extractor__cut", "search__n_trials", "fine_tuner__random_state"])
def test_a_shared_parameter_of_a_nested_estimator_is_refused(name: str) -> None:
    clf = ImageClassifier().set_params(**{name: 5})
    with pytest.raises(UsageError, match=f"{name}=5 would be ignored.*ImageClassifier"):
        clf.fit([np.zeros((8, 8, 3), np.uint8)] * 4, ["a", "b"] * 2)


def test_a_nested_estimator_of_another_class_is_refused() -> None:
    clf = ImageClassifier(extractor=HeadSearchCV())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="pass a FeatureExtractor"):
        clf.fit([np.zeros((8, 8, 3), np.uint8)] * 4, ["a", "b"] * 2)


def test_nested_estimators_are_not_shared_between_classifiers() -> None:
    first, second = ImageClassifier(), ImageClassifier()
    first.set_params(extractor__decode="fast")
    assert second.extractor.decode == "exact"


def test_a_grid_search_reaches_nested_parameters(class_folders: Path) -> None:
    paths = sorted(class_folders.rglob("*.png"))
    labels = [path.parent.name for path in paths]
    clf = image_classifier(
        "test_resnet", pretrained=False, cut=None, pool="avg", resize="crop", heads=["ridge"], n_trials=1,
        cv=2, store="memory", random_state=0,
    )  # fmt: skip
    search = GridSearchCV(clf, {"extractor__input_size": [64, 96], "search__scalings": [("l2",)]}, cv=2)
    search.fit([str(path) for path in paths], labels)
    assert search.best_estimator_.specs_["last:avg:crop"].input_size[0] in (64, 96)
    assert search.best_params_["search__scalings"] == ("l2",)


def test_what_tuned_a_model_tunes_it_again_after_loading(class_folders: Path, tmp_path: Path) -> None:
    clf = image_classifier(
        "test_resnet", pretrained=False, cut="last", pool="avg", resize="crop", heads=["ridge"], n_trials=1,
        cv=2, scoring="macro_f1", store="memory", random_state=0, backbone_budget=5.0,
    ).fit_with_test(class_folders)  # fmt: skip
    loaded = featx.load(clf.save(tmp_path / "m.featx"))
    assert loaded.scoring == "macro_f1"
    assert loaded.scoring_ == clf.scoring_ == "macro_f1"
    assert loaded.backbone_budget == 5.0


def test_a_callable_is_not_saved_and_that_is_said(class_folders: Path, tmp_path: Path) -> None:
    def first_class(estimator: Any, X: Any, y: Any) -> float:
        return float((estimator.predict(X) == y).mean())

    clf = image_classifier(
        "test_resnet", pretrained=False, cut="last", pool="avg", resize="crop", heads=["ridge"], n_trials=1,
        cv=2, scoring=first_class, store="memory", random_state=0,
    ).fit(class_folders)  # fmt: skip
    with pytest.warns(FeatxWarning, match="scoring cannot be saved"):
        path = clf.save(tmp_path / "m.featx")
    loaded = featx.load(path)
    assert (loaded.scoring, loaded.scoring_) == ("auto", "first_class")


def test_every_documented_attribute_is_there_after_loading(class_folders: Path, tmp_path: Path) -> None:
    clf = image_classifier(
        "test_resnet", pretrained=False, cut=["layer2", "last"], pool="avg", resize="crop",
        heads=["ridge", "lda"], n_trials=1, cv=2, store="memory", random_state=0,
    ).fit_with_test(class_folders)  # fmt: skip
    loaded = featx.load(clf.save(tmp_path / "m.featx"))
    documented = [name for name in dir(type(clf)) if name.endswith("_") and not name.startswith("_")]
    assert len(documented) > 20
    for name in documented:
        assert hasattr(clf, name), name
        assert hasattr(loaded, name) == (name.removesuffix("_") not in ONLY_AFTER_FIT), name
    assert loaded.oof_proba_.tobytes() == clf.oof_proba_.tobytes()
    assert loaded.record_.to_dict() == clf.record_.to_dict()
    assert loaded.choice_ == clf.choice_
    assert loaded.evaluation_.to_dict() == clf.evaluation_.to_dict()
    assert isinstance(loaded.extractor, FeatureExtractor)
