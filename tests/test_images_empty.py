"""Sets of which nothing is left: every verb names the image, the number, the first, and the likely cause."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from featx.cli import main
from featx.images import likely_cause

Make = Callable[..., Image.Image]

FAST = ["--backbone", "test_resnet.r160_in1k", "--random-weights", "--pool", "avg", "--resize", "crop"]
FIT = [*FAST, "--cut", "last", "--trials", "0", "--heads", "ridge", "--quiet"]
VERBS = {
    "fit": ["fit", "{data}", "-o", "{out}", *FIT],
    "predict": ["predict", "{model}", "{data}"],
    "evaluate": ["evaluate", "{model}", "{data}"],
    "add": ["add", "{model}", "{data}", "-o", "{out}", "--cache-dir", "{cache}"],
    "advise": ["advise", "{data}", *FIT],
    "curve": ["curve", "{data}", *FAST],
    "extract": ["extract", "{data}", *FAST],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of two classes, `red` and `blue`."""
    folder = tmp_path_factory.mktemp("model")
    for label, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (folder / "set" / label).mkdir(parents=True)
        for number in range(8):
            shade = tuple(channel + 3 * number for channel in colour)
            Image.new("RGB", (40, 40), shade).save(folder / "set" / label / f"{number}.png")
    path = str(folder / "m.featx")
    assert main(["fit", str(folder / "set"), "-o", path, *FIT, "--cache-dir", str(folder / "cache")]) == 0
    return path


OTHERS = {
    "check": ["check", "{data}", "--backbone", "test_resnet", "--random-weights", "--runtime", "torch"],
    "report": ["report", "{model}", "{data}", "-o", "{page}"],
    "show": ["show", "augment", "{data}", "-o", "{figure}"],
}
"""Verbs that need readable images for all they do."""


def run(verb: str, data: Path, model: str, tmp_path: Path, *options: str) -> int:
    values = {"data": str(data), "model": model, "out": str(tmp_path / "out.featx")}
    values["cache"] = str(Path(model).parent / "cache")
    values |= {"page": str(tmp_path / "r.html"), "figure": str(tmp_path / "f.png")}
    return main([word.format(**values) for word in (VERBS | OTHERS)[verb]] + list(options))


@pytest.fixture
def broken(tmp_path: Path, picture: Make) -> Path:
    """Two class folders of truncated images."""
    for number in range(6):
        path = tmp_path / "broken" / ("red" if number % 2 else "blue") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)
        path.write_bytes(path.read_bytes()[:400])
    return tmp_path / "broken"


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_set_of_broken_images_names_them(
    verb: str, broken: Path, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(verb, broken, model, tmp_path) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "6 images can" in said
    assert "blue/0.png: image file is truncated" in said


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_a_manifest_whose_paths_all_fail_says_how_many_exist_the_first_and_the_cause(
    verb: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"C:\\data\\{number}.png,{('red', 'blue')[number % 2]}\n" for number in range(6))
    (tmp_path / "m.csv").write_text("path,label\n" + rows)
    options = ["--max-bad", "1"] if verb == "fit" else []
    assert run(verb, tmp_path / "m.csv", model, tmp_path, *options) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "0 of 6 images exist" in said or "none of the 6 images exists" in said
    assert "C:\\data\\0.png. It was written on Windows" in said
    assert "--root DIR" in said


@pytest.mark.parametrize("name", ["truncated.png", "empty.jpg", "text.jpg", "nowhere.png", "page.jpg"])
def test_one_image_that_cannot_be_read_is_named_with_its_reason(
    name: str, model: str, tmp_path: Path, picture: Make, capsys
) -> None:
    picture().save(tmp_path / "truncated.png")
    (tmp_path / "truncated.png").write_bytes((tmp_path / "truncated.png").read_bytes()[:300])
    for other, data in (("empty.jpg", b""), ("text.jpg", b"hello"), ("page.jpg", b"<html>")):
        (tmp_path / other).write_bytes(data)
    reasons = {
        "truncated.png": "truncated",
        "empty.jpg": "empty file",
        "text.jpg": "text, not an image",
        "nowhere.png": "no such file",
        "page.jpg": "a web page",
    }
    assert main(["predict", model, str(tmp_path / name)]) == 1
    said = capsys.readouterr().err
    assert f"{name}: {reasons[name]}" in said or reasons[name] in said
    assert name in said
    assert "Traceback" not in said


def test_most_images_broken_is_said_before_anything_is_measured(
    broken: Path, tmp_path: Path, picture: Make, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(9).save(broken / "red" / "good.png")
    for verb in ("curve", "fit", "advise"):
        assert run(verb, broken, "", tmp_path) == 1
        said = capsys.readouterr().err
        assert "6 of 7 images cannot be used" in said or "classes are needed" in said, said
        assert "Traceback" not in said


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("{here}/img/1.png", "exists, and img is not in it"),
        ("{here}/a.txt/1.png", "a.txt is not a folder"),
        ("/content/drive/MyDrive/1.png", "It was written on another machine"),
        ("nowhere/1.png", "The path is misspelt"),
        ("{here}/img\\1.png", "It was written on Windows"),
        ("{here}/D:/1.png", "exists, and D: is not in it"),
        ("{here}/1.png", "exists, and 1.png is not in it"),
    ],
)
def test_the_likely_cause_of_a_path_that_leads_nowhere(tmp_path: Path, path: str, cause: str) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert cause in likely_cause(path.format(here=tmp_path))


@pytest.mark.parametrize("verb", sorted(VERBS | OTHERS))
def test_two_images_of_which_none_can_be_read_are_named(
    verb: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    for label in ("red", "blue"):
        (tmp_path / "two" / label).mkdir(parents=True)
        (tmp_path / "two" / label / "a.png").write_bytes(b"x")
    assert run(verb, tmp_path / "two", model, tmp_path) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "blue/a.png: text, not an image" in said or "two classes are needed" in said
