"""Cache folders with damaged, stray and planted files: a sentence or work; nothing outside is touched."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_stores import KEY, fill, ids_of, make_spec, rows_of, segments

from featx import FeatureExtractor
from featx.exceptions import StoreError, StoreFormatError, StoreWarning
from featx.extractor.isolation import _entries, _is_abandoned
from featx.stores.hdf5 import HDF5Store
from featx.stores.notes import note_path

SPACE = KEY[:16]
SEGMENT = f"seg-{'0' * 32}-5.h5"


def make_cache(folder: Path, numbers: range = range(20)) -> Path:
    with HDF5Store(folder) as store:
        fill(store, numbers)
        store.remember("kind", "name", {"n": 1})
    return folder


def use(cache: Path) -> None:
    """Everything that a run and `featx cache` do."""
    with HDF5Store(cache) as store:
        store.usage()
        missing = store.missing(KEY, ids_of(*range(20)))
        present = np.flatnonzero(~missing).tolist()
        with contextlib.suppress(KeyError):  # damage that only the read finds
            assert not present or np.array_equal(store.read(KEY, ids_of(*present)), rows_of(*present))
        fill(store, range(100, 105))
        store.commit()
        store.remember("kind", "name", {"n": 2})
        store.recall("kind", "name")
        store.verify()
        store.pack()
        store.prune(older_than_s=90 * 86400)
        assert not store.missing(KEY, ids_of(*range(100, 105))).any()


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_noise(path: Path) -> None:
    path.write_bytes(b"\xff\x00{[" * 7)


def make_nested(path: Path) -> None:
    path.write_bytes(b"[" * 100_000)


def make_other(path: Path) -> None:
    path.write_bytes(b'{"format": 1e999, "pid": [], "host": 3}')


MAKERS: list[Callable[[Path], None]] = [
    make_pipe, make_folder, make_loop, make_noise, make_nested, make_other
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::featx.exceptions.StoreWarning")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    "name",
    [
        "format.json",
        f"{SPACE}/spec.json",
        f"{SPACE}/{SEGMENT}",
        f"{SPACE}/quarantine",
        "pack.lock",
        "0123456789abcdef",
        "decoding",
        f"notes/{note_path('kind', 'name')}",
    ],
)
def test_one_stray_or_damaged_file_does_not_disable_a_cache(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    cache = make_cache(tmp_path / "cache")
    path = cache / "v1" / name
    if path.exists():
        path.unlink()
    make(path)
    use(cache)


@pytest.mark.parametrize("make", [make_pipe, make_noise])
@pytest.mark.parametrize("name", ["notes", "notes/kind"])
def test_a_file_in_the_place_of_the_notes_is_named(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    cache = make_cache(tmp_path / "cache")
    shutil.rmtree(cache / "v1" / name)
    make(cache / "v1" / name)
    with pytest.warns(StoreWarning, match=f"{name}: a note cannot be written there"):
        use(cache)


def test_a_segments_name_on_a_folder_is_ignored_and_named(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    (cache / "v1" / SPACE / SEGMENT).mkdir()
    with pytest.warns(StoreWarning, match=f"{SEGMENT}: it is a folder, link or pipe"):
        use(cache)


def test_a_damaged_format_file_is_named_and_written_again(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    (cache / "v1" / "format.json").write_bytes(b"{")
    with pytest.warns(StoreWarning, match=r"format\.json: it is damaged"):
        HDF5Store(cache)
    assert json.loads((cache / "v1" / "format.json").read_bytes())["format"] == 1


@pytest.mark.filterwarnings("ignore::featx.exceptions.StoreWarning")
@pytest.mark.parametrize("digits", ["9" * 12, "9" * 60, "000000000000", "99999999"])
def test_an_absurd_number_of_rows_in_a_name_takes_no_memory(tmp_path: Path, digits: str) -> None:
    cache = make_cache(tmp_path / "cache")
    (path,) = segments(cache)
    shutil.copy(path, path.with_name(f"seg-{'0' * 32}-{digits}.h5"))
    use(cache)


def test_a_folder_v2_of_the_user_is_not_a_newer_cache(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "v2").mkdir(parents=True)
    (cache / "v2" / "notes.txt").write_text("mine")
    (cache / "v3").write_text("a file")
    (cache / "v4").mkdir()
    (cache / "v4" / "format.json").write_text('{"format": 7}')
    make_cache(cache)
    use(cache)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b"3", b'{"pid": "x"}', b'{"pid": 1e400}', b"[" * 9999]
)
def test_a_damaged_journal_counts_as_absent(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.journal"
    path.write_bytes(content)
    assert not _is_abandoned(path)
    assert _entries(path) == []


@pytest.mark.parametrize("make", [make_pipe, make_folder, make_loop])
def test_a_journals_name_on_something_else_counts_as_absent(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "x.journal")
    assert not _is_abandoned(tmp_path / "x.journal")
    assert _entries(tmp_path / "x.journal") == []


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 2000])
def test_an_old_file_that_is_no_journal_is_named(tmp_path: Path, content: bytes, picture: Any) -> None:
    (tmp_path / "cache" / "v1" / "decoding").mkdir(parents=True)
    path = tmp_path / "cache" / "v1" / "decoding" / "x.journal"
    path.write_bytes(content)
    extractor = FeatureExtractor("test_resnet", pretrained=False, store=tmp_path / "cache", runtime="torch")
    extractor.fit_transform([picture(1)])  # another process may be writing it
    os.utime(path, (1e9, 1e9))
    with pytest.warns(StoreWarning, match=r"x\.journal: it is not a journal"):
        extractor.fit_transform([picture(2)])
    assert path.read_bytes() == content


def test_an_export_beside_packing_begins_again(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache", range(200))
    script = f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_stores_hostile import HDF5Store, fill
        from pathlib import Path
        number = 1000
        while not Path({str(tmp_path / "end")!r}).exists():
            store = HDF5Store(Path({str(cache)!r}))
            for _ in range(3):
                fill(store, range(number, number + 50))
                store.commit()
                number += 50
            store.pack()
            Path({str(tmp_path / "began")!r}).touch()
    """
    packer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    try:
        while not (tmp_path / "began").exists():
            assert packer.poll() is None
            time.sleep(0.05)
        rows = [HDF5Store(cache).export(KEY, tmp_path / f"{number}.npz") for number in range(30)]
    finally:
        (tmp_path / "end").touch()
        packer.wait()
    assert rows == sorted(rows)
    for number, n_rows in enumerate(rows):
        with np.load(tmp_path / f"{number}.npz") as table:
            assert len(table["id"]) == n_rows


