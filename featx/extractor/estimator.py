"""FeatureExtractor, a scikit-learn transformer from image sources to rows.

`fit` opens: it settles which recipes are meant and loads no weights (the first use of a network on a cache
excepted, which must learn the weights' digest). `extract` reads what is kept and computes what is missing;
when nothing is missing it imports neither torch nor timm nor OpenVINO.
"""

from __future__ import annotations

import dataclasses
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from featx.backbones import BackboneCard, is_model_file, load_backbone, open_card
from featx.backbones.runtimes import (
    accelerator_likely,
    accelerator_name,
    environment,
    resolve_device,
    resolve_precision,
    resolve_runtime,
)
from featx.exceptions import ImageError, ImageWarning, UsageError
from featx.extractor import canary
from featx.extractor.forward import BatchSize, Engine, Forward
from featx.extractor.isolation import CarefulDecoder
from featx.extractor.pipeline import Callback, ExtractionRun, ExtractionSettings, Progress, spread
from featx.features import FeatureBlocks
from featx.images import MAX_PIXELS, ImageSource, Skipped, load_images, read_picture, resolve_decoder
from featx.images.picture import name_sources
from featx.spec import DECODE_FIELDS, PRECISIONS, FeatureSpec
from featx.stores import open_store
from featx.stores.base import FeatureStore, Ids, as_ids, explain_miss
from featx.stores.memory import MemoryStore

if TYPE_CHECKING:
    from featx.backbones.network import Backbone

DEFAULT_BACKBONE = "tf_efficientnet_lite0.in1k"
ALL = "all"
MODELS = "models"
"""Folder of the store for converted networks."""
PROBE_PICTURES = 64
"""Pictures that are looked up to see whether a space of another precision holds them."""
SPEED_PICTURES = 32
"""Pictures that `FeatureExtractor.plan` computes to tell the speed here."""


FEW_FIELDS = 4
"""A space that differs in more fields is another matter, not a near miss to be explained."""


