"""Choose the representations that are extracted for all images.

One forward pass computes all layers and poolings, so all of these are candidates. Another resizing needs
another pass. It is tried on a few hundred training images, then on more if it is significantly better than
the resizing of the pretrained weights. Only the best resizing is extracted for all images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from featx.advice import probe
from featx.backbones.card import NATIVE_RESIZES
from featx.evaluation import Metric
from featx.exceptions import ImageError
from featx.extractor import FeatureExtractor
from featx.features import FeatureBlocks
from featx.images import ImageSet, ImageSource, picture_size, read_digests, read_picture
from featx.search.screening import Screened, screen_representations, shortlist
from featx.spec import RESIZES, FeatureSpec
from featx.splits import divisible, stratified_sample

AUTO = "auto"

AUTO_POOLS = ("avg", "max", "gem", "cls", "cls+avg", "grid2", "grid4")
"""Poolings that ``pool="auto"`` tries wherever the layer allows them."""

AUTO_WIDTH = 8192
"""Largest width of a candidate. A 4x4 grid of a network's widest layer costs more than it improves."""

FIRST_IMAGES, SCREENED_IMAGES = 200, 400
"""Training images that another resizing is tried on first, and again if it was better by more than a standard
error of the paired difference."""

WHOLE_IMAGES = 5000
"""With more images, only shortlisted representations are extracted for all of them, to save disk space."""

SQUARE = 1.05
"""Longer over shorter side. If no image has a larger ratio, ``pad`` and ``squash`` are the same."""

CHOICE = 1
"""Version of the method that chooses a resizing. Choices of another version are not reused."""

Specs = dict[str, FeatureSpec]


def widest(params: Mapping[str, Any], machine: Mapping[str, Any], sources: Any = None) -> FeatureExtractor:
    """Return a fitted extractor of every candidate.

    Parameters
    ----------
    params : mapping
        Parameters of `FeatureExtractor`, of which cut, pool and resize may be ``"auto"``.
    machine : mapping
        Parameters of `FeatureExtractor` that do not change features.
    sources : image sources, optional
        Used by ``precision="auto"``.
    """
    params = {**params, **machine}
    params["cut"] = "all" if params["cut"] == AUTO else params["cut"]
    params["resize"] = list(RESIZES) if params["resize"] == AUTO else params["resize"]
    every_pool = params["pool"] == AUTO
    if every_pool:
        card = FeatureExtractor(**{**params, "pool": "avg"}).fit().card_
        cuts = [tap.name for tap in card.taps] if params["cut"] == "all" else _as_list(params["cut"])
        possible = {pool for cut in cuts for pool in card.pools(cut)}
        params["pool"] = [pool for pool in AUTO_POOLS if pool in possible]
    extractor = FeatureExtractor(**params).fit(sources)
    if every_pool:
        specs = extractor.specs_.items()
        narrow = {name: spec for name, spec in specs if extractor.card_.width(spec) <= AUTO_WIDTH}
        return _of(narrow, extractor, machine)
    return extractor


def choose(
    extractor: FeatureExtractor,
    images: ImageSet,
    codes: NDArray[np.intp],
    *,
    machine: Mapping[str, Any],
    random_state: int,
    n_jobs: int = 1,
) -> FeatureExtractor:
    """Return the extractor of the candidates that should be extracted for all images.

    Parameters
    ----------
    extractor : FeatureExtractor
        Of all candidates (see `widest`).
    images : ImageSet
        The training part.
    codes : array of shape (n,), int
        Its class indices.
    machine : mapping
        Parameters of `FeatureExtractor` that do not change features.
    random_state, n_jobs : int
        Seed of the sample, and threads.

    Returns
    -------
    FeatureExtractor
        Of the best resizing; of all resizings if the training part is not larger than the sample.
    """
    specs = extractor.specs_
    trials = _Trials(extractor, images, codes, machine, random_state, n_jobs)
    chosen = trials.sample(SCREENED_IMAGES)
    if not _any_oblong([images.sources[index] for index in chosen]):
        specs = {name: spec for name, spec in specs.items() if spec.resize != "pad"} or specs
    resizes = list(dict.fromkeys(spec.resize for spec in specs.values()))
    few, large = len(images) <= len(chosen), len(images) > WHOLE_IMAGES and len(specs) > 1
    if few or (len(resizes) == 1 and not large):
        return _of(specs, extractor, machine)
    own = NATIVE_RESIZES.get(extractor.card_.crop_mode, resizes[0])
    usual = own if own in resizes else resizes[0]
    best = trials.remembered(specs, usual) if len(resizes) > 1 else usual
    of_best = {name: spec for name, spec in specs.items() if spec.resize == best}
    if large:
        kept = dict.fromkeys(name for one in shortlist(trials.screen(of_best)) for name in one.blocks)
        of_best = {name: specs[name] for name in kept}
    return _of(of_best, extractor, machine)


