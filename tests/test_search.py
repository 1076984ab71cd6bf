"""HeadSearchCV: scikit-learn's checks, unbiased scores, budgets, weights, groups and views."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import sklearn
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, make_scorer, roc_auc_score
from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from featx import HeadSearchCV
from featx.curves import learning_curve
from featx.exceptions import DataError, LabelError, SearchError, SearchWarning, UsageError
from featx.heads import DEFAULT_HEADS, HEADS
from featx.search import SearchProgress
from featx.search.scoring import brier, standard_error

X, Y = load_digits(return_X_y=True)
X, Y = X[:240] / 16, Y[:240]
TWO = Y % 2

TINY = {"heads": ("ridge",), "n_trials": 2, "grid": "none", "cv": 2, "random_state": 0, "n_jobs": 1}
"""One cheap head, the default and two trials, two folds: for scikit-learn's checks."""


def search(**changes) -> HeadSearchCV:
    quick = {"heads": ("ridge", "nearest_mean"), "n_trials": 4, "cv": 3, "random_state": 0, "n_jobs": 1}
    return HeadSearchCV(**{**quick, **changes})


@parametrize_with_checks([HeadSearchCV(**TINY)])
def test_scikit_learn_s_checks(estimator, check) -> None:
    check(estimator)


def test_the_default_heads_classify_digits_and_all_outputs_agree() -> None:
    found = HeadSearchCV(n_trials=8, cv=3, random_state=0).fit(X[:180], Y[:180])
    held_out = X[180:]
    proba = found.predict_proba(held_out)
    assert found.score(held_out, Y[180:]) > 0.85
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    np.testing.assert_array_equal(found.predict(held_out), found.classes_[proba.argmax(axis=1)])
    np.testing.assert_array_equal(found.decision_function(held_out).argmax(axis=1), proba.argmax(axis=1))
    origins = [trial.user_attrs["origin"] for trial in found.study_.trials]
    assert origins.count("tpe") == 8
    assert origins.count("grid") > 100
    heads = {params["head"] for params in found.cv_results_["params"]}
    assert heads == set(DEFAULT_HEADS)


def test_two_classes_have_one_decision_value_whose_sign_is_the_prediction() -> None:
    found = search().fit(X, TWO)
    decision = found.decision_function(X)
    assert decision.shape == (240,)
    np.testing.assert_array_equal(found.predict(X), (decision > 0).astype(int))
    np.testing.assert_allclose(found.predict_proba(X)[:, 1], 1 / (1 + np.exp(-decision)))


@pytest.mark.parametrize("head", [*DEFAULT_HEADS, "tree"])
@pytest.mark.parametrize("target", [TWO, Y])
def test_every_head_predicts_the_argmax_of_its_probabilities(head: str, target: np.ndarray) -> None:
    if HEADS[head].min_classes > len(set(target)):
        pytest.skip("for two classes it is the same as another head")
    with pytest.warns(SearchWarning, match="n_trials is 0"):
        found = search(heads=(head,), n_trials=0).fit(X, target)
    proba = found.predict_proba(X)
    np.testing.assert_array_equal(found.predict(X), found.classes_[proba.argmax(axis=1)])
    assert found.score(X, target) > 0.75


def test_the_best_score_is_what_scikit_learn_measures_on_the_same_folds() -> None:
    folds = list(StratifiedKFold(4, shuffle=True, random_state=1).split(X, Y))
    found = search(cv=folds, heads=("ridge", "logistic"), n_trials=3).fit(X, Y)
    expected = cross_val_score(found.best_estimator_, X, Y, cv=folds).mean()
    assert found.best_score_ == pytest.approx(expected, abs=1 / len(Y))


def test_out_of_fold_probabilities_are_of_models_that_were_not_fitted_on_the_row() -> None:
    rng = np.random.default_rng(0)
    noise, labels = rng.normal(size=(200, 300)), np.arange(200) % 2
    found = search(n_trials=2).fit(noise, labels)
    assert accuracy_score(labels, found.predict(noise)) > 0.85  # it overfits the noise
    assert accuracy_score(labels, found.oof_proba_.argmax(axis=1)) < 0.65