# Links that somebody planted in a shared cache


def tree(folder: Path) -> dict[str, object]:
    return {
        str(path): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            path.read_bytes() if path.is_file() else None,
        )
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.filterwarnings("ignore::featx.exceptions.StoreWarning")
@pytest.mark.parametrize(
    "name",
    [
        "",
        SPACE,
        "notes",
        "notes/kind",
        f"{SPACE}/quarantine",
        "format.json",
        f"{SPACE}/spec.json",
        "pack.lock",
        f"{SPACE}/{SEGMENT}",
        "0123456789abcdef",
    ],
)
@pytest.mark.parametrize("dangling", [False, True])
def test_a_planted_link_never_makes_featx_write_elsewhere(tmp_path: Path, name: str, dangling: bool) -> None:
    cache = make_cache(tmp_path / "cache")
    outside = tmp_path / "outside"
    outside.mkdir()
    path = cache / "v1" / name
    target = outside / "target"
    if not dangling:
        target.mkdir()
        (target / SEGMENT).write_bytes(b"precious")
        (target / "spec.json").write_bytes(b"precious")
        precious = target / f".tmp-4194304-{'a' * 32}"  # no such process
        precious.write_bytes(b"precious")
        os.utime(precious, (1e9, 1e9))
        if name.endswith((".json", ".lock", ".h5")):
            target = target / SEGMENT
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
    path.symlink_to(target)
    if name.endswith("quarantine"):
        (damaged,) = segments(cache)
        damaged.write_bytes(damaged.read_bytes()[:-100])
    before = tree(outside)
    try:
        with HDF5Store(cache) as store:
            fill(store, range(30, 40))
            store.commit()
            store.remember("kind", "name", {"n": 2})
    except StoreError as error:
        message = str(error)
    else:
        message = "link"
        use(cache)
        HDF5Store(cache).prune(max_bytes=0)
    assert "link" in message
    assert tree(outside) == before


def test_a_cache_is_made_for_its_owner_only(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "above" / "cache")
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "above").stat().st_mode) != 0o700


# Pruning and quarantine


