"""Flipped bytes in every region of a segment, lost pages, lost tails: set aside or harmless, never served."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import workload

from featx.exceptions import StoreWarning
from featx.stores.hdf5 import HDF5Store

N_ROWS = 100
WIDTH = 8
KEY = workload.spec_of().key


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """Name and bytes of a segment with two blocks of rows."""
    cache = tmp_path_factory.mktemp("whole")
    workload.write_rows(cache, range(N_ROWS), width=WIDTH, append=N_ROWS)
    (path,) = cache.glob("v1/*/seg-*.h5")
    return str(path.relative_to(cache)), path.read_bytes()


def regions_of(data: bytes, tmp_path: Path) -> dict[str, range]:
    """Where ids, rows and sums lie; the rest is HDF5's own and our attributes."""
    path = tmp_path / "whole.h5"
    path.write_bytes(data)
    with h5py.File(path) as file:
        return {
            name: range(file[name].id.get_offset(), file[name].id.get_offset() + file[name].nbytes)
            for name in ("id", "x", "sum")
        }


def damage_and_read(folder: Path, name: str, damaged: Iterable[bytes]) -> Counter[str]:
    """What a reader makes of each damaged segment; fails on a wrong row and on one that cannot be redone."""
    outcome: Counter[str] = Counter()
    everything, ids = workload.rows_of(range(N_ROWS), WIDTH), workload.ids_of(range(N_ROWS))
    for number, data in enumerate(damaged):
        cache = folder / str(number)
        (cache / name).parent.mkdir(parents=True)
        (cache / name).write_bytes(data)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", StoreWarning)
            store = HDF5Store(cache)
            store.verify()
            there = ~store.missing(KEY, ids)
            if there.any() and not np.array_equal(store.read(KEY, ids[there]), everything[there]):
                outcome["wrong"] += 1
                continue
            outcome["set aside, some rows saved" if there.any() else "set aside"] += len(caught) > 0
            outcome["harmless"] += there.all() and not caught
            assert there.all() or caught, "rows went missing without a word"
            store.append(KEY, ids, everything, workload.spec_of())
            store.close()
            assert np.array_equal(HDF5Store(cache).read(KEY, ids), everything)
    return outcome


def flips(data: bytes, offsets: Iterable[int], rng: random.Random) -> Iterator[bytes]:
    for offset in offsets:
        yield data[:offset] + bytes([data[offset] ^ (1 << rng.randrange(8))]) + data[offset + 1 :]


def test_a_flipped_byte_in_any_region_is_never_served(
    segment: tuple[str, bytes], memory_folder: Path, tmp_path: Path
) -> None:
    name, data = segment
    rng = random.Random(0)
    regions = regions_of(data, tmp_path)
    covered = {offset for region in regions.values() for offset in region}
    regions["header"] = [offset for offset in range(len(data)) if offset not in covered]  # type: ignore[assignment]
    for region, offsets in regions.items():
        some = rng.sample(list(offsets), min(len(offsets), 40))
        outcome = damage_and_read(memory_folder / region, name, flips(data, some, rng))
        assert outcome["wrong"] == 0, region
        if region != "header":
            assert outcome["harmless"] == 0, region  # every byte of ids, rows and sums is under a digest


def test_lost_pages_and_tails_are_never_served(segment: tuple[str, bytes], memory_folder: Path) -> None:
    name, data = segment
    pages = [
        data[:at] + bytes(len(data[at : at + 512])) + data[at + 512 :] for at in range(0, len(data), 512)
    ]
    tails = [data[:length] for length in range(0, len(data), 499)]
    longer = [data + b"\0" * 100]
    outcome = damage_and_read(memory_folder, name, pages + tails + longer)
    assert outcome["wrong"] == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_single_byte_flipped_is_never_served(segment: tuple[str, bytes], memory_folder: Path) -> None:
    name, data = segment
    outcome = damage_and_read(memory_folder, name, flips(data, range(len(data)), random.Random(1)))
    assert outcome["wrong"] == 0
    print(f"\n{len(data)} bytes of a segment flipped one by one: {dict(outcome)}")


def test_without_the_checksum_a_flipped_row_is_noticed(
    segment: tuple[str, bytes], memory_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import featx.stores.segments

    monkeypatch.setattr(
        featx.stores.segments, "check_sum", featx.stores.segments.check_sum
    )  # put back afterwards
    workload.sabotage_checksum()
    name, data = segment
    outcome = damage_and_read(
        memory_folder, name, flips(data, regions_of(data, tmp_path)["x"][:20], random.Random(2))
    )
    assert outcome["wrong"] == 20