def test_equal_seeds_give_equal_searches() -> None:
    first, again, other = (search(heads=("ridge",), random_state=seed).fit(X, Y) for seed in (3, 3, 4))
    assert first.cv_results_["params"] == again.cv_results_["params"]
    np.testing.assert_array_equal(first.oof_proba_, again.oof_proba_)
    assert first.cv_results_["params"] != other.cv_results_["params"]


def test_without_trials_the_default_is_fitted_with_a_warning() -> None:
    with pytest.warns(SearchWarning, match="n_trials is 0: the default parameters were fitted"):
        found = search(n_trials=0).fit(X, Y)
    assert found.best_params_ == {"head": "ridge", "scaling": "standard", "ridge__alpha": 1.0}


def test_a_tiny_timeout_fits_the_default_with_a_warning() -> None:
    with pytest.warns(SearchWarning, match=r"time budget of 1e-06 s ended the search .*default parameters"):
        found = search(timeout=1e-6, n_trials=50).fit(X, Y)
    assert len(found.cv_results_["params"]) == 1
    assert found.score(X, Y) > 0.9


def test_a_list_of_configurations_is_evaluated_unchanged() -> None:
    grid = [{"head": "knn", "scaling": "l2", "knn__n_neighbors": k, "knn__metric": "cosine",
             "knn__weights": "uniform"} for k in (1, 3, 9)]  # fmt: skip
    found = search(heads=("knn",), grid=grid, n_trials=0).fit(X, Y)
    assert found.cv_results_["params"] == grid


def test_a_configuration_has_no_more_neighbours_than_a_fold_has_rows() -> None:
    point = {"head": "knn", "scaling": "none", "knn__n_neighbors": 50, "knn__metric": "cosine",
             "knn__weights": "distance"}  # fmt: skip
    rows = np.flatnonzero(Y < 2)[:24]
    found = search(heads=("knn",), grid=[point], n_trials=0, cv=2).fit(X[rows], Y[rows])
    assert found.best_params_ == point | {"knn__n_neighbors": 12}


