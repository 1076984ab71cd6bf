"""Rows 21 to 31 of the faults in docs/reliability.md: disks, caches, spaces."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from staging import FIT, TINY, classes, featx, ordinary_rights, photo, rows

from featx.stores.hdf5 import HDF5Store

SHELL = [sys.executable, "-m", "featx"]


def photos_in(folder: Path, count: int) -> Path:
    for seed in range(count):
        photo(folder / f"{seed:04d}.png", seed)
    return folder


def segments(cache: Path) -> list[Path]:
    return sorted(cache.rglob("seg-*.h5"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FULL_DISK = """
import subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from staging import TINY, featx, photo, rows
import featx.stores.hdf5 as hdf5
hdf5.COMMIT_ROWS = 64
disk, photos = Path(sys.argv[2]), Path(sys.argv[3])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], check=True)
command = ("extract", photos, *TINY, "--taps", "all", "--dtype", "float32", "--cache-dir", disk / "cache")
full = featx(*command)
assert full.code == 1, full
for words in ("No space left on device", "MB free", "featx cache prune", "--cache-dir"):
    assert words in full.error, full.error
subprocess.run(["mount", "-o", "remount,size=32m", disk], check=True)
kept = [space["rows"] for space in featx("cache", "ls", "--cache-dir", disk / "cache").document["spaces"]]
assert kept and max(kept) >= 64, kept
assert featx("cache", "verify", "--cache-dir", disk / "cache").code == 0
again = featx(*command)
assert again.code == 0, again.err
assert 0 < again.document["computed"] <= 200 - min(kept), (again.document["computed"], kept)
"""


@pytest.mark.slow  # tests/reliability/test_store_full_disk.py has it without a network
def test_row_21_a_full_disk_keeps_what_is_committed_and_the_next_run_goes_on(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    photos = photos_in(tmp_path / "photos", 200)
    command = ["unshare", "-rm", sys.executable, "-c", FULL_DISK, Path(__file__).parent, disk, photos]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_row_22_a_cache_that_cannot_be_used_is_an_error_before_the_work(tmp_path: Path) -> None:
    photos = photos_in(tmp_path / "photos", 3)
    (tmp_path / "file").write_text("")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    for folder in (tmp_path / "file" / "cache", locked, locked / "below"):
        with ordinary_rights():
            said = featx("extract", photos, *TINY, "--cache-dir", folder)
        assert said.code == 1
        assert f"the cache folder {folder} cannot be used" in said.error
        assert "--cache-dir" in said.error
        assert "FEATX_CACHE" in said.error
        with ordinary_rights():
            assert featx("extract", photos, *TINY, "--no-cache").code == 0


def test_row_22_a_cache_folder_that_is_missing_is_made(tmp_path: Path) -> None:
    photos = photos_in(tmp_path / "photos", 3)
    assert featx("extract", photos, *TINY, "--cache-dir", tmp_path / "a" / "b").code == 0
    assert rows(tmp_path / "a" / "b") == 3


@pytest.mark.slow  # tests/reliability/test_extractor_kills.py kills runs that commit more often
def test_row_23_after_kill_9_the_same_command_computes_only_what_was_not_committed(tmp_path: Path) -> None:
    photos = photos_in(tmp_path / "photos", 1100)
    command = ["extract", str(photos), *TINY, "--cache-dir", str(tmp_path / "cache"), "--batch-size", "16"]
    process = subprocess.Popen([*SHELL, *command], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while process.poll() is None and not segments(tmp_path / "cache"):
        time.sleep(0.002)
    process.kill()
    process.wait()
    before = rows(tmp_path / "cache")
    assert before > 0
    said = featx(*command)
    assert (said.code, said.document["computed"]) == (0, 1100 - before)
    assert rows(tmp_path / "cache") == 1100


def test_row_25_two_runs_on_one_cache_are_both_right(tmp_path: Path) -> None:
    photos = photos_in(tmp_path / "photos", 60)
    common = ["extract", str(photos), *TINY, "--cache-dir", str(tmp_path / "cache"), "-o"]
    other = subprocess.Popen([*SHELL, *common, "other.npz"], stderr=subprocess.PIPE, text=True)
    said = featx(*common, "own.npz")
    _, error = other.communicate(timeout=120)
    assert (said.code, other.returncode) == (0, 0), error
    assert "warning" not in said.err + error
    with np.load("own.npz") as one, np.load("other.npz") as two:
        np.testing.assert_array_equal(one["id"], two["id"])
        np.testing.assert_array_equal(one["last:avg:crop"], two["last:avg:crop"])


NO_LOCKS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
int flock(int fd, int how) { errno = ENOLCK; return -1; }
int lockf(int fd, int how, off_t size) { errno = ENOLCK; return -1; }
static int refuse(const char *name, int fd, int what, void *argument) {
    if (what == F_SETLK || what == F_SETLKW || what == F_OFD_SETLK || what == F_OFD_SETLKW) {
        errno = ENOLCK;
        return -1;
    }
    return ((int (*)(int, int, void *))dlsym(RTLD_NEXT, name))(fd, what, argument);
}
#define TAKE va_list list; va_start(list, what); void *argument = va_arg(list, void *); va_end(list);
int fcntl(int fd, int what, ...) { TAKE return refuse("fcntl", fd, what, argument); }
int fcntl64(int fd, int what, ...) { TAKE return refuse("fcntl64", fd, what, argument); }
"""


