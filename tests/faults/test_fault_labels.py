"""Rows 35 to 43, 47, 48, 53 and 54 of the faults in docs/reliability.md: labels, classes, budgets."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import image_classifier
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from staging import FIT, REPRESENTATION, TINY, classes, featx, photo, pixels

from featx import HeadSearchCV, ImageClassifier, load
from featx.exceptions import DataError, FeatxError, LabelError
from featx.stores.memory import MemoryStore


def manifest(path: Path, rows: list[tuple[Any, ...]], header: str = "path,label") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)
    return path


def small(**params: Any) -> ImageClassifier:
    """A classifier that fits in a second."""
    settings: dict[str, Any] = {
        "backbone": "test_resnet", "pretrained": False, "runtime": "torch", "input_size": 32, "cut": "last",
        "pool": "avg", "resize": "crop", "heads": ["logistic"], "n_trials": 1, "cv": 2, "store": STORE,
        "random_state": 0,
    }  # fmt: skip
    return image_classifier(**{**settings, **params})


STORE = MemoryStore()
PICTURES = [pixels(seed, tint=(90, -60, -60) if seed % 2 else (-60, -60, 90)) for seed in range(12)]


# Row 35


def test_row_35_rows_that_are_all_alike_are_fitted_with_a_warning(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from featx.backbones import load_backbone

    network = load_backbone("test_resnet", pretrained=False).module
    blind = {name: value * 0 for name, value in network.state_dict().items()}
    save_file(blind, tmp_path / "blind.safetensors")
    photos = classes(tmp_path / "photos", each=8)
    plain = [word for word in FIT if word != "--random-weights"]
    said = featx("fit", photos, "-o", "m.featx", *plain, "--checkpoint", tmp_path / "blind.safetensors")
    assert said.code == 0, said.err
    assert "constant" in said.err
    metrics = said.document["evaluation"]["metrics"]
    assert all(math.isfinite(metric["value"]) for metric in metrics.values())


# Rows 36 to 43


def test_row_36_a_single_class_is_named_with_its_count(tmp_path: Path) -> None:
    photos = classes(tmp_path / "photos", "cat", each=5)
    said = featx("fit", photos, "-o", "m.featx", *FIT)
    assert said.code == 1
    assert "2 classes" in said.error
    assert "'cat'" in said.error
    assert "5 images" in said.error


def test_row_37_small_classes_lower_the_folds_and_single_images_are_left_out(tmp_path: Path) -> None:
    photos = classes(tmp_path / "photos", each=12)
    photo(photos / "green" / "lonely.png", 77)
    for seed in range(4):
        photo(photos / "few" / f"{seed}.png", 300 + seed, tint=(-60, 90, -60))
    said = featx("fit", photos, "-o", "m.featx", *FIT[:-1], "5")
    assert said.code == 0, said.err
    assert "classes with fewer than 2 images are left out (--min-per-class): green (1)" in said.err
    assert "folds instead of 5: the smallest class, 'few'" in said.err
    kept = featx("fit", photos, "-o", "m.featx", *FIT, "--min-per-class", "1")
    assert kept.code == 1
    assert "'green'" in kept.error
    assert "leave these classes out" in kept.error


def test_row_38_lengths_that_differ_and_missing_or_mixed_labels_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="12 images but 11 labels"):
        small().fit(PICTURES, ["a", "b"] * 5 + ["a"])
    with pytest.raises(LabelError, match=r"2 labels are missing \(None, NaN or blank\), in rows 3, 7 "):
        small().fit(PICTURES, [None if row in (3, 7) else "ab"[row % 2] for row in range(12)])
    with pytest.raises(LabelError, match=r"mixed types.*row 0.*row 5"):
        small().fit(PICTURES, ["ab"[row % 2] if row != 5 else 1 for row in range(12)])
    photos = classes(tmp_path / "photos", each=3)
    listed = [(path.relative_to(tmp_path), path.parent.name) for path in sorted(photos.rglob("*.png"))]
    listed[4] = (listed[4][0], "")
    said = featx("fit", manifest(tmp_path / "m.csv", listed), "-o", "m.featx", *FIT)
    assert said.code == 1
    assert "row 6" in said.error  # as a spreadsheet counts, the header being row 1


@pytest.mark.parametrize(
    "labels",
    [[0.0, 1.0], [0, 1], [True, False], ["a", "b"], np.array(["x", "y"], dtype=object)],
    ids=["whole floats", "int", "bool", "str", "object"],
)
def test_row_39_labels_keep_their_type(labels: Any) -> None:
    y = np.asarray([labels[row % 2] for row in range(12)])
    clf = small().fit(PICTURES, y)
    assert {type(label) for label in clf.predict(PICTURES).tolist()} <= {type(labels[0]), int}
    assert sorted(clf.classes_.tolist()) == sorted(set(y.tolist()))
    assert clf.score(PICTURES, y) > 0.5


def test_row_39_pandas_categories_are_learnt_and_an_unseen_class_is_named(
    shared: Path, tmp_path: Path
) -> None:
    pandas = pytest.importorskip("pandas")
    clf = small().fit(PICTURES, pandas.Series(["a", "b"] * 6, dtype="category"))
    assert clf.classes_.tolist() == ["a", "b"]
    strangers = classes(tmp_path / "photos", "red", "violet", each=2)
    said = featx("evaluate", shared / "m.featx", strangers, "--cache-dir", shared / "cache")
    assert said.code == 1
    assert "classes that were not learnt: 'violet'" in said.error


def test_row_40_one_picture_under_two_labels_is_named_and_stays_in_one_fold(tmp_path: Path) -> None:
    photos = classes(tmp_path / "photos", each=12)
    shutil.copy(photos / "red" / "red_01.png", photos / "blue" / "twin.png")
    said = featx("fit", photos, "-o", "m.featx", *FIT)
    assert said.code == 0
    assert "red/red_01.png" in said.err
    assert "blue/twin.png" in said.err
    assert "1 image has several labels (copies or near copies)" in said.err
    assert load("m.featx").assignment_  # and stays on one side: one digest, one part


def test_row_41_a_given_split_that_leaks_is_warned_of(tmp_path: Path) -> None:
    for part in ("train", "test"):
        classes(tmp_path / "photos" / part, each=8)
    said = featx("fit", tmp_path / "photos", "-o", "m.featx", *FIT)
    assert said.code == 0
    assert "16 test images have copies in an earlier part (same bytes)" in said.err


def test_row_42_rows_of_another_width_are_refused_with_what_they_should_be() -> None:
    rng = np.random.default_rng(0)
    search = HeadSearchCV(["logistic"], n_trials=1, cv=2, random_state=0).fit(
        rng.normal(size=(20, 8)), [0, 1] * 10
    )
    with pytest.raises(ValueError, match=r"12 features.*8 features"):
        search.predict(rng.normal(size=(3, 12)))
    clf = small().fit(PICTURES, ["a", "b"] * 6)
    with pytest.raises(FeatxError, match=r"\(48, 64, 5\)|\(1, 48, 64, 5\)"):
        clf.predict([np.zeros((48, 64, 5), np.uint8)])
    assert clf.predict([PICTURES[0][:, :, 0], np.dstack([PICTURES[0], PICTURES[0][:, :, 0]])]).shape == (2,)


def test_row_43_a_fit_is_needed_a_clone_forgets_it_and_a_refit_leaves_nothing() -> None:
    clf = small()
    for call in (clf.predict, clf.predict_proba, clf.decision_function, clf.score, clf.extract):
        with pytest.raises(NotFittedError):
            call(PICTURES)
    with pytest.raises(NotFittedError):
        clf.save("m.featx")
    clf.fit(PICTURES, ["a", "b"] * 6)
    with pytest.raises(NotFittedError):
        clone(clf).predict(PICTURES)
    clf.fit_with_test(PICTURES * 1, ["a", "b"] * 6, test_size=0.3)
    assert clf.evaluation_ is not None
    clf.fit(PICTURES, ["c", "d", "e"] * 4)
    assert clf.classes_.tolist() == ["c", "d", "e"]
    assert clf.predict_proba(PICTURES).shape == (12, 3)
    assert clf.evaluation_ is None, "a score of another data set"


# Rows 47 and 48

HOSTILE = (
    "../../up",
    "CON",
    "a/b",
    "x" * 300,
    "<script>alert(1)</script>",
    '"onerror=',
    "=1+1",
    "@SUM(A1)",
    "-2",
    "\x1b[31mred",
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a manifest of hostile class names, and what `fit` made of it below `out/`."""
    folder = tmp_path_factory.mktemp("outer") / "inner"
    listed = []
    for number, label in enumerate(HOSTILE):
        for index in range(6):
            tint = tuple(np.random.default_rng(number).integers(-90, 90, 3).tolist())
            path = photo(folder / "p" / f"{number}_{index}.png", 100 * number + index, tint=tint)
            listed.append((path.relative_to(folder), label))
    bad = folder / "p" / "=cmd|' <script>.jpg"
    bad.write_bytes(b"")
    listed.append((bad.relative_to(folder), HOSTILE[0]))
    (folder / "out").mkdir()
    said = featx(
        "fit", manifest(folder / "m.csv", listed), "-o", folder / "out" / "m.featx", *FIT,
        "--cache-dir", folder / "cache",
    )  # fmt: skip
    assert said.code == 3, said.err
    (folder / "said.json").write_text(json.dumps(said.document))
    (folder / "said.err").write_text(said.err)
    return folder


