"""Requests to object stores and web servers by fsspec; a request that fails temporarily is repeated.

All errors are OSErrors as of a file: no such file, no permission, or an input/output error with the reason.
What arrives is as long as it was announced, or it is requested again.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import logging
import os
import random
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from featx.exceptions import FeatxWarning, UsageError
from featx.remote.address import RemotePath

T = TypeVar("T")

ATTEMPTS = 6
"""Requests before an error is reported. The waits between them add up to about 8 s."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 8.0
"""Waits between attempts double, and vary randomly by half, so that many processes do not repeat at once."""

CONNECT_S, READ_S = 10.0, 30.0
"""Seconds to connect, and between two parts of an answer."""

CONNECTIONS = 32
"""Requests at a time."""

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "https": "aiohttp"}

FINAL = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError)
"""Errors that another attempt does not change."""

STAMPS = (
    "ETag", "etag", "generation", "md5Hash", "blob_id", "Content-MD5", "Last-Modified", "LastModified",
    "last_modified", "mtime", "updated",
)  # fmt: skip
"""Keys of fsspec's file information that change with the content; the first that is present is used."""

_QUERY = re.compile(r"\?[^\s'\"]*")
_LOG = logging.getLogger("featx.remote")


@dataclass(frozen=True)
class Found:
    """Size and version of a file on a server."""

    address: RemotePath
    size: int | None
    """Bytes; None if the server does not say."""
    version: str
    """It changes with the content; empty if the server gives no version."""
    modified: float
    """Seconds since the epoch; 0 if not known."""


def look(address: RemotePath) -> Found:
    """Return size and version of a file.

    Raises
    ------
    OSError
        FileNotFoundError, PermissionError, or with the reason.
    """
    return _found(address, _repeated(address, lambda fs, path: fs.info(path)))


def find(folder: RemotePath) -> list[Found]:
    """Return all files below a folder, sorted by address; empty if there are none.

    Raises
    ------
    UsageError
        For a folder of a web server, which lists nothing.
    OSError
        As `look`.
    """
    if folder.on_web:
        raise UsageError(
            f"{folder}: a web server does not list its folders; give the address of a manifest or an image."
        )

    def listed(fs: Any, path: str) -> dict[str, Any]:
        fs.invalidate_cache()
        found: dict[str, Any] = fs.find(path.rstrip("/") + "/", detail=True)
        return found

    prefix = f"{folder.scheme}://"
    try:
        found = _repeated(folder, listed)
    except FileNotFoundError:
        return []
    files = []
    for name, info in sorted(found.items()):
        if info.get("type") == "file" and f"{prefix}{name}".startswith(folder.as_folder):
            try:
                files.append(_found(RemotePath(prefix + name), info))
            except UsageError as error:
                warnings.warn(f"left out: {error}", FeatxWarning, stacklevel=2)
    return [file for file in files if not file.address.endswith("/")]  # a placeholder of an empty folder


def folders(folder: RemotePath) -> list[RemotePath]:
    """Return the folders directly below a folder, sorted.

    Raises
    ------
    OSError
        As `look`.
    """
    try:
        found = _repeated(folder, lambda fs, path: fs.ls(path.rstrip("/"), detail=True, refresh=True))
    except FileNotFoundError:
        return []
    names = [info["name"].rstrip("/").rpartition("/")[2] for info in found if info["type"] == "directory"]
    return [folder / name for name in sorted(names)]


def fetch(found: Found, most: int) -> bytes:
    """Return the content of a file of at most `most` bytes.

    Raises
    ------
    OSError
        As `look`; also if it has more bytes.
    """
    if found.size is not None and found.size > most:
        raise OSError(errno.EFBIG, f"it has {found.size:,} bytes; at most {most:,} are read")
    if found.size == 0:
        return b""
    limit = most if found.size is None else found.size

    def read(fs: Any, path: str) -> bytes:
        if not found.address.on_web and found.size is not None:
            data: bytes = fs.cat_file(path, start=0, end=found.size)
        else:  # a stream: reading stops when it exceeds the limit
            with fs.open(path, "rb", block_size=0, size=max(1, limit)) as file:
                data = _read_stream(file, limit)
        _check_length(data, found.size)
        if len(data) > limit:
            raise OSError(errno.EFBIG, f"it has more than {limit:,} bytes")
        return data

    return _repeated(found.address, read)


def fetch_range(address: RemotePath, start: int, stop: int) -> bytes:
    """Return the bytes [start, stop) of a file of an object store.

    Raises
    ------
    OSError
        As `look`.
    """

    def read(fs: Any, path: str) -> bytes:
        data: bytes = fs.cat_file(path, start=start, end=stop)
        _check_length(data, stop - start)
        return data

    return _repeated(address, read) if stop > start else b""


def put(address: RemotePath, data: bytes, *, new: bool = False) -> None:
    """Store a file, whole or not at all.

    Parameters
    ----------
    address : RemotePath
    data : bytes
    new : bool
        Whether it must not exist (a conditional put).

    Raises
    ------
    FileExistsError
        If it exists, and `new` is set.
    OSError
        As `look`.
    """
    if address.on_web:
        raise UsageError(f"{address}: nothing can be stored on a web server.")
    mode = {"mode": "create"} if new else {}
    try:
        _repeated(address, lambda fs, path: fs.pipe_file(path, data, **mode))
    except FileExistsError:
        if not new or _is_ours(address, data):  # an earlier attempt stored it, and the answer was lost
            return
        raise


