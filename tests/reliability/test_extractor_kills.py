"""Real extractions, with decoding, network and commits: killed at random moments, and several at once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import struct
import tempfile
import time
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from apart import SERVER, start
from PIL import Image

from featx import FeatureExtractor
from featx.exceptions import ImageWarning
from featx.extractor.pipeline import Progress
from featx.stores.hdf5 import HDF5Store

N_PICTURES, N_SHARED = 320, 12_000
COMMIT = 32
IN_FLIGHT = 3 * COMMIT
"""Pictures that may be computed and told as done while a commit of the ones before them goes on."""


@contextlib.contextmanager
def commits_often() -> Iterator[None]:
    """A run of some seconds commits as often as one of hours does; only while it lasts."""
    import featx.stores.hdf5

    before, featx.stores.hdf5.COMMIT_ROWS = featx.stores.hdf5.COMMIT_ROWS, COMMIT
    try:
        yield
    finally:
        featx.stores.hdf5.COMMIT_ROWS = before


def extract(pictures: Path, cache: Path, pipe: Connection | None) -> int:
    """Extract all pictures, telling through the pipe how many are done; how many were computed."""
    import torch

    torch.set_num_threads(1)

    def tell(progress: Progress) -> None:
        if pipe is not None:
            os.write(pipe.fileno(), struct.pack("<q", progress.done))

    extractor = FeatureExtractor(
        "test_resnet",
        pretrained=False,
        store=cache,
        runtime="torch",
        precision="fp32",
        input_size=64,
        batch_size=8,
        cut=["layer1", None],
        pool="avg",
        callback=tell,
    )
    if pipe is not None:
        os.write(pipe.fileno(), struct.pack("<q", 0))
    with commits_often(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)  # on a busy machine a picture may take long
        found = extractor.extract(sorted(map(str, pictures.iterdir())))
        for name in found.specs:
            found.blocks[name]
    return found.computed


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("pictures"), N_PICTURES)


def draw(folder: Path, n_pictures: int) -> Path:
    rng = np.random.default_rng(0)
    for number in range(n_pictures):
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), np.uint8)).save(folder / f"{number:04d}.png")
    return folder


def rows_in(cache: Path) -> dict[str, dict[bytes, bytes]]:
    """Every row of every space, checked on the way."""
    store = HDF5Store(cache)
    assert store.verify().bad == ()
    found: dict[str, dict[bytes, bytes]] = {}
    for key in list(store.keys()):
        with tempfile.TemporaryDirectory() as folder:
            store.export(key, Path(folder, "rows.npz"))
            with np.load(Path(folder, "rows.npz")) as kept:
                ids = kept["id"]
                rows = kept[next(name for name in kept.files if kept[name].dtype == np.float32)]
        found[key] = {digest.tobytes(): row.tobytes() for digest, row in zip(ids, rows, strict=True)}
    return found


def kill_and_go_on(pictures: Path, cache: Path, kills: int, seed: int) -> int:
    """Kill extractions on one cache until all rows are there, at most `kills` times; how often."""
    rng, before, killed = random.Random(seed), {}, 0
    while killed < kills and least_in(before) < N_PICTURES:
        reader, writer = SERVER.Pipe(duplex=False)
        child = SERVER.Process(target=extract, args=(pictures, cache, writer))
        child.start()
        writer.close()
        target = rng.uniform(least_in(before), min(least_in(before) + 3 * COMMIT, N_PICTURES))
        told = b""
        while part := os.read(reader.fileno(), 65536):  # ends when the child does
            told += part
            if struct.unpack("<q", told[-8:])[0] >= target:
                time.sleep(rng.uniform(0, 0.1))
                child.kill()
        child.join()
        reader.close()
        done = struct.unpack("<q", told[-8:])[0] if told else 0
        after = rows_in(cache)
        for key, rows in before.items():
            assert rows.items() <= after[key].items(), "a committed row is gone or has changed"
        assert done - least_in(after) <= COMMIT + IN_FLIGHT, "more than a commit is to be done again"
        killed, before = killed + (child.exitcode == -signal.SIGKILL), after
    most = max((len(rows) for rows in before.values()), default=0)
    with warnings.catch_warnings():
        computed = extract(pictures, cache, None)
    assert N_PICTURES - most <= computed <= N_PICTURES - least_in(before)
    assert [len(rows) for rows in rows_in(cache).values()] == [N_PICTURES, N_PICTURES]
    spared = N_PICTURES - computed
    print(f"\n{killed} kills of an extraction: {spared} of {N_PICTURES} pictures were not done again")
    return killed


def least_in(found: dict[str, dict[bytes, bytes]]) -> int:
    """Pictures that have a row in both spaces, at least."""
    return min(map(len, found.values())) if len(found) == 2 else 0


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_a_killed_extraction_goes_on_where_it_stopped(pictures: Path, tmp_path: Path, kills: int) -> None:
    # On a busy machine a child may end before its kill arrives: then another extraction is killed.
    done = runs = 0
    while done < kills:
        done += kill_and_go_on(pictures, tmp_path / f"cache{runs}", kills - done, seed=runs)
        runs += 1
    print(f"\n{done} kills in {runs} extractions: 0 committed rows lost, 0 changed")


@pytest.mark.parametrize("n_extractors", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_extractors_at_once_on_one_cache_are_all_right(
    pictures: Path, tmp_path: Path, n_extractors: int
) -> None:
    alone = tmp_path / "alone"
    with warnings.catch_warnings():
        extract(pictures, alone, None)
    together = [
        SERVER.Process(target=extract, args=(pictures, tmp_path / "shared", None))
        for _ in range(n_extractors)
    ]
    for extractor in together:
        extractor.start()
    for extractor in together:
        extractor.join()
    assert [extractor.exitcode for extractor in together] == [0] * n_extractors
    expected, found = rows_in(alone), rows_in(tmp_path / "shared")
    assert expected.keys() == found.keys()
    for key, rows in expected.items():
        assert rows.keys() == found[key].keys()
        for digest, row in rows.items():  # other batches: the same up to float16's rounding of the last bits
            np.testing.assert_allclose(
                np.frombuffer(found[key][digest], np.float32),
                np.frombuffer(row, np.float32),
                rtol=2e-3,
                atol=1e-4,
            )


HOW = [
    "--backbone", "test_resnet", "--random-weights", "--runtime", "torch", "--precision", "fp32",
    "--input-size", "64", "--batch-size", "8", "--cut", "layer1,last", "--pool", "avg",
]  # fmt: skip


def share(pictures: Path, cache: str, shard: str, log: Path) -> int:
    """Run ``featx extract --shard K/N --wait``; the log gets the digests of the rows that are appended."""
    import torch

    from featx.cli import main

    torch.set_num_threads(1)
    append = HDF5Store.append

    def logged(store: HDF5Store, key: str, ids: np.ndarray, *rest: object) -> None:
        with open(log, "ab") as file:
            file.write(ids.tobytes())
        append(store, key, ids, *rest)

    HDF5Store.append = logged
    with commits_often():
        return main(["extract", str(pictures), "--shard", shard, "--wait", "5s", "--cache-dir", cache, *HOW])


def committed(cache: Path) -> int:
    """Rows that the names of segments state, in the space that has fewer."""
    found = [0, 0]
    for number, folder in enumerate(cache.glob("v1/????????????????")):
        found[number] = sum(int(path.stem.rpartition("-")[2]) for path in folder.glob("seg-*.h5"))
    return min(found)


def kill_shares(pictures: Path, cache: Path, workers: int, kills: int, rng: random.Random) -> int:
    """Kill workers of one run at random, and start each again; how many were killed."""
    n_pictures, killed, starts, before = len(list(pictures.iterdir())), 0, 0, {}
    running, logs = {}, {}
    known: dict[Path, set[bytes]] = {}

    def begin(number: int) -> None:
        nonlocal starts
        log = cache.with_name(f"{cache.name}-{starts}.log")
        known[log] = set.intersection(*(set(rows) for rows in before.values())) if len(before) == 2 else set()
        starts, logs[number] = starts + 1, log
        running[number] = start(
            share, pictures, str(cache), f"{number + 1}/{workers}", log, output=log.with_suffix(".out")
        )

    for number in range(workers):
        begin(number)
    while killed < kills:
        target = committed(cache) + rng.uniform(0, n_pictures / kills / 4)
        while any(worker.is_alive() for worker in running.values()):
            alive = [n for n, worker in running.items() if worker.is_alive() and logs[n].exists()]
            if alive and committed(cache) >= target:
                break
            time.sleep(0.01)
        else:
            break
        number = rng.choice(alive)
        running[number].kill()
        running[number].join()
        killed += running[number].exitcode == -signal.SIGKILL
        after = rows_in(cache)
        for key, rows in before.items():
            assert rows.items() <= after[key].items(), "a committed row is gone or has changed"
        before = after
        begin(number)
    for worker in running.values():
        worker.join()
    said = [out.read_text() for out in cache.parent.glob(f"{cache.name}-*.out")]
    assert [worker.exitcode for worker in running.values()] == [0] * workers, said
    final = rows_in(cache)
    for key, rows in before.items():
        assert rows.items() <= final[key].items(), "a committed row is gone or has changed"
    assert [len(rows) for rows in final.values()] == [n_pictures] * 2
    for log, done in known.items():
        appended = log.read_bytes() if log.exists() else b""
        again = done & {appended[at : at + 32] for at in range(0, len(appended), 32)}
        assert not again, "rows that were committed before a worker began were computed again"
    print(f"\n{killed} kills of {workers} workers, {starts} starts, {n_pictures} pictures")
    return killed


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("workers", "kills", "n_pictures"),
    [(2, 1, 96), pytest.param(4, 20, N_SHARED, marks=pytest.mark.slow)],
)
def test_killed_workers_of_a_shared_cache_lose_and_repeat_no_committed_row(
    tmp_path: Path, workers: int, kills: int, n_pictures: int
) -> None:
    rng, done, runs = random.Random(0), 0, 0
    (tmp_path / "pictures").mkdir()
    pictures = draw(tmp_path / "pictures", n_pictures)
    while done < kills:
        done += kill_shares(pictures, tmp_path / f"shared{runs}", workers, kills - done, rng)
        runs += 1
    print(f"{done} kills in {runs} runs: 0 committed rows lost, 0 repeated")
