"""The pipeline from images to features in the store: read, look up, decode, run, store, all at the same time.

A source is read once; the same bytes are hashed and decoded. Images whose features are stored are not
decoded, and an image that occurs twice is computed once. Whatever ends a run, features that are ready are
committed first.
"""

from __future__ import annotations

import contextlib
import importlib
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.state import LAUNCHES
from featx.backbones.transform import prepare
from featx.exceptions import ImageError, ImageWarning
from featx.extractor.forward import BatchSize, Forward, finite_rows
from featx.extractor.stages import TORCH_THREADS, Stage
from featx.images import DecodePolicy, ImageSource, Picture, decode_picture, read_picture
from featx.images.budget import DECODING
from featx.spec import FeatureSpec
from featx.stores.base import FeatureStore, Ids, as_ids

LOOK_UP = 256
"""Largest number of images that are looked up in one call."""

LOOK_UP_BYTES = 32 << 20
"""Largest size of the images that wait to be looked up."""

APPEND_ROWS = 64
"""Images whose features are appended in one call: the store then takes little time beside the network."""

APPEND_BYTES = 16 << 20
"""Unpooled features are large: fewer images are appended in one call."""

READERS = 4
"""Threads that read and hash: enough to keep the queue of a disk filled."""

STUCK_S = 30.0
"""A read or a decode that takes longer is reported by name."""

LONG_RUN_BYTES = 100 << 20
"""Size of the files after which importing torch, if it is installed, pays: it resizes 4 times as fast."""

REPORT_S = 0.1
"""Shortest time between two reports of progress."""

WINDOW_S = 5.0
"""Speed and limit are measured over the last seconds."""


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Parameters
    ----------
    done, total : int
        Images, cached and skipped ones included.
    cached, computed, skipped : int
        Of those done.
    images_per_s : float
        Over the last seconds; 0 if it is not known yet.
    eta_s : float or None
        Seconds left at this speed.
    limit : {'read', 'decode', 'forward', 'disk', ''}
        The stage that the others wait for.
    stage : str
        Name of the task.
    message : str
        A remark (a slow read, a new space, ...); empty for most events.
    """

    done: int
    total: int
    cached: int = 0
    computed: int = 0
    skipped: int = 0
    images_per_s: float = 0.0
    eta_s: float | None = None
    limit: str = ""
    stage: str = "extract"
    message: str = ""


Callback = Callable[[Progress], None]

OnDecode = Callable[[Picture, Mapping[DecodePolicy, NDArray[Any]]], None]
"""Called with an image that was decoded, and its pixels by policy; in the threads that decode."""


@dataclass(frozen=True)
class ExtractionSettings:
    """How the specs of one run share work: one decode, few network inputs, one forward pass.

    Parameters
    ----------
    specs : sequence of FeatureSpec
        Of one network, input size and precision; they differ in cut, pool, resize and view.
    max_pixels : int
        Larger images are refused.
    on_decode : callable, optional
        Called with each image that `prepare` decodes.
    """

    specs: Sequence[FeatureSpec]
    max_pixels: int
    on_decode: OnDecode | None = None
    inputs: tuple[FeatureSpec, ...] = field(init=False)
    outputs: tuple[FeatureSpec, ...] = field(init=False)
    input_of: NDArray[np.intp] = field(init=False)
    output_of: NDArray[np.intp] = field(init=False)
    policies: tuple[DecodePolicy, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Find the distinct inputs and outputs of the network."""
        first = self.specs[0]
        inputs = [spec.replace(cut=first.cut, pool=first.pool, final_norm=True) for spec in self.specs]
        outputs = [
            first.replace(cut=spec.cut, pool=spec.pool, final_norm=spec.final_norm) for spec in self.specs
        ]
        distinct_inputs, distinct_outputs = tuple(dict.fromkeys(inputs)), tuple(dict.fromkeys(outputs))
        object.__setattr__(self, "inputs", distinct_inputs)
        object.__setattr__(self, "outputs", distinct_outputs)
        object.__setattr__(self, "input_of", np.array([distinct_inputs.index(spec) for spec in inputs]))
        object.__setattr__(self, "output_of", np.array([distinct_outputs.index(spec) for spec in outputs]))
        policies = tuple(DecodePolicy.of(spec, self.max_pixels) for spec in distinct_inputs)
        object.__setattr__(self, "policies", policies)

    def prepare(
        self, picture: Picture, wanted: NDArray[np.bool_], warn: Callable[[str], None] | None = None
    ) -> list[Input]:
        """Decode an image once for each policy, and make the inputs of the wanted specs.

        Parameters
        ----------
        picture : Picture
            As it was read.
        wanted : array of shape (n_specs,), bool
            Specs whose features are missing.
        warn : callable, optional
            Called with remarks.

        Raises
        ------
        ImageError
            If it cannot be decoded.
        """
        decoded: dict[DecodePolicy, NDArray[Any]] = {}
        made = []
        with DECODING.held():  # until the image has been resized
            for number in np.unique(self.input_of[wanted]):
                policy, spec = self.policies[number], self.inputs[number]
                if policy not in decoded:
                    remark = None if decoded else warn
                    decoded[policy] = decode_picture(picture, policy, warn=remark, keep_depth=True)
                pixels = prepare(decoded[policy], spec, digest=picture.digest)
                made.append(Input(picture.digest, picture.name, pixels, wanted & (self.input_of == number)))
            if self.on_decode is not None:
                self.on_decode(picture, decoded)
        made[-1].last = True
        return made


