"""The tutorials' small convnets: their sizes, and that they learn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone

from featx.exceptions import DataError, SearchWarning, UsageError
from featx.finetune.scratch import CONVNETS, Convnet, ScratchClassifier, build, scratch_path
from featx.images import load_images
from tests.tinted import pictures

torch = pytest.importorskip("torch")
SMALL = replace(CONVNETS["tiny"], lr=3e-3, batch_size=4)
pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture
def two_colours(picture: Callable[..., Image.Image]) -> tuple[list[Image.Image], np.ndarray]:
    y = np.array(["red", "blue"] * 10)
    tints = {"red": (90, -60, -60), "blue": (-60, -60, 90)}
    return [picture(seed, tint=tints[label]) for seed, label in enumerate(y)], y


def test_the_first_tutorials_net_has_its_parameters() -> None:
    tail, width = build(CONVNETS["four-blocks"])
    # with its single sigmoid unit the tutorial counts 3,453,121
    assert sum(p.numel() for p in tail.parameters()) + width + 1 == 3_453_121


@pytest.mark.parametrize("name", list(CONVNETS))
def test_every_net_maps_pictures_to_its_width(name: str) -> None:
    tail, width = build(CONVNETS[name])
    side = CONVNETS[name].side
    assert tail.eval()(torch.zeros(2, 3, side, side)).shape == (2, width)


def test_it_learns_two_colours_and_keeps_the_curves(
    two_colours: tuple[list[Image.Image], np.ndarray],
) -> None:
    images, y = two_colours
    net = ScratchClassifier(SMALL, epochs=12, random_state=0, device="cpu").fit(images, y)
    assert net.score(images, y) >= 0.9
    assert [record["epoch"] for record in net.history_] == [*range(1, 13)]
    assert {"loss", "accuracy", "val_loss", "val_accuracy", "lr", "seconds"} <= net.history_[0].keys()


def test_a_path_from_scratch_grows_with_the_labels(picture: Callable[..., Image.Image]) -> None:
    y = np.array(["red", "blue"] * 40)
    tints = {"red": (90, -60, -60), "blue": (-60, -60, 90)}
    images = [picture(seed, tint=tints[label]) for seed, label in enumerate(y)]
    path = scratch_path(load_images(images), y, net=SMALL, epochs=12, device="cpu")
    assert path.x == (8.0, 16.0, 32.0, 64.0)  # four fifths of 80, and its parts
    assert path.score[-1].value >= 0.9
    assert all(metric.low <= metric.value <= metric.high for metric in path.score)


def test_a_class_of_two_images_is_too_small_for_a_path() -> None:
    images, _ = pictures(20)
    with (
        pytest.raises(DataError, match="a class has fewer than 3 images to train on"),
        pytest.warns(SearchWarning, match="2 folds instead of 5"),
    ):
        scratch_path(load_images(images), np.array(["red"] * 2 + ["blue"] * 18), epochs=1)


def test_it_is_a_scikit_learn_estimator(two_colours: tuple[list[Image.Image], np.ndarray]) -> None:
    images, y = two_colours
    net = clone(ScratchClassifier("tiny", epochs=1, l2=1e-3, random_state=1, device="cpu"))
    proba = net.fit(images, y).predict_proba(images)
    assert proba.shape == (20, 2)
    assert np.allclose(proba.sum(1), 1)
    again = clone(net).fit(images, y).predict_proba(images)
    assert np.array_equal(proba, again)


def test_the_last_epoch_is_kept_if_requested(two_colours: tuple[list[Image.Image], np.ndarray]) -> None:
    images, y = two_colours
    net = replace(SMALL, lr=0.1)
    best, last = (
        ScratchClassifier(net, epochs=3, keep_best=keep, random_state=0, device="cpu").fit(images, y)
        for keep in (True, False)
    )
    assert [r["loss"] for r in best.history_] == [r["loss"] for r in last.history_]
    kept = max(r["val_accuracy"] for r in best.history_)
    assert kept >= last.history_[-1]["val_accuracy"]


def test_dropout_and_batch_norm_can_be_switched() -> None:
    plain = Convnet(((4,),), 8, 16, False, 0.0, 0.0, 1e-3, 8)
    normed = Convnet(((4,),), 8, 16, True, 0.25, 0.5, 1e-3, 8)

    def kinds(net: Convnet) -> set[str]:
        return {type(m).__name__ for m in build(net)[0].modules()}

    assert "BatchNorm2d" not in kinds(plain)
    assert {"BatchNorm2d", "BatchNorm1d"} <= kinds(normed)
    assert max(m.p for m in build(normed)[0].modules() if isinstance(m, torch.nn.Dropout)) == 0.5


def test_an_unknown_net_is_refused_with_the_known_ones(
    two_colours: tuple[list[Image.Image], np.ndarray],
) -> None:
    with pytest.raises(UsageError, match="four-blocks, three-blocks, tiny"):
        ScratchClassifier("vgg").fit(*two_colours)
