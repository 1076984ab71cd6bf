"""MemoryBudget: how many bytes the images that are being decoded may take together."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterator

DECODE_BYTES = 2 << 30
"""Limit for the images that all threads decode at the same time, working copies included."""


class MemoryBudget:
    """Bytes that threads share.

    A thread waits until its image fits. Threads are served in the order in which they came, so that a
    large image is not passed for ever. An image that is larger than the budget is decoded alone.

    Parameters
    ----------
    total : int
        The budget in bytes.

    Attributes
    ----------
    used : int
        Bytes that are taken now.
    most : int or None
        Bytes of the largest image; a larger one is a MemoryError.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.most: int | None = None
        self.restart()

    def restart(self) -> None:
        """Begin with nothing taken (also in a forked child)."""
        self.used = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()
        self._own = threading.local()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep what is taken inside until the end of this block."""
        if getattr(self._own, "open", False):
            yield
            return
        self._own.open, self._own.taken = True, 0
        try:
            yield
        finally:
            with self._changed:
                self.used -= self._own.taken
                self._own.open = False
                self._changed.notify_all()

    @contextlib.contextmanager
    def take(self, n_bytes: int) -> Iterator[None]:
        """Take some bytes; wait until they are free, unless this thread holds some already."""
        with self.held():
            if self.most is not None and self._own.taken + n_bytes > self.most:
                raise MemoryError(f"{n_bytes:,} bytes")
            with self._changed:
                if not self._own.taken:  # a thread that waits while it holds some could wait for ever
                    self._wait(n_bytes)
                self.used += n_bytes
                self._own.taken += n_bytes
            yield

    def _wait(self, n_bytes: int) -> None:
        ticket = object()
        self._waiting.append(ticket)
        try:
            self._changed.wait_for(
                lambda: self._waiting[0] is ticket and (not self.used or self.used + n_bytes <= self.total)
            )
        finally:
            self._waiting.remove(ticket)
            self._changed.notify_all()


DECODING = MemoryBudget(DECODE_BYTES)
"""Shared by all threads of the process that decode."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=DECODING.restart)
