"""Rows 44 to 46, 49 to 52 and 55 of the faults in docs/reliability.md: models, backbones, environment."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from staging import FIT, TINY, classes, featx, photo

from featx.files import MODEL_FORMAT, MODEL_KIND, MODEL_MEMBERS, read_archive, write_archive

SHELL = [sys.executable, "-m", "featx"]


def predict(model: Path, shared: Path) -> Any:
    return featx("predict", model, shared / "photos" / "red", "--cache-dir", shared / "cache")


def edited(shared: Path, target: Path, edit: Any) -> Path:
    """A model file whose description was changed by featx's own hand: whole, and with right digests."""
    members = dict(
        read_archive(
            shared / "m.featx", kind=MODEL_KIND, allowed=MODEL_MEMBERS, max_format=MODEL_FORMAT
        ).members
    )
    model = json.loads(members["model.json"])
    edit(model)
    members["model.json"] = json.dumps(model, sort_keys=True).encode()
    write_archive(target, members, kind=MODEL_KIND, format=MODEL_FORMAT)
    return target


def test_row_44_a_model_file_that_was_tampered_with_is_refused(shared: Path, tmp_path: Path) -> None:
    data = bytearray((shared / "m.featx").read_bytes())
    data[data.index(b'"classes"') + 30] ^= 1
    (tmp_path / "m.featx").write_bytes(data)
    said = predict(tmp_path / "m.featx", shared)
    assert said.code == 1
    assert said.document["error"]["type"] == "ModelFileError"
    assert f"{tmp_path / 'm.featx'}: " in said.error
    assert "damaged" in said.error
    assert predict(shared / "m.featx", shared).code == 0


class Payload:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self.canary,)


def test_row_45_a_pickle_is_refused_and_never_runs(shared: Path, tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    payload = pickle.dumps(Payload(canary))
    pickle.loads(payload)
    assert canary.exists(), "the payload is no payload"
    canary.unlink()
    (tmp_path / "m.pkl").write_bytes(payload)
    (tmp_path / "m.featx").write_bytes(payload)
    members = dict(
        read_archive(
            shared / "m.featx", kind=MODEL_KIND, allowed=MODEL_MEMBERS, max_format=MODEL_FORMAT
        ).members
    )
    for number, member in enumerate(members):
        write_archive(
            tmp_path / f"{number}.featx", members | {member: payload}, kind=MODEL_KIND, format=MODEL_FORMAT
        )
    files = [path for path in tmp_path.iterdir() if path.suffix in (".pkl", ".featx")]
    assert len(files) == 2 + len(members)
    for path in files:
        for verb in ("predict", "evaluate"):
            said = featx(verb, path, shared / "photos", "--no-cache")
            assert said.code == 1
            assert said.document["error"]["type"] == "ModelFileError"
    assert not canary.exists()


def test_row_46_a_bomb_or_a_member_that_leads_out_is_refused(shared: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.featx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b"0" * 200_000_000)
    for number, name in enumerate(("../up.json", "/tmp/up.json", "a\\..\\up.json", "C:up.json")):
        with zipfile.ZipFile(tmp_path / f"{number}.featx", "w") as archive:
            archive.writestr(name, b"{}")
    for path in sorted(tmp_path.glob("*.featx")):
        said = predict(path, shared)
        assert said.code == 1
        assert said.document["error"]["type"] == "ModelFileError"
    assert not (tmp_path.parent / "up.json").exists()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".featx"] * 5


def test_row_49_a_model_of_another_scikit_learn_is_checked_and_said(shared: Path, tmp_path: Path) -> None:
    older = edited(
        shared, tmp_path / "older.featx", lambda m: m["record"]["versions"].update({"scikit-learn": "1.2.3"})
    )
    said = featx("evaluate", older, shared / "photos", "--cache-dir", shared / "cache")
    assert said.code == 0
    assert "made with scikit-learn 1.2.3" in said.err
    plain = predict(older, shared)  # the head is computed without scikit-learn
    assert (plain.code, plain.err.count("scikit-learn")) == (0, 0)


