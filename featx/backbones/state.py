"""State of this process: locks, and the compiled networks in memory. A forked child begins with fresh ones.

A fork copies a lock as another thread holds it, and compiled networks without the threads that run them: the
child would wait for ever. The networks of the parent are not freed in the child, since freeing them would
wait for their threads, too.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

KEPT_NETWORKS = 3
"""Compiled networks that stay in memory after use: a service predicts with the same one again and again."""


class Launches:
    """Makes decoding threads wait while another thread launches the kernels of a device.

    A pass over a network on a GPU is a thousand short calls, and each releases the GIL and must take it
    again: 2,000 of torch's smallest took 13 ms alone, and 650 ms while 16 threads decoded. So the decoding
    threads wait before their next image while kernels are launched, and continue while the device computes.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin with no launching thread (also in a forked child)."""
        self._lock = threading.Lock()
        self._launching = 0
        self._none = threading.Event()
        self._none.set()

    @contextlib.contextmanager
    def alone(self, device: str) -> Iterator[None]:
        """Use around the launching of kernels. On a CPU it does nothing: there the calls are the work."""
        if device == "cpu":
            yield
            return
        with self._lock:
            self._launching += 1
            self._none.clear()
        try:
            yield
        finally:
            with self._lock:
                self._launching -= 1
                if not self._launching:
                    self._none.set()

    def wait(self) -> None:
        """Wait until no thread launches kernels."""
        self._none.wait()


class _Slot:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.network: Any = None


class ProcessState:
    """Locks and compiled networks of this process."""

    def __init__(self) -> None:
        self._abandoned: list[Any] = []
        self._start()

    def _start(self) -> None:
        self.tf32 = threading.Lock()
        self.random = threading.Lock()
        self.first_inference, self.inferred = threading.Lock(), False
        self._lock = threading.Lock()
        self._networks: OrderedDict[str, _Slot] = OrderedDict()

    def network(self, key: str, compile_: Callable[[], Any]) -> Any:
        """Return the compiled network of a key; compile it if it is not in memory."""
        with self._lock:
            slot = self._networks.setdefault(key, _Slot())
            self._networks.move_to_end(key)
            while len(self._networks) > KEPT_NETWORKS:
                self._networks.popitem(last=False)
        with slot.lock:
            if slot.network is None:
                slot.network = compile_()
        return slot.network

    def release_networks(self) -> None:
        """Free the compiled networks."""
        with self._lock:
            self._networks.clear()

    def restart(self) -> None:
        """Begin anew in a forked child; the parent's networks stay referenced."""
        torch: Any = sys.modules.get("torch")
        if self._networks and hasattr(torch, "set_num_threads"):
            torch.set_num_threads(1)  # the child would wait for the threads of torch's pool
        self._abandoned.append(self._networks)
        self._start()


LAUNCHES = Launches()
STATE = ProcessState()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=LAUNCHES.restart)
    os.register_at_fork(after_in_child=STATE.restart)
