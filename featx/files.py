"""Files that are whole or absent, and the safe archive that model files are made of.

One way to write serves segments, models and manifests: a temporary name beside the target, fsync,
rename, fsync of the folder. A reader sees the old bytes or the new ones, after a power cut too.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import stat
import struct
import time
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featx.exceptions import ModelFileError

TEMPORARY_PREFIX = ".tmp-"
_TEMPORARY = re.compile(r"\.tmp-([0-9]{1,10})-[0-9a-f]{32}", re.ASCII)
LEFTOVER_S = 3600.0
"""Age in seconds after which a temporary file of a process that has ended is removed."""

MANIFEST = "manifest.json"
MANIFEST_BYTES = 65_536
"""Cap on the manifest, which holds a digest and a size for each of at most `MAX_MEMBERS` members."""

MAX_MEMBERS = 256
MAX_ARCHIVE_BYTES = 2**31 - 1
"""An archive is below 2 GiB, so that no zip64 record is ever needed and none is ever read."""

MODEL_KIND = "featx-classifier"
MODEL_FORMAT = 1
"""Format of a saved classifier. Raise it when a member changes its meaning."""

MODEL_MEMBERS = {
    "model.json": 16 << 20,
    "golden.safetensors": 64 << 20,
    "split.safetensors": 256 << 20,
    "sample.safetensors": 4 << 20,
    "head.json": 1 << 16,
    "head.safetensors": 2**31 - 1,
    "finetune.json": 16 << 20,
    "finetune.safetensors": 2**31 - 1,
    "networks.safetensors": 2**31 - 1,
}
"""What the file of a classifier may hold, and how many bytes of each."""

JSON_VALUE_BYTES = {b"{": 240, b"[": 96, b",": 60, b":": 120}
"""Upper estimate of a value's bytes in memory, by the mark before it in the text (CPython 3.11 to 3.14). A
colon stands for a name and its place in two dictionaries: the parser's table of names is one."""

JSON_MEMORY = 48 << 20
"""Most bytes that the values of a JSON text may take in memory by this estimate, beside their text."""

_END = struct.Struct("<4s4H2LH")  # end of central directory: APPNOTE.TXT 4.3.16
_CENTRAL = struct.Struct("<4s4B4H3L5H2L")  # central directory header without its name: APPNOTE.TXT 4.3.12
_EPOCH = (1980, 1, 1, 0, 0, 0)  # earliest time of the format; a real one would change the bytes
_DOS_EPOCH = (0, 1 << 5 | 1)  # its time and date as MS-DOS packs them


def atomic_write(
    path: str | os.PathLike[str], data: bytes | memoryview, *, follow_links: bool = True
) -> None:
    """Write `data` to `path` so that a crash at any moment leaves the old file or the new one.

    A link is followed. What is there and is no file (a device, a pipe) is written to, never replaced. With
    ``follow_links=False`` a link, device or pipe is replaced instead: others may have planted it.

    Raises
    ------
    OSError
        As the operating system says (disk full, read-only, ...); the target is then untouched and the
        temporary file removed.
    """
    target = Path(os.path.realpath(path)) if follow_links else Path(path)
    if follow_links and target.exists() and not target.is_file():
        target.write_bytes(data)
        return
    if follow_links:  # the folder is the user's; folders of a cache are swept when they are opened
        sweep_temporaries(target.parent)
    with replaced(target) as temporary, open(temporary, "wb", buffering=0) as file:
        view = memoryview(data).cast("B")
        while len(view):  # a raw write may be short, e.g. at 2 GB
            view = view[file.write(view) :]


