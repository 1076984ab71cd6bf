"""The classifier of the nearest class mean."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import NearestCentroid


class NearestMean(NearestCentroid):
    """`NearestCentroid` whose decision scores are those that its `predict` uses.

    scikit-learn's own decision scores are those of another classifier, which divides by variances.
    """

    def _decision_function(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Negative squared distances to the class means, shape (n, n_classes)."""
        return np.asarray(-euclidean_distances(X, self.centroids_, squared=True), np.float64)
