"""Output of the verbs: results on stdout, as text or one JSON document; messages and progress on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from featx.progress import ProgressBar
from featx.tables import escape_name, hide_password

LINE_EVERY_S = 10.0
"""Seconds between lines of progress where stderr is not a terminal, so that there is no bar."""


class Console:
    """Print results, messages and progress.

    Parameters
    ----------
    json : bool
        Print only one JSON document on stdout, at the end.
    quiet : bool
        Print no messages and no progress on stderr; warnings and errors are still printed.
    """

    def __init__(self, *, json: bool = False, quiet: bool = False) -> None:
        self.json = json
        self.quiet = quiet
        self._document: dict[str, Any] = {}
        self._bar = ProgressBar()
        self._stage = ""
        self._last_line = 0.0
        self._printed: set[str] = set()
        terminal = sys.stderr.isatty()
        self._bars = terminal and not quiet
        self._color = terminal and "NO_COLOR" not in os.environ

    def text(self, text: str = "") -> None:
        """Print a line of a result, unless the output is JSON."""
        if not self.json:
            self._end_bar()
            print(_printable(text), flush=True)

    def table(
        self, header: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Iterable[int] = ()
    ) -> None:
        """Print aligned columns; those in `right` are aligned to the right."""
        cells = [[str(cell) for cell in row] for row in rows]
        widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
        numbers = set(right)

        def line(row: Sequence[str]) -> str:
            parts = [
                c.rjust(w) if i in numbers else c.ljust(w)
                for i, (c, w) in enumerate(zip(row, widths, strict=True))
            ]
            return "  " + "  ".join(parts).rstrip()

        self.text(line(header))
        for row in cells:
            self.text(line(row))

    def data(self, **fields: Any) -> None:
        """Add fields to the JSON document."""
        self._document.update(fields)

    def log(self, text: str) -> None:
        """Print a message on stderr; repetitions are left out."""
        if not self.quiet and self._is_new(text):
            self._to_stderr(_printable(hide_password(text)))

    def warn(self, text: str) -> None:
        """Print a warning on stderr; repetitions are left out."""
        if self._is_new(text):
            self._to_stderr(f"{self._paint('warning:', 33)} {_printable(hide_password(text))}")

    def error(self, error: BaseException, code: int) -> None:
        """Print on stderr why the run ends; add it to the JSON document and print that."""
        text = hide_password(str(error) or type(error).__name__)
        shown = _printable(text)
        self._to_stderr(f"{self._paint('error:', 31)} {shown}" if code < 128 else shown)
        if self.json:
            self.data(error={"type": type(error).__name__, "message": text, "exit_code": code})
            self.flush()

    def flush(self) -> None:
        """Print the JSON document if it was requested."""
        self._end_bar()
        if self.json:
            print(json.dumps(self._document, indent=2, ensure_ascii=False, default=_plain), flush=True)
            self._document = {}

    def progress(self, event: Any) -> None:
        """Show a `featx.extractor.Progress` event as a bar, or as a line from time to time."""
        if event.message:
            self.log(event.message)
            return
        if self.quiet:
            return
        if event.stage != self._stage:
            self._end_bar()
            self._stage, self._last_line = event.stage, time.monotonic()
        rate = f"{event.images_per_s:.0f} images/s" if event.images_per_s else ""
        limit = f"limited by {event.limit}" if event.limit and event.images_per_s else ""
        done = event.done >= event.total
        if self._bars:
            self._bar.draw(event, ", ".join(filter(None, (rate, limit))))
        elif time.monotonic() - self._last_line > LINE_EVERY_S and not done:
            self._last_line = time.monotonic()
            eta = f"{event.eta_s:.0f} s left" if event.eta_s is not None else ""
            notes = ", ".join(filter(None, (rate, limit, eta)))
            line = f"{event.stage} {event.done:,}/{event.total:,}  {notes}"
            print(line.rstrip(), file=sys.stderr, flush=True)
        if done:
            self._end_bar()

    def _end_bar(self) -> None:
        self._bar.close()
        self._stage = ""

    def _to_stderr(self, text: str) -> None:
        self._end_bar()
        print(text, file=sys.stderr, flush=True)

    def _is_new(self, text: str) -> bool:
        new = text not in self._printed
        self._printed.add(text)
        return new

    def _paint(self, text: str, color: int) -> str:
        return f"\x1b[{color}m{text}\x1b[0m" if self._color else text


def _printable(text: str) -> str:
    """Escape control characters except line breaks: file names may contain terminal escape sequences."""
    return "\n".join(map(escape_name, text.split("\n")))


def _plain(value: Any) -> Any:
    """Convert NumPy values and paths to values that JSON has."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
