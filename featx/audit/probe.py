"""Quick cross-validated ridge classifiers of features, and nearest neighbours, for the checks."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from threadpoolctl import ThreadpoolController

from featx.evaluation import fit_calibration
from featx.exceptions import SearchWarning
from featx.splits import make_folds
from featx.threads import map_in_threads, n_threads

Floats = NDArray[Any]
Indices = NDArray[np.intp]
Fold = tuple[Indices, Indices]

PENALTIES = (0.003, 0.03, 0.3)
"""Ridge penalties, as a share of the trace of the kernel."""

FOLDS = 5
REFERENCES = 20_000
"""Most images that neighbours are searched among."""

BINS = 16


def probe_folds(codes: Indices, units: Indices | None = None) -> list[Fold]:
    """Folds of the images whose class has two units or more; none where fewer than two classes have.

    Parameters
    ----------
    codes : array of shape (n,), int
        Classes from 0.
    units : array of shape (n,), int, optional
        Images of one unit stay in one fold.
    """
    units = np.arange(len(codes)) if units is None else units
    pairs = np.unique(np.column_stack([codes, units]), axis=0)[:, 0]
    used = np.flatnonzero((np.bincount(pairs, minlength=int(codes.max()) + 1) >= 2)[codes])
    if len(np.unique(codes[used])) < 2:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SearchWarning)  # fewer folds are no matter here
        folds = make_folds(codes[used], n_splits=FOLDS, groups=units[used])
    return [(used[train], used[test]) for train, test in folds]


def probe_scores(features: Floats, codes: Indices, folds: list[Fold]) -> Floats:
    """Out-of-fold scores of a ridge classifier, shape (n, n_classes); NaN for images in no fold.

    Parameters
    ----------
    features : array of shape (n, d)
    codes : array of shape (n,), int
        Classes from 0.
    folds : list of (train, test)
        As `probe_folds` returns them.
    """
    scores = np.full((len(codes), int(codes.max()) + 1), np.nan)
    if not folds:
        return scores
    used = np.sort(np.concatenate([test for _, test in folds]))
    rows = _standard(np.asarray(features, np.float32)[used])
    target = np.eye(scores.shape[1], dtype=np.float32)[codes[used]]
    local = [(np.searchsorted(used, train), np.searchsorted(used, test)) for train, test in folds]
    every = _ridge(rows, target, local)
    right = [(one.argmax(axis=1) == codes[used]).mean() for one in every]
    scores[used] = every[int(np.argmax(right))]
    return scores


def probe_proba(features: Floats, codes: Indices, folds: list[Fold]) -> NDArray[np.float64]:
    """Calibrated `probe_scores`."""
    scores = probe_scores(features, codes, folds)
    used = ~np.isnan(scores).any(axis=1)
    proba = np.full(scores.shape, np.nan)
    if used.any():
        decision = scores[used, 1] - scores[used, 0] if scores.shape[1] == 2 else scores[used]
        proba[used] = fit_calibration(decision, codes[used], scores.shape[1]).proba(decision)
    return proba


def holdout_scores(features: Floats, codes: Indices, train: Indices, test: Indices) -> Floats:
    """Scores of test images by a ridge classifier of training images, shape (n_test, n_classes)."""
    both = np.concatenate([train, test])
    target = np.eye(int(codes.max()) + 1, dtype=np.float32)[codes[both]]
    fold = np.arange(len(train)), np.arange(len(train), len(both))
    return _ridge(_standard(np.asarray(features, np.float32)[both]), target, [fold])[1][fold[1]]


def balanced_accuracy(scores: Floats, codes: Indices) -> float:
    """Mean over classes of the share of images whose class has the highest score."""
    used = ~np.isnan(scores).any(axis=1)
    right = (scores.argmax(axis=1) == codes)[used]
    size = np.bincount(codes[used])
    return float((np.bincount(codes[used], weights=right)[size > 0] / size[size > 0]).mean())


def binned(values: Floats) -> Floats:
    """Values, and in which of `BINS` quantiles each is, as columns for a linear classifier."""
    parts = [values]
    for column in values.T:
        edges = np.unique(np.quantile(column, np.linspace(0, 1, BINS + 1)[1:-1]))
        parts.append(np.eye(len(edges) + 1)[np.searchsorted(edges, column, side="right")])
    return np.concatenate(parts, axis=1)


def nearest(features: Floats, queries: Indices, k: int) -> tuple[Indices, Floats]:
    """Return the `k` nearest other images of some images, and their cosines, both of shape (m, k)."""
    n = len(features)
    others = np.arange(n) if n <= REFERENCES else np.linspace(0, n - 1, REFERENCES).astype(np.intp)
    centred = features - features.mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-9)
    k = min(k, len(others) - 1)
    found, cosines = [np.empty((0, k), np.intp)], [np.empty((0, k), np.float32)]
    for start in range(0, len(queries), 1024):
        some = queries[start : start + 1024]
        cosine = unit[some] @ unit[others].T
        cosine[some[:, None] == others] = -2
        top = np.argpartition(-cosine, k - 1, axis=1)[:, :k] if k else np.empty((len(some), 0), np.intp)
        value = np.take_along_axis(cosine, top, axis=1)
        order = np.argsort(-value, axis=1)
        found.append(others[np.take_along_axis(top, order, axis=1)])
        cosines.append(np.take_along_axis(value, order, axis=1))
    return np.concatenate(found), np.concatenate(cosines)


def _standard(rows: Floats) -> Floats:
    rows = rows - rows.mean(axis=0)
    spread = rows.std(axis=0)
    rows /= np.where(spread > 1e-6, spread, 1)
    return np.asarray(rows / np.sqrt(max(1, rows.shape[1])), np.float32)


def _ridge(rows: Floats, target: Floats, folds: list[Fold]) -> list[Floats]:
    """Out-of-fold scores for each penalty, by the smaller of the kernel and the matrix of the columns."""
    by_kernel = rows.shape[1] > len(rows)
    product = rows @ rows.T if by_kernel else rows.T @ rows
    found = [np.zeros_like(target) for _ in PENALTIES]

    def solve(fold: Fold) -> None:
        train, test = fold
        mean = target[train].mean(axis=0)
        centred = target[train] - mean
        if by_kernel:
            left, right, score = product[np.ix_(train, train)], centred, product[np.ix_(test, train)]
        else:
            left, right, score = product - rows[test].T @ rows[test], rows[train].T @ centred, rows[test]
        diagonal = left.diagonal().copy()
        unit = max(diagonal.mean(), 1e-6) * len(left) ** 0.5
        for one, penalty in zip(found, PENALTIES, strict=True):
            np.fill_diagonal(left, diagonal + penalty * unit)
            # the transpose is the same matrix in the order of LAPACK, which otherwise copies it slowly
            factor = cho_factor(left.copy().T, overwrite_a=True, check_finite=False)
            one[test] = score @ cho_solve(factor, right, check_finite=False) + mean

    with _pools().limit(limits=1):  # OpenBLAS factorises so small matrices faster by one thread than by two
        map_in_threads(n_threads(), solve, folds)
    return found


@functools.cache
def _pools() -> ThreadpoolController:
    """The thread pools of NumPy and SciPy, found once: a search of all loaded libraries takes 5 ms."""
    return ThreadpoolController()