@dataclass(frozen=True)
class Extraction:
    """What `FeatureExtractor.extract` returns.

    Attributes
    ----------
    ids : array of shape (n_kept, 32), uint8
        Digests of the images that were kept.
    kept : array of shape (n_kept,), int
        Their positions in the sources.
    skipped : list of Skipped
        The others, with the reason.
    blocks : FeatureBlocks
        Rows of each representation, read from the store when first asked for.
    specs : dict of BlockName to FeatureSpec
        Spec of each block.
    store : FeatureStore
        Where the rows are.
    computed : int
        Images that went through the network.
    canaries : int
        Images computed again to see whether kept rows still hold.
    remarks : tuple of str
        What a user may want to know: a new space and the field that makes it one, pictures accepted with a
        remark, a precision that was adopted.
    seconds, loading_s : float
        Wall-clock time, and how much of it passed while the network was loaded or converted.
    runtime, limit : str
        What computed (empty if nothing was computed), and the stage that the others waited for.
    batch_size : int
        What was found best, or what memory allowed.
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


@dataclass(frozen=True)
class Plan:
    """What an extraction would do.

    Attributes
    ----------
    total : int
        Readable images, each counted once however often it occurs.
    cached : int
        Those with all their rows.
    to_compute : int
        The others.
    missing : dict of str to int
        Missing rows of each block.
    unreadable : int
        Sources that cannot be read.
    images_per_s : float
        Measured on a few of the missing images, 0 if there are none.
    seconds : float
        Estimate for the whole, loading included.
    """

    total: int
    cached: int
    to_compute: int
    missing: dict[str, int]
    unreadable: int
    images_per_s: float
    seconds: float


class FeatureExtractor(TransformerMixin, BaseEstimator):
    """Images to rows of a pretrained network, each computed once and kept.

    Parameters
    ----------
    backbone : str or Backbone, default "tf_efficientnet_lite0.in1k"
        Any timm name with its tag, a loaded network, or a saved model (``"pets.featx"``) whose network was
        fine-tuned.
    cut : None, str, int or list, default None
        None for the whole network without its classifier, a tap's name or number, a list of them, or "all".
        Lists of cuts, pools, resizes and views give a block for each combination, from one pass.
    pool : str or list, default "avg"
        How a layer's map becomes a row: avg, max, gem, avg+max, cls, cls+avg, grid2, grid4, none. With
        several cuts, combinations that a cut does not allow are left out.
    resize : {"crop", "squash", "pad"} or list, default "crop"
        What happens to pictures that are not square.
    input_size : int or tuple of int, optional
        Side, or height and width, in pixels; default as the weights were trained.
    final_norm : bool, default True
        Whether a transformer's final norm is applied to an intermediate cut.
    checkpoint : path, optional
        File or folder of weights instead of the pretrained ones.
    pretrained : bool, default True
        False takes random weights from `seed`.
    seed : int, default 0
        Of random weights.
    store : path, FeatureStore, "memory" or None, default None
        Where rows are kept; None is the cache folder.
    runtime : str, default "auto"
        openvino, torch or torch-compile; auto takes what is fastest here.
    device : str, default "auto"
        cuda, mps, xpu or cpu.
    precision : {"auto", "fp32", "bf16", "fp16"}, default "auto"
        Compute precision. auto first takes kept rows that differ in nothing else, then what the hardware is
        good at. `fit` settles it.
    dtype : {"float16", "float32"}, default "float16"
        How rows are kept.
    batch_size : int or "auto", default "auto"
        Images through the network at once. It moves no row beyond the stated tolerance.
    n_jobs : int, optional
        Threads that decode and, on a CPU, passes at a time; default all cores, -1 too.
    decoder : str, default "auto"
        JPEG decoder (see `featx.images.DECODERS`).
    decode : {"exact", "fast"}, default "exact"
        fast lets the JPEG decoder scale very large photos.
    background : tuple of int, default (255, 255, 255)
        RGB that transparent pixels are laid on.
    bit_depth : {"full", "minmax"}, default "full"
        How pictures of more than 8 bits are scaled.
    max_pixels : int
        Larger pictures are refused.
    view : int or list, default 0
        0 is the plain image, k the k-th deterministic augmentation.
    view_policy : str, default "none"
        Policy of the augmentations (views from 1).
    isolate : bool, default False
        Decode in processes of their own, which a crash of the decoder cannot take down with it (slower).
    callback : callable, optional
        Called with `Progress` events.

    Attributes
    ----------
    card_ : BackboneCard
        What is known of the network.
    specs_ : dict of BlockName to FeatureSpec
        Spec of each block.
    feature_names_in_ : array of str
        Name of the column, where `fit` was given a data frame.

    Examples
    --------
    >>> from PIL import Image
    >>> from featx import FeatureExtractor
    >>> images = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    >>> extractor = FeatureExtractor("test_resnet", pretrained=False, store="memory")
    >>> extractor.fit_transform(images).shape
    (2, 96)
    """

    def __init__(
        self,
        backbone: str | Backbone = DEFAULT_BACKBONE,
        *,
        cut: str | int | Sequence[str | int] | None = None,
        pool: str | Sequence[str] = "avg",
        resize: str | Sequence[str] = "crop",
        input_size: int | tuple[int, int] | None = None,
        final_norm: bool = True,
        checkpoint: str | os.PathLike[str] | None = None,
        pretrained: bool = True,
        seed: int = 0,
        store: str | os.PathLike[str] | FeatureStore | None = None,
        runtime: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        dtype: str = "float16",
        batch_size: int | str = "auto",
        n_jobs: int | None = None,
        decoder: str = "auto",
        decode: str = "exact",
        background: tuple[int, int, int] = (255, 255, 255),
        bit_depth: str = "full",
        max_pixels: int = MAX_PIXELS,
        view: int | Sequence[int] = 0,
        view_policy: str = "none",
        isolate: bool = False,
        callback: Callback | None = None,
    ) -> None:
        self.backbone = backbone
        self.cut = cut
        self.pool = pool
        self.resize = resize
        self.input_size = input_size
        self.final_norm = final_norm
        self.checkpoint = checkpoint
        self.pretrained = pretrained
        self.seed = seed
        self.store = store
        self.runtime = runtime
        self.device = device
        self.precision = precision
        self.dtype = dtype
        self.batch_size = batch_size
        self.n_jobs = n_jobs
        self.decoder = decoder
        self.decode = decode
        self.background = background
        self.bit_depth = bit_depth
        self.max_pixels = max_pixels
        self.view = view
        self.view_policy = view_policy
        self.isolate = isolate
        self.callback = callback

    @classmethod
    def from_specs(
        cls, specs: Mapping[Any, FeatureSpec], card: BackboneCard, **params: Any
    ) -> FeatureExtractor:
        """A fitted extractor of exactly these blocks (what a saved model asks for).

        Parameters
        ----------
        specs : mapping of BlockName to FeatureSpec
            As another extractor's `specs_`, or some of it. They share network, input size and precision.
        card : BackboneCard
            Of their network; the weights are verified against it when they are loaded.
        **params
            Parameters that move no row: store, runtime, device, batch_size, n_jobs, checkpoint, ...
        """
        first = next(iter(specs.values()))
        extractor = cls(
            params.pop("backbone", card.name),
            pretrained=not card.source.startswith("random:"),
            input_size=first.input_size,
            precision=first.precision,
            dtype=first.dtype,
            cut=list(dict.fromkeys(spec.cut for spec in specs.values())),
            pool=list(dict.fromkeys(spec.pool for spec in specs.values())),
            resize=list(dict.fromkeys(spec.resize for spec in specs.values())),
            view=list(dict.fromkeys(spec.view for spec in specs.values())),
            view_policy=next((spec.view_policy for spec in specs.values() if spec.view), "none"),
            **{name: getattr(first, name) for name in DECODE_FIELDS},
            **params,
        )
        extractor.card_ = card
        extractor.specs_ = dict(specs)
        extractor._remarks = []
        return extractor

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Settle the recipes. No image goes through a network.

        Parameters
        ----------
        X : image sources, optional
            Looked at only if ``precision="auto"`` and rows of another precision are kept.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        UnknownModelError, WeightsNotFoundError, UnknownTapError, UsageError
            If the network or a parameter is not to be had.
        """
        self._check()
        if hasattr(X, "columns"):
            self.feature_names_in_ = np.asarray(X.columns, dtype=object)
        self.card_ = self._open_card()
        self._remarks: list[str] = []
        self.specs_ = self._resolve_specs(() if X is None else as_sources(X))
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Rows of the images, blocks side by side in the order of `specs_`.

        Parameters
        ----------
        X : list of image sources, array of paths, uint8 array (n, H, W, 3), or a folder
            Paths, bytes, PIL images or uint8 arrays.

        Returns
        -------
        array of shape (n_images, n_features), float32

        Raises
        ------
        ImageError
            If an image cannot be read.
        """
        check_is_fitted(self, "specs_")
        blocks = self.extract(X).blocks
        return blocks.stack(list(self.specs_))

    def extract(
        self,
        sources: Any,
        *,
        on_error: str = "raise",
        names: Sequence[str] | None = None,
        store: FeatureStore | None = None,
        ids: Ids | None = None,
    ) -> Extraction:
        """See that the images' rows are in the store, and hand out access to them.

        Fits itself on the sources first, if it is not fitted.

        Parameters
        ----------
        sources : as for `transform`
        on_error : {"raise", "skip"}
            What to do with an image that cannot be read. Rows that are ready are kept in either case.
        names : sequence of str, optional
            What to call the images in messages.
        store : FeatureStore, optional
            Instead of the extractor's own, for this call (a service keeps no rows with a `MemoryStore`).
        ids : array of shape (n, 32), uint8, optional
            Digests of the sources, where these were read a moment ago: those with all their rows are not
            read again.

        Raises
        ------
        ImageError
            For an unreadable image, if `on_error` is "raise".
        StoreError
            If rows cannot be kept.
        """
        if on_error not in ("raise", "skip"):
            raise UsageError(f"on_error {on_error!r} is not known; choose raise or skip.")
        began = time.monotonic()
        sources = as_sources(sources)
        names = list(names) if names is not None else name_sources(sources)
        if not hasattr(self, "specs_"):
            self.fit(sources)
        rows = _Rows(
            self, store or self._store(), sources, names, strict=on_error == "raise", callback=self.callback
        )
        rows.compute(ids)
        return rows.extraction(began)

    def plan(self, sources: Any) -> Plan:
        """What `extract` would compute, and how long that takes here; keeps nothing.

        Parameters
        ----------
        sources : as for `transform`
        """
        sources = as_sources(sources)
        if not hasattr(self, "specs_"):
            self.fit(sources)
        store = self._store()
        ids, positions, unreadable = _digests(sources)
        missing = {name: np.asarray(store.missing(spec.key, ids)) for name, spec in self.specs_.items()}
        lacking = (
            np.flatnonzero(np.logical_or.reduce(list(missing.values()))) if len(ids) else np.array([], int)
        )
        speed = seconds = 0.0
        if len(lacking):
            trial = [sources[positions[lacking[index]]] for index in spread(len(lacking), SPEED_PICTURES)]
            first, rest = self._try_out(trial[:1]), self._try_out(trial)
            speed = rest.computed / max(rest.seconds, 1e-9)
            seconds = first.seconds + (len(lacking) / speed if speed else 0.0)
        return Plan(
            total=len(ids),
            cached=len(ids) - len(lacking),
            to_compute=len(lacking),
            missing={name: int(mask.sum()) for name, mask in missing.items()},
            unreadable=unreadable,
            images_per_s=speed,
            seconds=seconds,
        )

    def _try_out(self, sources: Sequence[ImageSource]) -> Extraction:
        """Compute rows for the clock alone."""
        began = time.monotonic()
        rows = _Rows(self, MemoryStore(), sources, name_sources(sources), strict=False, callback=None)
        rows.compute()
        return rows.extraction(began)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of `transform`'s columns, ``cut:pool:resize:number``.

        Parameters
        ----------
        input_features : ignored
            Images have no feature names.
        """
        check_is_fitted(self, "specs_")
        names = [
            f"{block}:{number}"
            for block, spec in self.specs_.items()
            for number in range(self.card_.width(spec))
        ]
        return np.asarray(names, dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "specs_")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.input_tags.three_d_array = True
        tags.requires_fit = True
        return tags

    def __sklearn_clone__(self) -> FeatureExtractor:
        """An unfitted copy that shares store and network: neither is a parameter to be copied."""
        params = self.get_params(deep=False)
        shared = {name: params.pop(name) for name in ("store", "backbone", "callback")}
        copied = {name: clone(value, safe=False) for name, value in params.items()}
        other = type(self)(**copied, **shared)
        if hasattr(self, "_sklearn_output_config"):
            other._sklearn_output_config = dict(self._sklearn_output_config)
        return other

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        state.pop("_opened", None)
        return state

    # --- settling what is meant ---

    def _check(self) -> None:
        """Refuse parameters that no call could use, before any work."""
        if self.batch_size != "auto" and not (_is_int(self.batch_size) and int(self.batch_size) >= 1):
            raise UsageError(f"batch_size {self.batch_size!r} is neither a positive number nor 'auto'.")
        if self.n_jobs is not None and not (_is_int(self.n_jobs) and self.n_jobs != 0):
            raise UsageError(
                f"n_jobs {self.n_jobs!r} is neither a number of threads, nor -1 or None for all."
            )

    def _store(self) -> FeatureStore:
        """The store that `store` names, opened once."""
        opened: tuple[Any, FeatureStore] | None = getattr(self, "_opened", None)
        wanted = (self.store, os.environ.get("FEATX_CACHE")) if self.store is None else self.store
        if opened is None or (opened[0] is not wanted and opened[0] != wanted):
            opened = self._opened = (wanted, open_store(self.store))
        return opened[1]

    def _open_card(self) -> BackboneCard:
        if not isinstance(self.backbone, str):
            return self.backbone.card
        return open_card(
            self.backbone,
            checkpoint=self.checkpoint,
            pretrained=self.pretrained,
            seed=self.seed,
            store=self._store(),
        )

    def _open_backbone(self) -> Backbone:
        if not isinstance(self.backbone, str):
            return self.backbone
        checkpoint = self.backbone if is_model_file(self.backbone) else self.checkpoint
        return load_backbone(
            self.card_, checkpoint=checkpoint, pretrained=self.pretrained, seed=self.seed, device="cpu"
        )

    def _resolve_specs(self, sources: Sequence[ImageSource]) -> dict[Any, FeatureSpec]:
        device, precision = self._hardware()
        resolve_runtime(self.runtime, device)  # refuses what cannot be used before anything is read
        specs = self._combinations(precision)
        if self.precision != "auto":
            return specs
        adopted = self._adopted_precision(list(specs.values()), precision, sources)
        if adopted == precision:
            return specs
        self._remarks.append(
            f"precision {adopted} is taken from the rows that are kept; this device would compute "
            f"{precision} (precision={precision!r} computes the rows anew)."
        )
        return self._combinations(adopted)

    def _hardware(self) -> tuple[str, str]:
        """Device and precision that are meant here; an accelerator is remembered: asking imports torch."""
        if not accelerator_likely(self.device):
            device = resolve_device(self.device, self.runtime)
            return device, resolve_precision(self.precision, device)
        store, place = self._store(), accelerator_name(self.device, self.runtime, self.precision)
        note = store.recall("hardware", place)
        if note is None:
            device = resolve_device(self.device, self.runtime)
            note = {"device": device, "precision": resolve_precision(self.precision, device)}
            if device != "cpu":
                store.remember("hardware", place, note)
        return str(note["device"]), str(note["precision"])

    def _combinations(self, precision: str) -> dict[Any, FeatureSpec]:
        """A spec for each combination of cut, pool, resize and view that the network allows."""
        card = self.card_
        cuts = [tap.name for tap in card.taps] if self.cut == ALL else _as_list(self.cut)
        views = _as_list(self.view)
        specs: dict[Any, FeatureSpec] = {}
        decoding = {name: getattr(self, name) for name in DECODE_FIELDS}
        decoding["decoder"] = resolve_decoder(self.decoder)
        for cut in cuts:
            for pool in _as_list(self.pool):
                if len(cuts) > 1 and pool not in card.pools(cut):
                    continue
                for resize in _as_list(self.resize):
                    for view in views:
                        spec = card.spec(
                            cut,
                            pool,
                            resize=resize,
                            input_size=self.input_size,
                            final_norm=self.final_norm,
                            **decoding,
                            view=view,
                            view_policy=self.view_policy if view else "none",
                            precision=precision,
                            dtype=self.dtype,
                        )
                        specs[spec.block] = spec
        for pool in _as_list(self.pool):
            if all(spec.pool != pool for spec in specs.values()):
                raise UsageError(
                    f"pool {pool!r} is possible at none of the cuts {', '.join(map(str, cuts))} of "
                    f"{card.name}."
                )
        return specs

    def _adopted_precision(
        self, specs: Sequence[FeatureSpec], precision: str, sources: Sequence[ImageSource]
    ) -> str:
        """The precision whose spaces hold at least half of the sources and more than the hardware's own."""
        store = self._store()
        kept = store.keys()
        rivals = [
            other
            for other in PRECISIONS
            if other != precision and all(spec.replace(precision=other).key in kept for spec in specs)
        ]
        if not rivals or not len(sources):
            return precision
        ids, _, _ = _digests([sources[index] for index in spread(len(sources), PROBE_PICTURES)])

        def held(name: str) -> int:
            spaces = [spec.replace(precision=name).key for spec in specs]
            return int(sum((~store.missing(key, ids)).sum() for key in spaces))

        best = max((precision, *rivals), key=held)
        return best if 2 * held(best) >= len(ids) * len(specs) else precision


