"""Fine-tuning within ImageClassifier: judged, saved, loaded, and a backbone again, on a tiny real network."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import image_classifier
from tinted import pictures

import featx
from featx import FeatureExtractor, ImageClassifier
from featx.backbones.state import STATE
from featx.classifier.growth import grow
from featx.classifier.reading import OF_NETWORK
from featx.exceptions import ModelFileError, UsageError
from featx.extractor import Progress
from featx.files import MODEL_FORMAT, MODEL_KIND, MODEL_MEMBERS, read_archive, write_archive
from featx.finetune import Phase
from featx.images import load_images
from featx.stores.memory import MemoryStore

pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("one_torch_thread")

PHASES = (Phase(trainable="head", epochs=0), Phase(epochs=2, batch_size=16, lr=1e-3, warmup=0))
KEPT = {"unfreeze": 1, "phases": PHASES, "verdict": 0, "validation": 0}
"""Without a verdict whatever was trained is kept, so that a handful of pictures will do."""


def classifier(**params: Any) -> ImageClassifier:
    settings = {
        "backbone": "test_resnet", "pretrained": False, "runtime": "torch", "precision": "fp32",
        "input_size": 64, "n_trials": 1, "cut": None, "pool": "avg", "resize": "crop",
        "heads": ["logistic"], "cv": 3, "random_state": 0, "store": MemoryStore(),
        "fine_tune": True, "tuning": KEPT,
    }  # fmt: skip
    return image_classifier(**(settings | params))


@pytest.fixture(scope="module")
def tuned() -> ImageClassifier:
    x, y = pictures()
    return classifier().fit(x, y)


@pytest.fixture(scope="module")
def saved(tuned: ImageClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned.save(tmp_path_factory.mktemp("model") / "pets.featx")


def test_a_kept_network_predicts_instead_of_the_probe(tuned: ImageClassifier) -> None:
    x, y = pictures(10, seed=1)
    assert tuned.fine_tune_.kept
    proba = tuned.predict_proba(x)
    assert np.allclose(proba, tuned.network_.predict_proba(x), atol=5e-3)  # rows are kept in float16
    assert (tuned.predict(x) == tuned.classes_[proba.argmax(1)]).all()
    decisions = tuned.decision_function(x)
    assert np.allclose(1 / (1 + np.exp(-decisions)), proba[:, 1])
    assert tuned.evaluate(x, y).metrics["accuracy"].value == (tuned.predict(x) == y).mean()


def test_its_rows_are_kept_in_a_space_of_their_own(tuned: ImageClassifier) -> None:
    x, _ = pictures(6, seed=2)
    assert tuned.extract(x).computed == 6
    assert tuned.extract(x).computed == 0
    network = tuned.network_
    assert network.weights != tuned.card_.weights
    assert tuned.store.row_shape(network.feature_spec.key) == (network.card.num_features,)


def test_the_verdict_keeps_the_probe_and_says_why() -> None:
    x, y = pictures()
    events: list[Progress] = []
    idle = (PHASES[0], PHASES[1].replace(lr=0))  # its head stays at zeros, so it is right for one class
    tuning = {"unfreeze": 1, "head": "linear", "phases": idle}
    clf = classifier(tuning=tuning, callback=events.append).fit(x, y)
    report = clf.fine_tune_
    assert (report.tried, report.kept, clf.network_) == (True, False, None)
    assert "probe" in report.reason
    assert f"on {report.verdict.n} held-out" in report.reason
    assert clf.predict_proba(x).shape == (40, 2)
    told = [event.message for event in events if event.message]
    size = next(i for i, text in enumerate(told) if "kept in the store" in text)
    phase = next(i for i, text in enumerate(told) if text.startswith("phase 2 of 2"))
    assert size < phase
    assert any("parameters, lr" in text for text in told)


def test_auto_does_not_try_what_cannot_win() -> None:
    x, y = pictures()
    clf = classifier(fine_tune="auto", tuning={}).fit(x, y)
    report = clf.fine_tune_
    assert (report.tried, report.kept, clf.network_) == (False, False, None)
    assert "wrong on 0 of the 40 training images" in report.reason


def test_auto_tries_where_a_network_could_win_and_advice_knows_what_it_brought() -> None:
    x, _ = pictures(80)
    y = np.random.default_rng(1).permutation(["blue", "red"] * 40)
    clf = classifier(fine_tune="auto", tuning={"unfreeze": 1, "phases": PHASES, "n_verdicts": 1}).fit(x, y)
    assert clf.fine_tune_.tried
    [option] = [option for option in clf.advice().options if option.action == "fine_tune"]
    assert option.measured
    assert option.what == "layer3"
    assert option.gain.value == pytest.approx(clf.fine_tune_.verdict.gain.value)


def test_nobody_asked_nothing_is_told() -> None:
    x, y = pictures()
    clf = classifier(fine_tune=False).fit(x, y)
    assert (clf.fine_tune_, clf.network_) == (None, None)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"fine_tune": "yes"}, "choose 'auto', True or False"),
        ({"tuning": {"backbone": "resnet18"}}, "Pass backbone to ImageClassifier"),
    ],
)
def test_what_cannot_be_meant_is_said_before_the_work(params: dict[str, Any], words: str) -> None:
    x, y = pictures(6)
    events: list[Progress] = []
    with pytest.raises(UsageError, match=words):
        classifier(callback=events.append, **params).fit(x, y)
    assert not events


def test_the_test_part_is_scored_by_what_predicts() -> None:
    x, y = pictures(60)
    clf = classifier().fit_with_test(x, y)
    test = [number for number, part in enumerate(_parts(clf, x)) if part == "test"]
    right = clf.predict([x[number] for number in test]) == y[test]
    assert clf.evaluation_.n == len(test)
    assert clf.evaluation_.metrics["accuracy"].value == right.mean()


def _parts(clf: ImageClassifier, x: list[np.ndarray]) -> list[str]:
    return [clf.assignment_[featx.images.image_digest(one).hex()] for one in x]


def test_it_is_saved_and_loaded_whole(tuned: ImageClassifier, saved: Path) -> None:
    x, _ = pictures(8, seed=3)
    loaded = featx.load(saved)
    assert np.allclose(loaded.predict_proba(x), tuned.predict_proba(x), atol=1e-3)
    assert loaded.fine_tune_ == tuned.fine_tune_
    assert np.allclose(pickle.loads(pickle.dumps(loaded)).predict_proba(x), loaded.predict_proba(x))


def test_a_head_of_two_layers_travels_too(tmp_path: Path) -> None:
    x, y = pictures()
    phases = (Phase(trainable="head", epochs=2, batch_size=16), Phase(epochs=0))
    clf = classifier(tuning=KEPT | {"head": "mlp", "phases": phases}).fit(x, y)
    loaded = featx.load(clf.save(tmp_path / "mlp.featx"))
    assert np.allclose(loaded.predict_proba(x), clf.network_.predict_proba(x), atol=5e-3)


def test_a_file_without_a_network_is_no_backbone(tmp_path: Path) -> None:
    x, y = pictures()
    path = classifier(fine_tune=False).fit(x, y).save(tmp_path / "plain.featx")
    archive = read_archive(path, kind=MODEL_KIND, allowed=MODEL_MEMBERS, max_format=MODEL_FORMAT)
    assert set(OF_NETWORK).isdisjoint(archive.members)
    with pytest.raises(UsageError, match=r"no network of its own; use the backbone .*test_resnet"):
        FeatureExtractor(str(path)).fit()


def rewrite(path: Path, target: Path, **changes: bytes | None) -> Path:
    archive = read_archive(path, kind=MODEL_KIND, allowed=MODEL_MEMBERS, max_format=MODEL_FORMAT)
    members = {**archive.members, **{name.replace("_", "."): data for name, data in changes.items()}}
    kept = {name: data for name, data in members.items() if data is not None}
    write_archive(target, kept, kind=MODEL_KIND, format=MODEL_FORMAT)
    return target


def described(path: Path, **changes: Any) -> bytes:
    archive = read_archive(path, kind=MODEL_KIND, allowed=MODEL_MEMBERS, max_format=MODEL_FORMAT)
    plain = json.loads(archive["finetune.json"])
    for name, value in changes.items():
        place = plain
        *parents, last = name.split("__")
        for parent in parents:
            place = place[parent]
        place[last] = value
    return json.dumps(plain).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 9}, {"head": "evil"}, {"classes": ["a", "b"]}, {"classes_dtype": "|V999999999"},
        {"card__num_features": 7}, {"spec__input_size": [10**6, 10**6]}, {"spec__crop_pct": float("nan")},
        {"calibration__a": "x"}, {"card__name": 5}, {"spec__weights": "0" * 64}, {"calibration__kind": 3},
        {"history": 5}, {"card": None},
    ],
)  # fmt: skip
def test_a_description_that_lies_is_refused(saved: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    target = rewrite(saved, tmp_path / "x.featx", finetune_json=described(saved, **changes))
    with pytest.raises(ModelFileError):
        featx.load(target)


@pytest.mark.parametrize("lost", ["finetune_json", "finetune_safetensors"])
def test_half_a_network_is_refused(saved: Path, tmp_path: Path, lost: str) -> None:
    with pytest.raises(ModelFileError):
        featx.load(rewrite(saved, tmp_path / "x.featx", **{lost: None}))


def test_tensors_that_are_not_the_networks_are_refused(saved: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load, save

    archive = read_archive(saved, kind=MODEL_KIND, allowed=MODEL_MEMBERS, max_format=MODEL_FORMAT)
    tensors = load(archive["finetune.safetensors"])
    x, _ = pictures(2)
    head = rewrite(
        saved, tmp_path / "a.featx",
        finetune_safetensors=save({**tensors, "head.bias": tensors["head.bias"] + np.float32([1, -1])}),
    )  # fmt: skip
    with pytest.raises(ModelFileError, match="gives other outputs"):
        featx.load(head)
    name = next(name for name in tensors if name.startswith("tail.") and tensors[name].ndim == 4)
    tail = rewrite(
        saved, tmp_path / "b.featx", finetune_safetensors=save({**tensors, name: tensors[name] * 2})
    )
    STATE.release_networks()  # the true one is in memory under the digest that this file states
    with pytest.raises(ModelFileError, match="does not have the digest"):
        featx.load(tail).predict(x)
    broken = save({**tensors, name: tensors[name][:1]})
    extractor = FeatureExtractor(str(rewrite(saved, tmp_path / "c.featx", finetune_safetensors=broken)))
    with pytest.raises(ModelFileError, match="cannot be read"):
        extractor.fit()


def test_a_saved_model_is_a_backbone_like_any_other(tuned: ImageClassifier, saved: Path) -> None:
    x, _ = pictures(12, seed=4)
    store = MemoryStore()
    settings = {"store": store, "precision": "fp32", "input_size": 64, "runtime": "torch"}
    rows = FeatureExtractor(str(saved), **settings).fit_transform(x)
    network = tuned.network_
    assert list(store.keys()) == [network.feature_spec.replace(input_size=(64, 64)).key]
    assert np.allclose(network.proba_of_features(rows), tuned.predict_proba(x), atol=1e-3)
    with pytest.raises(UsageError, match="weights of its own"):
        FeatureExtractor(str(saved), checkpoint=saved).fit()


def test_heads_are_searched_on_it_again_and_it_is_fine_tuned_again(saved: Path, tmp_path: Path) -> None:
    x, y = pictures(seed=5)
    again = classifier(backbone=str(saved), pretrained=True, fine_tune=False).fit(x, y)
    path = again.save(tmp_path / "again.featx")
    assert str(saved.parent).encode() not in path.read_bytes()
    new, _ = pictures(6, seed=6)
    loaded = featx.load(path, checkpoint=saved)
    assert np.allclose(loaded.predict_proba(new), again.predict_proba(new), atol=1e-3)
    twice = classifier(backbone=str(saved), pretrained=True).fit(x, y)
    alone = featx.load(twice.save(tmp_path / "twice.featx"))  # the network before travels along
    assert np.allclose(alone.predict_proba(new), twice.predict_proba(new), atol=1e-3)


def test_growing_a_fine_tuned_model_says_what_to_do_instead(
    tuned: ImageClassifier, class_folders: Path
) -> None:
    with pytest.raises(UsageError, match="fine-tuned on the old images"):
        grow(tuned, load_images(class_folders))


@pytest.mark.parametrize("choice", [True, "auto"])
def test_images_that_cannot_be_dealt_into_three_parts_leave_the_search_s_head(choice: bool | str) -> None:
    x, _ = pictures(42)
    y = np.array(["rare", "rare", *np.random.default_rng(0).permutation(["blue", "red"] * 20)])
    clf = classifier(fine_tune=choice, tuning={"unfreeze": 1, "phases": PHASES, "n_verdicts": 1}, cv=2).fit(
        x, y
    )
    assert (clf.fine_tune_.tried, clf.network_) == (False, None)
    assert clf.fine_tune_.reason.startswith("not tried: ")
    assert "rare" in clf.fine_tune_.reason or choice == "auto"
    assert clf.predict_proba(x).shape == (42, 3)
