"""FeatureExtractor, a scikit-learn transformer from image sources to features.

`fit` resolves the specs and loads no weights (except at the first use of a network with a cache, which must
learn the digest of the weights). `extract` reads what is stored and computes what is missing. If nothing is
missing, it imports neither torch nor timm nor OpenVINO.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted

from featx.backbones import BackboneCard, is_model_file, load_backbone, open_card
from featx.backbones.runtimes import resolve_runtime
from featx.exceptions import UsageError
from featx.extractor.extraction import Extraction, ExtractionCall, Machine, refuse_nothing
from featx.extractor.pipeline import Callback, OnDecode, spread
from featx.extractor.sources import as_sources, distinct_digests
from featx.extractor.specs import combine_specs, find_hardware, resolve_range, stored_precision
from featx.extractor.transformer import ImageTransformer
from featx.images import MAX_PIXELS, ImageSource, resolve_decoder
from featx.images.picture import name_sources
from featx.progress import shown_by
from featx.spec import DECODE_FIELDS, FeatureSpec
from featx.stores import converted_networks, open_store
from featx.stores.base import FeatureStore, Ids
from featx.stores.memory import MemoryStore

if TYPE_CHECKING:
    from featx.backbones.network import Backbone

DEFAULT_BACKBONE = "tf_efficientnet_lite0.in1k"

SPEED_PICTURES = 32
"""Images that `FeatureExtractor.plan` computes to measure the speed."""

SPEC_PARAMS = ("cut", "pool", "resize", "view", "view_policy", "input_size", "final_norm", "dtype")
"""Parameters that specs are made from, beside `DECODE_FIELDS` and the precision."""

WEIGHT_PARAMS = ("checkpoint", "pretrained", "seed", "allow_download")
"""Parameters that say which weights a network gets."""


@dataclass(frozen=True)
class Plan:
    """What an extraction would do.

    Attributes
    ----------
    total : int
        Distinct readable images.
    cached : int
        Images with all their features in the store.
    to_compute : int
        The others.
    missing : dict of str to int
        Number of images whose features are missing, for each block.
    unreadable : int
        Sources that cannot be read.
    images_per_s : float
        Measured on some of the missing images; 0 if there are none.
    seconds : float
        Estimated time, loading included.
    """

    total: int
    cached: int
    to_compute: int
    missing: dict[str, int]
    unreadable: int
    images_per_s: float
    seconds: float


class FeatureExtractor(ImageTransformer, BaseEstimator):
    """Features of a pretrained network for images, each computed once and stored.

    Parameters
    ----------
    backbone : str or Backbone, default "tf_efficientnet_lite0.in1k"
        Any timm name with its tag, a loaded network, or a saved model (``"pets.featx"``) whose network was
        fine-tuned.
    cut : None, str, int or list, default None
        Layer whose output is used: None for the whole network without its classifier, the name or number of
        a layer (a *tap*; ``featx taps NAME`` lists them), a list of them, or "all". Lists of cuts, pools,
        resizes and views give a block of features for each combination.
    pool : str or list, default "avg"
        How a feature map becomes a vector: avg, max, gem (generalised mean), avg+max, cls (class token),
        cls+avg, grid2 and grid4 (averages of the cells of a 2 x 2 and a 4 x 4 grid), or none. With several
        cuts, combinations that a cut does not allow are left out.
    resize : {"crop", "squash", "pad"} or list, default "crop"
        How images that are not square are resized.
    input_size : int or tuple of int, optional
        Side, or height and width, in pixels; by default as the weights were trained.
    final_norm : bool, default True
        Whether a transformer's final norm is applied to an intermediate cut.
    checkpoint : path, optional
        File or folder of weights instead of the pretrained ones.
    pretrained : bool, default True
        False makes random weights from `seed`.
    seed : int, default 0
        Seed of random weights.
    allow_download : bool, optional
        Whether missing weights are downloaded. Default: those of a timm name are, those of a network that a
        saved model names are not.
    store : path, FeatureStore, "memory" or None, default None
        Where features are stored; None is the default cache folder.
    runtime : str, default "auto"
        openvino, torch or torch-compile; auto is the fastest one that is installed.
    device : str, default "auto"
        cuda, mps, xpu or cpu; several of one kind ("cuda:0,cuda:1"), which share the images, or "all".
    precision : {"auto", "fp32", "bf16", "fp16"}, default "auto"
        Compute precision, chosen by `fit`. auto is the precision of cached features that differ in nothing
        else if there are any, otherwise the fastest one of the hardware.
    dtype : {"float16", "float32"}, default "float16"
        How features are stored.
    batch_size : int or "auto", default "auto"
        Images in one forward pass. Features do not depend on it, up to rounding.
    n_jobs : int, optional
        Number of threads that decode and, on a CPU, of parallel forward passes; default (and -1) all cores.
    decoder : str, default "auto"
        JPEG decoder (see `featx.images.DECODERS`).
    decode : {"exact", "fast"}, default "exact"
        With fast, the JPEG decoder shrinks very large photos while it decodes.
    background : tuple of int, default (255, 255, 255)
        RGB. Transparent pixels are blended with it.
    pixel_range : str, default "auto"
        How pixel values of images of more than 8 bits are scaled to 0 to 255: ``"low,high"``, ``"full"``,
        ``"minmax"`` (see `FeatureSpec`), or auto: from a sample of the images that `fit` gets.
    bands : str, default ""
        Bands that are red, green and blue, counted from 1, such as ``"3,2,1"``, or one that is grey.
    max_pixels : int, default 178956970
        Images of more pixels are treated as unreadable.
    view : int or list, default 0
        0 is the plain image, k the k-th deterministic augmentation.
    view_policy : str, default "none"
        Policy of the augmentations (views from 1).
    isolate : bool, default False
        Decode in other processes, so that a crash of the decoder does not end this one (slower).
    callback : callable, optional
        Called with `Progress` events.
    verbose : bool or "auto", default "auto"
        Whether bars show the progress where there is no `callback`; "auto" on a terminal and in a notebook.

    Attributes
    ----------
    card_ : BackboneCard
        Name, weights and layers of the network.
    specs_ : dict of BlockName to FeatureSpec
        Spec of each block.
    feature_names_in_ : array of str
        Name of the column, if `fit` was called with a data frame.

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
        allow_download: bool | None = None,
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
        pixel_range: str = "auto",
        bands: str = "",
        max_pixels: int = MAX_PIXELS,
        view: int | Sequence[int] = 0,
        view_policy: str = "none",
        isolate: bool = False,
        callback: Callback | None = None,
        verbose: bool | str = "auto",
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
        self.allow_download = allow_download
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
        self.pixel_range = pixel_range
        self.bands = bands
        self.max_pixels = max_pixels
        self.view = view
        self.view_policy = view_policy
        self.isolate = isolate
        self.callback = callback
        self.verbose = verbose

    @classmethod
    def from_specs(
        cls, specs: Mapping[Any, FeatureSpec], card: BackboneCard, **params: Any
    ) -> FeatureExtractor:
        """Make a fitted extractor of exactly these blocks (a saved model needs them).

        Parameters
        ----------
        specs : mapping of BlockName to FeatureSpec
            As `specs_` of another extractor, or some of it. They agree in network, input size and precision.
        card : BackboneCard
            Of their network. The weights are checked against it when they are loaded.
        **params
            Parameters that do not change features: store, runtime, device, batch_size, n_jobs, checkpoint,
            ...
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
        """Resolve the specs. No image goes through a network.

        Parameters
        ----------
        X : image sources, optional
            Used only if ``precision="auto"`` and features of another precision are stored.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        UnknownModelError, WeightsNotFoundError, UnknownTapError, UsageError
            If the network is not available or a parameter is not valid.
        """
        _check_numbers(self.batch_size, self.n_jobs)
        if hasattr(X, "columns"):
            self.feature_names_in_ = np.asarray(X.columns, dtype=object)
        self.card_ = self._open_card()
        self._remarks: list[str] = []
        self.specs_ = self._resolve_specs(() if X is None else as_sources(X))
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Return the features of images, blocks side by side in the order of `specs_`.

        Parameters
        ----------
        X : list, iterator, array, tensor, data frame, dataset, folder, manifest or pattern of images
            As for `featx.images.load_images`.

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
        on_decode: OnDecode | None = None,
    ) -> Extraction:
        """Compute the features that are not in the store, and return access to all.

        An extractor that is not fitted is first fitted on the sources.

        Parameters
        ----------
        sources : as for `transform`
        on_error : {"raise", "skip"}
            What to do with an image that cannot be read. Features that are ready are stored in either case.
        names : sequence of str, optional
            Names of the images, for messages.
        store : FeatureStore, optional
            Used for this call instead of the extractor's own (e.g. a `MemoryStore` in a service).
        ids : array of shape (n, 32), uint8, optional
            Digests of the sources, if they are known. Images with all their features are then not read.
        on_decode : callable, optional
            Called with each image that is decoded in this process, as `Picture`, and its pixels by
            `DecodePolicy`; in the threads that decode.

        Raises
        ------
        ImageError
            For an unreadable image, if `on_error` is "raise".
        TooManyBadImagesError
            If no image can be used.
        StoreError
            If features cannot be stored.
        """
        if on_error not in ("raise", "skip"):
            raise UsageError(f"on_error {on_error!r} is not known; choose raise or skip.")
        began = time.monotonic()
        sources = as_sources(sources)
        names = list(names) if names is not None else name_sources(sources)
        if not hasattr(self, "specs_"):
            self.fit(sources)
        call = self._call(
            store or self.store_,
            sources,
            names,
            strict=on_error == "raise",
            callback=shown_by(self.callback, self.verbose),
            on_decode=on_decode,
        )
        call.compute(ids)
        return refuse_nothing(sources, call.extraction(began))

    def plan(self, sources: Any) -> Plan:
        """Return what `extract` would compute and how long that takes here; nothing is stored.

        Parameters
        ----------
        sources : as for `transform`
        """
        sources = as_sources(sources)
        if not hasattr(self, "specs_"):
            self.fit(sources)
        return _plan(self.specs_, self.store_, sources, self._call)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Return the names of `transform`'s columns, ``cut:pool:resize:number``.

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

    def __sklearn_clone__(self) -> FeatureExtractor:
        """Return an unfitted copy that shares the store, the network and the callback."""
        params = self.get_params(deep=False)
        shared = {name: params.pop(name) for name in ("store", "backbone", "callback")}
        copied = {name: clone(value, safe=False) for name, value in params.items()}
        other = type(self)(**copied, **shared)
        if hasattr(self, "_sklearn_output_config"):
            other._sklearn_output_config = dict(self._sklearn_output_config)
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_opened"}

    # --- what the parameters mean ---

    @property
    def store_(self) -> FeatureStore:
        """The store that the parameter `store` names, opened once."""
        opened: tuple[Any, FeatureStore] | None = getattr(self, "_opened", None)
        requested = (self.store, os.environ.get("FEATX_CACHE")) if self.store is None else self.store
        if opened is None or (opened[0] is not requested and opened[0] != requested):
            opened = self._opened = (requested, open_store(self.store))
        return opened[1]

    def _open_card(self) -> BackboneCard:
        if not isinstance(self.backbone, str):
            return self.backbone.card
        return open_card(self.backbone, **self._weights, store=self.store_)

    def _open_backbone(self) -> Backbone:
        if not isinstance(self.backbone, str):
            return self.backbone
        own = {"checkpoint": self.backbone} if is_model_file(self.backbone) else {}
        return load_backbone(self.card_, **{**self._weights, **own}, device="cpu")

    @property
    def _weights(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in WEIGHT_PARAMS}

    def _resolve_specs(self, sources: Sequence[ImageSource]) -> dict[Any, FeatureSpec]:
        device, precision = self._hardware()
        resolve_runtime(self.runtime, device)  # refuse what cannot be used before anything is read
        self._range = resolve_range(self, sources, self._remarks)
        specs = self._combine(precision)
        fixed = self.precision != "auto"
        stored = precision if fixed else stored_precision(self.store_, specs.values(), precision, sources)
        if stored == precision:
            return specs
        self._remarks.append(
            f"precision {stored} is taken from the cached features; this device would compute in {precision} "
            f"(precision={precision!r} computes them again)."
        )
        return self._combine(stored)

    def _hardware(self) -> tuple[str, str]:
        return find_hardware(self.store_, device=self.device, runtime=self.runtime, precision=self.precision)

    def _combine(self, precision: str) -> dict[Any, FeatureSpec]:
        fields = {name: getattr(self, name) for name in (*SPEC_PARAMS, *DECODE_FIELDS)}
        fields |= {
            "decoder": resolve_decoder(self.decoder),
            "pixel_range": self._range,
            "precision": precision,
        }
        return dict(combine_specs(self.card_, **fields))

    def _call(
        self,
        store: FeatureStore,
        sources: Sequence[ImageSource],
        names: Sequence[str],
        *,
        strict: bool = False,
        callback: Callback | None = None,
        on_decode: OnDecode | None = None,
    ) -> ExtractionCall:
        models, keep = converted_networks(store, self.store_)
        machine = Machine(
            open_backbone=self._open_backbone,
            runtime=self.runtime, device=self.device, resolved_device=self._hardware()[0],
            batch_size=self.batch_size, n_jobs=self.n_jobs, max_pixels=self.max_pixels, isolate=self.isolate,
            models=models, keep=keep,
        )  # fmt: skip
        return ExtractionCall(
            machine, self.card_, self.specs_, store, sources, names,
            strict=strict, callback=callback, remarks=self._remarks, on_decode=on_decode,
        )  # fmt: skip


def _plan(
    specs: Mapping[Any, FeatureSpec],
    store: FeatureStore,
    sources: Sequence[ImageSource],
    make_call: Callable[..., ExtractionCall],
) -> Plan:
    """See `FeatureExtractor.plan`."""

    def compute(some: Sequence[ImageSource]) -> Extraction:
        began = time.monotonic()
        call = make_call(MemoryStore(), some, name_sources(some))
        call.compute()
        return call.extraction(began)

    ids, positions, unreadable = distinct_digests(sources)
    missing = {name: np.asarray(store.missing(spec.key, ids)) for name, spec in specs.items()}
    lacking = np.flatnonzero(np.logical_or.reduce(list(missing.values()))) if len(ids) else np.array([], int)
    speed = seconds = 0.0
    if len(lacking):
        trial = [sources[positions[lacking[index]]] for index in spread(len(lacking), SPEED_PICTURES)]
        first, rest = compute(trial[:1]), compute(trial)
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


def _check_numbers(batch_size: Any, n_jobs: Any) -> None:
    """Refuse numbers that no call could use, before any work."""
    if batch_size != "auto" and not (_is_int(batch_size) and int(batch_size) >= 1):
        raise UsageError(f"batch_size {batch_size!r} is neither a positive number nor 'auto'.")
    if n_jobs is not None and not (_is_int(n_jobs) and n_jobs != 0):
        raise UsageError(f"n_jobs {n_jobs!r} is neither a number of threads, nor -1 or None for all.")


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
