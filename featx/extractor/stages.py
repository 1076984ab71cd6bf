"""A stage of the pipeline: some threads, a bounded look-ahead, results in order.

The pipeline is a chain of generators that the calling thread reads; each stage works on a few items ahead of
the one that it returns. So an exception or a Ctrl-C is raised in one place, the look-ahead bounds the memory,
and the time spent waiting for a stage shows which one limits the run. Threads suffice: decoding, hashing and
the forward pass all release the GIL.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from typing import Any, Generic, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

MAX_DEPTH = 256
"""Largest look-ahead."""

STAGE_BYTES = 96 << 20
"""Limit for the results that wait in one stage: the look-ahead is smaller for larger results."""


FORGETTING = 0.99
"""Decay of the largest size seen: one huge image reduces the look-ahead for some hundred images only."""


class Stage(Generic[In, Out]):
    """A function run by threads on a stream of items, a few items ahead.

    Parameters
    ----------
    name : str
        What `Progress.limit` calls it.
    work : callable
        From an item to its result.
    workers : int
        Threads.
    depth : int, optional
        Initial look-ahead; it doubles if the workers had nothing to do while the caller was busy.
    max_depth : int
        Largest look-ahead.
    size_of : callable, optional
        Bytes of a result; the look-ahead stays within `STAGE_BYTES`.
    patience_s : float
        Seconds after which `on_stuck` is called.
    on_stuck : callable, optional
        Called with the item that is waited for and the seconds so far.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[In], Out],
        *,
        workers: int,
        depth: int | None = None,
        max_depth: int = MAX_DEPTH,
        size_of: Callable[[Out], int] | None = None,
        patience_s: float = float("inf"),
        on_stuck: Callable[[In, float], None] | None = None,
    ) -> None:
        self.name = name
        self.waited_s = 0.0
        self.depth = depth or 2 * workers
        self._work = work
        self._workers = workers
        self._max_depth = max_depth
        self._size_of = size_of
        self._largest = 1
        self._patience_s = patience_s
        self._on_stuck = on_stuck
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=f"featx-{name}")
        self._threads: set[int] = set()

    def run(self, items: Iterable[In]) -> Iterator[Out]:
        """Yield results in the order of the items."""
        pending: deque[tuple[In, Future[Out]]] = deque()
        source, exhausted, pull_s = iter(items), False, 0.0
        while True:
            while not exhausted and len(pending) < self._room():
                began = time.monotonic()
                for item in itertools.islice(source, 1):
                    pending.append((item, self._pool.submit(self._run_one, item)))
                    break
                else:
                    exhausted = True
                pull_s = time.monotonic() - began
            if not pending:
                return
            result = self._take(*pending.popleft())
            left = time.monotonic()
            yield result
            ran_dry = bool(pending) and pending[-1][1].done()
            if ran_dry and time.monotonic() - left > pull_s:  # and items were available
                self.depth = min(2 * self.depth, self._max_depth)

    def close(self, *, drop: bool = True, wait: bool = True) -> None:
        """End the workers.

        Parameters
        ----------
        drop : bool
            Whether to drop items that have not begun; otherwise they are done.
        wait : bool
            Whether to wait for items that have begun (a read may be stuck for ever).
        """
        self._pool.shutdown(wait=wait, cancel_futures=drop)
        if wait:
            _wait_for_exit(self._threads)

    def _run_one(self, item: In) -> Out:
        self._threads.add(threading.get_native_id())
        TORCH_THREADS.limit()
        return self._work(item)

    def _room(self) -> int:
        return max(self._workers, min(self.depth, STAGE_BYTES // self._largest))

    def _take(self, item: In, future: Future[Out]) -> Out:
        began = time.monotonic()
        patience = self._patience_s
        while True:
            try:
                result = future.result(None if patience == float("inf") else patience)
                break
            except NotYet:
                if future.done():  # the work itself timed out
                    raise
                patience *= 2
                if self._on_stuck is not None:
                    self._on_stuck(item, time.monotonic() - began)
        self.waited_s += time.monotonic() - began
        if self._size_of is not None:
            self._largest = max(int(FORGETTING * self._largest), self._size_of(result), 1)
        return result


def _wait_for_exit(threads: Iterable[int], patience_s: float = 1.0) -> None:
    """Wait until threads that Python has joined have also left the operating system (Linux).

    A thread that leaves frees its memory in MKL under a lock. A child that is forked at that moment inherits
    the lock as it is, and waits for it for ever in its first matrix product. On two busy cores this happened
    in 1 of 100 forks just after a pass.
    """
    until = time.monotonic() + patience_s
    for thread in threads:
        while os.path.exists(f"/proc/self/task/{thread}") and time.monotonic() < until:
            time.sleep(0.0001)


class TorchThreads:
    """Makes torch use one thread in every worker, and restores its setting afterwards.

    torch's threads inside our threads compete for the same cores (6 images/s instead of 100 were measured).
    The setting belongs to a thread but its default to the process, so it is restored when the last user
    leaves. torch is never imported for this.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin without users (also in a forked child)."""
        self._lock = threading.Lock()
        self._users = 0
        self._before: int | None = None
        self._local = threading.local()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Use around the life of some workers."""
        with self._lock:
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users and self._before is not None:
                    sys.modules["torch"].set_num_threads(self._before)
                    self._before = None

    def limit(self) -> None:
        """Make torch single-threaded in the calling thread, if torch is imported."""
        torch: Any = sys.modules.get("torch")
        if getattr(self._local, "limited", False) or not hasattr(torch, "set_num_threads"):
            return
        with self._lock:
            if self._before is None:
                self._before = torch.get_num_threads()
            torch.set_num_threads(1)
        self._local.limited = True


TORCH_THREADS = TorchThreads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=TORCH_THREADS.restart)
