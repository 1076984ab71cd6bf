"""Facts of images, measured once and kept in a feature store."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import ImageError
from featx.images import ImageSource, Picture, read_picture
from featx.images.facts import LENGTH, SIDE, ImageFacts, measure_facts
from featx.images.pixels import Warn, ignore_remark
from featx.images.sandbox import Sandboxes
from featx.spec import FeatureSpec
from featx.stores.base import FeatureStore, Ids
from featx.threads import n_threads

FACTS = FeatureSpec(
    architecture="image-facts",
    weights="4",  # raise it when a fact is measured in another way
    cut="facts",
    pool="none",
    input_size=(SIDE, SIDE),
    resize="squash",
    crop_pct=1.0,
    interpolation="bilinear",
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    decoder="any",
    decode="fast",
    dtype="float32",
)
"""The space of a feature store that facts are kept in."""

CHUNK = 1024
"""Images that are measured before their facts are stored."""


def image_facts(
    sources: Sequence[ImageSource],
    ids: Ids,
    store: FeatureStore,
    *,
    n_jobs: int | None = None,
    isolate: bool = False,
) -> tuple[ImageFacts, NDArray[np.bool_]]:
    """Read the facts of images from a store; measure and store those that are missing.

    Parameters
    ----------
    sources : sequence of n image sources
    ids : array of shape (n, 32), uint8
        Their digests.
    store : FeatureStore
    n_jobs : int, optional
        Threads.
    isolate : bool
        Decode in other processes.

    Returns
    -------
    ImageFacts
        Of all images; zeros for those that cannot be decoded.
    array of shape (n,), bool
        Which images could be decoded.
    """
    missing = np.flatnonzero(store.missing(FACTS.key, ids)) if len(ids) else np.empty(0, np.intp)
    work = Sandboxes(_work, workers=n_threads(n_jobs)) if isolate else _work

    def measure(index: int) -> NDArray[np.float32] | None:
        try:
            return work(read_picture(sources[index]), None, ignore_remark)[0]
        except ImageError:
            return None

    with ExitStack() as stack, ThreadPoolExecutor(n_threads(n_jobs)) as pool:
        if isinstance(work, Sandboxes):
            stack.callback(work.close)
        for start in range(0, len(missing), CHUNK):
            some = missing[start : start + CHUNK]
            found = list(pool.map(measure, some.tolist()))
            good = [place for place, row in enumerate(found) if row is not None]
            if good:
                rows = np.stack([row for row in found if row is not None])
                store.append(FACTS.key, ids[some[good]], rows, FACTS)
    store.commit()
    rows = np.zeros((len(ids), LENGTH), np.float32)
    there = ~np.asarray(store.missing(FACTS.key, ids), bool) if len(ids) else np.zeros(0, bool)
    if there.any():
        rows[there] = store.read(FACTS.key, ids[there])
    return ImageFacts.of_rows(rows), there


def _work(picture: Picture, _: None, warn: Warn) -> list[NDArray[Any]]:
    return [measure_facts(picture)]
