"""The forward pass of the pipeline: compiled at first use, sized by itself, checked for NaN and Inf."""

from __future__ import annotations

import copy
import hashlib
import itertools
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featx.backbones.memory import lack_of_memory
from featx.backbones.runtimes import Batch, Compiled, compile_stem, convert_stem
from featx.backbones.state import STATE
from featx.exceptions import BackboneError
from featx.extractor.stages import TORCH_THREADS
from featx.spec import FeatureSpec

if TYPE_CHECKING:
    from featx.backbones.network import Backbone, Stem

Outputs = list[NDArray[np.float32]]

TRIAL_S = 0.3
"""Seconds of forward passes that a batch size is measured by."""

WORTH = 1.03
"""A larger batch must be this much faster: it delays the first results and takes more memory."""

FIRST_BATCH = {"cpu": 2}
"""First batch size that is tried. On CPUs, the maps of small batches fit into the cache."""
FIRST_BATCH_ELSEWHERE = 128
"""Launching a pass takes tens of milliseconds for any number of images."""
MAX_BATCH = 512


@dataclass(frozen=True)
class Engine:
    """Compiles the stem of a network for some outputs.

    Parameters
    ----------
    open_backbone : callable
        Loads the network; called only if there is no converted model.
    runtime, device : str
        See `compile_stem`.
    n_threads : int
        CPU threads.
    model_cache : Path or None
        Folder of converted models.
    keep : bool
        Whether models that are converted now are kept there.
    graph : bytes, optional
        The converted network of a model file.
    copies : bool
        Whether the network is copied before it moves to the device: others have it, too.
    """

    open_backbone: Callable[[], Backbone]
    runtime: str
    device: str
    n_threads: int
    model_cache: Path | None
    keep: bool = True
    graph: bytes | None = None
    copies: bool = False

    def compiled(self, outputs: Sequence[FeatureSpec], precision: str) -> Compiled:
        """The stem with one output for each spec, from memory if it was used recently."""
        stem_fields = ("cut", "pool", "final_norm")
        stem = [tuple(getattr(spec, name) for name in stem_fields) for spec in outputs]
        first = outputs[0]
        key = repr((first.weights, first.input_size, first.mean, first.std, stem, precision,
                    self.runtime, self.device, self.n_threads,
                    hashlib.sha256(self.graph).hexdigest() if self.graph else ""))  # fmt: skip
        compiled: Compiled = STATE.network(key, lambda: self._compile(outputs, precision))
        return compiled

    def _compile(self, outputs: Sequence[FeatureSpec], precision: str) -> Compiled:
        try:
            return compile_stem(
                lambda: self._stem(outputs),
                outputs,
                runtime=self.runtime,
                device=self.device,
                precision=precision,
                n_threads=self.n_threads,
                model_cache=self.model_cache,
                keep=self.keep,
                graph=self.graph,
            )
        except ModuleNotFoundError as error:
            raise BackboneError(
                f"{error.name} is not installed, and this machine has no converted network of "
                f"{outputs[0].architecture} for these features. On a machine with torch, 'featx export MODEL "
                "--to featx' writes a model file with its network inside."
            ) from None

    def converted(self, outputs: Sequence[FeatureSpec]) -> bytes:
        """The converted network, for a model file.

        Raises
        ------
        BackboneError
            If OpenVINO cannot convert it.
        """
        return convert_stem(lambda: self._stem(outputs), outputs, model_cache=self.model_cache)

    def _stem(self, outputs: Sequence[FeatureSpec]) -> Stem:
        TORCH_THREADS.limit()
        stem = self.open_backbone().stem(outputs)
        return copy.deepcopy(stem) if self.copies else stem


