"""Looking at an object computes nothing and raises nothing: unfitted, fitted, loaded, unpickled."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from classifiers import image_classifier

import featx
from featx import FeatureExtractor, HeadSearchCV, ImageClassifier
from featx.finetune import FineTuner
from featx.stores.memory import MemoryStore

SMALL: dict[str, Any] = {
    "pretrained": False, "cut": "last", "pool": "avg", "resize": "crop", "heads": ["ridge"],
    "n_trials": 1, "cv": 2, "random_state": 0, "runtime": "torch",
}  # fmt: skip


class CountingStore(MemoryStore):
    """A store that counts its reads and writes."""

    calls = 0

    def read(self, *args: Any) -> Any:
        self.calls += 1
        return super().read(*args)

    def append(self, *args: Any, **more: Any) -> Any:
        self.calls += 1
        return super().append(*args, **more)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageClassifier, Path]:
    import numpy as np

    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) // (1 + k % 2) for k in range(16)]
    clf = image_classifier("test_resnet", **SMALL, store=CountingStore())
    clf.fit_with_test(images, ["a", "b"] * 8)
    return clf, clf.save(tmp_path_factory.mktemp("model") / "m.featx")


def look(thing: Any) -> None:
    """Everything that a notebook, a debugger or a curious person does."""
    for name in dir(thing):
        hasattr(thing, name)
    inspect.getmembers(thing)
    assert type(thing).__name__ in repr(thing)
    if hasattr(thing, "_repr_html_"):
        assert "<" in thing._repr_html_()
    copy.copy(thing)


@pytest.mark.parametrize("kind", [ImageClassifier, FeatureExtractor, HeadSearchCV, FineTuner])
def test_an_unfitted_estimator_can_be_looked_at(kind: type) -> None:
    look(kind())
    pickle.loads(pickle.dumps(kind()))
    copy.deepcopy(kind())


def test_a_fitted_classifier_can_be_looked_at_and_nothing_is_computed(
    fitted: tuple[ImageClassifier, Path],
) -> None:
    clf, _ = fitted
    before = clf.store.calls
    look(clf)
    assert clf.store.calls == before
    look(clf.model_)
    look(clf.record_)


@pytest.mark.parametrize("how", ["loaded", "unpickled", "copied"])
def test_a_classifier_of_another_process_can_be_looked_at(
    fitted: tuple[ImageClassifier, Path], how: str
) -> None:
    clf, path = fitted
    loaded = featx.load(path)
    thing = {
        "loaded": lambda: loaded,
        "unpickled": lambda: pickle.loads(pickle.dumps(loaded)),
        "copied": lambda: copy.deepcopy(loaded),
    }[how]()
    look(thing)
    assert thing.classes_.tolist() == clf.classes_.tolist()
    with pytest.raises(AttributeError, match="absent"):
        _ = thing.study_


OTHERS: dict[str, Callable[[ImageClassifier, Path], Any]] = {
    "images": lambda clf, _: clf._fitted.images,
    "extraction": lambda clf, _: clf.extract(clf._fitted.images),
    "blocks": lambda clf, _: clf.extract(clf._fitted.images).blocks,
    "spec": lambda clf, _: next(iter(clf.specs_.values())),
    "evaluation": lambda clf, _: clf.evaluation_,
    "record": lambda clf, _: clf.record_,
    "model": lambda clf, _: clf.model_,
    "report": lambda clf, _: featx.report(clf),
    "check": lambda clf, _: featx.check(clf._fitted.images),
    "predictor": lambda _, path: featx.Predictor(path, runtime="torch"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_public_object_can_be_looked_at_compared_and_pickled(
    name: str, fitted: tuple[ImageClassifier, Path]
) -> None:
    thing = OTHERS[name](*fitted)
    look(thing)
    assert len(repr(thing)) < 10_000
    assert isinstance(thing == copy.copy(thing), bool)
    assert copy.deepcopy(thing) is not None
    look(pickle.loads(pickle.dumps(thing)))


def test_a_pickle_of_blocks_holds_the_features_and_a_copy_does_not_read_them(
    fitted: tuple[ImageClassifier, Path],
) -> None:
    clf, _ = fitted
    blocks = clf.extract(clf._fitted.images).blocks
    calls = clf.store.calls
    copies = copy.copy(blocks), copy.deepcopy(blocks)
    assert clf.store.calls == calls
    for other in (*copies, pickle.loads(pickle.dumps(blocks))):
        assert {name: rows.tolist() for name, rows in other.items()} == {
            name: rows.tolist() for name, rows in blocks.items()
        }
