"""One contract for every store, what is particular to the one on disk, and a model test against a dict."""

from __future__ import annotations

import copy
import csv
import dataclasses
import errno
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from featx.exceptions import StoreError, StoreFormatError, StoreWarning, UsageError
from featx.spec import FeatureSpec
from featx.stores import STORES, default_cache, open_store
from featx.stores.base import FeatureStore, as_ids, explain_miss
from featx.stores.hdf5 import HDF5Store
from featx.stores.index import DigestIndex
from featx.stores.segments import open_segment, read_rows
from featx.stores.space import StoredSpace


def make_spec(**changes: Any) -> FeatureSpec:
    fields: dict[str, Any] = {
        "architecture": "test_resnet",
        "weights": "0" * 64,
        "input_size": (32, 32),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "decoder": "pillow",
    }
    return FeatureSpec(**{**fields, **changes})


SPEC = make_spec()
KEY = SPEC.key
BLOCK = str(SPEC.block)


def ids_of(*numbers: int) -> np.ndarray:
    return as_ids(hashlib.sha256(str(number).encode()).digest() for number in numbers)


def rows_of(*numbers: int, width: int = 8) -> np.ndarray:
    """Rows that float16 holds exactly and that no two numbers share."""
    return (
        np.array([[number % 2048 + column / 16 for column in range(width)] for number in numbers], np.float32)
        % 128
    )


def fill(store: FeatureStore, numbers: range, *, spec: FeatureSpec = SPEC, width: int = 8) -> None:
    store.append(spec.key, ids_of(*numbers), rows_of(*numbers, width=width), spec)


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FeatureStore]:
    with_rows = STORES[request.param](tmp_path / "cache")
    yield with_rows
    with_rows.close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def segments(cache: Path) -> list[Path]:
    return sorted(cache.glob("v1/*/seg-*.h5"))


# The contract of every store


def test_an_empty_store_misses_every_id(store: FeatureStore) -> None:
    assert store.missing(KEY, ids_of(1, 2)).tolist() == [True, True]
    assert store.row_shape(KEY) is None
    assert dict(store.keys()) == {}


def test_rows_come_back_in_the_callers_order_with_repeats(store: FeatureStore) -> None:
    fill(store, range(5))
    store.commit()
    assert np.array_equal(store.read(KEY, ids_of(4, 0, 4, 2)), rows_of(4, 0, 4, 2))


def test_rows_are_readable_before_they_are_committed(store: FeatureStore) -> None:
    fill(store, range(3))
    assert np.array_equal(store.read(KEY, ids_of(2, 1)), rows_of(2, 1))
    assert store.row_shape(KEY) == (8,)
    assert dict(store.keys()) == {KEY: SPEC}


def test_only_new_ids_are_missing(store: FeatureStore) -> None:
    fill(store, range(3))
    store.commit()
    assert store.missing(KEY, ids_of(1, 7, 2)).tolist() == [False, True, False]


def test_an_id_that_is_there_keeps_its_first_row(store: FeatureStore) -> None:
    fill(store, range(2))
    store.append(KEY, ids_of(1), rows_of(99), SPEC)
    store.commit()
    store.append(KEY, ids_of(1), rows_of(98), SPEC)
    store.commit()
    assert np.array_equal(store.read(KEY, ids_of(1)), rows_of(1))


def test_an_id_twice_in_one_append_keeps_the_first_row(store: FeatureStore) -> None:
    store.append(KEY, ids_of(1, 1), rows_of(5, 6), SPEC)
    assert np.array_equal(store.read(KEY, ids_of(1)), rows_of(5))


def test_a_row_that_is_not_there_is_a_key_error(store: FeatureStore) -> None:
    fill(store, range(2))
    with pytest.raises(KeyError):
        store.read(KEY, ids_of(1, 50))


def test_reading_no_ids_gives_no_rows_of_the_right_width(store: FeatureStore) -> None:
    fill(store, range(2))
    assert store.read(KEY, ids_of()).shape == (0, 8)


def test_rows_are_rounded_to_float16_and_come_back_as_float32(store: FeatureStore) -> None:
    store.append(KEY, ids_of(1), np.array([[1 / 3, 2.0]], np.float32), SPEC)
    store.commit()
    rows = store.read(KEY, ids_of(1))
    assert rows.dtype == np.float32
    assert rows.tolist() == [[0.333251953125, 2.0]]  # 1/3 in float16 is 1365/4096


def test_float32_rows_are_kept_exactly(store: FeatureStore) -> None:
    spec = make_spec(dtype="float32")
    row = np.array([[1 / 3, 1e30, -1e-30]], np.float32)
    store.append(spec.key, ids_of(1), row, spec)
    store.commit()
    assert np.array_equal(store.read(spec.key, ids_of(1)), row)


def test_a_row_that_overflows_float16_is_kept_exactly_and_its_mates_do_not_change(
    store: FeatureStore,
) -> None:
    rows = np.array([[1 / 3, 1.0], [1 / 3, 70000.0], [1 / 3, 2.0]], np.float32)
    store.append(KEY, ids_of(1, 2, 3), rows, SPEC)
    store.commit()
    expected = [[0.333251953125, 1.0], [float(np.float32(1 / 3)), 70000.0], [0.333251953125, 2.0]]
    assert store.read(KEY, ids_of(1, 2, 3)).tolist() == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_rows_that_are_not_finite_are_refused_and_named(store: FeatureStore, bad: float) -> None:
    rows = rows_of(0, 1, 2).astype(np.float64)
    rows[1, 3] = bad
    with pytest.raises(ValueError, match="1 of 3 rows are not finite \\(rows 1\\)"):
        store.append(KEY, ids_of(0, 1, 2), rows, SPEC)
    assert store.missing(KEY, ids_of(0, 1, 2)).all()


