"""Classifiers of published evaluation protocols, as scikit-learn estimators on features.

`fit` takes the positions of the images on which a hyperparameter is chosen. Without them the default is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

DINOV2_C = tuple(10 ** np.linspace(-6, 5, 45))
"""Values of C of DINOv2's logistic regression (`dinov2/eval/log_regression.py`)."""

DINOV2_K = (10, 20, 100, 200)
DINOV2_TEMPERATURE = 0.07
"""Numbers of neighbours and temperature of DINOv2's kNN (`dinov2/eval/knn.py`)."""

CLIP_COARSE = tuple(10.0 ** np.arange(-6, 7, 2))
CLIP_STEPS_PER_DECADE = 8
"""First grid and final resolution of the search for C of CLIP's linear probe (Radford et al., 2021, A.3)."""

BIG_VISION_L2 = 2.0**10
BIG_VISION_BIAS = 100.0
"""Penalty and constant feature of big_vision's few-shot ridge (`big_vision/evaluators/fewshot_lsr.py`)."""


class ChosenLogistic(ClassifierMixin, BaseEstimator):
    """Logistic regression whose C is chosen on validation images; then it is fitted on all.

    Parameters
    ----------
    search : {"grid", "clip"}, default "grid"
        "grid" tries each of `values`. "clip" tries a coarse grid, and halves the step around the best value
        until there are 8 steps per decade.
    values : sequence of float
        Values of C for "grid".
    normalise : bool, default False
        Whether features are divided by their L2 norm.
    max_iter : int, default 1000

    Attributes
    ----------
    C_ : float
        The chosen value; 1 if there were no validation images.
    estimator_ : LogisticRegression
    """

    def __init__(
        self,
        search: str = "grid",
        *,
        values: Sequence[float] = DINOV2_C,
        normalise: bool = False,
        max_iter: int = 1000,
    ) -> None:
        self.search = search
        self.values = values
        self.normalise = normalise
        self.max_iter = max_iter

    def fit(self, X: ArrayLike, y: ArrayLike, validation: Indices | None = None) -> Self:
        """Choose C on the rows `validation`, and fit on all rows; X has shape (n, d)."""
        X, y = self._features(X), np.asarray(y)
        self.C_ = 1.0 if validation is None else self._choose(X, y, validation)
        self.estimator_ = self._fit(X, y, self.C_)
        self.classes_ = self.estimator_.classes_
        return self

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Probabilities, shape (n, n_classes)."""
        return np.asarray(self.estimator_.predict_proba(self._features(X)))

    def decision_function(self, X: ArrayLike) -> Floats:
        """Logits, shape (n, n_classes), or (n,) for two classes."""
        return np.asarray(self.estimator_.decision_function(self._features(X)))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Most probable class of each image, shape (n,)."""
        return np.asarray(self.estimator_.predict(self._features(X)))

    def _features(self, X: ArrayLike) -> Floats:
        X = np.asarray(X, np.float64)
        return _unit(X) if self.normalise else X

    def _fit(self, X: Floats, y: NDArray[Any], C: float) -> LogisticRegression:
        return _quiet_fit(LogisticRegression(C=C, max_iter=self.max_iter), X, y)

    def _choose(self, X: Floats, y: NDArray[Any], validation: Indices) -> float:
        """Fit on the other rows, rotated to their principal axes, which changes no prediction."""
        training = np.setdiff1d(np.arange(len(y)), validation)
        own, target = X[training], y[training]
        axes = np.linalg.svd(own, full_matrices=False)[2].T if own.shape[0] < own.shape[1] else None
        own, other = (own, X[validation]) if axes is None else (own @ axes, X[validation] @ axes)
        model = LogisticRegression(max_iter=self.max_iter, warm_start=True)
        scores: dict[float, float] = {}

        def score(C: float) -> float:
            if C not in scores:  # each fit starts at the solution of the fit before
                predicted = _quiet_fit(model.set_params(C=C), own, target).predict(other)
                scores[C] = float(np.mean(predicted == y[validation]))
            return scores[C]

        if self.search == "grid":
            return float(max(self.values, key=score))
        return _halving_search(score)


def _quiet_fit(model: LogisticRegression, X: Floats, y: NDArray[Any]) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the protocols stop at max_iter, too
        return model.fit(X, y)


def _halving_search(score: Callable[[float], float]) -> float:
    """Search for the best C: a coarse grid in powers of ten, then steps that are halved around the best."""
    best = float(np.log10(max(CLIP_COARSE, key=score)))
    step = 1.0
    while step >= 1 / CLIP_STEPS_PER_DECADE:
        near = [exponent for exponent in (best, best - step, best + step) if -6 <= exponent <= 6]
        best = max(near, key=lambda exponent: score(10**exponent))
        step /= 2
    return float(10**best)


