"""Rows 24 and 32 to 34 of the faults in docs/reliability.md: memory, crashes; signals and stuck work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import apart
import numpy as np
import pytest
from staging import FIT, TINY, classes, featx, photo, rows

SHELL = [sys.executable, "-m", "featx"]


def photos_in(folder: Path, count: int, suffix: str = ".png") -> Path:
    for seed in range(count):
        photo(folder / f"{seed:04d}{suffix}", seed)
    return folder


def in_little_memory(spare_mib: int, photos: Path, size: int, batch: int) -> tuple[int, dict[str, Any], str]:
    """Extract in a process of its own; the exit code, the document and what was said."""
    import torch

    torch.set_num_threads(1)
    assert featx("extract", photos / "0000.png", *TINY, "--no-cache").code == 0  # everything is loaded now
    apart.limit_memory(spare_mib << 20)
    plain = [*TINY[:-1], str(size), "--no-cache", "--precision", "fp32"]
    said = featx("extract", photos, *plain, "--batch-size", batch, "-o", "x.npz")
    return said.code, said.document, said.err


@pytest.mark.slow  # tests/test_extractor_pipeline.py has it without the command line
def test_row_32_a_batch_that_does_not_fit_into_memory_is_halved(tmp_path: Path) -> None:
    photos = photos_in(tmp_path / "p", 64)
    code, document, err = apart.call(in_little_memory, 500, photos, 320, 64)
    assert (code, document["computed"]) == (0, 64), err
    assert document["batch_size"] < 64, "there was memory enough"
    with np.load("x.npz") as found:
        got = found["last:avg:crop"]
    plain = [*TINY[:-1], "320", "--no-cache", "--precision", "fp32"]
    assert featx("extract", photos, *plain, "-o", "y.npz").code == 0
    with np.load("y.npz") as found:
        np.testing.assert_allclose(got, found["last:avg:crop"], rtol=2e-3, atol=1e-4)


def test_row_32_a_size_that_does_not_fit_into_memory_is_named(tmp_path: Path) -> None:
    code, document, err = apart.call(in_little_memory, 150, photos_in(tmp_path / "p", 2), 2048, 2)
    assert code == 1, err
    message = document["error"]["message"]
    assert "not enough memory" in message
    assert "for one image of (2048, 2048) pixels" in message


@pytest.mark.gpu
def test_row_32_a_batch_that_does_not_fit_onto_the_gpu_is_halved(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    photos = photos_in(tmp_path / "p", 64)
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        said = featx("extract", photos, *TINY[:-1], "1024", "--no-cache", "--batch-size", "64")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert (said.code, said.document["computed"]) == (0, 64), said.err


# Row 33: a decoder library that crashes, or hangs, on one picture. It stands in for simplejpeg, which is
# first in the table of decoders, in every process of the run.

FRAIL_DECODER = """
import ctypes, io, time
import numpy
from PIL import Image

def decode_jpeg(data, colorspace="RGB"):
    if b"CRASH" in data:
        ctypes.string_at(0)
    if b"SLEEP" in data:
        time.sleep(SECONDS)
    return numpy.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
"""


@pytest.fixture
def frail(tmp_path: Path) -> dict[str, str]:
    """Environment of a process whose JPEG decoder is frail."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "simplejpeg.py").write_text(FRAIL_DECODER.replace("SECONDS", "60"))
    return os.environ | {"PYTHONPATH": str(tmp_path / "lib")}


def mark(path: Path, word: bytes) -> None:
    """Put a word into a JPEG's comment: the picture stays what it is."""
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xfe" + (len(word) + 2).to_bytes(2, "big") + word + data[2:])


@pytest.mark.slow  # tests/test_extractor_pipeline.py has it without the command line
def test_row_33_a_decoder_that_crashes_is_survived_by_the_next_run_which_names_the_picture(
    tmp_path: Path, frail: dict[str, str]
) -> None:
    photos = photos_in(tmp_path / "p", 24, ".jpg")
    mark(photos / "0017.jpg", b"CRASH")
    command = [*SHELL, "extract", photos, *TINY, "--cache-dir", tmp_path / "cache", "-o", "x.npz"]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=frail, capture_output=True, text=True, check=False)

    assert run().returncode == -signal.SIGSEGV
    second = run()
    assert second.returncode == 3, second.stderr
    assert (
        "0017.jpg: it crashes the decoder (SIGSEGV); open it in an editor and save it anew" in second.stderr
    )
    assert Path("x.npz.skipped.csv").read_text().count("0017.jpg") == 1
    assert rows(tmp_path / "cache") == 23


