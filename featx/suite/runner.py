"""Run a suite: extract features once, then fit all cells that have no result.

A cell is one data set, backbone, block, method, budget and seed. After a run was killed, the next run
computes only cells without a result. A cell that fails is stored with its reason.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
import resource
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from featx.evaluation import METRICS, evaluate
from featx.exceptions import FeatxError
from featx.extractor import Extraction, FeatureExtractor
from featx.suite.config import (
    NO_BACKBONE,
    BackboneUse,
    MethodUse,
    SuiteConfig,
    parse_config,
    read_config,
)
from featx.suite.data import LoadedData, Part, load_data
from featx.suite.folder import Cell, ResultsFolder, pack_right
from featx.suite.methods import FEATURES, SCRATCH
from featx.threads import n_threads
from featx.version import __version__

RESULT_FORMAT = 1
"""Raised when a change of featx makes stored results wrong."""

SECONDS_PER_UNIT = 2e-7
"""Seconds of a fit per image, feature and class, for `Suite.plan`: `logistic`, the slowest method on
features, took 20 s for 1,000 images, 1,280 features and 10 classes on one core of an EPYC (2026-11-29),
others a hundredth."""

FEATURES_OF_A_BLOCK = 1280
SECONDS_ON_IMAGES = 60.0
"""Assumed for `Suite.plan`: features of a block, and seconds of a method on images."""


@dataclass(frozen=True)
class SuitePlan:
    """What a run would compute.

    Attributes
    ----------
    cells, done, failed : int
        All cells, those with a result, and those of them that failed.
    images : int
        Images whose features are missing for some backbone.
    extract_s, fit_s : float
        Estimated seconds on this machine.
    gigabytes : float
        Size of the missing features, in 1e9 bytes.
    notes : tuple of str
        Data sets and backbones that are not available.
    """

    cells: int
    done: int
    failed: int
    images: int
    extract_s: float
    fit_s: float
    gigabytes: float
    notes: tuple[str, ...]


Report = Callable[[str, int, int, float | None], None]
"""Called with a cell in words, the number of finished cells, the number of all, and the seconds that are
left."""


class Suite:
    """A benchmark suite: data sets × backbones × blocks × methods × label budgets × seeds.

    Parameters
    ----------
    config : SuiteConfig
        See `Suite.from_toml` and `Suite.from_dict`.
    store : path, FeatureStore, "memory" or None
        Where features are kept; None is the default cache folder.
    n_jobs : int, optional
        Cells that are fitted at the same time, each with its share of the cores; default all cores.
    """

    def __init__(self, config: SuiteConfig, *, store: Any = None, n_jobs: int | None = None) -> None:
        self.config = config
        self.store = store
        self.n_jobs = n_jobs

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], **options: Any) -> Suite:
        """Read a suite file.

        Raises
        ------
        UsageError
            With the line of what is wrong.
        """
        return cls(read_config(Path(path)), **options)

    @classmethod
    def from_dict(cls, values: dict[str, Any], **options: Any) -> Suite:
        """Make a suite from the content of a suite file as Python values."""
        return cls(parse_config(values), **options)

    def run(
        self, folder: str | os.PathLike[str], *, retry_failed: bool = False, report: Report | None = None
    ) -> ResultsFolder:
        """Compute all cells without a result, and write the tables.

        Parameters
        ----------
        folder : path
            Results folder; several processes and machines may use the same one.
        retry_failed : bool, default False
            Whether cells that failed before are computed again.
        report : callable, optional
            Called after each cell with its text, the numbers of finished cells and of all cells, and the
            estimated seconds left (or None).

        Returns
        -------
        ResultsFolder
        """
        recorder = _Recorder(ResultsFolder(folder), retry_failed)
        clock = _Clock(report or (lambda *_: None))
        work = []
        for one in self.config.data:
            data = _attempt(load_data, one)
            for backbone in self._backbones():
                cells = list(self._cells(one.name, data, backbone))
                missing = [(cell, use) for cell, use in cells if recorder.is_open(cell)]
                clock.total += len(cells)
                clock.done += len(cells) - len(missing)
                if missing:
                    work.append((data, backbone, missing))
        for data, backbone, missing in work:
            for cell, seconds in self._fit(recorder, data, backbone, missing):
                clock.tell(cell, seconds)
        if clock.total:
            recorder.results.write_tables()
        return recorder.results

    def plan(self, folder: str | os.PathLike[str]) -> SuitePlan:
        """Estimate what `run` would compute; nothing is stored."""
        results = ResultsFolder(folder)
        notes: list[str] = []
        count = done = failed = images = 0
        extract_s = fit_s = size = 0.0
        for one in self.config.data:
            data = _attempt(load_data, one)
            if isinstance(data, str):
                notes.append(f"{one.name}: {data}")
                continue
            for backbone in self._backbones():
                cells = [(use, results.read(cell)) for cell, use in self._cells(one.name, data, backbone)]
                count += len(cells)
                done += sum(row is not None for _, row in cells)
                failed += sum(bool(row and row["error"]) for _, row in cells)
                missing = [use for use, row in cells if row is None]
                fit_s += sum(_estimate(use, data) for use in missing)
                if backbone.name == NO_BACKBONE or not missing:
                    continue
                extractor = self._extractor(backbone)
                plan = _attempt(extractor.plan, data.images.sources)
                if isinstance(plan, str):
                    notes.append(f"{backbone.name}: {plan}")
                    continue
                images += plan.to_compute
                extract_s += plan.seconds
                size += 2 * plan.to_compute * len(extractor.fit(data.images.sources).get_feature_names_out())
        jobs = n_threads(self.n_jobs)
        notes = list(dict.fromkeys(notes))
        return SuitePlan(count, done, failed, images, extract_s, fit_s / jobs, size / 1e9, tuple(notes))

    def _backbones(self) -> Iterator[BackboneUse]:
        yield from self.config.backbones
        if any(use.method.kind == SCRATCH for use in self.config.methods):
            yield BackboneUse(name=NO_BACKBONE)

    def _extractor(self, backbone: BackboneUse) -> FeatureExtractor:
        extractor = FeatureExtractor(
            backbone.name,
            cut=list(backbone.cut),
            pool=list(backbone.pool),
            resize=list(backbone.resize),
            store=self.store,
        )
        extractor.set_params(**backbone.options)
        return extractor

    def _cells(
        self, name: str, data: LoadedData | str, backbone: BackboneUse
    ) -> Iterator[tuple[Cell, MethodUse]]:
        blocks = self._block_names(backbone)
        digest = data if isinstance(data, str) else data.digest
        for use in self.config.methods:
            kind = use.method.kind
            if (kind == SCRATCH) != (backbone.name == NO_BACKBONE):
                continue
            if (use.data and name not in use.data) or (use.backbones and backbone.name not in use.backbones):
                continue
            for features in blocks if kind == FEATURES else [""]:
                for budget in use.budgets or self.config.budgets:
                    for seed in self.config.seeds:
                        place = (name, backbone.name, features, use.name, budget, seed)
                        depends = [
                            RESULT_FORMAT, *place, digest, use.use, dict(use.params), use.method.scale,
                            dict(backbone.options), self.config.folds, self.config.test_size,
                        ]  # fmt: skip
                        text = json.dumps(depends, sort_keys=True, default=str)
                        yield Cell(*place, id=hashlib.sha256(text.encode()).hexdigest()[:24]), use

    def _block_names(self, backbone: BackboneUse) -> list[str]:
        return [
            f"{cut}:{pool}:{resize}"
            for cut in backbone.cut
            for pool in backbone.pool
            for resize in backbone.resize
        ]

    def _fit(
        self,
        recorder: _Recorder,
        data: LoadedData | str,
        backbone: BackboneUse,
        cells: Sequence[tuple[Cell, MethodUse]],
    ) -> Iterator[tuple[Cell, float | None]]:
        """Fit the missing cells of one data set and one backbone, and yield each with its seconds."""
        if isinstance(data, str):
            yield from recorder.fail((cell for cell, _ in cells), data)
            return
        on_features = [(cell, use) for cell, use in cells if use.method.kind == FEATURES]
        if on_features:
            found = _attempt(self._extract, backbone, data)
            if isinstance(found, str):
                yield from recorder.fail((cell for cell, _ in on_features), found)
            else:
                yield from self._fit_on_features(recorder, data, found, on_features)
        for cell, use in cells:
            if use.method.kind != FEATURES:
                context = (
                    {} if use.method.kind == SCRATCH else {"backbone": backbone.name, "store": self.store}
                )
                yield cell, recorder.record(cell, partial(_fit_images, self.config, data, use, context, cell))

    def _extract(self, backbone: BackboneUse, data: LoadedData) -> Extraction:
        images = data.images
        return self._extractor(backbone).extract(images.sources, names=images.names, ids=images.ids)

    def _fit_on_features(
        self,
        recorder: _Recorder,
        data: LoadedData,
        found: Extraction,
        cells: Sequence[tuple[Cell, MethodUse]],
    ) -> Iterator[tuple[Cell, float | None]]:
        """Fit cells on features in parallel processes, block by block."""
        jobs = min(n_threads(self.n_jobs), len(cells))
        threads = max(1, n_threads(None) // jobs)
        names = {str(name): name for name in found.blocks}
        for features in dict.fromkeys(cell.features for cell, _ in cells):
            own = [(cell, use) for cell, use in cells if cell.features == features]
            if features not in names:
                reason = f"the backbone has no block {features!r}; it has {', '.join(names)}"
                yield from recorder.fail((cell for cell, _ in own), reason)
                continue
            X = np.asarray(found.blocks[names[features]])
            calls = []
            for cell, use in own:
                part = _attempt(data.part, self.config, cell.seed, cell.budget)
                fit = partial(_fit_features, cell, use, X, data.codes, len(data.classes), part)
                calls.append(joblib.delayed(_in_worker)(recorder, cell, fit, threads))
            pool = joblib.Parallel(
                n_jobs=jobs, return_as="generator_unordered", max_nbytes="1M", mmap_mode="r"
            )
            yield from pool(calls)
            found.blocks.release(names[features])


@dataclass(frozen=True)
class _Recorder:
    """Compute cells that are missing, and store their rows."""

    results: ResultsFolder
    retry_failed: bool

    def is_open(self, cell: Cell) -> bool:
        """Whether a cell has no result yet, or is to be tried again."""
        row = self.results.read(cell)
        return row is None or bool(self.retry_failed and row["error"])

    def record(self, cell: Cell, fit: Callable[[], dict[str, Any]]) -> float | None:
        """Claim a cell, compute it and store its row; the seconds, or None if another process has it."""
        began = time.perf_counter()
        with self.results.claim(cell) as mine:
            if not mine or not self.is_open(cell):
                return None
            try:
                row = fit()
            except MemoryError as error:
                row = _failed(cell, f"not enough memory ({error})" if str(error) else "not enough memory")
            except Exception as error:  # a method of the user may raise anything; the suite goes on
                last = traceback.extract_tb(error.__traceback__)[-1]
                known = isinstance(error, FeatxError)
                place = "" if known else f" ({Path(last.filename).name}, line {last.lineno})"
                row = _failed(cell, f"{type(error).__name__}: {error}{place}")
            self.results.write(cell, row)
        return time.perf_counter() - began

    def fail(self, cells: Iterable[Cell], reason: str) -> Iterator[tuple[Cell, float | None]]:
        """Store the same reason for several cells."""
        for cell in cells:
            yield cell, self.record(cell, partial(_failed, cell, reason))


def _fit_images(
    config: SuiteConfig, data: LoadedData, use: MethodUse, context: dict[str, Any], cell: Cell
) -> dict[str, Any]:
    """Fit a method on images."""
    part = data.part(config, cell.seed, cell.budget)
    estimator = use.method.estimator(use.params, cell.seed, **context)
    training = data.images.select(part.train)
    options = {} if training.groups is None else {"groups": training.groups}
    began = time.perf_counter()
    estimator.fit(training.sources, data.codes[part.train], **options)
    fitted = time.perf_counter()
    proba = estimator.predict_proba(data.images.select(part.test).sources)
    seconds = fitted - began, time.perf_counter() - fitted
    return _row(cell, part, data.codes, len(data.classes), estimator, proba, seconds)


def _in_worker(
    recorder: _Recorder, cell: Cell, fit: Callable[[], dict[str, Any]], threads: int
) -> tuple[Cell, float | None]:
    """Record a cell in a worker process, with its share of the threads."""
    with threadpool_limits(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cell, recorder.record(cell, fit)


def _fit_features(
    cell: Cell,
    use: MethodUse,
    X: NDArray[np.float32],
    codes: NDArray[np.intp],
    n_classes: int,
    part: Part | str,
) -> dict[str, Any]:
    """Fit a method on features."""
    if isinstance(part, str):
        return _failed(cell, part)
    estimator = use.method.estimator(use.params, cell.seed)
    options = {}
    if part.validation is not None and "validation" in inspect.signature(estimator.fit).parameters:
        options["validation"] = part.validation
    began = time.perf_counter()
    estimator.fit(X[part.train], codes[part.train], **options)
    fitted = time.perf_counter()
    test = X[part.test]
    with_proba = hasattr(estimator, "predict_proba")
    answer = estimator.predict_proba(test) if with_proba else estimator.predict(test)
    seconds = fitted - began, time.perf_counter() - fitted
    return _row(cell, part, codes, n_classes, estimator, answer, seconds, X.shape[1])


def _row(
    cell: Cell,
    part: Part,
    codes: NDArray[np.intp],
    n_classes: int,
    estimator: Any,
    answer: NDArray[Any],
    seconds: tuple[float, float],
    n_features: int = 0,
) -> dict[str, Any]:
    """The row of a finished cell; `answer` are probabilities (n, n_known), or classes (n,)."""
    proba = np.zeros((len(part.test), n_classes))
    if answer.ndim == 2:
        proba[:, np.asarray(estimator.classes_)] = answer
    else:
        proba[np.arange(len(part.test)), answer] = 1
    truth = codes[part.test]
    row = _base(cell)
    for name, metric in evaluate(truth, proba, range(n_classes)).metrics.items():
        known = answer.ndim == 2 or not METRICS[name].of_probabilities
        values = (metric.value, metric.low, metric.high) if known else (None, None, None)
        row |= dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))
    chosen = {key: getattr(estimator, key) for key in ("C_", "k_", "best_params_") if hasattr(estimator, key)}
    return row | {
        "n_train": len(part.train),
        "n_test": len(part.test),
        "n_classes": n_classes,
        "n_features": n_features,
        "fit_s": round(seconds[0], 4),
        "predict_s": round(seconds[1], 4),
        "images_per_s": round(len(part.test) / max(seconds[1], 1e-9), 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "feature_bytes": 4 * n_features * (len(part.train) + len(part.test)),
        "chosen": json.dumps(chosen, default=str),
        "test_digest": hashlib.sha256(part.test.tobytes()).hexdigest()[:16],
        "right": pack_right(proba.argmax(1) == truth),
    }


def _base(cell: Cell) -> dict[str, Any]:
    import sklearn

    return {
        **dataclasses.asdict(cell),
        "error": "",
        "featx": __version__,
        "numpy": np.__version__,
        "scikit_learn": sklearn.__version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _failed(cell: Cell, reason: str) -> dict[str, Any]:
    return {**_base(cell), "error": reason}


def _attempt(call: Callable[..., Any], *arguments: Any) -> Any:
    """The value of a call, or the text of its error."""
    try:
        return call(*arguments)
    except (FeatxError, OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def _estimate(use: MethodUse, data: LoadedData) -> float:
    if use.method.kind != FEATURES:
        return SECONDS_ON_IMAGES
    return SECONDS_PER_UNIT * len(data.codes) * FEATURES_OF_A_BLOCK * len(data.classes)


class _Clock:
    """Count finished cells, and estimate the time that is left."""

    def __init__(self, report: Report) -> None:
        self.total = self.done = 0
        self._report = report
        self._began = time.monotonic()
        self._fitted = 0

    def tell(self, cell: Cell, seconds: float | None) -> None:
        """Report a cell; None means that another process computes it."""
        self.done += 1
        self._fitted += seconds is not None
        elapsed = time.monotonic() - self._began
        left = elapsed / self._fitted * (self.total - self.done) if self._fitted else None
        self._report(cell.words, self.done, self.total, left)
