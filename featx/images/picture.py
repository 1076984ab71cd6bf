"""Read an image once: its bytes (or pixels) and the digest that names its features.

A file is opened without following what is not a file (a pipe would wait for ever), read whole, and
hashed; what is decoded later is what was hashed, even if the file has vanished or changed since.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featx.exceptions import DataError, ImageError
from featx.images.pixels import from_pillow
from featx.remote import RemotePath, is_address, read_file

Pixels: TypeAlias = NDArray[Any]
ImageSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | Pixels
"""A path, a `RemotePath`, a file's bytes, a PIL image, or an (H, W), (H, W, 3) or (H, W, 4) array of uint8,
uint16 or bool."""

MAX_FILE_BYTES = 2 << 30
"""A larger file is no image that `max_pixels` would let through (16-bit RGBA at 179 megapixels: 1.4 GB)."""

FILE_WAITS_S = (0.05, 0.2, 1.0)
"""Seconds between attempts to open a file while too many are open."""

READERS = 4
"""Threads that read files ahead: enough for a network disk, too few to disturb."""

REMOTE_READERS = 32
"""Threads that read images at addresses: an answer of an object store takes 20 to 100 ms."""

NOT_ASKED = (
    "an address, and featx reads only addresses that you name; give it as an argument of its own, or in "
    "Python as featx.images.RemotePath(...)"
)

ARRAY_DTYPES = (np.uint8, np.uint16, np.bool_)


@dataclass(frozen=True, eq=False)
class Picture:
    """An image as it was read.

    Parameters
    ----------
    name : str
        Its path, or what the caller calls it.
    digest : bytes
        sha256 of the file's bytes, 32 bytes; of shape, dtype and pixels where there was no file.
    data : bytes or array
        The file's bytes, or the upright pixels of shape (H, W) or (H, W, C).
    """

    name: str
    digest: bytes
    data: bytes | Pixels


def read_picture(source: ImageSource, *, name: str | None = None) -> Picture:
    """Read a source once.

    Parameters
    ----------
    source : path, bytes, PIL image or array
        See `ImageSource`. Bytes are a file's content, never a path.
    name : str, optional
        What to call it in messages; a path's own text by default.

    Raises
    ------
    ImageError
        With the reason and what to do: no such file, no permission, a folder, an empty file, an array of
        another shape or dtype.
    """
    if isinstance(source, RemotePath):
        data = _read_remote(source, name or source)
        return Picture(name or source, hashlib.sha256(data).digest(), data)
    if isinstance(source, str | os.PathLike):
        path = os.fsdecode(source)
        data = _read_file(path, name or path)
        return Picture(name or path, hashlib.sha256(data).digest(), data)
    name = name or "image"
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        if not data:
            raise ImageError(name, "empty: no bytes were given")
        return Picture(name, hashlib.sha256(data).digest(), data)
    if isinstance(source, Image.Image):
        pixels = _read_pillow(source, name)
    elif isinstance(source, np.ndarray):
        pixels = _checked_array(source, name)
    else:
        raise ImageError(
            name,
            f"a {type(source).__name__} is not an image source; give a path, the bytes of a file, "
            "a PIL image or an (H, W, 3) uint8 array",
        )
    return Picture(name, _pixel_digest(pixels), pixels)


def image_digest(source: ImageSource) -> bytes:
    """sha256 that names an image's features, 32 bytes: of the file, or of shape, dtype and pixels.

    Raises
    ------
    ImageError
        As `read_picture`.
    """
    return read_picture(source).digest


def read_digests(
    sources: Sequence[ImageSource], names: Sequence[str] | None = None
) -> tuple[list[bytes | None], dict[int, ImageError]]:
    """Digests of many images, read by a few threads and not decoded.

    Returns
    -------
    digests : list of bytes or None
        One entry for each source; None where it cannot be read.
    errors : dict of int to ImageError
        Why, by position.
    """
    names = name_sources(sources) if names is None else names
    errors: dict[int, ImageError] = {}

    def digest(position: int) -> bytes | None:
        try:
            return read_picture(sources[position], name=names[position]).digest
        except ImageError as error:
            errors[position] = error
            return None

    with ThreadPoolExecutor(n_readers(sources)) as pool:
        return list(pool.map(digest, range(len(sources)))), errors


def n_readers(sources: Sequence[ImageSource]) -> int:
    """Number of threads that read images: more for those at addresses, which wait for answers."""
    return REMOTE_READERS if any(isinstance(source, RemotePath) for source in sources) else READERS


def _read_remote(address: RemotePath, name: str) -> bytes:
    try:
        data = read_file(address, MAX_FILE_BYTES)
    except (OSError, MemoryError) as error:
        raise ImageError(name, reason_of(error)) from error
    if not data:
        raise ImageError(name, "empty file (0 bytes); upload it again")
    return data


def _read_file(path: str, name: str) -> bytes:
    descriptor = _open(path, name)
    try:
        refusal = _refuse_file(os.fstat(descriptor))
        if refusal:
            raise ImageError(name, refusal)
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            data = file.read()
    except (OSError, MemoryError) as error:
        raise ImageError(name, reason_of(error)) from error
    finally:
        os.close(descriptor)
    if not data:
        raise ImageError(name, "empty file (0 bytes); copy or download it again")
    return data


def _open(path: str, name: str) -> int:
    """Open a file for reading. Too many open files is no fault of this one: wait for others to be closed."""
    waits = iter(FILE_WAITS_S)
    while True:
        try:
            return os.open(path, os.O_RDONLY | _NO_WAITING)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            if getattr(error, "errno", None) not in (errno.EMFILE, errno.ENFILE):
                reason = NOT_ASKED if is_address(path) else reason_of(error)
                raise ImageError(name, reason) from error
            wait = next(waits, None)
            if wait is None:
                raise DataError(
                    f"{name}: too many open files; allow more of them (ulimit -n 4096) and repeat the "
                    "command. Finished features are stored."
                ) from error
        time.sleep(wait)


def read_start(path: str, size: int) -> bytes:
    """Return the first bytes of a file; empty if it is no regular file, or cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _NO_WAITING)
    except (OSError, ValueError):
        return b""
    try:
        return b"" if _refuse_file(os.fstat(descriptor)) else os.read(descriptor, size)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _refuse_file(status: os.stat_result) -> str:
    if stat.S_ISDIR(status.st_mode):
        return "a folder, not an image; give the folder by itself to read what it holds"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file (a pipe, socket or device)"
    if status.st_size > MAX_FILE_BYTES:
        return f"{status.st_size:,} bytes; an image's file may have at most {MAX_FILE_BYTES:,}"
    return ""


def reason_of(error: BaseException) -> str:
    """An operating system's or library's error in words, with what to do where that is known."""
    if isinstance(error, OSError) and error.errno is not None:
        hint = next((hint for kind, hint in _HINTS if isinstance(error, kind)), "")
        return f"{(error.strerror or type(error).__name__).lower()}{hint}"
    if isinstance(error, MemoryError):
        return "not enough memory"
    return str(error) or type(error).__name__


_NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_HINTS = (
    (PermissionError, "; make it readable (chmod u+r the file, u+rx its folders)"),
    (FileNotFoundError, "; it was moved or deleted, or the path is misspelt"),
    (IsADirectoryError, "; give the folder by itself to read what it holds"),
)


def _read_pillow(image: Image.Image, name: str) -> Pixels:
    try:
        return from_pillow(image)
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError) as error:
        raise ImageError(name, reason_of(error)) from error


def _checked_array(array: Pixels, name: str) -> Pixels:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or array.size == 0:
        hint = "; channels come last: array.transpose(1, 2, 0)" if _channels_first(array.shape) else ""
        raise ImageError(
            name, f"an array of shape {array.shape} is not an image; use (H, W), (H, W, 3) or (H, W, 4){hint}"
        )
    if array.dtype.type not in ARRAY_DTYPES:
        whole = array.dtype.kind in "iu"
        example = "array" if whole else "(array * 255).round()"
        raise ImageError(
            name,
            f"an array of dtype {array.dtype} has no agreed range; give uint8 (0 to 255), uint16 or bool, "
            f"e.g. {example}.astype('uint8') where values lie between 0 and {255 if whole else 1}",
        )
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def _channels_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] in (1, 3, 4)


def _pixel_digest(pixels: Pixels) -> bytes:
    digest = hashlib.sha256(f"featx pixels {pixels.shape} {pixels.dtype.name} ".encode())
    digest.update(np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<")).data)
    return digest.digest()


def name_sources(sources: Iterable[ImageSource]) -> list[str]:
    """A name for each source: its path as it was given, or its position."""
    return [
        os.fsdecode(source) if isinstance(source, str | os.PathLike) else f"image {position}"
        for position, source in enumerate(sources)
    ]
