"""One decision tree, a random forest, and gradient boosting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.heads import formulas
from featx.heads.base import Head, Params, Shape, product
from featx.heads.saved import FLOAT, Array, Arrays, Dims, SavedForm, require

PCA_COMPONENTS = 64
"""Boosting bins every column for every split: on 1,280 columns and 10 classes one fit takes minutes."""

MAX_TREES = {"tree": 1, "forest": 2_000, "boosting": 100_000}
"""Most trees of a saved head: each is a Python object, which may be larger than its nodes."""

TREE_PARAMS = {"max_depth": int, "min_samples_leaf": int}
FOREST_PARAMS = {"n_estimators": int, "max_features": float, "min_samples_leaf": int}
BOOSTING_PARAMS = {"learning_rate": float, "max_iter": int, "max_leaf_nodes": int}

LEAF = -1
"""Child of a leaf in scikit-learn's trees."""


def suggest_tree(trial: Any, prefix: str, n_rows: int) -> dict[str, Any]:
    """Draw the size of one tree."""
    return {
        "max_depth": trial.suggest_int(prefix + "max_depth", 2, 32, log=True),
        "min_samples_leaf": trial.suggest_int(prefix + "min_samples_leaf", 1, 32, log=True),
    }


def suggest_forest(trial: Any, prefix: str, n_rows: int) -> dict[str, Any]:
    """Draw the number, diversity and size of the trees."""
    return {
        "n_estimators": trial.suggest_int(prefix + "n_estimators", 100, 500, step=100),
        "max_features": trial.suggest_float(prefix + "max_features", 0.005, 0.2, log=True),
        "min_samples_leaf": trial.suggest_int(prefix + "min_samples_leaf", 1, 8, log=True),
    }


def suggest_boosting(trial: Any, prefix: str, n_rows: int) -> dict[str, Any]:
    """Draw the learning rate, the number and the size of the trees."""
    return {
        "learning_rate": trial.suggest_float(prefix + "learning_rate", 0.02, 0.3, log=True),
        "max_iter": trial.suggest_int(prefix + "max_iter", 50, 200, step=50),
        "max_leaf_nodes": trial.suggest_int(prefix + "max_leaf_nodes", 4, 31, log=True),
    }


