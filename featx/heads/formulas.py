"""Decision scores of saved heads from their arrays, in NumPy or torch, without scikit-learn.

A served model has no scikit-learn in its process, and an exported graph is traced from the same formulas in
torch. They agree with the estimators that `featx.heads` builds from the same arrays, up to rounding. `xp` is
the module ``numpy`` or ``torch``; arrays and rows are of its type, floats in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featx.heads.scores import VOTE_FLOOR

Arrays = Mapping[str, Any]
Params = Mapping[str, Any]


def as_saved(arrays: Arrays, params: Params, n_classes: int) -> tuple[Arrays, Params]:
    """Return the arrays and parameters as they are."""
    return arrays, params


@dataclass(frozen=True)
class Formula:
    """How the decision scores of a saved head are computed.

    Parameters
    ----------
    scores : callable
        ``scores(xp, arrays, params, rows)`` returns decision scores of scaled rows (n, n_features): shape
        (n,) for two classes, else (n, n_classes).
    prepare : callable
        ``prepare(arrays, params, n_classes)`` returns the arrays and parameters that `scores` needs, from the
        saved ones, in NumPy.
    """

    scores: Callable[[Any, Arrays, Params, Any], Any]
    prepare: Callable[[Arrays, Params, int], tuple[Arrays, Params]] = as_saved


def scale(xp: Any, scaling: str, widths: Sequence[int], arrays: Arrays, rows: Any) -> Any:
    """Scale features of shape (n, n_columns) as the transformer of `featx.heads.make_scaler` does.

    Parameters
    ----------
    xp : module
        numpy or torch.
    scaling, widths
        Of the saved head.
    arrays : mapping
        The arrays of its scaler.
    rows : array of shape (n, n_columns)
    """
    if "columns" in arrays:
        rows, widths = rows[:, arrays["columns"]], [len(arrays["columns"])]
    rows = rows - arrays["mean"] if "mean" in arrays else rows
    rows = rows / arrays["scale"] if "scale" in arrays else rows
    ends = itertools.accumulate(widths)
    blocks = [rows[:, end - width : end] for end, width in zip(ends, widths, strict=True)]
    if scaling in ("l2", "center_l2"):
        blocks = [_unit(xp, block) for block in blocks]
    else:
        blocks = [block / width**0.5 for block, width in zip(blocks, widths, strict=True)]
    return blocks[0] if len(blocks) == 1 else _side_by_side(xp, blocks)


def _side_by_side(xp: Any, blocks: Sequence[Any]) -> Any:
    """Join columns. OpenVINO 2025.0 knows `torch.cat` by this name only, which NumPy does not have."""
    return np.concatenate(blocks, axis=1) if xp is np else xp.cat(blocks, 1)


def _linear(xp: Any, arrays: Arrays, params: Params, rows: Any) -> Any:
    scores = rows @ arrays["coef"].T + arrays["intercept"]
    return scores[:, 0] if len(arrays["coef"]) == 1 else scores


def _nearest_mean(xp: Any, arrays: Arrays, params: Params, rows: Any) -> Any:
    return _two_class(-_squared_distances(rows, arrays["means"]))


def _prepare_neighbours(arrays: Arrays, params: Params, n_classes: int) -> tuple[Arrays, Params]:
    features = np.asarray(arrays["features"], np.float64)
    if params["metric"] == "cosine":
        features = _unit(np, features)
    return {"features": features, "labels": arrays["labels"], "classes": np.arange(n_classes)}, params


def _neighbours(xp: Any, arrays: Arrays, params: Params, rows: Any) -> Any:
    known, k = arrays["features"], params["n_neighbors"]
    if params["metric"] == "cosine":
        distances = xp.clip(1 - _unit(xp, rows) @ known.T, 0, 2)
    else:
        distances = xp.sqrt(xp.clip(_squared_distances(rows, known), 0, None))
    if xp is np:
        places = np.argpartition(distances, k - 1, axis=1)[:, :k]
        nearest = np.take_along_axis(distances, places, axis=1)
    else:
        nearest, places = xp.topk(distances, k, dim=1, largest=False)
    weights = xp.ones_like(nearest)
    if params["weights"] == "distance":  # neighbours at distance 0, if there are any, decide alone
        same: Any = nearest <= 0
        inverse = 1 / xp.where(same, weights, nearest)
        weights = xp.where(same.any(axis=1)[:, None], xp.where(same, weights, 0 * weights), inverse)
    elif params["weights"] == "temperature":
        weights = xp.exp((xp.amin(nearest, 1)[:, None] - nearest) / params["temperature"])
    of_class = arrays["labels"][places][:, :, None] == arrays["classes"]
    votes = (weights[:, :, None] * of_class).sum(axis=1)
    return _vote_scores(xp, votes / votes.sum(axis=1, keepdims=True))


def _prepare_svm(arrays: Arrays, params: Params, n_classes: int) -> tuple[Arrays, Params]:
    """Tables over pairs of classes (i, j): where their coefficients stand, their intercept, and i < j."""
    i, j = np.indices((n_classes, n_classes), np.int32)
    place = i * (n_classes - 1) + np.where(j > i, j - 1, np.minimum(j, n_classes - 2))
    intercept = np.zeros((n_classes, n_classes))
    intercept[np.triu_indices(n_classes, 1)] = arrays["intercept"]
    prepared = {
        "vectors": arrays["vectors"],
        "dual_coef": arrays["dual_coef"],
        "place": place.ravel(),
        "intercept": intercept + intercept.T,
        "first": i < j,
        "other": i != j,
    }
    return prepared, {**params, "counts": arrays["counts"].tolist()}


def _svm(xp: Any, arrays: Arrays, params: Params, rows: Any) -> Any:
    """One decision for each pair of classes, then the votes, as scikit-learn's one-against-the-rest scores.

    The support vectors stand class by class, with a row of coefficients for each other class.
    """
    kernel = xp.exp(-params["gamma"] * xp.clip(_squared_distances(rows, arrays["vectors"]), 0, None))
    dual, n_classes, start, parts = arrays["dual_coef"], len(params["counts"]), 0, []
    for count in params["counts"]:
        own = slice(start, start + count)
        parts.append(kernel[:, own] @ dual[:, own].T)
        start += count
    of_class = _side_by_side(xp, parts)[:, arrays["place"]].reshape(-1, n_classes, n_classes)
    pairs = of_class + of_class.swapaxes(1, 2) + arrays["intercept"]
    if n_classes == 2:
        return -pairs[:, 0, 1]
    first, none = arrays["first"], xp.zeros_like(pairs)
    wins = ((pairs >= 0) & first) | ((pairs < 0) & ~first)
    votes = xp.where(wins & arrays["other"], xp.ones_like(pairs), none).sum(axis=2)
    sums = xp.where(arrays["other"], xp.where(first, pairs, -pairs), none).sum(axis=2)
    return votes + sums / (3 * (xp.abs(sums) + 1))


def _joined(left: Any, right: Any, feature: Any, inner: Any, sizes: Any) -> dict[str, Any]:
    """Nodes of all trees in one table; a leaf is its own child."""
    ends = np.cumsum(sizes)
    start = np.repeat(ends - sizes, sizes)
    own = np.arange(len(inner))
    return {
        "left": np.where(inner, left + start, own).astype(np.int64),
        "right": np.where(inner, right + start, own).astype(np.int64),
        "feature": np.where(inner, feature, 0).astype(np.int64),
        "roots": (ends - sizes).astype(np.int64),
    }


def _depth(table: Mapping[str, Any]) -> int:
    """Steps from the roots to the deepest leaf; a child stands after its parent."""
    depth, nodes = 0, table["roots"]
    while True:
        nodes = nodes[table["left"][nodes] != nodes]
        if not len(nodes):
            return depth
        nodes, depth = np.concatenate([table["left"][nodes], table["right"][nodes]]), depth + 1


def _leaves(xp: Any, arrays: Arrays, depth: int, rows: Any) -> Any:
    """Leaf of each row in each tree, shape (n, n_trees)."""
    along = np.take_along_axis if xp is np else xp.take_along_dim
    nodes = xp.zeros_like(rows[:, :1], dtype=xp.int64) + arrays["roots"]
    for _ in range(depth):
        right = along(rows, arrays["feature"][nodes], 1) > arrays["threshold"][nodes]
        nodes = xp.where(right, arrays["right"][nodes], arrays["left"][nodes])
    return nodes


def _prepare_trees(arrays: Arrays, params: Params, n_classes: int) -> tuple[Arrays, Params]:
    inner = arrays["left_child"] != -1
    table = _joined(arrays["left_child"], arrays["right_child"], arrays["feature"], inner, arrays["sizes"])
    prepared = table | {"threshold": arrays["threshold"], "values": arrays["values"]}
    return prepared, {"depth": _depth(table)}


def _trees(xp: Any, arrays: Arrays, params: Params, rows: Any) -> Any:
    single = rows.astype(np.float32) if xp is np else rows.to(xp.float32)  # as scikit-learn compares them
    leaves = _leaves(xp, arrays, params["depth"], single + 0 * rows)
    return _vote_scores(xp, arrays["values"][leaves].sum(axis=1) / leaves.shape[1])


def _prepare_boosting(arrays: Arrays, params: Params, n_classes: int) -> tuple[Arrays, Params]:
    inner = arrays["is_leaf"] == 0
    left, right = (arrays[name].astype(np.int64) for name in ("left", "right"))
    table = _joined(left, right, arrays["feature_idx"], inner, arrays["sizes"])
    prepared = table | {
        "threshold": arrays["num_threshold"],
        "value": arrays["value"],
        "components": np.asarray(arrays["components"], np.float64),
        "pca_mean": np.asarray(arrays["pca_mean"], np.float64),
        "baseline": arrays["baseline"],
    }
    return prepared, {"depth": _depth(table)}


def _boosting(xp: Any, arrays: Arrays, params: Params, rows: Any) -> Any:
    components = (rows - arrays["pca_mean"]) @ arrays["components"].T
    leaves = _leaves(xp, arrays, params["depth"], components)
    n_outputs = len(arrays["baseline"])
    values = arrays["value"][leaves].reshape(-1, leaves.shape[1] // n_outputs, n_outputs)  # round by round
    scores = values.sum(axis=1) + arrays["baseline"]
    return scores[:, 0] if scores.shape[1] == 1 else scores


def _unit(xp: Any, rows: Any) -> Any:
    """Rows of length 1; a row of zeros stays as it is."""
    length = xp.sqrt((rows * rows).sum(axis=1, keepdims=True))
    return rows / xp.where(length > 0, length, xp.ones_like(length))


def _squared_distances(rows: Any, others: Any) -> Any:
    squares = (rows * rows).sum(axis=1, keepdims=True) + (others * others).sum(axis=1)
    return squares - 2 * rows @ others.T


def _vote_scores(xp: Any, shares: Any) -> Any:
    return _two_class(xp.log(xp.clip(shares, VOTE_FLOOR, None)))


def _two_class(scores: Any) -> Any:
    return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores


LINEAR = Formula(_linear)
NEAREST_MEAN = Formula(_nearest_mean)
NEIGHBOURS = Formula(_neighbours, _prepare_neighbours)
SVM = Formula(_svm, _prepare_svm)
TREES = Formula(_trees, _prepare_trees)
BOOSTING = Formula(_boosting, _prepare_boosting)
