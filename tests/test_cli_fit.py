"""``featx fit``: its help, the order of what it says, and that nothing after the fit makes it fail."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from featx import load
from featx.cli import main
from featx.evaluation import Metric
from featx.finetune.recipes import RECIPES

TINY = ["--backbone", "test_resnet", "--runtime", "torch"]
FAST = [
    "--cut", "last", "--pool", "avg", "--resize", "crop", "--heads", "ridge", "--trials", "1", "--cv", "2",
]  # fmt: skip
FIT = [*TINY, "--random-weights", *FAST]

pytestmark = pytest.mark.filterwarnings("ignore::featx.exceptions.FeatxWarning")


def _run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(word) for word in argv])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_help_shows_an_example_and_what_matters_and_help_all_the_rest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, short, _ = _run(capsys, "fit", "--help")
    assert code == 0
    code, whole, _ = _run(capsys, "fit", "--help-all")
    assert code == 0

    def options(text: str) -> set[str]:
        return set(re.findall(r"^  (?:-\w.*, )?(--[\w-]+)", text, re.MULTILINE))

    assert "featx fit photos " in short
    assert 10 <= len(options(short)) <= 15
    assert "--help-all" in options(short)
    assert options(short) < options(whole)
    assert {"--seed", "--fine-tune-trials", "--max-pixels"} <= options(whole) - options(short)
    assert len(short.splitlines()) < 60
    assert _run(capsys, "fit", "--help")[1] == short


def test_the_first_line_is_the_score_and_the_representation_comes_last(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = _run(capsys, "fit", class_folders, *FIT, "-o", tmp_path / "m.featx")
    assert code == 0
    lines = [line for line in out.splitlines() if line]
    assert re.match(r"accuracy [01]\.\d{3} \[.*\] on the held-out test part, \d+ images$", lines[0])
    places = [
        next(i for i, line in enumerate(lines) if line.startswith(start))
        for start in ("accuracy", "confusion", "selected", "model")
    ]
    assert places == sorted(places)
    code, out, _ = _run(capsys, "fit", class_folders, *FIT, "-o", tmp_path / "n.featx", "--no-test")
    assert re.match(r"accuracy [01]\.\d{3} \[.*\] out of fold on the 24 training images", out)


def test_a_list_of_skipped_images_that_cannot_be_written_does_not_fail_the_fit(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (class_folders / "red" / "broken.png").write_bytes(b"")
    (tmp_path / "m.featx.skipped.csv").mkdir()
    (tmp_path / "m.featx.skipped.csv" / "file").touch()
    code, _, err = _run(capsys, "fit", class_folders, *FIT, "-o", tmp_path / "m.featx")
    assert code == 3  # as where the list is written
    assert "no list of skipped images" in err
    assert load(tmp_path / "m.featx").classes_.tolist() == ["blue", "red"]


def test_a_damaged_file_that_is_replaced_does_not_cost_the_fit(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.featx").write_bytes(b"PK\x03\x04 not a model")
    assert _run(capsys, "fit", class_folders, *FIT, "-o", tmp_path / "m.featx")[0] == 0


def test_a_figure_that_cannot_be_drawn_is_one_line(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    command = ["curve", class_folders, *TINY, "--random-weights", "--shots", "1,2", "--draws", "3"]
    code, out, err = _run(capsys, *command, "--plot", tmp_path / "c.png")
    assert code == 0
    assert err.count("no figure: ") == 1
    assert "learning curve" in out


def test_what_is_not_known_is_said_in_words() -> None:
    nan = float("nan")
    for metric in (Metric(0.5, nan, nan), Metric(nan, nan, nan)):
        for text in (str(metric), metric.as_share(), metric.as_points()):
            assert "nan" not in text
            assert "not known" in text


def test_lists_of_skipped_images_of_two_outputs_are_two_files(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (class_folders / "red" / "broken.png").write_bytes(b"")
    assert _run(capsys, "fit", class_folders, *FIT, "-o", tmp_path / "pets.featx")[0] == 3
    (tmp_path / "other.png").write_bytes(b"")
    images = [class_folders / "red", tmp_path / "other.png"]
    argv = ["predict", tmp_path / "pets.featx", *images, "-o", tmp_path / "pets.csv", "--max-bad", "1"]
    assert _run(capsys, *argv)[0] == 3
    fitted, predicted = ((tmp_path / f"pets.{ending}.skipped.csv").read_text() for ending in ("featx", "csv"))
    assert fitted.count("broken.png") == predicted.count("broken.png") == 1
    assert ("other.png" in fitted, "other.png" in predicted) == (False, True)


def test_a_dry_run_of_fine_tuning_lists_the_recipes_or_the_phases(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["fit", class_folders, *FIT, "-o", tmp_path / "m.featx", "--dry-run", "--fine-tune"]
    code, out, _ = _run(capsys, *argv, "auto", "--budget", "10m")
    assert code == 0
    assert re.search(r"fine-tuning within (9|10) min.*, if a gain is expected: the best of these", out)
    for name, recipe in RECIPES.items():
        assert f"{name}: {recipe.describe(24)}" in out
    assert "all-80: all layers at 80 pixels, on augmented images, 40 epochs" in out
    assert "phase 2 of 2" not in out
    code, out, _ = _run(capsys, *argv, "yes")
    assert (code, "phase 2 of 2" in out, "all-80" in out) == (0, True, False)