def test_a_spec_of_another_key_is_refused(store: FeatureStore) -> None:
    with pytest.raises(ValueError, match="space of their own spec"):
        store.append(KEY, ids_of(1), rows_of(1), make_spec(pool="max"))


@pytest.mark.parametrize("ids", [ids_of(1), np.zeros((2, 16), np.uint8), np.zeros((2, 32), np.int64)])
def test_ids_that_do_not_fit_the_rows_are_refused(store: FeatureStore, ids: np.ndarray) -> None:
    with pytest.raises(ValueError, match="ids"):
        store.append(KEY, ids, rows_of(1, 2), SPEC)


def test_rows_of_another_shape_are_refused(store: FeatureStore) -> None:
    fill(store, range(2))
    with pytest.raises(ValueError, match=r"shape \(9,\).*shape \(8,\)"):
        fill(store, range(5, 6), width=9)


def test_appending_nothing_makes_no_space(store: FeatureStore) -> None:
    store.append(KEY, ids_of(), np.empty((0, 8), np.float32), SPEC)
    store.commit()
    assert dict(store.keys()) == {}


def test_unpooled_rows_keep_their_shape(store: FeatureStore) -> None:
    rows = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    spec = make_spec(pool="none")
    store.append(spec.key, ids_of(1, 2), rows, spec)
    store.commit()
    assert store.row_shape(spec.key) == (3, 4, 5)
    assert np.array_equal(store.read(spec.key, ids_of(2, 1)), rows[::-1])


def test_spaces_do_not_mix(store: FeatureStore) -> None:
    other = make_spec(pool="max")
    fill(store, range(3))
    store.append(other.key, ids_of(1), rows_of(77), other)
    store.commit()
    assert store.missing(other.key, ids_of(0, 1)).tolist() == [True, False]
    assert np.array_equal(store.read(KEY, ids_of(1)), rows_of(1))
    assert np.array_equal(store.read(other.key, ids_of(1)), rows_of(77))


def test_the_callers_array_may_change_after_the_append(store: FeatureStore) -> None:
    for dtype in ("float16", "float32"):
        spec = make_spec(dtype=dtype)
        batch = rows_of(1, 2)
        store.append(spec.key, ids_of(1, 2), batch, spec)
        batch[:] = -1
        assert np.array_equal(store.read(spec.key, ids_of(1, 2)), rows_of(1, 2))


def test_notes_are_remembered(store: FeatureStore) -> None:
    assert store.recall("backbones", "resnet50.a1_in1k") is None
    store.remember("backbones", "resnet50.a1_in1k", {"weights": "ab", "taps": [1, 2]})
    store.remember("backbones", "resnet50/a1_in1k", {"weights": "cd"})
    assert store.recall("backbones", "resnet50.a1_in1k") == {"weights": "ab", "taps": [1, 2]}
    store.remember("backbones", "resnet50.a1_in1k", {"weights": "ef"})
    assert store.recall("backbones", "resnet50.a1_in1k") == {"weights": "ef"}
    assert store.recall("other", "resnet50.a1_in1k") is None


@pytest.mark.parametrize("name", ["../../x", "CON", "a/b", "", "é\udc80\n", "x" * 5000])
def test_a_note_of_any_name_is_remembered_inside_the_cache(store: FeatureStore, name: str) -> None:
    store.remember("notes", name, {"n": 1})
    assert store.recall("notes", name) == {"n": 1}


def test_a_deep_copy_of_a_store_shares_its_rows(store: FeatureStore) -> None:
    fill(store, range(2))
    assert not copy.deepcopy(store).missing(KEY, ids_of(1)).any()


def test_a_pickled_store_has_the_committed_rows(store: FeatureStore) -> None:
    fill(store, range(2))
    store.commit()
    assert np.array_equal(pickle.loads(pickle.dumps(store)).read(KEY, ids_of(1)), rows_of(1))


def test_one_thread_writes_while_others_read(store: FeatureStore) -> None:
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        rng = np.random.default_rng(threading.get_ident() % 2**32)
        try:
            while not done.is_set():
                numbers = rng.integers(0, 3000, 50).tolist()
                ids = ids_of(*numbers)
                there = ~store.missing(KEY, ids)
                kept = [number for number, is_there in zip(numbers, there, strict=True) if is_there]
                assert np.array_equal(store.read(KEY, ids[there]), rows_of(*kept).reshape(-1, 8)) or not kept
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for start in range(0, 3000, 50):
        fill(store, range(start, start + 50))
        if start % 300 == 0:
            store.commit()
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert not store.missing(KEY, ids_of(*range(3000))).any()


# A cache that cannot lie: every field of the recipe