def delete(address: RemotePath) -> None:
    """Delete a file; FileNotFoundError if there is none and the store reports this."""
    _repeated(address, lambda fs, path: fs.rm_file(path))


def _is_ours(address: RemotePath, data: bytes) -> bool:
    found = look(address)
    return found.size == len(data) and fetch(found, len(data)) == data


def _read_stream(file: Any, limit: int) -> bytes:
    parts, n_bytes = [], 0
    while n_bytes <= limit and (part := file.read(1 << 20)):
        parts.append(part)
        n_bytes += len(part)
    return b"".join(parts)


def _check_length(data: bytes, wanted: int | None) -> None:
    if wanted is not None and len(data) != wanted:
        raise OSError(errno.EIO, f"the answer has {len(data):,} bytes instead of {wanted:,}")


def _found(address: RemotePath, info: dict[str, Any]) -> Found:
    if info.get("type") == "directory":
        raise IsADirectoryError(errno.EISDIR, "it is a folder", str(address))
    stamps = [f"{name}={info[name]}" for name in STAMPS if info.get(name)]
    text = f"{stamps[0]} size={info.get('size')}" if stamps else ""  # a listing may have fewer keys
    version = hashlib.sha256(text.encode()).hexdigest()[:16] if stamps else ""
    moment = next((info[name] for name in STAMPS if hasattr(info.get(name), "timestamp")), None)
    return Found(address, info.get("size"), version, moment.timestamp() if moment is not None else 0.0)


def _repeated(address: RemotePath, call: Callable[[Any, str], T]) -> T:
    """Call with the file system and the path; repeat after temporary errors."""
    fs = _file_system(address.scheme)
    path = str(address) if address.on_web else address.partition("://")[2]
    wait = FIRST_WAIT_S
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call(fs, path)
        except Exception as error:  # each library has errors of its own
            failure = _as_os_error(error, address)
            if isinstance(failure, FINAL) or failure.errno == errno.EFBIG or attempt == ATTEMPTS:
                raise failure from error
            _LOG.info("%s: %s (attempt %d)", address, failure.strerror, attempt)
        time.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311
        wait = min(2 * wait, LONGEST_WAIT_S)
    raise AssertionError


def _as_os_error(error: Exception, address: RemotePath) -> OSError:
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and address.on_web and isinstance(cause, Exception):
        error = cause  # fsspec reports every failure of a web server as a missing file
    if isinstance(error, RedirectError):
        return PermissionError(errno.EACCES, str(error), str(address))
    status = getattr(error, "status", None)
    text = _QUERY.sub("", str(error) or type(error).__name__)  # it may hold a key
    words = " ".join(text.split())[:300]
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return FileNotFoundError(errno.ENOENT, "no such file", str(address))
    if isinstance(error, PermissionError) or status in (401, 403) or "Credentials" in type(error).__name__:
        return PermissionError(errno.EACCES, f"no permission ({words})", str(address))
    if isinstance(error, FINAL) or (isinstance(error, OSError) and error.errno == errno.EFBIG):
        return error
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429):
        return PermissionError(errno.EACCES, f"the server refuses it ({words})", str(address))
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return OSError(errno.ETIMEDOUT, f"no answer in time ({words})", str(address))
    if isinstance(error, OSError) and error.errno == errno.EIO and error.strerror:
        words = error.strerror
    return OSError(errno.EIO, words, str(address))


class RedirectError(Exception):
    """A web server redirects to another server."""


def _file_system(scheme: str) -> Any:
    """The file system of a scheme, one for each process: its connections must not be used after a fork."""
    return _made_file_system(scheme, os.getpid(), CONNECT_S, READ_S)


@functools.lru_cache(maxsize=16)
def _made_file_system(scheme: str, _process: int, connect_s: float, read_s: float) -> Any:
    try:
        import fsspec

        made = fsspec.filesystem(scheme, skip_instance_cache=True, **_options(scheme, connect_s, read_s))
    except ImportError as error:
        package = PACKAGES.get(scheme, "aiohttp")
        raise UsageError(f"{scheme}:// needs {package} and fsspec; `pip install 'featx[remote]'`.") from error
    if scheme == "s3":
        made.retries = 1  # attempts are counted here, for all file systems
    return made


def _options(scheme: str, connect_s: float, read_s: float) -> dict[str, Any]:
    """Arguments of a file system; credentials and endpoints come from the environment and fsspec's files."""
    if scheme == "s3":
        config = {
            "connect_timeout": connect_s, "read_timeout": read_s, "retries": {"max_attempts": 1},
            "max_pool_connections": CONNECTIONS,
        }  # fmt: skip
        return {"config_kwargs": config, "use_listings_cache": False}
    if scheme in ("http", "https"):
        import aiohttp

        trace = aiohttp.TraceConfig()
        trace.on_request_redirect.append(_check_redirect)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_s, sock_read=read_s)
        return {
            "client_kwargs": {"timeout": timeout, "trace_configs": [trace]},
            "headers": {"Accept-Encoding": "identity"},
        }
    return {"use_listings_cache": False}


async def _check_redirect(_session: Any, _context: Any, params: Any) -> None:
    """Refuse a redirect to another server: it could be one of the local network."""
    from yarl import URL

    place = params.response.headers.get("Location") or params.response.headers.get("URI") or ""
    target = params.url.join(URL(place))
    if target.origin() != params.url.origin():
        raise RedirectError(f"the server leads to another one, {target.origin()}; give that address instead")
