"""Decision scores of fitted pipelines, in one form for all heads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

VOTE_FLOOR = 1e-3
"""Smallest class share that counts: five neighbours of other classes do not give a score of -inf."""


def decision_scores(pipeline: Any, X: NDArray[Any]) -> NDArray[np.float64]:
    """Decision scores of a fitted pipeline: shape (n,) for two classes, else (n, n_classes).

    Heads without a decision function (neighbours, trees) give the logarithm of their class shares. What is no
    pipeline is a function that returns the scores (`featx.modelfile.SavedHead.scorer`).
    """
    if not hasattr(pipeline, "named_steps"):
        return np.asarray(pipeline(X), np.float64)
    head = pipeline.named_steps["head"]
    scaled = pipeline[:-1].transform(X)
    if hasattr(head, "decision_function"):
        return np.asarray(head.decision_function(scaled), np.float64)
    return vote_scores(head.predict_proba(scaled))


def vote_scores(shares: NDArray[Any]) -> NDArray[np.float64]:
    """Logarithms of class shares (n, n_classes), floored; their difference for two classes."""
    return two_class_scores(np.log(np.maximum(shares, VOTE_FLOOR)))


def two_class_scores(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Return scores (n, n_classes) as they are; for two classes the second minus the first, shape (n,)."""
    scores = np.asarray(scores, np.float64)
    return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores
