"""An archive is read back as written or refused; every trick of the zip format is tried for real."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.exceptions import ModelFileError
from featx.files import (
    MANIFEST,
    Archive,
    atomic_write,
    pack_members,
    read_archive,
    read_json,
    unpack_members,
    write_archive,
)
from featx.tables import write_csv

MEMBERS = {
    "model.json": b'{"a": 1}',
    "head.safetensors": b"head" * 100,
    "golden.safetensors": bytes(range(256)),
}
ALLOWED = {
    "model.json": 1000,
    "head.safetensors": 10_000,
    "golden.safetensors": 1000,
    "weights.safetensors": 10,
}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.featx"
    write_archive(path, MEMBERS, kind="featx-test", format=1)
    return path


def read(path: Path) -> Archive:
    return read_archive(path, kind="featx-test", allowed=ALLOWED, max_format=1)


def refusal(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def raw_zip(path: Path, write: Callable[[zipfile.ZipFile], None], **options: object) -> Path:
    """A zip of the tester's own making, with the good file's manifest first."""
    good = path.with_name("good.featx").read_bytes()
    with zipfile.ZipFile(io.BytesIO(good)) as source, zipfile.ZipFile(path, "w", **options) as file:  # type: ignore[call-overload]
        file.writestr(plain(MANIFEST), source.read(MANIFEST))
        write(file)
    return path


def plain(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.create_system = 3
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    return entry


# What is written is read back ----------------------------------------------------------------------------


def test_members_come_back_as_written_and_the_manifest_stays_inside(good: Path) -> None:
    found = read(good)
    assert found.members == MEMBERS
    assert found.format == 1
    assert "weights.safetensors" not in found


def test_the_same_members_give_the_same_bytes(good: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.featx"
    write_archive(again, dict(MEMBERS), kind="featx-test", format=1)
    assert again.read_bytes() == good.read_bytes()


def test_any_unzip_can_look_inside(good: Path) -> None:
    with zipfile.ZipFile(good) as file:
        assert file.testzip() is None
        assert file.namelist() == [MANIFEST, *MEMBERS]
        listed = json.loads(file.read(MANIFEST))["members"]
    assert listed["head.safetensors"]["sha256"] == hashlib.sha256(MEMBERS["head.safetensors"]).hexdigest()


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text("abcdefgh./-", min_size=1, max_size=12), st.binary(max_size=50), max_size=6))
def test_any_members_with_harmless_names_survive(
    tmp_path_factory: pytest.TempPathFactory, members: dict[str, bytes]
) -> None:
    members = {name: data for name, data in members.items() if not name.startswith("/") and ".." not in name}
    path = tmp_path_factory.mktemp("any") / "x.featx"
    write_archive(path, members, kind="k", format=3)
    assert read_archive(path, kind="k", allowed=dict.fromkeys(members, 50), max_format=3).members == members


def test_a_missing_member_is_named(good: Path) -> None:
    with pytest.raises(ModelFileError, match=r"'weights.safetensors' is missing"):
        read(good)["weights.safetensors"]


# What is not such a file ---------------------------------------------------------------------------------


class Payload:
    """A pickle that leaves a canary file behind when it is opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_and_never_runs(tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "model.featx"
    path.write_bytes(pickle.dumps(Payload(canary), protocol))
    assert ("is a pickle" if protocol >= 2 else "is a file of another kind") in refusal(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x1f\x8b\x08\x00", "compressed with gzip"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"PK\x05\x06" + bytes(18), "an empty zip"),
        (b"hello world", "is a file of another kind"),
        (b"PK\x03\x04", "truncated"),
    ],
)
def test_what_is_no_zip_is_refused_by_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.featx"
    path.write_bytes(content)
    assert message in refusal(path)


def test_a_missing_file_a_folder_and_a_device_are_told_apart(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.featx")
    assert "is a folder or a device" in refusal(tmp_path)
    assert "is a folder or a device" in refusal(Path("/dev/zero"))


@pytest.mark.skipif(
    os.name == "nt" or os.geteuid() == 0, reason="root reads every file; Windows has no modes"
)
def test_an_unreadable_file_is_refused_with_the_reason(good: Path) -> None:
    good.chmod(0)
    assert "Permission denied" in refusal(good)


def test_a_plain_zip_without_a_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(plain("model.json"), b"{}")
    assert "does not begin with manifest.json" in refusal(path)


def test_a_torch_checkpoint_with_a_pickle_inside_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    canary = tmp_path / "canary"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Payload(canary)))
    refusal(path)
    assert not canary.exists()


def test_another_kind_and_a_newer_format_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.featx"
    write_archive(path, MEMBERS, kind="featx-tail", format=1)
    assert "is a 'featx-tail' file; a 'featx-test' file is needed" in refusal(path)
    write_archive(path, {**MEMBERS, "new.bin": b""}, kind="featx-test", format=2)
    assert "has format 2, this featx reads up to 1; upgrade featx" in refusal(path)


# Damage and edits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", [MANIFEST, *MEMBERS])
def test_a_flipped_bit_in_any_member_is_found(good: Path, member: str) -> None:
    raw = bytearray(good.read_bytes())
    with zipfile.ZipFile(good) as file:
        entry = file.getinfo(member)
    raw[entry.header_offset + 30 + len(member)] ^= 1
    good.write_bytes(raw)
    assert "damaged (CRC)" in refusal(good)


def test_a_flipped_bit_anywhere_is_found(good: Path) -> None:
    raw = good.read_bytes()
    survivors = []
    for position in range(len(raw)):
        flipped = bytearray(raw)
        flipped[position] ^= 1 << (position % 8)
        good.write_bytes(flipped)
        try:
            if read(good).members != MEMBERS:
                survivors.append(position)
        except ModelFileError:
            pass
    assert survivors == []


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_file_cut_short_is_refused(good: Path, share: float) -> None:
    raw = good.read_bytes()
    good.write_bytes(raw[: int(share * len(raw))])
    refusal(good)


@pytest.mark.parametrize("extra", [b"\0", b"PK\x05\x06" + bytes(18), b"x" * 1000])
def test_bytes_behind_the_end_are_refused(good: Path, extra: bytes) -> None:
    good.write_bytes(good.read_bytes() + extra)
    refusal(good)


@pytest.mark.parametrize("extra", [b"\0", b"#!/bin/sh\nrm x\n", b"\x80\x04."])
def test_bytes_before_the_beginning_are_refused(good: Path, extra: bytes) -> None:
    good.write_bytes(extra + good.read_bytes())
    refusal(good)


def test_bytes_between_two_members_are_refused(good: Path, tmp_path: Path) -> None:
    def write(file: zipfile.ZipFile) -> None:
        for name, data in MEMBERS.items():
            file.fp.write(b"hidden")  # type: ignore[union-attr]
            file.start_dir = file.fp.tell()  # type: ignore[union-attr, attr-defined]
            file.writestr(plain(name), data)

    assert "is not where its header says" in refusal(raw_zip(tmp_path / "x.featx", write))


def test_bytes_between_members_and_directory_are_refused(good: Path) -> None:
    raw = bytearray(good.read_bytes())
    start = struct.unpack("<L", raw[-6:-2])[0]
    raw[start:start] = b"hidden"
    raw[-6:-2] = struct.pack("<L", start + 6)
    good.write_bytes(raw)
    assert "belong to no member" in refusal(good)


def test_swapped_members_are_refused(good: Path, tmp_path: Path) -> None:
    def write(file: zipfile.ZipFile) -> None:
        names = list(MEMBERS)
        for name, data in zip(names, (MEMBERS[names[1]], MEMBERS[names[0]], MEMBERS[names[2]]), strict=True):
            file.writestr(plain(name), data)

    assert "is not what the manifest lists" in refusal(raw_zip(tmp_path / "x.featx", write))


def test_a_removed_and_an_added_member_are_refused(good: Path, tmp_path: Path) -> None:
    def fewer(file: zipfile.ZipFile) -> None:
        file.writestr(plain("model.json"), MEMBERS["model.json"])

    def more(file: zipfile.ZipFile) -> None:
        for name, data in {**MEMBERS, "weights.safetensors": b"evil"}.items():
            file.writestr(plain(name), data)

    assert "differ in 'golden.safetensors', 'head.safetensors'" in refusal(
        raw_zip(tmp_path / "x.featx", fewer)
    )
    assert "differ in 'weights.safetensors'" in refusal(raw_zip(tmp_path / "y.featx", more))