def test_row_47_a_class_name_is_never_a_path(hostile: Path) -> None:
    assert sorted(path.name for path in (hostile / "out").iterdir()) == ["m.featx", "m.featx.skipped.csv"]
    assert sorted(path.name for path in hostile.parent.iterdir()) == ["inner"]
    assert not [path for path in hostile.rglob("*") if path.name.startswith(("CON", "up", "xxx"))]
    assert sorted(load(hostile / "out" / "m.featx").classes_.tolist()) == sorted(HOSTILE)


def test_row_48_names_are_exact_in_json_and_harmless_in_csv_and_on_a_terminal(hostile: Path) -> None:
    document = json.loads((hostile / "said.json").read_text())
    assert sorted(document["evaluation"]["classes"]) == sorted(HOSTILE)
    assert "\x1b" not in (hostile / "said.err").read_text()
    said = featx(
        "predict", hostile / "out" / "m.featx", hostile / "p", "-o", hostile / "preds.csv",
        "--cache-dir", hostile / "cache", "--top-k", "10",
    )  # fmt: skip
    assert said.code == 3
    assert {top["label"] for one in said.document["predictions"] for top in one["top"]} == set(HOSTILE)
    for path in (hostile / "preds.csv", hostile / "preds.csv.skipped.csv"):
        text = path.read_text("utf-8")
        assert "\x1b" not in text
        with path.open(newline="", encoding="utf-8") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "@", "+", "-"))]
    with (hostile / "preds.csv").open(newline="", encoding="utf-8") as file:
        labels = {row["label_1"] for row in csv.DictReader(file)}
    assert labels <= {f"'{name}" if name[0] in "=@-" else name.replace("\x1b", "\\x1b") for name in HOSTILE}
    plain = featx(
        "fit",
        hostile / "m.csv",
        "-o",
        hostile / "out" / "n.featx",
        *FIT,
        "--cache-dir",
        hostile / "cache",
        json_document=False,
    )
    assert "\x1b" not in plain.out + plain.err


