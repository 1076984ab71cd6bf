"""How unlike the training images an image is: as a percentile, in every table, and in the model file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import image_classifier
from PIL import Image

import featx
from featx import ImageClassifier
from featx.cli import main
from featx.evaluation import Evaluation, evaluate, shortfall
from featx.evaluation.unlike import MOST_AXES, MOST_ROWS, TrainingSample, spread
from featx.exceptions import ModelFileError, UsageError
from featx.files import MODEL_FORMAT, MODEL_KIND, MODEL_MEMBERS, read_archive, write_archive
from featx.modelfile import dump_arrays, read_arrays


def features(n: int, seed: int, kind: int = 7) -> np.ndarray:
    """Features as networks have them: not negative, with a few strong directions for each kind of image."""
    rng = np.random.default_rng(seed)
    mixing = np.abs(np.random.default_rng(kind).normal(size=(10, 300)))
    hidden = np.abs(rng.normal(size=(n, 10)))
    return np.asarray(hidden @ mixing + 0.3 * rng.normal(size=(n, 300)), np.float32)


def test_percentiles_are_uniform_for_images_of_the_same_kind_and_high_for_others() -> None:
    train = features(800, 0)
    sample = TrainingSample.of(train, np.arange(800))
    assert sample.axes.shape[0] == MOST_AXES
    same = sample.percentiles(features(2000, 1), np.full(2000, -1))
    for percentile in (50, 90, 99):
        share = np.mean(same >= percentile)
        assert abs(share - (1 - percentile / 100)) < 0.05, percentile
    assert np.mean(sample.percentiles(features(200, 2, kind=8), np.full(200, -1)) > 99) == 1
    # the approximate distances are those of all features
    unit, new = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, features(50, 3)))
    exact = np.sqrt(((new[:, None] - unit[None]) ** 2).sum(axis=2)).min(axis=1)
    np.testing.assert_allclose(sample.distance(features(50, 3), np.full(50, -1)), exact, rtol=0.12)


def test_an_image_is_compared_with_others_than_itself_and_its_group() -> None:
    rows = features(100, 0)
    twice = np.concatenate([rows, rows + 1e-3])
    apart = TrainingSample.of(twice, np.arange(200))
    together = TrainingSample.of(twice, np.tile(np.arange(100), 2))
    assert np.median(together.distances) > 2 * np.median(apart.distances)
    own = together.percentiles(rows, np.arange(100))
    assert 30 < np.median(own) < 70
    assert together.percentiles(rows, np.full(100, -1)).max() < 5  # as new images they are copies


def test_a_sample_is_bounded() -> None:
    assert len(spread(10**6)) == MOST_ROWS
    assert spread(5).tolist() == [0, 1, 2, 3, 4]
    wide = TrainingSample.of(np.random.default_rng(0).random((300, 20_000), np.float32), np.arange(300))
    assert wide.axes.nbytes <= 512 << 10
    one = TrainingSample.of(features(1, 0), np.arange(1))
    assert one.percentiles(features(2, 1), np.full(2, -1)).tolist() == [0, 0]  # nothing is known of it


def fitted(folder: Path, **params: Any) -> ImageClassifier:
    clf = image_classifier("test_resnet", pretrained=False, runtime="torch", cut=None, pool="avg")
    clf.set_params(resize="crop", heads=["ridge"], n_trials=1, cv=3, store="memory", random_state=0)
    return clf.set_params(**params).fit_with_test(folder, test_size=0.3)


def test_every_table_has_it_and_a_loaded_model_gives_the_same(
    class_folders: Path, six_more: Path, tmp_path: Path
) -> None:
    clf = fitted(class_folders)
    table = clf.evaluation_.table()
    assert list(table.columns)[-1] == "unlike"
    assert set(table.part) == {"test"}
    assert (table.truth == table.answer).mean() == clf.evaluation_["accuracy"]
    for rows in (table, clf.oof_table(), clf.evaluate(six_more).table()):
        assert rows.unlike.between(0, 100).all()
    assert set(clf.evaluate(six_more).table().part) == {"new"}
    again = featx.load(clf.save(tmp_path / "m.featx"))
    np.testing.assert_allclose(again.unlike(six_more), clf.unlike(six_more), atol=1e-3)
    with pytest.raises(UsageError, match="evaluate the images again"):
        again.evaluation_.table()


FORGED = {
    "axes": lambda axes: axes[:, :-1],
    "rows": lambda rows: rows[:-1],
    "distances": lambda distances: distances[::-1],
}


@pytest.mark.parametrize("change", [*FORGED, "infinite", "float64"])
def test_a_sample_that_does_not_fit_is_refused(class_folders: Path, tmp_path: Path, change: str) -> None:
    path = fitted(class_folders).save(tmp_path / "m.featx")
    archive = read_archive(path, kind=MODEL_KIND, allowed=MODEL_MEMBERS, max_format=MODEL_FORMAT)
    arrays = {name: array.copy() for name, array in read_arrays(archive["sample.safetensors"]).items()}
    if change in FORGED:
        arrays[change] = FORGED[change](arrays[change])
    elif change == "infinite":
        arrays["rows"][0, 0] = np.inf
    else:
        arrays["rows"] = arrays["rows"].astype(np.float64)
    members = {**archive.members, "sample.safetensors": dump_arrays(arrays)}
    write_archive(path, members, kind=MODEL_KIND, format=MODEL_FORMAT)
    with pytest.raises(ModelFileError, match="its arrays do not fit the model"):
        featx.load(path)


def test_a_clothing_model_that_is_shown_cats_says_so(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part, n in (("train", 40), ("test", 10)):
        for label in ("pants", "shoes"):
            (tmp_path / part / label).mkdir(parents=True)
            for image in sorted((real_data / "clothing_dev" / part / label).iterdir())[:n]:
                shutil.copy(image, tmp_path / part / label)
    (tmp_path / "cats").mkdir()
    for image in sorted((real_data / "catdog" / "cat").iterdir())[:20]:
        shutil.copy(image, tmp_path / "cats")
    model, clothes = str(tmp_path / "m.featx"), str(tmp_path / "test")
    cheap = ["--cut", "last", "--pool", "avg", "--resize", "crop", "--heads", "ridge", "--trials", "0"]
    assert main(["fit", str(tmp_path), "-o", model, "--no-auto-groups", *cheap]) == 0
    capsys.readouterr()
    assert main(["predict", model, str(tmp_path / "cats"), "--json"]) == 0
    shown = capsys.readouterr()
    predictions = json.loads(shown.out)["predictions"]
    assert np.mean([one["unlike"] >= 99 for one in predictions]) > 0.9
    assert "of 20 images are unlike the training images" in shown.err
    assert main(["predict", model, clothes, "--flag-unlike", "99"]) == 0
    shown = capsys.readouterr()
    header, *rows = shown.out.splitlines()
    assert header.endswith(",unlike,flag")
    flagged = sum(row.endswith(",unlike") for row in rows)
    assert flagged <= 4
    assert f"{flagged} of 20 images are unlike" in shown.err


def measured(value: float, n: int, random_state: int = 0) -> Evaluation:
    """An evaluation of this expected accuracy."""
    rng = np.random.default_rng(random_state)
    y = rng.integers(0, 2, n)
    right = rng.random(n) < value
    return evaluate(y, np.eye(2)[np.where(right, y, 1 - y)], [0, 1], n_boot=200)


def test_a_score_far_below_cross_validation_is_said_and_chance_is_not() -> None:
    folds = measured(0.9, 800)
    assert shortfall(measured(0.7, 200), folds).startswith("the accuracy on these images, 0.6")
    assert shortfall(measured(0.95, 200), folds) == ""
    assert shortfall(measured(0.8, 10), folds) == ""  # too few to tell
    said = sum(bool(shortfall(measured(0.9, 200, seed), measured(0.9, 800, 99 + seed))) for seed in range(60))
    assert said <= 2


def test_a_test_part_of_another_kind_warns_and_is_scored_without_copies(
    tmp_path: Path, picture: Callable[..., Image.Image], capsys: pytest.CaptureFixture[str]
) -> None:
    for label, tint in (("red", (90, -60, -60)), ("blue", (-60, -60, 90))):
        for part, n in (("train", 20), ("test", 12)):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(n):
                other = (-tint[0], 0, -tint[2])  # the tints are exchanged in the test part
                image = picture(
                    number + 100 * (part == "test") + 50 * (label == "red"),
                    tint=tint if part == "train" else other,
                )
                image.save(tmp_path / part / label / f"{number}.png")
        for number in range(3):
            copy = Image.open(tmp_path / "train" / label / f"{number}.png").resize((56, 42))
            copy.save(tmp_path / "test" / label / f"copy{number}.jpg", quality=90)
    model = str(tmp_path / "m.featx")
    tiny = ["--backbone", "test_resnet", "--random-weights", "--runtime", "torch", "--cv", "3"]
    cheap = ["--cut", "last", "--pool", "avg", "--resize", "crop", "--heads", "ridge", "--trials", "0"]
    assert main(["fit", str(tmp_path), "-o", model, *tiny, *cheap]) == 0
    shown = capsys.readouterr()
    assert "of cross-validation by more than chance" in shown.err
    assert "6 of these images have copies, near copies or images of their group in the training" in shown.out
    assert "on the 24 others the accuracy is 0." in shown.out
    apart = featx.load(model).record_.apart
    assert apart is not None
    assert (apart.n_kin, apart.n) == (6, 24)
    assert main(["evaluate", model, str(tmp_path / "test"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["apart"] == apart.to_dict()