class _Rows:
    """One call of `extract`: what it computed, and the rows that can be read again."""

    def __init__(
        self,
        extractor: FeatureExtractor,
        store: FeatureStore,
        sources: Sequence[ImageSource],
        names: Sequence[str],
        *,
        strict: bool,
        callback: Callback | None,
    ) -> None:
        self.store = store
        self.specs = dict(extractor.specs_)
        self.card = extractor.card_
        self.sources, self.names = sources, names
        self.remarks = list(extractor._remarks)
        self.strict = strict
        self.computed = self.canaries = 0
        self.loading_s = 0.0
        self.runtime = self.limit = ""
        self.batch_size = 0
        self._extractor = extractor
        self._callback = self._listen if callback is not None else None
        self._listener = callback
        self._last = Progress(0, len(sources))
        self._device, _ = extractor._hardware()
        self._environment = environment(resolve_runtime(extractor.runtime, self._device), self._device)

    def compute(self, ids: Ids | None = None) -> None:
        """Run the pipeline over all sources."""
        specs = list(self.specs.values())
        self._explain_misses(specs)
        suspects = canary.unproven(self.store, specs, self._environment)
        run, forward = self._run(specs, self.sources, self.names, strict=self.strict, ids=ids)
        self.ids, self.unread, self.bad = run.ids, run.unread, run.bad
        self.computed, self.loading_s, self.runtime = run.computed, forward.loading_s, forward.name
        self._remark_on_pictures(run)
        if self.strict and run.bad:  # rows that are not finite are known only after the forward pass
            index = next(index for index in range(len(self.ids)) if self._reason(index))
            raise ImageError(self.names[index], self._reason(index))
        canary.vouch(
            self.store, [spec for spec in specs if run.computed and spec not in suspects], self._environment
        )
        self._check_canaries(suspects, forward)

    def extraction(self, began: float) -> Extraction:
        """The result, with blocks that are read when they are asked for."""
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
        extractor = self._extractor
        n_threads = _n_threads(extractor.n_jobs)
        engine = Engine(
            extractor._open_backbone,
            extractor.runtime,
            extractor.device,
            n_threads,
            self.store.folder(MODELS) or extractor._store().folder(MODELS),
        )
        batch_size = BatchSize(extractor.batch_size, self._device)
        forward = Forward(engine, specs[0].precision, batch_size)
        settings = ExtractionSettings(specs, extractor.max_pixels)
        decoder = CarefulDecoder(settings, self.store, isolate=extractor.isolate, workers=n_threads)
        run = ExtractionRun(
            settings,
            self.store,
            forward,
            batch_size,
            n_threads=n_threads,
            streams=n_threads if self._device == "cpu" else 2,
            strict=strict,
            decode=decoder,
            callback=self._callback,
        )
        try:
            run(sources, names, ids)
        finally:
            decoder.close()
        self.limit, self.batch_size = run.limit, batch_size.value
        return run, forward

    def _reader(self, spec: FeatureSpec) -> Callable[[NDArray[np.intp]], NDArray[Any]]:
        """A function of positions among the kept that reads their rows from the store."""

        def read(some: NDArray[np.intp]) -> NDArray[Any]:
            kept = self.kept[some]
            ids = self.ids[kept]
            if not len(ids):
                return np.empty((0, self.card.width(spec)), np.float32)
            try:
                rows = self.store.read(spec.key, ids)
            except KeyError:  # damaged on disk and set aside, or pruned by another process: compute again
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
        """Say of a new space which field keeps it apart from the nearest one of another call."""
        own = {spec.key for spec in specs}
        new = [spec for spec in specs if self.store.row_shape(spec.key) is None]
        nearest = self.store.nearest(new[0]) if new else None
        if nearest is None or nearest[0].key in own or len(nearest[1]) > FEW_FIELDS:
            return
        others = f" ({len(new) - 1} other blocks are new as well.)" if len(new) > 1 else ""
        self._say(explain_miss(new[0], nearest[1]) + others)

    def _remark_on_pictures(self, run: ExtractionRun) -> None:
        for remark, count in run.remarks.items():
            words = f"{run.remarked[remark]}: {remark}"
            self._say(words if count == 1 else f"{words} (and {count - 1} other images)")
            warnings.warn(self.remarks[-1], ImageWarning, stacklevel=4)

    def _check_canaries(self, suspects: Sequence[FeatureSpec], forward: Forward) -> None:
        if not suspects or not len(self.ids):
            return
        present = np.logical_and.reduce([~self.store.missing(spec.key, self.ids) for spec in suspects])
        positions = np.flatnonzero(present).tolist()
        if not positions:
            return
        settings = ExtractionSettings(suspects, self._extractor.max_pixels)
        found = canary.check(
            settings,
            self.store,
            forward,
            [self.sources[index] for index in positions],
            self.ids[positions],
            self._environment,
        )
        self.canaries = found.canaries

    def _say(self, words: str) -> None:
        self.remarks.append(words)
        if self._callback is not None:
            self._callback(dataclasses.replace(self._last, message=words))

    def _listen(self, event: Progress) -> None:
        assert self._listener is not None
        self._last = dataclasses.replace(event, message="")
        self._listener(event)