CHANGED: dict[str, Any] = {
    "architecture": "test_vit",
    "weights": "1" * 64,
    "cut": "layer3",
    "pool": "max",
    "final_norm": False,
    "input_size": (64, 64),
    "resize": "pad",
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "mean": (0.4, 0.5, 0.5),
    "std": (0.2, 0.25, 0.25),
    "background": (0, 0, 0),
    "pixel_range": "minmax",
    "bands": "3,2,1",
    "decoder": "torchvision",
    "decode": "fast",
    "view": 2,
    "view_policy": "photo",
    "precision": "bf16",
    "dtype": "float32",
    "format": 2,
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(FeatureSpec)])
def test_a_change_of_one_field_is_a_miss_that_names_it(store: FeatureStore, field: str) -> None:
    kept = make_spec(view=1, view_policy="light") if field in ("view", "view_policy") else SPEC
    fill(store, range(3), spec=kept)
    fill(store, range(3), spec=make_spec(architecture="another", weights="9" * 64, pool="gem"))
    store.commit()
    asked = kept.replace(**{field: CHANGED[field]})
    assert asked.key != kept.key
    assert store.missing(asked.key, ids_of(0, 1, 2)).all()
    nearest = store.nearest(asked)
    assert nearest is not None
    assert nearest[0] == kept
    assert dict(nearest[1]) == {field: (CHANGED[field], getattr(kept, field))}
    message = explain_miss(asked, nearest[1])
    assert f"differs in {field} (cached: {getattr(kept, field)}, now: {CHANGED[field]})" in message


def test_without_another_space_there_is_no_nearest(store: FeatureStore) -> None:
    assert store.nearest(SPEC) is None
    fill(store, range(1))
    assert store.nearest(SPEC) is None


# The store on disk


def test_a_second_process_sees_what_the_first_committed(cache: Path) -> None:
    first, second = HDF5Store(cache), HDF5Store(cache)
    assert second.missing(KEY, ids_of(1)).all()
    fill(first, range(3))
    assert second.missing(KEY, ids_of(1)).all()
    first.commit()
    assert not second.missing(KEY, ids_of(1)).any()
    assert np.array_equal(second.read(KEY, ids_of(2)), rows_of(2))


def test_a_thousand_and_24_rows_commit_themselves(cache: Path) -> None:
    store = HDF5Store(cache)
    fill(store, range(1023))
    assert segments(cache) == []
    fill(store, range(1023, 1024))
    assert [path.name.split("-")[2] for path in segments(cache)] == ["1024.h5"]


def test_64_megabytes_commit_themselves(cache: Path) -> None:
    store = HDF5Store(cache)
    spec = make_spec(pool="none", dtype="float32")
    rows = np.zeros((3, 6_000_000), np.float32)  # 24 MB a row
    store.append(spec.key, ids_of(1, 2), rows[:2], spec)
    assert segments(cache) == []
    store.append(spec.key, ids_of(3), rows[2:], spec)
    assert sum(path.stat().st_size for path in segments(cache)) > 72e6
    assert max(path.stat().st_size for path in segments(cache)) < 64 << 20


def test_rows_that_wait_ten_seconds_commit_at_the_next_append(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = HDF5Store(cache)
    fill(store, range(1))
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 10)
    fill(store, range(1, 2))
    assert [path.name.split("-")[2] for path in segments(cache)] == ["2.h5"]


def test_a_segment_is_plain_hdf5_as_documented(cache: Path) -> None:
    with HDF5Store(cache) as store:
        fill(store, range(130))
    (path,) = segments(cache)
    assert path.parent.name == KEY[:16]
    with h5py.File(path) as file:
        assert np.array_equal(file["id"][:], ids_of(*range(130)))
        assert file["x"].dtype == np.float16
        assert np.array_equal(file["x"][:], rows_of(*range(130)))
        sums = [
            hashlib.sha256(file["x"][start : start + 16].tobytes()).digest() for start in range(0, 130, 16)
        ]
        assert np.array_equal(file["sum"][:], as_ids(sums))
        assert file.attrs["format"] == 1
        assert json.loads(file.attrs["versions"])["h5py"] == h5py.__version__
    assert (path.parent / "spec.json").read_text() == SPEC.to_json()


def test_segments_of_larger_blocks_are_still_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as before:
        before.setattr("featx.stores.segments.BLOCK_ROWS", 64)
        with HDF5Store(cache) as store:
            fill(store, range(130))
    assert np.array_equal(HDF5Store(cache).read(KEY, ids_of(*range(130))), rows_of(*range(130)))


def test_scattered_rows_of_many_segments_and_blocks_are_right(cache: Path) -> None:
    store = HDF5Store(cache)
    for start in range(0, 1000, 250):
        fill(store, range(start, start + 250))
        store.commit()
    numbers = np.random.default_rng(0).integers(0, 1000, 400).tolist()
    assert np.array_equal(HDF5Store(cache).read(KEY, ids_of(*numbers)), rows_of(*numbers))


def test_packing_keeps_every_row_and_open_readers_go_on(cache: Path) -> None:
    store, reader = HDF5Store(cache), HDF5Store(cache)
    for start in range(0, 500, 50):
        fill(store, range(start, start + 50))
        store.commit()
    assert np.array_equal(reader.read(KEY, ids_of(*range(500))), rows_of(*range(500)))
    freed = store.pack()
    assert freed.segments == 10
    assert [path.name.split("-")[2] for path in segments(cache)] == ["500.h5"]
    for one in (store, reader, HDF5Store(cache)):
        assert np.array_equal(one.read(KEY, ids_of(*range(500))), rows_of(*range(500)))


def test_closing_packs_what_a_long_run_left_in_small_segments(cache: Path) -> None:
    with HDF5Store(cache) as store:
        for start in range(0, 70, 10):
            fill(store, range(start, start + 10))
            store.commit()
    assert len(segments(cache)) == 7
    with HDF5Store(cache) as store:
        for start in range(70, 150, 10):
            fill(store, range(start, start + 10))
            store.commit()
    assert [path.name.split("-")[2] for path in segments(cache)] == ["150.h5"]


