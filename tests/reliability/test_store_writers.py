"""Two and four processes that write, read and pack one cache at once."""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import workload
from crashes import build_library

from featx.stores.hdf5 import HDF5Store

HERE = Path(__file__).parent
FORK = multiprocessing.get_context("fork")
KEY = workload.spec_of().key


def extract_like(cache: Path, seed: int, n_rows: int, failures: "multiprocessing.Queue[str]") -> None:  # noqa: UP037
    """What an extractor does: ask, append what is missing, commit, read all; some of them pack meanwhile."""
    try:
        rng = random.Random(seed)
        numbers = list(range(n_rows))
        rng.shuffle(numbers)
        store, spec = HDF5Store(cache), workload.spec_of()
        for start in range(0, n_rows, 40):
            some = numbers[start : start + 40]
            new = [n for n, gone in zip(some, store.missing(KEY, workload.ids_of(some)), strict=True) if gone]
            store.append(KEY, workload.ids_of(new), workload.rows_of(new), spec)
            if rng.random() < 0.5:
                store.commit()
            if rng.random() < 0.1:
                store.pack()
            seen = rng.sample(numbers[: start + 40], 20)
            if not np.array_equal(store.read(KEY, workload.ids_of(seen)), workload.rows_of(seen)):
                failures.put("a row is wrong")
        store.close()
        if not np.array_equal(store.read(KEY, workload.ids_of(numbers)), workload.rows_of(numbers)):
            failures.put("a row is wrong at the end")
    except BaseException as error:
        failures.put(f"{type(error).__name__}: {error}")
        raise


def run_at_once(cache: Path, n_writers: int, n_rows: int) -> None:
    failures: multiprocessing.Queue[str] = FORK.Queue()
    writers = [
        FORK.Process(target=extract_like, args=(cache, seed, n_rows, failures)) for seed in range(n_writers)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * n_writers, failures.get(timeout=1)
    assert failures.empty()
    assert workload.complaints(cache, range(n_rows), noted=False) == []
    store = HDF5Store(cache)
    store.pack()
    assert sum(usage.rows for usage in store.usage()) >= n_rows


def test_a_disk_without_locks_whose_folders_cannot_be_synced_will_do(
    memory_folder: Path, tmp_path: Path
) -> None:
    library = build_library(HERE / "network_disk.c", tmp_path)
    probe = "import fcntl, sys; fcntl.flock(sys.stdin, fcntl.LOCK_SH)"
    environment = os.environ | {"LD_PRELOAD": str(library)}
    failed = subprocess.run(
        [sys.executable, "-c", probe], env=environment, capture_output=True, text=True, check=False
    )
    assert "No locks available" in failed.stderr  # as some network disks say (errno 37)
    command = [sys.executable, HERE / "workload.py", memory_folder / "cache", memory_folder / "ack", "1024"]
    subprocess.run([*command, "--pack-every", "4"], env=environment, check=True)
    assert workload.complaints(memory_folder / "cache", range(1024)) == []


@pytest.mark.parametrize("n_writers", [2, 4])
def test_writers_at_once_are_all_right(memory_folder: Path, n_writers: int) -> None:
    run_at_once(memory_folder / "cache", n_writers, 1200)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("n_writers", [2, 4, 8])
def test_writers_at_once_are_all_right_for_long(tmp_path: Path, n_writers: int) -> None:
    run_at_once(tmp_path / "cache", n_writers, 12_000)
    print(f"\n{n_writers} writers with 12,000 rows each on one cache: all right")