def test_a_configuration_outside_the_space_is_refused() -> None:
    with pytest.raises(UsageError, match="not in the searched space"):
        search(grid=[{"head": "ridge", "scaling": "l2"}]).fit(X, Y)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": ("svc",)}, "choose from logistic"),
        ({"heads": "ridge"}, "give a list of names"),
        ({"scalings": ("minmax",)}, "choose from standard"),
        ({"scoring": "acuracy"}, "choose one of accuracy"),
        ({"scoring": 3}, "neither a name nor a callable"),
        ({"grid": "fine"}, "choose auto, coarse, none"),
        ({"class_weight": "inverse"}, "'balanced', 'sqrt', 'search' or a dict"),
        ({"class_weight": {99: 2.0}}, "labels that do not occur"),
    ],
)
def test_the_error_for_a_wrong_argument_names_what_is_allowed(wrong: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        search(**wrong).fit(X, Y)


def test_labels_that_cannot_be_learnt_are_refused() -> None:
    with pytest.raises(LabelError, match="missing"):
        search().fit(X, np.where(np.arange(240) == 7, np.nan, Y))
    with pytest.raises(LabelError, match="class"):
        search().fit(X, np.zeros(240, int))
    with pytest.raises(LabelError, match="inconsistent"):
        search().fit(X, Y[:-1])


def test_labels_keep_their_type() -> None:
    for labels in (np.array(list("abcdefghij"))[Y], Y.astype(np.int8), TWO.astype(bool)):
        predicted = search().fit(X, labels).predict(X)
        assert predicted.dtype == np.unique(labels).dtype
        assert np.mean(predicted == labels) > 0.9


def test_few_samples_of_a_class_reduce_the_number_of_folds_with_a_warning() -> None:
    rows = np.flatnonzero(Y < 3)
    few = np.concatenate([rows[Y[rows] == 0][:2], rows[Y[rows] == 1], rows[Y[rows] == 2]])
    with pytest.warns(SearchWarning, match="2 folds instead of 5"):
        found = search(cv=5).fit(X[few], Y[few])
    assert found.n_splits_ == 2


@pytest.mark.parametrize(
    "scoring",
    [
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "log_loss",
        "ece",
        "f1_macro",
        "neg_log_loss",
        "roc_auc_ovr",
        "top_k_accuracy",
        "matthews_corrcoef",
        make_scorer(balanced_accuracy_score),
        make_scorer(log_loss, response_method="predict_proba", greater_is_better=False),
        lambda estimator, X, y: accuracy_score(y, estimator.predict(X)),
    ],
)
def test_any_scorer_can_be_the_objective(scoring) -> None:
    target = Y % 3
    found = search(scoring=scoring, n_trials=2).fit(X, target)
    assert np.isfinite(found.best_score_)
    best = np.nanmax(found.cv_results_["mean_test_score"])
    assert found.best_score_ > best - 0.03  # or the best probabilities of those that are as good
    if scoring in ("log_loss", "ece", "neg_log_loss"):
        assert found.best_score_ == best
    if scoring == "roc_auc_ovr":  # computed from out-of-fold probabilities
        assert found.best_score_ == pytest.approx(
            roc_auc_score(target, found.oof_proba_, multi_class="ovr"), abs=0.03
        )


def test_a_scorer_that_predicts_other_rows_is_refused() -> None:
    with pytest.raises(SearchError, match="all rows of the fold"):
        search(scoring=lambda estimator, X, y: float(np.mean(estimator.predict(X[:3]) == y[:3]))).fit(X, Y)


def test_heads_that_cannot_use_weights_are_left_out_with_the_reason() -> None:
    weight = np.ones(240)
    found = search(heads=None, n_trials=1).fit(X, Y, sample_weight=weight)
    assert set(found.left_out_) == {"knn", "nearest_mean", "lda"}
    assert all("sample weights" in why for why in found.left_out_.values())
    with pytest.warns(SearchWarning, match="heads left out: nearest_mean: it cannot use sample weights"):
        search().fit(X, Y, sample_weight=weight)
    with pytest.raises(SearchError, match="no head is left"):
        search(heads=("knn",)).fit(X, Y, sample_weight=weight)


def test_balanced_weights_find_a_rare_class() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [190, 10])
    rows = rng.normal(size=(200, 5))
    rows[:, 0] += labels * 1.5
    recall = {}
    for weights in (None, "sqrt", "balanced", {0: 1.0, 1: 19.0}):
        found = search(heads=("ridge",), class_weight=weights).fit(rows, labels)
        recall[str(weights)] = np.mean(found.predict(rows[190:]) == 1)
    assert recall["None"] < recall["balanced"]
    assert recall["balanced"] >= 0.7 <= recall["{0: 1.0, 1: 19.0}"]
    chosen = search(heads=("ridge",), class_weight="search", scoring="balanced_accuracy", n_trials=12).fit(
        rows, labels
    )
    assert chosen.best_params_["class_weight"] in ("balanced", "sqrt")


def test_a_group_stays_in_one_fold() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    labels = groups % 2
    rows = rng.normal(size=(40, 30))[groups] + rng.normal(scale=0.01, size=(200, 30))
    split = search(n_trials=1).fit(rows, labels)
    grouped = search(n_trials=1).fit(rows, labels, groups=groups)
    assert split.best_score_ > 0.95  # copies of a row in training and test part
    assert grouped.best_score_ < 0.75
    with_splitter = search(n_trials=1, cv=GroupKFold(3)).fit(rows, labels, groups=groups)
    assert with_splitter.best_score_ < 0.75


def test_views_train_with_their_image_and_never_test() -> None:
    rng = np.random.default_rng(0)
    rows = np.vstack([X, X + rng.normal(scale=0.05, size=X.shape)])
    labels, groups = np.tile(Y, 2), np.tile(np.arange(240), 2)
    view = np.repeat([0, 1], 240)
    found = search(n_trials=1).fit(rows, labels, groups=groups, view=view)
    assert np.isfinite(found.oof_proba_[:240]).all()
    assert np.isnan(found.oof_proba_[240:]).all()
    # one neighbour would be right with a view of the tested image in the training part
    nearest = search(heads=("knn",), grid=[{"head": "knn", "scaling": "none", "knn__n_neighbors": 1,
                     "knn__metric": "euclidean", "knn__weights": "uniform"}], n_trials=0)  # fmt: skip
    noise = rng.normal(size=(240, 20))
    twice = np.vstack([noise, noise])
    assert nearest.fit(twice, labels, groups=groups, view=view).best_score_ < 0.3
    with pytest.raises(DataError, match="without groups"):
        search().fit(rows, labels, view=view)


