"""One call of `FeatureExtractor.extract`: compute what is missing, and give access to the features."""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones import BackboneCard
from featx.backbones.runtimes import environment, is_several, resolve_devices, resolve_runtime
from featx.exceptions import ImageError, ImageWarning
from featx.extractor import canary
from featx.extractor.forward import BatchSize, Engine, Forward
from featx.extractor.isolation import CarefulDecoder
from featx.extractor.pipeline import Callback, ExtractionRun, ExtractionSettings, OnDecode, Progress
from featx.features import FeatureBlocks
from featx.images import ImageSource, Skipped, nothing_left
from featx.images.picture import n_readers
from featx.spec import MAX_INPUT_PIXELS, FeatureSpec
from featx.stores.base import FeatureStore, Ids, explain_miss
from featx.tables import count
from featx.threads import n_threads

if TYPE_CHECKING:
    from featx.backbones.network import Backbone

LARGE_INPUT = 2**20
"""Pixels of a network's input above which a CPU computes one image in a pass, and few passes at a time: of
2048 × 2048, tf_efficientnet_lite0 takes 4.5 GB in OpenVINO and 2.3 GB in torch (2026-11-29)."""

FEW_FIELDS = 4
"""A space that differs in more fields is not mentioned as the nearest one."""


@dataclass(frozen=True)
class Machine:
    """How and with what missing features are computed; it does not change them.

    Parameters
    ----------
    open_backbone : callable
        Loads the network.
    runtime, device : str
        As for `FeatureExtractor`.
    resolved_device : str
        The device that `device` means here.
    batch_size : int or "auto"
    n_jobs : int or None
    max_pixels : int
    isolate : bool
        As for `FeatureExtractor`.
    models : Path or None
        Folder of converted networks.
    keep : bool
        Whether networks that are converted now are kept there.
    graph : bytes, optional
        The converted network of a model file.
    """

    open_backbone: Callable[[], Backbone]
    runtime: str
    device: str
    resolved_device: str
    batch_size: int | str
    n_jobs: int | None
    max_pixels: int
    isolate: bool
    models: Path | None
    keep: bool = True
    graph: bytes | None = None

    def engines(self, workers: int) -> list[Engine]:
        """Return what compiles the network, for a number of threads; one for each device."""
        devices = resolve_devices(self.device, self.runtime) if is_several(self.device) else (self.device,)
        return [
            Engine(
                self.open_backbone, self.runtime, device, workers, self.models, self.keep, self.graph,
                len(devices) > 1,
            )
            for device in devices
        ]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Extraction:
    """What `FeatureExtractor.extract` returns.

    Attributes
    ----------
    ids : array of shape (n_kept, 32), uint8
        Digests of the images that were kept.
    kept : array of shape (n_kept,), int
        Their positions in the sources.
    skipped : list of Skipped
        The other images, with the reason.
    blocks : FeatureBlocks
        Features of each block, read from the store at first use.
    specs : dict of BlockName to FeatureSpec
        Spec of each block.
    store : FeatureStore
        It holds the features.
    computed : int
        Images that went through the network.
    canaries : int
        Images that were computed again to check cached features.
    remarks : tuple of str
        Remarks for the user: why features are computed again, accepted images with a remark, a precision
        that was taken from the store.
    seconds, loading_s : float
        Wall-clock time, and the part in which the network was loaded or converted.
    runtime, limit : str
        Runtime (empty if nothing was computed), and the stage that the others waited for.
    batch_size : int
        The fastest, or the largest that memory allowed.
    """

    ids: Ids
    kept: NDArray[np.intp]
    skipped: list[Skipped]
    blocks: FeatureBlocks
    specs: dict[Any, FeatureSpec]
    store: FeatureStore = field(repr=False)
    computed: int = 0
    canaries: int = 0
    remarks: tuple[str, ...] = ()
    seconds: float = 0.0
    loading_s: float = 0.0
    runtime: str = ""
    limit: str = ""
    batch_size: int = 0


def refuse_nothing(sources: Sequence[ImageSource], found: Extraction) -> Extraction:
    """Return an extraction; refuse one of which no image can be used.

    Raises
    ------
    TooManyBadImagesError
        Naming the images and the likely cause.
    """
    if len(sources) and not len(found.kept):
        raise nothing_left(sources, found.skipped)
    return found