def test_a_long_run_never_has_more_than_some_small_segments(cache: Path) -> None:
    store = HDF5Store(cache)
    for start in range(0, 400, 10):
        fill(store, range(start, start + 10))
        store.commit()
        assert len(segments(cache)) < 32
    assert np.array_equal(HDF5Store(cache).read(KEY, ids_of(*range(400))), rows_of(*range(400)))


def test_packing_drops_rows_that_two_writers_both_made(cache: Path) -> None:
    first, second = HDF5Store(cache), HDF5Store(cache)
    fill(first, range(100))
    fill(second, range(50, 150))
    first.commit()
    second.commit()
    assert sum(usage.rows for usage in first.usage()) == 200
    first.pack()
    assert sum(usage.rows for usage in first.usage()) == 150
    assert np.array_equal(second.read(KEY, ids_of(*range(150))), rows_of(*range(150)))


def test_packing_stays_below_its_limit_and_leaves_large_segments(cache: Path) -> None:
    store = HDF5Store(cache)
    for start in range(0, 500, 50):  # 50 rows of 16 bytes
        fill(store, range(start, start + 50))
        store.commit()
    store.pack(max_bytes=50 * 16 * 4)
    assert sorted(int(path.stem.split("-")[2]) for path in segments(cache)) == [100, 200, 200]
    before = segments(cache)
    store.pack(max_bytes=50 * 16 * 4)
    assert segments(cache) == before


def test_packing_does_not_widen_float16_rows_beside_overflowed_ones(cache: Path) -> None:
    store = HDF5Store(cache)
    for number in range(4):
        row = rows_of(number)
        row[0, 0] = 70000.0 if number % 2 else 1.0
        store.append(KEY, ids_of(number), row, SPEC)
        store.commit()
    before = store.read(KEY, ids_of(*range(4)))
    store.pack()
    assert len(segments(cache)) == 2
    assert np.array_equal(HDF5Store(cache).read(KEY, ids_of(*range(4))), before)


def test_a_flipped_row_is_quarantined_named_and_the_other_blocks_are_saved(cache: Path) -> None:
    with HDF5Store(cache) as store:
        fill(store, range(200))
    (path,) = segments(cache)
    _flip(path, path.read_bytes().index(rows_of(70).astype("<f2").tobytes()))
    store = HDF5Store(cache)
    message = rf"{path.name}.*block 4 of 13.*184 of its 200 rows were saved, 16 "
    with pytest.warns(StoreWarning, match=message), pytest.raises(KeyError):
        store.read(KEY, ids_of(*range(200)))
    assert (path.parent / "quarantine" / path.name).exists()
    missing = np.flatnonzero(store.missing(KEY, ids_of(*range(200))))
    assert missing.tolist() == list(range(64, 80))
    fill(store, range(64, 80))
    store.commit()
    assert np.array_equal(HDF5Store(cache).read(KEY, ids_of(*range(200))), rows_of(*range(200)))


def test_rows_beside_a_flipped_block_are_served_without_reading_it(cache: Path) -> None:
    with HDF5Store(cache) as store:
        fill(store, range(200))
    (path,) = segments(cache)
    _flip(path, path.read_bytes().index(rows_of(70).astype("<f2").tobytes()))
    assert np.array_equal(HDF5Store(cache).read(KEY, ids_of(1, 199)), rows_of(1, 199))


def test_a_truncated_segment_is_quarantined_and_its_rows_are_missing(cache: Path) -> None:
    with HDF5Store(cache) as store:
        fill(store, range(10))
    (path,) = segments(cache)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.warns(StoreWarning, match="0 of its 10 rows were saved"):
        assert HDF5Store(cache).missing(KEY, ids_of(*range(10))).all()
    assert segments(cache) == []


def test_a_segment_truncated_while_the_store_is_open_is_quarantined_at_the_read(cache: Path) -> None:
    store = HDF5Store(cache)
    fill(store, range(10))
    store.commit()
    (path,) = segments(cache)
    os.truncate(path, 100)
    with pytest.warns(StoreWarning, match="it ends at byte"), pytest.raises(KeyError):
        store.read(KEY, ids_of(3))


def test_a_disk_that_cannot_read_is_an_error_and_no_damage(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HDF5Store(cache) as store:
        fill(store, range(20))

    class Failing(io.FileIO):
        def readinto(self, buffer: Any) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = HDF5Store(cache)
    with monkeypatch.context() as failing:
        failing.setattr("io.FileIO", Failing)
        with pytest.raises(StoreError, match="Input/output error"):
            store.read(KEY, ids_of(3))
    assert np.array_equal(store.read(KEY, ids_of(3)), rows_of(3))


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS limits little elsewhere")
def test_too_little_memory_to_open_a_segment_is_no_damage(cache: Path) -> None:
    with HDF5Store(cache) as store:
        spec = make_spec(dtype="float16")
        ids = np.random.default_rng(0).integers(0, 256, (2**20, 32), np.uint8)
        store._buffer(KEY).space.write(ids, np.zeros((len(ids), 1), np.float16), spec)
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from featx.stores.hdf5 import HDF5Store\n"
        "store = HDF5Store(sys.argv[1])\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "limit = used + (48 << 20)\n"  # the ids take 32 MB twice
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "try:\n"
        "    store.row_shape(sys.argv[2])\n"
        "except MemoryError:\n"
        "    sys.exit(3)"
    )
    done = subprocess.run([sys.executable, "-c", script, cache, KEY], capture_output=True, check=False)
    assert done.returncode == 3, done.stderr.decode()
    assert len(segments(cache)) == 1