def test_repeats_average_the_out_of_fold_scores() -> None:
    found = search(n_repeats=2, n_trials=1).fit(X, Y)
    assert found.n_splits_ == 6
    assert np.isfinite(found.oof_proba_).all()


def test_progress_counts_up_and_ends_with_the_refit() -> None:
    events: list[SearchProgress] = []
    found = search(callback=events.append).fit(X, Y)
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert events[-1].stage == "refit"
    assert events[-1].done == len(found.cv_results_["params"]) <= events[-1].total
    assert {event.stage for event in events} == {"grid", "tpe", "refit"}
    assert events[-1].best_score == found.best_score_


def test_without_refit_there_are_results_but_no_model() -> None:
    found = search(refit=False).fit(X, Y)
    assert not hasattr(found, "best_estimator_")
    assert found.oof_proba_.shape == (240, 10)
    with pytest.raises(UsageError, match="refit=False"):
        found.predict(X)


def test_a_pickled_search_predicts_the_same() -> None:
    found = search().fit(X, Y)
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.predict_proba(X), found.predict_proba(X))


def test_it_works_inside_scikit_learn_s_tools() -> None:
    small = HeadSearchCV(**TINY)
    assert cross_val_score(make_pipeline(MinMaxScaler(), small), X, Y, cv=2).mean() > 0.8
    outer = GridSearchCV(small, {"heads": [("ridge",), ("nearest_mean",)]}, cv=2).fit(X, Y)
    assert outer.score(X, Y) > 0.9
    assert clone(small).get_params()["heads"] == ("ridge",)
    assert "n_trials=2" in repr(small)


def test_names_of_columns_are_kept_and_checked() -> None:
    frame = pd.DataFrame(X, columns=[f"pixel{k}" for k in range(64)])
    found = search(n_trials=1).fit(frame, Y)
    assert list(found.feature_names_in_) == list(frame.columns)
    with pytest.raises(ValueError, match="feature names"):
        found.predict(frame[frame.columns[::-1]])


def test_sample_weights_and_groups_are_routed_to_it() -> None:
    rng = np.random.default_rng(0)
    weight, groups = rng.uniform(0.5, 2, 240), np.arange(240) // 2
    with sklearn.config_context(enable_metadata_routing=True):
        inner = search(heads=("ridge",), n_trials=1).set_fit_request(sample_weight=True, groups=True)
        routed = make_pipeline(MinMaxScaler(), inner).fit(X, Y, sample_weight=weight, groups=groups)
    plain = search(heads=("ridge",), n_trials=1).fit(
        MinMaxScaler().fit_transform(X), Y, sample_weight=weight, groups=groups
    )
    np.testing.assert_array_equal(routed[-1].oof_proba_, plain.oof_proba_)


def test_trees_are_pruned_fold_by_fold() -> None:
    found = search(heads=("ridge", "tree"), n_trials=30, grid="coarse").fit(X, Y)
    pruned = found.cv_results_["state"] == "pruned"
    assert pruned.any()
    heads = np.array([params["head"] for params in found.cv_results_["params"]])
    assert set(heads[pruned]) == {"tree"}
    evaluated = np.isfinite([found.cv_results_[f"split{fold}_test_score"] for fold in range(3)]).sum(axis=0)
    assert (evaluated[pruned] < 3).all()
    assert (evaluated[~pruned] == 3).all()
    unpruned = search(heads=("ridge", "tree"), n_trials=10, grid="coarse", pruner=None).fit(X, Y)
    assert not (unpruned.cv_results_["state"] == "pruned").any()


def test_svms_on_a_sample_are_labelled_and_the_winner_is_evaluated_on_all_rows() -> None:
    found = search(heads=("rbf_svm",), n_trials=1, kernel_rows=40).fit(X, Y)
    labels = found.cv_results_["approximate"]
    assert "fitted on 40 rows of each training part" in set(labels)
    assert labels[found.best_index_] == ""
    exact = search(heads=("rbf_svm",), grid=[found.best_params_], n_trials=0).fit(X, Y)
    assert found.best_score_ == exact.best_score_


