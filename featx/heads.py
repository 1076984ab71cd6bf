"""The classifiers to try: how to build each, what to tune, and which coarse values to start from.

Rows reach a head scaled to about unit length: each block is scaled on its own (see `SCALINGS`) and divided
by the square root of its width unless its rows have length 1 already. So one range of C, gamma or alpha
serves every representation, and blocks side by side weigh the same. What is built is a plain scikit-learn
pipeline; how many of them are fitted at once is the solvers' matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from featx.exceptions import UsageError

Params = Mapping[str, Any]

SCALINGS = ("standard", "l2", "center_l2", "none")
"""What may be done to each block: unit variance, unit length, centred then unit length, nothing."""

LEARNT_SCALINGS = ("standard", "center_l2")
"""Those that learn from the training rows, and so depend on their weights."""

PCA_COMPONENTS = 64
"""Boosting bins every column for every split: on 1,280 columns and 10 classes one fit takes minutes."""

VOTE_FLOOR = 1e-3
"""Smallest class share that counts: five neighbours all voting against are not a score of -inf."""


@dataclass(frozen=True)
class Head:
    """A classifier to try.

    Parameters
    ----------
    name : str
        Its key in `HEADS`, and the prefix of its parameters in a study (``"rbf_svm__gamma"``).
    make : callable
        ``make(params, random_state, shape)`` builds the scikit-learn classifier for scaled rows, where
        `shape` is (rows, columns) of what it will be fitted on.
    suggest : callable
        ``suggest(trial, prefix, n_rows)`` draws the parameters (without prefix) from an Optuna trial.
    grid : tuple of dict
        Coarse values; the first is the known-good point that is tried before anything else.
    solver : str
        The entry of ``featx.solvers.SOLVERS`` that fits many at once; ``"estimator"`` fits one by one.
    cost : int
        Rank of what a prediction costs, for ties: the cheaper head wins.
    takes_weights : bool
        Whether rows (and so classes) can be weighted.
    streams : bool
        Whether it can be fitted from chunks of rows, for sets that do not fit in memory.
    scalings : tuple of str
        Scalings of the coarse grid; Optuna may draw any.
    min_classes : int
        3 where the head is another one for two classes.
    quick : bool
        Whether it is in closed form, so that it can be tried on every representation first.
    votes : bool
        Whether its answers are class shares (neighbours, trees) rather than decision scores.
    """

    name: str
    make: Callable[..., Any]
    suggest: Callable[..., dict[str, Any]]
    grid: tuple[dict[str, Any], ...]
    solver: str
    cost: int
    takes_weights: bool = True
    streams: bool = False
    scalings: tuple[str, ...] = ("standard", "l2")
    min_classes: int = 2
    votes: bool = False
    quick: bool = False


class ExponentialWeights:
    """Weights exp(-distance / temperature) of neighbours, for ``KNeighborsClassifier(weights=...)``.

    With cosine distances this is the weighting of instance discrimination (Wu et al., CVPR 2018) and of
    DINO's k-NN probe. Distances are taken from the nearest neighbour's, so that no row underflows.
    """

    def __init__(self, temperature: float = 0.07) -> None:
        self.temperature = temperature

    def __call__(self, distances: NDArray[Any]) -> NDArray[Any]:
        """Weights of the same shape (n, k) as the distances."""
        nearest = distances.min(axis=1, keepdims=True)
        return np.asarray(np.exp((nearest - distances) / self.temperature))

    def __repr__(self) -> str:
        return f"ExponentialWeights(temperature={self.temperature:.4g})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExponentialWeights) and other.temperature == self.temperature

    def __hash__(self) -> int:
        return hash((ExponentialWeights, self.temperature))


def make_pipeline(
    head: str,
    params: Params,
    scaling: str,
    widths: Sequence[int],
    *,
    n_rows: int,
    columns: Sequence[int] | None = None,
    random_state: int | None = None,
) -> Pipeline:
    """Build the unfitted pipeline of a configuration: each block's scaler, then the head.

    Parameters
    ----------
    head : str
        A key of `HEADS`.
    params : mapping
        The head's parameters, without prefix.
    scaling : str
        One of `SCALINGS`.
    widths : sequence of int
        Columns of each block, in the order in which they stand side by side.
    n_rows : int
        Rows it will be fitted on.
    columns : sequence of int, optional
        The columns to keep (counted over all blocks), if not all; they are scaled as one block.
    random_state : int, optional
        Seed of heads that draw.

    Returns
    -------
    sklearn.pipeline.Pipeline
        Steps ``"scale"`` and ``"head"``.
    """
    width = sum(widths) if columns is None else len(columns)
    classifier = HEADS[head].make(params, random_state, (n_rows, width))
    return Pipeline([("scale", make_scaler(scaling, widths, columns=columns)), ("head", classifier)])


def make_scaler(scaling: str, widths: Sequence[int], *, columns: Sequence[int] | None = None) -> Any:
    """Build the transformer that scales blocks side by side, each on its own, to about unit length."""
    if scaling not in SCALINGS:
        raise UsageError(f"scaling {scaling!r} is not known; choose one of {', '.join(SCALINGS)}.")
    if len(widths) == 1 and columns is None and scaling in ("l2", "center_l2"):
        return _block_scaler(scaling)
    if columns is not None:
        places: list[Any] = [[int(column) for column in columns]]
        widths = [len(columns)]
    else:
        ends = np.cumsum(widths).tolist()
        places = [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
    return ColumnTransformer(
        [(f"block{number}", _block_scaler(scaling), place) for number, place in enumerate(places)],
        transformer_weights={f"block{number}": block_weight(scaling, w) for number, w in enumerate(widths)},
    )


def block_weight(scaling: str, width: int) -> float:
    """Factor that brings a scaled row of `width` columns to about unit length."""
    return 1.0 if scaling in ("l2", "center_l2") else 1 / math.sqrt(width)


def decision_scores(pipeline: Pipeline, X: NDArray[Any]) -> NDArray[np.float64]:
    """Decision scores of a fitted pipeline: shape (n,) for two classes, else (n, n_classes).

    Heads without a decision function (neighbours, trees) give the logarithm of their class shares. The
    nearest mean gives the negative squared distance, which is what scikit-learn's `predict` goes by
    (its `decision_function` is that of another classifier, with variances).
    """
    head = pipeline.named_steps["head"]
    rows = pipeline[:-1].transform(X)
    if isinstance(head, NearestCentroid):
        return two_class_scores(-euclidean_distances(rows, head.centroids_, squared=True))
    if hasattr(head, "decision_function"):
        return np.asarray(head.decision_function(rows), np.float64)
    return vote_scores(head.predict_proba(rows))


def vote_scores(shares: NDArray[Any]) -> NDArray[np.float64]:
    """Logarithms of class shares (n, C), floored; their difference for two classes."""
    return two_class_scores(np.log(np.maximum(shares, VOTE_FLOOR)))


def two_class_scores(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Scores (n, C) as they are, but for two classes how much the second is ahead, shape (n,)."""
    scores = np.asarray(scores, np.float64)
    return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores


