"""Pictures that may crash the decoder, and with it the process.

A journal on disk names the pictures that are being decoded. If a process died, the next run finds its
journal, decodes those pictures in another process under limits, and skips the one that crashes it, by name.
The journal costs two small writes for each picture. `featx.images.sandbox` is the other process.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import StoreWarning
from featx.extractor.pipeline import ExtractionSettings, Input
from featx.files import LEFTOVER_S, make_folder, read_plain
from featx.images import Picture
from featx.images.sandbox import Sandboxes
from featx.stores.base import FeatureStore

SLOT_BYTES = 1024
"""Bytes of the journal for the digest and name of one picture."""

JOURNAL_BYTES = 1 << 20
"""A larger file is no journal."""

FOREIGN_S = 86_400.0
"""A journal of another machine is abandoned if it was not written to for a day."""

FOLDER = "decoding"
NOTE = ("decoding", "suspects")


class CarefulDecoder:
    """`ExtractionSettings.prepare` with a journal, and in another process for suspect pictures.

    Parameters
    ----------
    settings : ExtractionSettings
        How to decode.
    store : FeatureStore
        Its folder holds the journal (a store in memory has none), its notes the suspect pictures.
    isolate : bool
        Decode every picture in another process.
    workers : int
        Number of threads that call this.
    time_limit_s : float, optional
        For a picture in another process; default `featx.images.sandbox.TIME_LIMIT_S`.
    """

    def __init__(
        self,
        settings: ExtractionSettings,
        store: FeatureStore,
        *,
        isolate: bool,
        workers: int,
        time_limit_s: float | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._isolate = isolate
        self._folder = store.folder(FOLDER)
        self._suspects = self._find_suspects()
        self._cleared: set[str] = set()
        self._workers = workers
        self._lock = threading.Lock()
        self._journal: Journal | None = None
        self._sandboxes = Sandboxes(
            _Prepare(replace(settings, on_decode=None)),
            np.ones(len(settings.specs), bool),
            settings.max_pixels,
            workers,
            time_limit_s,
        )

    def __call__(
        self, picture: Picture, wanted: NDArray[np.bool_], warn: Callable[[str], None]
    ) -> list[Input]:
        """As `ExtractionSettings.prepare`. A picture that crashes the decoder is an ImageError, too."""
        name = picture.digest.hex()
        if self._isolate or name in self._suspects:
            numbers, *pixels = self._sandboxes(picture, wanted, warn)
            self._cleared.add(name)
            inputs = [
                Input(picture.digest, picture.name, one, wanted & (self._settings.input_of == number))
                for one, number in zip(pixels, numbers.tolist(), strict=True)
            ]
            inputs[-1].last = True
            return inputs
        journal = self._open_journal()
        if journal is None:
            return self._settings.prepare(picture, wanted, warn)
        with journal.entry(picture):
            return self._settings.prepare(picture, wanted, warn)

    def close(self) -> None:
        """End the processes, remove the journal, and forget suspect pictures that were decoded."""
        self._sandboxes.close()
        if self._journal is not None:
            self._journal.close()
        if self._cleared & set(self._suspects):
            left = {name: path for name, path in self._suspects.items() if name not in self._cleared}
            self._store.remember(*NOTE, left)

    def _open_journal(self) -> Journal | None:
        """The journal, made with the first picture; None on a full disk, which the store will report."""
        with self._lock:
            if self._journal is None and self._folder is not None:
                try:
                    self._journal = Journal(self._folder, self._workers)
                except OSError:
                    self._folder = None
            return self._journal

    def _find_suspects(self) -> dict[str, str]:
        """Digests (hex) and names of pictures that were being decoded when a process died."""
        suspects: dict[str, str] = self._store.recall(*NOTE) or {}
        if self._folder is None:
            return suspects
        journals = [] if self._folder.is_symlink() else list(self._folder.glob("*.journal"))
        abandoned = [path for path in journals if _is_abandoned(path)]
        found = {digest: name for path in abandoned for digest, name in _entries(path)}
        if set(found) - set(suspects):
            suspects |= found
            self._store.remember(*NOTE, suspects)
        for path in abandoned:
            path.unlink(missing_ok=True)
        for path in set(journals) - set(abandoned):
            _warn_if_damaged(path)
        return suspects


class Journal:
    """The pictures that are being decoded now, each in a slot of one small file.

    The file survives the death of the process. It need not survive a power cut, so it is never synced.
    """

    def __init__(self, folder: Path, slots: int) -> None:
        make_folder(folder, follow_links=False)
        self._path = folder / f"{uuid.uuid4().hex}.journal"
        self._file = open(self._path, "xb", buffering=0)  # noqa: SIM115
        self._file.write(_padded(_whoami()))
        self._lock = threading.Lock()
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(1, slots + 1):
            self._free.put(slot)

    @contextlib.contextmanager
    def entry(self, picture: Picture) -> Iterator[None]:
        """Use around the decoding of a picture."""
        slot = self._free.get()
        try:
            self._write(slot, {"digest": picture.digest.hex(), "name": picture.name[:200]})
            yield
            self._write(slot, {})
        except Exception:
            self._write(slot, {})
            raise
        finally:
            self._free.put(slot)

    def close(self) -> None:
        """Remove the file: no picture is being decoded."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def _write(self, slot: int, entry: dict[str, Any]) -> None:
        with self._lock, contextlib.suppress(OSError):  # the store reports a full disk
            self._file.seek(slot * SLOT_BYTES)
            self._file.write(_padded(entry))


