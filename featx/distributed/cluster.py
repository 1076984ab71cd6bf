"""Connection to a Ray cluster, and the number of workers that it has room for."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from featx.exceptions import UsageError

WORKER_CPUS = 8
"""Largest number of cores of a worker by default: one network on more of them gains little."""

CONNECT_S = 10.0
"""Seconds to wait for an answer of a cluster."""


@dataclass(frozen=True)
class Pool:
    """The actors of an extraction.

    Parameters
    ----------
    size : int
        Number of workers.
    cpus, gpus : int
        What each of them uses.
    nodes : int
        Machines of the cluster.
    """

    size: int
    cpus: int
    gpus: int
    nodes: int


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect to a cluster inside a block; a connection that existed before stays open.

    Parameters
    ----------
    address : str
        ``auto`` is the cluster that runs on this machine or that ``RAY_ADDRESS`` names, and where there is
        none, a new one on this machine; ``local`` is always a new one; else ``HOST:PORT``.

    Raises
    ------
    UsageError
        If Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise UsageError(f"{error.name} is not installed; pip install 'featx[ray]'.") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # send no usage statistics
    mine = not ray.is_initialized()
    if mine:
        try:
            _check_reachable(os.environ.get("RAY_ADDRESS", "") if address == "auto" else address)
            with _less_said():
                ray.init(
                    address=None if address == "auto" else address,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise UsageError(
                f"no Ray cluster at {address!r} ({reason}); give the address that `ray start --head` "
                "printed, such as 10.0.0.1:6379, or auto."
            ) from error
    try:
        with _quiet(ray.data.DataContext.get_current()):
            yield
    finally:
        if mine:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Connect to a HOST:PORT once, or raise OSError: Ray itself tries for a quarter of an hour."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdecimal():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S):
            pass


@contextlib.contextmanager
def _less_said() -> Iterator[None]:
    """Let Ray's C++ part write no warnings to stderr: Ray Data causes one for every pool of actors."""
    name = "RAY_BACKEND_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ.setdefault(name, "fatal")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _quiet(context: Any) -> Iterator[None]:
    """Switch off the bars and the log of Ray Data; featx shows its own progress."""
    names = ("enable_progress_bars", "enable_rich_progress_bars", "print_on_execution_start")
    before = {name: getattr(context, name) for name in names if hasattr(context, name)}
    log = logging.getLogger("ray.data")
    level = log.level
    try:
        for name in before:
            setattr(context, name, False)
        log.setLevel(logging.ERROR)
        yield
    finally:
        log.setLevel(level)
        for name, value in before.items():
            setattr(context, name, value)


def plan_pool(workers: int | None, cpus: int | None, device: str) -> Pool:
    """Return how many workers the cluster has room for: one for each GPU, or for each group of cores.

    Parameters
    ----------
    workers : int, optional
        Number of workers; by default as many as there is room for.
    cpus : int, optional
        Cores of a worker.
    device : str
        ``auto`` uses GPUs if the cluster has any; ``cpu`` never; anything else always.

    Raises
    ------
    UsageError
        If no machine has as many cores, or there is no GPU.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = [int(node.get("CPU", 0)) for node in nodes]
    accelerators = [int(node.get("GPU", 0)) for node in nodes]
    gpus = int(device != "cpu" and (device != "auto" or any(accelerators)))
    if gpus and not any(accelerators):
        raise UsageError(f"device {device!r}: the Ray cluster has no GPU; choose cpu or auto.")
    if gpus:
        each = [max(1, cpu // gpu) for cpu, gpu in zip(cores, accelerators, strict=True) if gpu]
        cpus = cpus or min(*each, WORKER_CPUS)
        room = sum(min(gpu, cpu // cpus) for cpu, gpu in zip(cores, accelerators, strict=True))
    else:
        most = WORKER_CPUS if workers is None else max(1, min(WORKER_CPUS, sum(cores) // workers))
        cpus = cpus or min(min((cpu for cpu in cores if cpu), default=1), most)
        room = sum(cpu // cpus for cpu in cores)
    if not room:
        raise UsageError(
            f"no machine of the Ray cluster has {cpus} cores for a worker (they have "
            f"{', '.join(map(str, sorted(set(cores))))}); choose fewer (worker_cpus)."
        )
    return Pool(workers or room, cpus, gpus, len(nodes))
