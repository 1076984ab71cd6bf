"""Files that the command line writes: what the ending of the name says, or nothing at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from featx import ImageClassifier
from featx.cli import main
from featx.images import load_images

pd = pytest.importorskip("pandas")

TINY = ["--backbone", "test_resnet", "--random-weights", "--runtime", "torch"]
BLOCK = "last:avg:crop"


@pytest.fixture
def model(class_folders: Path, tmp_path: Path) -> Path:
    path = tmp_path / "m.featx"
    search = ["--cut", "last", "--pool", "avg", "--resize", "crop", "--heads", "logistic", "--trials", "0"]
    assert main(["fit", str(class_folders), "-o", str(path), *TINY, *search, "--cv", "2"]) == 0
    return path


def _frame(frame: Any) -> tuple[list[Any], list[Any], np.ndarray]:
    features = frame.drop(columns=["path", "label", "id"])
    assert next(iter(features.columns)) == f"{BLOCK}:0"
    return frame["path"].tolist(), frame["label"].tolist(), features.to_numpy(np.float32)


def _npz(path: Path) -> tuple[list[Any], list[Any], np.ndarray]:
    with np.load(path) as found:
        return found["path"].tolist(), found["label"].tolist(), found[BLOCK]


def _h5(path: Path) -> tuple[list[Any], list[Any], np.ndarray]:
    with h5py.File(path) as file:
        return file["path"].asstr()[:].tolist(), file["label"].asstr()[:].tolist(), file[BLOCK][:]


READ: dict[str, Callable[[Path], tuple[list[Any], list[Any], np.ndarray]]] = {
    "x.npz": _npz,
    "x.csv": lambda path: _frame(pd.read_csv(path)),
    "x.PARQUET": lambda path: _frame(pd.read_parquet(path)),
    "x.h5": _h5,
    "x.hdf5": _h5,
}


def test_extract_writes_what_the_ending_says_with_paths_and_labels(
    class_folders: Path, tmp_path: Path
) -> None:
    images = load_images(class_folders)
    assert main(["extract", str(class_folders), *TINY, "-o", str(tmp_path / "x.npy")]) == 0
    alone = np.load(tmp_path / "x.npy")
    assert alone.shape[0] == 24
    assert np.ptp(alone, axis=0).max() > 0
    for name, read in READ.items():
        assert main(["extract", str(class_folders), *TINY, "-o", str(tmp_path / name)]) == 0
        paths, labels, features = read(tmp_path / name)
        assert (paths, labels) == (images.names, images.labels.tolist()), name
        np.testing.assert_array_equal(features, alone, name)


def test_extracted_blocks_stand_side_by_side(class_folders: Path, tmp_path: Path) -> None:
    several = ["--taps", "last,layer2", "--pool", "avg,max"]
    for name in ("x.csv", "x.npz", "x.npy"):
        assert main(["extract", str(class_folders), *TINY, *several, "-o", str(tmp_path / name)]) == 0
    with np.load(tmp_path / "x.npz") as found:
        blocks = {block: found[block] for block in found.files if ":" in block}
    assert len(blocks) == 4
    side_by_side = np.hstack(list(blocks.values()))
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), side_by_side)
    features = pd.read_csv(tmp_path / "x.csv").drop(columns=["path", "label", "id"])
    np.testing.assert_array_equal(features.to_numpy(np.float32), side_by_side)


def test_labels_of_a_manifest_keep_their_type_and_images_without_a_label_have_none(
    class_folders: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text("path,label\nphotos/red/red_00.png,7\nphotos/blue/blue_00.png,8\n", "utf-8")
    assert main(["extract", str(manifest), *TINY, "-o", str(tmp_path / "x.parquet")]) == 0
    assert pd.read_parquet(tmp_path / "x.parquet")["label"].tolist() == [7, 8]
    flat = class_folders / "red"
    assert main(["extract", str(flat), *TINY, "-o", str(tmp_path / "flat.parquet")]) == 0
    assert "label" not in pd.read_parquet(tmp_path / "flat.parquet").columns


def _predictions_csv(path: Path) -> list[tuple[Any, ...]]:
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [(row["path"], row["label"], round(float(row["probability"]), 6)) for row in rows]


def _predictions_json(path: Path) -> list[tuple[Any, ...]]:
    rows = json.loads(path.read_text("utf-8"))
    return [(row["path"], row["label"], round(row["probability"], 6)) for row in rows]


def _predictions_parquet(path: Path) -> list[tuple[Any, ...]]:
    frame = pd.read_parquet(path)
    assert frame["probability_2"].dtype == np.float64
    rows = zip(frame["path"], frame["label"], frame["probability"], strict=True)
    return [(path, label, round(value, 6)) for path, label, value in rows]


READ_PREDICTIONS = {"p.csv": _predictions_csv, "p.JSON": _predictions_json, "p.parquet": _predictions_parquet}


def test_predict_writes_what_the_ending_says(model: Path, class_folders: Path, tmp_path: Path) -> None:
    images = load_images(class_folders)
    for name, read in READ_PREDICTIONS.items():
        assert main(["predict", str(model), str(class_folders), "-o", str(tmp_path / name)]) == 0
        found = read(tmp_path / name)
        assert [path for path, _, _ in found] == images.names
        assert {label for _, label, _ in found} == {"red", "blue"}
        assert all(0.5 <= value <= 1 for _, _, value in found)
    for kind, read_frame in ((".json", pd.read_json), (".parquet", pd.read_parquet)):
        path = tmp_path / f"unsure{kind}"
        options = ["--min-confidence", "1", "-o", str(path)]
        assert main(["predict", str(model), str(class_folders), *options]) == 0
        assert read_frame(path)["label"].isna().tolist() == [True] * 24
    assert main(["predict", str(model), str(class_folders), "-o", "/dev/null"]) == 0  # a device: CSV


@pytest.mark.parametrize(
    ("argv", "endings"),
    [
        (["extract", "DATA", *TINY, "-o"], ".npz, .npy, .csv, .parquet, .h5, .hdf5"),
        (["cache", "export", "0", "-o"], ".npz, .npy, .csv, .parquet, .h5, .hdf5"),
        (["predict", "MODEL", "DATA", "-o"], ".csv, .json, .parquet"),
        (["fit", "DATA", *TINY, "-o"], ".featx"),
        (["add", "MODEL", "DATA", "-o"], ".featx"),
        (["fit", "DATA", *TINY, "--report"], ".html, .htm"),
        (["report", "MODEL", "DATA", "-o"], ".html, .htm"),
        (["check", "DATA", *TINY, "-o"], ".html, .htm"),
        (["check", "DATA", *TINY, "--csv"], ".csv"),
        (["fix", "DATA", "--apply", "absent.csv", "-o"], ".csv"),
        (["evaluate", "MODEL", "DATA", "-o"], ".csv"),
        (["card", "MODEL", "-o"], ".md, .markdown, .txt"),
        (["advise", "DATA", *TINY, "--plot"], ".png"),
        (["curve", "DATA", *TINY, "--plot"], ".png"),
        (["show", "augment", "DATA", *TINY[:3], "-o"], ".png"),
    ],
)
@pytest.mark.parametrize("name", ["x.xlsx", "x"])
def test_any_other_ending_is_refused_before_the_work_with_the_list(
    argv: list[str],
    endings: str,
    name: str,
    class_folders: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"DATA": str(class_folders), "MODEL": str(tmp_path / "absent.featx")}
    code = main([*(places.get(word, word) for word in argv), str(tmp_path / name)])
    assert code == 2
    said = capsys.readouterr().err
    assert f"ends in {endings}." in said
    assert name in said
    assert not (tmp_path / name).exists()


def test_python_refuses_a_model_file_of_another_ending(tmp_path: Path, picture: Callable[..., Any]) -> None:
    clf = ImageClassifier("test_resnet", cut=None, pool="avg", resize="crop", heads=["ridge"], n_trials=1)
    clf.set_params(cv=2, store="memory", extractor__pretrained=False, extractor__runtime="torch")
    pictures = [picture(seed, tint=(90 * (seed % 2), 0, 0)) for seed in range(8)]
    clf.fit(pictures, [seed % 2 for seed in range(8)])
    with pytest.raises(ValueError, match=r"m\.pkl.*\.featx"):
        clf.save(tmp_path / "m.pkl")
