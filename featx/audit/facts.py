"""Facts of images, measured once and kept in a feature store."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import ImageError
from featx.images import DecodePolicy, ImageSource, Picture, read_picture
from featx.images.facts import LENGTH, SIDE, ImageFacts, measure_facts
from featx.images.pixels import Warn, ignore_remark
from featx.images.sandbox import Sandboxes
from featx.spec import FeatureSpec
from featx.stores.base import FeatureStore, Ids, as_ids
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


class FactsOfDecoded:
    """Measure and store the facts of images while their features are extracted, so that they are read once.

    A context manager; at its end all facts are in the store. `image_facts` measures the same facts of images
    that were not decoded.

    Parameters
    ----------
    store : FeatureStore

    Examples
    --------
    >>> import numpy as np
    >>> from featx import FeatureExtractor
    >>> from featx.stores.memory import MemoryStore
    >>> store = MemoryStore()
    >>> extractor = FeatureExtractor("test_resnet", pretrained=False, store=store)
    >>> with FactsOfDecoded(store) as facts:
    ...     found = extractor.extract([np.zeros((40, 40, 3), np.uint8)], on_decode=facts)
    >>> store.missing(FACTS.key, found.ids)
    array([False])
    """

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._rows: dict[bytes, NDArray[np.float32]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._keep()
        self._store.commit()

    def __call__(self, picture: Picture, decoded: Mapping[DecodePolicy, NDArray[Any]]) -> None:
        """Measure an image, unless its facts are stored."""
        if not self._store.missing(FACTS.key, as_ids([picture.digest]))[0]:
            return
        try:
            row = measure_facts(picture, decoded)
        except (ImageError, MemoryError):  # `image_facts` tries again, and returns which have none
            return
        with self._lock:
            self._rows[picture.digest] = row
            if len(self._rows) >= CHUNK:
                self._keep()

    def _keep(self) -> None:
        if self._rows:
            self._store.append(
                FACTS.key, as_ids(list(self._rows)), np.stack(list(self._rows.values())), FACTS
            )
            self._rows = {}
