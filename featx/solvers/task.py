"""The task of a solver, and helpers that run it in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featx.solvers.descent import PRECISE
from featx.solvers.features import DEFAULT_MEMORY, ScaledFeatures
from featx.solvers.folds import ClassWeights, Floats, Folds
from featx.threads import run_in_threads

Answer = tuple[int, int, Floats]

KERNEL_ROWS = 8_000
"""With more training rows an SVM is scored on a stratified sample of this size; results say so."""


STREAM_ROWS = 50_000
"""With more rows features are read in chunks, and by default only heads that can be fitted so are tried."""


SHARE = 32
"""Weights and scores of streamed fits take one part in so many of the memory. With more memory features would
be read less often, but reading is a small part of the work."""


@dataclass(frozen=True)
class FitTask:
    """Configurations of one head on one scaling of one representation, which a solver fits.

    Parameters
    ----------
    features : ScaledFeatures
        The scaled features, with their folds.
    params : sequence of mapping
        Parameters of each configuration.
    class_weight : str, array or None
        One class weighting for all of them.
    n_jobs : int
        Threads.
    memory : int
        Bytes that the task's own matrices may take.
    alive : callable
        ``alive(i)`` is False once configuration i is pruned.
    stop : callable
        Whether time is up; then the solver returns what it has.
    make : callable, optional
        ``make(params, shape)`` builds the classifier, for the solver ``"estimator"``; `shape` is (rows,
        columns) of the training part of a fold.
    random_state : int
        Seed of samples.
    kernel_rows : int
        With more training rows, SVMs are fitted on a stratified sample of this size.
    precise : bool
        Whether linear models run until their scores have converged, not only their predictions. A calibration
        is fitted on such scores.
    passes : int
        Most passes of a precise fit.
    """

    features: ScaledFeatures
    params: Sequence[Mapping[str, Any]]
    class_weight: ClassWeights = None
    n_jobs: int = 1
    memory: int = DEFAULT_MEMORY
    alive: Callable[[int], bool] = lambda configuration: True
    stop: Callable[[], bool] = lambda: False
    make: Callable[[Mapping[str, Any], tuple[int, int]], Any] | None = None
    random_state: int = 0
    kernel_rows: int = KERNEL_ROWS
    precise: bool = False
    passes: int = PRECISE["max_iterations"]

    @property
    def folds(self) -> Folds:
        """Splits, targets and weights."""
        return self.features.folds


def parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Successive slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def scores_of(scores: Floats) -> Floats:
    """Return scores (n, k) as they are, but of shape (n,) if there is one output."""
    return scores[:, 0] if scores.shape[1] == 1 else scores


FoldSolver = Callable[[FitTask, int], list[Floats]]


def by_fold(task: FitTask, solve: FoldSolver) -> Iterator[Answer]:
    """Solve folds in parallel threads; all configurations of a fold together."""
    folds = range(len(task.folds.splits))
    for part in parts(list(folds), max(1, task.n_jobs)):
        if task.stop():
            return
        solved = run_in_threads(task.n_jobs, [(solve, (task, fold)) for fold in part])
        for fold, answers in zip(part, solved, strict=True):
            for i, scores in enumerate(answers):
                yield i, fold, scores