@dataclass(eq=False)
class Input:
    """One prepared input of the network, and the specs whose features it gives."""

    digest: bytes
    name: str
    pixels: NDArray[np.uint8]
    wanted: NDArray[np.bool_]
    last: bool = False
    """Whether it is the last input of its image."""


@dataclass(frozen=True)
class Read:
    """An image that was read, or the reason why it cannot be read."""

    index: int
    picture: Picture | None
    reason: str = ""


@dataclass(frozen=True)
class Decoded:
    """The inputs of an image, or the reason why it cannot be decoded."""

    picture: Picture
    inputs: list[Input]
    n_bytes: int
    """Its size in memory, including the bytes of the file."""
    reason: str = ""


@dataclass(frozen=True)
class Computed:
    """A batch with the features of each output."""

    inputs: list[Input]
    rows: dict[FeatureSpec, NDArray[np.float32]]
    finite: NDArray[np.bool_]
    """Inputs whose features are finite in every output."""


Decode = Callable[[Picture, NDArray[np.bool_], Callable[[str], None]], list[Input]]
"""`ExtractionSettings.prepare`, or the same in another process."""


class ExtractionRun:
    """One pass over some sources.

    Parameters
    ----------
    settings : ExtractionSettings
        What to compute.
    store : FeatureStore
        Holds the features.
    forward : Forward
        The network.
    batch_size : BatchSize
        Shared with `forward`.
    n_threads : int
        Threads that decode.
    streams : int
        Forward passes at a time.
    n_readers : int
        Threads that read.
    strict : bool
        Whether an unreadable image ends the run.
    decode : callable, optional
        Instead of `ExtractionSettings.prepare`.
    callback : callable, optional
        Called with the progress.

    Attributes
    ----------
    ids : array of shape (n, 32), uint8
        Digests; zeros for sources that cannot be read.
    unread : dict of int to str
        Sources that cannot be read, with the reason.
    bad : dict of bytes to str
        Digests of images that cannot be decoded or computed, with the reason.
    computed : int
        Images that went through the network.
    remarks : Counter of str
        Remarks about images that were accepted.
    remarked : dict of str to str
        First image of each remark.
    """

    def __init__(
        self,
        settings: ExtractionSettings,
        store: FeatureStore,
        forward: Forward,
        batch_size: BatchSize,
        *,
        n_threads: int,
        streams: int,
        n_readers: int = READERS,
        strict: bool = False,
        decode: Decode | None = None,
        callback: Callback | None = None,
    ) -> None:
        self.settings = settings
        self.store = store
        self.forward = forward
        self.batch_size = batch_size
        self.unread: dict[int, str] = {}
        self.bad: dict[bytes, str] = {}
        self.computed = 0
        self.cached = 0
        self.remarks: Counter[str] = Counter()
        self.remarked: dict[str, str] = {}
        self._strict = strict
        self._decode_picture = decode or settings.prepare
        self._callback = callback
        self._in_flight: set[bytes] = set()
        self._done = 0
        self._decoded_bytes = 0
        self._stuck: set[str] = set()
        self._ready: list[Computed] = []
        self._names: Sequence[str] = ()
        self._sources: Sequence[ImageSource] = ()
        self._keys = [spec.key for spec in settings.specs]
        stuck: dict[str, Any] = {"patience_s": STUCK_S, "on_stuck": self._name_stuck}
        self._reading = Stage[int, Read](
            "read", self._read, workers=n_readers, size_of=lambda one: _n_bytes(one.picture), **stuck
        )
        self._decoding = Stage[tuple[Picture, NDArray[np.bool_]], Decoded](
            "decode", self._decode, workers=n_threads, size_of=lambda one: one.n_bytes, **stuck
        )
        self._running = Stage[list[Input], Computed](
            "forward", self._compute, workers=streams, depth=streams + 1, max_depth=2 * streams + 1
        )
        self._keeping = Stage[list[Computed], int]("disk", self._keep, workers=1, max_depth=4)
        self._stages: tuple[Stage[Any, Any], ...] = (
            self._reading,
            self._decoding,
            self._running,
            self._keeping,
        )
        self._history: deque[tuple[float, int, dict[str, float]]] = deque()
        self._reported = 0.0

    def __call__(self, sources: Sequence[ImageSource], names: Sequence[str], ids: Ids | None = None) -> None:
        """Compute and store the missing features of every readable source.

        If the digests of the sources are given, those with all their features are not read.

        Raises
        ------
        ImageError
            For the first unreadable image, if `strict`.
        """
        self._sources, self._names = sources, names
        self.ids: Ids = np.zeros((len(sources), 32), np.uint8)
        wanted = range(len(sources)) if ids is None else self._unknown(ids)
        finished = False
        with TORCH_THREADS.in_use():
            try:
                read = self._reading.run(wanted)
                decoded = self._decoding.run(self._missing(read))
                computed = self._running.run(self._batches(decoded))
                for kept in self._keeping.run(self._portions(computed)):
                    self._done += kept
                    self._report()
                finished = True
            finally:
                for stage in self._stages:
                    stage.close(drop=stage is not self._keeping, wait=finished or stage is not self._reading)
                self._keep(self._ready)
                self.store.commit()
        self._report(final=True)

    @property
    def limit(self) -> str:
        """The stage that the others waited for most in the whole run."""
        slowest = max(self._stages, key=lambda stage: stage.waited_s)
        return slowest.name if slowest.waited_s else ""

    # --- the stages' work, in worker threads ---

    def _read(self, index: int) -> Read:
        LAUNCHES.wait()
        try:
            return Read(index, read_picture(self._sources[index], name=self._names[index]))
        except ImageError as error:
            return Read(index, None, error.reason)

    def _decode(self, item: tuple[Picture, NDArray[np.bool_]]) -> Decoded:
        LAUNCHES.wait()
        picture, wanted = item
        before, self._decoded_bytes = self._decoded_bytes, self._decoded_bytes + _n_bytes(picture)
        if before <= LONG_RUN_BYTES < self._decoded_bytes:
            with contextlib.suppress(ImportError):
                importlib.import_module("torch")
        remarks: list[str] = []
        try:
            inputs = self._decode_picture(picture, wanted, remarks.append)
        except ImageError as error:
            return Decoded(_without_data(picture), [], _n_bytes(picture), error.reason)
        except MemoryError:
            reason = "not enough memory to decode it; shrink the image"
            return Decoded(_without_data(picture), [], _n_bytes(picture), reason)
        for remark in remarks:
            self.remarks[remark] += 1
            self.remarked.setdefault(remark, picture.name)
        n_bytes = _n_bytes(picture) + sum(prepared.pixels.nbytes for prepared in inputs)
        return Decoded(_without_data(picture), inputs, n_bytes)

    def _compute(self, inputs: list[Input]) -> Computed:
        wanted = np.logical_or.reduce([one.wanted for one in inputs])
        outputs = [self.settings.outputs[number] for number in np.unique(self.settings.output_of[wanted])]
        batch = np.stack([one.pixels for one in inputs])
        for one in inputs:
            one.pixels = _NO_PIXELS
        rows = self.forward(batch, outputs, [one.name for one in inputs])
        return Computed(inputs, rows, finite_rows(list(rows.values())))

    def _keep(self, portion: list[Computed]) -> int:
        """Append features to the store, and return the number of finished images."""
        if not portion:
            return 0
        inputs = [one for computed in portion for one in computed.inputs]
        good = np.concatenate([computed.finite for computed in portion])
        for index in np.flatnonzero(~good):
            self.bad[inputs[index].digest] = "the network gives NaN or Inf for it, in fp32 too"
        ids = as_ids([one.digest for one in inputs])
        wanted = np.stack([one.wanted for one in inputs]) & good[:, None]
        sizes = [len(computed.inputs) for computed in portion]
        for number, spec in enumerate(self.settings.specs):
            output = self.settings.outputs[self.settings.output_of[number]]
            has = np.repeat([output in computed.rows for computed in portion], sizes)
            chosen = wanted[has, number]
            if chosen.any():
                rows = np.concatenate([one.rows[output] for one in portion if output in one.rows])
                rows = rows if chosen.all() else rows[chosen]
                self.store.append(self._keys[number], ids[has][chosen], rows, spec)
        self._in_flight.difference_update(one.digest for one in inputs if one.last)
        return sum(one.last for one in inputs)

    # --- between the stages, in the calling thread ---

    def _unknown(self, ids: Ids) -> list[int]:
        """Positions of the sources with missing features; the others are done."""
        lacking = np.logical_or.reduce([self.store.missing(key, ids) for key in self._keys])
        self.ids[~lacking] = ids[~lacking]
        self._done = self.cached = int((~lacking).sum())
        found: list[int] = np.flatnonzero(lacking).tolist()
        return found

    def _missing(self, read: Iterable[Read]) -> Iterator[tuple[Picture, NDArray[np.bool_]]]:
        """Yield images with missing features, each once, with a mask of the specs."""
        for chunk in _chunks(self._readable(read)):
            ids = as_ids([picture.digest for picture in chunk])
            missing = np.stack([self.store.missing(key, ids) for key in self._keys], axis=1)
            for picture, wanted in zip(chunk, missing, strict=True):
                if picture.digest in self._in_flight or picture.digest in self.bad:
                    self._done += 1
                elif not wanted.any():
                    self._done += 1
                    self.cached += 1
                else:
                    self._in_flight.add(picture.digest)
                    yield picture, wanted
            self._report()

    def _readable(self, read: Iterable[Read]) -> Iterator[Picture]:
        for one in read:
            if one.picture is None:
                self.unread[one.index] = one.reason
                self._set_aside(self._names[one.index], one.reason)
            else:
                self.ids[one.index] = np.frombuffer(one.picture.digest, np.uint8)
                yield one.picture

    def _batches(self, decoded: Iterable[Decoded]) -> Iterator[list[Input]]:
        batch: list[Input] = []
        for one in decoded:
            if one.reason:
                self.bad[one.picture.digest] = one.reason
                self._in_flight.discard(one.picture.digest)
                self._set_aside(one.picture.name, one.reason)
            for prepared in one.inputs:
                batch.append(prepared)
                if len(batch) >= self.batch_size.value:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def _portions(self, computed: Iterable[Computed]) -> Iterator[list[Computed]]:
        """Yield some batches at a time; batches stay in `_ready` until then."""
        rows = n_bytes = 0
        for batch in computed:
            self._ready.append(batch)
            self.computed += sum(one.last for one in batch.inputs)
            rows += len(batch.inputs)
            n_bytes += sum(part.nbytes for part in batch.rows.values())
            if rows >= APPEND_ROWS or n_bytes >= APPEND_BYTES:
                portion, self._ready, rows, n_bytes = self._ready, [], 0, 0
                yield portion
        if self._ready:
            portion, self._ready = self._ready, []
            yield portion

    def _set_aside(self, name: str, reason: str) -> None:
        self._done += 1
        if self._strict:
            raise ImageError(name, reason)

    # --- progress ---

    def _name_stuck(self, item: Any, seconds: float) -> None:
        name = self._names[item] if isinstance(item, int) else item[0].name
        work = "reading" if isinstance(item, int) else "decoding"
        words = f"still {work} {name} after {seconds:.0f} s"
        if name not in self._stuck:
            self._stuck.add(name)
            warnings.warn(words, ImageWarning, stacklevel=2)
        self._tell(words)

    def _report(self, *, final: bool = False) -> None:
        now = time.monotonic()
        if self._callback is None or (not final and now - self._reported < REPORT_S):
            return
        self._reported = now
        self._history.append((now, self._done, {stage.name: stage.waited_s for stage in self._stages}))
        while len(self._history) > 2 and now - self._history[1][0] > WINDOW_S:
            self._history.popleft()
        self._tell("")

    def _tell(self, message: str) -> None:
        if self._callback is None:
            return
        total = len(self._sources)
        speed, limit = self._speed_and_limit()
        self._callback(
            Progress(
                done=self._done,
                total=total,
                cached=self.cached,
                computed=self.computed,
                skipped=len(self.unread) + len(self.bad),
                images_per_s=speed,
                eta_s=(total - self._done) / speed if speed else None,
                limit=limit,
                message=message,
            )
        )

    def _speed_and_limit(self) -> tuple[float, str]:
        if len(self._history) < 2:
            return 0.0, ""
        (began, done, waited), (now, done_now, waited_now) = self._history[0], self._history[-1]
        waits = {name: waited_now[name] - waited[name] for name in waited}
        limit = max(waits, key=lambda name: waits[name])
        return (done_now - done) / max(now - began, 1e-9), limit if waits[limit] > 0 else ""


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the numbers below `count`, evenly spaced, with both ends."""
    chosen: list[int] = np.unique(np.linspace(0, count - 1, min(wanted, count)).astype(int)).tolist()
    return chosen


_NO_PIXELS = np.empty((0, 0, 3), np.uint8)


def _chunks(pictures: Iterable[Picture]) -> Iterator[list[Picture]]:
    """Yield images in growing chunks, bounded in bytes: small ones first, so that decoding begins early."""
    chunk: list[Picture] = []
    limit, n_bytes = 8, 0
    for picture in pictures:
        chunk.append(picture)
        n_bytes += _n_bytes(picture)
        if len(chunk) >= limit or n_bytes >= LOOK_UP_BYTES:
            yield chunk
            chunk, n_bytes, limit = [], 0, min(2 * limit, LOOK_UP)
    if chunk:
        yield chunk


def _n_bytes(picture: Picture | None) -> int:
    if picture is None:
        return 0
    return len(picture.data) if isinstance(picture.data, bytes) else picture.data.nbytes


def _without_data(picture: Picture) -> Picture:
    return Picture(picture.name, picture.digest, b"")