def linear_weights(pipeline: Pipeline) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Weights (n_features, n_outputs) and intercepts on *unscaled* rows, where the whole is linear.

    One output for two classes. None where the head or the scaling is not linear (kernel, neighbours,
    trees, unit length). This is what a fine-tuner starts from.
    """
    head, scaler = pipeline.named_steps["head"], pipeline.named_steps["scale"]
    if not isinstance(scaler, ColumnTransformer):
        return None
    if isinstance(head, OneVsRestClassifier):
        coef = np.vstack([one.coef_ for one in head.estimators_])
        intercept = np.concatenate([np.ravel(one.intercept_) for one in head.estimators_])
    elif isinstance(head, LogisticRegression | LinearSVC | RidgeClassifier | LinearDiscriminantAnalysis):
        coef, intercept = np.atleast_2d(head.coef_), np.ravel(head.intercept_)
    else:
        return None
    zero = np.zeros((1, scaler.n_features_in_))
    probe = scaler.transform(zero)[0]  # scaling is affine: x * slope + offset, column by column
    slope = scaler.transform(zero + 1)[0] - probe
    weights = np.zeros((scaler.n_features_in_, len(coef)))
    weights[_columns_of(scaler)] = (coef * slope).T
    return weights, np.asarray(intercept + coef @ probe, np.float64)


def _columns_of(scaler: ColumnTransformer) -> NDArray[np.intp]:
    every = np.arange(scaler.n_features_in_)
    return np.concatenate([every[where] for name, _, where in scaler.transformers_ if name != "remainder"])


def _block_scaler(scaling: str) -> Any:
    if scaling == "standard":
        return StandardScaler()
    if scaling == "l2":
        return Normalizer()
    if scaling == "center_l2":
        return Pipeline([("center", StandardScaler(with_std=False)), ("length", Normalizer())])
    return "passthrough"


# What each head tunes. Ranges are for rows of about unit length; factors of ten around what won on the
# probed sets (photos, hands, spectrograms, characters).


def suggest_c(trial: Any, prefix: str, n_rows: int) -> dict[str, Any]:
    """Inverse regularisation of the linear heads."""
    return {"C": trial.suggest_float(prefix + "C", 1e-2, 1e5, log=True)}


def suggest_rbf_svm(trial: Any, prefix: str, n_rows: int) -> dict[str, Any]:
    """Margin against errors, and the kernel's width."""
    return {
        "C": trial.suggest_float(prefix + "C", 1e-1, 1e4, log=True),
        "gamma": trial.suggest_float(prefix + "gamma", 1e-2, 1e2, log=True),
    }


