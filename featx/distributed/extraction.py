"""`extract`: features of many images by the workers of a Ray cluster, written to one cache.

Ray Data gives blocks of images to a pool of actors (`featx.distributed.worker.Worker`), and repeats blocks
whose actor or machine is lost. Each actor writes its own immutable segments, so that none waits for another.
"""

from __future__ import annotations

import contextlib
import pickle
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.distributed.cluster import Pool, connected, plan_pool
from featx.distributed.inputs import Inputs, open_inputs
from featx.distributed.worker import (
    COLUMNS,
    COMPUTED,
    DIGEST,
    ERROR,
    NAME,
    POSITION,
    REASON,
    REMARK,
    WORKER,
    Worker,
)
from featx.exceptions import ImageError, StoreError, UsageError
from featx.extractor import Extraction, FeatureExtractor, Progress
from featx.extractor.extraction import refuse_nothing
from featx.extractor.shards import missing
from featx.features import FeatureBlocks
from featx.images import Skipped
from featx.progress import shown_by
from featx.stores.base import FeatureStore, as_ids

BLOCK_ROWS = 512
"""Images of a block of a list of files: a few seconds of work, so that the loss of a worker loses little."""

MARKS = "ray"
"""Folder of the cache for the marks of running extractions."""


@dataclass(frozen=True)
class RayExtraction(Extraction):
    """What `extract` returns: an `Extraction`, and the workers that computed it.

    Attributes
    ----------
    names : tuple of str
        Names of the images that were kept.
    workers : dict of str to int
        Images that each worker (``HOST:PROCESS``) returned.
    pool : Pool
        Number and size of the workers.
    """

    names: tuple[str, ...] = field(default=(), repr=False)
    workers: dict[str, int] = field(default_factory=dict)
    pool: Pool | None = None


def extract(
    data: Any,
    *,
    extractor: FeatureExtractor | None = None,
    address: str = "auto",
    workers: int | None = None,
    worker_cpus: int | None = None,
    column: str | None = None,
    block_rows: int = BLOCK_ROWS,
    on_error: str = "raise",
    callback: Callable[[Progress], None] | None = None,
    **params: Any,
) -> RayExtraction:
    """Compute the features of images on a Ray cluster, into a cache folder that its machines share.

    Features that are in the cache are not computed again. Ray starts lost workers again, and repeats their
    blocks of images; what they committed is kept.

    Parameters
    ----------
    data : path, list of paths, ImageSet or ray.data.Dataset
        * Folders, manifests, patterns and image files on a file system that all machines share.
        * Parquet files with the bytes of images, and WebDataset shards (``.tar``), or a folder of these.
        * URLs (``s3://``, ``gs://``, ...) of images, folders, Parquet files or shards, as Ray reads them.
        * A Ray dataset with a column ``bytes`` (of files) or ``path``.
    extractor : FeatureExtractor, optional
        What to compute, and where it is stored; by default one with `params`.
    address : str, default "auto"
        ``HOST:PORT`` of a cluster; ``auto`` for a running one, else a new one on this machine; ``local`` for
        a new one. An open connection of Ray is used as it is.
    workers : int, optional
        Number of workers, each with one network. By default one for each GPU; without GPUs one for each group
        of `worker_cpus` cores.
    worker_cpus : int, optional
        Cores of a worker. By default those of the smallest machine, at most 8; with `workers`, so many that
        these workers fit.
    column : str, optional
        Column of the bytes of images; by default it is found by its name.
    block_rows : int, default 512
        Images that a worker gets at a time, if `data` is a list of files.
    on_error : {"raise", "skip"}
        What to do with an image that cannot be read.
    callback : callable, optional
        Called with `Progress` events.
    **params
        Parameters of `FeatureExtractor`: backbone, cut, pool, store, precision, ...

    Returns
    -------
    RayExtraction
        Images of a list are in its order, those of a dataset in the order of their names.

    Raises
    ------
    UsageError
        If Ray is not installed, there is no cluster, or a parameter is not valid.
    DataError
        If there is no image.
    ImageError
        For an unreadable image, if `on_error` is "raise".
    StoreError
        If the machines do not share the cache folder.

    Examples
    --------
    >>> from featx.distributed import extract
    >>> found = extract("photos/", address="10.0.0.1:6379", store="/shared/cache")  # doctest: +SKIP
    """
    if on_error not in ("raise", "skip"):
        raise UsageError(f"on_error {on_error!r} is not known; choose raise or skip.")
    for name, value in (("workers", workers), ("worker_cpus", worker_cpus), ("block_rows", block_rows)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; give a whole number from 1.")
    if extractor is not None and params:
        raise UsageError(f"give either extractor or its parameters ({', '.join(params)}), not both.")
    extractor = extractor if extractor is not None else FeatureExtractor(**params)
    store = extractor.store_
    if store.folder(MARKS) is None:
        raise UsageError("workers need a cache folder that they share; give one (store=, --cache-dir).")
    if not isinstance(extractor.backbone, str):
        raise UsageError(
            "workers load the network by its name; give the name, and a file of weights (checkpoint=)."
        )
    began = time.monotonic()
    with connected(address):
        pool = plan_pool(workers, worker_cpus, extractor.device)
        inputs = open_inputs(data, column=column, block_rows=block_rows)
        if not hasattr(extractor, "specs_"):
            extractor.fit(inputs.sample)
        told = shown_by(callback or extractor.callback, extractor.verbose)
        with _marked(store) as mark:
            rows = _collect(
                _mapped(extractor, inputs, pool, mark), inputs, strict=on_error == "raise", tell=told
            )
    return _result(extractor, inputs, pool, rows, began)


def _mapped(extractor: FeatureExtractor, inputs: Inputs, pool: Pool, mark: Path) -> Any:
    """The dataset of results."""
    import ray.data

    names = ("allow_download", "runtime", "device", "batch_size", "max_pixels", "isolate")
    params = {name: getattr(extractor, name) for name in names}
    checkpoint = extractor.checkpoint
    return inputs.dataset.map_batches(
        Worker,
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=pool.size),
        num_cpus=pool.cpus if inputs.images is not None else pool.cpus - 1,  # Ray's tasks that read need one
        num_gpus=pool.gpus,
        fn_constructor_args=(extractor.specs_, extractor.card_),
        fn_constructor_kwargs={
            **params,
            "checkpoint": None if checkpoint is None else str(Path(checkpoint).absolute()),
            "backbone": extractor.backbone,
            "store": str(mark.parents[2]),
            "n_jobs": pool.cpus,
            "mark": mark,
            "column": inputs.column,
            "paths": inputs.paths,
        },
    )


