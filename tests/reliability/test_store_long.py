"""A million rows: what the index takes, and that memory, files and threads return to where they were."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import gc, json, os, sys, threading, time
import numpy as np
import workload
from featx.stores.hdf5 import HDF5Store

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def handles():
    return len(os.listdir("/proc/self/fd")), threading.active_count()

def id_of(n):
    ids = np.zeros((len(n), 32), np.uint8)
    mixed = (np.asarray(n, np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    ids.view(np.uint64)[:, 0], ids.view(np.uint64)[:, 3] = mixed, n
    return ids

cache, n_rows, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
spec = workload.spec_of()
if mode == "write":
    store, before, most = HDF5Store(cache), resident(), 0
    start_handles = handles()
    for start in range(0, n_rows, 512):
        numbers = np.arange(start, min(start + 512, n_rows))
        store.append(spec.key, id_of(numbers), workload.rows_of(numbers, 16), spec)
        if start % 51_200 == 0:
            most = max(most, resident() - before)
    store.close()
    result = {"growth": most, "handles": [start_handles, handles()]}
else:
    HDF5Store(cache).missing("0" * 64, id_of(np.arange(2)))  # what is imported late is imported now
    gc.collect()
    before, start_handles = resident(), handles()
    began = time.perf_counter()
    store = HDF5Store(cache)
    asked = np.arange(0, n_rows, n_rows // 1400)[:1400]
    assert not store.missing(spec.key, id_of(asked)).any()
    found = time.perf_counter() - began
    assert np.array_equal(store.read(spec.key, id_of(asked)), workload.rows_of(asked, 16))
    served = time.perf_counter() - began
    gc.collect()
    result = {"growth": resident() - before, "found_s": found, "served_s": served}
    assert store.missing(spec.key, id_of(np.arange(n_rows, n_rows + 1400))).all()
    assert store.verify().rows >= n_rows
    result["handles"] = [start_handles, handles()]
print(json.dumps(result))
"""


def run(*arguments: str) -> dict[str, object]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    environment = {"PYTHONPATH": str(Path(__file__).parent), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("n_rows", [50_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_the_index_takes_36_bytes_a_row_and_handles_return(memory_folder: Path, n_rows: int) -> None:
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    written = run(str(memory_folder / "cache"), str(n_rows), "write")
    opened = run(str(memory_folder / "cache"), str(n_rows), "read")
    slack = 64 << 20  # what glibc's allocator keeps of memory that was freed, however many rows there are
    assert written["growth"] < 3 * 36 * n_rows + slack  # while parts of the index are merged
    assert opened["growth"] < 36 * n_rows + slack
    for result in (written, opened):
        start, end = result["handles"]  # type: ignore[misc]
        assert start == end
    print(
        f"\n{n_rows:,} rows: while writing {written['growth'] / 1e6:.0f} MB more, opened "  # type: ignore[operator]
        f"{opened['growth'] / 1e6:.0f} MB more; 1,400 known digests found in {opened['found_s']:.2f} s, "  # type: ignore[operator]
        f"served in {opened['served_s']:.2f} s"
    )