def as_sources(X: Any) -> Sequence[ImageSource]:
    """A sequence of image sources from what scikit-learn's users pass as X.

    Parameters
    ----------
    X : list, array, series, data frame of one column, ImageSet, or path of a folder or manifest
        An array of shape (n, H, W, 3) or (n, H, W) is a batch of n pictures.

    Raises
    ------
    UsageError
        If it is none of these.
    """
    if hasattr(X, "sources"):
        return list(X.sources)
    if isinstance(X, str | os.PathLike):
        return list(load_images(X).sources)
    if hasattr(X, "columns"):
        if len(X.columns) != 1:
            raise UsageError(
                f"a data frame with columns {list(X.columns)} is no column of images; select one."
            )
        X = X.iloc[:, 0]
    if hasattr(X, "to_numpy"):
        X = X.to_numpy()
    if isinstance(X, np.ndarray):
        if X.dtype == object or X.dtype.kind in "US":
            if X.ndim > 1 and X.size != len(X):
                raise UsageError(f"an array of paths has shape (n,), not {X.shape}.")
            return list(X.reshape(-1).tolist())
        if X.ndim not in (3, 4) or (X.ndim == 3 and X.shape[2] in (3, 4)):
            raise UsageError(
                f"an array of shape {X.shape} is no batch of images; give (n, H, W, 3), or a list of arrays."
            )
        return list(X)
    if not isinstance(X, Iterable) or isinstance(X, bytes):
        raise UsageError(f"a {type(X).__name__} is no list of images; give a list of paths, bytes or arrays.")
    return list(X)


def _digests(sources: Sequence[ImageSource]) -> tuple[Ids, list[int], int]:
    """Distinct digests, the position of the first source of each, and how many could not be read."""
    from concurrent.futures import ThreadPoolExecutor

    def digest(source: ImageSource) -> bytes | None:
        try:
            return read_picture(source).digest
        except ImageError:
            return None

    first: dict[bytes, int] = {}
    unreadable = 0
    with ThreadPoolExecutor(4) as pool:
        for position, found in enumerate(pool.map(digest, sources)):
            if found is None:
                unreadable += 1
            else:
                first.setdefault(found, position)
    return as_ids(first), list(first.values()), unreadable


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | range | np.ndarray) else [value]


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _n_threads(n_jobs: int | None) -> int:
    if n_jobs is not None and n_jobs > 0:
        return int(n_jobs)
    cores = int(cpu_count())
    share = os.environ.get("OMP_NUM_THREADS", "")  # joblib's workers are told their share of the cores so
    cores = min(cores, int(share)) if share.isdecimal() and int(share) else cores
    return max(1, cores + 1 + (n_jobs or -1))


__all__ = ["Extraction", "FeatureExtractor", "Plan", "as_sources"]
