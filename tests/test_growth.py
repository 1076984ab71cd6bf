"""A model grows by new images, and advice is measured on a fitted one: the whole way, on small pictures."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from classifiers import image_classifier
from PIL import Image

from featx.advice import sentences
from featx.backbones.state import STATE
from featx.classifier import load
from featx.classifier.growth import grow
from featx.classifier.record import FitRecord, Trial
from featx.classifier.rivals import better_rival
from featx.cli import main
from featx.exceptions import DataError, UsageError
from featx.features import FeatureBlocks
from featx.images import image_digest, load_images
from featx.selection.tuning import tune_again

TINY: dict[str, Any] = {
    "backbone": "test_resnet", "pretrained": False, "runtime": "torch", "cut": ["layer2", "last"],
    "pool": "avg", "resize": "crop", "heads": ["logistic"], "n_trials": 1, "cv": 3, "random_state": 0,
    "n_jobs": 1,
}  # fmt: skip


@pytest.fixture
def more(tmp_path: Path, picture: Callable[..., Image.Image]) -> Path:
    """Twelve new pictures of each of two classes, and one that is known already, under the other label."""
    root = tmp_path / "more"
    for label, tint in (("red", (90, -60, -60)), ("blue", (-60, -60, 90))):
        (root / label).mkdir(parents=True)
        for number in range(12):
            picture(500 + number + (100 if label == "red" else 0), tint=tint).save(
                root / label / f"{number}.png"
            )
    picture(0, tint=(-60, -60, 90)).save(root / "red" / "copy_of_blue_00.png")
    return root


def test_new_images_are_taken_in_and_test_stays_test(class_folders: Path, more: Path, tmp_path: Path) -> None:
    clf = image_classifier(**TINY).fit_with_test(class_folders)
    clf.save(tmp_path / "m.featx")
    before = dict(clf.assignment_)
    loaded = load(tmp_path / "m.featx", store=None).set_params(extractor__runtime="torch", n_jobs=1)
    grown, growth = grow(loaded, load_images(more))
    assert growth.n_before == 24
    assert growth.n_added == 24
    assert growth.computed == 24
    assert before.items() <= grown.assignment_.items()
    assert len(grown.assignment_) == 48
    assert [Path(name).name for name in growth.duplicates] == ["copy_of_blue_00.png"]
    assert growth.conflicts[0].endswith("is blue and now red")
    assert growth.n_test == grown.evaluation_.n
    assert sum(change.n for change in growth.by_class) == growth.n_test
    assert json.loads(json.dumps(growth.to_dict()))["n_added"] == 24
    text = " ".join(growth.sentences())
    assert "24 new images beside 24; 24 went through the network" in text
    assert "Two labels for one image" in text
    # and again: nothing is new
    with pytest.raises(DataError, match="nothing to add"):
        grow(grown, load_images(more))


def test_a_new_class_is_learnt_and_counts_as_unknown_before(
    class_folders: Path, tmp_path: Path, picture: Callable[..., Image.Image]
) -> None:
    clf = image_classifier(**TINY).fit_with_test(class_folders)
    green = tmp_path / "more" / "green"
    green.mkdir(parents=True)
    for number in range(10):
        picture(900 + number, tint=(-60, 90, -60)).save(green / f"{number}.png")
    grown, growth = grow(clf, load_images(tmp_path / "more"))
    assert growth.new_classes == ("green",)
    assert grown.classes_.tolist() == ["blue", "green", "red"]
    change = next(c for c in growth.by_class if c.label == "green")
    assert np.isnan(change.before)


def test_without_the_old_features_their_folder_must_be_named(
    class_folders: Path, more: Path, tmp_path: Path
) -> None:
    image_classifier(**TINY).fit_with_test(class_folders).save(tmp_path / "m.featx")
    elsewhere = load(tmp_path / "m.featx", store=tmp_path / "other cache").set_params(
        extractor__runtime="torch", n_jobs=1
    )
    with pytest.raises(UsageError, match="features of 24 of the 24 old images"):
        grow(elsewhere, load_images(more))
    _, growth = grow(elsewhere, load_images(more), old=load_images(class_folders))
    assert growth.computed == 48


def test_a_model_without_a_test_part_cannot_be_compared(class_folders: Path, more: Path) -> None:
    clf = image_classifier(**TINY).fit(class_folders)
    with pytest.raises(DataError, match="no test part"):
        grow(clf, load_images(more))


def test_advice_is_measured_on_the_training_part(class_folders: Path) -> None:
    clf = image_classifier(**TINY).fit_with_test(class_folders)
    found = clf.advice()
    train = sum(part == "train" for part in clf.assignment_.values())
    assert found.n == train
    assert found.domain is not None
    assert [layer.block for layer in found.domain.layers] == ["layer2:avg:crop", "last:avg:crop"]
    assert found.domain.over_random is None  # it is untrained itself
    assert sentences(found)


def test_advice_is_plain_data_and_needs_the_images_of_a_fit(class_folders: Path) -> None:
    clf = image_classifier(**TINY).fit_with_test(class_folders)
    assert json.loads(json.dumps(clf.advice().to_dict())) == clf.advice().to_dict()
    copy = pickle.loads(pickle.dumps(clf))
    with pytest.raises(UsageError, match="a fit in this process"):
        copy.advice()


def test_other_backbones_are_compared_on_the_same_images(class_folders: Path) -> None:
    clf = image_classifier(**TINY).fit_with_test(class_folders)
    found = clf.advice(others=["test_resnet"])
    assert not any(option.action == "other_backbone" for option in found.options)


def test_a_loaded_model_has_no_search_to_advise_on(class_folders: Path, tmp_path: Path) -> None:
    image_classifier(**TINY).fit_with_test(class_folders).save(tmp_path / "m.featx")
    with pytest.raises(UsageError, match="a fit in this process"):
        load(tmp_path / "m.featx").advice()


# The verbs -----------------------------------------------------------------------------------------------

RECIPE = [
    "--backbone",
    "test_resnet",
    "--random-weights",
    "--runtime",
    "torch",
    "--pool",
    "avg",
    "--resize",
    "crop",
]


def _json(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main([*argv, "--json", "--quiet"])
    return code, json.loads(capsys.readouterr().out)


def test_featx_add_grows_a_saved_model(
    class_folders: Path, more: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "m.featx"
    fit = ["fit", str(class_folders), "-o", str(model), *RECIPE, "--cut", "last", "--heads", "logistic"]
    assert main([*fit, "--trials", "1", "--cv", "3"]) == 0
    code, found = _json(
        capsys, "add", str(model), str(more), "--runtime", "torch", "-o", str(tmp_path / "n.featx")
    )
    assert code == 0
    assert found["growth"]["n_added"] == 24
    assert found["computed"] == 24
    assert len(load(tmp_path / "n.featx").assignment_) == 48


def test_a_grown_folder_that_is_fitted_again_says_what_changed(
    class_folders: Path, more: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "m.featx"
    fit = ["fit", str(class_folders), "-o", str(model), *RECIPE, "--cut", "last", "--heads", "logistic"]
    fit += ["--trials", "1", "--cv", "3"]
    code, found = _json(capsys, *fit)
    assert code == 0
    assert "refit" not in found  # nothing was there before
    before = load(model).assignment_
    (more / "red" / "copy_of_blue_00.png").unlink()
    for path in more.rglob("*.png"):
        path.rename(class_folders / path.parent.name / f"new_{path.name}")
    (class_folders / "red" / "red_00.png").unlink()
    code, found = _json(capsys, *fit)
    assert code == 0
    after = load(model).assignment_
    assert found["computed"] == 24
    assert (found["refit"]["n_added"], found["refit"]["n_removed"]) == (24, 1)
    assert {name: before[name] for name in before if name in after}.items() <= after.items()
    asked = [name for name, part in after.items() if part == "test" and before.get(name) != "train"]
    assert found["refit"]["n_test"] == len(asked)
    assert sum(change["n"] for change in found["refit"]["by_class"]) == len(asked)
    assert main(fit) == 0
    said = capsys.readouterr().out
    assert "0 images are new since the model before; 0 of its images are gone." in said
    assert "+0.0 points [+0.0, +0.0]: not distinguishable" in said


def test_featx_advise_says_what_to_do(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / "advice.png"
    code, found = _json(
        capsys, "advise", str(class_folders), *RECIPE, "--cut", "layer2,last", "--heads", "logistic",
        "--trials", "1", "--plot", str(figure),
    )  # fmt: skip
    assert code == 0
    assert found["advice"]["n"] == 24
    assert found["sentences"]
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_featx_advise_holds_features_against_a_convnet_from_nothing(
    class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = _json(
        capsys, "advise", str(class_folders), *RECIPE, "--cut", "layer2,last", "--heads", "logistic",
        "--trials", "1", "--scratch",
    )  # fmt: skip
    assert code == 0
    assert found["scratch"][-1]["n"] == 19  # four fifths of 24
    assert 0 <= found["scratch"][-1]["low"] <= found["scratch"][-1]["high"] <= 1
    assert set(found["transfer"]) == {"start", "slope", "end", "over"}


def test_featx_curve_prints_few_shots_and_the_forecast(
    class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = _json(capsys, "curve", str(class_folders), *RECIPE, "--shots", "1,2,50", "--draws", "5")
    assert code == 0
    assert [score["k"] for score in found["few_shot"]["scores"]] == [1, 2]
    assert found["forecast"]["n_then"] == 48
    assert main(["curve", str(class_folders), *RECIPE, "--shots", "one"]) == 2


def test_featx_show_augment_draws_pictures_beside_their_views(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "views.png"
    code, found = _json(
        capsys, "show", "augment", str(class_folders), "-o", str(out), "--images", "2", "--views", "3",
        "--backbone", "test_resnet", "--random-weights", "--policy", "flip=0.5,rotate=10",
    )  # fmt: skip
    assert code == 0
    assert len(found["images"]) == 2
    with Image.open(out) as drawn:
        side = (drawn.height - 4) // 2  # two rows with one gap
        assert drawn.width == 4 * side + 3 * 4
    assert main(["show", "augment", str(class_folders), "--policy", "nonsense", "-o", str(out)]) == 2


def test_a_model_grows_with_its_own_labels_not_those_of_another_model(
    class_folders: Path, more: Path, tmp_path: Path
) -> None:
    images = load_images(class_folders)
    store = tmp_path / "cache"
    first = image_classifier(**TINY, store=store).fit_with_test(images)
    swapped = np.where(images.labels == "red", "blue", "red")
    image_classifier(**TINY, store=store).fit_with_test(images.sources, swapped)
    loaded = load(first.save(tmp_path / "m.featx"), store=store)
    loaded.set_params(extractor__runtime="torch", n_jobs=1)
    grown, _ = grow(loaded, load_images(more))
    right = (grown.predict(images) == images.labels).mean()
    assert right == (first.predict(images) == images.labels).mean()


def test_groups_of_the_old_images_keep_new_ones_of_the_same_group_on_their_side(
    class_folders: Path, more: Path, tmp_path: Path
) -> None:
    images = load_images(class_folders)
    groups = np.array([f"patient {number // 3}" for number in range(len(images))])
    clf = image_classifier(**TINY, store=tmp_path / "cache").fit_with_test(images, groups=groups)
    path = clf.save(tmp_path / "m.featx")
    assert b"patient" not in path.read_bytes(), "a model file holds no names of groups"
    loaded = load(path, store=tmp_path / "cache").set_params(extractor__runtime="torch", n_jobs=1)
    fresh = load_images(more)
    fresh.groups = np.array(["patient 0"] * len(fresh))
    grown, _ = grow(loaded, fresh)
    side = clf.assignment_[image_digest(images.sources[0]).hex()]
    new = [image_digest(source).hex() for source in fresh.sources]
    assert {grown.assignment_[digest] for digest in new if digest not in clf.assignment_} == {side}


def test_a_fit_into_the_same_file_with_other_classes_compares_and_ends_well(
    class_folders: Path,
    tmp_path: Path,
    picture: Callable[..., Image.Image],
    capsys: pytest.CaptureFixture[str],
) -> None:
    fit = [
        "fit", str(class_folders), "-o", str(tmp_path / "m.featx"), "--backbone", "test_resnet",
        "--random-weights", "--runtime", "torch", "--cut", "last", "--pool", "avg", "--resize", "crop",
        "--heads", "ridge", "--trials", "1", "--cv", "2",
    ]  # fmt: skip
    assert main(fit) == 0
    (class_folders / "red").rename(class_folders / "pink")  # one class is gone, another is new
    for number in range(10):
        picture(900 + number, tint=(-60, 90, -60)).save(class_folders / "pink" / f"{number}.png")
    code, found = _json(capsys, *fit)
    assert code == 0
    assert {change["label"] for change in found["refit"]["by_class"]} <= {"blue", "pink"}
    assert load(tmp_path / "m.featx").classes_.tolist() == ["blue", "pink"]


def test_a_comparison_that_fails_does_not_fail_the_fit(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = [
        "fit", str(class_folders), "-o", str(tmp_path / "m.featx"), "--runtime", "torch", "--cut", "last",
        "--pool", "avg", "--resize", "crop", "--heads", "ridge", "--trials", "1", "--cv", "2",
    ]  # fmt: skip
    weights = tmp_path / "weights.pth"
    torch.save(timm.create_model("test_resnet.r160_in1k", pretrained=False).state_dict(), weights)
    assert main([*fit, "--backbone", "test_resnet.r160_in1k", "--checkpoint", str(weights)]) == 0
    weights.unlink()  # the network of the model before can no longer be opened
    STATE.release_networks()
    capsys.readouterr()
    other = ["--backbone", "test_efficientnet.r160_in1k", "--random-weights", "--no-cache"]
    assert main([*fit, *other]) == 0
    err = capsys.readouterr().err
    assert "no comparison with the replaced model: " in err
    assert "The result is complete without it" in err
    assert load(tmp_path / "m.featx").card_.name == "test_efficientnet.r160_in1k"


def test_the_old_choice_stays_where_no_rival_is_better(class_folders: Path, more: Path) -> None:
    several = {**TINY, "cut": "last", "heads": ["knn", "ridge"]}
    clf = image_classifier(**several).fit_with_test(class_folders)
    grown, growth = grow(clf, load_images(more))
    assert "no rival is better beyond chance" in growth.choice
    assert growth.choice in growth.sentences()
    assert clf.record_.params.items() <= grown.record_.params.items()
    assert grown.record_.trials == clf.record_.trials


def test_a_rival_that_is_better_beyond_chance_repeats_the_search() -> None:
    rng, y = np.random.default_rng(0), np.tile(np.array(["no", "yes"]), 60)
    good, useless = "last:avg:crop", "blocks.1:avg:crop"
    rows = {good: 3.0 * (y == "yes")[:, None] + rng.normal(size=(120, 4)), useless: rng.normal(size=(120, 4))}
    blocks = FeatureBlocks(rows, 120, widths=dict.fromkeys(rows, 4))
    settings = {
        "heads": ["ridge"], "n_trials": 1, "cv": 3, "n_repeats": 1, "scoring": "auto", "random_state": 0,
    }  # fmt: skip
    params = {"head": "ridge", "scaling": "standard", "ridge__alpha": 1.0}
    groups = np.arange(120)
    old = tune_again(
        blocks.only((useless,)), y, groups=groups, settings=settings,
        params={**params, "representation": useless},
    )  # fmt: skip
    trials = (Trial({**params, "representation": good}, 0.9, "grid"),)
    record = dataclasses.replace(FitRecord.of(old, y, groups, old.decision), trials=trials)
    said, is_better = better_rival(old, record, blocks, y, groups=groups, settings=settings)
    assert is_better
    assert said.startswith("ridge on last:avg:crop is now better than the old choice (+")
    assert said.endswith("the search is repeated.")


def test_a_near_copy_joins_the_part_of_its_original(
    tmp_path: Path, class_folders: Path, more: Path, picture: Callable[..., Image.Image]
) -> None:
    clf = image_classifier(**TINY, store=tmp_path / "cache").fit_with_test(class_folders)
    images = load_images(class_folders)
    for source, name in zip(images.sources, images.names, strict=True):
        original = Image.open(str(source)).resize((56, 42))
        original.save(more / Path(name).parent / f"copy_{Path(name).stem}.jpg", quality=90)
    fresh = load_images(more)
    grown, growth = grow(clf, fresh)
    assert growth.n_kin == 24
    assert growth.apart is None
    assert "24 new are near copies of others, and in the part of these" in " ".join(growth.sentences())
    part = {Path(name).stem: clf.assignment_[image_digest(Path(str(source)).read_bytes()).hex()]
            for source, name in zip(images.sources, images.names, strict=True)}  # fmt: skip
    for source, name in zip(fresh.sources, fresh.names, strict=True):
        if Path(name).stem.startswith("copy_") and Path(name).suffix == ".jpg":
            digest = image_digest(Path(str(source)).read_bytes()).hex()
            assert grown.assignment_[digest] == part[Path(name).stem.removeprefix("copy_")]
    _, apart = grow(clf.set_params(auto_groups=False), fresh)
    assert apart.n_kin == 0
