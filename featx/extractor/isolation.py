"""Pictures that may crash the decoder, and with it the process.

A journal on disk names the pictures that are being decoded. If a process died, the next run finds its
journal, decodes those pictures in another process under limits, and skips the one that crashes it, by name.
The journal costs two small writes for each picture.

`serve` is the other process. It reads pickled requests and answers with JSON and raw pixels, which are never
executed. It starts with ``-P`` in the root folder, so that no module beside the pictures is imported; its
memory and CPU time are limited, and on Linux it ends with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import math
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import FeatxError, ImageError, StoreWarning
from featx.extractor.pipeline import ExtractionSettings, Input
from featx.files import LEFTOVER_S, make_folder, read_plain
from featx.images import Picture, read_picture
from featx.stores.base import FeatureStore

if sys.platform == "win32":
    resource: Any = None
else:
    import resource

TIME_LIMIT_S = 60.0
"""For one picture in another process. A picture within `max_pixels` takes seconds."""

START_LIMIT_S = 120.0
"""For the start of a process: imports on a busy machine."""

SLOT_BYTES = 1024
"""Bytes of the journal for the digest and name of one picture."""

JOURNAL_BYTES = 1 << 20
"""A larger file is no journal."""

FOREIGN_S = 86_400.0
"""A journal of another machine is abandoned if it was not written to for a day."""

BYTES_A_PIXEL, SPARE_BYTES = 40, 1 << 30
"""Memory of a process beside what it needs to start: for the copies of one picture, and for the rest."""

FOLDER = "decoding"
NOTE = ("decoding", "suspects")

PR_SET_PDEATHSIG = 1
"""From Linux's ``sys/prctl.h``."""


START = f"import sys; sys.path.append(sys.argv[1]); from {__name__} import serve; serve()"


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
        For a picture in another process; default `TIME_LIMIT_S`.
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
        self._sandboxes = Sandboxes(settings, time_limit_s or TIME_LIMIT_S)

    def __call__(
        self, picture: Picture, wanted: NDArray[np.bool_], warn: Callable[[str], None]
    ) -> list[Input]:
        """As `ExtractionSettings.prepare`. A picture that crashes the decoder is an ImageError, too."""
        name = picture.digest.hex()
        if self._isolate or name in self._suspects:
            inputs = self._sandboxes.prepare(picture, wanted, warn)
            self._cleared.add(name)
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
                StoreWarning(f"{path}: it is no journal of decoding, or damaged; ignored. Delete it."),
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


class Sandboxes:
    """Processes that decode one picture at a time; one that dies is replaced."""

    def __init__(self, settings: ExtractionSettings, time_limit_s: float) -> None:
        self._settings = settings
        self._time_limit_s = time_limit_s
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def prepare(
        self, picture: Picture, wanted: NDArray[np.bool_], warn: Callable[[str], None]
    ) -> list[Input]:
        """As `ExtractionSettings.prepare`.

        Raises
        ------
        ImageError
            If it cannot be decoded, crashes the process, or takes longer than the limit.
        """
        process = self._take()
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self._time_limit_s, stop)
        timer.start()
        try:
            _send(process.stdin, (picture, wanted))
            header, pixels = _receive(process.stdout)
        except (OSError, EOFError, ValueError):
            process.kill()
            code = process.wait()
            _close_pipes(process)
            raise ImageError(picture.name, _how_it_ended(code, late.is_set(), self._time_limit_s)) from None
        finally:
            timer.cancel()
        self._idle.put(process)
        if header["reason"]:
            raise ImageError(picture.name, str(header["reason"]))
        for remark in header["remarks"]:
            warn(str(remark))
        inputs = [
            Input(picture.digest, picture.name, one, wanted & (self._settings.input_of == int(number)))
            for one, number in zip(pixels, header["numbers"], strict=True)
        ]
        inputs[-1].last = True
        return inputs

    def close(self) -> None:
        """End the processes."""
        while not self._idle.empty():
            process = self._idle.get()
            process.kill()
            process.wait()
            _close_pipes(process)

    def _take(self) -> subprocess.Popen[bytes]:
        with contextlib.suppress(queue.Empty):
            return self._idle.get_nowait()
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", START, str(Path(__file__).resolve().parents[2])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=os.path.abspath(os.sep),
            env=_environment(),
            start_new_session=True,  # Ctrl-C is handled by the parent
        )
        timer = threading.Timer(START_LIMIT_S, process.kill)
        timer.start()
        try:
            _send(process.stdin, (self._settings, self._time_limit_s))
            _receive(process.stdout)  # it is ready: the time limit of a picture does not include the start
        except (OSError, EOFError, ValueError):
            code = process.wait()
            _close_pipes(process)
            raise FeatxError(
                f"the process that decodes suspect pictures did not start (exit code {code})."
            ) from None
        finally:
            timer.cancel()
        return process


