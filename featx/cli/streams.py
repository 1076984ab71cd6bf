"""Standard streams that may fail: the reader of a pipe ends, a disk is full, a stream was closed.

A command does not end early for that: its output files are still written. The exit code says
that results were lost.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

BROKEN_PIPE = 141
"""Exit code of a program whose reader has ended: 128 + SIGPIPE, as shells report it."""


class Output:
    """A text stream that keeps its first error, and drops what is written after it.

    Parameters
    ----------
    stream : text stream or None
        None, as Python sets it, for a stream that was closed before the start.

    Attributes
    ----------
    error : OSError or None
        Why what was written is lost.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = None if stream is None or stream.closed else stream
        self.error: OSError | None = None
        if isinstance(self._stream, io.TextIOWrapper):  # file names that the locale cannot encode
            self._stream.reconfigure(encoding="utf-8", errors="backslashreplace")

    def write(self, text: str) -> int:
        """Write text; an error is kept, not raised."""
        if self._stream is None:
            self.error = self.error or OSError(errno.EBADF, "it is closed")
        elif self.error is None:
            with self._kept_errors():
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush; an error is kept, not raised."""
        if self._stream is not None and self.error is None:
            with self._kept_errors():
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def exit_code(self, code: int) -> int:
        """The exit code of a run that ends with `code`; lost results are no success."""
        if self.error is None or code not in (0, 3):
            return code
        return BROKEN_PIPE if isinstance(self.error, BrokenPipeError) else 1

    @contextmanager
    def _kept_errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: closed while it was in use
            self.error = error if isinstance(error, OSError) else OSError(errno.EBADF, "it is closed")
            self._discard()

    def _discard(self) -> None:
        """Point the descriptor at the null device, so that Python's own flush at its end does not fail."""
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())  # type: ignore[union-attr]
            os.close(null)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def tolerant_streams() -> Iterator[Output]:
    """Make stdout and stderr an `Output` inside the block, and yield that of stdout."""
    before = sys.stdout, sys.stderr
    out, err = Output(sys.stdout), Output(sys.stderr)
    sys.stdout, sys.stderr = out, err  # type: ignore[assignment]
    try:
        yield out
        out.flush()
        if out.error is not None and not isinstance(out.error, BrokenPipeError):
            print(f"error: results could not be printed: {out.error.strerror}.", file=sys.stderr)
        err.flush()
    finally:
        sys.stdout, sys.stderr = before


def open_closed_streams() -> None:
    """Open the null device where a standard stream is closed.

    Otherwise the next file that is opened, such as the cache, gets its number, and libraries print into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
