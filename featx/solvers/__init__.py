"""Many fits of one kind at once: every fold, every value of C, gamma, alpha or k, with shared computations.

A search needs hundreds of fits that differ in one number. What they share (scaled rows, Gram and
distance matrices, the kernel of a gamma, the nearest neighbours, the matrix products of the linear models)
is computed once here. The objectives are scikit-learn's own, so that the winner is a plain scikit-learn
model, the one that was scored. NumPy only: its BLAS is as fast as torch's on these shapes.

Every solver is a generator of (configuration, fold, decision scores of the fold's test rows), so that the
caller can score, prune and stop between two answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from featx.solvers.closed import lda, nearest_mean, ridge, solve_lda
from featx.solvers.features import CHUNK_ROWS, DEFAULT_MEMORY, Block, ScaledBlock, ScaledFeatures, as_block
from featx.solvers.fits import estimator, kernel_sample, rbf_svm
from featx.solvers.folds import CLASS_WEIGHTS, ClassWeights, Folds, Split, class_weights
from featx.solvers.linear import GramFeatures, fit_linear, logistic_ovr, softmax, solve_linear, squared_hinge
from featx.solvers.losses import LINEAR
from featx.solvers.moments import moment_bytes
from featx.solvers.neighbours import neighbours
from featx.solvers.streamed import StreamedFit, fit_streamed, streamed_bytes
from featx.solvers.task import KERNEL_ROWS, STREAM_ROWS, Answer, FitTask

SOLVERS: dict[str, Callable[[FitTask], Iterator[Answer]]] = {
    "softmax": softmax,
    "logistic_ovr": logistic_ovr,
    "squared_hinge": squared_hinge,
    "ridge": ridge,
    "lda": lda,
    "nearest_mean": nearest_mean,
    "neighbours": neighbours,
    "rbf_svm": rbf_svm,
    "estimator": estimator,
}

PRUNABLE = (*LINEAR, "rbf_svm", "estimator")
"""Solvers that can skip pruned configurations between folds; the others are too fast for it."""

__all__ = [
    "CHUNK_ROWS",
    "CLASS_WEIGHTS",
    "DEFAULT_MEMORY",
    "KERNEL_ROWS",
    "LINEAR",
    "PRUNABLE",
    "SOLVERS",
    "STREAM_ROWS",
    "Answer",
    "Block",
    "ClassWeights",
    "FitTask",
    "Folds",
    "GramFeatures",
    "ScaledBlock",
    "ScaledFeatures",
    "Split",
    "StreamedFit",
    "as_block",
    "class_weights",
    "fit_linear",
    "fit_streamed",
    "kernel_sample",
    "moment_bytes",
    "solve_lda",
    "solve_linear",
    "streamed_bytes",
]  # fmt: skip