# Rows 53 and 54


def test_row_53_a_torn_journal_is_trimmed_and_its_trials_count(tmp_path: Path) -> None:
    photos = classes(tmp_path / "photos")
    command = ("fit", photos, "-o", "m.featx", *FIT, "--storage", tmp_path / "study.journal")
    first = featx(*command)
    assert first.code == 0, first.err
    with (tmp_path / "study.journal").open("ab") as file:
        file.write(b'{"op_code": 4, "worker_id": "torn')
    again = featx(*command)
    assert again.code == 0, again.err
    assert again.document["model"] == first.document["model"]  # nothing was tried again


def test_row_53_a_study_of_other_data_is_not_continued(tmp_path: Path) -> None:
    photos = classes(tmp_path / "photos")
    command = ("fit", photos, "-o", "m.featx", *FIT, "--storage", tmp_path / "study.journal")
    assert featx(*command, "--study-name", "mine").code == 0
    photo(photos / "red" / "another.png", 999)
    said = featx(*command, "--study-name", "mine")
    assert said.code == 1
    assert "study 'mine' was made for other data" in said.error
    assert featx(*command).code == 0  # by default each space and data set has a study of its own


def test_row_53_when_every_trial_fails_the_first_cause_is_told() -> None:
    def broken(y_true: Any, y_pred: Any) -> float:
        raise ZeroDivisionError("no score today")

    from sklearn.metrics import make_scorer

    with pytest.raises(FeatxError, match="ZeroDivisionError: no score today"):
        small(scoring=make_scorer(broken)).fit(PICTURES, ["a", "b"] * 6)


