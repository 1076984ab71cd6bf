"""Heads build plain pipelines whose features have about unit length."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from featx.exceptions import UsageError
from featx.heads import (
    DEFAULT_HEADS,
    HEADS,
    SCALINGS,
    decision_scores,
    make_pipeline,
    make_scaler,
)
from featx.heads.neighbours import ExponentialWeights


@pytest.fixture(autouse=True, scope="module")
def one_blas_thread():
    """Small fits lose time with more than one thread each, and lose most of it where others compute too."""
    with threadpool_limits(limits=1):
        yield


X, Y = (part[:150] for part in load_digits(return_X_y=True))
pytestmark = pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")  # pixels that never vary
QUICK = {"forest": {"n_estimators": 5}, "boosting": {"max_iter": 5}}


def fitted(head: str, scaling: str = "standard", *, widths: tuple[int, ...] = (64,), classes: int = 10):
    params = {**HEADS[head].grid[0], **QUICK.get(head, {})}
    return make_pipeline(head, params, scaling, widths, n_rows=len(X), random_state=0).fit(X, Y % classes)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns_digits_from_its_known_good_point(head: str) -> None:
    scores = decision_scores(fitted(head), X)
    assert scores.shape == (150, 10)
    assert np.mean(scores.argmax(axis=1) == Y) > 0.8


@pytest.mark.parametrize("head", HEADS)
def test_every_head_gives_one_score_a_row_for_two_classes(head: str) -> None:
    scores = decision_scores(fitted(head, classes=2), X)
    assert scores.shape == (150,)
    assert np.mean((scores > 0) == Y % 2) > 0.8


@pytest.mark.parametrize("head", HEADS)
def test_scores_choose_what_scikit_learn_predicts(head: str) -> None:
    pipeline = fitted(head)
    chosen = pipeline.classes_[decision_scores(pipeline, X).argmax(axis=1)]
    # votes of neighbours can tie, and scikit-learn's vote counts are floats in another order
    assert np.mean(chosen == pipeline.predict(X)) > (0.98 if head == "knn" else 0.999)


@pytest.mark.parametrize("scaling", ["standard", "l2", "center_l2"])
def test_scaled_rows_have_unit_length_in_each_block(scaling: str) -> None:
    scaled = make_scaler(scaling, (24, 40)).fit_transform(X)
    varying = X.std(axis=0) > 0
    for block in (slice(0, 24), slice(24, 64)):
        energy = (scaled[:, block] ** 2).sum(axis=1).mean()
        # a constant column has no variance to bring, so a standardised block is shorter by its share
        share = varying[block].mean() if scaling == "standard" else 1.0
        assert energy == pytest.approx(share, rel=1e-6)


def test_columns_that_are_picked_are_scaled_as_one_block() -> None:
    scaled = make_scaler("standard", (24, 40), columns=[3, 30, 36]).fit_transform(X)
    expected = (X - X.mean(axis=0)) / X.std(axis=0, where=True, ddof=0).clip(1e-9) / np.sqrt(3)
    np.testing.assert_allclose(scaled, expected[:, [3, 30, 36]])


def test_an_unknown_scaling_is_refused_with_the_list() -> None:
    with pytest.raises(UsageError, match="choose one of standard, l2, center_l2, none"):
        make_scaler("minmax", (64,))


def test_temperature_weights_are_those_of_cosine_similarity_and_never_vanish() -> None:
    distances = np.array([[0.1, 0.2], [900.0, 901.0]])
    weights = ExponentialWeights(0.1)(distances)
    np.testing.assert_allclose(weights, [[1, np.exp(-1)], [1, np.exp(-10)]])


def test_temperature_weights_compare_and_clone_by_value() -> None:
    neighbours = KNeighborsClassifier(3, weights=ExponentialWeights(0.07))
    assert clone(neighbours).weights == ExponentialWeights(0.07) != ExponentialWeights(0.2)
    assert hash(ExponentialWeights(0.07)) == hash(ExponentialWeights(0.07))
    assert repr(ExponentialWeights(0.07)) == "ExponentialWeights(temperature=0.07)"


def test_trees_are_tried_only_on_request() -> None:
    assert set(DEFAULT_HEADS) <= set(HEADS)
    assert not set(DEFAULT_HEADS) & {"tree", "forest", "boosting"}


def test_boosting_sees_at_most_64_principal_components() -> None:
    rows = np.random.default_rng(0).normal(size=(100, 300))
    params = {**HEADS["boosting"].grid[0], **QUICK["boosting"]}
    pipeline = make_pipeline("boosting", params, "none", (300,), n_rows=100).fit(rows, np.arange(100) % 2)
    assert pipeline.named_steps["head"].named_steps["pca"].n_components_ == 64


def test_the_table_of_heads_is_consistent() -> None:
    for name, head in HEADS.items():
        assert head.name == name
        assert set(head.scalings) <= set(SCALINGS)
    quick = {name for name, head in HEADS.items() if head.draws_curve}
    assert quick >= {"ridge", "lda", "knn", "nearest_mean"}
    assert not quick & {"logistic", "rbf_svm", "forest", "boosting"}