def _padded(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry).encode()[: SLOT_BYTES - 1].ljust(SLOT_BYTES - 1) + b"\n"


def _entries(path: Path) -> list[tuple[str, str]]:
    found = []
    with contextlib.suppress(OSError):
        for line in (read_plain(path, limit=JOURNAL_BYTES) or b"").split(b"\n")[1:]:
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                entry = json.loads(line)
                found.append((str(entry["digest"]), str(entry["name"])))
    return found


def _warn_if_damaged(path: Path) -> None:
    """Name an old file that is no journal; a new one may be written right now."""
    with contextlib.suppress(OSError):
        if time.time() - path.lstat().st_mtime > LEFTOVER_S and _owner(path) is None:
            warnings.warn(
                StoreWarning(f"{path}: it is not a journal of decoding, or damaged; ignored. Delete it."),
                stacklevel=2,
            )


def _owner(path: Path) -> dict[str, Any] | None:
    """The process that wrote a journal; None if there is no journal, or a damaged one."""
    try:
        owner = json.loads((read_plain(path, limit=JOURNAL_BYTES) or b"")[:SLOT_BYTES])
        return {"pid": int(owner["pid"]), "host": owner.get("host"), "born": owner.get("born")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def _is_abandoned(path: Path) -> bool:
    """Whether the process that wrote a journal has ended."""
    owner = _owner(path)
    if owner is None:
        return False
    pid = owner["pid"]
    if owner["host"] != socket.gethostname() or os.name == "nt":
        with contextlib.suppress(OSError):
            return time.time() - path.lstat().st_mtime > FOREIGN_S
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return bool(owner["born"] != _birth(pid))


def _whoami() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "born": _birth(os.getpid())}


def _birth(pid: int) -> str:
    """Start of a process in the kernel's ticks, since pids are used again; empty if it is not known."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


@dataclass(frozen=True)
class _Prepare:
    """What the other process does: the numbers of the inputs of a picture, and their pixels."""

    settings: ExtractionSettings

    def __call__(
        self, picture: Picture, wanted: NDArray[np.bool_], warn: Callable[[str], None]
    ) -> list[NDArray[Any]]:
        inputs = self.settings.prepare(picture, wanted, warn)
        numbers = [int(self.settings.input_of[one.wanted][0]) for one in inputs]
        return [np.array(numbers, np.int64), *(one.pixels for one in inputs)]