def test_writing_is_a_use(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    spec_file = cache / "v1" / SPACE / "spec.json"
    os.utime(spec_file, (1e9, 1e9))
    writer = HDF5Store(cache)
    fill(writer, range(20, 30))
    writer.commit()
    assert HDF5Store(cache).prune(older_than_s=90 * 86400).segments == 0
    assert not HDF5Store(cache).missing(KEY, ids_of(*range(30))).any()


def set_aside(cache: Path) -> Path:
    (path,) = segments(cache)
    shelf = path.parent / "quarantine"
    shelf.mkdir()
    return path.rename(shelf / path.name)


def test_verify_takes_intact_segments_back_from_quarantine(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    set_aside(cache)
    assert HDF5Store(cache).missing(KEY, ids_of(*range(20))).all()
    report = HDF5Store(cache).verify()
    assert (report.restored, report.rows, report.bad) == (1, 20, ())
    assert np.array_equal(HDF5Store(cache).read(KEY, ids_of(*range(20))), rows_of(*range(20)))


def test_verify_leaves_damaged_segments_in_quarantine(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    path = set_aside(cache)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    data = bytearray(path.read_bytes())
    data[data.index(rows_of(7).astype("<f2").tobytes())] ^= 1
    path.write_bytes(data)
    assert HDF5Store(cache).verify().restored == 0
    assert path.exists()


def test_prune_does_not_delete_intact_quarantined_segments_first(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "cache")
    path = set_aside(cache)
    other = make_spec(pool="max")
    with HDF5Store(cache) as store:
        fill(store, range(20), spec=other)
    os.utime(cache / "v1" / other.key[:16] / "spec.json", (1e9, 1e9))  # is used least
    HDF5Store(cache).prune(max_bytes=path.stat().st_size)
    assert not HDF5Store(cache).missing(KEY, ids_of(*range(20))).any()


# Fuzzing: mutants of a valid cache

CHILD = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_stores_hostile import run_mutants
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
run_mutants(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
"""


@pytest.mark.parametrize(
    "count", [pytest.param(100, id="100"), pytest.param(5000, id="5000", marks=pytest.mark.slow)]
)
def test_mutants_of_a_cache_work_or_are_refused_with_a_sentence(tmp_path: Path, count: int) -> None:
    folder = Path(__file__).parent
    found = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), str(tmp_path), "0", str(count)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-300:] + found.stderr[-3000:]


def run_mutants(folder: Path, first: int, count: int) -> None:
    """Make and use mutants; an exception or signal ends the process, and the last line names the mutant."""
    import signal

    warnings.simplefilter("ignore")
    template = make_cache(folder / "template")
    with HDF5Store(template) as store:
        fill(store, range(20, 60))
        store.commit()
        fill(store, range(10), spec=make_spec(pool="max"))
    (template / "v1" / "decoding").mkdir()
    (template / "v1" / "decoding" / "x.journal").write_text('{"pid": 1, "host": "x", "born": ""}\n')
    outside = folder / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"precious")
    before = tree(outside)
    for number in range(first, first + count):
        print(number, flush=True)
        signal.alarm(20)
        cache = folder / "mutant"
        shutil.copytree(template, cache, symlinks=True)
        rng = np.random.default_rng(number)
        for _ in range(int(rng.integers(1, 4))):
            mutate(cache, outside, rng)
        with contextlib.suppress(StoreError, StoreFormatError):  # a sentence
            use(cache)
        for path in (cache / "v1" / "decoding").glob("*"):
            if not _is_abandoned(path):
                _entries(path)
        assert tree(outside) == before, number
        shutil.rmtree(cache)
    signal.alarm(0)


def mutate(cache: Path, outside: Path, rng: np.random.Generator) -> None:
    """Change one member of a cache: its bytes, size, name, type or place."""
    paths = sorted(path for path in (cache / "v1").rglob("*") if not path.is_symlink())
    path = paths[rng.integers(len(paths))]
    files = [each for each in paths if each.is_file()]
    kind = rng.integers(9)
    if kind < 4:  # bytes
        path = files[rng.integers(len(files))]
        data = bytearray(path.read_bytes())
        if kind == 0:
            for at in rng.integers(len(data) or 1, size=rng.integers(1, 20)):
                data[at : at + 1] = bytes([rng.integers(256)])
        elif kind == 1:
            data = data[: rng.integers(len(data) + 1)]
        elif kind == 2:
            data += bytes(int(rng.integers(1, 10_000)))
        else:
            border = [0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1][rng.integers(6)]
            at = int(rng.integers(len(data) or 1))
            data[at : at + 8] = border.to_bytes(8, "little")
            if path.suffix == ".json":
                text = str(border).encode()
                data = bytearray(b'{"format": %s, "note": [], "sha256": {}, "featx": %s}' % (text, text))
        path.write_bytes(bytes(data))
    elif kind == 4:  # name
        names = [SEGMENT, f"seg-{'1' * 32}-{'9' * 12}.h5", "spec.json", "format.json", "quarantine", "f" * 16]
        target = path.parent / names[rng.integers(len(names))]
        if not target.exists():
            path.rename(target)
    elif kind == 5:  # nested
        target = paths[rng.integers(len(paths))]
        if target.is_dir() and not target.is_relative_to(path) and not (target / path.name).exists():
            with contextlib.suppress(shutil.Error, shutil.SpecialFileError):  # a pipe cannot be copied
                if path.is_dir():
                    shutil.copytree(path, target / path.name, symlinks=True)
                else:
                    shutil.copy(path, target / path.name)
    else:  # type of file
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        if kind == 6:
            path.symlink_to([outside, outside / "file", outside / "none", path][rng.integers(4)])
        elif kind == 7:
            os.mkfifo(path)
        else:
            path.mkdir()