def test_row_54_without_trials_the_defaults_are_fitted_and_it_is_said(tmp_path: Path) -> None:
    photos = classes(tmp_path / "photos")
    said = featx("fit", photos, "-o", "m.featx", *TINY, *REPRESENTATION, "--cv", "2", "--trials", "0")
    assert said.code == 0, said.err
    assert "default parameters were fitted" in said.err
    assert said.document["model"]["n_configurations"] == 1
    assert Path("m.featx").exists()


# Labels of any kind

LABELS = st.one_of(
    st.lists(st.integers(-3, 3), min_size=12, max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12),
    st.lists(st.text(max_size=3), min_size=12, max_size=12),
    st.lists(st.sampled_from([0.0, 1.0, 2.0, 0.5, math.nan, math.inf]), min_size=12, max_size=12),
    st.lists(
        st.one_of(st.none(), st.integers(0, 1), st.sampled_from(["a", b"a", (1, 2), {}])),
        min_size=12,
        max_size=12,
    ),
    st.lists(st.integers(0, 2), max_size=14),
    st.sampled_from([None, 5, "ab", np.zeros((12, 2)), np.eye(12), np.arange(12) / 7]),
)


@given(labels=LABELS, as_array=st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.filterwarnings("ignore::featx.exceptions.SearchWarning")
def test_labels_of_any_kind_keep_their_type_or_are_refused_in_words(labels: Any, as_array: bool) -> None:
    if as_array and isinstance(labels, list):
        array = np.empty(len(labels), dtype=object)
        array[:] = labels
        labels = array
    try:
        clf = small(n_trials=0).fit(PICTURES, labels)
    except DataError:  # in words, which the base class is for
        return
    known = {(type(label).__name__, label) for label in np.asarray(labels).tolist()}
    assert {label for _, label in known} == set(clf.classes_.tolist())
    assert set(clf.predict(PICTURES).tolist()) <= {label for _, label in known}


ROWS = np.random.default_rng(0).normal(size=(12, 4))


@given(labels=LABELS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.filterwarnings("ignore::featx.exceptions.SearchWarning")
def test_a_search_takes_labels_of_any_kind_or_refuses_them_in_words(labels: Any) -> None:
    try:
        search = HeadSearchCV(["logistic"], n_trials=0, cv=2, random_state=0).fit(ROWS, labels)
    except DataError:  # in words, which the base class is for
        return
    assert set(search.predict(ROWS).tolist()) <= set(np.asarray(labels).tolist())
