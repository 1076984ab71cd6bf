"""Facts of images, measured once and kept in a feature store."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import ImageError
from featx.images import ImageSource, read_picture
from featx.images.facts import LENGTH, SIDE, ImageFacts, measure_facts
from featx.spec import FeatureSpec
from featx.stores.base import FeatureStore, Ids
from featx.threads import n_threads

FACTS = FeatureSpec(
    architecture="image-facts",
    weights="2",  # raise it when a fact is measured in another way
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
    sources: Sequence[ImageSource], ids: Ids, store: FeatureStore, *, n_jobs: int | None = None
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

    Returns
    -------
    ImageFacts
        Of all images; zeros for those that cannot be decoded.
    array of shape (n,), bool
        Which images could be decoded.
    """
    missing = np.flatnonzero(store.missing(FACTS.key, ids)) if len(ids) else np.empty(0, np.intp)

    def measure(index: int) -> NDArray[np.float32] | None:
        try:
            return measure_facts(read_picture(sources[index]))
        except ImageError:
            return None

    with ThreadPoolExecutor(n_threads(n_jobs)) as pool:
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