def suggest_knn(trial: Any, prefix: str, n_rows: int) -> dict[str, Any]:
    """Number of neighbours, how they are told and how they vote."""
    params = {
        "n_neighbors": trial.suggest_int(prefix + "n_neighbors", 1, min(50, n_rows), log=True),
        "metric": trial.suggest_categorical(prefix + "metric", ["cosine", "euclidean"]),
        "weights": trial.suggest_categorical(prefix + "weights", ["uniform", "distance", "temperature"]),
    }
    if params["weights"] == "temperature":
        params["temperature"] = trial.suggest_float(prefix + "temperature", 1e-2, 1.0, log=True)
    return params


def suggest_ridge(trial: Any, prefix: str, n_rows: int) -> dict[str, Any]:
    """Strength of the penalty."""
    return {"alpha": trial.suggest_float(prefix + "alpha", 1e-3, 1e3, log=True)}


def suggest_lda(trial: Any, prefix: str, n_rows: int) -> dict[str, Any]:
    """Share of the spherical covariance."""
    return {"shrinkage": trial.suggest_float(prefix + "shrinkage", 1e-3, 0.999)}


def suggest_nothing(trial: Any, prefix: str, n_rows: int) -> dict[str, Any]:
    """Nothing to tune."""
    return {}


def suggest_tree(trial: Any, prefix: str, n_rows: int) -> dict[str, Any]:
    """How far one tree grows."""
    return {
        "max_depth": trial.suggest_int(prefix + "max_depth", 2, 32, log=True),
        "min_samples_leaf": trial.suggest_int(prefix + "min_samples_leaf", 1, 32, log=True),
    }


def suggest_forest(trial: Any, prefix: str, n_rows: int) -> dict[str, Any]:
    """How many trees, how different and how deep."""
    return {
        "n_estimators": trial.suggest_int(prefix + "n_estimators", 100, 500, step=100),
        "max_features": trial.suggest_float(prefix + "max_features", 0.005, 0.2, log=True),
        "min_samples_leaf": trial.suggest_int(prefix + "min_samples_leaf", 1, 8, log=True),
    }


def suggest_boosting(trial: Any, prefix: str, n_rows: int) -> dict[str, Any]:
    """Step, number and size of the trees."""
    return {
        "learning_rate": trial.suggest_float(prefix + "learning_rate", 0.02, 0.3, log=True),
        "max_iter": trial.suggest_int(prefix + "max_iter", 50, 200, step=50),
        "max_leaf_nodes": trial.suggest_int(prefix + "max_leaf_nodes", 4, 31, log=True),
    }


LOGISTIC_TOLERANCE = 1e-6
"""scikit-learn stops at an absolute gradient; rows of unit length have gradients of a hundredth."""

# How each head is built. `shape` is (rows, columns) of what it is fitted on.

Shape = tuple[int, int]


