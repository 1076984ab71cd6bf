"""What speaks for an answer: exact evidence sums to the score, and both kinds point at what matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import image_classifier
from PIL import Image

import featx
from featx import plot
from featx.classifier.evidence import evidence, layer_maps
from featx.classifier.settings import machine_of
from featx.cli import main
from featx.exceptions import UsageError
from featx.reporting.drawing import draw


def spots(n: int, seed: int = 0) -> tuple[list[np.ndarray], list[str]]:
    """Grey noise with a red or blue spot in the upper left or lower right."""
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for number in range(n):
        pixels = rng.integers(90, 166, (64, 64, 3), dtype=np.uint8)
        corner = slice(4, 24) if number % 4 < 2 else slice(40, 60)
        pixels[corner, corner] = (230, 20, 20) if number % 2 else (20, 20, 230)
        images.append(pixels)
        labels.append("red" if number % 2 else "blue")
    return images, labels


def fitted(head: str, **params: Any) -> Any:
    clf = image_classifier("test_resnet", pretrained=False, runtime="torch", resize="squash", store="memory")
    clf.set_params(heads=[head], n_trials=1, cv=3, random_state=0, **params)
    return clf.fit(*spots(40))


@pytest.mark.parametrize(("head", "pool"), [("ridge", "avg"), ("logistic", "grid2")])
def test_exact_evidence_sums_to_the_scores(head: str, pool: str) -> None:
    clf = fitted(head, cut=["layer2", "layer3"], pool=pool)
    images, _ = spots(8, seed=1)
    found = evidence(clf.model_, images, machine_of(clf))
    assert all(one.exact for one in found)
    scores = clf.decision_function(images)
    margin = np.array([score if one.answer else -score for score, one in zip(scores, found, strict=True)])
    total = np.array([one.heat.sum() for one in found])
    for answer in (0, 1):  # up to a constant of the model
        same = np.array([one.answer == answer for one in found])
        assert same.sum() == 4
        np.testing.assert_allclose(np.diff(total[same]), np.diff(margin[same]), atol=0.02 * np.ptp(margin))


@pytest.mark.parametrize("head", ["ridge", "rbf_svm"])
def test_evidence_is_where_the_spot_is(head: str) -> None:
    clf = fitted(head, cut="layer2", pool="avg")
    images, labels = spots(4, seed=2)
    found = evidence(clf.model_, images, machine_of(clf))
    assert [one.exact for one in found] == [head == "ridge"] * 4
    for number, one in enumerate(found):
        assert clf.classes_[one.answer] == labels[number]
        row, column = np.unravel_index(one.heat.argmax(), one.heat.shape)
        assert (row < 16, column < 16) == (number % 4 < 2, number % 4 < 2)


def test_each_layer_with_a_map_is_there() -> None:
    clf = fitted("ridge", cut="layer2", pool="avg")
    found = layer_maps(clf.model_, spots(1)[0][0], machine_of(clf))
    names = [tap.name for tap, _ in found]
    assert names[-1] == "last"
    assert "layer2" in names
    assert all(map_.shape == tap.shape for tap, map_ in found)


def test_figures_of_what_the_network_sees(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clf = image_classifier("test_resnet", pretrained=False, runtime="torch", cut=None, pool="avg")
    clf.set_params(resize="crop", heads=["ridge"], n_trials=1, cv=3, store="memory", random_state=0)
    made = featx.report(clf.fit_with_test(class_folders, test_size=0.3))
    assert "exact" in draw(made.known, made.sections, "heat").ax_.get_title(loc="left")
    page = made.to_html()
    for name in ("heat", "features", "learning"):
        assert f'id="{name}"' in page
    assert 'id="views"' not in page  # the fit made none
    with pytest.raises(UsageError, match="made no augmented views"):
        draw(made.known, made.sections, "views")
    clf.save(tmp_path / "m.featx")
    for name in ("heat", "features"):
        target = tmp_path / f"{name}.png"
        assert main(["show", name, str(tmp_path / "m.featx"), str(class_folders), "-o", str(target)]) == 0
        assert Image.open(target).size[0] > 500
    assert main(["show", "training", str(tmp_path / "m.featx"), "-o", str(tmp_path / "t.png")]) == 2
    assert "no fine-tuned network" in capsys.readouterr().err


def test_training_and_learning_curves_say_what_is_seen() -> None:
    epochs = [
        {"phase": 0, "epoch": k + 1, "loss": 1 / (k + 1), "accuracy": 0.5 + k / 10, "lr": 10.0**-k}
        | {"val_loss": 1.0, "val_accuracy": 0.4 + k / 20}
        for k in range(4)
    ]
    shown = plot.training(epochs)
    assert len(shown.figure_.axes) == 3
    assert shown.ax_.get_title(loc="left") == "4 epochs; the highest validation accuracy is 0.550"
    ahead = {"sizes": [10, 80], "value": [0.6, 0.9], "low": [0.5, 0.8], "high": [0.7, 0.95]}
    curve = plot.learning([10, 40], [0.6, 0.8], [0.5, 0.7], [0.7, 0.9], ahead)
    assert curve.ax_.get_title(loc="left") == "80 images instead of 40: +10.0 points expected"
