"""Sets of labels that hold the truth in the share of images that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featx.evaluation.conformal import conformal_thresholds, label_scores, label_sets
from featx.exceptions import DataError, UsageError


@pytest.mark.parametrize("load", [load_digits, load_wine, load_breast_cancer])
@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_sets_hold_the_truth_as_often_as_asked(load: Callable[..., Any], coverage: float) -> None:
    X, y = load(return_X_y=True)
    shares, sizes = [], []
    for seed in range(10):
        noisy = X + 2.5 * X.std(axis=0) * np.random.default_rng(seed).normal(size=X.shape)
        X_train, X_test, y_train, y_test = train_test_split(
            noisy, y, test_size=0.5, stratify=y, random_state=seed
        )
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=300)).fit(
            X_train, y_train
        )
        proba = cross_val_predict(model, X_train, y_train, cv=5, method="predict_proba")
        sets = label_sets(model.predict_proba(X_test), conformal_thresholds(proba, y_train), coverage)
        shares.append(sets[np.arange(len(y_test)), y_test].mean())
        sizes.append(sets.sum(axis=1).mean())
        assert sets.any(axis=1).all()
    assert np.mean(shares) > coverage - 0.02
    assert np.mean(sizes) < len(np.unique(y))


def test_the_most_probable_label_is_always_in_the_set() -> None:
    proba = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    scores = label_scores(proba)
    assert scores[0].tolist() == pytest.approx([0, 0.5, 0.81])
    assert scores[1, 2] == 0
    thresholds = conformal_thresholds(np.repeat(proba, 20, axis=0), np.repeat([0, 2], 20))
    assert label_sets(proba, thresholds, 0.9).tolist() == [[True, False, False], [False, False, True]]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        label_sets(np.ones((1, 1)), (0.0,) * 201, 1.0)
    with pytest.raises(DataError, match="3 labels"):
        conformal_thresholds(np.ones((2, 2)), [0, 1, 1])
