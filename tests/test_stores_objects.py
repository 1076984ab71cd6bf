"""Features on an object store: what was committed is there and right, whatever fails on the way."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "faults"))
sys.path.insert(0, str(Path(__file__).parent / "reliability"))
from object_server import BUCKET, Objects
from staging import FIT, TINY, classes, featx
from workload import ids_of, rows_of, spec_of

from featx.exceptions import StoreError, StoreFormatError, StoreWarning, StoreWriteError, UsageError
from featx.stores import open_store
from featx.stores.objects import ObjectStore

N = 600
SPEC = spec_of()


def filled(address: str, numbers: range = range(N), each: int = 200) -> ObjectStore:
    store = ObjectStore(address)
    for start in range(numbers.start, numbers.stop, each):
        some = range(start, min(start + each, numbers.stop))
        store.append(SPEC.key, ids_of(some), rows_of(some), SPEC)
        store.commit()
    return store


def rows_in(store: ObjectStore, numbers: range = range(N)) -> bool:
    return np.array_equal(store.read(SPEC.key, ids_of(numbers)), rows_of(numbers))


@pytest.fixture
def cache(objects: Objects) -> str:
    return f"{objects.address}/cache"


def test_an_address_opens_it_and_other_processes_see_what_was_committed(cache: str) -> None:
    writer, reader = filled(cache), open_store(cache)
    assert isinstance(reader, ObjectStore)
    assert reader.missing(SPEC.key, ids_of(range(N + 5))).sum() == 5
    assert rows_in(reader)
    order = np.random.default_rng(0).permutation(N)
    np.testing.assert_array_equal(reader.read(SPEC.key, ids_of(order)), rows_of(order))
    assert reader.row_shape(SPEC.key) == writer.row_shape(SPEC.key) == (64,)
    assert list(reader.keys()) == [SPEC.key]
    assert reader.nearest(spec_of("max"))[1].keys() == {"pool"}
    with pytest.raises(KeyError, match="1 of 1 rows are not in space"):
        reader.read(SPEC.key, ids_of([N + 1]))


def test_rows_of_another_spec_are_not_found(cache: str) -> None:
    store = filled(cache)
    assert store.missing(spec_of("max").key, ids_of(range(N))).all()


def test_buffered_rows_are_readable_and_not_listed_before_the_commit(cache: str) -> None:
    store = ObjectStore(cache)
    store.append(SPEC.key, ids_of(range(9)), rows_of(range(9)), SPEC)
    assert rows_in(store, range(9))
    assert ObjectStore(cache).missing(SPEC.key, ids_of(range(9))).all()
    store.close()
    assert rows_in(ObjectStore(cache), range(9))


@pytest.mark.parametrize(
    "fault", ["busy", pytest.param("silent", marks=pytest.mark.slow), "cut", "reset", "lost", "flip"]
)
def test_no_fault_loses_changes_or_repeats_a_row(objects: Objects, cache: str, fault: str) -> None:
    with objects.proxy.faulty(fault, share=0.15):
        filled(cache, range(N), each=60)
        for _ in range(3):
            reader = ObjectStore(cache)
            assert rows_in(reader)
            assert rows_in(reader, range(5, 9))
    assert objects.proxy.injected[fault] > 0
    (usage,) = ObjectStore(cache).usage()
    assert (usage.rows, usage.segments) == (N, N // 60)


def test_a_reader_fetches_few_bytes_of_a_large_segment_for_few_rows(
    objects: Objects, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, wide = ObjectStore(cache), np.repeat(rows_of(range(1000)), 40, axis=1)
    store.append(SPEC.key, ids_of(range(1000)), wide, SPEC)
    store.commit()
    monkeypatch.setenv("FEATX_REMOTE_CACHE", str(tmp_path / "of-another-machine"))
    reader = ObjectStore(cache)
    before = objects.proxy.sent
    np.testing.assert_array_equal(reader.read(SPEC.key, ids_of(range(16, 20))), wide[16:20])
    assert objects.proxy.sent - before < 0.1 * wide.size * 2


def test_a_late_listing_makes_images_missing_and_never_wrong(objects: Objects, cache: str) -> None:
    first = filled(cache, range(200))
    late = ObjectStore(cache)
    assert rows_in(late, range(200))
    objects.proxy.late = True
    first.append(SPEC.key, ids_of(range(200, 300)), rows_of(range(200, 300)), SPEC)
    first.commit()
    first._buffer(SPEC.key).space.refresh(force=True)
    assert rows_in(first, range(300))  # its own rows, though no listing has them
    assert late.missing(SPEC.key, ids_of(range(300))).sum() == 100
    late.append(SPEC.key, ids_of(range(200, 300)), rows_of(range(200, 300)), SPEC)
    late.commit()
    assert rows_in(late, range(300))
    objects.proxy.late = False
    assert rows_in(ObjectStore(cache), range(300))


def test_what_another_process_packed_is_found_again(objects: Objects, cache: str) -> None:
    filled(cache, each=50)
    reader = ObjectStore(cache)
    assert rows_in(reader, range(10))
    freed = ObjectStore(cache).pack()
    assert freed.segments == 12
    assert len([name for name in objects.names("cache") if name.endswith(".h5")]) == 1
    assert rows_in(reader)


@pytest.mark.slow
def test_a_packed_segment_that_is_listed_late_loses_nothing(
    objects: Objects, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(cache, each=50)
    reader = ObjectStore(cache)
    assert not reader.missing(SPEC.key, ids_of(range(N))).any()
    packer = ObjectStore(cache)
    assert rows_in(packer)
    objects.proxy.late = True
    assert packer.pack().segments == 12
    monkeypatch.setenv("FEATX_REMOTE_BYTES", "0")
    with pytest.raises(KeyError):  # the old segments are gone, and the new one is not listed: compute again
        reader.read(SPEC.key, ids_of(range(N)))
    objects.proxy.late = False
    assert rows_in(reader)


def test_a_damaged_object_is_not_used_and_not_moved(objects: Objects, cache: str, tmp_path: Path) -> None:
    filled(cache, each=N)
    (name,) = (name for name in objects.names("cache") if name.endswith(".h5"))
    data = objects.client.get_object(Bucket=BUCKET, Key=name)["Body"].read()
    middle = len(data) // 2
    objects.put(name, data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :])
    reader = ObjectStore(cache)
    with (
        pytest.warns(StoreWarning, match="will be computed again. If this warning comes again, delete it"),
        pytest.raises(KeyError),
    ):
        reader.read(SPEC.key, ids_of(range(N)))
    assert name in objects.names("cache")
    reader.append(SPEC.key, ids_of(range(N)), rows_of(range(N)), SPEC)
    reader.commit()
    assert rows_in(reader)
    with pytest.warns(StoreWarning, match="does not have its sha256"):
        assert len(ObjectStore(cache).verify().bad) == 1
    objects.client.delete_object(Bucket=BUCKET, Key=name)  # as the warning says
    assert ObjectStore(cache).verify().bad == ()
    assert rows_in(ObjectStore(cache))


def test_a_newer_format_is_refused_and_not_touched(objects: Objects, cache: str) -> None:
    objects.put("cache/v9/format.json", json.dumps({"format": 9, "featx": "9"}).encode())
    with pytest.raises(StoreFormatError, match="store format 9, made by featx 9"):
        ObjectStore(cache)
    assert objects.names("cache") == ["cache/v9/format.json"]


def test_notes_are_remembered(cache: str) -> None:
    ObjectStore(cache).remember("backbones", "a name/with: signs", {"x": [1, 2]})
    assert ObjectStore(cache).recall("backbones", "a name/with: signs") == {"x": [1, 2]}
    assert ObjectStore(cache).recall("backbones", "another") is None
    assert ObjectStore(cache).folder("models") is None


def test_one_space_or_the_oldest_segments_are_deleted(objects: Objects, cache: str) -> None:
    store, other = filled(cache, each=100), spec_of("max")
    store.append(other.key, ids_of(range(9)), rows_of(range(9)), other)
    store.commit()
    size = {usage.key: usage.n_bytes for usage in store.usage()}
    assert store.prune(max_bytes=size[SPEC.key] + size[other.key] - 1).segments == 1
    assert store.prune(key=other.key[:8]).segments == 1
    assert list(ObjectStore(cache).keys()) == [SPEC.key]
    assert ObjectStore(cache).missing(SPEC.key, ids_of(range(N))).sum() == 100


@pytest.mark.slow
def test_a_failing_commit_keeps_its_rows_and_the_next_one_stores_them(objects: Objects, cache: str) -> None:
    store = ObjectStore(cache)
    store.append(SPEC.key, ids_of(range(N)), rows_of(range(N)), SPEC)
    with objects.proxy.faulty("busy", share=1), pytest.raises(StoreWriteError, match="stays valid"):
        store.commit()
    assert rows_in(store)
    store.commit()
    assert rows_in(ObjectStore(cache))


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        ("s3://no-such-bucket/cache", StoreError, "Check the address and the keys"),
        ("https://127.0.0.1:9/cache", (StoreError, UsageError), "."),
        ("ftp://host/cache", UsageError, "no address that featx reads"),
        ("s3://photos/../cache", UsageError, "the part '.' or '..'"),
    ],
)
def test_what_is_no_store_is_refused(
    objects: Objects, address: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        open_store(address)


@pytest.mark.slow
def test_the_commands_work_on_an_address(objects: Objects, cache: str, tmp_path: Path) -> None:
    photos = objects.upload(classes(tmp_path / "photos", each=6), "set")
    where = ["--cache-dir", cache]
    first = featx("extract", photos, *TINY, *where)
    assert (first.code, first.document["computed"]) == (0, 12)
    assert featx("extract", photos, *TINY, *where).document["computed"] == 0
    key = first.document["spaces"][next(iter(first.document["spaces"]))]["key"]
    assert featx("cache", "export", key[:12], "-o", tmp_path / "rows.npz", *where).document["rows"] == 12
    assert featx("fit", photos, *FIT, *where, "-o", tmp_path / "m.featx").code == 0
    listed = featx("cache", "ls", *where, "--missing", photos).document
    assert [space["missing"] for space in listed["spaces"]] == [[] for _ in listed["spaces"]]
    assert featx("cache", "verify", *where).code == 0
    assert featx("cache", "pack", *where).code == 0
    assert featx("doctor", *where).code == 0
    assert featx("cache", "prune", "--space", key[:12], *where).document["deleted_segments"] >= 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert featx("extract", photos, *TINY, *where).document["computed"] == 12