@contextmanager
def replaced(target: Path) -> Iterator[Path]:
    """An empty temporary file beside `target`, which replaces it when the block ends without an error.

    The new file has the mode of the file that it replaces.

    Raises
    ------
    OSError
        As the operating system says; the target is then untouched and the temporary file removed.
    """
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{uuid.uuid4().hex}")
    mode = _mode_of(target)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if mode is None else 0o600))
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if mode is not None:
            temporary.chmod(mode)
        os.replace(temporary, target)
        sync_folder(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _mode_of(path: Path) -> int | None:
    """Permissions of a file; None if there is none."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return stat.S_IMODE(status.st_mode) & 0o777 if stat.S_ISREG(status.st_mode) else None


def make_folder(folder: Path, *, mode: int = 0o777, follow_links: bool = True) -> None:
    """Make `folder` and its missing parents durably (they survive a power cut).

    Parameters
    ----------
    folder : Path
        The folder; it may exist.
    mode : int
        Permissions of `folder` if it is made, less the umask; the parents have the default.
    follow_links : bool
        Whether `folder` itself may be a link.

    Raises
    ------
    OSError
        As the operating system says; ELOOP for a link that is not followed.
    """
    if not follow_links and folder.is_symlink():
        raise OSError(errno.ELOOP, "it is a link, which is not followed", os.fspath(folder))
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=mode, exist_ok=True)
    sync_folder(folder.parent)


def open_plain(path: str | os.PathLike[str], flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    """Open a regular file and return its descriptor; a link is not followed, and a pipe is not waited for.

    Raises
    ------
    OSError
        As the operating system says; ELOOP for a link, EINVAL for what is no regular file.
    """
    descriptor = os.open(path, flags | _PLAIN, mode)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
    return descriptor


def read_plain(path: str | os.PathLike[str], *, limit: int = 1 << 24) -> bytes | None:
    """Read a small file, opened by `open_plain`; None if there is none, or it is larger than `limit`.

    Raises
    ------
    OSError
        If a regular file cannot be read.
    """
    try:
        with open(open_plain(path), "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        if error.errno in NO_PLAIN_FILE:
            return None
        raise
    return data if len(data) <= limit else None


def read_plain_json(path: str | os.PathLike[str], *, limit: int = 1 << 24) -> Any:
    """Parse a small JSON file; None if it is absent or does not parse."""
    data = read_plain(path, limit=limit)
    try:
        return None if data is None else json.loads(data)
    except (ValueError, RecursionError):
        return None


_PLAIN = (
    getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
NO_PLAIN_FILE = (
    errno.ENOENT, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.EISDIR, errno.ENOTDIR, errno.ESTALE
)  # fmt: skip
"""What opening says of a path that is absent, a link, a folder or another special file."""


def sweep_temporaries(folder: Path, *, older_than_s: float = LEFTOVER_S) -> None:
    """Remove old temporary files in `folder` whose process has ended."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match is None:
                continue
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                old = time.time() - status.st_mtime > older_than_s
                if old and stat.S_ISREG(status.st_mode) and not _is_alive(match[1]):
                    os.unlink(entry.path)


def _is_alive(process: str) -> bool:
    """Whether a process with this id runs. Always False on Windows, where open files cannot be removed."""
    if os.name == "nt":
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` durable, where the file system supports it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Archive:
    """A verified archive: a format number and members by name.

    Parameters
    ----------
    where : str
        Name of the file, for messages.
    format : int
        Version of the members' meaning.
    members : dict of str to bytes
        Contents by name; every name is on the reader's list.
    """

    where: str
    format: int
    members: dict[str, bytes]

    def __getitem__(self, name: str) -> bytes:
        if name not in self.members:
            raise ModelFileError(f"{self.where}: member {name!r} is missing; get the file again.")
        return self.members[name]

    def __contains__(self, name: object) -> bool:
        return name in self.members


def write_archive(
    path: str | os.PathLike[str], members: Mapping[str, bytes], *, kind: str, format: int
) -> None:
    """Write members and a manifest of their SHA-256 digests to one file, atomically.

    The same members give the same bytes.

    Parameters
    ----------
    path : path-like
        Target; an existing file is replaced.
    members : mapping of str to bytes
        Contents by name (ASCII).
    kind : str
        What the file is, e.g. ``"featx-classifier"``.
    format : int
        Version of the members' meaning.

    Raises
    ------
    ModelFileError
        If the archive would reach 2 GiB.
    OSError
        As the operating system says.
    """
    manifest = _manifest(kind, format, members)
    data = pack_members({MANIFEST: manifest, **members}, where=os.fspath(path))
    atomic_write(path, data)


def read_archive(
    path: str | os.PathLike[str], *, kind: str, allowed: Mapping[str, int], max_format: int
) -> Archive:
    """Read an archive that may be forged: every byte is checked before a member is used.

    The digests prove that the file is as it was written (integrity). They do not prove who wrote it
    (authenticity): whoever can change a member can also write a new manifest.

    Parameters
    ----------
    path : path-like
        The file.
    kind : str
        What it must be.
    allowed : mapping of str to int
        Names that may occur, with the most bytes that each may have.
    max_format : int
        Newest format that the caller understands.

    Returns
    -------
    Archive

    Raises
    ------
    ModelFileError
        Naming the file, what is wrong and what to do. Nothing in it was interpreted but its manifest.
    """
    where = os.fspath(path)
    raw = _read_capped(Path(path), where, sum(allowed.values()) + MANIFEST_BYTES)
    members = unpack_members(raw, where=where)
    if next(iter(members), None) != MANIFEST or len(members[MANIFEST]) > MANIFEST_BYTES:
        raise ModelFileError(f"{where}: does not begin with {MANIFEST}, so it is not a featx file.")
    manifest = _read_manifest(members.pop(MANIFEST), where)
    if manifest["kind"] != kind:
        raise ModelFileError(f"{where}: is a {manifest['kind']!r} file; a {kind!r} file is needed here.")
    if manifest["format"] > max_format:
        raise ModelFileError(
            f"{where}: has format {manifest['format']}, this featx reads up to {max_format}; upgrade featx."
        )
    for name, data in members.items():
        if name not in allowed:
            raise ModelFileError(
                f"{where}: member {_short(name)} has no place in a {kind!r} file; allowed are "
                f"{', '.join(allowed)}."
            )
        if len(data) > allowed[name]:
            raise ModelFileError(
                f"{where}: member {name!r} has {len(data):,} bytes; at most {allowed[name]:,} are read."
            )
    listed = manifest["members"]
    if set(listed) != set(members):
        odd = ", ".join(map(_short, sorted(set(listed) ^ set(members))))
        raise ModelFileError(f"{where}: the manifest and the members differ in {odd}. {_GET}")
    for name, data in members.items():
        if listed[name] != {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}:
            raise ModelFileError(
                f"{where}: member {name!r} is not what the manifest lists: it was damaged or edited. {_GET}"
            )
    return Archive(where, manifest["format"], members)


def pack_members(members: Mapping[str, bytes], *, where: str, max_members: int = MAX_MEMBERS) -> bytes:
    """Return a zip of stored members in the given order; equal members give equal bytes."""
    total = sum(len(data) + 2 * len(name) + 100 for name, data in members.items())
    if total > MAX_ARCHIVE_BYTES or len(members) > max_members:
        raise ModelFileError(
            f"{where}: {len(members)} members of {total:,} bytes do not fit into one file (at most "
            f"{max_members} members, {MAX_ARCHIVE_BYTES:,} bytes); choose a head that keeps fewer rows."
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name, data in members.items():
            file.writestr(_entry(name), data)
    return buffer.getvalue()


def unpack_members(raw: bytes, *, where: str, max_members: int = MAX_MEMBERS) -> dict[str, bytes]:
    """Return the members of a zip that is exactly as `pack_members` writes it.

    So there is no compression (nothing can unfold), no second meaning (a duplicate name, bytes between
    members, a local header that contradicts the directory), no encryption, no link and no zip64. Every byte
    outside the members is compared.

    Parameters
    ----------
    raw : bytes
        The whole file.
    where : str
        Its name, for messages.
    max_members : int
        The most members that it may list.

    Returns
    -------
    dict of str to bytes
        In the order of the file.

    Raises
    ------
    ModelFileError
        Saying which of these does not hold.
    """
    if not raw.startswith(b"PK\x03\x04"):
        raise ModelFileError(f"{where}: {_what_it_is(raw)}; a featx file is a zip. {_GET}")
    if len(raw) < _END.size or not raw[-_END.size :].startswith(b"PK\x05\x06"):
        raise ModelFileError(f"{where}: is truncated, or has bytes after its end. {_GET}")
    _, disk, first_disk, here, count, length, start, comment = _END.unpack(raw[-_END.size :])
    if disk or first_disk or here != count or count > max_members:
        raise ModelFileError(f"{where}: lists {count} members on {disk + 1} disks; at most {max_members}.")
    if comment or start + length + _END.size != len(raw):
        raise ModelFileError(f"{where}: its directory is not where its end says. {_GET}")
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as file:
            entries = file.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError) as error:
        raise ModelFileError(f"{where}: is a damaged zip ({error}). {_GET}") from None

    members: dict[str, bytes] = {}
    directory = b""
    position = 0
    for entry in entries:
        name = _short(entry.filename)
        if entry.filename in members:
            raise ModelFileError(f"{where}: holds member {name} twice. {_GET}")
        _check_plain(entry, where)
        header = _local_header(entry)
        begin = position + len(header)
        end = begin + entry.file_size
        if entry.header_offset != position or end > start:
            raise ModelFileError(f"{where}: member {name} is not where its header says. {_GET}")
        if raw[position:begin] != header:
            raise ModelFileError(f"{where}: the two headers of member {name} contradict. {_GET}")
        if zlib.crc32(data := raw[begin:end]) != entry.CRC:
            raise ModelFileError(f"{where}: member {name} is damaged (CRC). {_GET}")
        members[entry.filename] = data
        directory += _central_header(entry, position)
        position = end
    if position != start:
        raise ModelFileError(f"{where}: holds bytes that belong to no member. {_GET}")
    if raw[start:] != directory + _END.pack(b"PK\x05\x06", 0, 0, count, count, len(directory), start, 0):
        raise ModelFileError(f"{where}: its directory is not as featx writes it. {_GET}")
    return members


def read_json(data: bytes, *, where: str) -> Any:
    """Parse ASCII JSON of a file that may be forged.

    The memory that the values take is estimated before they are made: an empty list of two bytes becomes an
    object of 88.

    Raises
    ------
    ModelFileError
        If it is not JSON as featx writes it, is nested too deeply, or has too many values.
    """
    memory = sum(data.count(mark) * size for mark, size in JSON_VALUE_BYTES.items())
    if memory > JSON_MEMORY or not data.isascii():
        raise ModelFileError(f"{where}: is not the JSON that featx writes: not ASCII, or too many values.")
    try:
        return json.loads(data.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{where}: is not the JSON that featx writes ({_short(str(error))}).") from None


def _manifest(kind: str, format: int, members: Mapping[str, bytes]) -> bytes:
    listed = {
        name: {"bytes": len(members[name]), "sha256": hashlib.sha256(members[name]).hexdigest()}
        for name in sorted(members)
    }
    content = {"format": format, "kind": kind, "members": listed}
    return _canonical({**content, "sha256": hashlib.sha256(_canonical(content)).hexdigest()})


def _read_manifest(data: bytes, where: str) -> dict[str, Any]:
    """Return the manifest; its own digest covers its kind, format and list."""
    manifest = read_json(data, where=f"{where}: {MANIFEST}")
    if not isinstance(manifest, dict) or set(manifest) != {"format", "kind", "members", "sha256"}:
        raise ModelFileError(f"{where}: its manifest does not have the fields of featx. {_GET}")
    content = {name: value for name, value in manifest.items() if name != "sha256"}
    own = hashlib.sha256(_canonical(content)).hexdigest()
    if manifest["sha256"] != own or data != _canonical(manifest):
        raise ModelFileError(f"{where}: its manifest was damaged or edited. {_GET}")
    if (
        type(content["format"]) is not int
        or content["format"] < 1
        or not isinstance(content["members"], dict)
    ):
        raise ModelFileError(f"{where}: its manifest does not have the fields of featx. {_GET}")
    return content


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _read_capped(path: Path, where: str, cap: int) -> bytes:
    """The file's bytes, read once, and never more than the cap, however large the file has grown."""
    cap = min(MAX_ARCHIVE_BYTES, cap + MAX_MEMBERS * 1024)  # headers and names beside the contents
    if not path.is_file():
        reason = "is a folder or a device" if path.exists() else "does not exist"
        raise ModelFileError(f"{where}: {reason}; pass the path of a file that featx wrote.")
    try:
        with open(path, "rb") as file:
            raw = file.read(min(path.stat().st_size, cap) + 1)
    except OSError as error:
        raise ModelFileError(f"{where}: cannot be read ({error.strerror or error}).") from None
    if len(raw) > cap:
        raise ModelFileError(f"{where}: is larger than the {cap:,} bytes that such a file can have.")
    return raw


def _entry(name: str) -> zipfile.ZipInfo:
    """Return a header that does not depend on the machine or the time."""
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.create_system = 3  # Unix, also where the file is written on Windows
    entry.external_attr = 0o100644 << 16  # a regular file
    return entry


def _local_header(entry: zipfile.ZipInfo) -> bytes:
    own = _entry(entry.filename)
    own.CRC, own.compress_size, own.file_size = entry.CRC, entry.compress_size, entry.file_size
    return own.FileHeader(zip64=False)


def _central_header(entry: zipfile.ZipInfo, position: int) -> bytes:
    """The directory's header of a member at a position, as `zipfile` writes it."""
    own, name = _entry(entry.filename), entry.filename.encode("ascii")
    version, no_flags, (time_, date) = own.create_version, 0, _DOS_EPOCH
    return (
        _CENTRAL.pack(
            b"PK\x01\x02", version, own.create_system, own.extract_version, 0, no_flags, zipfile.ZIP_STORED,
            time_, date, entry.CRC, entry.file_size, entry.file_size, len(name), 0, 0, 0, 0,
            own.external_attr, position,
        )
        + name
    )  # fmt: skip


def _check_plain(entry: zipfile.ZipInfo, where: str) -> None:
    """Refuse members that are not plain stored files."""
    plain, name = _entry(entry.filename), _short(entry.filename)
    if entry.filename.startswith("/") or "\\" in entry.filename or ".." in entry.filename.split("/"):
        raise ModelFileError(f"{where}: member {name} points outside the file; the file is malicious.")
    if entry.flag_bits & 0x1:
        raise ModelFileError(f"{where}: member {name} is encrypted; a featx file never is.")
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise ModelFileError(f"{where}: member {name} is compressed; a featx file never is (zip bombs are).")
    if entry.external_attr != plain.external_attr:
        raise ModelFileError(f"{where}: member {name} is a link, a folder or another special file.")
    ours = (plain.create_system, 0, plain.date_time, b"", b"", 0, 0)
    theirs = (entry.create_system, entry.flag_bits, entry.date_time, entry.extra, entry.comment,
              entry.internal_attr, entry.volume)  # fmt: skip
    if ours != theirs or not entry.filename.isascii():
        raise ModelFileError(f"{where}: the header of member {name} is not as featx writes it. {_GET}")


def _what_it_is(raw: bytes) -> str:
    if not raw:
        return "is empty"
    for start, meaning in _BEGINNINGS.items():
        if raw.startswith(start):
            return f"is {meaning}"
    return "is a file of another kind"


def _short(text: str) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 80 else f"{shown[:80]}..."


_GET = "Get the file again, from someone you trust."

_BEGINNINGS = {
    b"\x80": "a pickle, which featx never opens: it can run any code",
    b"\x1f\x8b": "compressed with gzip",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
    b"\x89HDF": "an HDF5 file",
    b"{": "JSON text",
    b"<": "a web page or XML",
    b"PK\x05\x06": "an empty zip",
}
"""First bytes of other kinds of files."""
