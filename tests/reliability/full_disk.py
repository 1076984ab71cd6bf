"""Fill a small disk for real and go on: run by the test in a user namespace of its own, or with RLIMIT_FSIZE.

``python full_disk.py tmpfs FOLDER`` mounts 2 MB of memory there, writes until it is full, and checks that
what was committed is whole, that notes and packing fail cleanly, and that the run goes on with more room.
"""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import workload

from featx.exceptions import StoreWriteError
from featx.stores.hdf5 import HDF5Store

KEY = workload.spec_of().key
WIDTH = 1280
N_ROWS = 1500  # 3.8 MB


def fill_a_tmpfs(folder: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True)
    error, durable = write_until_error(folder / "cache")
    message = str(error)
    for part in ("No space left on device", " MB free", "featx cache prune", "--cache-dir"):
        assert part in message, message
    assert error.errno == 28
    check(folder / "cache", durable)
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 512)
    store = HDF5Store(folder / "cache")
    for attempt in (lambda: store.remember("kind", "name", {"long": "x" * 10_000}), store.pack):
        with pytest.raises(StoreWriteError) as full:
            attempt()
        assert full.value.errno == 28
    assert store.recall("kind", "name") is None
    check(folder / "cache", durable)
    assert not list(folder.rglob(".tmp-*")), "a temporary file was left"
    subprocess.run(["mount", "-o", "remount,size=32m", folder], check=True)
    ballast.unlink()
    go_on(folder / "cache", durable)


def limit_file_size(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))  # 128 rows are 328 kB
    error, durable = write_until_error(folder / "cache")
    assert "File too large" in str(error), error
    assert error.errno == 27
    check(folder / "cache", durable)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    go_on(folder / "cache", durable)


def write_until_error(cache: Path) -> tuple[StoreWriteError, int]:
    """The error, and how many rows had been reported as durable before it."""
    reports = [(0, 0)]
    try:
        workload.write_rows(cache, range(N_ROWS), lambda *report: reports.append(report), width=WIDTH)
    except StoreWriteError as error:
        return error, reports[-1][0]
    raise AssertionError("the disk was not full")


def check(cache: Path, durable: int) -> None:
    store = HDF5Store(cache)
    assert not store.missing(KEY, workload.ids_of(range(durable))).any()
    if durable:
        rows = store.read(KEY, workload.ids_of(range(durable)))
        assert np.array_equal(rows, workload.rows_of(range(durable), WIDTH))
    assert store.verify().bad == ()


def go_on(cache: Path, durable: int) -> None:
    computed = workload.write_rows(cache, range(N_ROWS), width=WIDTH)
    assert computed == N_ROWS - durable, (computed, durable)
    check(cache, N_ROWS)
    print(f"{durable} rows were durable when there was no more room; {computed} more after there was")


if __name__ == "__main__":
    {"tmpfs": fill_a_tmpfs, "limit": limit_file_size}[sys.argv[1]](Path(sys.argv[2]))
