"""Functions run in a process of their own, which starts in milliseconds.

It is a fork of a server that has imported NumPy, torch and featx, and has no threads. It gets the environment
and the working directory of the test.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "pytest",
        "hypothesis",
        "pandas",
        "torch",
        "timm",
        "optuna",
        "featx.classifier",
        "featx.search",
        "featx.stores.hdf5",
        "featx.cli",
        "featx.extractor.estimator",
        "featx.backbones.network",
    ]
)


def start(function: Callable[..., Any], *arguments: Any, output: Path | None = None) -> ForkServerProcess:
    """Start a function in a process of its own; stdout and stderr go to a file.

    What it returns, None or a number, is the exit code.
    """
    given = (dict(os.environ), os.getcwd(), output, function, arguments)
    process = SERVER.Process(target=_run, args=given, daemon=True)
    process.start()
    return process


def start_featx(*argv: object, output: Path | None = None) -> ForkServerProcess:
    """Start the command ``featx``."""
    return start(_featx, *map(str, argv), output=output)


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function returns in a process of its own; fail if the process ends before."""
    reader, writer = SERVER.Pipe(duplex=False)
    process = start(_answer, writer, function, arguments)
    writer.close()
    try:
        answer = reader.recv()
    except EOFError:
        answer = None
    process.join()
    assert process.exitcode == 0, f"{function.__name__} ended with exit code {process.exitcode}"
    return answer


def limit_memory(spare: int) -> None:
    """Limit the addresses of this process to what it has and `spare` bytes more."""
    import resource

    # One arena of glibc: each further one reserves 64 MB of addresses, as many as there happen to be threads.
    ctypes.CDLL(None).mallopt(-8, 1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + spare, resource.RLIM_INFINITY))


def _run(
    environment: dict[str, str],
    folder: str,
    output: Path | None,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if output is not None:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(file, stream)
    sys.exit(function(*arguments))


def _answer(writer: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    writer.send(function(*arguments))


def _featx(*argv: str) -> int:
    from featx.cli import main

    return main(list(argv))