@contextlib.contextmanager
def _marked(store: FeatureStore) -> Iterator[Path]:
    """A file in the cache folder while an extraction runs."""
    folder = store.folder(MARKS)
    assert folder is not None
    folder.mkdir(exist_ok=True)
    mark = folder / uuid.uuid4().hex
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another extraction has its mark there
            folder.rmdir()


def _collect(
    dataset: Any, inputs: Inputs, *, strict: bool, tell: Callable[[Progress], None]
) -> dict[str, list[Any]]:
    """Run, and return the columns of the results."""
    found: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    began, computed, skipped = time.monotonic(), 0, 0
    tell(Progress(0, inputs.total))
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        part = batch.to_pydict()
        raised = next(filter(None, part[ERROR]), None)
        if raised is not None:
            raise pickle.loads(raised)  # noqa: S301 (of our own worker)
        for name, values in found.items():
            values.extend(part[name])
        computed += sum(part[COMPUTED])
        skipped += sum(map(bool, part[REASON]))
        bad = next((place for place, reason in enumerate(part[REASON]) if reason), None) if strict else None
        if bad is not None:
            raise ImageError(part[NAME][bad], part[REASON][bad])
        done, seconds = len(found[NAME]), time.monotonic() - began
        total = max(inputs.total, done)
        tell(
            Progress(
                done, total, done - computed - skipped, computed, skipped, done / seconds,
                (total - done) * seconds / done, "workers",
            )
        )  # fmt: skip
    return found


def _result(
    extractor: FeatureExtractor, inputs: Inputs, pool: Pool, rows: dict[str, list[Any]], began: float
) -> RayExtraction:
    store, specs = extractor.store_, extractor.specs_
    by = rows[POSITION] if inputs.images is not None else list(zip(rows[NAME], rows[DIGEST], strict=True))
    order = sorted(range(len(by)), key=by.__getitem__)
    columns = {name: [values[place] for place in order] for name, values in rows.items()}
    kept = np.flatnonzero([not reason for reason in columns[REASON]])
    ids = as_ids(columns[DIGEST][place] for place in kept)
    lost = missing(store, [spec.key for spec in specs.values()], ids)
    if lost.any():
        raise StoreError(
            f"the features of {lost.sum():,} images, which workers stored, are not in the cache folder as "
            "this machine sees it: they were removed meanwhile, or the file system shows them late. Run the "
            "same command again: only these are computed."
        )

    def reader(key: str) -> Callable[[NDArray[np.intp]], NDArray[Any]]:
        return lambda some: store.read(key, ids[some]).reshape(len(some), -1)

    readers = {name: reader(spec.key) for name, spec in specs.items()}
    widths = {name: extractor.card_.width(spec) for name, spec in specs.items() if spec.pool != "none"}
    found = RayExtraction(
        ids=ids,
        kept=kept,
        skipped=[
            Skipped(name, reason)
            for name, reason in zip(columns[NAME], columns[REASON], strict=True)
            if reason
        ],
        blocks=FeatureBlocks({}, len(kept), widths=widths, readers=readers),
        specs=specs,
        store=store,
        computed=sum(rows[COMPUTED]),
        remarks=tuple(dict.fromkeys(line for text in rows[REMARK] for line in text.splitlines())),
        seconds=time.monotonic() - began,
        runtime=extractor.runtime,
        limit="workers",
        names=tuple(columns[NAME][place] for place in kept),
        workers=dict(Counter(rows[WORKER])),
        pool=pool,
    )
    refuse_nothing(columns[NAME] if inputs.images is None else inputs.images.sources, found)
    return found
