"""Nearest neighbours, and the nearest class mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from featx.heads import formulas
from featx.heads.base import Head, Params, Shape, product
from featx.heads.saved import FLOAT, Array, Arrays, Dims, SavedForm, require
from featx.heads.scaling import SCALINGS

if TYPE_CHECKING:
    from featx.solvers import StreamedFit

K = (5, 1, 3, 10, 20)
"""Numbers of neighbours in the coarse grid."""


class ExponentialWeights:
    """Weights exp(-distance / temperature) of neighbours, for ``KNeighborsClassifier(weights=...)``.

    With cosine distances this is the weighting of instance discrimination (Wu et al., CVPR 2018) and of
    DINO's k-NN classifier. Distances are taken relative to the nearest neighbour's, so that the weights of a
    row never all underflow.
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


def suggest_knn(trial: Any, prefix: str, n_rows: int) -> dict[str, Any]:
    """Draw the number of neighbours, the metric and the weighting of their votes."""
    params = {
        "n_neighbors": trial.suggest_int(prefix + "n_neighbors", 1, min(50, n_rows), log=True),
        "metric": trial.suggest_categorical(prefix + "metric", ["cosine", "euclidean"]),
        "weights": trial.suggest_categorical(prefix + "weights", ["uniform", "distance", "temperature"]),
    }
    if params["weights"] == "temperature":
        params["temperature"] = trial.suggest_float(prefix + "temperature", 1e-2, 1.0, log=True)
    return params


def suggest_nothing(trial: Any, prefix: str, n_rows: int) -> dict[str, Any]:
    """Draw nothing: the nearest mean has no parameters."""
    return {}


def make_knn(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """Nearest neighbours by brute force: no tree helps in a thousand dimensions."""
    from sklearn.neighbors import KNeighborsClassifier

    weights: Any = params["weights"]
    if weights == "temperature":
        weights = ExponentialWeights(params["temperature"])
    return KNeighborsClassifier(
        params["n_neighbors"], weights=weights, metric=params["metric"], algorithm="brute"
    )


def make_nearest_mean(params: Params, random_state: int | None = None, shape: Shape = (0, 0)) -> Any:
    """The class whose mean is nearest."""
    from featx.heads.nearest_mean import NearestMean

    return NearestMean()


def knn_to_arrays(knn: Any) -> tuple[Arrays, dict[str, Any]]:
    """Return the training features and their class indices."""
    named = isinstance(knn.weights, str)
    params = {
        "n_neighbors": knn.n_neighbors,
        "metric": knn.metric,
        "weights": knn.weights if named else "temperature",
        "temperature": None if named else knn.weights.temperature,
    }
    return {"features": knn._fit_X, "labels": knn._y}, params


def check_knn(arrays: Arrays, params: dict[str, Any], dims: Dims) -> None:
    """Check that there are as many rows as neighbours, and that the parameters fit each other."""
    temperature = params["temperature"]
    require(1 <= params["n_neighbors"] <= dims["n_rows"], "there are fewer rows than neighbours")
    require(
        (params["weights"] == "temperature") == (temperature is not None), "neighbours' weights do not fit"
    )
    require(temperature is None or temperature > 0, "the temperature of neighbours' weights is not positive")


def knn_from_arrays(arrays: Arrays, params: dict[str, Any], classes: NDArray[Any], dims: Dims) -> Any:
    """Build the classifier; the class indices are used as positions in a table of votes."""
    knn = make_knn(params)
    vars(knn).update(
        classes_=classes,
        n_features_in_=dims["n_features"],
        n_samples_fit_=dims["n_rows"],
        outputs_2d_=False,
        effective_metric_=params["metric"],
        effective_metric_params_={},
        _fit_method="brute",
        _fit_X=arrays["features"],
        _y=arrays["labels"],
        _tree=None,
    )
    return knn


def _write_nearest_mean(head: Any, fitted: StreamedFit, classes: NDArray[Any]) -> None:
    head.classes_, head.centroids_ = classes, fitted.means
    head.n_features_in_ = fitted.means.shape[1]
    head.class_prior_ = np.full(len(classes), 1 / len(classes))


def nearest_mean_from_arrays(
    arrays: Arrays, params: dict[str, Any], classes: NDArray[Any], dims: Dims
) -> Any:
    """Build the classifier from the class means."""
    from featx.solvers import StreamedFit

    head = make_nearest_mean(params)
    _write_nearest_mean(head, StreamedFit(np.empty((0, 0)), np.empty(0), arrays["means"]), classes)
    return head


KNN = Head(
    "knn",
    make_knn,
    suggest_knn,
    product(n_neighbors=K, metric=["cosine"], weights=["distance", "uniform"])
    + product(n_neighbors=K[2:], metric=["cosine"], weights=["temperature"], temperature=[0.07, 0.2])
    + product(n_neighbors=K, metric=["euclidean"], weights=["distance", "uniform"]),
    solver="neighbours",
    cost=4,
    saved=SavedForm(
        {
            "features": Array(FLOAT, ("n_rows", "n_features")),
            "labels": Array(("int64",), ("n_rows",), low=0, below="n_classes"),
        },
        knn_to_arrays,
        knn_from_arrays,
        {
            "n_neighbors": int,
            "metric": Literal["cosine", "euclidean"],
            "weights": Literal["uniform", "distance", "temperature"],
            "temperature": float | None,
        },
        check_knn,
    ),
    formula=formulas.NEIGHBOURS,
    takes_weights=False,
    scalings=SCALINGS,
    votes=True,
    draws_curve=True,
)
NEAREST_MEAN = Head(
    "nearest_mean",
    make_nearest_mean,
    suggest_nothing,
    ({},),
    solver="nearest_mean",
    cost=0,
    saved=SavedForm(
        {"means": Array(FLOAT, ("n_classes", "n_features"))},
        lambda head: ({"means": head.centroids_}, {}),
        nearest_mean_from_arrays,
        {},
    ),
    formula=formulas.NEAREST_MEAN,
    write_streamed=_write_nearest_mean,
    takes_weights=False,
    scalings=SCALINGS,
    draws_curve=True,
)