def make_tree(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """One decision tree."""
    from sklearn.tree import DecisionTreeClassifier

    return DecisionTreeClassifier(**params, random_state=random_state)


def make_forest(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """A random forest; one thread, since folds run side by side."""
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(**params, random_state=random_state, n_jobs=1)


def make_boosting(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """Histogram gradient boosting on the leading principal components."""
    from sklearn.decomposition import PCA
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import Pipeline

    components = min(PCA_COMPONENTS, *shape) if min(shape) > 0 else PCA_COMPONENTS
    return Pipeline(
        [
            ("pca", PCA(components, svd_solver="auto", random_state=random_state)),
            (
                "boosting",
                HistGradientBoostingClassifier(**params, early_stopping=False, random_state=random_state),
            ),
        ]
    )


# Saved form of scikit-learn's trees: the nodes of all trees one after the other, one array a field.

NODE_FIELDS = {
    "left_child": "int64",
    "right_child": "int64",
    "feature": "int64",
    "threshold": "float64",
    "impurity": "float64",
    "n_node_samples": "int64",
    "weighted_n_node_samples": "float64",
    "missing_go_to_left": "uint8",
}
"""Fields of ``sklearn.tree._tree.NODE_DTYPE``, which is not imported here."""

FLAGS = ("missing_go_to_left", "is_leaf")

NODES = {
    name: Array((dtype,), ("n_nodes",), below=2 if name in FLAGS else None)
    for name, dtype in NODE_FIELDS.items()
}
TREES = NODES | {
    "values": Array(("float64",), ("n_nodes", "n_classes"), low=0),
    "sizes": Array(("int64",), ("n_trees",), low=1, below=2**31),
    "depths": Array(("int64",), ("n_trees",), low=0, below="n_nodes"),
}


def _trees_to_arrays(trees: list[Any]) -> Arrays:
    states = [tree.tree_.__getstate__() for tree in trees]
    return {name: np.concatenate([own["nodes"][name] for own in states]) for name in NODE_FIELDS} | {
        "values": np.concatenate([own["values"][:, 0] for own in states]),
        "sizes": np.array([own["node_count"] for own in states], np.int64),
        "depths": np.array([own["max_depth"] for own in states], np.int64),
    }


def _trees_from_arrays(arrays: Arrays, dims: Dims) -> Iterator[Any]:
    from sklearn.tree._tree import NODE_DTYPE, Tree

    for part, depth in zip(_parts(arrays["sizes"]), arrays["depths"].tolist(), strict=True):
        nodes = np.zeros(part.stop - part.start, NODE_DTYPE)
        for name in NODE_FIELDS:
            nodes[name] = arrays[name][part]
        tree = Tree(dims["n_features"], np.array([dims["n_classes"]], np.intp), 1)
        values = np.ascontiguousarray(arrays["values"][part, None])
        tree.__setstate__({"max_depth": depth, "node_count": len(nodes), "nodes": nodes, "values": values})
        yield tree


def _check_nodes(
    left: NDArray[Any],
    right: NDArray[Any],
    feature: NDArray[Any],
    inner: NDArray[np.bool_],
    sizes: NDArray[np.int64],
    n_features: int,
) -> None:
    """Check what native code follows without a check: children and features.

    A child stands after its parent and within its tree, so there is no cycle.
    """
    n_nodes = len(left)
    require(int(sizes.max()) <= n_nodes and len(sizes) <= n_nodes, "a tree has more nodes than the file")
    require(sum(sizes.tolist()) == n_nodes, "the sizes of the trees do not fit their nodes")
    for part in _parts(sizes):
        own = np.flatnonzero(inner[part])
        for child in (left[part][own], right[part][own]):
            require(((child > own) & (child < part.stop - part.start)).all(), "a tree's node points astray")
    asked = feature[inner]
    require(((asked >= 0) & (asked < n_features)).all(), "a tree asks for a feature that does not exist")


def _parts(sizes: NDArray[np.int64]) -> list[slice]:
    """Nodes of each tree."""
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for end, size in zip(ends, sizes.tolist(), strict=True)]


def _as_fitted(estimator: Any, tree: Any, classes: NDArray[Any], dims: Dims) -> Any:
    vars(estimator).update(
        classes_=classes,
        n_classes_=len(classes),
        n_outputs_=1,
        n_features_in_=dims["n_features"],
        tree_=tree,
    )
    return estimator


def tree_to_arrays(tree: Any) -> tuple[Arrays, dict[str, Any]]:
    """Return the nodes of a decision tree."""
    return _trees_to_arrays([tree]), {name: getattr(tree, name) for name in TREE_PARAMS}


def _check_trees(arrays: Arrays, dims: Dims) -> None:
    left, right = arrays["left_child"], arrays["right_child"]
    _check_nodes(left, right, arrays["feature"], left != LEAF, arrays["sizes"], dims["n_features"])


def check_tree(arrays: Arrays, params: dict[str, Any], dims: Dims) -> None:
    """Check that it is one tree, and its nodes."""
    require(dims["n_trees"] == MAX_TREES["tree"], "a decision tree is not one tree")
    _check_trees(arrays, dims)


def check_forest(arrays: Arrays, params: dict[str, Any], dims: Dims) -> None:
    """Check the number of trees, and their nodes."""
    require(dims["n_trees"] == params["n_estimators"], "the number of trees does not fit a forest")
    require(dims["n_trees"] <= MAX_TREES["forest"], "a forest has too many trees")
    _check_trees(arrays, dims)


def tree_from_arrays(arrays: Arrays, params: dict[str, Any], classes: NDArray[Any], dims: Dims) -> Any:
    """Build a decision tree from its nodes."""
    (tree,) = _trees_from_arrays(arrays, dims)
    return _as_fitted(make_tree(params), tree, classes, dims)


def forest_to_arrays(forest: Any) -> tuple[Arrays, dict[str, Any]]:
    """Return the nodes of all trees."""
    return _trees_to_arrays(forest.estimators_), {name: getattr(forest, name) for name in FOREST_PARAMS}


def forest_from_arrays(arrays: Arrays, params: dict[str, Any], classes: NDArray[Any], dims: Dims) -> Any:
    """Build a random forest from the nodes of its trees."""
    from sklearn.tree import DecisionTreeClassifier

    forest, codes = make_forest(params), np.arange(len(classes), dtype=float)
    leaf = {"min_samples_leaf": params["min_samples_leaf"], "max_features": params["max_features"]}
    vars(forest).update(
        classes_=classes,
        n_classes_=len(classes),
        n_outputs_=1,
        n_features_in_=dims["n_features"],
        estimator_=DecisionTreeClassifier(),
        estimators_=[
            _as_fitted(DecisionTreeClassifier(**leaf), tree, codes, dims)
            for tree in _trees_from_arrays(arrays, dims)
        ],
    )
    return forest


# Saved form of boosting: the principal components, and of the trees what `predict` reads.

BOOSTED_FIELDS = {
    "value": "float64",
    "feature_idx": "int64",
    "num_threshold": "float64",
    "missing_go_to_left": "uint8",
    "left": "uint32",
    "right": "uint32",
    "is_leaf": "uint8",
}
"""Fields of scikit-learn's ``PREDICTOR_RECORD_DTYPE`` that `predict` reads."""

BOOSTED = {
    name: Array((dtype,), ("n_nodes",), below=2 if name in FLAGS else None)
    for name, dtype in BOOSTED_FIELDS.items()
} | {
    "sizes": Array(("int64",), ("n_trees",), low=1, below=2**31),
    "baseline": Array(("float64",), ("n_outputs",)),
    "pca_mean": Array(FLOAT, ("n_features",)),
    "components": Array(FLOAT, ("n_components", "n_features")),
}


def boosting_to_arrays(pipeline: Any) -> tuple[Arrays, dict[str, Any]]:
    """Return the principal components and the nodes of all trees, round by round."""
    pca, boosting = pipeline.named_steps["pca"], pipeline.named_steps["boosting"]
    trees = [tree.nodes for of_round in boosting._predictors for tree in of_round]
    arrays = {name: np.concatenate([nodes[name] for nodes in trees]) for name in BOOSTED_FIELDS} | {
        "sizes": np.array([len(nodes) for nodes in trees], np.int64),
        "baseline": boosting._baseline_prediction[0],
        "pca_mean": pca.mean_,
        "components": pca.components_,
    }
    return arrays, {name: getattr(boosting, name) for name in BOOSTING_PARAMS}


def check_boosting(arrays: Arrays, params: dict[str, Any], dims: Dims) -> None:
    """Check the number of trees, and their nodes."""
    require(dims["n_trees"] <= MAX_TREES["boosting"], "boosting has too many trees")
    rounds = params["max_iter"] * dims["n_outputs"]
    require(dims["n_trees"] == rounds, "the number of trees does not fit the rounds")
    inner, sizes = arrays["is_leaf"] == 0, arrays["sizes"]
    children = (arrays["left"], arrays["right"])
    _check_nodes(*children, arrays["feature_idx"], inner, sizes, dims["n_components"])


def boosting_from_arrays(arrays: Arrays, params: dict[str, Any], classes: NDArray[Any], dims: Dims) -> Any:
    """Build the principal components and the boosted trees."""
    from sklearn.ensemble._hist_gradient_boosting.binning import _BinMapper
    from sklearn.ensemble._hist_gradient_boosting.common import PREDICTOR_RECORD_DTYPE
    from sklearn.ensemble._hist_gradient_boosting.predictor import TreePredictor

    n_outputs, n_components = dims["n_outputs"], dims["n_components"]
    pipeline = make_boosting(params, None, (n_components, n_components))
    pca, boosting = pipeline.named_steps["pca"], pipeline.named_steps["boosting"]
    pca.set_params(n_components=n_components)
    vars(pca).update(
        mean_=arrays["pca_mean"],
        explained_variance_=np.ones(n_components),  # scikit-learn 1.6 reads it, and uses it to whiten only
        components_=arrays["components"],
        n_components_=n_components,
        n_features_in_=dims["n_features"],
    )
    nodes = np.zeros(dims["n_nodes"], PREDICTOR_RECORD_DTYPE)
    for name in BOOSTED_FIELDS:
        nodes[name] = arrays[name]
    no_categories = np.zeros((0, 8), np.uint32)
    trees = [TreePredictor(nodes[part], no_categories, no_categories) for part in _parts(arrays["sizes"])]
    mapper = _BinMapper()
    vars(mapper).update(is_categorical_=np.zeros(n_components, np.uint8), bin_thresholds_=[])
    vars(boosting).update(
        classes_=classes,
        n_features_in_=n_components,
        n_trees_per_iteration_=n_outputs,
        _n_features=n_components,
        _preprocessor=None,
        _baseline_prediction=arrays["baseline"][None],
        _predictors=[trees[start : start + n_outputs] for start in range(0, len(trees), n_outputs)],
        _bin_mapper=mapper,
    )
    boosting._loss = boosting._get_loss(sample_weight=None)
    return pipeline


TREE = Head(
    "tree",
    make_tree,
    suggest_tree,
    product(max_depth=[8], min_samples_leaf=[4, 1]),
    solver="estimator",
    cost=0,
    saved=SavedForm(TREES, tree_to_arrays, tree_from_arrays, TREE_PARAMS, check_tree),
    formula=formulas.TREES,
    scalings=("none",),
    votes=True,
)
FOREST = Head(
    "forest",
    make_forest,
    suggest_forest,
    product(n_estimators=[200], max_features=[0.03], min_samples_leaf=[1, 3]),
    solver="estimator",
    cost=5,
    saved=SavedForm(TREES, forest_to_arrays, forest_from_arrays, FOREST_PARAMS, check_forest),
    formula=formulas.TREES,
    scalings=("none",),
    votes=True,
)
BOOSTING = Head(
    "boosting",
    make_boosting,
    suggest_boosting,
    product(learning_rate=[0.1], max_iter=[100], max_leaf_nodes=[15]),
    solver="estimator",
    cost=5,
    saved=SavedForm(BOOSTED, boosting_to_arrays, boosting_from_arrays, BOOSTING_PARAMS, check_boosting),
    formula=formulas.BOOSTING,
    scalings=("none",),
)
