"""The budget of a search: what it leaves out, and that it depends on sizes and not on a clock."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featx import HeadSearchCV
from featx.exceptions import UsageError
from featx.features import FeatureBlocks
from featx.heads import HEADS, decision_scores
from featx.representation import Representation, block_name
from featx.search.plan import SearchPlan, SearchSettings, make_plan
from featx.search.sampling import FEW_CLASSES, sample_plan

X, Y = load_digits(return_X_y=True)
TOP = "last:avg:crop"


def many_classes(n_classes: int, n: int, *, d: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of overlapping classes that share a covariance."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    mixing = rng.normal(size=(d, d))
    rows = 1.6 * rng.normal(size=(n_classes, d))[y] + rng.normal(size=(n, d)) @ mixing / np.sqrt(d)
    return rows.astype(np.float32), y


def plan(rows: np.ndarray, y: np.ndarray, groups: Any = None, **settings: Any) -> SearchPlan:
    params = HeadSearchCV(random_state=0, n_jobs=1, **settings).get_params(deep=False)
    blocks = FeatureBlocks({TOP: rows}, len(rows), widths={TOP: rows.shape[1]})
    return make_plan(blocks, y, SearchSettings(**params), groups=groups)


def test_a_small_budget_compares_expensive_heads_on_samples_and_is_not_worse_than_models_by_hand() -> None:
    rows, y = many_classes(40, 1_400)
    train, test = slice(0, 800), slice(800, None)
    heads = ["ridge", "lda", "logistic", "linear_svm"]
    small = HeadSearchCV(heads, budget=0.6, random_state=0).fit(rows[train], y[train])
    whole = HeadSearchCV(heads, budget=None, n_trials=1, random_state=0).fit(rows[train], y[train])
    assert len(small.cv_results_["params"]) < len(whole.cv_results_["params"])
    on_all_rows = {params["head"] for params in small.cv_results_["params"]}
    assert set(small.left_out_) == set(heads) - on_all_rows
    assert whole.left_out_ == {}
    by_hand = [
        make_pipeline(StandardScaler(), model).fit(rows[train], y[train]).score(rows[test], y[test])
        for model in (
            RidgeClassifier(),
            LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
            LogisticRegression(max_iter=1000),
        )
    ]
    assert small.score(rows[test], y[test]) >= max(by_hand) - 0.005
    assert small.score(rows[test], y[test]) >= whole.score(rows[test], y[test]) - 0.02


def test_a_busy_machine_makes_the_same_search() -> None:
    rows, y = many_classes(30, 600)

    def found() -> HeadSearchCV:
        return HeadSearchCV(budget=0.5, random_state=0, n_jobs=2).fit(rows, y)

    quiet = found()
    done = threading.Event()

    def compute() -> None:
        matrix = np.ones((300, 300))
        while not done.is_set():
            matrix @ matrix

    others = [threading.Thread(target=compute) for _ in range(3)]
    for other in others:
        other.start()
    busy = found()
    done.set()
    for other in others:
        other.join()
    assert busy.cv_results_["params"] == quiet.cv_results_["params"]
    assert busy.best_params_ == quiet.best_params_


def test_many_rows_of_many_classes_are_scored_by_some_of_the_folds() -> None:
    rows, y = many_classes(300, 15_000, d=4)
    some = plan(rows, y, representations=[(TOP,)])
    scored = np.concatenate([test for _, test in some.folds.splits])
    assert len(some.folds.splits) < 5
    assert len(scored) >= 2_000
    assert len(np.unique(scored)) == len(scored)
    assert len(plan(rows, y, cv=5, representations=[(TOP,)]).folds.splits) == 5
    assert len(plan(rows, y, budget=None, representations=[(TOP,)]).folds.splits) == 5
    assert len(plan(rows[:600], y[:600] % 10, representations=[(TOP,)]).folds.splits) == 5


def test_a_sample_keeps_groups_apart_and_classes_on_both_sides() -> None:
    rows, y = many_classes(60, 2_400)
    groups = np.arange(2_400) // 60 // 2 * 60 + y  # pairs of rows of one class
    whole = plan(rows, y, groups, representations=[(TOP,)])
    sample = sample_plan(whole, Representation((block_name(TOP),)), 240)
    assert FEW_CLASSES <= len(sample.classes) < 60
    of_row = {row.tobytes(): place for place, row in enumerate(rows)}
    place = np.array([of_row[row.tobytes()] for row in sample.blocks[TOP]])
    np.testing.assert_array_equal(sample.classes[sample.folds.y], y[place])
    for train, test in sample.folds.splits:
        assert 200 <= len(train) <= 300
        assert not set(groups[place[train]]) & set(groups[place[test]])
        assert set(sample.folds.y[train]) == set(sample.folds.y[test]) == set(range(len(sample.classes)))


def test_trials_are_left_out_where_none_can_be_better_beyond_chance() -> None:
    rows, y = many_classes(2, 200)
    assert np.mean(HeadSearchCV(cv=3, random_state=0).fit(rows, y).cv_results_["origin"] == "tpe") == 0
    noise = np.random.default_rng(0).permutation(y)
    tried = HeadSearchCV(["ridge", "lda"], cv=3, random_state=0).fit(rows, noise).cv_results_["origin"]
    assert np.sum(tried == "tpe") > 10


def test_expensive_heads_are_tried_by_their_default_points_where_rows_are_too_few_for_a_sample() -> None:
    rows, y = many_classes(30, 240)
    noise = np.random.default_rng(0).permutation(y)
    heads = ["ridge", "logistic"]
    found = HeadSearchCV(heads, budget=0.15, cv=3, random_state=0).fit(rows, noise)
    points = [params for params in found.cv_results_["params"] if params["head"] == "logistic"]
    assert [params["logistic__C"] for params in points] == [HEADS["logistic"].grid[0]["C"]]


def test_expensive_heads_are_left_out_where_none_can_be_better_beyond_chance() -> None:
    rows, y = many_classes(2, 1_500)
    heads = ["ridge", "lda", "rbf_svm"]
    clean = HeadSearchCV(heads, budget=1.0, cv=3, random_state=0).fit(rows, y)
    assert {params["head"] for params in clean.cv_results_["params"]} == {"ridge", "lda"}
    assert "beyond chance" in clean.left_out_["rbf_svm"]
    noise = np.random.default_rng(0).permutation(y)
    noisy = HeadSearchCV(heads, budget=30.0, cv=3, random_state=0, n_trials=1).fit(rows[:400], noise[:400])
    assert "rbf_svm" in {params["head"] for params in noisy.cv_results_["params"]}


@pytest.mark.parametrize("head", ["logistic", "logistic_ovr", "linear_svm"])
@pytest.mark.parametrize(("n", "weighted"), [(40, False), (600, False), (600, True)])
def test_a_linear_winner_is_the_model_that_scikit_learn_fits(head: str, n: int, weighted: bool) -> None:
    weight = np.random.default_rng(0).uniform(0.5, 2, n) if weighted else None
    point = {"head": head, "scaling": "standard", f"{head}__C": 10.0}
    search = HeadSearchCV([head], grid=[point], n_trials=0, cv=2, class_weight="balanced", random_state=0)
    model = search.fit(X[:n], Y[:n] % 3, sample_weight=weight).best_estimator_
    scaled = model.named_steps["scale"].transform(X[:n].astype(float))
    own = np.ones(n) if weight is None else weight
    count = np.bincount(Y[:n] % 3, own)
    expected = HEADS[head].make({"C": 10.0}, 0, scaled.shape)
    expected.set_params(**{"estimator__tol": 1e-9} if head == "logistic_ovr" else {"tol": 1e-9})
    balanced = own * (own.sum() / (3 * count))[Y[:n] % 3]
    if head == "logistic_ovr":  # scikit-learn passes weights to it by metadata routing only
        scores = [
            expected.estimator.fit(scaled, Y[:n] % 3 == label, balanced).decision_function(scaled)
            for label in range(3)
        ]
        wanted = np.column_stack(scores)
    else:
        wanted = expected.fit(scaled, Y[:n] % 3, balanced).decision_function(scaled)
    found = decision_scores(model, X[:n])
    assert np.abs(found - wanted).max() < 0.02 * np.std(wanted)


@pytest.mark.parametrize("budget", [0, -1.0, "soon"])
def test_a_budget_is_a_positive_number_of_seconds(budget: Any) -> None:
    with pytest.raises(UsageError, match="positive number of seconds"):
        HeadSearchCV(budget=budget).fit(X[:100], Y[:100])
