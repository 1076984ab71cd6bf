"""Alternations, their statistics, and the processes that are timed.

Ways of doing the same work are run A, B, ..., A, B, ...: what else the machine does then disturbs all of
them alike, and a ratio is always of neighbours in time. Each way lives in a process of its own that stays
loaded and warmed up: imports, weights and conversions are outside the clock, and peak memory is its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(__file__).resolve().parent / "out"
DATA = Path(os.environ.get("FEATX_TEST_DATA", ROOT.parent / "shared" / "data"))
SEED = 0

THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Taken out of the environment of whatever is timed: every library chooses for itself."""

T = TypeVar("T")


# --- statistics ---


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some measurements."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Quartiles by linear interpolation between the sorted values (Hyndman and Fan's type 7)."""
        values = sorted(values)
        if not values:
            raise ValueError("there is nothing to summarise.")
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(middle, low, high, len(values))

    def text(self, digits: int = 3) -> str:
        """``median [low–high]``."""
        return f"{number(self.median, digits)} [{number(self.low, digits)}–{number(self.high, digits)}]"


def ratios(slow: Sequence[float], fast: Sequence[float]) -> Spread:
    """Spread of the rounds' own ratios: each is of two measurements that were neighbours in time."""
    return Spread.of(one / other for one, other in zip(slow, fast, strict=True))


def number(value: float, digits: int = 3) -> str:
    """So many significant digits, thousands separated, never an exponent."""
    if value == 0 or not math.isfinite(value):
        return "–" if value else "0"
    before = math.floor(math.log10(abs(value))) + 1
    return f"{value:,.{max(digits - before, 0)}f}"


# --- alternation ---


def alternate(
    ways: Mapping[str, Callable[[], T]], rounds: int, *, what: str, show: Callable[[T], str] = str
) -> dict[str, list[T]]:
    """Run every way once a round; what each gave, round by round."""
    found: dict[str, list[T]] = {name: [] for name in ways}
    for turn in range(1, rounds + 1):
        for name, way in ways.items():
            found[name].append(way())
            say(f"{what}, round {turn} of {rounds}, {name}: {show(found[name][-1])}")
    return found


_BEGAN = time.monotonic()


def say(words: str) -> None:
    """One line of progress, with the seconds since the start."""
    print(f"[{time.monotonic() - _BEGAN:6.0f} s] {words}", flush=True)


# --- processes that are timed ---


@dataclass(frozen=True)
class Answer:
    """What a worker says of one run.

    Parameters
    ----------
    seconds, cpu_s : float
        Wall clock, and processor time of all threads of the process.
    peak_bytes : int
        Most memory that the process has held so far.
    extra : dict
        What this way alone can say.
    """

    seconds: float
    cpu_s: float
    peak_bytes: int
    extra: dict[str, Any] = field(default_factory=dict)


class Worker:
    """A way of `ways.WAYS` in a process of its own.

    Parameters
    ----------
    way : str
        Its name.
    script : str
        The file beside this one that serves it.
    python : path, optional
        The interpreter; this one if left out.
    **options
        Handed to the way.
    """

    def __init__(
        self, way: str, *, script: str = "ways.py", python: Path | None = None, **options: Any
    ) -> None:
        OUT.mkdir(exist_ok=True)
        self.way = way
        with (OUT / f"{way}.log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(python or sys.executable), str(ROOT / "benchmarks" / script), way, json.dumps(options)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment(),
            )  # fmt: skip
        self._ready = False

    def run(self, paths: Sequence[str | Path], *, rows: Path | None = None) -> Answer:
        """Do the work on some files; save the rows where `rows` says."""
        if not self._ready:  # workers that were made together get ready together
            self._ready = bool(self._read())
        request = {"paths": [str(path) for path in paths], "rows": str(rows) if rows else None}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Answer(**self._read())

    def run_within(self, seconds: float, paths: Sequence[str | Path], *, rows: Path) -> Answer | None:
        """The same, but the process is ended, and None returned, when it takes longer."""
        timer = threading.Timer(seconds, self._process.kill)
        timer.start()
        try:
            return self.run(paths, rows=rows)
        except RuntimeError:
            if self._process.returncode != -signal.SIGKILL:
                raise
            return None
        finally:
            timer.cancel()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait(timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print, too
                return dict(json.loads(line))
        raise RuntimeError(f"{self.way} ended with {self._process.wait()}; see {OUT / self.way}.log")


@dataclass(frozen=True)
class Finished:
    """A command that has run."""

    seconds: float
    peak_bytes: int
    output: str


def run_command(command: Sequence[str | Path], **settings: str) -> Finished:
    """Run a command to its end in a fresh process; its wall clock, peak memory and standard output.

    Raises
    ------
    RuntimeError
        If it fails; with what it said last.
    """
    OUT.mkdir(exist_ok=True)
    with (OUT / "command.out").open("w+b") as output, (OUT / "command.err").open("w+b") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command], stdout=output, stderr=errors, env=environment() | settings
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        for stream in (output, errors):
            stream.seek(0)
        if process.returncode:
            last = errors.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(map(str, command))} ended with {process.returncode}: {last}")
        return Finished(seconds, usage.ru_maxrss * 1024, output.read().decode(errors="replace"))


def environment() -> dict[str, str]:
    """Ours, without settings of threads, and with the source tree importable."""
    kept = {name: value for name, value in os.environ.items() if name not in THREAD_SETTINGS}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


def peak_bytes() -> int:
    """Most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --- what a part leaves for the page ---


@dataclass(frozen=True)
class Table:
    """A table of the page; cells are Markdown."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    before: str = ""
    after: str = ""


@dataclass(frozen=True)
class Figure:
    """A requested number."""

    value: float
    low: float
    high: float
    n: int
    check: str = ""
    """How it was seen that the results are equal."""

    @classmethod
    def of(cls, spread: Spread, check: str = "") -> Self:
        """From a spread."""
        return cls(spread.median, spread.low, spread.high, spread.n, check)


@dataclass(frozen=True)
class Section:
    """What one part found."""

    title: str
    about: str
    tables: Sequence[Table]
    figures: Mapping[str, Figure]

    def keep(self, part: str, *, seconds: float, machine: str) -> None:
        """Write it beside the others."""
        OUT.mkdir(exist_ok=True)
        content = dataclasses.asdict(self) | {"seconds": seconds, "machine": machine}
        (OUT / f"{part}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