class WeightedNeighbours(ClassifierMixin, BaseEstimator):
    """Neighbours by cosine similarity, whose votes are weighted by the softmax of similarity / temperature.

    Parameters
    ----------
    k : int or sequence of int
        Number of neighbours; of several, the best on the validation images (without any the first).
    temperature : float

    Attributes
    ----------
    k_ : int
    """

    def __init__(self, k: int | Sequence[int] = DINOV2_K, *, temperature: float = DINOV2_TEMPERATURE) -> None:
        self.k = k
        self.temperature = temperature

    def fit(self, X: ArrayLike, y: ArrayLike, validation: Indices | None = None) -> Self:
        """Store the features, and choose k on the rows `validation`."""
        self.classes_, self._codes = np.unique(np.asarray(y), return_inverse=True)
        self._X = _unit(np.asarray(X, np.float64))
        choices = (self.k,) if isinstance(self.k, int) else tuple(self.k)
        self.k_ = choices[0]
        if validation is not None and len(choices) > 1:
            training = np.setdiff1d(np.arange(len(self._X)), validation)
            own = self._X[validation]
            right = {
                k: (self._votes(own, training, k).argmax(1) == self._codes[validation]).mean()
                for k in choices
            }
            self.k_ = max(choices, key=lambda k: float(right[k]))
        return self

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Sums of the weights of each class, shape (n, n_classes)."""
        votes = self._votes(_unit(np.asarray(X, np.float64)), np.arange(len(self._X)), self.k_)
        return np.asarray(votes / votes.sum(axis=1, keepdims=True))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Class with the largest sum of weights, shape (n,)."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])

    def _votes(self, X: Floats, among: Indices, k: int) -> Floats:
        k = min(k, len(among))
        similarity = X @ self._X[among].T
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weight = softmax(np.take_along_axis(similarity, nearest, axis=1) / self.temperature, axis=1)
        votes = np.zeros((len(X), len(self.classes_)))
        np.add.at(votes, (np.arange(len(X))[:, None], self._codes[among][nearest]), weight)
        return votes


class LeastSquares(ClassifierMixin, BaseEstimator):
    """Ridge regression on targets of -1 and 1, of standardised features with a constant feature.

    Parameters
    ----------
    l2 : float
        Penalty.
    bias : float
        Value of the constant feature. It is large, so that the intercept is hardly penalised.
    """

    def __init__(self, l2: float = BIG_VISION_L2, *, bias: float = BIG_VISION_BIAS) -> None:
        self.l2 = l2
        self.bias = bias

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Solve in closed form, in the smaller of the two spaces."""
        X = np.asarray(X, np.float64)
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        self._mean, self._std = X.mean(axis=0), X.std(axis=0) + 1e-5
        Z, T = self._scaled(X), 2 * np.eye(len(self.classes_))[codes] - 1
        if len(Z) >= Z.shape[1]:
            self.coef_ = np.linalg.solve(Z.T @ Z + self.l2 * np.eye(Z.shape[1]), Z.T @ T)
        else:
            self.coef_ = Z.T @ np.linalg.solve(Z @ Z.T + self.l2 * np.eye(len(Z)), T)
        return self

    def decision_function(self, X: ArrayLike) -> Floats:
        """Regressed targets, shape (n, n_classes)."""
        return np.asarray(self._scaled(np.asarray(X, np.float64)) @ self.coef_)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Class with the largest target, shape (n,)."""
        return np.asarray(self.classes_[self.decision_function(X).argmax(axis=1)])

    def _scaled(self, X: Floats) -> Floats:
        return np.column_stack([(X - self._mean) / self._std, np.full(len(X), self.bias)])


class SimpleShot(ClassifierMixin, BaseEstimator):
    """Nearest class mean of centred features of unit length: CL2N of Wang et al. (2019, SimpleShot)."""

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Compute the centre of the training features and the mean of each class."""
        X = np.asarray(X, np.float64)
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        self._centre = X.mean(axis=0)
        Z = _unit(X - self._centre)
        self.means_ = np.array([Z[codes == c].mean(axis=0) for c in range(len(self.classes_))])
        return self

    def decision_function(self, X: ArrayLike) -> Floats:
        """Negative squared distances to the class means, shape (n, n_classes)."""
        Z = _unit(np.asarray(X, np.float64) - self._centre)
        return np.asarray(2 * Z @ self.means_.T - (self.means_**2).sum(axis=1) - (Z**2).sum(1)[:, None])

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Class of the nearest mean, shape (n,)."""
        return np.asarray(self.classes_[self.decision_function(X).argmax(axis=1)])


def _unit(X: Floats) -> Floats:
    return np.asarray(X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12))
