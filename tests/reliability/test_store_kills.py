"""SIGKILL at random moments of a real run, again and again on the same cache until the run is through."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import workload

N_ROWS = 40 * workload.COMMIT
FORK = multiprocessing.get_context(
    "fork"
)  # a fresh interpreter takes longer to start than a run to be killed


def kill_until_done(cache: Path, kills: int, rng: random.Random) -> tuple[int, int]:
    """Run and kill on one cache until all rows are there, at most `kills` times; kills and rows redone."""
    redone_in_all = 0
    previous = 0
    for killed in range(kills):
        reader, writer = os.pipe()

        def report(durable: int, appended: int, pipe: int = writer) -> None:
            os.write(pipe, workload.REPORT.pack(durable, appended))

        child = FORK.Process(
            target=workload.write_rows, args=(cache, range(N_ROWS), report), kwargs={"pack_every": 7}
        )
        child.start()
        os.close(writer)
        os.read(reader, workload.REPORT.size)  # it is open and about to write
        time.sleep(rng.uniform(0.0, 0.25))
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        with os.fdopen(reader, "rb") as pipe:
            reports = pipe.read()
        durable, appended = workload.REPORT.unpack(reports[-workload.REPORT.size :]) if reports else (0, 0)
        durable = max(durable, previous)
        there = present(cache)
        assert workload.complaints_before_next_run(cache, range(durable), range(N_ROWS)) == []
        redone = max(0, appended - there)
        assert redone <= workload.COMMIT  # at most one commit
        redone_in_all += redone
        previous = durable
        if there == N_ROWS:  # nothing is left to be interrupted: another cache
            return killed + 1, redone_in_all
    return kills, redone_in_all


def present(cache: Path) -> int:
    from featx.stores.hdf5 import HDF5Store

    missing = HDF5Store(cache).missing(workload.spec_of().key, workload.ids_of(range(N_ROWS)))
    return int((~missing).sum())


def kill_often(tmp_path: Path, kills: int) -> None:
    rng, done, runs, redone = random.Random(kills), 0, 0, 0
    while done < kills:
        cache = tmp_path / f"cache{runs}"
        more, again = kill_until_done(cache, kills - done, rng)
        done, runs, redone = done + more, runs + 1, redone + again
        assert workload.complaints(cache, range(present(cache)), range(N_ROWS), noted=False) == []
    print(f"\n{done} kills in {runs} runs: 0 durable rows lost, 0 wrong, {redone} rows computed again")


def test_15_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    kill_often(tmp_path, 15)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_200_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    kill_often(tmp_path, 200)
