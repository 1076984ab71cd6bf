"""Features of images without a store: what a service computes for each request."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.runtimes import Compiled
from featx.classifier.model import ImageModel
from featx.exceptions import ImageError
from featx.extractor.fixed import SpecExtractor
from featx.extractor.forward import Engine, finite_rows
from featx.extractor.pipeline import ExtractionSettings
from featx.extractor.stages import TORCH_THREADS
from featx.images import MAX_PIXELS, ImageSource, Picture, read_picture
from featx.selection.augmentation import view_name
from featx.stores.base import as_stored
from featx.threads import n_threads

BATCH = 4
"""Images that a thread decodes and computes at a time."""


class DirectFeatures:
    """Computes the features that a model predicts from, as a store would give them back.

    Parameters
    ----------
    model : ImageModel
        The model.
    machine : mapping
        Parameters of `FeatureExtractor` that do not change features.
    kept : bool
        Whether converted networks are read from disk and kept there.
    precision : str, optional
        Another compute precision than that of the model.
    """

    def __init__(
        self,
        model: ImageModel,
        machine: Mapping[str, Any],
        *,
        kept: bool = True,
        precision: str | None = None,
    ) -> None:
        self._model = model
        self._n_threads = n_threads(machine.get("n_jobs"))
        limit = machine.get("max_pixels", MAX_PIXELS)
        extractors = model.networks(machine).extractors
        self._networks = [
            _Network(one, limit, self._n_threads, kept=kept, precision=precision)
            for one in extractors
            if isinstance(one, SpecExtractor)
        ]

    def __call__(self, sources: Sequence[ImageSource], names: Sequence[str]) -> NDArray[np.float32]:
        """Features of the used blocks side by side, shape (n, n_features).

        Parameters
        ----------
        sources : sequence of image sources
            At least one.
        names : sequence of str
            Names of the images, for messages.

        Raises
        ------
        ImageError
            If an image cannot be read.
        """
        chunks = [slice(start, start + BATCH) for start in range(0, len(sources), BATCH)]

        def compute(chunk: slice) -> NDArray[np.float32]:
            TORCH_THREADS.limit()
            return self._chunk(sources[chunk], names[chunk])

        with TORCH_THREADS.in_use():
            if len(chunks) == 1:
                return self._chunk(sources, names)
            with ThreadPoolExecutor(min(self._n_threads, len(chunks))) as pool:
                return np.concatenate(list(pool.map(compute, chunks)))

    def convert(self) -> dict[str, bytes]:
        """Return the converted networks by the digests of their weights, for a model file.

        Raises
        ------
        BackboneError
            If OpenVINO cannot convert one.
        """
        return {network.weights: network.convert() for network in self._networks}

    def _chunk(self, sources: Sequence[ImageSource], names: Sequence[str]) -> NDArray[np.float32]:
        pictures = [read_picture(source, name=name) for source, name in zip(sources, names, strict=True)]
        blocks: dict[Any, NDArray[np.float32]] = {}
        for network in self._networks:
            blocks |= network(pictures)
        augmentation, used = self._model.augmentation, self._model.used_blocks
        if self._model.network is None and augmentation.averages:
            views = range(1, augmentation.views + 1)
            for name in used:
                every = [blocks[name], *(blocks[view_name(name, view)] for view in views)]
                blocks[name] = np.asarray(np.mean(every, axis=0, dtype=np.float32))
        return np.concatenate([blocks[name] for name in used], axis=1)


class _Network:
    """One network of a model."""

    def __init__(
        self,
        extractor: SpecExtractor,
        max_pixels: int,
        workers: int,
        *,
        kept: bool,
        precision: str | None,
    ) -> None:
        self._names, specs = list(extractor.specs_), list(extractor.specs_.values())
        self.weights = extractor.card_.weights
        self._settings = ExtractionSettings(specs, max_pixels)
        self._every = np.ones(len(specs), bool)
        self._extractor, self._workers, self._kept = extractor, workers, kept
        self._precision = precision or self._settings.specs[0].precision
        self._compiled: Compiled | None = None

    def __call__(self, pictures: Iterable[Picture]) -> dict[Any, NDArray[np.float32]]:
        """Features of each block."""
        settings = self._settings
        if self._compiled is None:
            self._compiled = self._engine().compiled(settings.outputs, self._precision)
        inputs = [one for picture in pictures for one in settings.prepare(picture, self._every)]
        found = self._compiled(np.stack([one.pixels for one in inputs]))
        finite = finite_rows(found)
        if not finite.all():
            raise ImageError(inputs[int(np.flatnonzero(~finite)[0])].name, "the network gives NaN or Inf")
        blocks = {}
        for number, (name, spec) in enumerate(zip(self._names, settings.specs, strict=True)):
            own = np.array([one.wanted[number] for one in inputs])
            rows = as_stored(found[settings.output_of[number]][own], spec.dtype)
            blocks[name] = np.stack(rows).astype(np.float32).reshape(len(rows), -1)
        return blocks

    def convert(self) -> bytes:
        """The converted network."""
        return self._engine().converted(self._settings.outputs)

    def _engine(self) -> Engine:
        machine = self._extractor.machine(self._extractor.store_)
        changed = {"keep": True} if self._kept else {"models": None}
        return dataclasses.replace(machine, **changed).engines(self._workers)[0]