@pytest.mark.slow
def test_row_26_a_file_system_without_locks_is_enough(tmp_path: Path) -> None:
    (tmp_path / "locks.c").write_text(NO_LOCKS)
    library = tmp_path / "locks.so"
    build = ["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "locks.c", "-ldl"]
    if shutil.which("gcc") is None or subprocess.run(build, check=False).returncode:
        pytest.skip("no C compiler to make a system without locks")
    environment = os.environ | {"LD_PRELOAD": str(library)}
    refused = "import fcntl; fcntl.flock(open('/dev/null'), fcntl.LOCK_SH)"
    probe = [sys.executable, "-c", refused]
    assert b"No locks" in subprocess.run(probe, env=environment, capture_output=True, check=False).stderr
    photos = classes(tmp_path / "photos", each=6)
    command = ["fit", photos, "-o", "m.featx", *FIT, "--cache-dir", "cache", "--storage", "study.journal"]
    done = subprocess.run([*SHELL, *command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert rows(Path("cache")) == 12 + 8  # and the model file's own pictures
    assert Path("study.journal").stat().st_size > 0


@pytest.mark.parametrize("fault", ["flipped", "truncated"])
def test_row_27_a_rotten_segment_is_quarantined_and_computed_again(fault: str, tmp_path: Path) -> None:
    photos, cache = photos_in(tmp_path / "photos", 8), tmp_path / "cache"
    command = ("extract", photos, *TINY, "--cache-dir", cache, "-o")
    assert featx(*command, "before.npz").code == 0
    (segment,) = segments(cache)
    data = bytearray(segment.read_bytes())
    if fault == "flipped":
        with np.load("before.npz") as found:
            row = found["last:avg:crop"][3].astype(np.float16).tobytes()
        data[data.index(row) + 5] ^= 1
    segment.write_bytes(data if fault == "flipped" else data[: len(data) // 2])
    said = featx(*command, "after.npz")
    assert said.code == 0
    assert "Moved to quarantine/" in said.err
    assert str(segment.name) in said.err
    assert featx("cache", "verify", "--cache-dir", cache).code == 0
    with np.load("before.npz") as one, np.load("after.npz") as two:
        np.testing.assert_array_equal(one["last:avg:crop"], two["last:avg:crop"])


def test_row_28_a_cache_of_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    photos, cache = photos_in(tmp_path / "photos", 3), tmp_path / "cache"
    featx("extract", photos, *TINY, "--cache-dir", cache)
    (note,) = (path for path in (cache / "v1").glob("*.json") if "format" in json.loads(path.read_text()))
    note.write_text(json.dumps({**json.loads(note.read_text()), "format": 99, "featx": "9.1"}))
    before = contents(cache)
    for argv in (["extract", photos, *TINY], ["cache", "ls"], ["cache", "prune", "--max-size", "0MB"]):
        said = featx(*argv, "--cache-dir", cache)
        assert said.code == 1
        assert "featx" in said.error
        assert "upgrade" in said.error.lower()
        assert "--cache-dir" in said.error
    assert contents(cache) == before


def test_row_29_other_weights_under_the_same_name_never_get_the_old_rows(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from featx.backbones import load_backbone

    photos, weights = photos_in(tmp_path / "photos", 4), tmp_path / "weights.safetensors"
    plain = [word for word in TINY if word != "--random-weights"]
    command = ("extract", photos, *plain, "--checkpoint", weights, "--cache-dir", tmp_path / "cache", "-o")
    for seed in (1, 2):
        save_file(load_backbone("test_resnet", pretrained=False, seed=seed).module.state_dict(), weights)
        said = featx(*command, f"{seed}.npz")
        assert said.document["computed"] == 4, said.err
    with np.load("1.npz") as one, np.load("2.npz") as two:
        assert not np.allclose(one["last:avg:crop"], two["last:avg:crop"], rtol=0.1)
    assert "weights" in " ".join(said.document["remarks"])
    assert featx(*command, "2.npz").document["computed"] == 0


@pytest.mark.parametrize(
    ("field", "argv"),
    [
        ("input_size", ["--input-size", "48"]),
        ("cut", ["--cut", "layer2"]),
        ("pool", ["--pool", "max"]),
        ("resize", ["--resize", "squash"]),
        ("dtype", ["--dtype", "float32"]),
        ("background", ["--background", "0,0,0"]),
        ("pixel_range", ["--range", "minmax"]),
        ("precision", ["--precision", "bf16"]),
        ("decode", ["--decode", "fast"]),
    ],
)
def test_row_30_a_changed_option_is_a_new_space_and_the_message_names_it(
    field: str, argv: list[str], tmp_path: Path
) -> None:
    photo(tmp_path / "a.png")
    command = ("extract", tmp_path / "a.png", *TINY, "--cache-dir", tmp_path / "cache")
    first = featx(*command, "--precision", "fp32")
    said = featx(*command, *([] if field == "precision" else ["--precision", "fp32"]), *argv)
    assert (said.code, said.document["computed"]) == (0, 1)
    keys = [next(iter(one.document["spaces"].values()))["key"] for one in (first, said)]
    assert keys[0] != keys[1]
    assert field in " ".join(said.document["remarks"])
    assert field in said.err


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A cache whose rows other versions made."""
    photos_in(tmp_path / "photos", 4)
    assert featx("extract", tmp_path / "photos", *TINY, "--cache-dir", tmp_path / "cache").code == 0
    made_by_others(tmp_path / "cache", tmp_path / "cache")
    return tmp_path / "cache"


def made_by_others(noted: Path, cache: Path) -> None:
    """Say in one cache that the rows noted in another were made with an older torch."""
    for key in HDF5Store(noted).keys():  # noqa: SIM118
        note = HDF5Store(noted).recall("spaces", key)
        assert note is not None
        older = [{**note["environments"][-1], "torch": "0.9"}]
        HDF5Store(cache).remember("spaces", key, {**note, "environments": older})


def test_row_31_after_an_upgrade_rows_that_still_hold_are_used_in_silence(
    filled: Path, tmp_path: Path
) -> None:
    said = featx("extract", tmp_path / "photos", *TINY, "--cache-dir", filled)
    assert (said.code, said.document["computed"], said.err.count("warning")) == (0, 0, 0)


def test_row_31_after_an_upgrade_a_drift_is_reported_with_numbers_and_the_way_out(
    filled: Path, tmp_path: Path
) -> None:
    old = HDF5Store(filled)
    (key,) = old.keys()
    spec = old.usage()[0].spec
    assert spec is not None
    featx("extract", tmp_path / "photos", *TINY, "--cache-dir", filled, "-o", "x.npz")
    with np.load("x.npz") as found:
        ids, values = found["id"], found["last:avg:crop"]
    drifted = HDF5Store(tmp_path / "drifted")
    drifted.append(key, ids, values * 1.5, spec)
    drifted.close()
    made_by_others(filled, tmp_path / "drifted")
    said = featx("extract", tmp_path / "photos", *TINY, "--cache-dir", tmp_path / "drifted")
    assert (said.code, said.document["computed"]) == (0, 0)
    assert "cached features of test_resnet" in said.err
    assert "0.33" in said.err  # a third of the row's largest value
    assert "torch 0.9 -> " in said.err
    assert "--cache-dir" in said.err