class ExtractionCall:
    """One call of `FeatureExtractor.extract`.

    Parameters
    ----------
    machine : Machine
        What computes missing features.
    card : BackboneCard
        Of the network.
    specs : mapping of BlockName to FeatureSpec
        What to extract.
    store : FeatureStore
        Holds the features.
    sources : sequence of image sources
    names : sequence of str
        Names of the sources, for messages.
    strict : bool
        Whether an unreadable image is an error.
    callback : callable, optional
        Called with `Progress` events.
    remarks : sequence of str
        Remarks from before the call.
    on_decode : callable, optional
        As for `FeatureExtractor.extract`.
    """

    def __init__(
        self,
        machine: Machine,
        card: BackboneCard,
        specs: Mapping[Any, FeatureSpec],
        store: FeatureStore,
        sources: Sequence[ImageSource],
        names: Sequence[str],
        *,
        strict: bool,
        callback: Callback | None = None,
        remarks: Sequence[str] = (),
        on_decode: OnDecode | None = None,
    ) -> None:
        self.machine = machine
        self.store = store
        self.specs = dict(specs)
        self.card = card
        self.sources, self.names = sources, names
        self.remarks: list[str] = []
        self.strict = strict
        self.computed = self.canaries = 0
        self.loading_s = 0.0
        self.runtime = self.limit = ""
        self.batch_size = 0
        self._callback = self._listen if callback is not None else None
        self._listener = callback
        self._on_decode = on_decode
        self._last = Progress(0, len(sources))
        device = machine.resolved_device
        self._environment = environment(resolve_runtime(machine.runtime, device), device)
        for remark in remarks:
            self._say(remark)

    def compute(self, ids: Ids | None = None) -> None:
        """Run the pipeline over all sources."""
        specs = list(self.specs.values())
        self._explain_misses(specs)
        suspects = canary.unproven(self.store, specs, self._environment)
        run, forward = self._run(specs, self.sources, self.names, strict=self.strict, ids=ids)
        self.ids, self.unread, self.bad = run.ids, run.unread, run.bad
        self.computed, self.loading_s, self.runtime = run.computed, forward.loading_s, forward.name
        self._remark_on_pictures(run)
        if self.strict and run.bad:  # features that are not finite are known only after the forward pass
            index = next(index for index in range(len(self.ids)) if self._reason(index))
            raise ImageError(self.names[index], self._reason(index))
        canary.vouch(
            self.store, [spec for spec in specs if run.computed and spec not in suspects], self._environment
        )
        self._check_canaries(suspects, forward)

    def extraction(self, began: float) -> Extraction:
        """The result, with blocks that are read at first use."""
        kept = np.array([index for index in range(len(self.ids)) if not self._reason(index)], np.intp)
        skipped = [
            Skipped(self.names[index], self._reason(index))
            for index in range(len(self.ids))
            if self._reason(index)
        ]
        self.kept = kept
        readers = {name: self._reader(spec) for name, spec in self.specs.items()}
        widths = {name: self.card.width(spec) for name, spec in self.specs.items() if spec.pool != "none"}
        return Extraction(
            ids=self.ids[kept],
            kept=kept,
            skipped=skipped,
            blocks=FeatureBlocks({}, len(kept), widths=widths, readers=readers),
            specs=self.specs,
            store=self.store,
            computed=self.computed,
            canaries=self.canaries,
            remarks=tuple(self.remarks),
            seconds=time.monotonic() - began,
            loading_s=self.loading_s,
            runtime=self.runtime if self.computed else "",
            limit=self.limit,
            batch_size=self.batch_size,
        )

    def _run(
        self,
        specs: Sequence[FeatureSpec],
        sources: Sequence[ImageSource],
        names: Sequence[str],
        *,
        strict: bool,
        ids: Ids | None = None,
    ) -> tuple[ExtractionRun, Forward]:
        machine = self.machine
        workers = n_threads(machine.n_jobs)
        engines, on_cpu = machine.engines(workers), machine.resolved_device.startswith("cpu")
        batch_size, streams = machine.batch_size, max(workers, len(engines)) if on_cpu else 2 * len(engines)
        n_pixels = math.prod(specs[0].input_size)
        if n_pixels > LARGE_INPUT and on_cpu:
            batch_size = 1 if batch_size == "auto" else batch_size
            streams = min(streams, max(1, MAX_INPUT_PIXELS // n_pixels))
        batch = BatchSize(batch_size, machine.resolved_device.partition(":")[0])
        forward = Forward(engines, specs[0].precision, batch)
        settings = ExtractionSettings(specs, machine.max_pixels, self._on_decode)
        decoder = CarefulDecoder(settings, self.store, isolate=machine.isolate, workers=workers)
        run = ExtractionRun(
            settings,
            self.store,
            forward,
            batch,
            n_threads=workers,
            streams=streams,
            n_readers=n_readers(sources),
            strict=strict,
            decode=decoder,
            callback=self._callback,
        )
        try:
            run(sources, names, ids)
        finally:
            decoder.close()
        self.limit, self.batch_size = run.limit, batch.value
        return run, forward

    def _reader(self, spec: FeatureSpec) -> Callable[[NDArray[np.intp]], NDArray[Any]]:
        """Return a function that reads the features of some kept images, given their positions."""

        def read(some: NDArray[np.intp]) -> NDArray[Any]:
            kept = self.kept[some]
            ids = self.ids[kept]
            if not len(ids):
                return np.empty((0, self.card.width(spec)), np.float32)
            try:
                rows = self.store.read(spec.key, ids)
            except KeyError:  # damaged on disk, or pruned by another process: compute again
                lost = kept[np.asarray(self.store.missing(spec.key, ids))].tolist()
                self._run(
                    [spec],
                    [self.sources[index] for index in lost],
                    [self.names[index] for index in lost],
                    strict=True,
                )
                rows = self.store.read(spec.key, ids)
            return rows.reshape(len(ids), -1)

        return read

    def _reason(self, index: int) -> str:
        return self.unread.get(index) or (self.bad.get(self.ids[index].tobytes(), "") if self.bad else "")

    def _explain_misses(self, specs: Sequence[FeatureSpec]) -> None:
        """Tell which fields of a new spec differ from the nearest one of the same network in the store."""
        own = {spec.key for spec in specs}
        new = [spec for spec in specs if self.store.row_shape(spec.key) is None]
        nearest = self.store.nearest(new[0]) if new else None
        if nearest is None or nearest[0].key in own or len(nearest[1]) > FEW_FIELDS:
            return
        if {"architecture", "weights"} <= set(nearest[1]):  # nobody expects features of another network
            return
        others = f" ({len(new) - 1} other blocks are new as well.)" if len(new) > 1 else ""
        self._say(explain_miss(new[0], nearest[1]) + others)

    def _remark_on_pictures(self, run: ExtractionRun) -> None:
        for remark, n_images in run.remarks.items():
            words, n_others = f"{run.remarked[remark]}: {remark}", n_images - 1
            self._say(f"{words} (and {count(n_others, 'other image')})" if n_others else words)
            warnings.warn(self.remarks[-1], ImageWarning, stacklevel=4)

    def _check_canaries(self, suspects: Sequence[FeatureSpec], forward: Forward) -> None:
        if not suspects or not len(self.ids):
            return
        present = np.logical_and.reduce([~self.store.missing(spec.key, self.ids) for spec in suspects])
        positions = np.flatnonzero(present).tolist()
        if not positions:
            return
        settings = ExtractionSettings(suspects, self.machine.max_pixels)
        decoder = CarefulDecoder(settings, self.store, isolate=self.machine.isolate, workers=1)
        try:
            found = canary.check(
                settings,
                decoder,
                self.store,
                forward,
                [self.sources[index] for index in positions],
                self.ids[positions],
                self._environment,
            )
        finally:
            decoder.close()
        self.canaries = found.canaries

    def _say(self, words: str) -> None:
        self.remarks.append(words)
        if self._callback is not None:
            self._callback(dataclasses.replace(self._last, message=words))

    def _listen(self, event: Progress) -> None:
        assert self._listener is not None
        self._last = dataclasses.replace(event, message="")
        self._listener(event)
