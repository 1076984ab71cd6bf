"""Nearest neighbours: every k, weighting and metric from one sorted top k for each fold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from featx.solvers.features import CHUNK_ROWS, ScaledFeatures
from featx.solvers.folds import Floats, Indices
from featx.solvers.task import Answer, FitTask, by_fold


def neighbours(task: FitTask) -> Iterator[Answer]:
    """Every k, weighting and metric from one distance matrix and one sorted top k for each fold."""
    return by_fold(task, _neighbours_fold)


def _neighbours_fold(task: FitTask, fold: int) -> list[Floats]:
    train, test = task.folds.splits[fold]
    y, classes = task.folds.y[train], task.folds.n_classes
    most = max(int(p["n_neighbors"]) for p in task.params)
    nearest = {
        metric: _nearest(task.features, fold, metric, min(most, len(train)))
        for metric in {p["metric"] for p in task.params}
    }
    answers = []
    for params in task.params:
        index, distance = (part[:, : int(params["n_neighbors"])] for part in nearest[params["metric"]])
        votes = _vote_weights(params, distance)
        cell = np.arange(len(test))[:, None] * classes + y[index]
        shares = np.bincount(cell.ravel(), votes.ravel(), minlength=len(test) * classes)
        shares = shares.reshape(len(test), classes)
        answers.append(shares / shares.sum(axis=1, keepdims=True))
    return answers


def _nearest(rows: ScaledFeatures, fold: int, metric: str, k: int) -> tuple[Indices, Floats]:
    """The k nearest training rows of each test row, nearest first: indices into train, distances."""
    train, test = rows.folds.splits[fold]
    found = [
        _nearest_of(rows, fold, metric, k, train, part)
        for part in np.split(test, range(CHUNK_ROWS, len(test), CHUNK_ROWS))
    ]
    return np.concatenate([index for index, _ in found]), np.concatenate([distance for _, distance in found])


def _nearest_of(
    rows: ScaledFeatures, fold: int, metric: str, k: int, train: Indices, test: Indices
) -> tuple[Indices, Floats]:
    if metric == "cosine":
        distance = rows.cosine_distances(fold, test, train)
    else:
        distance = np.sqrt(rows.squared_distances(fold, test, train))
    if k < len(train):
        index = np.argpartition(distance, k - 1, axis=1)[:, :k]
    else:
        index = np.broadcast_to(np.arange(len(train)), distance.shape)
    own = np.take_along_axis(distance, index, axis=1)
    order = np.argsort(own, axis=1, kind="stable")
    return np.take_along_axis(index, order, axis=1), np.take_along_axis(own, order, axis=1)


def _vote_weights(params: Mapping[str, Any], distance: Floats) -> Floats:
    if params["weights"] == "uniform":
        return np.ones_like(distance)
    if params["weights"] == "temperature":
        return np.asarray(np.exp((distance[:, :1] - distance) / params["temperature"]))
    same = distance == 0  # neighbours at distance 0 decide alone, as in scikit-learn
    return np.where(same.any(axis=1, keepdims=True), same, 1 / np.where(same, 1, distance))
