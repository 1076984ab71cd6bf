"""The probe: the tuned classifier on frozen features, from which fine-tuning starts.

Its weights initialise the new head (LP-FT, Kumar et al. 2022): scaling, coefficients and calibration are
combined into one matrix and one bias. Whether a classifier is linear is tested on its scores, so that any
pipeline can be used. Torch is not imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from featx.evaluation import Calibration
from featx.features import Rows
from featx.finetune.features import Index
from featx.heads import decision_scores, vote_scores
from featx.splits import make_folds

AFFINE_TOLERANCE = 1e-3
"""Largest relative deviation from the linear map at which scores count as linear."""
LOGISTIC_C = (1e-4, 1e-3, 1e-2, 1e-1)
"""Inverse penalties tried on standardised features."""
DEFAULT_C = 1e-2
"""Best or nearly best on all data sets that were tested."""


@dataclass(frozen=True)
class LinearProbe:
    """A classifier on pooled features that can be fitted again on some of the images.

    Parameters
    ----------
    estimator : scikit-learn classifier
        With ``decision_function`` or ``predict_proba``; it is cloned before each fit.
    features : ndarray of shape (n, d)
        Features of all images, as the estimator takes them.
    calibration : Calibration
        From its decision scores to probabilities.
    """

    estimator: Any
    features: Rows
    calibration: Calibration = Calibration("identity")  # noqa: RUF009  (frozen)

    def fit(self, y: NDArray[np.intp], index: Index, weights: ArrayLike | None = None) -> FittedProbe:
        """Fit a copy on some of the images; `y` and `weights` are those of all images."""
        estimator = clone(self.estimator)
        name = "sample_weight"
        if hasattr(estimator, "steps"):
            name = f"{estimator.steps[-1][0]}__sample_weight"
        options = {} if weights is None else {name: np.asarray(weights)[index]}
        estimator.fit(self.features[index], y[index], **options)
        return FittedProbe(estimator, self.calibration)


@dataclass(frozen=True)
class FittedProbe:
    """A probe that was fitted on class indices."""

    estimator: Any
    calibration: Calibration

    def scores(self, features: NDArray[Any]) -> NDArray[np.float64]:
        """Calibrated logits, shape (n,) for two classes, else (n, C)."""
        return np.asarray(self.calibration.scores(self._decisions(features)), np.float64)

    def proba(self, features: NDArray[Any]) -> NDArray[np.float64]:
        """Probabilities of shape (n, C)."""
        return np.asarray(self.calibration.proba(self._decisions(features)), np.float64)

    def _decisions(self, features: NDArray[Any]) -> NDArray[np.float64]:
        if isinstance(self.estimator, Pipeline) and "head" in self.estimator.named_steps:
            return decision_scores(self.estimator, features)
        if hasattr(self.estimator, "decision_function"):
            return np.asarray(self.estimator.decision_function(features), np.float64)
        return vote_scores(self.estimator.predict_proba(features))


def initial_probe(features: Rows) -> LinearProbe:
    """Return the logistic regression on standardised features that a head starts as.

    Its penalty is not tuned: the head is trained on. The 13 fits of a search took 150 s of the 207 s of a
    training of 4 epochs on 576 images of 45 classes (2 cores, 2026-11-30).

    Parameters
    ----------
    features : array of shape (n, d)
        Features of all images.
    """
    return LinearProbe(
        make_pipeline(StandardScaler(), LogisticRegression(C=DEFAULT_C, max_iter=300)), features
    )


def logistic_probe(
    features: Rows,
    y: NDArray[np.intp],
    index: Index,
    *,
    groups: NDArray[Any] | None = None,
    random_state: int = 0,
) -> LinearProbe:
    """Return a logistic regression on standardised features, its penalty chosen by cross-validation.

    Only the images of `index` are used, not those of the comparison. If a class has a single image, there are
    no folds, and C is `DEFAULT_C`.
    """
    start = initial_probe(features)
    own = y[index]
    fewest = int(np.unique(own, return_counts=True)[1].min())
    if fewest < 2:
        return start
    folds = make_folds(
        own,
        n_splits=min(3, fewest),
        groups=None if groups is None else groups[index],
        random_state=random_state,
    )
    search = GridSearchCV(
        start.estimator,
        {"logisticregression__C": list(LOGISTIC_C)},
        scoring="neg_log_loss",
        cv=folds,
        refit=False,
    )
    search.fit(features[index], own)
    return LinearProbe(start.estimator.set_params(**search.best_params_), features)


def fold_linear(
    scores: Callable[[NDArray[Any]], NDArray[np.float64]], features: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return weights and bias of scores that are linear in the features, or None if they are not.

    The mean over classes is subtracted first, since no probability depends on it: squared distances to class
    means are linear then. The scores of the origin and of the unit vectors (times the scale of the features)
    give the map, which is then tested on the features.

    Parameters
    ----------
    scores : callable
        Map from features of shape (n, d) to scores of shape (n,) or (n, C).
    features : ndarray of shape (n, d)
        Features to test the map on.

    Returns
    -------
    weight : ndarray of shape (C, d)
        For two classes with one score, two features of opposite signs whose logits have the same softmax.
    bias : ndarray of shape (C,)
    """

    def relative(points: NDArray[Any]) -> NDArray[np.float64]:
        found = scores(points)
        return found - found.mean(1, keepdims=True) if found.ndim == 2 else found

    size = float(np.abs(features).max()) or 1.0
    width = features.shape[1]
    origin = relative(np.zeros((1, width)))[0]
    slopes = (relative(np.eye(width) * size) - origin) / size
    truth = relative(np.asarray(features, np.float64))
    deviation = np.abs(features.astype(np.float64) @ slopes + origin - truth).max()
    if not deviation <= AFFINE_TOLERANCE * max(1.0, float(np.abs(truth).max())):
        return None
    if slopes.ndim == 1:
        return np.stack([-slopes, slopes]) / 2, np.array([-origin, origin]) / 2
    return slopes.T, np.asarray(origin)
