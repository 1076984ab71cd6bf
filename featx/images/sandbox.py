"""Work on pictures of unknown origin in other processes, which may crash, hang or want any amount of memory.

`serve` is the other process. It reads pickled requests and answers with JSON and raw numbers, which are never
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
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import FeatxError, ImageError
from featx.images.budget import DECODE_BYTES, DECODING
from featx.images.deep import START as DEEP_START
from featx.images.deep import is_deep_start
from featx.images.picture import Picture, read_picture
from featx.images.pixels import Warn, ignore_remark
from featx.images.policy import MAX_PIXELS

if sys.platform == "win32":
    resource: Any = None
else:
    import resource

Work: TypeAlias = Callable[[Picture, Any, Warn], list[NDArray[Any]]]
"""A function that can be pickled: of a picture, an argument, and a callback for remarks."""

TIME_LIMIT_S = 60.0
"""For one picture. A picture within `max_pixels` takes seconds."""

START_LIMIT_S = 120.0
"""For the start of a process: imports on a busy machine."""

BYTES_A_PIXEL, SPARE_BYTES = 40, 1 << 30
"""Memory for the copies of the largest picture, and most for the rest, beside what a process starts with."""

LEAST_BYTES = 128 << 20
"""Least memory of a process for the copies of a picture. Photos of 12 megapixels take 96 MB."""

HEADER_BYTES = 1 << 20
"""A longer header is no answer."""

DTYPES = ("uint8", "int64", "float32", "float64")
"""Types of the numbers in an answer."""

PR_SET_PDEATHSIG = 1
"""From Linux's ``sys/prctl.h``."""

START = f"import sys; sys.path.append(sys.argv[1]); from {__name__} import serve; serve()"


class Sandboxes:
    """Processes that work on one picture at a time; one that ends is replaced.

    The processes share the memory of `featx.images.budget`. A picture that needs more than a share, or
    crashes its process, is tried again with what the largest picture needs, one such picture at a time.

    Parameters
    ----------
    work : callable
        What to do, see `Work`.
    argument : object
        An argument for `work` that suits a small picture, to load libraries before memory is limited.
    max_pixels : int
        Pixels of the largest picture.
    workers : int
        Number of threads that call this.
    time_limit_s : float, optional
        For a picture; default `TIME_LIMIT_S`.
    """

    def __init__(
        self,
        work: Work,
        argument: Any = None,
        max_pixels: int = MAX_PIXELS,
        workers: int = 1,
        time_limit_s: float | None = None,
    ) -> None:
        self._start = (work, argument)
        self._time_limit_s = time_limit_s or TIME_LIMIT_S
        self._share = max(LEAST_BYTES, DECODE_BYTES // workers)
        self._most = max(self._share, BYTES_A_PIXEL * max_pixels)
        self._alone = threading.Lock()
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def __call__(self, picture: Picture, argument: Any, warn: Warn) -> list[NDArray[Any]]:
        """Return what `work` returns.

        Raises
        ------
        ImageError
            As `work` does; or if it crashes the process, or takes longer than the limit.
        """
        header, arrays = self._ask(picture, argument, self._share)
        if header.get("again") and self._share < self._most:
            with self._alone:
                header, arrays = self._ask(picture, argument, self._most)
        if header["reason"]:
            raise ImageError(picture.name, str(header["reason"]))
        for remark in header["remarks"]:
            warn(str(remark))
        return arrays

    def close(self) -> None:
        """End the processes."""
        while not self._idle.empty():
            process = self._idle.get()
            process.kill()
            process.wait()
            _close_pipes(process)

    def __enter__(self) -> Sandboxes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(
        self, picture: Picture, argument: Any, n_bytes: int
    ) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """The header of an answer, which says whether more memory may help, and its arrays."""
        process = self._take()
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self._time_limit_s, stop)
        timer.start()
        try:
            _send(process.stdin, (picture, argument, n_bytes))
            header, arrays = _receive(process.stdout, self._most)
        except (OSError, EOFError, ValueError, TypeError, KeyError):
            process.kill()
            code = process.wait()
            _close_pipes(process)
            reason = _how_it_ended(code, late.is_set(), self._time_limit_s)
            return {"reason": reason, "remarks": [], "again": not late.is_set()}, []
        finally:
            timer.cancel()
        self._idle.put(process)
        return header, arrays

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
            _send(process.stdin, (*self._start, self._share, self._time_limit_s))
            _receive(process.stdout, 0)  # it is ready: the time limit of a picture does not include the start
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


