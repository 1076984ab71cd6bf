"""What an error message advises is done here, and it helps."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answers import FAST, RIDGE, TINY, Answer
from PIL import Image

from featx import FeatureExtractor, ImageClassifier, load
from featx.exceptions import FeatxError, LabelError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore::featx.exceptions.FeatxWarning")


@pytest.fixture
def few(class_folders: Path) -> Callable[[int], Path]:
    """The class folders with k images each."""

    def make(k: int) -> Path:
        root = class_folders.parent / f"k{k}"
        for file in sorted(class_folders.glob("*/*.png")):
            target = root / file.parent.name
            target.mkdir(parents=True, exist_ok=True)
            if len(list(target.iterdir())) < k:
                shutil.copy(file, target)
        return root

    return make


def test_two_images_a_class_are_learnt_without_a_test_part(
    answer: Answer, few: Callable[[int], Path], tmp_path: Path
) -> None:
    model = tmp_path / "m.featx"
    code, said = answer("fit", few(2), *RIDGE, "-o", model)
    assert code == 1
    assert "--no-test" in said
    code, said = answer("fit", few(2), *RIDGE, "-o", model, "--no-test")
    assert (code, "no test part was held out" in said) == (0, True)
    assert answer("fit", few(2), *RIDGE, "-o", model, "--test-size", "0")[0] == 0
    assert set(load(model).assignment_.values()) == {"train"}
    code, said = answer("fit", few(2), *RIDGE, "-o", model, "--min-per-class", "3")
    assert code == 1
    assert "--min-per-class 2 --no-test" in said
    assert answer("fit", few(2), *RIDGE, "-o", model, "--min-per-class", "2", "--no-test")[0] == 0


def test_single_images_are_told_what_is_missing_and_no_default(
    answer: Answer, few: Callable[[int], Path], tmp_path: Path
) -> None:
    code, said = answer("fit", few(1), *RIDGE, "-o", tmp_path / "m.featx")
    assert code == 1
    assert "0 of 2 classes have 2 images or more" in said
    assert "--min-per-class" not in said
    assert "Add images, two of each class" in said


def test_a_class_of_one_group_is_left_out_as_one_of_a_single_image_is(
    answer: Answer, class_folders: Path, tmp_path: Path, picture: Callable[..., Image.Image]
) -> None:
    rows = ["path,label,group"]
    for number, file in enumerate(sorted(class_folders.glob("*/*.png"))):
        rows.append(f"{file},{file.parent.name},{file.parent.name}{number % 4}")
    for number in range(4):
        picture(900 + number).save(tmp_path / f"alone{number}.png")
        rows.append(f"alone{number}.png,alone,one patient")
    (tmp_path / "list.csv").write_text("\n".join(rows), "utf-8")
    code, said = answer("fit", tmp_path / "list.csv", *RIDGE, "-o", tmp_path / "m.featx")
    assert code == 0
    assert "classes with fewer than 2 groups are left out (--min-per-class): alone (1)" in said


@pytest.mark.parametrize("name", ["f1", "average_precision"])
def test_a_score_of_one_class_asks_for_the_class_before_extraction(
    name: str, answer: Answer, class_folders: Path, tmp_path: Path, own_cache: Path
) -> None:
    command = ["fit", class_folders, *RIDGE, "-o", tmp_path / "m.featx", "--scoring"]
    code, said = answer(*command, name)
    assert code == 2
    assert not list(own_cache.rglob("*.h5"))
    remedy = re.search(r"\(--positive (\w+)\)", said)
    assert remedy
    mean = re.search(r"\), or take the mean over all classes, '(\w+)'", said)
    assert mean
    code, said = answer(*command, name, "--positive", remedy[1])
    assert (code, f"{name.replace('_', ' ')}:red" in said) == (0, True)
    assert answer(*command, mean[1])[0] == 0


def test_the_score_of_one_class_is_that_of_scikit_learn(few: Callable[[int], Path]) -> None:
    from sklearn.metrics import f1_score

    from featx.search.scoring import Scorer

    rng = np.random.default_rng(0)
    classes, y = np.array(["a", "b", "c"]), rng.integers(0, 3, 60)
    decision = rng.normal(size=(60, 3)) + 1.5 * np.eye(3)[y]
    found = Scorer("f1:c", classes)(decision, y)
    assert found == pytest.approx(f1_score(y == 2, decision.argmax(1) == 2))
    with pytest.raises(UsageError, match=r"'d' is none of these classes; name one of a, b, c"):
        Scorer("f1:d", classes)
    assert Scorer("recall", np.array([0, 1]))(np.array([1.0, -1.0, 1.0]), np.array([1, 1, 0])) == 0.5


@pytest.mark.parametrize("scoring", ["roc_auc", "neg_mean_squared_error", "r2", "nothing"])
def test_a_score_that_cannot_be_computed_is_refused_before_extraction(
    scoring: str, own_cache: Path, picture: Callable[..., Image.Image]
) -> None:
    clf = ImageClassifier("test_resnet", scoring=scoring, extractor=FeatureExtractor(pretrained=False))
    pictures = [picture(seed) for seed in range(9)]
    with pytest.raises(UsageError, match="choose one of") as refused:
        clf.fit(pictures, ["a", "b", "c"] * 3)
    assert not list(own_cache.rglob("*.h5"))
    advised = re.findall(r"\w+", str(refused.value).rpartition("choose one of ")[2])
    assert "accuracy" in advised


def test_a_head_that_is_not_known_names_those_that_are_meant(
    answer: Answer, class_folders: Path, tmp_path: Path, own_cache: Path
) -> None:
    command = ["fit", class_folders, *FAST, "-o", tmp_path / "m.featx", "--heads"]
    for given, meant in (("svm", "linear_svm or rbf_svm"), ("logreg", "logistic"), ("ridge_clf", "ridge")):
        code, said = answer(*command, given)
        assert code == 2
        assert f"Did you mean {meant}" in said
        assert not list(own_cache.rglob("*.h5"))
    assert answer(*command, "linear_svm,rbf_svm")[0] == 0


def test_labels_that_are_missing_can_be_given_in_each_way_that_is_named(
    class_folders: Path, tmp_path: Path
) -> None:
    clf = ImageClassifier("test_resnet", cut=None, pool="avg", resize="crop", heads=["ridge"], n_trials=1)
    clf.set_params(cv=2, extractor__pretrained=False, extractor__runtime="torch")
    files = sorted(class_folders.glob("*/*.png"))
    ways = "give y, a folder of class folders, or a manifest with a column 'label'"
    with pytest.raises(LabelError, match=ways):
        clf.fit(files)
    labels = [file.parent.name for file in files]
    (tmp_path / "list.csv").write_text(
        "path,label\n" + "".join(f"{f},{label}\n" for f, label in zip(files, labels, strict=True)), "utf-8"
    )
    for data in ((files, labels), (class_folders,), (tmp_path / "list.csv",)):
        assert clf.fit(*data).classes_.tolist() == ["blue", "red"]


def test_adding_without_cache_takes_the_old_folder_as_it_is_told(
    answer: Answer, class_folders: Path, six_more: Path, tmp_path: Path
) -> None:
    model = tmp_path / "m.featx"
    assert answer("fit", class_folders, *RIDGE, "-o", model)[0] == 0
    code, said = answer("add", model, six_more, "--cache-dir", tmp_path / "other", "--runtime", "torch")
    assert code != 0
    assert "--old DIR" in said
    remedy = ["--cache-dir", tmp_path / "other", "--runtime", "torch", "--old", class_folders]
    code, said = answer("add", model, six_more, *remedy)
    assert code == 0
    assert "nan" not in said
    code, said = answer("fit", class_folders, *RIDGE, "-o", model, "--no-test")
    code, said = answer("add", model, six_more, "--runtime", "torch")
    assert code == 1
    assert "fit it with one (featx fit)" in said
    assert answer("fit", class_folders, *RIDGE, "-o", model)[0] == 0
    assert answer("add", model, six_more, "--runtime", "torch")[0] == 0


def test_too_many_unreadable_images_can_be_allowed_or_removed(
    answer: Answer, class_folders: Path, tmp_path: Path
) -> None:
    for number in range(4):
        (class_folders / "red" / f"broken{number}.png").write_bytes(b"")
    command = ["fit", class_folders, *RIDGE, "-o", tmp_path / "m.featx"]
    code, said = answer(*command)
    assert code == 1
    assert "--max-bad" in said
    assert answer(*command, "--max-bad", "20%")[0] == 3
    for file in class_folders.glob("red/broken*.png"):
        file.unlink()
    assert answer(*command)[0] == 0


def test_options_that_exclude_or_need_each_other_name_the_other(
    answer: Answer, class_folders: Path, tmp_path: Path
) -> None:
    code, said = answer("extract", class_folders, *TINY, "--no-cache", "--cache-dir", tmp_path / "c")
    assert (code, "give one of them" in said) == (2, True)
    assert answer("extract", class_folders, *TINY, "--cache-dir", tmp_path / "c")[0] == 0
    code, said = answer("cache", "prune")
    assert (code, "--max-size 20GB, --older-than 90d" in said) == (2, True)
    assert answer("cache", "prune", "--max-size", "20GB", "--older-than", "90d")[0] == 0
    code, said = answer("cache", "ls", "--no-cache")
    assert (code, "--cache-dir" in said) == (2, True)
    assert answer("cache", "ls", "--cache-dir", tmp_path / "c")[0] == 0


def test_a_batch_with_the_channels_first_is_read_as_the_message_says(
    picture: Callable[..., Any],
) -> None:
    batch = np.stack([np.asarray(picture(seed)) for seed in range(3)]).transpose(0, 3, 1, 2)
    extractor = FeatureExtractor("test_resnet", pretrained=False, store="memory", runtime="torch")
    with pytest.raises(FeatxError, match=r"array\.transpose\(0, 2, 3, 1\)"):
        extractor.fit_transform(batch)
    assert extractor.fit_transform(batch.transpose(0, 2, 3, 1)).shape[0] == 3
