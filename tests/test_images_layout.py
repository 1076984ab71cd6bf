"""What the folders of image names mean: splits, classes, wrappers, copies; and what cannot be a class."""

from __future__ import annotations

import unicodedata
import warnings
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from featx.exceptions import DataError, ImageWarning
from featx.images import ImageSet, load_images

PNG = b"\x89PNG\r\n\x1a\n"
NFC, NFD = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")


def fill(root: Path, folders: list[str], n: int = 2) -> Path:
    """Two files with the first bytes of a PNG in each folder; nothing is decoded here."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(n):
            (root / folder / f"{number}.png").write_bytes(PNG)
    return root


def each(pattern: str, *values: list[str]) -> list[str]:
    """``each("{}/{}", ["train", "test"], ["cat", "dog"])``: four folders."""
    return [pattern.format(*some) for some in product(*values)]


def load(root: Path) -> tuple[ImageSet, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = load_images(root)
    return found, [str(one.message) for one in caught]


PETS = ["cat", "dog"]


@pytest.mark.parametrize(
    "folders",
    [
        each("{}/{}", ["training_set", "test_set"], PETS),
        each("{}/{}", ["Training", "Testing"], PETS),
        each("{}/{}", ["TrainSet", "TestSet"], PETS),
        each("{}/{}", ["train_images", "test_images"], PETS),
        each("{}/{}", ["images-train", "images-test"], PETS),
        each("{}/{}", ["train2017", "test2017"], PETS),
        each("{}/{}", ["seg_train", "seg_test"], PETS),
        each("{}/{}", ["pets.train.v2", "pets.test.v2"], PETS),
        each("seg_{0}/seg_{0}/{1}", ["train", "test"], PETS),
        each("{0}/{0}/{1}", ["train", "test"], PETS),
        each("{}/images/{}", ["train", "test"], PETS),
        each("dataset/{}/{}", ["train", "test"], PETS),
        each("a/b/c/{}/{}", ["train", "test"], PETS),
        each("pets/pets/{}/{}", ["train", "test"], PETS),
        each("{1}/{0}", ["train", "test"], PETS),
        each("{1}/{0}", ["Training", "Testing"], PETS),
        each("dataset/{1}/{0}", ["train_set", "test_set"], PETS),
        each("{}/{}/deep/deeper", ["train", "test"], PETS),
        [*each("{}/{}", ["train"], PETS), *each("test/{}/{}", PETS, ["2020", "2021"])],
        each("{}/{}", ["Train", "TEST"], PETS),
    ],
    ids=lambda folders: folders[0],
)
def test_splits_are_splits_however_they_are_named_and_wrapped(tmp_path: Path, folders: list[str]) -> None:
    found, warned = load(fill(tmp_path, folders))
    labels, splits = Counter(found.labels.tolist()), Counter(found.splits.tolist())
    assert set(labels) == {"cat", "dog"}
    assert set(splits) == {"train", "test"}
    assert sum(labels.values()) == 2 * len(folders)
    assert (warned, found.skipped) == ([], [])
    assert "plit" in found.remarks[0]


def test_what_each_folder_was_taken_for_is_said_in_one_line(tmp_path: Path) -> None:
    found, _ = load(fill(tmp_path, each("pets/seg_{0}/seg_{0}/{1}", ["train", "test"], PETS)))
    (said,) = found.remarks
    assert said.startswith("The set is read from pets/;")
    assert "the classes of seg_test are in seg_test/seg_test/" in said
    assert said.endswith("splits are seg_train (train), seg_test (test).")


@pytest.mark.parametrize(
    ("folders", "left_out", "why"),
    [
        (["pred"], "pred", "it is not a split"),
        (["pred/pred"], "pred", "it is not a split"),
        (["unlabelled", "extra"], "unlabelled", "it is not a split"),
        (each("pets/{}/{}", ["train", "test"], PETS), "pets", "it holds the splits once more"),
        (each("all/{}", PETS), "all", "it is not a split"),
    ],
)
def test_folders_beside_splits_are_left_out_by_name(
    tmp_path: Path, folders: list[str], left_out: str, why: str
) -> None:
    found, warned = load(fill(tmp_path, [*each("{}/{}", ["train", "test"], PETS), *folders]))
    assert Counter(found.labels.tolist()) == {"cat": 4, "dog": 4}
    assert len(warned) == len({folder.partition("/")[0] for folder in folders})
    assert any(f"the folder {left_out} (" in text and why in text for text in warned)
    assert found.skipped == []  # they are no images that could not be read


def test_a_second_copy_of_the_classes_is_left_out(tmp_path: Path) -> None:
    found, warned = load(fill(tmp_path, [*PETS, *each("pets/{}", PETS)]))
    assert found.names == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png"]
    assert "the folder pets (4 images) holds the folders of the set once more" in warned[0]


@pytest.mark.parametrize("test", ["test", "test/test", "test/unknown", "test/images", "Test_Images"])
def test_a_test_folder_without_classes_is_no_class_and_no_bad_image(tmp_path: Path, test: str) -> None:
    found, warned = load(fill(tmp_path, [*each("train/{}", PETS), test], n=20))
    assert Counter(found.labels.tolist()) == {"cat": 20, "dog": 20}
    assert (set(found.splits.tolist()), found.skipped) == ({"train"}, [])
    assert "the 20 images of test".lower() in warned[0].lower() or "Test_Images" in warned[0]
    assert "no labels" in warned[0]


def test_a_test_folder_with_one_of_the_classes_keeps_it(tmp_path: Path) -> None:
    found, _ = load(fill(tmp_path, [*each("train/{}", PETS), "test/cat/2020"]))
    assert found.labels.tolist() == ["cat", "cat", "cat", "cat", "dog", "dog"]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train", "bus"], "the folder train is named like a split"),
        (["test", "control", "placebo"], "the folder test is named like a split"),
        (["train", "test", "cat", "dog"], "named like a split"),
        (["training_set", "unlabelled"], "named like a split"),
        (["train/old", "train/new", "bus", "car"], "the folder train is named like a split"),
        (["valid", "train", "invalid"], "named like a split"),
        (
            each("{}/{}", ["train", "test"], ["train", "bus"]),
            "the folder (train|test)/train is named like a split",
        ),
        (["cv1/cat", "cv1/dog", "cv2/cat", "cv2/dog"], "parts of a cross-validation"),
        (each("fold_{}/{}", ["0", "1", "2"], PETS), "parts of a cross-validation"),
        (["images", "annotations"], "the folder annotations would be a class beside images"),
        (["images/cat", "images/dog", "masks"], "give images itself, whose folders are cat, dog"),
        (["train", *each("test/{}", PETS)], "the folder train has no class folders"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_would_be_a_class_by_mistake_stops(tmp_path: Path, folders: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_images(fill(tmp_path, folders))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "folders",
    [
        ["valid", "invalid"],
        ["train station", "bus stop"],
        ["test tube", "beaker"],
        ["contrast", "latest"],
        ["photo", "drawing", "cartoon"],
        ["pretrained", "scratch"],
        ["mask", "no_mask"],
        ["1", "2", "3"],
        ["fold", "crease"],
        ["猫", "犬"],
        ["developer", "manager"],
    ],
    ids=lambda folders: folders[0],
)
def test_classes_that_only_resemble_splits_are_classes(tmp_path: Path, folders: list[str]) -> None:
    found, warned = load(fill(tmp_path, folders))
    assert set(found.labels.tolist()) == set(folders)
    assert (found.splits, warned) == (None, [])


def test_the_same_folders_in_each_class_stay_below_the_class_and_it_is_said(tmp_path: Path) -> None:
    found, _ = load(fill(tmp_path, each("{}/{}", PETS, ["2020", "2021"])))
    assert set(found.labels.tolist()) == {"cat", "dog"}
    assert found.remarks == ["The classes are cat, dog, not the folders 2020, 2021 inside them."]


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (["entrenamiento", "prueba"], PETS),
        (["train-clean", "train-other"], PETS),
        (["source", "target"], PETS),
        (["original", "augmented"], PETS),
        (["client_1", "client_2"], PETS),
        (["A", "B"], ["ok", "defect"]),
    ],
    ids=lambda folders: folders[0],
)
def test_folders_that_hold_the_same_folders_are_classes_with_a_warning(
    tmp_path: Path, outer: list[str], inner: list[str]
) -> None:
    found, (warned,) = load(fill(tmp_path, each("{}/{}", outer, inner)))
    assert set(found.labels.tolist()) == set(outer)
    assert f"not the folders {', '.join(sorted(inner))} that each of them has" in warned
    assert "name the others train, val or test" in warned
    for name, split in zip(outer, ("train", "test"), strict=True):
        (tmp_path / name).rename(tmp_path / split)
    found, warned_now = load(tmp_path)
    assert (set(found.labels.tolist()), warned_now) == (set(inner), [])


@pytest.mark.parametrize("drawn", ["masks", "Mask", "annotations", "segmentation", "trimaps"])
def test_what_was_drawn_on_the_images_of_a_class_is_left_out(tmp_path: Path, drawn: str) -> None:
    fill(tmp_path, each("{}/images", PETS))
    fill(tmp_path, each("{}/" + drawn, PETS), n=3)
    found, (warned,) = load(tmp_path)
    assert Counter(found.labels.tolist()) == {"cat": 2, "dog": 2}
    assert f"cat/{drawn}, dog/{drawn} hold what was drawn on the images" in warned
    assert "(6 images)" in warned


@pytest.mark.parametrize(
    "names", [("trn", "tst"), ("train", "holdout"), ("train", "eval"), ("train", "validate"), ("dev", "test")]
)
def test_less_usual_names_of_splits_are_known(tmp_path: Path, names: tuple[str, str]) -> None:
    found, warned = load(fill(tmp_path, each("{}/{}", list(names), PETS)))
    assert (set(found.labels.tolist()), len(set(found.splits.tolist())), warned) == ({"cat", "dog"}, 2, [])


def test_splits_in_one_class_only_are_not_read_as_splits(tmp_path: Path) -> None:
    found, warned = load(fill(tmp_path, ["cat/train", "cat/test", "dog"]))
    assert (Counter(found.labels.tolist()), found.splits) == ({"cat": 4, "dog": 2}, None)
    assert "not read as splits" in warned[0]


@pytest.mark.parametrize(
    "folders",
    [
        [NFC, NFD, "dog"],
        [f"train/{NFC}", "train/dog", f"test/{NFD}", "test/dog"],
        [f"dataset/{NFD}", f"dataset/{NFC}", "dataset/dog"],
    ],
)
def test_a_class_in_two_unicode_forms_is_one_class(tmp_path: Path, folders: list[str]) -> None:
    found, warned = load(fill(tmp_path, folders))
    assert set(found.labels.tolist()) == {NFC, "dog"}
    assert "the class café has folders whose names differ" in found.remarks[0].lower()
    assert warned == []


def test_blanks_around_a_folders_name_make_no_class(tmp_path: Path) -> None:
    found, _ = load(fill(tmp_path, ["cat ", "cat", "dog\u200b", "dog"]))
    assert Counter(found.labels.tolist()) == {"cat": 4, "dog": 4}


def test_classes_that_differ_by_case_are_kept_apart_with_a_warning(tmp_path: Path) -> None:
    fill(tmp_path, ["Cat", "cat", "dog"])
    with pytest.warns(ImageWarning, match=r"'Cat' \(2 images\) and 'cat' \(2 images\) differ only by case"):
        found = load_images(tmp_path)
    assert len(set(found.labels.tolist())) == 3


def test_unlabelled_takes_all_whatever_the_folders_mean(tmp_path: Path) -> None:
    fill(tmp_path, ["train", "bus", "fold1", "images"])
    assert len(load_images(tmp_path, labelled=False)) == 8


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["cat.0.png", "cat.1.png", "dog.0.png", "dog.1.png"], "begin with cat, dog"),
        (["cat_0.png", "dog_0.png", "labels.csv", "cat_1.png", "dog_1.png"], "labels.csv may be a manifest"),
        (["IMG_0001.png", "IMG_0002.png"], "one folder per class"),
    ],
)
def test_images_without_labels_say_where_the_labels_may_be(
    tmp_path: Path, names: list[str], hint: str
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(PNG if name.endswith("png") else b"path,label\n")
    with pytest.raises(DataError, match=hint):
        load_images(tmp_path, labelled=True)


# Files that are no manifest


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("photos.zip", b"PK\x03\x04", "a zip archive; unpack it"),
        ("photos.tar.gz", b"\x1f\x8b\x08", "a gzip archive"),
        ("photos.tar", b"a.jpg".ljust(257, b"\0") + b"ustar", "a tar archive"),
        ("photos.7z", b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
        ("photos.rar", b"Rar!\x1a\x07", "a RAR archive"),
        ("data.json", b'[{"path": "a.jpg"}]', "a JSON file"),
        ("data.jsonl", b'{"path": "a.jpg"}\n', "a JSON file"),
        ("data.yaml", b"train: images/train\n", "a YAML file"),
        ("labels.txt", b"a.jpg cat\n", "text, not an image"),
        ("notes.txt", "Größe: ä\n".encode(), "text, not an image"),
        ("data.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        ("x.npy", b"\x93NUMPY", "a NumPy array"),
        ("m.featx", b"PK\x03\x04", "a saved model"),
        ("m.pkl", b"\x80\x04\x95", "a pickle"),
        ("film.mp4", b"\0\0\0\x18ftypisom", "a video"),
        ("table", b"PAR1", "a parquet table"),
        ("mystery.bin", b"\x01\x02\x03\xff", "not an image of a kind that is known"),
        ("empty.txt", b"", "not an image of a kind that is known"),
    ],
)
def test_a_file_that_is_no_manifest_is_told_what_it_is(
    tmp_path: Path, name: str, data: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        load_images(tmp_path / name)
    assert name in str(caught.value)
    assert "columns path and label" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data"), [("m.csv", b"PK\x03\x04\x14\0\0\0"), ("m.csv", b"\x89HDF\r\n\x1a\n\0")]
)
def test_a_table_that_is_none_is_told_what_it_is(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match="named like a table, but a"):
        load_images(tmp_path / name)