class BatchSize:
    """Number of images in one forward pass: given, or found in the first seconds.

    The size is doubled as long as that is measurably faster. If memory runs out, it never grows beyond that
    again.

    Parameters
    ----------
    requested : int or 'auto'
        A fixed size, or find it.
    device : str
        Where the network runs.
    """

    def __init__(self, requested: int | str, device: str) -> None:
        self._lock = threading.Lock()
        self._found = requested != "auto"
        self._ceiling = MAX_BATCH
        self._speeds: dict[int, float] = {}
        self._trial = [0, 0.0]
        self.value = int(requested) if self._found else FIRST_BATCH.get(device, FIRST_BATCH_ELSEWHERE)

    def observe(self, size: int, seconds: float) -> None:
        """Learn from a batch of `size` that took `seconds`."""
        with self._lock:
            if self._found or size != self.value:
                return
            self._trial[0] += size
            self._trial[1] += seconds
            if self._trial[1] < TRIAL_S or self._trial[0] < 4 * size:
                return
            self._speeds[size] = self._trial[0] / self._trial[1]
            self._trial = [0, 0.0]
            before = self._speeds.get(size // 2, 0.0)
            if self._speeds[size] < before * WORTH:
                self.value = size // 2
            elif 2 * size <= self._ceiling:
                self.value = 2 * size
                return
            self._found = True

    def forbid(self, size: int) -> None:
        """Memory ran out at `size`: use at most half of it."""
        with self._lock:
            self._ceiling = max(1, min(self._ceiling, size // 2))
            if self.value > self._ceiling:
                self.value = self._ceiling
                self._found = True


class Forward:
    """Computes the features of batches; it handles a lack of memory and values that are not finite.

    Parameters
    ----------
    engines : sequence of Engine
        They compile the network, one for each device. Each thread that calls stays on one device; threads
        are dealt to the devices in turn.
    precision : str
        The specs' precision.
    batch_size : BatchSize
        Learns from times and from a lack of memory.
    """

    def __init__(self, engines: Sequence[Engine], precision: str, batch_size: BatchSize) -> None:
        self.loading_s = 0.0
        self.name = ""
        self._engines = itertools.cycle(engines)
        self._own = threading.local()
        self._compiled: dict[tuple[str, str], tuple[Sequence[FeatureSpec], Compiled]] = {}
        self._precision = precision
        self._batch_size = batch_size
        self._outputs: tuple[FeatureSpec, ...] = ()
        self._lock = threading.Lock()
        self._retry = threading.Lock()

    def __call__(
        self, batch: Batch, wanted: Sequence[FeatureSpec], names: Sequence[str]
    ) -> dict[FeatureSpec, NDArray[np.float32]]:
        """Features of each wanted output; those that cannot be computed stay NaN.

        Parameters
        ----------
        batch : array of shape (n, height, width, 3), uint8
            Prepared images.
        wanted : sequence of FeatureSpec
            Outputs that are missing for some image of the batch.
        names : sequence of str
            Names of the images, for errors.

        Raises
        ------
        BackboneError
            If memory does not suffice for a single image.
        """
        outputs = self._cover(wanted)
        compiled = self._open(outputs, self._precision)
        began = time.perf_counter()
        rows = self._run(compiled, batch, names)
        self._batch_size.observe(len(batch), time.perf_counter() - began)
        self._mend(rows, outputs, batch, names)
        return dict(zip(outputs, rows, strict=True))

    def _cover(self, wanted: Sequence[FeatureSpec]) -> tuple[FeatureSpec, ...]:
        """Outputs of the network in use; they are extended if a batch needs others."""
        with self._lock:
            if not set(wanted) <= set(self._outputs):
                self._outputs = tuple(sorted({*self._outputs, *wanted}, key=lambda spec: spec.to_json()))
            return self._outputs

    def _engine(self) -> Engine:
        """Return the engine of this thread."""
        if not hasattr(self._own, "engine"):
            with self._lock:
                self._own.engine = next(self._engines)
        engine: Engine = self._own.engine
        return engine

    def _open(self, outputs: Sequence[FeatureSpec], precision: str) -> Compiled:
        began, engine = time.perf_counter(), self._engine()
        known, compiled = self._compiled.get((engine.device, precision), ((), None))
        if compiled is None or known != outputs:  # the process keeps few networks
            compiled = engine.compiled(outputs, precision)
            self._compiled[engine.device, precision] = outputs, compiled
        self.loading_s = max(self.loading_s, time.perf_counter() - began)
        self.name = compiled.name
        return compiled

    def _run(self, compiled: Compiled, batch: Batch, names: Sequence[str]) -> Outputs:
        """Features of a batch, which is halved as often as memory requires."""
        rows = self._try(compiled, batch)
        if not isinstance(rows, str):
            return rows
        done: list[Outputs] = []
        todo = [slice(0, len(batch))]
        with self._retry:  # one at a time: others may use the missing memory
            while todo:
                part = todo.pop()
                rows = self._try(compiled, batch[part])
                if not isinstance(rows, str):
                    done.append(rows)
                    continue
                size = part.stop - part.start
                if size == 1:
                    height, width = batch.shape[1:3]
                    raise BackboneError(
                        f"{names[part.start]}: {rows} for this one image at {height}×{width} "
                        "pixels; choose a smaller backbone or input_size, or free memory. "
                        "Finished features are stored."
                    )
                self._batch_size.forbid(size)
                middle = part.start + size // 2
                todo += [slice(middle, part.stop), slice(part.start, middle)]
        return [np.concatenate(rows) for rows in zip(*done, strict=True)]

    def _try(self, compiled: Compiled, batch: Batch) -> Outputs | str:
        """Features, or words for the lack of memory; the memory of the attempt is then free again."""
        try:
            return compiled(batch)
        except (MemoryError, RuntimeError) as error:
            lack = lack_of_memory(error)
            if lack is None:
                raise
        _free_device_memory()
        return lack

    def _mend(
        self, rows: Outputs, outputs: Sequence[FeatureSpec], batch: Batch, names: Sequence[str]
    ) -> None:
        """Compute images whose features are not finite again in fp32, in place."""
        bad = np.flatnonzero(~finite_rows(rows))
        if not len(bad) or self._precision == "fp32":
            return
        again = self._run(self._open(outputs, "fp32"), batch[bad], [names[index] for index in bad.tolist()])
        for part, better in zip(rows, again, strict=True):
            part[bad] = better


def finite_rows(rows: Outputs) -> NDArray[np.bool_]:
    """Mask of the images, shape (n,), whose features are finite in every output."""
    finite: NDArray[np.bool_] = np.logical_and.reduce(
        [np.isfinite(part).reshape(len(part), -1).all(axis=1) for part in rows]
    )
    return finite


def _free_device_memory() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
