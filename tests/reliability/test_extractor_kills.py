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
from apart import SERVER
from PIL import Image

from featx import FeatureExtractor
from featx.exceptions import ImageWarning
from featx.extractor.pipeline import Progress
from featx.stores.hdf5 import HDF5Store

N_PICTURES = 320
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
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(N_PICTURES):
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
