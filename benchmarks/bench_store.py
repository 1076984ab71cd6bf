"""The store against .npy, one HDF5 dataset per image, and SQLite: append, whole and scattered reads.

``python benchmarks/run.py --only store``; 20,000 rows through all of them, a million through featx and .npy.

Equal work: float16 rows of 1,280 numbers under 32-byte digests, durable when an append returns (fsync at
the end of each batch of 1,024), found by digest, handed out as float32. ``.npy`` has no digests, commits
or checks: it is the floor. The page cache is warm in all of them.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from pairs import Figure, Section, Spread, Table, say

from featx.spec import FeatureSpec
from featx.stores.hdf5 import HDF5Store

WIDTH = 1280
BATCH = 1024
SCATTERED = 1400
SPEC = FeatureSpec(
    architecture="tf_efficientnet_lite0",
    weights="0" * 64,
    input_size=(224, 224),
    crop_pct=0.875,
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    decoder="pillow",
)

Ids = NDArray[np.uint8]
Rows = NDArray[np.float16]


class Featx:
    """Immutable checked segments, packed at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, batches: Iterator[tuple[Ids, Rows]]) -> None:
        """Keep rows, durable after each batch."""
        with HDF5Store(self.folder) as store:
            for ids, rows in batches:
                store.append(SPEC.key, ids, rows, SPEC)

    def read(self, ids: Ids, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Open, look up which are missing, and read rows by digest."""
        store = HDF5Store(self.folder)
        assert not store.missing(SPEC.key, ids).any()
        return store.read(SPEC.key, ids)


class Npy:
    """One file, rows in a known order: no digests, no commits, no checks."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rows.npy"

    def write(self, batches: Iterator[tuple[Ids, Rows]]) -> None:
        """Keep rows, durable after each batch."""
        with open(self.path, "wb") as file:
            for _, rows in batches:
                file.write(rows.tobytes())
                file.flush()
                os.fsync(file.fileno())

    def read(self, ids: Ids, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Open, and read rows by digest (or, where there are none, by place)."""
        rows = np.memmap(self.path, np.float16, "r").reshape(-1, WIDTH)
        return rows[places].astype(np.float32)


class DatasetPerImage:
    """What many feature extractors do: one HDF5 dataset for each image, named by its digest."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rows.h5"

    def write(self, batches: Iterator[tuple[Ids, Rows]]) -> None:
        """Keep rows, durable after each batch."""
        with h5py.File(self.path, "w") as file, open(self.path, "rb+") as raw:
            for ids, rows in batches:
                for digest, row in zip(ids, rows, strict=True):
                    file.create_dataset(digest.tobytes().hex(), data=row)
                file.flush()
                os.fsync(raw.fileno())

    def read(self, ids: Ids, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Open, and read rows by digest (or, where there are none, by place)."""
        with h5py.File(self.path) as file:
            return np.stack([file[digest.tobytes().hex()][:] for digest in ids]).astype(np.float32)


class SQLite:
    """One blob for each image, WAL, synchronous=FULL."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rows.db"

    def write(self, batches: Iterator[tuple[Ids, Rows]]) -> None:
        """Keep rows, durable after each batch."""
        database = sqlite3.connect(self.path, isolation_level=None)
        database.execute("pragma journal_mode=wal")
        database.execute("pragma synchronous=full")
        database.execute("create table if not exists kept (id blob primary key, x blob) without rowid")
        for ids, rows in batches:
            database.execute("begin")
            pairs = ((digest.tobytes(), row.tobytes()) for digest, row in zip(ids, rows, strict=True))
            database.executemany("insert or ignore into kept values (?, ?)", pairs)
            database.execute("commit")
        database.close()

    def read(self, ids: Ids, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Open, and read rows by digest (or, where there are none, by place)."""
        database = sqlite3.connect(self.path)
        ask = "select x from kept where id = ?"
        found = [database.execute(ask, (digest.tobytes(),)).fetchone()[0] for digest in ids]
        database.close()
        return np.frombuffer(b"".join(found), np.float16).reshape(-1, WIDTH).astype(np.float32)


KEEPERS = {"featx": Featx, "npy": Npy, "hdf5 dataset per image": DatasetPerImage, "sqlite": SQLite}


LARGE, MANY = 1_000_000, 100_000
"""More rows than `MANY` are written once, and never read whole: it would be a test of memory."""

TITLES = {
    "featx": "**featx**",
    "npy": ".npy, rows by position (the floor)",
    "hdf5 dataset per image": "HDF5, a dataset for each image",
    "sqlite": "SQLite, a blob for each image",
}


def measure(rounds: int, quick: bool) -> Section:
    """Both sizes."""
    n_rows, n_large = (2000, 4000) if quick else (20_000, LARGE)
    few, _ = compare(n_rows, min(rounds, 3), list(KEEPERS))
    many, found = compare(n_large, rounds, ["featx", "npy"])
    check = "every row compared with what was written"
    figures = {"store.million": Figure.of(Spread.of(found["featx", SERVED]), check)}
    about = (
        f"float16 rows of {WIDTH:,} numbers under 32-byte digests, durable when an append returns (fsync "
        f"after each batch of {BATCH:,}), found by digest, handed out as float32. `.npy` has no digests, "
        "commits or checks. The page cache is warm. Reads open the store, and all that they return "
        "is compared with what was written."
    )
    return Section("The store", about, [few, many], figures)


SERVED = "1,400 scattered"
Found = dict[tuple[str, str], list[float]]


def compare(n_rows: int, rounds: int, names: list[str]) -> tuple[Table, Found]:
    """Alternate over the keepers, so that a busy machine is busy for all of them."""
    ids, rows = digests(n_rows), pattern()
    n_some = min(SCATTERED, n_rows // 2)
    picks = np.random.default_rng(1).choice(n_rows, n_some, replace=False)
    jobs = {SERVED: picks, "1,400 contiguous": np.arange(n_rows // 4, n_rows // 4 + n_some)}
    if n_rows <= MANY:
        jobs["whole"] = np.random.default_rng(2).permutation(n_rows)
    seconds: Found = {}
    sizes: dict[str, int] = {}
    with tempfile.TemporaryDirectory(prefix="bench-store-") as base:
        for turn in range(1, rounds + 1):
            for name in names:
                folder = Path(base, name.replace(" ", "-"))
                if turn == 1 or n_rows <= MANY:
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.mkdir()
                    keeper = KEEPERS[name](folder)
                    spent = timed(lambda k=keeper: k.write(batches(ids, rows)))  # type: ignore[misc]
                    seconds.setdefault((name, "append"), []).append(spent)
                    sizes[name] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                keeper = KEEPERS[name](folder)
                for what, places in jobs.items():
                    expected = rows[places % BATCH] + (places // BATCH % 100)[:, None].astype(np.float16)
                    if not np.array_equal(keeper.read(ids[places], places), expected.astype(np.float32)):
                        raise AssertionError(f"{name} gives other rows")
                    spent = timed(lambda k=keeper, p=places: k.read(ids[p], p))  # type: ignore[misc]
                    seconds.setdefault((name, what), []).append(spent)
                if name == "featx":
                    spent = timed(lambda f=folder: HDF5Store(f).missing(SPEC.key, ids[picks]))  # type: ignore[misc]
                    seconds.setdefault((name, "open and find"), []).append(spent)
                say(f"store, {n_rows:,} rows, round {turn} of {rounds}, {name}")
    columns = ["append", *jobs, "open and find"]
    lines = [
        [TITLES[name], *(text(seconds.get((name, what))) for what in columns), f"{sizes[name] / 1e6:,.0f} MB"]
        for name in names
    ]
    what = f"{n_rows:,} rows, seconds, median and [quartiles] of {rounds} rounds:"
    header = ["kept by", *columns, "on disk"]
    return Table(header, lines, what), seconds


def text(measured: list[float] | None) -> str:
    """Seconds, or nothing where a keeper cannot do it."""
    return Spread.of(measured).text() if measured else ""


def digests(n_rows: int) -> Ids:
    """As random as sha256's."""
    return np.random.default_rng(0).integers(0, 256, (n_rows, 32), dtype=np.uint8)


def pattern() -> Rows:
    """Rows of one batch; whole numbers, so that every batch's are exact in float16."""
    return np.random.default_rng(3).integers(0, 1900, (BATCH, WIDTH)).astype(np.float16)


def batches(ids: Ids, rows: Rows) -> Iterator[tuple[Ids, Rows]]:
    """Batches of 1,024 rows that differ."""
    for number, start in enumerate(range(0, len(ids), BATCH)):
        some = ids[start : start + BATCH]
        yield some, rows[: len(some)] + np.float16(number % 100)


def timed(job: Callable[[], object]) -> float:
    """Wall-clock seconds."""
    began = time.perf_counter()
    job()
    return time.perf_counter() - began