def _answer(pipe: IO[bytes], header: dict[str, Any], arrays: list[NDArray[Any]]) -> None:
    forms = [(one.dtype.name, one.shape) for one in arrays]
    text = json.dumps({**header, "arrays": forms}).encode()
    pipe.write(len(text).to_bytes(8, "little") + text)
    for one in arrays:
        pipe.write(np.ascontiguousarray(one).data)
    pipe.flush()


def _receive(pipe: IO[bytes] | None, most_bytes: int) -> tuple[dict[str, Any], list[NDArray[Any]]]:
    assert pipe is not None
    length = int.from_bytes(_read_exactly(pipe, 8, 8), "little")
    header = json.loads(_read_exactly(pipe, length, HEADER_BYTES))
    arrays = []
    for name, shape in header["arrays"]:
        dtype = np.dtype(DTYPES[DTYPES.index(name)])
        data = _read_exactly(pipe, math.prod(map(int, shape)) * dtype.itemsize, most_bytes)
        most_bytes -= len(data)
        arrays.append(np.frombuffer(data, dtype).reshape(shape))
    return header, arrays


def _read_exactly(pipe: IO[bytes], count: int, most: int) -> bytes:
    if not 0 <= count <= most:
        raise ValueError(f"{count} bytes")
    data = pipe.read(count)
    if len(data) != count:
        raise EOFError
    return data


def _load(pipe: IO[bytes], size: bytes) -> Any:
    count = int.from_bytes(size, "little")
    return pickle.loads(_read_exactly(pipe, count, count))  # noqa: S301


def serve() -> None:
    """Answer requests until the parent closes the pipe."""
    _end_with_parent()
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    work, argument, n_bytes, time_limit_s = _load(requests, requests.read(8))
    used = _warm_up(work, argument, "RGB", "JPEG")
    deep = False
    _limit_memory(used, n_bytes)
    _answer(answers, {}, [])
    while size := requests.read(8):
        remarks: list[str] = []
        reason, short, arrays = "", False, []
        picture, argument, n_bytes = _load(requests, size)
        if not deep and _is_deep(picture):
            used, deep = _warm_up(work, argument, "I;16", "PNG"), True
        _limit_cpu(time_limit_s)
        try:
            _limit_memory(used, n_bytes)
            arrays = work(picture, argument, remarks.append)
        except (ImageError, MemoryError) as error:
            reason = error.reason if isinstance(error, ImageError) else "not enough memory to decode it"
            short = isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError)
        _answer(answers, {"reason": reason, "remarks": remarks, "again": short}, arrays)


def _end_with_parent() -> None:
    """Be killed when the parent ends (Linux): a decoder that hangs does not see that the pipe is closed."""
    if sys.platform == "linux":
        parent = os.getppid()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended already
            sys.exit(1)


def _address_space() -> int:
    """Bytes of this process's address space (Linux)."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _lift_memory() -> None:
    """Limit nothing, while libraries are loaded."""
    DECODING.most = None
    if sys.platform == "linux":
        _set_limit(resource.RLIMIT_AS, resource.getrlimit(resource.RLIMIT_AS)[1])


def _limit_memory(used: int, n_bytes: int) -> None:
    """Limit the copies of a picture by its header, and the address space (Linux): a header may lie."""
    DECODING.most = n_bytes
    if sys.platform == "linux":
        _set_limit(resource.RLIMIT_AS, used + n_bytes + min(n_bytes, SPARE_BYTES))


def _limit_cpu(time_limit_s: float) -> None:
    """Limit the CPU time of the next picture, on all cores together."""
    if resource is not None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        _set_limit(
            resource.RLIMIT_CPU,
            math.ceil(usage.ru_utime + usage.ru_stime + time_limit_s * (os.cpu_count() or 1)) + 1,
        )


def _set_limit(kind: int, limit: int) -> None:
    """Set a soft limit, at most the hard one."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _warm_up(work: Work, argument: Any, mode: str, kind: str) -> int:
    """Work on a picture of our own, so that libraries are loaded before a limit applies.

    Returns
    -------
    int
        Bytes of the address space then.
    """
    from PIL import Image

    _lift_memory()
    buffer = io.BytesIO()
    Image.new(mode, (64, 64)).save(buffer, kind)
    with contextlib.suppress(ImageError):  # it may not have the bands that are asked for
        work(read_picture(buffer.getvalue(), name="warm-up"), argument, ignore_remark)
    return _address_space()


def _is_deep(picture: Picture) -> bool:
    """Whether a picture may have more than 8 bits, for which other libraries are loaded."""
    if isinstance(picture.data, bytes):
        return is_deep_start(picture.data[:DEEP_START])
    return picture.data.dtype.itemsize > 1