def make_logistic(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """Softmax (multinomial) logistic regression, L2."""
    return LogisticRegression(C=params["C"], tol=LOGISTIC_TOLERANCE, max_iter=2000)


def make_logistic_ovr(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """One binary logistic regression for each class."""
    return OneVsRestClassifier(LogisticRegression(C=params["C"], tol=LOGISTIC_TOLERANCE, max_iter=2000))


def make_linear_svm(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """Linear SVM, squared hinge, one against the rest."""
    return LinearSVC(C=params["C"], dual="auto", max_iter=20_000, random_state=random_state)


def make_rbf_svm(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """RBF-kernel SVM; its answer is the argmax of its decision scores (`break_ties`)."""
    return SVC(C=params["C"], gamma=params["gamma"], break_ties=True, cache_size=500)


def make_knn(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """Nearest neighbours by brute force: no tree helps in a thousand dimensions."""
    weights: Any = params["weights"]
    if weights == "temperature":
        weights = ExponentialWeights(params["temperature"])
    return KNeighborsClassifier(
        params["n_neighbors"], weights=weights, metric=params["metric"], algorithm="brute"
    )


def make_ridge(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """Least squares on -1/+1 targets with an L2 penalty."""
    return RidgeClassifier(alpha=params["alpha"])


def make_lda(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """Linear discriminant analysis with a shrunk covariance."""
    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage=params["shrinkage"])


def make_nearest_mean(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """The class whose mean row is nearest."""
    return NearestCentroid()


def make_tree(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """One decision tree."""
    return DecisionTreeClassifier(**params, random_state=random_state)


def make_forest(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """A random forest; one thread, since folds run side by side."""
    return RandomForestClassifier(**params, random_state=random_state, n_jobs=1)


def make_boosting(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """Histogram gradient boosting on the leading principal components."""
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


def _product(**values: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    """All combinations, the first of each list first."""
    points: list[dict[str, Any]] = [{}]
    for name, own in values.items():
        points = [{**point, name: value} for point in points for value in own]
    return tuple(points)


_NEIGHBOURS = (5, 1, 3, 10, 20)

HEADS: dict[str, Head] = {
    head.name: head
    for head in (
        Head("logistic", make_logistic, suggest_c, _product(C=[10.0, 1.0, 100.0, 1000.0]),
             solver="softmax", cost=1, streams=True),
        Head("logistic_ovr", make_logistic_ovr, suggest_c, _product(C=[30.0, 300.0, 3000.0]),
             solver="logistic_ovr", cost=1, streams=True, min_classes=3, scalings=("standard",)),
        Head("linear_svm", make_linear_svm, suggest_c, _product(C=[1.0, 0.1, 10.0, 100.0]),
             solver="squared_hinge", cost=1, streams=True),
        Head("rbf_svm", make_rbf_svm, suggest_rbf_svm, _product(gamma=[1.0, 0.3, 3.0], C=[10.0, 1.0, 100.0]),
             solver="rbf_svm", cost=3, scalings=("standard", "l2", "center_l2")),
        Head("knn", make_knn, suggest_knn,
             _product(n_neighbors=_NEIGHBOURS, metric=["cosine"], weights=["distance", "uniform"])
             + _product(n_neighbors=_NEIGHBOURS[2:], metric=["cosine"], weights=["temperature"],
                        temperature=[0.07, 0.2])
             + _product(n_neighbors=_NEIGHBOURS, metric=["euclidean"], weights=["distance", "uniform"]),
             solver="neighbours", cost=4, takes_weights=False, votes=True,
             scalings=("standard", "l2", "center_l2", "none")),
        Head("ridge", make_ridge, suggest_ridge, _product(alpha=[1.0, 0.1, 10.0]),
             solver="ridge", cost=1, streams=True, quick=True),
        Head("lda", make_lda, suggest_lda, _product(shrinkage=[0.3, 0.1, 0.7]),
             solver="lda", cost=1, takes_weights=False, streams=True, quick=True, scalings=("standard",)),
        Head("nearest_mean", make_nearest_mean, suggest_nothing, ({},),
             solver="nearest_mean", cost=0, takes_weights=False, streams=True, scalings=SCALINGS),
        Head("tree", make_tree, suggest_tree, _product(max_depth=[8], min_samples_leaf=[4, 1]),
             solver="estimator", cost=0, scalings=("none",), votes=True),
        Head("forest", make_forest, suggest_forest,
             _product(n_estimators=[200], max_features=[0.03], min_samples_leaf=[1, 3]),
             solver="estimator", cost=5, scalings=("none",), votes=True),
        Head("boosting", make_boosting, suggest_boosting,
             _product(learning_rate=[0.1], max_iter=[100], max_leaf_nodes=[15]),
             solver="estimator", cost=5, scalings=("none",)),
    )
}  # fmt: skip

DEFAULT_HEADS = (
    "logistic",
    "logistic_ovr",
    "linear_svm",
    "rbf_svm",
    "knn",
    "ridge",
    "lda",
    "nearest_mean",
)
"""The cheap ones. Trees are tried when asked for."""