def _environment() -> dict[str, str]:
    """Environment for the child: relative entries of PYTHONPATH are made absolute, empty ones dropped."""
    environment = dict(os.environ)
    folders = [
        os.path.abspath(folder) for folder in environment.pop("PYTHONPATH", "").split(os.pathsep) if folder
    ]
    return environment | ({"PYTHONPATH": os.pathsep.join(folders)} if folders else {})


def _how_it_ended(code: int, late: bool, limit_s: float) -> str:
    how = f"it ends the decoder's process (exit code {code})"
    if late:
        how = f"decoding it did not end within {limit_s:g} s"
    elif code < 0:
        with contextlib.suppress(ValueError):
            how = f"it crashes the decoder ({signal.Signals(-code).name})"
    return f"{how}; open it in an editor and save it anew"


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _send(pipe: IO[bytes] | None, request: object) -> None:
    assert pipe is not None
    data = pickle.dumps(request)
    pipe.write(len(data).to_bytes(8, "little") + data)
    pipe.flush()


def _answer(pipe: IO[bytes], header: dict[str, Any], pixels: list[NDArray[np.uint8]]) -> None:
    text = json.dumps({**header, "shapes": [one.shape for one in pixels]}).encode()
    pipe.write(len(text).to_bytes(8, "little") + text)
    for one in pixels:
        pipe.write(np.ascontiguousarray(one).data)
    pipe.flush()


def _receive(pipe: IO[bytes] | None) -> tuple[dict[str, Any], list[NDArray[np.uint8]]]:
    assert pipe is not None
    header = json.loads(_read_exactly(pipe, int.from_bytes(_read_exactly(pipe, 8), "little")))
    shapes = [tuple(map(int, shape)) for shape in header["shapes"]]
    pixels = [
        np.frombuffer(_read_exactly(pipe, int(np.prod(shape))), np.uint8).reshape(shape) for shape in shapes
    ]
    return header, pixels


def _read_exactly(pipe: IO[bytes], count: int) -> bytes:
    data = pipe.read(count)
    if len(data) != count:
        raise EOFError
    return data


def _load(pipe: IO[bytes], size: bytes) -> Any:
    return pickle.loads(_read_exactly(pipe, int.from_bytes(size, "little")))  # noqa: S301


def serve() -> None:
    """Answer requests until the parent closes the pipe."""
    _end_with_parent()
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    settings, time_limit_s = _load(requests, requests.read(8))
    settings.prepare(_warm_up(), np.ones(len(settings.specs), bool))
    _limit_memory(settings.max_pixels)
    _answer(answers, {}, [])
    while size := requests.read(8):
        picture, wanted = _load(requests, size)
        remarks: list[str] = []
        _limit_cpu(time_limit_s)
        try:
            inputs = settings.prepare(picture, wanted, remarks.append)
        except (ImageError, MemoryError) as error:
            reason = error.reason if isinstance(error, ImageError) else "not enough memory to decode it"
            _answer(answers, {"reason": reason, "remarks": [], "numbers": []}, [])
            continue
        numbers = [int(settings.input_of[one.wanted][0]) for one in inputs]
        header = {"reason": "", "remarks": remarks, "numbers": numbers}
        _answer(answers, header, [one.pixels for one in inputs])


def _end_with_parent() -> None:
    """Be killed when the parent ends (Linux): a decoder that hangs does not see that the pipe is closed."""
    if sys.platform == "linux":
        parent = os.getppid()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended already
            sys.exit(1)


def _limit_memory(max_pixels: int) -> None:
    """Limit the address space: a damaged file may ask for any amount of memory."""
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, used + BYTES_A_PIXEL * max_pixels + SPARE_BYTES)


def _limit_cpu(time_limit_s: float) -> None:
    """Limit the CPU time of the next picture, on all cores together."""
    if resource is not None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        _lower(
            resource.RLIMIT_CPU,
            math.ceil(usage.ru_utime + usage.ru_stime + time_limit_s * (os.cpu_count() or 1)) + 1,
        )


def _lower(kind: int, limit: int) -> None:
    """Set a soft limit, at most the hard one."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _warm_up() -> Picture:
    """A picture that makes decoder and resize load their libraries before any limit applies."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG")
    return read_picture(buffer.getvalue(), name="warm-up")
