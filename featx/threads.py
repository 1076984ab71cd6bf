"""Threads: how many a process may use, and calls in them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from featx.exceptions import UsageError


def n_threads(n_jobs: int | None = None) -> int:
    """Return the number of threads.

    Parameters
    ----------
    n_jobs : int, optional
        A positive number is returned as it is. None and -1 stand for all cores that the process may use, -2
        for all but one, and so on. ``OMP_NUM_THREADS`` limits the number of cores: joblib sets it in its
        workers to their share.

    Raises
    ------
    UsageError
        If `n_jobs` is 0.
    """
    if n_jobs is not None and n_jobs > 0:
        return int(n_jobs)
    if n_jobs == 0:
        raise UsageError("n_jobs is 0; pass a positive number of threads, or -1 for all cores.")
    from joblib import cpu_count

    cores, limit = int(cpu_count()), os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    cores = min(cores, int(limit)) if limit.isdecimal() and int(limit) else cores
    return max(1, cores + 1 + (n_jobs or -1))


def run_in_threads(n_jobs: int, calls: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """Return the results of (function, arguments) pairs, in order."""
    if n_jobs == 1 or len(calls) == 1:
        return [function(*arguments) for function, arguments in calls]
    with ThreadPoolExecutor(min(n_jobs, len(calls))) as pool:  # joblib polls for results every 10 ms
        return [future.result() for future in [pool.submit(f, *a) for f, a in calls]]


def map_in_threads(n_jobs: int, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Return the function's result for each item, in order."""
    return run_in_threads(n_jobs, [(function, (item,)) for item in items])
