"""What a fine-tuning fit reads: images or given features, the network's card, and the feature store."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.backbones import BackboneCard, is_model_file, load_backbone
from featx.exceptions import DataError, UsageError
from featx.extractor import FeatureExtractor, Progress
from featx.finetune.features import (
    MEMORY,
    ArrayFeatures,
    FeatureSource,
    StoredFeatures,
    feature_bytes,
)
from featx.finetune.phases import Phase
from featx.finetune.stream import StemFunction, StreamedFeatures
from featx.images import DecodePolicy, ImageSet, choose_range, image_digest, load_images
from featx.spec import LAST, FeatureSpec
from featx.splits import image_groups
from featx.stores import open_store
from featx.stores.base import FeatureStore, Ids, as_ids

if TYPE_CHECKING:
    from featx.backbones.network import Backbone

DISK_LIMIT = 20_000_000_000
"""Bytes on the disk that unpooled features may need, by default; images are streamed above it."""
FREE_SHARE = 0.5
"""Largest share of the free disk space that they may need."""


@dataclass(frozen=True)
class FineTunePlan:
    """Where the features for fine-tuning come from, and how much disk space they need.

    Parameters
    ----------
    cut : str or None
        Layer whose features are stored; None trains the whole network.
    shape : tuple of int
        Shape of the features of one image.
    bytes_per_image : int
        Their size on the disk.
    images, views : int
        Number of images, and of augmented views of each.
    disk_bytes : int
        ``images * (1 + views) * bytes_per_image``.
    streams : bool
        Whether images are decoded (and the frozen layers run) in each epoch instead.
    reason : str
        The plan in words.
    """

    cut: str | None
    shape: tuple[int, ...]
    bytes_per_image: int
    images: int
    views: int
    disk_bytes: int
    streams: bool
    reason: str


@dataclass(frozen=True)
class SourceSettings:
    """How features are made; see `FineTuner` for the parameters."""

    views: int = 0
    view_policy: str = "light"
    disk_limit: int = DISK_LIMIT
    memory: int = MEMORY
    seed: int = 0


@dataclass(frozen=True)
class FineTuneInputs:
    """Images or features of one fit.

    Parameters
    ----------
    params : dict
        Parameters of the extractor, without cut and pooling.
    store : FeatureStore
    card : BackboneCard
        The network before fine-tuning.
    settings : SourceSettings
    images : ImageSet or None
        None if features were given, or if only the network is described.
    ids : ndarray of shape (n, 32), uint8
        Digests of the images.
    given : FeatureSource or None
        Features that were given instead of images.
    groups : ndarray of shape (n,), optional
    """

    params: dict[str, Any]
    store: FeatureStore
    card: BackboneCard
    settings: SourceSettings
    images: ImageSet | None
    ids: Ids
    given: FeatureSource | None
    groups: NDArray[Any] | None

    @classmethod
    def of(
        cls,
        extractor: FeatureExtractor,
        X: Any,
        groups: ArrayLike | None,
        settings: SourceSettings,
        *,
        resize: str | None = None,
        callback: Callable[[Progress], None] | None = None,
    ) -> FineTuneInputs:
        """Open the store and the card, and compute the digests of the images (X is None for none)."""
        resize = resize or extractor.resize  # type: ignore[assignment]
        store = open_store(extractor.store)
        params = extractor.get_params(deep=False) | {
            "resize": resize if isinstance(resize, str) else resize[0],  # type: ignore[index]
            "store": store,
            "callback": callback or extractor.callback,
            "view": 0,
            "view_policy": "none",
        }
        card = FeatureExtractor(**(params | {"cut": None, "pool": "avg"})).fit().card_
        given = None if X is None else as_features(X)
        images = None if X is None or given is not None else as_images(X)
        named = None if groups is None else np.asarray(groups)
        ids = np.empty((0, 32), np.uint8)
        if images is not None:
            if params["pixel_range"] == "auto":
                policy = DecodePolicy(max_pixels=params["max_pixels"], bands=params["bands"])
                params["pixel_range"] = choose_range(images.sources, policy, isolate=params["isolate"])
            ids = as_ids(image_digest(source) for source in images.sources)
            named = image_groups(ids, images.groups if named is None else named)
        return cls(params, store, card, settings, images, ids, given, named)

    def cut(self, unfreeze: int | str) -> str | None:
        """Name of the layer below what is unfrozen; None for the whole network."""
        taps = self.card.taps[:-1]
        if unfreeze == "all":
            return None
        if isinstance(unfreeze, str) and not unfreeze.isdigit():
            name = self.card.resolve_cut(unfreeze)
            if name == LAST:
                raise UsageError("only the head lies above 'last'; unfreeze a stage or a tap.")
            return name
        stages = int(unfreeze)
        if stages < 1:
            raise UsageError(f"unfreeze is {unfreeze!r}; it is a number of stages from 1, a tap or 'all'.")
        return taps[-1 - stages].name if stages < len(taps) else None

    def choices(self, unfreeze: int | str, phases: Sequence[Phase]) -> tuple[int | str, ...]:
        """Values of `unfreeze` for tuning: the given one, and for images also one and two stages.

        Phases that mix images, or name what they train, fit the given one only.
        """
        bound = any(phase.mixes or isinstance(phase.trainable, tuple) for phase in phases)
        others = (1, 2) if self.images is not None and len(self.card.taps) > 3 and not bound else ()
        return tuple(dict.fromkeys((unfreeze, *others)))

    def spec(self, unfreeze: int | str) -> FeatureSpec:
        """Spec of the unaugmented features; of the images, where the whole network is trained."""
        specs = self._extractor(unfreeze).fit().specs_
        return next(iter(specs.values()))

    def plan(self, unfreeze: int | str) -> FineTunePlan | None:
        """Decide where the features come from; None if they were given."""
        if self.images is None:
            return None
        cut, spec, n, views = self.cut(unfreeze), self.spec(unfreeze), len(self.images), self.settings.views
        policy = self.settings.view_policy
        augmented = "unchanged" if policy == "none" else f"augmented afresh each epoch ({policy})"
        shape = self.shape(unfreeze)
        if cut is None:
            why = f"the whole network is trained, so images stream, {augmented}"
            return FineTunePlan(None, shape, 0, n, views, 0, True, why)
        one = feature_bytes(shape, np.dtype(spec.dtype).itemsize)
        total = one * n * (1 + views)
        limit, why = self._limit()
        words = f"{n} images × {1 + views} of {one / 1e3:.0f} kB at {cut}: {total / 1e9:.2f} GB"
        if total > limit:
            words += f", more than {why} ({limit / 1e9:.2f} GB), so images stream through the frozen layers, "
            return FineTunePlan(cut, shape, one, n, views, total, True, words + augmented)
        return FineTunePlan(cut, shape, one, n, views, total, False, f"{words}, kept in the store")

    def shape(self, unfreeze: int | str) -> tuple[int, ...]:
        """Shape of the features of one image; of the image, where the whole network is trained."""
        cut, spec = self.cut(unfreeze), self.spec(unfreeze)
        if cut is None:
            return (3, *spec.input_size)
        if spec.input_size == self.card.input_size:
            return self.card.tap(spec.cut).shape
        shape: tuple[int, ...] = self.backbone.stem([spec]).shapes[0]
        return shape

    def features(self, unfreeze: int | str) -> FeatureSource:
        """Features at the cut: given, stored (extracted first if need be) or streamed; empty without images.

        Raises
        ------
        DataError
            If features of another shape were given.
        """
        if self.given is not None:
            cut, wanted = self.cut(unfreeze), self.shape(unfreeze)
            if self.given.shape != wanted:
                raise DataError(
                    f"features have shape {self.given.shape}, and {self.card.name} at {cut or 'its input'} "
                    f"gives {wanted}; extract with cut={cut!r}, pool='none', or change unfreeze."
                )
            return self.given
        plan = self.plan(unfreeze)
        if plan is None or self.images is None:
            return ArrayFeatures(np.empty((0, 0), np.float32))
        settings = self.settings
        if plan.streams:
            spec = self.spec(unfreeze)
            return StreamedFeatures(
                self.images.sources,
                spec,
                stem=None if plan.cut is None else StemFunction(self.backbone, spec),
                view_policy=settings.view_policy,
                max_pixels=self.params["max_pixels"],
                isolate=self.params["isolate"],
            )
        views = {"view": [*range(settings.views + 1)], "view_policy": settings.view_policy}
        extractor = self._extractor(unfreeze, **(views if settings.views else {}))
        extraction = extractor.extract(self.images.sources, names=self.images.names)
        self.store.commit()
        keys = [spec.key for spec in extraction.specs.values()]
        return StoredFeatures(self.store, keys, extraction.ids, memory=settings.memory, seed=settings.seed)

    @cached_property
    def backbone(self) -> Backbone:
        """The network, loaded once."""
        given, params = self.params["backbone"], self.params
        if not isinstance(given, str):
            return given  # type: ignore[no-any-return]
        checkpoint = given if is_model_file(given) else params["checkpoint"]
        return load_backbone(
            self.card,
            checkpoint=checkpoint,
            allow_download=params["allow_download"],
            device=params["device"],
        )

    def digest(self, unfreeze: int | str) -> bytes:
        """SHA-256 of what the features depend on, for the names of checkpoints."""
        digest = hashlib.sha256(self.spec(unfreeze).to_json().encode())
        digest.update(f"{self.settings.views} {self.settings.view_policy}".encode())
        digest.update(self.ids.tobytes())
        return digest.digest()

    def _extractor(self, unfreeze: int | str, **changes: Any) -> FeatureExtractor:
        """Extractor of the features at the cut."""
        cut = self.cut(unfreeze)
        own = {"cut": cut, "pool": "avg" if cut is None else "none", "final_norm": cut is None}
        return FeatureExtractor(**(self.params | own | changes))

    def _limit(self) -> tuple[int, str]:
        """Bytes that features may need, and the reason."""
        limit, why = self.settings.disk_limit, "disk_limit allows"
        path = self.store.folder("features")
        if path is None:
            return limit, why
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        free = int(shutil.disk_usage(existing).free * FREE_SHARE)
        return (free, "half of the free disk") if free < limit else (limit, why)


def as_features(X: Any) -> FeatureSource | None:
    """Return X if it is a `FeatureSource` or an array of floats of three axes or more, else None."""
    if hasattr(X, "read") and hasattr(X, "shape"):
        return X  # type: ignore[no-any-return]
    if isinstance(X, np.ndarray) and X.dtype.kind == "f" and X.ndim >= 3:
        return ArrayFeatures(X)
    return None


def image_reporter(
    callback: Callable[[Progress], None] | None, total: int, name: str
) -> Callable[[int, str], None] | None:
    """Return a function of images done and stage that reports progress to `callback`."""
    if callback is None:
        return None
    started, done = time.monotonic(), 0

    def report(images: int, stage: str) -> None:
        nonlocal done
        done += images
        rate = done / max(time.monotonic() - started, 1e-9)
        callback(
            Progress(done, total, images_per_s=rate, eta_s=(total - done) / rate, stage=f"{name}: {stage}")
        )

    return report


def as_images(X: Any) -> ImageSet:
    """Return X as an image set."""
    return X if isinstance(X, ImageSet) else load_images(X)
