"""The probe: the tuned classifier on frozen features that fine-tuning starts from and must beat.

Its weights start the new head (LP-FT, Kumar et al. 2022): scaling, coefficients and calibration fold into
one matrix and one bias. Whether a classifier is linear is not asked of its type but of its answers, so any
pipeline will do. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from featx.evaluation import Calibration
from featx.features import FeatureBlocks, Rows
from featx.finetune.rows import Index
from featx.heads import decision_scores, vote_scores
from featx.splits import make_folds

if TYPE_CHECKING:
    from featx.search import HeadSearchCV

AFFINE_TOLERANCE = 1e-3
"""Greatest relative deviation from the folded weights at which scores still count as linear."""
LOGISTIC_C = (1e-4, 1e-3, 1e-2, 1e-1)
"""Inverse penalties tried on standardised features."""
USUAL_C = 1e-2
"""It was best or near it on all sets looked at."""


@dataclass(frozen=True)
class Probe:
    """A classifier on pooled rows, which can be fitted again on some of them.

    Parameters
    ----------
    estimator : scikit-learn classifier
        With ``decision_function`` or ``predict_proba``; it is cloned before each fit.
    rows : ndarray of shape (n, d)
        Rows of all the images, as the estimator takes them.
    calibration : Calibration
        From its decision scores to probabilities.
    adjustment : optional
        What favours rare classes: its ``scores`` changes decision scores before they are calibrated.
    """

    estimator: Any
    rows: Rows
    calibration: Calibration = Calibration("identity")  # noqa: RUF009  (frozen)
    adjustment: Any = None

    @classmethod
    def of_search(cls, search: HeadSearchCV, blocks: FeatureBlocks) -> Probe:
        """The winner of a search, with the rows that it was fitted on.

        Parameters
        ----------
        search : HeadSearchCV
            Fitted.
        blocks : FeatureBlocks
            Of the same images, in the order in which they are fine-tuned.
        """
        return cls(search.best_estimator_, blocks.stack(search.best_blocks_), search.calibration_)

    def fit(self, y: NDArray[np.intp], index: Index, weights: ArrayLike | None = None) -> FittedProbe:
        """Fit a copy on some of the images; `y` and `weights` are those of all."""
        estimator = clone(self.estimator)
        name = "sample_weight"
        if hasattr(estimator, "steps"):
            name = f"{estimator.steps[-1][0]}__sample_weight"
        options = {} if weights is None else {name: np.asarray(weights)[index]}
        estimator.fit(self.rows[index], y[index], **options)
        return FittedProbe(estimator, self.calibration, self.adjustment)


@dataclass(frozen=True)
class FittedProbe:
    """A probe that was fitted on class indices."""

    estimator: Any
    calibration: Calibration
    adjustment: Any = None

    def scores(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Calibrated logits, shape (n,) for two classes, else (n, C)."""
        return np.asarray(self.calibration.scores(self._decisions(rows)), np.float64)

    def proba(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Probabilities of shape (n, C)."""
        return np.asarray(self.calibration.proba(self._decisions(rows)), np.float64)

    def _decisions(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        decisions = self._plain_decisions(rows)
        return decisions if self.adjustment is None else np.asarray(self.adjustment.scores(decisions))

    def _plain_decisions(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        if isinstance(self.estimator, Pipeline) and "head" in self.estimator.named_steps:
            return decision_scores(self.estimator, rows)
        if hasattr(self.estimator, "decision_function"):
            return np.asarray(self.estimator.decision_function(rows), np.float64)
        return vote_scores(self.estimator.predict_proba(rows))


def logistic_probe(
    rows: Rows,
    y: NDArray[np.intp],
    index: Index,
    *,
    groups: NDArray[Any] | None = None,
    random_state: int = 0,
) -> Probe:
    """A logistic regression on standardised last features, its penalty chosen out of fold on some of them.

    What else there is, such as the part that judges, has no say; where a class has a single image, there
    are no folds and the penalty is `USUAL_C`.
    """
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    own = y[index]
    fewest = int(np.unique(own, return_counts=True)[1].min())
    if fewest < 2:
        return Probe(pipeline.set_params(logisticregression__C=USUAL_C), rows)
    folds = make_folds(
        own,
        n_splits=min(3, fewest),
        groups=None if groups is None else groups[index],
        random_state=random_state,
    )
    search = GridSearchCV(
        pipeline, {"logisticregression__C": list(LOGISTIC_C)}, scoring="neg_log_loss", cv=folds, refit=False
    )
    search.fit(rows[index], own)
    return Probe(pipeline.set_params(**search.best_params_), rows)


def fold_linear(
    scores: Callable[[NDArray[Any]], NDArray[np.float64]], rows: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Weights and bias of scores that are linear in the rows, or None if they are not.

    What all classes of a row have in common is taken off first, since no probability depends on it: the
    distances to class means are linear then. The scores of the origin and of the unit vectors (times the
    features' own size) give the map; the rows then prove it.

    Parameters
    ----------
    scores : callable
        From rows of shape (n, d) to scores of shape (n,) or (n, C).
    rows : ndarray of shape (n, d)
        Rows to prove it on.

    Returns
    -------
    weight : ndarray of shape (C, d)
        For two classes with one score, two rows of opposite signs whose logits have the same softmax.
    bias : ndarray of shape (C,)
    """

    def relative(points: NDArray[Any]) -> NDArray[np.float64]:
        found = scores(points)
        return found - found.mean(1, keepdims=True) if found.ndim == 2 else found

    size = float(np.abs(rows).max()) or 1.0
    width = rows.shape[1]
    origin = relative(np.zeros((1, width)))[0]
    slopes = (relative(np.eye(width) * size) - origin) / size
    truth = relative(np.asarray(rows, np.float64))
    deviation = np.abs(rows.astype(np.float64) @ slopes + origin - truth).max()
    if not deviation <= AFFINE_TOLERANCE * max(1.0, float(np.abs(truth).max())):
        return None
    if slopes.ndim == 1:
        return np.stack([-slopes, slopes]) / 2, np.array([-origin, origin]) / 2
    return slopes.T, np.asarray(origin)
