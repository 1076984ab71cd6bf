"""Streams that break, are full or closed: no traceback, and the files that were asked for are written."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from featx.cli import main
from featx.signals import answered_by

FIT = [
    "--backbone", "test_resnet", "--random-weights", "--runtime", "torch", "--cut", "last", "--pool", "avg",
    "--resize", "crop", "--heads", "logistic", "--trials", "0", "--cv", "3",
]  # fmt: skip

posix = pytest.mark.skipif(os.name != "posix", reason="pipes and devices of POSIX")
full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is a device of Linux")


def _broken_pipe() -> TextIO:
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def _full() -> TextIO:
    return open("/dev/full", "w")


def _closed() -> TextIO:
    stream = _broken_pipe()
    stream.close()
    return stream


STREAMS = [
    pytest.param(_broken_pipe, 141, "", id="broken pipe", marks=posix),
    pytest.param(_full, 1, "results could not be printed: No space left on device", id="full", marks=full),
    pytest.param(_closed, 1, "results could not be printed: it is closed", id="closed"),
    pytest.param(lambda: None, 1, "results could not be printed: it is closed", id="none"),
]


@pytest.fixture
def model(class_folders: Path, tmp_path: Path) -> Path:
    path = tmp_path / "m.featx"
    assert main(["fit", str(class_folders), "-o", str(path), *FIT]) == 0
    return path


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Exchange a standard stream."""
    opened: list[Any] = []

    def exchange(**streams: Any) -> None:
        for name, stream in streams.items():
            opened.append(stream)
            monkeypatch.setattr(sys, name, stream)

    yield exchange
    for stream in filter(None, opened):
        stream.close()


@pytest.mark.parametrize(("make", "code", "message"), STREAMS)
def test_a_fit_whose_results_cannot_be_printed_still_writes_its_model(
    make: Callable[[], Any], code: int, message: str, class_folders: Path, tmp_path: Path,
    use: Callable[..., None], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = tmp_path / "m.featx"
    use(stdout=make())
    assert main(["fit", str(class_folders), "-o", str(path), *FIT, "--json"]) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    use(stdout=io.StringIO())
    assert main(["predict", str(path), str(class_folders), "-o", str(tmp_path / "p.csv")]) == 0


@pytest.mark.parametrize(("make", "code", "message"), STREAMS)
def test_every_kind_of_result_may_be_lost(
    make: Callable[[], Any], code: int, message: str, model: Path, class_folders: Path,
    use: Callable[..., None], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for argv in (
        ["models"],
        ["models", "test_*", "--json"],
        ["cache", "ls"],
        ["predict", str(model), str(class_folders)],
        ["evaluate", str(model), str(class_folders)],
        ["--help"],
    ):
        capsys.readouterr()
        use(stdout=make())
        assert main(argv) == code, argv
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(("make", "code", "message"), STREAMS)
def test_a_failure_keeps_its_exit_code_where_nothing_can_be_printed(
    make: Callable[[], Any], code: int, message: str, tmp_path: Path, use: Callable[..., None]
) -> None:
    use(stdout=make(), stderr=make())
    assert main(["fit", str(tmp_path / "none"), "--json"]) == 1
    assert main(["fit", "--trials", "many", str(tmp_path)]) == 2


@pytest.mark.parametrize(("make", "code", "message"), STREAMS)
def test_messages_that_cannot_be_printed_change_nothing(
    make: Callable[[], Any], code: int, message: str, class_folders: Path, tmp_path: Path,
    use: Callable[..., None], capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    use(stderr=make())
    path = tmp_path / "m.featx"
    (class_folders / "red" / "broken.jpg").write_bytes(b"")
    assert main(["fit", str(class_folders), "-o", str(path), *FIT, "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["output_bytes"] == path.stat().st_size


def test_the_streams_of_a_caller_are_restored(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    main(["models"])
    assert (sys.stdout, sys.stderr) == before


@posix
def test_processes_end_by_convention() -> None:
    run = f"{sys.executable} -m featx"
    cases = {
        f"{run} cache ls --json | true; exit ${{PIPESTATUS[0]}}": (141, False),
        f"{run} --version >&-": (1, True),
        f"{run} --version > /dev/null 2>&-": (0, False),
        f"{run} cache ls <&- >&- 2>&-": (1, False),
    }
    if os.path.exists("/dev/full"):
        cases[f"{run} --version > /dev/full"] = (1, True)
    started = {
        line: subprocess.Popen(
            ["bash", "-c", line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for line in cases
    }
    for line, process in started.items():
        _, error = process.communicate(timeout=120)
        assert (process.returncode, "error: results could not be printed" in error) == cases[line], line
        assert not any(word in error for word in ("Traceback", "Exception ignored", "BrokenPipe"))


@posix
def test_a_hang_up_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup sets it
    try:
        with answered_by(lambda number, frame: None):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stopped_run_shows_no_password(
    tmp_path: Path, class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = ["--storage", "mysql://ann:geheim@127.0.0.1:1/studies"]
    assert main(["fit", str(class_folders), *FIT, *storage, "-o", str(tmp_path / "m.featx"), "--json"]) == 2
    out, error = capsys.readouterr()
    assert "geheim" not in out + error
    assert "ann:***@127.0.0.1" in error
