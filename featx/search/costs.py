"""What a search costs, counted from the sizes of its problems and not by a clock.

A plan that depends on a clock chooses differently on a busy machine. So a budget is divided by these
estimates: the same data and settings give the same search everywhere. They are seconds of a reference machine
with two cores (AMD EPYC with AVX-512, 2026-11-29). ``python benchmarks/bench_growth.py`` shows what the
processor takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from featx.search.space import Configuration
from featx.solvers import LINEAR

FLOPS = 6e10
"""Floating-point operations a second of products of large matrices, on both cores."""

EXPONENTIALS = 2e8
"""Exponentials, or comparisons of a sort, a second, on both cores."""

PASSES = 60
"""Passes over the rows that a linear model takes in a search, on the mean."""

OVERHEAD = 0.001
"""Seconds of a fit of any size."""

PER_IMAGE = 0.005
"""Seconds of extracting an image with the default network. A search may take as long as the extraction."""

LEAST_BUDGET = 5.0
"""Seconds that a search may always take."""


def default_budget(n_rows: int) -> float:
    """Return the seconds that the extraction of as many images takes, at least `LEAST_BUDGET`."""
    return max(LEAST_BUDGET, PER_IMAGE * n_rows)


@dataclass(frozen=True)
class Sizes:
    """Sizes of the problems of a search.

    Parameters
    ----------
    n_train, n_test : int
        Rows of a training and of a test part.
    n_folds : int
        Number of folds.
    n_classes : int
        Number of classes.
    """

    n_train: int
    n_test: int
    n_folds: int
    n_classes: int

    @property
    def outputs(self) -> int:
        """Number of outputs of a linear model."""
        return 1 if self.n_classes == 2 else self.n_classes


def group_seconds(group: Sequence[Configuration], width: int, sizes: Sizes) -> float:
    """Return the seconds of evaluating configurations of one group on all folds.

    Parameters
    ----------
    group : sequence of Configuration
        Of one representation, scaling, head and class weights.
    width : int
        Columns of the representation.
    sizes : Sizes
        Rows, folds and classes.
    """
    n, held_out, d = sizes.n_train, sizes.n_test, width
    solver, points = group[0].head.solver, len(group)
    scores = 50.0 * held_out * sizes.outputs / EXPONENTIALS  # with the calibration
    products = 2.0 * min(n, d) ** 2 * max(n, d) / FLOPS / sizes.n_folds  # of all folds together
    if solver in LINEAR:
        fold = points * linear_seconds(n, d, sizes.outputs)
    elif solver in ("ridge", "lda"):
        inner = min(n, d)
        fold = products + points * (0.5 * inner**3 + 4.0 * inner**2 * sizes.outputs) / FLOPS
        fold += points * 2.0 * held_out * d * sizes.outputs / FLOPS
    elif solver == "rbf_svm":
        pairs = sizes.n_classes * (sizes.n_classes - 1) / 2
        fit = (4.0 * n * n + pairs * (held_out + 50)) / EXPONENTIALS
        fold = 2.0 * (n + held_out) * n / EXPONENTIALS + points * fit  # closed forms need the products, too
    elif solver == "neighbours":
        fold = 2.0 * held_out * n / EXPONENTIALS
    elif solver == "nearest_mean":
        fold = 2.0 * (n + held_out) * d * sizes.outputs / FLOPS
    else:  # any estimator, such as trees
        fold = points * 20.0 * n * d / EXPONENTIALS
    return sizes.n_folds * (fold + points * (scores + OVERHEAD))


def linear_seconds(n_rows: int, width: int, outputs: int, passes: int = PASSES) -> float:
    """Return the seconds of fitting a linear model once by an iterative solver."""
    multiply = 2.0 * n_rows**2 if n_rows < width else 4.0 * n_rows * width
    return passes * (multiply * outputs / FLOPS + 2.0 * n_rows * outputs / EXPONENTIALS)
