"""The inputs of `shared/cases`, made by their scripts: situations from public bug reports."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featx.cli import main
from featx.exceptions import DataError, FeatxWarning
from featx.images import DecodePolicy, ImageSet, choose_range, decode_picture, load_images, read_picture
from tests.conftest import DATA

CASES = Path(os.environ.get("FEATX_CASES", DATA.parent / "cases"))

TINY = ["--backbone", "test_resnet.r160_in1k", "--cut", "last", "--pool", "avg", "--resize", "crop"]


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> Callable[[str], Path]:
    """Run the script of a case once, and return the folder of its inputs."""
    work, made = tmp_path_factory.mktemp("cases"), set()

    def run(number: str) -> Path:
        if not CASES.is_dir():
            pytest.skip(f"no cases at {CASES} (set FEATX_CASES)")
        if number not in made:
            script = next(CASES.glob(f"{number}-*/make.py"))
            (work / number).mkdir()
            env = {**os.environ, "WORK": str(work), "DATA": str(real_data), "PYTHONDONTWRITEBYTECODE": "1"}
            code = f"import os, random, runpy; runpy.run_path({str(script)!r}, {{'os': os}})"
            subprocess.run([sys.executable, "-c", code], env=env, check=True)
            made.add(number)
        return work / number

    return run


def load(path: Path) -> tuple[ImageSet, str]:
    """The set, and what was said of it: remarks and warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FeatxWarning)
        found = load_images(path)
    return found, " ".join([*found.remarks, *(str(one.message) for one in caught)])


# 01: split and wrapper folders


@pytest.mark.parametrize(
    ("name", "train", "test", "said"),
    [
        ("a_training_set", 32, 16, "Splits are training_set (train), test_set (test)."),
        ("b_train_test_plus_pred", 32, 16, "the folder pred (3 images) lies beside the splits"),
        ("c_seg_nested", 32, 16, "splits are seg_train (train), seg_test (test)"),
        (
            "d_copy",
            32,
            16,
            "chest_xray/chest_xray (48 images) lies beside the splits; it holds the splits once more",
        ),
        ("e_wrapper", 32, 16, "The set is read from dataset/"),
        ("f_test_flat", 32, 0, "the 16 images of test are not in class folders"),
        ("g_valid", 24, 12, "Valid (val)"),
        ("i_inverted", 32, 16, "The folders of each class are splits."),
        ("j_test_lacks", 42, 12, "Splits are train, test."),
        ("k_test_more", 28, 18, "Splits are train, test."),
        ("m_unicode", 32, 16, "the class café has folders whose names differ"),
    ],
)
def test_split_folders_are_splits_and_never_classes(
    make: Callable[[str], Path], name: str, train: int, test: int, said: str
) -> None:
    found, words = load(make("01") / name)
    splits = Counter(found.splits.tolist())
    assert (splits["train"], splits["test"]) == (train, test)
    assert {str(label) for label in found.labels} <= {"cat", "dog", "café", "0", "1", "2"}
    assert found.skipped == []
    assert said in words


def test_names_in_two_unicode_forms_are_one_class(make: Callable[[str], Path]) -> None:
    found, _ = load(make("01") / "n_unicode_mixed")
    assert Counter(found.labels.tolist()) == {"café": 24, "dog": 24}


def test_labels_in_file_names_are_pointed_out(make: Callable[[str], Path]) -> None:
    with pytest.raises(
        DataError, match="begin with cat, dog; if these are the classes, make a folder for each"
    ):
        load_images(make("01") / "l_flat", labelled=True)


# 02: tables


PETS = {"cat": 24, "dog": 24}


