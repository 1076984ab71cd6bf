"""Ten more situations of each kind in `docs/reliability.md`: what is left, what is kept, what is said."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import image_classifier
from PIL import Image
from sklearn.base import clone

import featx
from featx import ImageClassifier, Predictor
from featx.classifier.growth import grow
from featx.cli import main
from featx.duration import seconds_of
from featx.exceptions import DataError, LabelError, UsageError
from featx.images import load_images

Say = Callable[..., tuple[int, str]]

TINY = ["--backbone", "test_resnet.r160_in1k", "--random-weights", "--pool", "avg", "--resize", "crop"]
FIT = [*TINY, "--cut", "last", "--trials", "0", "--heads", "ridge", "--runtime", "torch"]
SMALL: dict[str, Any] = {
    "pretrained": False, "cut": "last", "pool": "avg", "resize": "crop", "heads": ["ridge"], "n_trials": 1,
    "cv": 2, "random_state": 0, "runtime": "torch",
}  # fmt: skip


def pictures(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Class folders of small pictures, tinted by their class."""
    rng = np.random.default_rng(seed)
    for label, count in counts.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        tint = np.array([[200, 40, 40], [40, 40, 200], [40, 200, 40]][len(label) % 3])
        for number in range(count):
            pixels = (rng.integers(0, 60, (36, 40, 3)) + tint).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


