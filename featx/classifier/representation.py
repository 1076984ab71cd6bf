"""Which representations a fit may choose from, and the screening that keeps the whole choice cheap.

One forward pass gives the rows of every layer and pooling at once, so those are all candidates. Another
resizing is another pass: it is tried on a few hundred images of the training part, and only the one that
wins is extracted whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from featx.advice.from_rows import stratified_rows
from featx.exceptions import ImageError
from featx.extractor import FeatureExtractor
from featx.images import ImageSet, ImageSource, picture_size, read_picture
from featx.search.representations import Screened, screen_representations, shortlist
from featx.spec import RESIZES, FeatureSpec

AUTO = "auto"

AUTO_POOLS = ("avg", "max", "gem", "cls", "cls+avg", "grid2", "grid4")
"""Poolings that ``pool="auto"`` tries wherever the layer allows them."""

AUTO_WIDTH = 8192
"""Columns that a candidate may have: a 4x4 grid of a network's widest layer costs more than it brings."""

SCREENED_IMAGES = 400
"""Images of the training part that another resizing is tried on."""

WHOLE_IMAGES = 5000
"""Above as many images only the shortlisted representations are extracted whole, to spare the disk."""

SQUARE = 1.05
"""Longer side over shorter: where no picture passes it, ``pad`` does what ``squash`` does."""

Specs = dict[str, FeatureSpec]


def widest(params: Mapping[str, Any], machine: Mapping[str, Any], sources: Any = None) -> FeatureExtractor:
    """A fitted extractor of every candidate.

    Parameters
    ----------
    params : mapping
        Parameters of `FeatureExtractor`, of which cut, pool and resize may be ``"auto"``.
    machine : mapping
        Those of them that move no row.
    sources : image sources, optional
        What ``precision="auto"`` looks at.
    """
    wanted = {**params, **machine}
    wanted["cut"] = "all" if wanted["cut"] == AUTO else wanted["cut"]
    wanted["resize"] = list(RESIZES) if wanted["resize"] == AUTO else wanted["resize"]
    every_pool = wanted["pool"] == AUTO
    if every_pool:
        card = FeatureExtractor(**{**wanted, "pool": "avg"}).fit().card_
        cuts = [tap.name for tap in card.taps] if wanted["cut"] == "all" else _as_list(wanted["cut"])
        possible = {pool for cut in cuts for pool in card.pools(cut)}
        wanted["pool"] = [pool for pool in AUTO_POOLS if pool in possible]
    extractor = FeatureExtractor(**wanted).fit(sources)
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
    """Keep the candidates that are worth extracting whole.

    Parameters
    ----------
    extractor : FeatureExtractor
        As `widest` makes it.
    images : ImageSet
        The training part.
    codes : array of shape (n,), int
        Its class indices.
    machine : mapping
        Parameters of the extractor that move no row.
    random_state, n_jobs : int
        Seed of the sample, and threads.

    Returns
    -------
    FeatureExtractor
        Of the resizing that won; of all, where the training part is no larger than the sample.
    """
    specs = extractor.specs_
    chosen = stratified_rows(codes, SCREENED_IMAGES, random_state=random_state)
    sample = images.select(chosen)
    if not _any_oblong(sample.sources):
        specs = {name: spec for name, spec in specs.items() if spec.resize != "pad"} or specs
    resizes = list(dict.fromkeys(spec.resize for spec in specs.values()))
    few, large = len(images) <= len(sample), len(images) > WHOLE_IMAGES and len(specs) > 1
    if few or (len(resizes) == 1 and not large):
        return _of(specs, extractor, machine)
    rows = _of(specs, extractor, machine).extract(sample.sources, names=sample.names, on_error="skip")
    y = codes[chosen][rows.kept]
    groups = None if sample.groups is None else sample.groups[rows.kept]
    ranked: dict[str, list[Screened]] = {}
    with threadpool_limits(limits=1):  # small systems lose time with more threads each
        for resize in resizes:
            blocks = rows.blocks.only([name for name, spec in specs.items() if spec.resize == resize])
            ranked[resize] = screen_representations(
                blocks, y, int(codes.max()) + 1, groups=groups, random_state=random_state, n_jobs=n_jobs
            )
    best = max(resizes, key=lambda resize: ranked[resize][0].rank)
    if large:
        kept = dict.fromkeys(name for one in shortlist(ranked[best]) for name in one.blocks)
        return _of({name: specs[name] for name in kept}, extractor, machine)
    return _of({name: spec for name, spec in specs.items() if spec.resize == best}, extractor, machine)


def _of(specs: Specs, extractor: FeatureExtractor, machine: Mapping[str, Any]) -> FeatureExtractor:
    if specs.keys() == extractor.specs_.keys():
        return extractor
    return FeatureExtractor.from_specs(specs, extractor.card_, backbone=extractor.backbone, **machine)


def _any_oblong(sources: Sequence[ImageSource]) -> bool:
    """Whether a picture is not square; only headers are looked at."""
    for source in sources:
        try:
            width, height = picture_size(read_picture(source))
        except ImageError:
            continue  # set aside where it is decoded
        if max(width, height) > SQUARE * min(width, height):
            return True
    return False


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
