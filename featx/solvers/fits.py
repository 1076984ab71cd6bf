"""Heads that scikit-learn fits: SVMs on shared kernels, and any classifier, fold by fold."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from typing import Any

import joblib
import numpy as np
import sklearn
from joblib.parallel import get_active_backend
from sklearn.svm import SVC

from featx.solvers.folds import Floats, Folds, Indices, class_weights
from featx.solvers.task import Answer, FitTask, parts
from featx.splits import stratified_sample
from featx.threads import run_in_threads

DISTRIBUTED = ("RayBackend", "DaskDistributedBackend")
"""joblib's backends that compute on a cluster."""

FASTER = "sklearnex.svm"
"""scikit-learn-intelex, where it is installed (version 2026.2.0 gave the same scores)."""


def rbf_svm(task: FitTask) -> Iterator[Answer]:
    """RBF SVMs: distances once a fold, the kernel once for each (fold, gamma), every C on it.

    After the first fold configurations may be pruned. With more than ``task.kernel_rows`` training rows
    each fit uses a stratified sample of them.
    """
    by_gamma: dict[float, list[int]] = {}
    for i, params in enumerate(task.params):
        by_gamma.setdefault(float(params["gamma"]), []).append(i)
    folds = range(len(task.folds.splits))
    for fold in folds:
        train = kernel_sample(task.folds, fold, task.kernel_rows, task.random_state)
        workers = max(1, min(task.n_jobs, int(task.memory // (12 * len(train) * task.features.n + 1))))
        workers = workers if svc_class() is SVC else 1  # the other one has threads of its own
        squares = (
            task.features.squared_distances(fold, train, train),
            task.features.squared_distances(fold, task.folds.splits[fold][1], train),
        )
        groups = [[i for i in own if task.alive(i)] for own in by_gamma.values()]
        groups = _spread([group for group in groups if group], workers)
        for part in parts(groups, workers):
            if task.stop():
                return
            solved = run_in_threads(workers, [(_svm_fits, (task, squares, train, group)) for group in part])
            for answers in solved:
                for i, scores in answers:
                    yield i, fold, scores


def kernel_sample(folds: Folds, fold: int, most: int, random_state: int) -> Indices:
    """Training rows of a fold, or a stratified sample of `most` of them."""
    train = folds.splits[fold][0]
    if len(train) <= most:
        return train
    return np.sort(train[stratified_sample(folds.y[train], most, [random_state, fold])])


def _spread(groups: list[list[int]], workers: int) -> list[list[int]]:
    """Split the largest groups until every worker has one."""
    while groups and len(groups) < workers and len(largest := max(groups, key=len)) > 1:
        groups.remove(largest)
        groups += [largest[::2], largest[1::2]]
    return groups


def _svm_fits(
    task: FitTask, squares: tuple[Floats, Floats], train: Indices, group: list[int]
) -> list[tuple[int, Floats]]:
    gamma = float(task.params[group[0]]["gamma"])
    kernel, held_out = (np.exp(own * np.asarray(-gamma, own.dtype)).astype(np.float64) for own in squares)
    own = task.folds.row_weights(train)
    y = task.folds.y[train]
    weight = own * class_weights(task.class_weight, y, own, task.folds.n_classes)[y]
    plain = task.folds.weight is None and task.class_weight is None
    answers = []
    with sklearn.config_context(assume_finite=True):
        for i in group:
            svm = svc_class()(C=float(task.params[i]["C"]), kernel="precomputed", cache_size=200)
            svm.fit(kernel, y, None if plain else weight)
            answers.append((i, svm.decision_function(held_out)))
    return answers


@functools.cache
def svc_class() -> Any:
    """The fastest SVC that is installed. The selected model is always fitted by scikit-learn's own."""
    try:
        return importlib.import_module(FASTER).SVC
    except ImportError:  # also where one of its libraries is missing
        return SVC


def estimator(task: FitTask) -> Iterator[Answer]:
    """Any scikit-learn classifier, fold by fold, so that configurations can be pruned between folds.

    With joblib's backend of Ray or Dask (``joblib.parallel_config(backend="ray")``) the fits of all folds are
    distributed together, and none is pruned.
    """
    if _is_distributed():
        where = [(fold, i) for fold in range(len(task.folds.splits)) for i in range(len(task.params))]
        sent = (joblib.delayed(_fit)(*arguments) for arguments in _all_fits(task))
        for (fold, i), scores in zip(where, joblib.Parallel(n_jobs=-1)(sent), strict=True):
            yield i, fold, scores
        return
    for fold in range(len(task.folds.splits)):
        rows = task.features.of_fold(fold)
        wanted = [i for i in range(len(task.params)) if task.alive(i)]
        for part in parts(wanted, max(1, task.n_jobs)):
            if task.stop():
                return
            fits = [(_fit, _arguments(task, rows, fold, i)) for i in part]
            for i, scores in zip(part, run_in_threads(task.n_jobs, fits), strict=True):
                yield i, fold, scores


def _is_distributed() -> bool:
    """Whether joblib's backend computes in other processes of a cluster."""
    backend, _ = get_active_backend()
    return type(backend).__name__ in DISTRIBUTED


def _all_fits(task: FitTask) -> Iterator[tuple[Any, ...]]:
    """Arguments of `_fit` for every fold and configuration; those of one fold share its rows."""
    for fold in range(len(task.folds.splits)):
        rows = task.features.of_fold(fold)
        for i in range(len(task.params)):
            yield _arguments(task, rows, fold, i)


def _arguments(task: FitTask, rows: Floats, fold: int, i: int) -> tuple[Any, ...]:
    """Arguments of `_fit`: a model, plain arrays, and the name of the weights."""
    train, test = task.folds.splits[fold]
    assert task.make is not None
    model = task.make(task.params[i], (len(train), rows.shape[1]))
    plain = task.folds.weight is None and task.class_weight is None
    weight = None if plain else task.folds.training_weights(fold, task.class_weight)
    last = f"{model.steps[-1][0]}__sample_weight" if hasattr(model, "steps") else "sample_weight"
    return model, rows, train, task.folds.y[train], test, {} if weight is None else {last: weight}


def _fit(
    model: Any, rows: Floats, train: Indices, y: Indices, test: Indices, weights: dict[str, Floats]
) -> Floats:
    with sklearn.config_context(assume_finite=True):
        model.fit(rows[train], y, **weights)
        if hasattr(model, "decision_function"):
            return np.asarray(model.decision_function(rows[test]))
        return np.asarray(model.predict_proba(rows[test]))
