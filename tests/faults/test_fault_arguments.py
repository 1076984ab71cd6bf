"""Whatever is typed: the command ends with one of its codes, in words, and never with a traceback."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from staging import TINY, classes, featx

from featx.cli import VERBS

LEFT_OUT = {"demo", "doctor", "models"}
"""They take minutes, or read nothing that is typed."""

OPTIONS = [
    "--backbone",
    "--checkpoint",
    "--random-weights",
    "--pool",
    "--resize",
    "--input-size",
    "--cut",
    "--device",
    "--runtime",
    "--batch-size",
    "--precision",
    "--decode",
    "--max-pixels",
    "--range",
    "--background",
    "--isolate",
    "--strict",
    "--max-bad",
    "--follow-links",
    "--cache-dir",
    "--no-cache",
    "--json",
    "--quiet",
    "--trials",
    "--timeout",
    "--cv",
    "--heads",
    "--scoring",
    "--class-weight",
    "--min-per-class",
    "--storage",
    "--study-name",
    "--seed",
    "--jobs",
    "--test-size",
    "--split-salt",
    "--top-k",
    "--min-confidence",
    "-o",
    "--dry-run",
    "--dtype",
    "--max-size",
    "--older-than",
    "ls",
    "verify",
    "prune",
    "export",
    "pack",
]

VALUES = st.one_of(
    st.sampled_from(
        [
            "",
            "0",
            "-1",
            "1",
            "2",
            "0.5",
            "1e9",
            "nan",
            "inf",
            "-inf",
            "auto",
            "all",
            "last",
            "avg",
            "max",
            "crop",
            "squash",
            "layer1",
            "layer9",
            "torch",
            "cpu",
            "cuda",
            "cuda:7",
            "logistic",
            "logistic,nix",
            "accuracy",
            "roc_auc",
            "photos",
            "m.featx",
            "empty",
            "photos/red",
            "list.csv",
            "out.npz",
            "out/",
            "..",
            "~",
            "5%",
            "200%",
            "1,2,3",
            "256,0,0",
            "32",
            "32x16",
            "0x0",
            "x",
            "99999999999999999999",
            "sqlite:///no/such/db",
            "study.journal",
            "test_resnet",
            "test_vit",
            "=cmd",
            "\x1b[31m",
            "\udce9",
            "a\nb",
        ]
    ),
    st.text(max_size=8).filter(lambda text: "\0" not in text),
)

WORDS = st.one_of(st.sampled_from(OPTIONS), VALUES)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    folder = tmp_path_factory.mktemp("place")
    classes(folder / "photos", each=3)
    (folder / "m.featx").write_bytes((shared / "m.featx").read_bytes())
    (folder / "empty").mkdir()
    (folder / "list.csv").write_text("path,label\nphotos/red/red_00.png,a\nphotos/nowhere.png,b\n")
    return folder


def runs(argv: list[str]) -> None:
    said = featx(*argv, json_document=False)  # `featx` itself refuses a traceback
    assert said.code in (0, 1, 2, 3)
    assert said.code == 0 or said.err or "--json" in argv
    assert "\x1b" not in said.err


QUIET = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@given(verb=st.sampled_from(sorted(set(VERBS) - LEFT_OUT)), words=st.lists(WORDS, max_size=6))
@settings(QUIET, max_examples=60)
def test_any_words_after_a_verb_are_answered(
    verb: str, words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    runs([verb, *words])


@given(words=st.lists(WORDS, max_size=4))
@settings(QUIET, max_examples=30)
def test_any_words_at_all_are_answered(
    words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    if not LEFT_OUT & set(words):
        runs(words)


TAKING = {
    "extract": [
        "--cut",
        "--pool",
        "--resize",
        "--input-size",
        "--batch-size",
        "--runtime",
        "--device",
        "--precision",
        "--decode",
        "--background",
        "--range",
        "--max-pixels",
        "--max-bad",
        "--dtype",
        "--checkpoint",
        "-o",
    ],
    "predict": [
        "--top-k",
        "--min-confidence",
        "--batch-size",
        "--runtime",
        "--device",
        "--max-bad",
        "--checkpoint",
        "-o",
    ],
    "evaluate": ["--min-confidence", "--batch-size", "--runtime", "--device", "--max-bad", "--checkpoint"],
    "fit": [
        "--trials",
        "--timeout",
        "--cv",
        "--heads",
        "--scoring",
        "--class-weight",
        "--min-per-class",
        "--storage",
        "--study-name",
        "--seed",
        "--jobs",
        "--test-size",
        "--split-salt",
        "--pool",
        "--resize",
        "--input-size",
        "-o",
    ],
}
"""Options with a value, which a run that is otherwise right must survive."""

RIGHT: dict[str, list[str]] = {
    "extract": ["photos", *TINY, "--no-cache"],
    "predict": ["m.featx", "photos", "--no-cache", "--runtime", "torch"],
    "evaluate": ["m.featx", "photos", "--no-cache", "--runtime", "torch"],
    "fit": [
        "photos",
        *TINY,
        "--no-cache",
        "--cut",
        "last",
        "--heads",
        "logistic",
        "--trials",
        "0",
        "--cv",
        "2",
    ],
}


@given(data=st.data())
@settings(QUIET, max_examples=25)
def test_any_value_of_an_option_is_taken_or_refused_in_words(
    data: Any, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    verb = data.draw(st.sampled_from(sorted(TAKING)))
    option = data.draw(st.sampled_from(TAKING[verb]))
    value = data.draw(VALUES)
    limits = ("99999999999999999999", "1e9", "inf")  # an input or a budget of that size is taken, and long
    if option in ("--input-size", "--trials") and (value in limits or (value.isdigit() and int(value) > 64)):
        return
    runs([verb, *RIGHT[verb], f"{option}={value}"])


def test_an_output_that_is_no_file_is_written_to_and_never_replaced(place: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()
    common = ["predict", place / "m.featx", place / "photos", "--no-cache", "--runtime", "torch", "-o"]
    assert featx(*common, tmp_path / "pipe").code == 0
    reader.join(timeout=30)
    assert featx(*common, tmp_path / "link.csv").code == 0
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == received[0]


def test_text_that_is_no_unicode_draws_a_split_and_a_nameless_output_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    assert featx("fit", *RIGHT["fit"], "--split-salt", "\udce9", "-o", "x.featx").code == 0
    for option, value in (("-o", ""), ("--storage", "nowhere"), ("--seed", "-1"), ("--timeout", "nan")):
        assert featx("fit", *RIGHT["fit"], f"{option}={value}").code == 2