@pytest.mark.parametrize(
    "edit",
    [
        lambda manifest: manifest | {"format": 0},
        lambda manifest: manifest | {"kind": "featx-classifier"},
        lambda manifest: manifest | {"members": {}},
        lambda manifest: manifest | {"extra": 1},
        lambda manifest: {key: value for key, value in manifest.items() if key != "sha256"},
        lambda manifest: [manifest],
    ],
)
def test_an_edited_manifest_is_refused(good: Path, edit: Callable[[dict[str, object]], object]) -> None:
    with zipfile.ZipFile(good) as file:
        manifest = json.loads(file.read(MANIFEST))
    edited = json.dumps(edit(manifest), sort_keys=True, separators=(",", ":")).encode()
    good.write_bytes(pack_members({MANIFEST: edited, **MEMBERS}, where="x"))
    assert "manifest" in refusal(good)


@pytest.mark.parametrize("text", [b"[" * 60_000, b"\xff\xfe", b"nul", b'{"a": ' + b"9" * 10_000 + b"}"])
def test_a_manifest_that_is_no_json_of_ours_is_refused(good: Path, text: bytes) -> None:
    good.write_bytes(pack_members({MANIFEST: text, **MEMBERS}, where="x"))
    assert "manifest" in refusal(good)


# Headers -------------------------------------------------------------------------------------------------

LOCAL = {
    "signature": 4, "version needed": 2, "flags": 2, "method": 2, "time": 2, "date": 2, "crc": 4,
    "compressed size": 4, "size": 4, "name length": 2, "extra length": 2, "name": 10,
}  # fmt: skip
CENTRAL = {
    "signature": 4, "version made by": 1, "system": 1, "version needed": 2, "flags": 2, "method": 2,
    "time": 2, "date": 2, "crc": 4, "compressed size": 4, "size": 4, "name length": 2, "extra length": 2,
    "comment length": 2, "disk": 2, "internal attributes": 2, "external attributes": 4, "offset": 4,
    "name": 10,
}  # fmt: skip
END = {
    "signature": 4, "disk": 2, "first disk": 2, "entries here": 2, "entries": 2, "length": 4, "offset": 4,
    "comment length": 2,
}  # fmt: skip
"""Fields of the zip headers with their bytes (APPNOTE.TXT 4.3.7, 4.3.12, 4.3.16)."""


def headers(raw: bytes) -> list[tuple[dict[str, int], int]]:
    """Fields and position of the headers of `model.json`, and of the end of the directory."""
    entry = zipfile.ZipFile(io.BytesIO(raw)).getinfo("model.json")
    central = raw.rindex(b"model.json") - 46
    return [(LOCAL, entry.header_offset), (CENTRAL, central), (END, len(raw) - 22)]


@pytest.mark.parametrize("which", [0, 1, 2], ids=["local", "central", "end"])
def test_every_field_of_a_header_must_be_as_featx_writes_it(good: Path, which: int) -> None:
    raw = good.read_bytes()
    fields, position = headers(raw)[which]
    for field, size in fields.items():
        now = int.from_bytes(raw[position : position + size], "little")
        highest = 256**size - 1
        for value in {0, 1, now ^ 1, now + 1, now ^ (1 << (8 * size - 1)), highest} - {now}:
            changed = bytearray(raw)
            changed[position : position + size] = (value & highest).to_bytes(size, "little")
            good.write_bytes(changed)
            assert refusal(good), field
        position += size


def test_sound_headers_with_other_versions_are_refused(good: Path) -> None:
    """Both headers agree, and every other reader of zips takes the file."""
    raw = good.read_bytes()
    for offset_local, offset_central, value in ((4, 6, 45), (4, 6, 10), (10, 12, 1), (12, 14, 0x5AB5)):
        changed = bytearray(raw)
        for fields, position in headers(raw)[:2]:
            offset = offset_local if fields is LOCAL else offset_central
            changed[position + offset : position + offset + 2] = value.to_bytes(2, "little")
        with zipfile.ZipFile(io.BytesIO(changed)) as file:
            assert file.testzip() is None
        good.write_bytes(changed)
        refusal(good)


# Tricks of the zip format --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "..\\x", "a/../../b", "C:\\x", "..", "model.json/../x"]
)
def test_a_member_that_points_out_of_the_file_is_refused(good: Path, tmp_path: Path, name: str) -> None:
    path = raw_zip(tmp_path / "x.featx", lambda file: file.writestr(plain(name), b"x"))
    assert "points outside the file" in refusal(path)


