"""SpecExtractor: exactly the features that a saved model needs, without scikit-learn."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featx.backbones import BackboneCard, is_model_file, load_backbone
from featx.extractor.extraction import Extraction, ExtractionCall, Machine, refuse_nothing
from featx.extractor.pipeline import Callback
from featx.extractor.specs import find_hardware
from featx.images import MAX_PIXELS, ImageSource
from featx.images.picture import name_sources
from featx.spec import FeatureSpec
from featx.stores import converted_networks, open_store
from featx.stores.base import FeatureStore, Ids

if TYPE_CHECKING:
    from featx.backbones.network import Backbone


class SpecExtractor:
    """Features of one network, by their specs.

    Parameters
    ----------
    specs : mapping of BlockName to FeatureSpec
        What to extract. They agree in network, input size and precision.
    card : BackboneCard
        Of the network. The weights are checked against it when they are loaded.
    backbone : str or Backbone, optional
        What is loaded, if it is not the network that the card names.
    graph : bytes, optional
        The converted network of a model file (see `featx.backbones.runtimes`).
    checkpoint, allow_download, store, runtime, device, batch_size, n_jobs, max_pixels, isolate, callback
        As for `FeatureExtractor`.

    Attributes
    ----------
    specs_, card_
        As given.
    store_ : FeatureStore
        The store that the parameter `store` names.
    """

    def __init__(
        self,
        specs: Mapping[Any, FeatureSpec],
        card: BackboneCard,
        *,
        backbone: str | Backbone | None = None,
        graph: bytes | None = None,
        checkpoint: Any = None,
        allow_download: bool | None = None,
        store: Any = None,
        runtime: str = "auto",
        device: str = "auto",
        batch_size: int | str = "auto",
        n_jobs: int | None = None,
        max_pixels: int = MAX_PIXELS,
        isolate: bool = False,
        callback: Callback | None = None,
    ) -> None:
        self.specs_, self.card_ = dict(specs), card
        self.backbone = card.name if backbone is None else backbone
        self.graph = graph
        self.store_ = open_store(store)
        self._weights = {"checkpoint": checkpoint, "allow_download": allow_download}
        self._runtime, self._device, self._batch_size = runtime, device, batch_size
        self._n_jobs, self._max_pixels, self._isolate = n_jobs, max_pixels, isolate
        self._callback = callback

    def machine(self, store: FeatureStore) -> Machine:
        """How missing features are computed, with the converted networks of a store."""
        precision = next(iter(self.specs_.values())).precision
        device, _ = find_hardware(
            self.store_, device=self._device, runtime=self._runtime, precision=precision
        )
        models, keep = converted_networks(store, self.store_)
        return Machine(
            open_backbone=self.open_backbone,
            runtime=self._runtime,
            device=self._device,
            resolved_device=device,
            batch_size=self._batch_size,
            n_jobs=self._n_jobs,
            max_pixels=self._max_pixels,
            isolate=self._isolate,
            models=models,
            keep=keep,
            graph=self.graph,
        )

    def extract(
        self,
        sources: Sequence[ImageSource],
        *,
        on_error: str = "raise",
        names: Sequence[str] | None = None,
        store: FeatureStore | None = None,
        ids: Ids | None = None,
    ) -> Extraction:
        """Compute the features that are not in the store, and return access to all.

        Parameters
        ----------
        sources : sequence of image sources
        on_error, names, store, ids
            As for `FeatureExtractor.extract`.
        """
        strict = on_error == "raise"
        return refuse_nothing(
            sources, self.extract_usable(sources, names=names, store=store, ids=ids, strict=strict)
        )

    def extract_usable(
        self,
        sources: Sequence[ImageSource],
        *,
        names: Sequence[str] | None = None,
        store: FeatureStore | None = None,
        ids: Ids | None = None,
        strict: bool = False,
    ) -> Extraction:
        """As `extract`, also where no image can be used; with `strict` the first of these is an error."""
        began = time.monotonic()
        names = list(names) if names is not None else name_sources(sources)
        used = store or self.store_
        call = ExtractionCall(
            self.machine(used), self.card_, self.specs_, used, sources, names,
            strict=strict, callback=self._callback,
        )  # fmt: skip
        call.compute(ids)
        return call.extraction(began)

    def open_backbone(self) -> Backbone:
        """Load the network."""
        if not isinstance(self.backbone, str):
            return self.backbone
        own = {"checkpoint": self.backbone} if is_model_file(self.backbone) else {}
        return load_backbone(self.card_, **{**self._weights, **own}, device="cpu")
