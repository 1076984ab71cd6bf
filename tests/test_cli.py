"""The command line as a person types it, run in this process through `main(argv)`."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import apart
import numpy as np
import pytest
from PIL import Image

from featx.cli import VERBS, arguments, main

TINY = ["--backbone", "test_resnet", "--random-weights", "--runtime", "torch"]
FAST = [
    *TINY,
    "--cut",
    "last",
    "--pool",
    "avg",
    "--resize",
    "crop",
    "--heads",
    "logistic",
    "--trials",
    "2",
    "--cv",
    "3",
]


@pytest.fixture
def model(class_folders: Path, tmp_path: Path) -> Path:
    path = tmp_path / "m.featx"
    assert main(["fit", str(class_folders), "-o", str(path), *FAST]) == 0
    return path


def _json(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main([*argv, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(verb in listed for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert "--json" in capsys.readouterr().out or verb in ("cache", "show")  # those have verbs of their own


@pytest.mark.parametrize(
    "argv", [[], ["nix"], ["fit"], ["fit", "x", "--trials", "many"], ["cache", "prune", "--max-size", "big"]]
)
def test_wrong_usage_exits_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert re.search(r"^featx.* error: .*`featx.* --help` lists what is known\.$", said)
    assert len(said.splitlines()) == 1


def test_help_starts_no_torch() -> None:
    heavy = "[m for m in ('torch', 'timm', 'sklearn', 'optuna', 'numpy') if m in sys.modules]"
    code = f"import sys, featx.cli; featx.cli.main(['fit', '--help']); print({heavy})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_fit_saves_a_model_and_reports_the_held_out_part(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = _json(capsys, "fit", str(class_folders), "-o", str(tmp_path / "m.featx"), *FAST)
    assert code == 0
    assert (tmp_path / "m.featx").stat().st_size == document["output_bytes"]
    accuracy = document["evaluation"]["metrics"]["accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert document["skipped"] == []
    assert document["computed"] == 24


TUNED = ["--fine-tune", "yes", "--unfreeze", "1", "--epochs", "1", "--input-size", "64"]


def test_fit_tells_disk_and_phases_of_fine_tuning_and_what_came_of_it(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tuned.featx"
    command = ["fit", str(class_folders), *FAST, *TUNED, "--head", "mlp", "--verdicts", "1", "-o", str(path)]
    assert main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "kB at layer3" in said
    assert "phase 2 of 2: at most 1 epochs of adamw" in said
    assert "weight decay 0.05" in said
    assert not path.exists()
    assert main([*command, "--json"]) == 0
    out, err = capsys.readouterr()
    assert "kB at layer3" in err
    assert "phase 1 of 2: at most 25 epochs" in err
    told = json.loads(out)["fine_tuning"]
    assert told["tried"] is True
    assert told["kept"] is (told["verdict"]["gain"]["value"] > 0)
    assert "held-out images" in told["reason"]
    assert main(["predict", str(path), str(class_folders)]) == 0


def test_options_of_fine_tuning_need_it(class_folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(class_folders), *FAST, "--unfreeze", "all"]) == 2
    assert "request it with --fine-tune yes" in capsys.readouterr().err


def test_a_second_fit_computes_nothing(
    class_folders: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, document = _json(capsys, "fit", str(class_folders), "-o", str(model), *FAST)
    assert document["computed"] == 0


def test_predict_writes_one_row_per_picture(model: Path, class_folders: Path, tmp_path: Path) -> None:
    target = tmp_path / "preds.csv"
    assert main(["predict", str(model), str(class_folders / "red"), "-o", str(target)]) == 0
    with target.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert {row["label"] for row in rows} <= {"red", "blue"}
    assert sum(row["label"] == "red" for row in rows) >= 10
    assert list(rows[0])[:5] == ["path", "label", "probability", "label_1", "probability_1"]
    assert all(float(row["probability"]) == float(row["probability_1"]) for row in rows)


def test_predict_prints_csv_where_no_file_is_named(
    model: Path, class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = next((class_folders / "blue").iterdir())
    capsys.readouterr()
    assert main(["predict", str(model), str(picture), "--top-k", "1"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header == "path,label,probability,label_1,probability_1,unlike"
    assert picture.name in row


def test_min_confidence_leaves_the_label_empty(
    model: Path, class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, document = _json(capsys, "predict", str(model), str(class_folders / "red"), "--min-confidence", "1")
    assert [prediction["label"] for prediction in document["predictions"]] == [None] * 12


def test_evaluate_scores_labelled_pictures(
    model: Path, class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = _json(capsys, "evaluate", str(model), str(class_folders))
    assert code == 0
    assert document["evaluation"]["n"] == 24
    assert document["evaluation"]["metrics"]["accuracy"]["value"] >= 0.8


def test_extract_fills_the_cache_and_the_npz(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    code, document = _json(
        capsys, "extract", str(class_folders), *TINY, "--taps", "all", "-o", str(tmp_path / "x.npz")
    )
    assert code == 0
    assert document["computed"] == 24
    assert len(document["spaces"]) > 2
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["id"].shape == (24, 32)
        assert all(arrays[name].shape == (24, space["columns"]) for name, space in document["spaces"].items())


def test_a_dry_run_computes_and_writes_nothing(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = _json(
        capsys, "fit", str(class_folders), "-o", str(tmp_path / "m.featx"), *FAST, "--dry-run"
    )
    assert code == 0
    assert document["to_compute"] == document["total"] == 24
    assert document["seconds"] > 0
    assert document["search"]["seconds"] == 5
    assert 0 < document["search"]["seconds"] < 60
    assert not (tmp_path / "m.featx").exists()
    _, again = _json(capsys, "fit", str(class_folders), "-o", str(tmp_path / "m.featx"), *FAST, "--dry-run")
    assert again["to_compute"] == 24


def test_skipped_pictures_are_listed_and_exit_3(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (class_folders / "red" / "broken.jpg").write_bytes(b"")
    code, document = _json(capsys, "fit", str(class_folders), "-o", str(tmp_path / "m.featx"), *FAST)
    assert code == 3
    assert [s["reason"] for s in document["skipped"]] == ["empty file (0 bytes); copy or download it again"]
    with (tmp_path / "m.featx.skipped.csv").open(newline="", encoding="utf-8") as file:
        assert [(row["label"], row["reason"]) for row in csv.DictReader(file)] == [
            ("red", document["skipped"][0]["reason"])
        ]


def test_strict_stops_at_a_bad_picture(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (class_folders / "red" / "broken.jpg").write_bytes(b"")
    assert main(["fit", str(class_folders), "-o", str(tmp_path / "m.featx"), *FAST, "--strict"]) == 1
    assert "broken.jpg: empty file" in capsys.readouterr().err
    assert not (tmp_path / "m.featx").exists()


def test_errors_name_the_cause_on_stderr_and_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = _json(capsys, "fit", str(tmp_path / "nowhere"))
    assert code == 1
    assert "nowhere" in document["error"]["message"]
    (tmp_path / "empty").mkdir()
    assert main(["fit", str(tmp_path / "empty"), "-o", str(tmp_path / "m.featx")]) == 1
    assert "empty" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    class_folders: Path, tmp_path: Path
) -> None:
    assert main(["fit", str(class_folders), "-o", str(tmp_path / "no" / "m.featx"), *FAST]) == 2


def test_the_cache_is_listed_verified_packed_exported_and_pruned(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, listing = _json(capsys, "cache", "ls")
    rows = {space["spec"]["architecture"]: space["rows"] for space in listing["spaces"]}
    assert rows == {"test_resnet": 24 + 8, "image-facts": 24}  # with the model file's own images
    key = listing["spaces"][0]["key"]
    assert _json(capsys, "cache", "verify")[1]["bad_segments"] == 0
    assert _json(capsys, "cache", "pack")[0] == 0
    assert _json(capsys, "cache", "export", key[:8], "-o", str(tmp_path / "space.npz"))[0] == 0
    assert (tmp_path / "space.npz").stat().st_size > 0
    assert _json(capsys, "cache", "prune", "--older-than", "1d")[1]["deleted_segments"] == 0
    assert _json(capsys, "cache", "prune", "--max-size", "0MB")[1]["deleted_segments"] == 2
    assert _json(capsys, "cache", "ls")[1]["spaces"] == []


def test_models_and_taps_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    names = [row["name"] for row in _json(capsys, "models")[1]["models"]]
    assert "tf_efficientnet_lite0.in1k" in names
    assert len(_json(capsys, "models", "resnet50*")[1]["models"]) > 3
    taps = _json(capsys, "taps", "test_resnet", "--random-weights")[1]["taps"]
    assert taps[-1]["name"] == "last"


def test_a_pattern_that_matches_no_model_suggests_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "resnet5O*"]) == 2
    assert "resnet50" in capsys.readouterr().err


def test_heads_are_listed_and_each_can_be_named(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = _json(capsys, "heads")[1]["heads"]
    assert {"linear_svm", "rbf_svm", "forest"} <= {head["name"] for head in heads}
    assert all(head["what"].endswith(".") for head in heads)
    names = ",".join(head["name"] for head in heads if head["default"])
    command = ["fit", str(class_folders), *FAST, "-o", str(tmp_path / "m.featx"), "--trials", "0"]
    assert main([*command, "--heads", names]) == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("10m", 600), ("10 min", 600), ("1.5h", 5400), ("1h30m", 5400), ("2d", 172800)],
)
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert arguments.seconds(text) == seconds


@pytest.mark.parametrize("text", ["10x", "m", "", "-5", "1h 30", "10 20", "nan", "1e3"])
@pytest.mark.parametrize(
    "option",
    [
        ["fit", "x", "--budget"],
        ["fit", "x", "--backbone-budget"],
        ["advise", "x", "--budget"],
        ["cache", "prune", "--older-than"],
    ],
)
def test_what_is_no_time_is_refused_with_examples(
    option: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*option[:-1], f"{option[-1]}={text}"]) == 2
    assert "is not a time; write 90s, 10m, 1h30m" in capsys.readouterr().err


def test_a_misspelt_model_suggests_the_nearest(
    class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(class_folders), "--backbone", "resnet5O"]) == 1
    assert "resnet50" in capsys.readouterr().err


def test_weights_that_are_nowhere_say_how_to_get_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "resnet50.a1_in1k"]) == 1
    error = capsys.readouterr().err
    assert "resnet50.a1_in1k" in error
    assert "HF_HUB_OFFLINE" in error


def test_the_doctor_finds_the_default_weights(capsys: pytest.CaptureFixture[str]) -> None:
    code, document = _json(capsys, "doctor")
    assert code == 0
    states = {finding["what"]: finding["state"] for finding in document["findings"]}
    assert states["weights"] == states["packages"] == "ok"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand small pictures: to extract them takes seconds."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    for number in range(1000):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def featx_without_terminal(argv: tuple[str, ...]) -> int:
    """Run featx, and send this process SIGHUP when the first file of the cache is opened."""
    sent: list[int] = []

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and not sent and str(arguments[0]).endswith((".lock", "spec.json")):
            sent.append(signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)

    sys.addaudithook(hear)
    return main(list(argv))


def test_a_closed_terminal_keeps_what_was_ready_and_says_how_to_go_on(tmp_path: Path, many: Path) -> None:
    """`test_row_24_a_signal_during_extraction_keeps_what_is_ready` sends the other two signals."""
    said = tmp_path / "said"
    argv = ("extract", str(many), *TINY, "--batch-size", "2")
    process = apart.start(featx_without_terminal, argv, output=said)
    process.join()
    assert process.exitcode == 129
    assert "featx extract" in said.read_text()