@pytest.mark.parametrize("name", ["evil.py", "model.json\n", "MODEL.JSON", "<script>", "con"])
def test_a_member_that_has_no_place_is_refused_though_the_manifest_lists_it(
    tmp_path: Path, name: str
) -> None:
    path = tmp_path / "x.featx"
    write_archive(path, {**MEMBERS, name: b"x"}, kind="featx-test", format=1)
    assert "has no place" in refusal(path)
    assert "\n" not in refusal(path)


def test_a_zip_bomb_is_refused_without_unfolding(good: Path, tmp_path: Path) -> None:
    def write(file: zipfile.ZipFile) -> None:
        file.writestr(plain("model.json"), bytes(50_000_000), compress_type=zipfile.ZIP_DEFLATED)

    path = raw_zip(tmp_path / "x.featx", write)
    assert path.stat().st_size < 60_000
    assert "is compressed" in refusal(path)


def test_a_header_that_claims_more_than_the_file_holds_is_refused(good: Path) -> None:
    raw = bytearray(good.read_bytes())
    start = struct.unpack("<L", raw[-6:-2])[0]
    for offset in (20, 24):  # both sizes of the manifest's directory entry
        raw[start + offset : start + offset + 4] = struct.pack("<L", 2**31)
    good.write_bytes(raw)
    assert "is not where its header says" in refusal(good)


def test_a_member_over_its_cap_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.featx"
    write_archive(path, {"weights.safetensors": b"x" * 11}, kind="featx-test", format=1)
    assert "has 11 bytes; at most 10 are read" in refusal(path)


def test_a_file_over_all_caps_is_refused_unread(good: Path) -> None:
    with open(good, "ab") as file:
        file.truncate(10**12)  # sparse: takes no room
    assert "is larger than" in refusal(good)


def test_a_name_that_occurs_twice_is_refused(good: Path, tmp_path: Path) -> None:
    def write(file: zipfile.ZipFile) -> None:
        file.writestr(plain("model.json"), b"first")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr(plain("model.json"), b"second")

    assert "holds member 'model.json' twice" in refusal(raw_zip(tmp_path / "x.featx", write))


def test_a_link_and_a_folder_are_refused(good: Path, tmp_path: Path) -> None:
    for mode in (stat.S_IFLNK | 0o777, stat.S_IFDIR | 0o755, stat.S_IFIFO | 0o644):
        entry = plain("model.json")
        entry.external_attr = mode << 16
        path = raw_zip(tmp_path / "x.featx", lambda file, entry=entry: file.writestr(entry, b"/etc/passwd"))
        assert "is a link, a folder or another special file" in refusal(path)


def test_an_encrypted_member_is_refused(good: Path) -> None:
    raw = bytearray(good.read_bytes())
    start = struct.unpack("<L", raw[-6:-2])[0]
    raw[6] |= 1
    raw[start + 8] |= 1
    good.write_bytes(raw)
    assert "is encrypted" in refusal(good)


def test_a_local_header_that_contradicts_the_directory_is_refused(good: Path) -> None:
    raw = good.read_bytes()
    with zipfile.ZipFile(io.BytesIO(raw)) as file:
        name = file.getinfo("head.safetensors").header_offset + 30
    good.write_bytes(raw[:name] + b"evil.safetensors" + raw[name + 16 :])
    assert "contradict" in refusal(good)


@pytest.mark.parametrize("part", ["extra", "comment", "archive comment", "time", "zip64"])
def test_a_header_with_more_than_featx_writes_is_refused(good: Path, tmp_path: Path, part: str) -> None:
    def write(file: zipfile.ZipFile) -> None:
        entry = plain("model.json")
        if part == "extra":
            entry.extra = struct.pack("<HH4s", 0x9999, 4, b"evil")
        if part == "comment":
            entry.comment = b"evil"
        if part == "archive comment":
            file.comment = b"evil"
        if part == "time":
            entry.date_time = (2024, 1, 1, 0, 0, 0)
        if part == "zip64":
            with file.open(entry, "w", force_zip64=True) as member:
                member.write(b"{}")
        else:
            file.writestr(entry, b"{}")

    refusal(raw_zip(tmp_path / "x.featx", write))