def test_too_few_file_descriptors_are_no_damage(cache: Path) -> None:
    with HDF5Store(cache) as store:
        fill(store, range(20))
    (path,) = segments(cache)
    segment, _ = open_segment(path, KEY)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    highest = max(map(int, os.listdir("/dev/fd")))
    held = [os.dup(0) for _ in range(highest + 1)]  # no number below the limit is free
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            open_segment(path, KEY)
        with pytest.raises(OSError, match="Too many open files"):
            next(read_rows(segment, np.arange(3)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in held:
            os.close(descriptor)


def test_a_damaged_segment_stays_where_its_intact_rows_cannot_be_saved(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HDF5Store(cache) as store:
        fill(store, range(200))
    (path,) = segments(cache)
    _flip(path, path.read_bytes().index(rows_of(70).astype("<f2").tobytes()))

    def full(path: Path, data: bytes, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = HDF5Store(cache)
    with monkeypatch.context() as disk:
        disk.setattr("featx.stores.space.atomic_write", full)
        with (
            pytest.warns(StoreWarning, match="so it stays; 16 of its 200 rows will be computed again"),
            pytest.raises(KeyError),
        ):
            store.read(KEY, ids_of(*range(200)))
    assert segments(cache) == [path]
    assert np.flatnonzero(store.missing(KEY, ids_of(*range(200)))).tolist() == list(range(64, 80))
    good = [*range(64), *range(80, 200)]
    assert np.array_equal(store.read(KEY, ids_of(*good)), rows_of(*good))
    with pytest.warns(StoreWarning, match="184 of its 200 rows were saved"):  # there is room again
        assert len(HDF5Store(cache).verify().bad) == 1
    assert np.array_equal(HDF5Store(cache).read(KEY, ids_of(*good)), rows_of(*good))


def test_a_segment_of_another_space_is_quarantined(cache: Path) -> None:
    other = make_spec(pool="max")
    with HDF5Store(cache) as store:
        fill(store, range(3))
        fill(store, range(5, 8), spec=other)
    (path,) = (cache / "v1" / other.key[:16]).glob("seg-*.h5")
    path.rename(cache / "v1" / KEY[:16] / path.name)
    with pytest.warns(StoreWarning, match="belongs to another space"):
        assert HDF5Store(cache).missing(KEY, ids_of(5, 6, 7)).all()


def test_a_segment_renamed_to_another_number_of_rows_is_quarantined(cache: Path) -> None:
    with HDF5Store(cache) as store:
        fill(store, range(3))
    (path,) = segments(cache)
    path.rename(path.with_name(path.name.replace("-3.h5", "-4.h5")))
    store = HDF5Store(cache)
    with pytest.warns(StoreWarning, match="it holds 3 rows.*3 of its 4 rows were saved"):
        assert not store.missing(KEY, ids_of(0, 1, 2)).any()
    assert np.array_equal(store.read(KEY, ids_of(0, 1, 2)), rows_of(0, 1, 2))


def test_quarantine_leaves_a_duplicate_of_the_rows_in_service(cache: Path) -> None:
    first, second = HDF5Store(cache), HDF5Store(cache)
    fill(first, range(5))
    fill(second, range(5))
    first.commit()
    second.commit()
    os.truncate(segments(cache)[0], 100)
    reader = HDF5Store(cache)
    with pytest.warns(StoreWarning):
        rows = reader.read(KEY, ids_of(*range(5)))
    assert np.array_equal(rows, rows_of(*range(5)))


def test_verify_counts_rows_and_names_bad_segments(cache: Path) -> None:
    with HDF5Store(cache) as store:
        fill(store, range(100))
        store.commit()
        fill(store, range(100, 150))
    path = next(path for path in segments(cache) if path.stem.endswith("-50"))
    _flip(path, path.read_bytes().index(rows_of(120).astype("<f2").tobytes()))
    with pytest.warns(StoreWarning):
        report = HDF5Store(cache).verify()
    assert (report.spaces, report.segments, report.rows) == (1, 1, 100)
    assert [(bad.name, reason) for bad, reason in report.bad] == [
        (path.name, "block 1 of 4 does not have its sha256")
    ]
    assert HDF5Store(cache).verify().bad == ()


def test_a_damaged_spec_file_is_restored_from_the_segments(cache: Path) -> None:
    with HDF5Store(cache) as store:
        fill(store, range(3))
    spec_file = cache / "v1" / KEY[:16] / "spec.json"
    spec_file.write_bytes(b"{}")
    store = HDF5Store(cache)
    with pytest.warns(StoreWarning, match=r"spec\.json: it is damaged or no file"):
        assert dict(store.keys()) == {KEY: SPEC}
    fill(store, range(3, 5))
    with pytest.warns(StoreWarning, match=r"spec\.json: it is damaged or no file"):
        store.commit()
    assert spec_file.read_text() == SPEC.to_json()


def test_a_folder_of_another_recipe_whose_key_begins_alike_is_refused(cache: Path) -> None:
    with HDF5Store(cache) as store:
        fill(store, range(3))
    alike = StoredSpace(cache / "v1", KEY[:16] + "0" * 48)  # no recipe with such a key is known
    with pytest.raises(StoreError, match="another spec whose key has the same beginning"):
        alike.write(ids_of(5), rows_of(5), SPEC)


def test_leftovers_of_a_crash_go_when_they_are_old_and_their_process_is_dead(cache: Path) -> None:
    folder = cache / "v1" / KEY[:16]
    folder.mkdir(parents=True)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    hour_ago = time.time() - 3700
    for name in (
        f".tmp-{dead.pid}-{'a' * 32}",
        f".tmp-{os.getpid()}-{'b' * 32}",
        f".tmp-{dead.pid}-{'c' * 32}",
    ):
        (folder / name).write_bytes(b"x")
        if not name.endswith("c"):
            os.utime(folder / name, (hour_ago, hour_ago))
    with HDF5Store(cache) as store:
        fill(store, range(3))
    assert sorted(path.name[-1] for path in folder.glob(".tmp-*")) == ["b", "c"]


def test_packing_sets_a_bad_segment_aside_and_loses_no_good_row(cache: Path) -> None:
    store = HDF5Store(cache)
    for start in range(0, 600, 200):
        fill(store, range(start, start + 200))
        store.commit()
    path = segments(cache)[1]
    with h5py.File(path) as file:
        number = next(number for number in range(600) if (file["id"][70] == ids_of(number)[0]).all())
        at = file["x"].id.get_offset() + 70 * 16
    _flip(path, at)
    with pytest.warns(StoreWarning, match="184 of its 200 rows were saved"):
        store.pack()
    store.pack()
    assert len(segments(cache)) == 1
    missing = HDF5Store(cache).missing(KEY, ids_of(*range(600)))
    assert missing.sum() == 16
    assert missing[number]
    kept = np.flatnonzero(~missing).tolist()
    assert np.array_equal(HDF5Store(cache).read(KEY, ids_of(*kept)), rows_of(*kept))


def test_packing_sweeps_leftovers_beside_notes(cache: Path) -> None:
    store = HDF5Store(cache)
    store.remember("kind", "name", {"n": 1})
    leftover = cache / "v1" / "notes" / "kind" / f".tmp-4194304-{'a' * 32}"  # no such process
    leftover.write_bytes(b"")
    os.utime(leftover, (1e9, 1e9))
    store.pack()
    assert not leftover.exists()
    assert store.recall("kind", "name") == {"n": 1}


def test_usage_tells_rows_and_bytes_without_opening_segments(cache: Path) -> None:
    with HDF5Store(cache) as store:
        fill(store, range(10))
        store.commit()
        fill(store, range(10, 30))
    (usage,) = HDF5Store(cache).usage()
    assert (usage.key, usage.spec, usage.rows, usage.segments) == (KEY, SPEC, 30, 2)
    assert usage.n_bytes == sum(path.stat().st_size for path in segments(cache))
    assert abs(usage.last_used - time.time()) < 60


def test_prune_removes_spaces_that_were_not_used_for_long(cache: Path) -> None:
    other = make_spec(pool="max")
    with HDF5Store(cache) as store:
        fill(store, range(3))
        fill(store, range(3), spec=other)
    long_ago = time.time() - 100 * 86400
    for spec in (SPEC, other):
        os.utime(cache / "v1" / spec.key[:16] / "spec.json", (long_ago, long_ago))
    store = HDF5Store(cache)
    store.read(other.key, ids_of(1))  # a use
    assert store.prune(older_than_s=90 * 86400).segments == 1
    assert dict(store.keys()) == {other.key: other}
    assert not (cache / "v1" / KEY[:16]).exists()
    assert store.missing(KEY, ids_of(1)).all()


def test_prune_to_a_size_takes_the_oldest_segments_of_the_least_used_space(cache: Path) -> None:
    other = make_spec(pool="max")
    store = HDF5Store(cache)
    for number, spec in enumerate((SPEC, SPEC, other)):
        fill(store, range(number * 100, number * 100 + 100), spec=spec)
        store.commit()
        newest = max(segments(cache), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (1e9 + number, 1e9 + number))
    os.utime(cache / "v1" / KEY[:16] / "spec.json", (1e9, 1e9))
    total = sum(path.stat().st_size for path in segments(cache))
    freed = store.prune(max_bytes=total - 1)
    assert freed.segments == 1
    assert store.missing(KEY, ids_of(0)).all()
    assert not store.missing(KEY, ids_of(100)).any()
    assert not store.missing(other.key, ids_of(200)).any()


def test_a_space_pruned_under_a_writer_is_made_anew(cache: Path) -> None:
    writer = HDF5Store(cache)
    fill(writer, range(3))
    writer.commit()
    HDF5Store(cache).prune(max_bytes=0)
    fill(writer, range(3, 6))
    writer.commit()
    reader = HDF5Store(cache)
    assert reader.missing(KEY, ids_of(*range(6))).tolist() == [True] * 3 + [False] * 3
    assert dict(reader.keys()) == {KEY: SPEC}


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet", ".h5"])
def test_export_writes_every_row_once(cache: Path, tmp_path: Path, suffix: str) -> None:
    first, second = HDF5Store(cache), HDF5Store(cache)
    for store, numbers in ((first, range(100)), (second, range(50, 150))):
        fill(store, numbers)
        store.commit()
    path = tmp_path / f"rows{suffix}"
    assert first.export(KEY[:8], path) == 150
    ids, rows = READ_EXPORT[suffix](path)
    expected = {ids_of(number).tobytes().hex(): rows_of(number)[0] for number in range(150)}
    assert len(ids) == len(expected)
    assert all(np.array_equal(row, expected[name]) for name, row in zip(ids, rows, strict=True))


def test_rows_of_which_most_are_stored_twice_are_exported_once(cache: Path, tmp_path: Path) -> None:
    first, second, numbers = HDF5Store(cache), HDF5Store(cache), range(640)
    fill(second, numbers)
    for start in range(0, 640, 32):
        fill(first, numbers[start : start + 32])
        first.commit()
    second.commit()
    assert HDF5Store(cache).export(KEY, tmp_path / "rows.npz") == 640
    ids, rows = _read_npz(tmp_path / "rows.npz")
    assert len(set(ids)) == len(ids) == len(rows) == 640


def _read_npz(path: Path) -> tuple[list[str], np.ndarray]:
    with np.load(path) as file:
        assert str(file["spec"]) == SPEC.to_json()
        return [row.tobytes().hex() for row in file["id"]], file[BLOCK]


def _read_csv(path: Path) -> tuple[list[str], np.ndarray]:
    with open(path, newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["id", *(f"{BLOCK}:{column}" for column in range(8))]
    return [line[0] for line in lines], np.array([line[1:] for line in lines], np.float32)


def _read_parquet(path: Path) -> tuple[list[str], np.ndarray]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    assert table.schema.metadata[b"featx.spec"].decode() == SPEC.to_json()
    frame = table.to_pandas()
    return frame["id"].tolist(), frame.drop(columns="id").to_numpy()


def _read_hdf5(path: Path) -> tuple[list[str], np.ndarray]:
    with h5py.File(path) as file:
        assert file.attrs["spec"] == SPEC.to_json()
        return [row.tobytes().hex() for row in file["id"]], file[BLOCK][:]


READ_EXPORT: dict[str, Callable[[Path], tuple[list[str], np.ndarray]]] = {
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".h5": _read_hdf5,
}


def test_export_as_npy_is_the_features_alone(cache: Path, tmp_path: Path) -> None:
    with HDF5Store(cache) as store:
        fill(store, range(5))
        assert store.export(KEY, tmp_path / "rows.npy") == 5
    assert np.array_equal(np.load(tmp_path / "rows.npy"), np.concatenate([rows_of(n) for n in range(5)]))


def test_export_to_an_unknown_suffix_or_space_says_what_there_is(cache: Path, tmp_path: Path) -> None:
    with HDF5Store(cache) as store:
        fill(store, range(3))
        with pytest.raises(UsageError, match=r"\.npz, \.npy, \.csv, \.parquet, \.h5"):
            store.export(KEY, tmp_path / "rows.xlsx")
        with pytest.raises(UsageError, match=f"there are: {KEY[:16]}"):
            store.export("zz", tmp_path / "rows.npz")
    assert list(tmp_path.glob("rows*")) == []


def test_a_damaged_note_counts_as_none(cache: Path) -> None:
    store = HDF5Store(cache)
    store.remember("backbones", "a", {"weights": "ab" * 32})
    (path,) = cache.glob("v1/notes/backbones/*.json")
    path.write_text(path.read_text().replace("abab", "acab"))
    assert store.recall("backbones", "a") is None


# Formats


def test_a_cache_of_a_newer_format_is_refused_and_not_touched(cache: Path) -> None:
    (cache / "v2" / "stuff").mkdir(parents=True)
    (cache / "v2" / "format.json").write_text('{"format": 2, "featx": "3.1.0"}')
    before = _tree(cache)
    with pytest.raises(StoreFormatError, match=r"store format 2, made by featx 3\.1\.0.*--cache-dir"):
        HDF5Store(cache)
    assert _tree(cache) == before


def test_a_newer_format_inside_the_folder_is_refused_and_not_touched(cache: Path) -> None:
    with HDF5Store(cache) as store:
        fill(store, range(3))
    (cache / "v1" / "format.json").write_text('{"format": 2, "featx": "3.1.0"}')
    before = _tree(cache)
    with pytest.raises(StoreFormatError, match=r"featx 3\.1\.0"):
        HDF5Store(cache)
    assert _tree(cache) == before


def test_a_segment_of_a_newer_format_is_refused_and_not_quarantined(cache: Path) -> None:
    with HDF5Store(cache) as store:
        fill(store, range(3))
    (path,) = segments(cache)
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = 2
    before = _tree(cache)
    with pytest.raises(StoreFormatError, match="Nothing was changed"):
        HDF5Store(cache).missing(KEY, ids_of(1))
    assert _tree(cache) == before


# Where the cache lies


def test_the_default_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("XDG_CACHE_HOME", "HOME", "FEATX_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(StoreError, match=r"--cache-dir, FEATX_CACHE.*--no-cache"):
        open_store()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache() == tmp_path / "home" / ".cache" / "featx"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "featx"
    monkeypatch.setenv("FEATX_CACHE", str(tmp_path / "own"))
    assert default_cache() == tmp_path / "own"
    assert isinstance(open_store(), HDF5Store)


def test_a_cache_below_a_file_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=rf"{tmp_path}/file/cache.*--cache-dir, FEATX_CACHE.*--no-cache"):
        open_store(tmp_path / "file" / "cache")


def test_a_read_only_cache_is_an_error_at_the_start(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o555)
    message = multiprocessing.get_context("fork").Queue()

    def open_as_nobody() -> None:
        if os.geteuid() == 0:  # root may write anywhere
            os.setgid(65534)
            os.setuid(65534)
        try:
            open_store(folder)
        except StoreError as error:
            message.put(str(error))

    for parent in tmp_path.parents:  # pytest keeps its folders to their owner
        if os.geteuid() == 0 and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o001)
    tmp_path.chmod(0o755)
    child = multiprocessing.get_context("fork").Process(target=open_as_nobody)
    child.start()
    child.join()
    assert re.search(
        rf"{folder} cannot be used.*--cache-dir, FEATX_CACHE.*--no-cache", message.get(timeout=5)
    )


def test_open_store_passes_a_store_through_and_knows_memory(tmp_path: Path) -> None:
    store = open_store("memory")
    assert store.folder("models") is None
    assert open_store(store) is store
    assert isinstance(open_store(tmp_path / "x"), HDF5Store)


def test_every_store_has_the_contract(store: FeatureStore) -> None:
    assert isinstance(store, FeatureStore)


# The index


def test_digests_that_share_their_first_8_bytes_are_told_apart() -> None:
    ids = ids_of(*range(100)).copy()
    ids[:50, :8] = 7
    ids[::7, :8] = 9
    index = DigestIndex()
    for start in range(0, 90, 9):
        index.add(ids[start : start + 9], start)
    assert index.find(ids).tolist() == [*range(90), *[-1] * 10]
    index.drop(20, 40)
    assert index.find(ids).tolist() == [*range(20), *[-1] * 20, *range(40, 90), *[-1] * 10]


def test_an_index_that_is_asked_again_and_again_gives_the_same_places() -> None:
    ids = ids_of(*range(3000))
    index = DigestIndex()
    for start in range(0, 2900, 100):
        index.add(ids[start : start + 100], start)
    some = [5, 2899, 2950, 0, 1234, 5]
    for _ in range(12):
        assert index.find(ids[some]).tolist() == [5, 2899, -1, 0, 1234, 5]
    assert index.find(ids).tolist() == [*range(2900), *[-1] * 100]


# A model test: any sequence of operations, against a dictionary


class StoreMachine(RuleBasedStateMachine):
    """Two stores on one folder, and a dictionary of what was appended; `kill` forgets what is buffered."""

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="featx-model-"))
        self.stores = [HDF5Store(self.folder), HDF5Store(self.folder)]
        self.committed: set[int] = set()
        self.buffered: list[set[int]] = [set(), set()]

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @rule(which=st.integers(0, 1), numbers=st.lists(st.integers(0, 60), min_size=1, max_size=20))
    def append(self, which: int, numbers: list[int]) -> None:
        self.stores[which].append(KEY, ids_of(*numbers), rows_of(*numbers), SPEC)
        self.buffered[which] |= set(numbers) - self.committed

    @rule(which=st.integers(0, 1))
    def commit(self, which: int) -> None:
        self.stores[which].commit()
        self.committed |= self.buffered[which]
        self.buffered[which] = set()

    @rule(which=st.integers(0, 1))
    def kill(self, which: int) -> None:
        self.stores[which] = HDF5Store(self.folder)  # the old one is dropped as a dead process drops it
        self.buffered[which] = set()

    @rule(which=st.integers(0, 1), numbers=st.lists(st.integers(0, 70), max_size=30))
    def read(self, which: int, numbers: list[int]) -> None:
        store, there = self.stores[which], self.committed | self.buffered[which]
        missing = store.missing(KEY, ids_of(*numbers))
        assert missing.tolist() == [number not in there for number in numbers]
        kept = [number for number in numbers if number in there]
        if kept:
            assert np.array_equal(store.read(KEY, ids_of(*kept)), rows_of(*kept))
        if len(kept) < len(numbers):
            with pytest.raises(KeyError):
                store.read(KEY, ids_of(*numbers))

    @rule(which=st.integers(0, 1), max_bytes=st.sampled_from([400, 2000, 1 << 20]))
    def pack(self, which: int, max_bytes: int) -> None:
        self.commit(which)
        self.stores[which].pack(max_bytes=max_bytes)

    @rule(which=st.integers(0, 1))
    def verify(self, which: int) -> None:
        assert self.stores[which].verify().bad == ()

    @precondition(lambda self: self.committed)
    @rule(
        which=st.integers(0, 1),
        segment=st.floats(0, 1, exclude_max=True),
        at=st.floats(0, 1, exclude_max=True),
    )
    def rot(self, which: int, segment: float, at: float) -> None:
        """Flip a byte anywhere; what verify sets aside is then missing, nothing else is."""
        paths = sorted(segments(self.folder), key=lambda path: path.stat().st_mtime_ns)
        path = paths[int(segment * len(paths))]
        _flip(path, int(at * path.stat().st_size))
        for store in self.stores:
            store.commit()
        self.committed |= self.buffered[0] | self.buffered[1]
        self.buffered = [set(), set()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", StoreWarning)
            self.stores = [HDF5Store(self.folder), HDF5Store(self.folder)]
            self.stores[which].verify()
            self.stores[1 - which].missing(KEY, ids_of(0))
        numbers = sorted(self.committed)
        missing = self.stores[which].missing(KEY, ids_of(*numbers))
        self.committed = {
            number for number, is_missing in zip(numbers, missing, strict=True) if not is_missing
        }

    @rule(which=st.integers(0, 1))
    def prune_all(self, which: int) -> None:
        self.stores[which].prune(max_bytes=0)
        self.buffered[which] = set()
        self.committed = set()

    @invariant()
    def committed_rows_are_there(self) -> None:
        if getattr(self, "committed", None):
            numbers = sorted(self.committed)
            assert np.array_equal(HDF5Store(self.folder).read(KEY, ids_of(*numbers)), rows_of(*numbers))


StoreMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


class TestStoreAgainstADict(StoreMachine.TestCase):  # the short run; the long one is below
    pass


@pytest.mark.slow
class TestStoreAgainstADictForLong(StoreMachine.TestCase):
    settings = settings(max_examples=400, stateful_step_count=40, deadline=None)


def _flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def _tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }
