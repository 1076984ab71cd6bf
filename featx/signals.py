"""Handle the signals that stop a program for the duration of a block."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)
HANG_UP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""Sent when a terminal or a connection is closed; Windows has none."""


@contextmanager
def answered_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP with `handler` inside the block; then restore the previous handlers.

    SIGHUP stays ignored where it is (``nohup``). Outside the main thread handlers cannot be set; there this
    does nothing.
    """
    numbers = [number for number in STOPPING if signal.getsignal(number) is not None]
    if HANG_UP is not None and signal.getsignal(HANG_UP) not in (None, signal.SIG_IGN):
        numbers.append(HANG_UP)
    try:
        before = {number: signal.signal(number, handler) for number in numbers}
    except ValueError:
        before = {}
    try:
        yield
    finally:
        for number, other in before.items():
            signal.signal(number, other)