def test_a_zip64_end_is_refused(good: Path) -> None:
    raw = good.read_bytes()
    start, length = struct.unpack("<L", raw[-6:-2])[0], struct.unpack("<L", raw[-10:-6])[0]
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 4, 4, length, start)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, start + length, 1)
    good.write_bytes(raw[:-22] + end64 + locator + raw[-22:])
    refusal(good)


def test_a_directory_of_a_million_entries_is_refused_by_its_count(good: Path) -> None:
    raw = bytearray(good.read_bytes())
    raw[-14:-10] = struct.pack("<2H", 65_000, 65_000)
    good.write_bytes(raw)
    assert "lists 65000 members" in refusal(good)


def test_what_cannot_be_one_file_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "x.featx"
    with pytest.raises(ModelFileError, match="257 members"):
        write_archive(path, {f"{number}": b"" for number in range(256)}, kind="k", format=1)
    assert not path.exists()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_mutated_files_are_read_back_right_or_refused(data: st.DataObject) -> None:
    manifest = {MANIFEST: b"{}"}
    raw = bytearray(pack_members({**manifest, **MEMBERS}, where="x"))
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(raw) - 1))
        raw[position : position + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
        if not raw:
            return
    try:
        found = unpack_members(bytes(raw), where="x")
    except ModelFileError:
        return
    # What is accepted is exactly what packing its members gives: no byte has a second meaning.
    assert pack_members(found, where="x") == bytes(raw)


def test_json_that_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(ModelFileError, match="is not the JSON"):
        read_json(b"[" * (sys.getrecursionlimit() * 50), where="x")


# Whole or absent -----------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_nothing_else(good: Path) -> None:
    before = good.read_bytes()
    with pytest.raises(TypeError):
        atomic_write(good, "text")  # type: ignore[arg-type]
    assert good.read_bytes() == before
    assert os.listdir(good.parent) == [good.name]


posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no modes, and cannot remove open files")


@posix
@pytest.mark.parametrize("mode", [0o600, 0o444, 0o664])
def test_a_replaced_file_keeps_its_mode(good: Path, tmp_path: Path, mode: int) -> None:
    good.chmod(mode)
    write_archive(good, {"other.json": b"{}"}, kind="featx-test", format=1)
    assert stat.S_IMODE(good.stat().st_mode) == mode
    table = tmp_path / "table.csv"
    table.write_text("old")
    table.chmod(mode)
    write_csv(table, ["a"], [[1]])
    assert stat.S_IMODE(table.stat().st_mode) == mode
    assert table.read_text() == "a\n1\n"


@posix
def test_a_new_file_has_the_mode_that_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "new", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@posix
def test_what_killed_writers_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    dead, name = dead_process(), "0123456789abcdef" * 2
    gone = [tmp_path / f".tmp-{dead}-{name}", tmp_path / f".tmp-{dead}-{name[::-1]}"]
    kept = [
        tmp_path / f".tmp-{os.getpid()}-{name}",  # of a process that runs
        tmp_path / f".tmp-{dead}-{name}.txt",  # not as featx names them
        tmp_path / f".tmp-{dead}-notes",
        tmp_path / ".tmp-x",
    ]
    young = tmp_path / f".tmp-{dead}-{'f' * 32}"
    for path in (*gone, *kept, young):
        path.write_bytes(b"x")
    for path in (*gone, *kept):
        os.utime(path, (0, 0))
    (folder := tmp_path / f".tmp-{dead}-{'a' * 32}").mkdir()
    (link := tmp_path / f".tmp-{dead}-{'b' * 32}").symlink_to(young)
    write_csv(tmp_path / "table.csv", ["a"], [])
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {path.name for path in (*kept, young, folder, link, tmp_path / "table.csv")}


@posix
def test_a_writer_that_is_killed_leaves_a_file_that_the_next_one_removes(tmp_path: Path) -> None:
    script = (
        "import os, signal; from pathlib import Path; from featx.files import replaced\n"
        f"with replaced(Path({str(tmp_path / 'x')!r})) as temporary: os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script], check=False)
    (left,) = tmp_path.iterdir()
    os.utime(left, (0, 0))
    write_archive(tmp_path / "x", {"a": b""}, kind="k", format=1)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