def broken(folder: Path) -> None:
    """Truncate all images of a folder."""
    for path in folder.rglob("*.png"):
        path.write_bytes(path.read_bytes()[:200])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set, six new images, and a model."""
    home = tmp_path_factory.mktemp("home")
    pictures(home / "set", {"red": 9, "blue": 9})
    pictures(home / "new", {"red": 3, "blue": 3}, seed=9)
    options = [*FIT, "--quiet", "--cache-dir", str(home / "cache")]
    assert main(["fit", str(home / "set"), "-o", str(home / "m.featx"), *options]) == 0
    pictures(home / "other", {"red": 9, "green": 9, "yellow": 9})
    assert main(["fit", str(home / "other"), "-o", str(home / "others.featx"), *options]) == 0
    return home


@pytest.fixture(scope="module")
def fitted(home: Path) -> ImageClassifier:
    """A classifier of this process."""
    return image_classifier("test_resnet", **SMALL).fit(home / "set")


# The empty remainder


def _test_broken(root: Path) -> list[str]:
    pictures(root / "d" / "train", {"red": 5, "blue": 5})
    broken(pictures(root / "d" / "test", {"red": 2, "blue": 2}))
    return ["fit", "d", "--max-bad", "0.5", *FIT]


def _train_broken(root: Path) -> list[str]:
    broken(pictures(root / "d" / "train", {"red": 2, "blue": 2}))
    pictures(root / "d" / "test", {"red": 5, "blue": 5})
    return ["fit", "d", "--max-bad", "0.5", *FIT]


def _train_empty(root: Path) -> list[str]:
    pictures(root / "d" / "test", {"red": 5, "blue": 5})
    (root / "d" / "train" / "red").mkdir(parents=True)
    return ["fit", "d", *FIT]


def _test_empty(root: Path) -> list[str]:
    pictures(root / "d" / "train", {"red": 6, "blue": 6})
    (root / "d" / "test" / "red").mkdir(parents=True)
    return ["fit", "d", *FIT]


def _class_lost(root: Path) -> list[str]:
    broken(pictures(root / "d", {"green": 2}))
    pictures(root / "d", {"red": 10, "blue": 10})
    return ["fit", "d", "--max-bad", "0.2", *FIT]


def _other_classes(root: Path) -> list[str]:
    pictures(root / "d" / "train", {"red": 5, "blue": 5})
    pictures(root / "d" / "test", {"green": 3})
    return ["fit", "d", *FIT]


def _one_patient(root: Path) -> list[str]:
    pictures(root / "d", {"red": 4, "blue": 4})
    rows = [f"d/{label}/{number}.png,{label},p1" for label in ("red", "blue") for number in range(4)]
    (root / "m.csv").write_text("\n".join(["path,label,group", *rows]))
    return ["fit", "m.csv", *FIT]


def _weightless(root: Path) -> list[str]:
    pictures(root / "d", {"red": 4, "blue": 4})
    rows = [f"d/{label}/{n}.png,{label},{int(label == 'red')}" for label in ("red", "blue") for n in range(4)]
    (root / "m.csv").write_text("\n".join(["path,label,weight", *rows]))
    return ["fit", "m.csv", "--no-test", *FIT]


def _blank(root: Path) -> list[str]:
    pictures(root / "d", {"red": 4})
    return ["curve", "d", *TINY]


def _unknown_report(root: Path) -> list[str]:
    pictures(root / "d", {"green": 3})
    return ["report", "MODEL", "d", "-o", "r.html"]


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (_test_broken, 1, "none of the 4 images of the test part can be used, such as test/blue/0.png: "),
        (_train_broken, 1, "none of the 4 images of the training part can be used"),
        (_train_empty, 1, "all 10 images are in the test part, so none is left for training"),
        (_test_empty, 0, "the folder test holds no image; a test part is drawn from the other images"),
        (_class_lost, 3, "classes of which no image can be used are not learnt: green (2)"),
        (_other_classes, 1, "classes that were not learnt: 'green'; learnt are 'blue', 'red'. Leave these"),
        (_one_patient, 1, "two classes are needed. Add images of other groups."),
        (_weightless, 1, "all training images of 'blue' have the weight 0"),
        (_blank, 1, "at least 2 classes are needed, got only 'red'"),
        (_unknown_report, 1, "the labels have classes that were not learnt: 'green'"),
    ],
)
def test_what_is_left_of_a_set_is_named(
    make: Callable[[Path], list[str]],
    code: int,
    words: str,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: Say,
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [str(home / "m.featx") if word == "MODEL" else word for word in make(tmp_path)]
    found, said = answer(*argv)
    assert (found, "Traceback" in said) == (code, False), said
    assert words in said


def test_a_lost_test_part_can_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Say
) -> None:
    monkeypatch.chdir(tmp_path)
    assert answer(*_test_broken(tmp_path), "--no-test")[0] == 3


def test_a_report_counts_images_of_classes_that_were_not_learnt(fitted: ImageClassifier, home: Path) -> None:
    images = [*sorted((home / "new").glob("*/*.png")), *sorted((home / "new").glob("*/*.png"))[:2]]
    labels = [path.parent.name for path in images[:6]] + ["green", "green"]
    with pytest.warns(UserWarning, match="2 of 8 images have classes that were not learnt: green"):
        made = featx.report(fitted, None, images, labels)
    assert made.known.evaluation is not None
    assert made.known.evaluation.n == 6


# An epilogue never fails the main job


@pytest.mark.parametrize(
    "spoil",
    [
        lambda root: (
            (root / "out.featx").write_bytes(b"no model"),
            (root / "r.json").write_text('{"mine": 1}'),
        ),
        lambda root: (
            (root / "out.featx").write_bytes((root / "old.featx").read_bytes()[:5000]),
            (root / "r.json").mkdir(),
        ),
        lambda root: (
            (root / "out.featx").write_bytes(b""),
            (root / "out.featx.skipped.csv").mkdir(),
        ),
        lambda root: (
            (root / "out.featx").symlink_to("nowhere.featx"),
            (root / "r.html").write_text("<p>my own page"),
        ),
        lambda root: (
            shutil.copy(root / "others.featx", root / "out.featx"),
            (root / "r.html").symlink_to("no/such/folder.html"),
        ),
    ],
    ids=[
        "text and other json",
        "truncated and json is a folder",
        "empty and list is a folder",
        "link to nothing and other page",
        "model of other classes and page in no folder",
    ],
)
def test_what_stands_beside_a_model_never_fails_its_fit(
    spoil: Callable[[Path], object], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Say
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(home / "m.featx", "old.featx")
    shutil.copy(home / "others.featx", "others.featx")
    shutil.copytree(home / "set", "set")
    (tmp_path / "set" / "red" / "8.png").write_bytes(b"\x89PNG broken")
    spoil(tmp_path)
    code, said = answer("fit", "set", "-o", "out.featx", "--report", "r.html", "--max-bad", "0.2", *FIT)
    assert (code, "Traceback" in said) == (3, False), said
    assert len(featx.load("out.featx").classes_) == 2
    if (tmp_path / "r.json").is_file() and "mine" in (tmp_path / "r.json").read_text():
        assert "no report: r.json is not of a report" in said


# A key that lacks what it stores


@pytest.mark.parametrize(
    ("argv", "kept"),
    [
        (["predict", "MODEL", "list.csv", "-o", "list.csv"], "list.csv"),
        (["evaluate", "MODEL", "list.csv", "-o", "./list.csv"], "list.csv"),
        (["extract", "list.csv", *TINY, "-o", "list.csv"], "list.csv"),
        (["check", "list.csv", "--csv", "list.csv"], "list.csv"),
        (["fix", "list.csv", "--apply", "fixes.csv", "-o", "list.csv"], "list.csv"),
        (["fix", "list.csv", "--apply", "fixes.csv", "-o", "fixes.csv"], "fixes.csv"),
        (["show", "augment", "set/red/0.png", "-o", "set/red/0.png"], "set/red/0.png"),
        (["report", "MODEL", "-o", "mine.html"], "mine.json"),
        (["predict", "MODEL", "set", "-o", "set/red/0.png"], "set/red/0.png"),
    ],
)
def test_nothing_that_is_read_or_of_another_kind_is_written_over(
    argv: list[str], kept: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Say
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(home / "set", "set")
    (tmp_path / "list.csv").write_text("path,label\nset/red/0.png,red\nset/blue/0.png,blue\n")
    (tmp_path / "fixes.csv").write_text("path,action\n")
    (tmp_path / "mine.json").write_text('{"a": 1}')
    before = (tmp_path / kept).read_bytes()
    code, said = answer(*[str(home / "m.featx") if word == "MODEL" else word for word in argv])
    assert (code, (tmp_path / kept).read_bytes()) == (2, before), said


def test_a_report_replaces_its_own_page_and_json(home: Path, tmp_path: Path, answer: Say) -> None:
    for _ in range(2):
        assert answer("report", home / "m.featx", "-o", tmp_path / "r.html")[0] == 0


def test_a_model_of_weighted_images_does_not_forget_the_weights(home: Path, tmp_path: Path) -> None:
    clf = image_classifier("test_resnet", **SMALL)
    images = load_images(home / "set")
    weights = np.where(images.labels == "red", 5.0, 1.0)
    clf.fit_with_test(images, sample_weight=weights)
    loaded = featx.load(clf.save(tmp_path / "m.featx"), store=clf.store)
    with pytest.raises(UsageError, match="sample weights of the old images are not kept"):
        grow(loaded, load_images(home / "new"))


@pytest.mark.parametrize(
    "change", [{"extractor__pixel_range": "0,9"}, {"pool": "max"}, {"backbone": "resnet18"}, {"cut": 1}]
)
def test_parameters_that_are_set_after_a_fit_do_not_change_its_predictions(
    change: dict[str, Any], fitted: ImageClassifier, home: Path
) -> None:
    other = copy.deepcopy(fitted).set_params(**change)
    assert other.predict_proba(home / "new").tolist() == fitted.predict_proba(home / "new").tolist()


# State that does not survive

MODELS: dict[str, Any] = {}


def _predict(name: str) -> list[str]:
    return MODELS[name].predict(MODELS["new"]).tolist()


def _answer_of(pickled: tuple[bytes, str]) -> list[str]:
    return pickle.loads(pickled[0]).predict(pickled[1]).tolist()


@pytest.mark.parametrize("name", ["fitted", "loaded", "predictor"])
@pytest.mark.parametrize("how", ["pickle", "deepcopy", "threads", "fork", "elsewhere", "gone", "replaced"])
def test_a_model_predicts_the_same_after(
    how: str, name: str, fitted: ImageClassifier, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, new = tmp_path / "m.featx", str(home / "new")
    shutil.copy(home / "m.featx", path)
    model = {
        "fitted": lambda: fitted,
        "loaded": lambda: featx.load(path),
        "predictor": lambda: Predictor(path, runtime="torch"),
    }[name]()
    if how in ("gone", "replaced", "elsewhere"):  # before the first use, which opens the network
        if how == "gone":
            path.unlink()
        elif how == "replaced":
            path.write_bytes(b"another file")
        else:
            (tmp_path / "else").mkdir()
            monkeypatch.chdir(tmp_path / "else")
        assert model.predict(new).tolist() == fitted.predict(new).tolist()
        return
    expected = model.predict(new).tolist()
    assert expected == fitted.predict(new).tolist()
    if how == "pickle":
        assert all(_answer_of((pickle.dumps(model, number), new)) == expected for number in (2, 5))
    elif how == "deepcopy":
        assert copy.deepcopy(model).predict(new).tolist() == expected
    elif how == "threads":
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda _: model.predict(new).tolist(), range(8))) == [expected] * 8
    else:
        MODELS.update({name: model, "new": new})
        with get_context("fork").Pool(1) as pool:
            assert pool.apply_async(_predict, (name,)).get(timeout=60) == expected


def test_a_fit_that_fails_leaves_the_model_before_and_a_clone_is_unfitted(
    fitted: ImageClassifier, home: Path
) -> None:
    clf = copy.deepcopy(fitted)
    with pytest.raises(DataError):
        clf.fit([], [])
    assert clf.predict(home / "new").tolist() == fitted.predict(home / "new").tolist()
    with pytest.raises(Exception, match="not fitted"):
        clone(clf).predict(home / "new")


# Inputs that people expect


@pytest.mark.parametrize(
    ("make", "labels"),
    [
        (lambda files: [{"path": file, "label": file.parent.name} for file in files], 2),
        (lambda files: [{"image": Image.open(file), "label": file.parent.name} for file in files], 2),
        (lambda files: {"filename": files, "class": [file.parent.name for file in files]}, 2),
        (lambda files: {"image": files, "Category": [file.parent.name for file in files]}, 2),
        (lambda files: zip(files, [file.parent.name for file in files], strict=True), 2),
        (lambda files: {"path": files, "species": [file.parent.name for file in files]}, None),
        (lambda files: set(files), None),
        (lambda files: [os.fsencode(file) for file in files], None),
        (lambda files: list(os.scandir(files[0].parent)), None),
        (lambda files: [{"path": file} for file in files], None),
    ],
)
def test_what_holds_images_keeps_its_labels(
    make: Callable[[list[Path]], Any], labels: int | None, home: Path
) -> None:
    images = load_images(make(sorted((home / "new").glob("*/*.png"))))
    assert len(images) in (3, 6)
    assert (None if images.labels is None else len(set(images.labels.tolist()))) == labels


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"label": ["a", "b"]}, "none of the columns"),
        ({"red": ["a.png"], "blue": ["b.png"]}, "two columns, path and label"),
    ],
)
def test_columns_that_hold_no_images_are_refused(columns: dict[str, list[str]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_images(columns)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (["", *"ababa"], r"1 label is missing \(None, NaN or blank\), in rows 0"),
        (np.array([" ", *"ababa"]), "blank"),
        ({"a": 1}, "labels are a single value"),
    ],
)
def test_labels_that_are_none_are_refused(y: Any, words: str, home: Path) -> None:
    with pytest.raises((LabelError, DataError), match=words):
        image_classifier("test_resnet", **SMALL).fit(sorted((home / "new").glob("*/*.png")), y)


@pytest.mark.parametrize(
    "weight", [[-1.0] * 6, [float("nan")] * 6, ["heavy"] * 6, [float("inf")] * 6, [0] * 6]
)
def test_weights_that_are_none_are_refused(weight: list[Any], home: Path) -> None:
    clf = image_classifier("test_resnet", **SMALL)
    with pytest.raises(DataError, match="weight"):
        clf.fit(home / "new", sample_weight=weight)


def test_labels_may_be_an_iterator_or_a_frame_of_one_column(home: Path) -> None:
    pd = pytest.importorskip("pandas")
    files = sorted((home / "set").glob("*/*.png"))
    labels = [file.parent.name for file in files]
    for y in (iter(labels), pd.DataFrame({"y": labels})):
        assert image_classifier("test_resnet", **SMALL).fit(files, y).classes_.tolist() == ["blue", "red"]


# Words and waits


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("-", "a pipe is not read"),
        ("PIPE", "a pipe is not read"),
        ("~nobody/photos", "no such file; give the path itself"),
        ("file:///nowhere/photos", "give the path itself: /nowhere/photos"),
        ("phtos", "the nearest name is photos"),
        ("photos/*.jpg", "no file matches this pattern"),
    ],
)
def test_a_path_that_leads_nowhere_says_what_is_meant(
    path: str, words: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Say
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    if path == "PIPE":
        os.mkfifo(path)
    code, said = answer("predict", home / "m.featx", path)
    assert (code, words in said) == (1, True), said


@pytest.mark.parametrize(
    "options",
    [
        ["--scoring", "acc"],
        ["--scoring", "f1"],
        ["--scoring", "f1", "--positive", "rde"],
        ["--heads", "ridgee"],
        ["--decide", "rde=5"],
        ["--test-size", "1"],
        ["--cache-dir", ""],
    ],
)
def test_a_dry_run_refuses_what_the_fit_refuses(
    options: list[str], home: Path, tmp_path: Path, answer: Say
) -> None:
    argv = ["fit", home / "set", "-o", tmp_path / "m.featx", *FIT, *options]
    code, said = answer(*argv, "--dry-run")
    assert code in (1, 2)
    again, word = answer(*argv)
    assert (again, word.splitlines()[-1]) == (code, said.splitlines()[-1])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5 minutes", 300),
        ("1.5 hours", 5400),
        ("2 hrs", 7200),
        ("90 secs", 90),
        ("1 day", 86400),
        ("10 mins", 600),
        ("1h 30m", 5400),
        ("3 ms", None),
        ("ten", None),
        ("1:30", None),
    ],
)
def test_times_in_words(text: str, seconds: float | None) -> None:
    with contextlib.nullcontext() if seconds else pytest.raises(UsageError, match="is not a time"):
        assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("dinov2", "vit_base_patch14_dinov2"),
        ("torchvision/resnet50", "resnet50"),
        ("ResNet-50", "resnet50"),
        ("timm/resnet50.a1_in1k", "resnet50.a1_in1k"),
        ("siglip", "vit_base_patch16_siglip_224"),
    ],
)
def test_the_nearest_names_of_networks_hold_what_was_written(name: str, nearest: str, answer: Say) -> None:
    code, said = answer("taps", name)
    assert (code, f"nearest: {nearest}," in said) == (1, True), said