@dataclass(frozen=True)
class _Trials:
    """Candidates on samples of the training part. A larger sample contains the smaller one."""

    extractor: FeatureExtractor
    images: ImageSet
    codes: NDArray[np.intp]
    machine: Mapping[str, Any]
    random_state: int
    n_jobs: int

    def remembered(self, specs: Specs, usual: str) -> str:
        """`resize`, with a cached result for the same images and specs."""
        chosen = self.sample(SCREENED_IMAGES)
        sample = self.images.select(chosen)
        ids = read_digests(sample.sources)[0] if sample.ids is None else list(map(bytes, sample.ids))
        groups = None if sample.groups is None else list(map(str, sample.groups))
        inputs = [
            (CHOICE, FIRST_IMAGES, SCREENED_IMAGES, self.random_state, usual),
            sorted(spec.key for spec in specs.values()),
            [digest and digest.hex() for digest in ids],
            self.codes[chosen].tolist(),
            groups,
        ]
        name = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
        store = self.extractor.store_
        known = store.recall("resizing", name)
        if known is None:
            known = {"best": self.resize(specs, usual)}
            store.remember("resizing", name, known)
        return str(known["best"])

    def resize(self, specs: Specs, usual: str) -> str:
        """Return a resizing that is significantly better on both samples, or the usual one."""
        rivals = {spec.resize for spec in specs.values()} - {usual}
        gains: dict[str, Metric] = {}
        for size in (FIRST_IMAGES, SCREENED_IMAGES):
            candidates = {name: spec for name, spec in specs.items() if spec.resize in {usual, *rivals}}
            features, y, groups = self._features(candidates, size)
            probes = {}
            for resize in sorted({usual, *rivals}):
                blocks = features.only([name for name, spec in candidates.items() if spec.resize == resize])
                best = self._screen(blocks, y, groups, combine=False)[0]
                with threadpool_limits(limits=1):
                    probes[resize] = probe(
                        blocks[best.name],
                        y,
                        groups=groups,
                        n_jobs=self.n_jobs,
                        random_state=self.random_state,
                    )
            gains = {resize: probes[resize].minus(probes[usual]) for resize in sorted(rivals)}
            rivals = {resize for resize in gains if probes[resize].is_better_than(probes[usual])}
            if not rivals:
                return usual
        return max(sorted(rivals), key=lambda resize: gains[resize].value)

    def screen(self, specs: Specs) -> list[Screened]:
        """Blocks and their combinations on the larger sample, best first."""
        return self._screen(*self._features(specs, SCREENED_IMAGES), combine=True)

    def sample(self, size: int) -> NDArray[np.intp]:
        """Positions of a sample of at least two images, of two groups if possible, of each class."""
        return stratified_sample(self.codes, size, self.random_state, per_class=2, groups=self.images.groups)

    def _features(
        self, specs: Specs, size: int
    ) -> tuple[FeatureBlocks, NDArray[np.intp], NDArray[Any] | None]:
        chosen = self.sample(size)
        sample = self.images.select(chosen)
        rows = _of(specs, self.extractor, self.machine).extract(
            sample.sources, names=sample.names, on_error="skip", ids=sample.ids
        )
        y = self.codes[chosen][rows.kept]
        groups = None if sample.groups is None else sample.groups[rows.kept]
        several = np.flatnonzero(divisible(y, groups))
        groups = None if groups is None else groups[several]
        return rows.blocks.take(several), y[several], groups

    def _screen(
        self, blocks: FeatureBlocks, y: NDArray[np.intp], groups: NDArray[Any] | None, *, combine: bool
    ) -> list[Screened]:
        with threadpool_limits(limits=1):  # small systems are slower with more threads
            return screen_representations(
                blocks,
                y,
                int(self.codes.max()) + 1,
                groups=groups,
                combine=combine,
                random_state=self.random_state,
                n_jobs=self.n_jobs,
            )


def _of(specs: Specs, extractor: FeatureExtractor, machine: Mapping[str, Any]) -> FeatureExtractor:
    if specs.keys() == extractor.specs_.keys():
        return extractor
    return FeatureExtractor.from_specs(specs, extractor.card_, backbone=extractor.backbone, **machine)


def _any_oblong(sources: Sequence[ImageSource]) -> bool:
    """Whether an image is not square; only headers are read."""
    for source in sources:
        try:
            width, height = picture_size(read_picture(source))
        except ImageError:
            continue  # the extraction sets it aside
        if max(width, height) > SQUARE * min(width, height):
            return True
    return False


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