@pytest.mark.parametrize(
    ("name", "labels", "said"),
    [
        ("ok", PETS, ""),
        ("space_both", PETS, ""),
        ("space_some", PETS, "are one class"),
        ("space_path", PETS, "Paths are read in another way"),
        ("semicolon_bom", PETS, ""),
        ("utf16", PETS, ""),
        ("backslash", PETS, "img\\cat_00.jpg as"),
        ("noext", PETS, "Column image_id is read as path"),
        ("noext_path", PETS, "(with its ending): img/cat_00 as"),
        ("filename_class", PETS, "Column filename is read as path; column class is read as label"),
        ("floatlabel", {0.0: 24, 1.0: 24}, ""),
        ("quotes", PETS, ""),
        ("index_col", PETS, ""),
        ("trailing_comma", PETS, ""),
        ("pipe", PETS, ""),
        ("cr", PETS, ""),
        ("fileurl", PETS, "Paths are read in another way"),
        ("otherroot", PETS, "/content/drive/MyDrive/set/img/cat_00.jpg as"),
        ("comment", PETS, ""),
        ("sep", PETS, ""),
        ("case", {"cat": 16, "Cat": 8, "dog": 16, "Dog": 8}, "differ only by case"),
        ("nan", {"cat": 23, "dog": 24, "nan": 1}, "which programs write for a missing value"),
    ],
)
def test_tables_of_many_programs_are_understood(
    make: Callable[[str], Path], name: str, labels: dict[object, int], said: str
) -> None:
    found, words = load(make("02") / f"{name}.csv")
    assert Counter(found.labels.tolist()) == labels
    assert all(os.path.exists(str(source)) for source in found.sources)
    assert said in words
    assert bool(words) == bool(said)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("onehot.csv", "cat, dog hold 0 and 1, one column for each label"),
        ("path_onehot.csv", "choose one of these with --label-column cat"),
        ("multi.csv", r"row 3, column label: 'cat\|outdoor' is more than one label \(24 of 48 rows\)"),
        ("url.csv", "are addresses, such as https://example.org/img/cat_00.jpg"),
        ("noheader.csv", "looks like an image, not like names of columns; write path,label above it"),
        ("labels.txt", "text, not an image"),
        ("latin1.csv", r"row 2, column label: 'caf.*' is not UTF-8; save the table as UTF-8"),
        ("data.json", "a JSON file"),
    ],
)
def test_what_is_no_table_of_one_label_is_refused_with_the_fix(
    make: Callable[[str], Path], name: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_images(make("02") / name, labelled=True)


# 03: labels of a folder and of a table


def test_labels_of_tables_and_folders_are_matched(
    make: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, model = make("03"), str(tmp_path / "m.featx")
    fast = [*TINY, "--random-weights", "--trials", "0", "--heads", "ridge"]
    assert main(["fit", str(folder / "learn"), "-o", model, *fast]) == 0
    accuracy = set()
    for name in ("new", "new_int.csv", "new_float.csv", "new_blank.csv"):
        capsys.readouterr()
        assert main(["evaluate", model, str(folder / name)]) == 0
        shown = capsys.readouterr()
        accuracy.add(
            next(line for line in shown.out.splitlines() if line.startswith("accuracy")).split(" on ")[0]
        )
        assert ("labels are read as the classes that are known: 0" in shown.err) == (name != "new")
    assert len(accuracy) == 1
    assert main(["add", model, str(folder / "new_int.csv"), "-o", str(tmp_path / "grown.featx")]) == 0
    assert "New classes" not in capsys.readouterr().out


# 08: deep pixels


@pytest.mark.parametrize(
    ("kind", "pixel_range", "said"),
    [
        ("a_grey8", "full", ""),
        ("b_grey12in16", "0,4095", ""),
        ("c_rgb12in16", "0,4095", ""),
        ("d_rgb12in16_tif", "0,4095", ""),
        ("e_float255", "0,255", ""),
        ("f_rgbnir8", "full", "a fourth band that is not declared as transparency"),
        ("g_rgbnir8_extra0", "full", "a fourth band that is not declared as transparency"),
        ("i_rgbnir16", "0,4095", "a fourth band that is not declared as transparency"),
        ("j_13bands8", "full", "more than 4 bands"),
        ("k_twoband", "full", ""),
        ("l_int32_0_1020", "0,1023", ""),
    ],
)
def test_deep_pixels_look_like_their_eight_bit_copies(
    make: Callable[[str], Path], kind: str, pixel_range: str, said: str
) -> None:
    if kind in ("j_13bands8", "k_twoband"):
        pytest.importorskip("tifffile", reason="needs the extra tiff")
    folder = make("08")
    files = sorted((folder / kind).glob("*/*"))
    assert choose_range(files, DecodePolicy()) == pixel_range
    colour = "rgb" in kind
    for path in files[::20]:
        remarks: list[str] = []
        policy = DecodePolicy(pixel_range=pixel_range)
        pixels = decode_picture(read_picture(path), policy, warn=remarks.append)
        plain = decode_picture(read_picture(folder / "a_grey8" / path.parent.name / f"{path.stem}.png"))
        shown = pixels @ np.array([0.299, 0.587, 0.114]) if colour else pixels[:, :, 0]
        assert np.abs(shown - plain[:, :, 0].astype(float)).max() <= 3
        assert said in " ".join(remarks)
        assert bool(remarks) == bool(said)


def test_a_declared_alpha_band_is_transparency(make: Callable[[str], Path]) -> None:
    path = make("08") / "h_rgbnir8_alpha" / "3" / "5.tif"
    assert decode_picture(read_picture(path)).mean() > 200  # laid on white


# 09: HEIC and AVIF


@pytest.mark.parametrize("installed", [True, False])
def test_heic_photos_are_read_with_the_extra_and_it_is_named_without(
    make: Callable[[str], Path], installed: bool, tmp_path: Path
) -> None:
    pytest.importorskip("pillow_heif", reason="needs the extra heif")
    photos = make("09") / "photos"
    code = (
        "import sys\n"
        + ("" if installed else "sys.modules['pillow_heif'] = None\n")
        + "from featx.cli import main\n"
        f"sys.exit(main(['extract', {str(photos)!r}, '--random-weights', '--no-cache', '--max-bad', '1', "
        "'--backbone', 'test_resnet.r160_in1k']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    if installed:
        assert (done.returncode, "48 images, 48 computed" in done.stdout) == (0, True), done.stderr[-500:]
        return
    assert (done.returncode, "24 images, 24 computed" in done.stdout) == (3, True), done.stderr[-500:]
    assert "a HEIC or AVIF photo; `pip install 'featx[heif]'` reads it" in done.stderr


@pytest.mark.parametrize("name", ["renamed_cat.jpg", "cat.avif"])
def test_renamed_heic_and_avif_are_read(make: Callable[[str], Path], name: str) -> None:
    pytest.importorskip("pillow_heif", reason="needs the extra heif")
    assert decode_picture(read_picture(make("09") / name)).std() > 20


# 22: no readable image


def test_predictions_of_unreadable_images_name_image_count_and_reason(
    make: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    photos, model = make("03") / "new", tmp_path / "m.featx"
    fast = [*TINY, "--random-weights", "--runtime", "torch", "--heads", "ridge", "--trials", "0", "--cv", "2"]
    assert main(["fit", str(photos), "-o", str(model), *fast, "--min-per-class", "2"]) in (0, 3)
    broken = tmp_path / "broken.png"
    broken.write_bytes(next(photos.rglob("*.png")).read_bytes()[:500])
    (tmp_path / "gone.csv").write_bytes(b"path,label\na\\1.png,x\na\\2.png,y\n")
    for argv, words in [
        (["predict", model, broken], ["broken.png: image file is truncated", "the only image"]),
        (["predict", model, tmp_path / "nowhere.png"], ["nowhere.png", "no such file"]),
        (
            ["fit", tmp_path / "gone.csv", "-o", tmp_path / "q.featx", "--min-per-class", "1"],
            ["0 of 2 images exist", "1.png", "--root DIR"],
        ),
    ]:
        capsys.readouterr()
        assert main([str(word) for word in argv]) == 1
        said = capsys.readouterr().err
        assert "Traceback" not in said
        for word in words:
            assert word in said, (word, said)
    assert not (tmp_path / "q.featx").exists()