def test_row_49_a_head_that_now_answers_otherwise_is_refused(shared: Path, tmp_path: Path) -> None:
    def disturb(model: dict[str, Any]) -> None:
        model["record"]["versions"]["scikit-learn"] = "1.2.3"
        model["model"]["calibration"]["a"] *= 3

    said = predict(edited(shared, tmp_path / "other.featx", disturb), shared)
    assert said.code == 1
    assert "its head now gives probabilities that diff" in said.error
    assert "scikit-learn 1.2.3" in said.error


def test_row_50_weights_that_are_not_here_say_how_to_get_them(tmp_path: Path) -> None:
    photos = classes(tmp_path / "photos", each=12)
    for argv in (["fit", photos, "-o", "m.featx"], ["extract", photos]):
        said = featx(*argv, "--backbone", "resnet50.a1_in1k")
        assert said.code == 1
        for words in (
            "resnet50.a1_in1k",
            "HF_HUB_OFFLINE",
            "featx download resnet50.a1_in1k",
            "--checkpoint",
        ):
            assert words in said.error
    assert not Path("m.featx").exists()


def test_row_51_a_misspelt_model_gets_the_nearest_names(tmp_path: Path) -> None:
    said = featx("extract", photo(tmp_path / "a.png"), "--backbone", "resnet5O", "--no-cache")
    assert said.code == 1
    assert "resnet5O" in said.error
    assert "resnet50" in said.error
    assert said.error.count("resnet") >= 4  # three of them


def test_row_52_a_layer_that_is_not_there_gets_the_list_with_shapes(tmp_path: Path) -> None:
    for verb, target in (("extract", []), ("fit", ["-o", "m.featx"])):
        photos = classes(tmp_path / verb, each=3)
        said = featx(verb, photos, *target, *TINY, "--cut", "layer9", "--no-cache")
        assert said.code == 1
        assert "layer9" in said.error
        for tap in ("layer1", "layer2", "layer3", "layer4"):
            assert tap in said.error
        assert "layer2 (48×20×20)" in said.error


# Row 55


def test_row_55_without_a_home_a_cache_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = photo(tmp_path / "a.png")
    for name in ("HOME", "XDG_CACHE_HOME", "FEATX_CACHE"):
        monkeypatch.delenv(name, raising=False)
    said = featx("extract", path, *TINY)
    assert said.code == 1
    assert "--cache-dir" in said.error
    assert "--no-cache" in said.error
    assert featx("extract", path, *TINY, "--no-cache").code == 0
    assert featx("extract", path, *TINY, "--cache-dir", tmp_path / "cache").code == 0


def test_row_55_a_clock_that_jumps_is_of_no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = classes(tmp_path / "photos")
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: 6e8 + 3.4e9 * (next(jumps) % 2))  # the years 1989 and 2096
    said = featx("fit", photos, "-o", "m.featx", *FIT, "--budget", "600", "--cache-dir", tmp_path / "cache")
    assert said.code == 0, said.err
    assert 0 < said.document["seconds"] < 600
    assert featx("cache", "ls", "--cache-dir", tmp_path / "cache").code == 0


def test_row_55_a_clock_that_was_never_set_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = classes(tmp_path / "photos")
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    said = featx("fit", photos, "-o", "m.featx", *FIT, "--cache-dir", tmp_path / "cache")
    assert said.code == 0, said.err
    assert featx("predict", "m.featx", photos, "--cache-dir", tmp_path / "cache").code == 0


def test_row_55_temporary_folder_and_locale_may_be_missing(tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "ünïcode 画像.png")
    (tmp_path / "photos" / "größe.jpg").write_bytes(b"")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    environment |= {
        "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TMPDIR": str(tmp_path / "nowhere"),
    }  # fmt: skip
    command = [
        *SHELL,
        "extract",
        tmp_path / "photos",
        *TINY,
        "--cache-dir",
        tmp_path / "cache",
        "--max-bad",
        "1",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 3, done.stderr.decode()
    assert "größe.jpg: empty file" in done.stderr.decode("utf-8")
    assert "größe.jpg" in Path("extract.skipped.csv").read_text("utf-8")
