"""What the reliability tests write, how it is checked, and the process that is killed while writing it.

A row is worked out from its number alone, so that a checker needs no record of what was written. Run as a
program, it appends the rows that are missing, commits every 128 and reports what is durable::

    python workload.py CACHE ACK N_ROWS [--sabotage no-fsync] [--pack-every K] [--close]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import struct
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

APPEND = 32
COMMIT = 128
WIDTH = 64
REPORT = struct.Struct("<QQ")
"""Rows that are durable, rows that were appended."""

NOTE = ("progress", "rows")
"""After each commit, and before it is reported, the number of durable rows is noted in the store."""

SABOTAGES: dict[str, Callable[[], None]] = {}


def spec_of(pool: str = "avg"):
    from featx.spec import FeatureSpec

    return FeatureSpec(
        architecture="test_resnet",
        weights="0" * 64,
        pool=pool,
        input_size=(32, 32),
        crop_pct=0.875,
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        decoder="pillow",
    )


def ids_of(numbers: Iterable[int]) -> np.ndarray:
    digests = [hashlib.sha256(b"%d" % number).digest() for number in numbers]
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)


def rows_of(numbers: Iterable[int], width: int = WIDTH) -> np.ndarray:
    """Whole numbers below 2,048, which float16 holds exactly; no two rows are alike."""
    row = np.array(list(numbers), np.uint64)[:, None] * np.uint64(2654435761)
    column = np.arange(width, dtype=np.uint64)[None] * np.uint64(40503)
    return (((row + column) >> np.uint64(5)) % np.uint64(2048)).astype(np.float32)


def write_rows(
    cache: Path,
    numbers: Sequence[int],
    report: Callable[[int, int], None] = lambda durable, appended: None,
    *,
    pack_every: int = 0,
    width: int = WIDTH,
    append: int = APPEND,
) -> int:
    """Append those of `numbers` that are missing, in order; how many they were."""
    from featx.stores.hdf5 import HDF5Store

    spec, store = spec_of(), HDF5Store(cache)
    computed = commits = 0
    report(0, 0)
    for start in range(0, len(numbers), append):
        some = list(numbers[start : start + append])
        missing = store.missing(spec.key, ids_of(some))
        new = [number for number, is_missing in zip(some, missing, strict=True) if is_missing]
        if new:
            store.append(spec.key, ids_of(new), rows_of(new, width), spec)
        computed += len(new)
        report(commits * COMMIT, start + len(some))
        if (start + append) % COMMIT == 0 or start + append >= len(numbers):
            store.commit()
            commits += 1
            noted = (store.recall(*NOTE) or {"rows": 0})["rows"]
            store.remember(*NOTE, {"rows": max(noted, min(commits * COMMIT, len(numbers)))})
            report(min(commits * COMMIT, len(numbers)), start + len(some))
            if pack_every and commits % pack_every == 0:
                store.pack()
    store.close()
    return computed


def complaints(
    cache: Path, durable: Sequence[int], appended: Sequence[int] = (), *, noted: bool = True
) -> list[str]:
    """What is wrong with a cache after a fault, in which the rows `durable` had been reported as kept.

    Nothing may be wrong: every durable row is there and bit-equal, so is every other row that is found,
    no segment is bad, and the next run completes the set and reads it back.
    """
    from featx.exceptions import FeatxError, FeatxWarning
    from featx.stores.hdf5 import HDF5Store

    found = complaints_before_next_run(cache, durable, appended, noted=noted)
    everything = sorted({*durable, *appended})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FeatxWarning)
            write_rows(cache, everything, append=COMMIT * 64)
            rows = HDF5Store(cache).read(spec_of().key, ids_of(everything))
            if everything and not np.array_equal(rows, rows_of(everything)):
                found.append("the next run does not complete the set")
    except (FeatxError, OSError, KeyError, ValueError) as error:
        found.append(f"next run: {type(error).__name__}: {error}")
    return found


def complaints_before_next_run(
    cache: Path, durable: Sequence[int], appended: Sequence[int] = (), *, noted: bool = True
) -> list[str]:
    """The part of `complaints` that changes nothing."""
    from featx.exceptions import FeatxError, FeatxWarning
    from featx.stores.hdf5 import HDF5Store

    key, found = spec_of().key, []
    everything = sorted({*durable, *appended})
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FeatxWarning)
            store = HDF5Store(cache)
            missing = store.missing(key, ids_of(everything))
            there = [number for number, is_missing in zip(everything, missing, strict=True) if not is_missing]
            lost = set(durable) - set(there)
            if lost:
                found.append(f"{len(lost)} durable rows are lost")
            if there and not np.array_equal(store.read(key, ids_of(there)), rows_of(there)):
                found.append("a row is wrong")
            note = store.recall(*NOTE)
            if noted and durable and (note is None or note["rows"] < len(durable)):
                found.append(f"the note says {note}, not {len(durable)} rows or more")
            found += [f"segment {path.name} is bad: {reason}" for path, reason in store.verify().bad]
        found += [str(warning.message) for warning in caught]
    except (FeatxError, OSError, KeyError, ValueError) as error:
        found.append(f"{type(error).__name__}: {error}")
    return found


def sabotage_fsync() -> None:
    """Claim durability without asking for it."""
    os.fsync = lambda descriptor: None


def sabotage_checksum() -> None:
    """Believe whatever comes from the disk."""
    import featx.stores.segments

    featx.stores.segments.check_sum = lambda found, written: True


SABOTAGES |= {"no-fsync": sabotage_fsync, "no-checksum": sabotage_checksum}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cache", type=Path)
    parser.add_argument("ack", type=Path)
    parser.add_argument("n_rows", type=int)
    parser.add_argument("--sabotage", choices=SABOTAGES)
    parser.add_argument("--pack-every", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.sabotage:
        SABOTAGES[arguments.sabotage]()
    descriptor = os.open(arguments.ack, os.O_CREAT | os.O_WRONLY, 0o644)
    write_rows(
        arguments.cache,
        range(arguments.n_rows),
        lambda durable, appended: os.pwrite(descriptor, REPORT.pack(durable, appended), 0) and None,
        pack_every=arguments.pack_every,
    )


if __name__ == "__main__":
    main()