def test_of_configurations_that_are_as_good_the_one_with_the_best_probabilities_is_selected() -> None:
    found = search(heads=("ridge", "knn", "lda"), n_trials=0, grid="coarse", cv=5, n_repeats=2).fit(
        X[:100], Y[:100]
    )
    table = found.cv_results_
    folds = np.array([table[f"split{fold}_test_score"] for fold in range(10)])
    best = int(np.argmax(table["mean_test_score"]))
    behind = folds[:, [best]] - folds
    error = behind.std(axis=0, ddof=1) * np.sqrt(1 / 10 + 20 / 80)  # five folds of 100 rows
    near = behind.mean(axis=0) <= error + 1e-12
    assert 1 < near.sum() < len(near)
    assert near[found.best_index_]
    assert table["brier"][found.best_index_] == np.nanmin(np.where(near, table["brier"], np.nan))


def test_an_error_over_repeated_folds_does_not_shrink_with_the_repeats() -> None:
    once = standard_error([0.1, 0.2, 0.3], 1 / 2)
    assert once == pytest.approx(0.1 * math.sqrt(1 / 3 + 1 / 2))
    assert standard_error([0.1, 0.2, 0.3] * 100, 1 / 2) > 0.6 * once  # the usual one is a twentieth
    assert standard_error([0.1], 1 / 2) == 0


def test_the_brier_score_of_a_worked_example() -> None:
    proba = np.array([[0.8, 0.2], [0.4, 0.6]])
    # 0.2^2 + 0.2^2 = 0.08 where the first class is true, 0.6^2 + 0.6^2 = 0.72 where the first is true again
    assert brier(np.array([0, 0]), proba, np.ones(2)) == pytest.approx(0.4)
    assert brier(np.array([0, 0]), proba, np.array([3.0, 1.0])) == pytest.approx(0.24)


def test_if_nothing_can_be_fitted_the_error_names_the_first_cause() -> None:
    def broken(estimator, X, y) -> float:
        raise RuntimeError("the scorer broke")

    with pytest.raises(SearchError, match=r"none of \d+ configurations .* RuntimeError: the scorer broke"):
        search(scoring=broken).fit(X, Y)


def test_a_head_that_fails_while_others_do_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    poor = replace(HEADS["tree"], make=lambda params, random_state, shape: LogisticRegression(C=-1))
    monkeypatch.setitem(HEADS, "tree", poor)
    with pytest.warns(
        SearchWarning, match=r"the head tree could not be fitted with any of \d+ .*'C' parameter"
    ):
        found = search(heads=("ridge", "tree"), n_trials=2, grid="coarse").fit(X, Y)
    assert found.best_params_["head"] == "ridge"


def test_a_head_knows_the_shape_of_every_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    told, fitted = [], []

    class Tree(DecisionTreeClassifier):
        def fit(self, X: np.ndarray, y: np.ndarray) -> Tree:
            fitted.append(X.shape)
            super().fit(X, y)
            return self

    def make(params: dict, random_state: int, shape: tuple[int, int]) -> Tree:
        told.append(shape)
        return Tree(max_depth=3)

    monkeypatch.setitem(
        HEADS, "tree", replace(HEADS["tree"], make=make, solver="estimator", draws_curve=True)
    )
    search(heads=("tree",), n_trials=1, n_jobs=1).fit(X[:100], Y[:100])
    learning_curve(X[:100], Y[:100], head="tree", n_repeats=1, n_jobs=1)
    assert told == fitted
    assert len(set(told)) > 4


def test_a_score_of_nan_is_a_failure() -> None:
    with pytest.raises(SearchError, match="not a number"):
        search(scoring=lambda estimator, X, y: float("nan")).fit(X, Y)


def test_shuffled_labels_score_at_chance() -> None:
    shuffled = np.random.default_rng(0).permutation(Y)
    found = HeadSearchCV(n_trials=10, cv=3, random_state=0).fit(X[:160], shuffled[:160])
    assert found.score(X[160:], shuffled[160:]) < 0.3


def test_a_search_is_never_worse_than_logistic_regression_at_its_defaults() -> None:
    folds = list(StratifiedKFold(3, shuffle=True, random_state=0).split(X, Y))
    found = HeadSearchCV(n_trials=5, cv=folds, random_state=0).fit(X, Y)
    assert found.best_score_ >= cross_val_score(LogisticRegression(max_iter=1000), X, Y, cv=folds).mean()
