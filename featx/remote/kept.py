"""Read files at URLs, and keep copies in a folder of limited size on this machine.

The name of a copy is made of the URL and the version on the server, and the copy begins with its sha256. It
is used only if the server still has this version, and if the sha256 matches. Files for which the server gives
no version are not kept. The least recently used copies are deleted first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from pathlib import Path

from featx.exceptions import UsageError
from featx.files import TEMPORARY_PREFIX, make_folder, open_plain
from featx.folders import platform_cache
from featx.remote.access import Found, fetch, look
from featx.remote.address import RemotePath

FOLDER_VARIABLE = "FEATX_REMOTE_CACHE"
BYTES_VARIABLE = "FEATX_REMOTE_BYTES"

DEFAULT_BYTES = 10 * 10**9
"""Most bytes of all copies. 0 keeps nothing."""

SWEEP_SHARE, LEFT_SHARE = 0.05, 0.9
"""The folder is listed when a process has added this share of the limit; then at most `LEFT_SHARE` is left.
So two processes that add files at once stay below the limit."""

DIGEST_BYTES = 32
_COPY = re.compile(r"[0-9a-f]{32}-[0-9a-f]{16}")


def read_file(address: RemotePath, most: int) -> bytes:
    """Return the content of a file, from the copy on this machine if it has the version on the server.

    Parameters
    ----------
    address : RemotePath
    most : int
        A file of more bytes is refused.

    Raises
    ------
    OSError
        See `featx.remote.access.look`.
    UsageError
        If a package is missing, or the limit of the copies is no number.
    """
    return read_version(look(address), most)


def read_version(found: Found, most: int) -> bytes:
    """Return the content of a file of a known version; see `read_file`."""
    copies = _copies()
    data = copies.read(found) if copies is not None and found.version else None
    if data is None:
        data = fetch(found, most)
        if copies is not None and found.version:
            copies.add(found, data)
    return data


def keep(found: Found, data: bytes) -> None:
    """Keep a copy of what this process has just stored."""
    copies = _copies()
    if copies is not None and found.version:
        copies.add(found, data)


def forget(found: Found) -> None:
    """Delete the copy of a file, if there is one."""
    copies = _copies()
    if copies is not None:
        copies.path(found).unlink(missing_ok=True)


def has_copy(found: Found) -> bool:
    """Whether this machine has a copy of the version."""
    copies = _copies()
    return copies is not None and bool(found.version) and copies.path(found).exists()


class Copies:
    """A folder of copies of at most `limit` bytes. Any number of processes may share it.

    Parameters
    ----------
    folder : Path
    limit : int
        Bytes.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._added = limit  # so that the first file lists the folder
        self._lock = threading.Lock()

    def path(self, found: Found) -> Path:
        """Path of the copy of a version."""
        name = hashlib.sha256(found.address.encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}-{found.version}"

    def read(self, found: Found) -> bytes | None:
        """The content of a copy; None if there is none, or if it is damaged."""
        path = self.path(found)
        try:
            with open(open_plain(path), "rb") as file:
                digest, data = file.read(DIGEST_BYTES), file.read()
            if hashlib.sha256(data).digest() != digest:
                path.unlink(missing_ok=True)
                return None
            os.utime(path)
        except OSError:
            return None
        return data

    def add(self, found: Found, data: bytes) -> None:
        """Keep a copy. A full or read-only disk keeps nothing, which is no error."""
        n_bytes = len(data) + DIGEST_BYTES
        if n_bytes > SWEEP_SHARE * self.limit:
            return
        path = self.path(found)
        temporary = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{os.urandom(16).hex()}")
        with self._lock:
            self._added += n_bytes
            due = self._added > SWEEP_SHARE * self.limit
            if due:
                self._added = 0
        with contextlib.suppress(OSError):
            if due:
                self.sweep()
            make_folder(self.folder, mode=0o700)
            make_folder(path.parent)
            try:
                with open(temporary, "xb") as file:  # not synced: the digest shows whether it is complete
                    file.write(hashlib.sha256(data).digest())
                    file.write(data)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete the least recently used copies, and temporary files."""
        found = []
        for path in self.folder.glob("??/*"):
            with contextlib.suppress(OSError):
                if _COPY.fullmatch(path.name) or path.name.startswith(TEMPORARY_PREFIX):
                    status = path.lstat()
                    found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= LEFT_SHARE * self.limit:
                break
            path.unlink(missing_ok=True)
            total -= size


def _copies() -> Copies | None:
    """The folder of copies, from the environment; None if nothing is kept."""
    text = os.environ.get(BYTES_VARIABLE, "")
    try:
        limit = int(float(text)) if text else DEFAULT_BYTES
    except (ValueError, OverflowError):
        raise UsageError(f"{BYTES_VARIABLE} is {text!r}; write a number of bytes, such as 2e9.") from None
    if limit <= 0:
        return None
    folder = os.environ.get(FOLDER_VARIABLE)
    place = Path(folder) if folder else platform_cache(FOLDER_VARIABLE) / "remote"
    with _LOCK:
        if (place, limit) not in _COPIES:
            _COPIES[place, limit] = Copies(place, limit)
        return _COPIES[place, limit]


_LOCK = threading.Lock()
_COPIES: dict[tuple[Path, int], Copies] = {}