@pytest.mark.slow
def test_row_33_isolation_survives_a_crash_at_once(tmp_path: Path, frail: dict[str, str]) -> None:
    photos = photos_in(tmp_path / "p", 24, ".jpg")
    mark(photos / "0003.jpg", b"CRASH")
    command = [*SHELL, "extract", photos, *TINY, "--no-cache", "--isolate"]
    done = subprocess.run(command, env=frail, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "0003.jpg: it crashes the decoder (SIGSEGV)" in done.stderr


def extract_impatiently(modules: Path, *argv: object) -> int:
    import featx.extractor.pipeline as pipeline
    from featx.cli import main

    sys.path.insert(0, str(modules))
    pipeline.STUCK_S = 0.5
    return main([str(word) for word in argv])


def test_stuck_work_is_named_and_the_second_ctrl_c_is_immediate(
    tmp_path: Path, frail: dict[str, str]
) -> None:
    photos = photos_in(tmp_path / "p", 8, ".jpg")
    mark(photos / "0005.jpg", b"SLEEP")
    command = ["extract", photos, *TINY, "--cache-dir", tmp_path / "cache"]
    said = tmp_path / "said"
    process = apart.start(extract_impatiently, tmp_path / "lib", *command, output=said)
    while process.is_alive() and not (said.exists() and "still" in said.read_text()):
        time.sleep(0.05)
    assert "still decoding 0005.jpg after" in said.read_text()
    for _ in range(300):  # after the first one it waits for the decoder, which has no way to stop for 60 s
        if not process.is_alive():
            break
        os.kill(process.pid, signal.SIGINT)
        process.join(0.1)
    assert process.exitcode == 130


# Row 24


class Interrupting:
    """Send this process a signal when the n-th file of a kind is opened; hooks stay, so it ends itself."""

    def __init__(self, ending: str, number: int, sent: int) -> None:
        self._left, self._ending, self._signal = number, ending, sent
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self._left > 0 and event == "open" and str(args[0]).endswith(self._ending):
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), self._signal)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_row_24_a_signal_during_extraction_keeps_what_is_ready(sent: int, code: int, tmp_path: Path) -> None:
    photos = photos_in(tmp_path / "p", 700)
    command = ("extract", photos, *TINY, "--cache-dir", tmp_path / "cache", "--batch-size", "8")
    Interrupting("0600.png", 1, sent)
    said = featx(*command)
    assert said.code == code
    assert "The same command resumes:\n  featx extract" in said.err
    assert f"--cache-dir {tmp_path / 'cache'}" in said.err
    assert said.document["error"]["exit_code"] == code
    kept = rows(tmp_path / "cache")
    assert 0 < kept < 700
    again = featx(*command)
    assert (again.code, again.document["computed"]) == (0, 700 - kept)


@pytest.mark.parametrize(
    ("sent", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_row_24_a_signal_during_the_search_keeps_rows_and_trials(
    sent: int, code: int, tmp_path: Path
) -> None:
    photos = classes(tmp_path / "photos")
    command = [
        "fit", photos, "-o", "m.featx", *FIT[: FIT.index("--trials")], "--trials", "100000", "--cv", "2",
        "--cache-dir", tmp_path / "cache", "--storage", tmp_path / "study.journal",
    ]  # fmt: skip
    process = apart.start_featx(*command, output=tmp_path / "said")
    journal = tmp_path / "study.journal"
    while process.is_alive() and (not journal.exists() or journal.stat().st_size < 20_000):
        time.sleep(0.02)
    os.kill(process.pid, sent)
    process.join()
    error = (tmp_path / "said").read_text()
    assert process.exitcode == code, error
    assert "The same command resumes" in error
    assert "Traceback" not in error
    assert not Path("m.featx").exists()
    assert rows(tmp_path / "cache") == 24
    import optuna

    from featx.search.study import open_storage

    storage = open_storage(journal)
    (name,) = optuna.get_all_study_names(storage)
    finished = [
        t for t in optuna.load_study(study_name=name, storage=storage).trials if t.state.is_finished()
    ]
    assert len(finished) > 5
    budget = command.index("--trials") + 1
    again = featx(*command[:budget], "3", *command[budget + 1 :])
    assert again.code == 0, again.err
    assert again.document["computed"] == 0
    assert again.document["model"]["n_configurations"] >= len(finished)


# Row 34


def test_row_34_rows_that_are_not_finite_are_never_kept(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from featx.backbones import load_backbone

    weights = dict(load_backbone("test_resnet", pretrained=False).module.state_dict())
    for name, value in weights.items():
        if name.endswith("bn2.weight") or name.endswith("bn1.weight"):
            weights[name] = value * 1e30
    save_file(weights, tmp_path / "huge.safetensors")
    photos = photos_in(tmp_path / "p", 4)
    plain = [word for word in TINY if word != "--random-weights"]
    command = ("extract", photos, *plain, "--checkpoint", tmp_path / "huge.safetensors")
    said = featx(*command, "--cache-dir", tmp_path / "cache")
    assert said.code == 1
    assert set(said.reasons.values()) == {"the network gives NaN or Inf for it, in fp32 too"}
    assert "none of the 4 images can be used" in said.error
    assert rows(tmp_path / "cache") == 0


def test_a_pipe_that_nobody_writes_to_is_refused_at_once(tmp_path: Path) -> None:
    photo(tmp_path / "p" / "a.png")
    os.mkfifo(tmp_path / "p" / "pipe.png")
    said = featx("extract", tmp_path / "p" / "a.png", tmp_path / "p" / "pipe.png", *TINY, "--max-bad", "1")
    assert said.code == 3
    assert "not a regular file (a pipe, socket or device)" in Path("extract.skipped.csv").read_text()
