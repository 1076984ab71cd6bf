"""Fits that share their computation give what scikit-learn gives, fit by fit."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits, make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from featx.heads import HEADS, SCALINGS, decision_scores, make_pipeline, make_scaler, vote_scores
from featx.solvers import (
    SOLVERS,
    Block,
    FitTask,
    Folds,
    GramFeatures,
    ScaledFeatures,
    class_weights,
    kernel_sample,
    solve_lda,
    solve_linear,
)
from featx.splits import make_folds


@pytest.fixture(autouse=True, scope="module")
def one_blas_thread():
    """Small fits lose time with more than one thread each, and lose most of it where others compute too."""
    with threadpool_limits(limits=1):
        yield


pytestmark = pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")  # pixels that never vary
X, Y = (part[:160] for part in load_digits(return_X_y=True))


def decided(scores: np.ndarray) -> np.ndarray:
    return scores > 0 if scores.ndim == 1 else scores.argmax(axis=1)


def folds_of(y: np.ndarray, weight: np.ndarray | None = None, n_splits: int = 3) -> Folds:
    return Folds(tuple(make_folds(y, n_splits=n_splits)), y, int(y.max()) + 1, weight)


def scikit_learn_answer(head, params, scaling, widths, folds, fold, rows):
    """Scores of a fold's test rows by the plain pipeline, fitted on the fold's training rows."""
    train, test = folds.splits[fold]
    pipeline = make_pipeline(head, params, scaling, widths, n_rows=len(train))
    if head in ("logistic", "logistic_ovr", "linear_svm"):
        tight = {"tol": 1e-8, "max_iter": 20_000}
        inner = pipeline.named_steps["head"]
        (inner.estimator if head == "logistic_ovr" else inner).set_params(**tight)
    return decision_scores(pipeline.fit(rows[train], folds.y[train]), rows[test])


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("head", [name for name, head in HEADS.items() if head.solver != "estimator"])
def test_a_solver_scores_held_out_rows_as_scikit_learn_does(head: str, scaling: str, classes: int) -> None:
    folds = folds_of(Y % classes)
    rows = X / 4
    grid = HEADS[head].grid[:: max(1, len(HEADS[head].grid) // 3)]
    task = FitTask(ScaledFeatures([rows], scaling, folds), grid, precise=True)
    answers = {
        (i, fold): vote_scores(scores) if HEADS[head].votes else scores
        for i, fold, scores in SOLVERS[HEADS[head].solver](task)
    }
    assert set(answers) == {(i, fold) for i in range(len(grid)) for fold in range(3)}
    for i, params in enumerate(grid):
        expected = scikit_learn_answer(head, params, scaling, [64], folds, 1, rows)
        off = np.abs(answers[i, 1] - expected) / expected.std()
        assert np.mean(decided(answers[i, 1]) == decided(expected)) >= 0.98
        # Scores of SVMs count votes, which flip at once; equally distant neighbours may be taken in another
        # order; separable classes (C of 100 and more) have scores that grow for ever.
        assert np.quantile(off, 0.9) < 0.05


@pytest.mark.parametrize("head", ["logistic", "logistic_ovr", "linear_svm"])
def test_answers_have_settled_where_a_search_stops(head: str) -> None:
    folds = folds_of(Y)
    quick, precise = (
        {
            (i, fold): decided(scores)
            for i, fold, scores in SOLVERS[HEADS[head].solver](
                FitTask(ScaledFeatures([X], "standard", folds), HEADS[head].grid, precise=precise)
            )
        }
        for precise in (False, True)
    )
    assert np.mean([np.mean(quick[key] == precise[key]) for key in quick]) > 0.99


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("loss", ["softmax", "logistic", "squared_hinge"])
def test_batched_linear_models_converge_to_the_coefficients_of_scikit_learn(loss: str, classes: int) -> None:
    if loss == "softmax" and classes == 2:
        loss = "logistic"
    y = Y % classes
    rows = StandardScaler().fit_transform(X)[:, X.std(axis=0) > 0]
    folds = folds_of(y)
    strengths = np.array([0.1, 1.0, 10.0])
    solved = solve_linear(
        ScaledFeatures([rows], "none", folds),
        loss,
        np.array([0, 0, 1]),
        strengths,
        folds.masses(None),
        tolerance=1e-8,
        max_iterations=2000,
    )
    scale = 1 / np.sqrt(rows.shape[1])  # what scaling "none" divides by
    for column, (fold, strength) in enumerate(zip((0, 0, 1), strengths, strict=True)):
        train = folds.splits[fold][0]
        plain = LogisticRegression(C=1 / strength, tol=1e-10, max_iter=10_000)
        model = {
            "softmax": plain,
            "logistic": plain if classes == 2 else OneVsRestClassifier(plain),
            "squared_hinge": LinearSVC(C=1 / strength, tol=1e-10, max_iter=500_000, dual=False),
        }[loss]
        model.fit(rows[train] * scale, y[train])
        parts = getattr(model, "estimators_", [model])
        coefficients = np.vstack([part.coef_ for part in parts])
        intercepts = np.concatenate([part.intercept_ for part in parts])
        np.testing.assert_allclose(
            solved.weights[:-1, :, column].T, coefficients, atol=2e-4 * np.abs(coefficients).max()
        )
        np.testing.assert_allclose(
            solved.weights[-1, :, column], intercepts, atol=2e-4 * max(1, np.abs(intercepts).max())
        )


@pytest.mark.parametrize("head", ["logistic", "linear_svm", "ridge", "rbf_svm"])
def test_sample_and_class_weights_enter_as_in_scikit_learn(head: str) -> None:
    y = Y % 3
    weight = np.random.default_rng(0).uniform(0.2, 3, len(y))
    folds = folds_of(y, weight)
    params = HEADS[head].grid[0]
    rows = ScaledFeatures([X], "none", folds)
    task = FitTask(rows, [params], class_weight="balanced", precise=True)
    ((_, _, scores), *_) = SOLVERS[HEADS[head].solver](task)
    train, test = folds.splits[0]
    both = weight[train] * class_weights("balanced", y[train], weight[train], 3)[y[train]]
    pipeline = make_pipeline(head, params, "none", [64], n_rows=len(train))
    pipeline.fit(X[train], y[train], head__sample_weight=both)
    expected = decision_scores(pipeline, X[test])
    np.testing.assert_allclose(scores, expected, atol=0.02 * expected.std())
    assert np.corrcoef(scores.ravel(), expected.ravel())[0, 1] > 0.9999


def test_balanced_and_square_root_weights_are_worked_out_from_weighted_counts() -> None:
    y, weight = np.array([0, 0, 0, 1]), np.array([1.0, 1, 2, 4])
    np.testing.assert_allclose(class_weights("balanced", y, weight, 2), [1.0, 1.0])
    np.testing.assert_allclose(class_weights("balanced", y, np.ones(4), 2), [4 / 6, 4 / 2])
    np.testing.assert_allclose(class_weights("sqrt", y, np.ones(4), 2), np.sqrt([4 / 6, 4 / 2]))
    np.testing.assert_allclose(class_weights((1.0, 5.0), y, weight, 2), [1, 5])
    np.testing.assert_allclose(class_weights(None, y, weight, 2), [1, 1])


@pytest.mark.parametrize("scaling", SCALINGS)
def test_rows_are_scaled_by_the_training_part_of_each_fold(scaling: str) -> None:
    weight = np.random.default_rng(1).uniform(0, 2, len(Y))
    folds = folds_of(Y, weight)
    blocks = [X[:, :24], X[:, 24:]]
    rows = ScaledFeatures(blocks, scaling, folds)
    for fold, (train, _) in enumerate(folds.splits):
        expected = []
        for block in blocks:
            own = block.astype(float)
            if scaling in ("standard", "center_l2"):
                mean = np.average(own[train], axis=0, weights=weight[train])
                spread = np.sqrt(np.average((own[train] - mean) ** 2, axis=0, weights=weight[train]))
                own = own - mean
                if scaling == "standard":
                    own = own / np.where(spread == 0, 1, spread)
            if scaling in ("l2", "center_l2"):
                length = np.linalg.norm(own, axis=1, keepdims=True)
                own = own / np.where(length == 0, 1, length)
            else:
                own = own / np.sqrt(own.shape[1])
            expected.append(own)
        np.testing.assert_allclose(rows.of_fold(fold), np.hstack(expected), atol=1e-9)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_products_with_shared_rows_are_products_with_each_fold_s_own(scaling: str) -> None:
    folds = folds_of(Y)
    rows = ScaledFeatures([X[:, :24], X[:, 24:]], scaling, folds)
    rng = np.random.default_rng(0)
    weights, which = rng.normal(size=(65, 3, 4)), np.array([0, 2, 1, 0])
    residuals = rng.normal(size=(160, 3, 4))
    scores, gradient = rows.times(weights, which), rows.transposed_times(residuals, which)
    for column, fold in enumerate(which):
        own = np.column_stack([rows.of_fold(fold), np.ones(160)])
        np.testing.assert_allclose(scores[..., column], own @ weights[..., column], atol=1e-9)
        np.testing.assert_allclose(gradient[..., column], own.T @ residuals[..., column], atol=1e-9)


def test_streamed_rows_of_half_precision_give_the_same_products() -> None:
    folds = folds_of(Y)
    half = (X / 16).astype(np.float16)
    whole = ScaledFeatures([half.astype(np.float32)], "standard", folds)
    streamed = ScaledFeatures([Block(half, np.float32, streamed=True)], "standard", folds)
    weights = np.random.default_rng(0).normal(size=(65, 10, 2)).astype(np.float32)
    which = np.array([0, 2])
    np.testing.assert_allclose(streamed.times(weights, which), whole.times(weights, which), atol=1e-5)
    assert streamed.parts[0].block._base is None


def test_wide_rows_are_solved_by_their_inner_products_alone() -> None:
    rows, y = make_classification(80, 400, n_informative=20, n_classes=3, random_state=0)
    folds = folds_of(y)
    shared = ScaledFeatures([rows], "standard", folds)
    assert GramFeatures(shared).height == 2 * (80 + 1)
    params = [{"C": 1.0}, {"C": 30.0}]
    answers = {(i, fold): scores for i, fold, scores in SOLVERS["softmax"](FitTask(shared, params))}
    for i, own in enumerate(params):
        expected = scikit_learn_answer("logistic", own, "standard", [400], folds, 2, rows)
        np.testing.assert_allclose(answers[i, 2], expected, atol=0.02 * expected.std())


def test_wide_rows_are_solved_by_the_smaller_gram_matrix_alike() -> None:
    rows, y = make_classification(90, 200, n_informative=20, n_classes=3, random_state=0)
    folds = folds_of(y)
    for head in ("ridge", "lda"):
        params = HEADS[head].grid[0]
        task = FitTask(ScaledFeatures([rows], "standard", folds), [params])
        answers = {fold: scores for _, fold, scores in SOLVERS[head](task)}
        expected = scikit_learn_answer(head, params, "standard", [200], folds, 0, rows)
        np.testing.assert_allclose(answers[0], expected, atol=1e-4 * expected.std())


@pytest.mark.parametrize("solver", ["softmax", "rbf_svm", "ridge", "neighbours"])
def test_threads_change_no_answer(solver: str) -> None:
    head = next(head for head in HEADS.values() if head.solver == solver)
    folds = folds_of(Y)
    one, two = (
        {
            (i, f): s
            for i, f, s in SOLVERS[solver](FitTask(ScaledFeatures([X], "l2", folds), head.grid, n_jobs=jobs))
        }
        for jobs in (1, 2)
    )
    assert one.keys() == two.keys()
    for key in one:
        # Linear models that run together stop together, so scores of separable classes move a little.
        off = np.abs(one[key] - two[key]) / (one[key].std() + 1e-9)
        assert np.quantile(off, 0.9) < 0.02
        assert off.max() < 0.1
        np.testing.assert_array_equal(decided(one[key]), decided(two[key]))


def test_little_memory_changes_no_score() -> None:
    folds = folds_of(Y)
    for solver, params in (("rbf_svm", HEADS["rbf_svm"].grid), ("neighbours", HEADS["knn"].grid)):
        much, little = (
            {
                (i, f): s
                for i, f, s in SOLVERS[solver](
                    FitTask(ScaledFeatures([X], "standard", folds, memory=memory), params, memory=memory)
                )
            }
            for memory in (2**30, 1000)
        )
        for (
            key
        ) in much:  # libsvm stops at 1e-3 of its optimum, and its scores count votes, which flip at once
            off = np.abs(much[key] - little[key])
            assert np.quantile(off, 0.99) < (1e-3 if solver == "rbf_svm" else 1e-6)


def test_the_answer_stops_when_time_is_up() -> None:
    folds = folds_of(Y)
    rows = ScaledFeatures([X], "standard", folds)
    for solver, params in (
        ("softmax", {"C": 1.0}),
        ("ridge", {"alpha": 1.0}),
        ("rbf_svm", HEADS["rbf_svm"].grid[0]),
    ):
        assert list(SOLVERS[solver](FitTask(rows, [params], stop=lambda: True))) == []


def test_a_pruned_configuration_is_fitted_on_no_further_fold() -> None:
    folds = folds_of(Y)
    grid = HEADS["rbf_svm"].grid[:3]
    gone: set[int] = set()
    seen = []
    for i, fold, _ in SOLVERS["rbf_svm"](
        FitTask(ScaledFeatures([X], "l2", folds), grid, alive=lambda i: i not in gone)
    ):
        seen.append((i, fold))
        if i == 1:
            gone.add(1)
    assert sorted(seen) == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1), (2, 2)]


def test_an_svm_s_sample_is_stratified_seeded_and_of_training_rows() -> None:
    y = np.repeat([0, 1], [900, 100])
    folds = folds_of(y)
    train = folds.splits[0][0]
    sample = kernel_sample(folds, 0, 100, 0)
    assert len(sample) == 100
    assert set(sample) <= set(train)
    assert (y[sample] == 1).sum() == 10
    np.testing.assert_array_equal(sample, kernel_sample(folds, 0, 100, 0))
    np.testing.assert_array_equal(kernel_sample(folds, 0, 10_000, 0), train)


def test_any_scikit_learn_classifier_is_fitted_fold_by_fold() -> None:
    folds = folds_of(Y)
    tree = HEADS["tree"].make({"max_depth": 5, "min_samples_leaf": 1}, 0)
    task = FitTask(ScaledFeatures([X], "none", folds), [{}], make=lambda params, shape: clone(tree))
    answers = {fold: shares for _, fold, shares in SOLVERS["estimator"](task)}
    train, test = folds.splits[2]
    scaled = make_scaler("none", [64]).fit_transform(X)
    np.testing.assert_allclose(
        answers[2], clone(tree).fit(scaled[train], Y[train]).predict_proba(scaled[test])
    )


def test_lda_of_one_row_a_class_is_the_nearest_mean() -> None:
    rows = np.array([[0.0, 0.0], [4.0, 2.0]])
    (_, weights, offset), *_ = solve_lda(rows, np.array([0, 1]), 2, [0.5])
    scores = np.array([[1.0, 1.0], [3.0, 1.0]]) @ weights + offset
    assert scores.argmax(axis=1).tolist() == [0, 1]


@pytest.mark.parametrize("classes", [2, 10])
def test_svms_of_scikit_learn_intelex_score_as_those_of_scikit_learn(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearnex", reason="the extra intelex is not installed", exc_type=ImportError)
    from featx.solvers import fits

    folds, answers = folds_of(Y % classes), []
    for module in ("sklearnex.svm", "sklearn.svm"):
        monkeypatch.setattr(fits, "FASTER", module)
        fits.svc_class.cache_clear()
        assert fits.svc_class().__module__.startswith(module.split(".")[0] + ".")
        task = FitTask(ScaledFeatures([X], "standard", folds), HEADS["rbf_svm"].grid, class_weight="balanced")
        answers.append({(i, fold): scores for i, fold, scores in SOLVERS["rbf_svm"](task)})
    fits.svc_class.cache_clear()
    same = [np.mean(decided(answers[0][key]) == decided(answers[1][key])) for key in answers[1]]
    assert np.mean(same) > 0.995
    if classes == 2:  # the scores of more count votes
        for key in answers[1]:
            np.testing.assert_allclose(answers[0][key], answers[1][key], atol=0.01)


def test_a_search_does_without_scikit_learn_intelex(monkeypatch: pytest.MonkeyPatch) -> None:
    from featx.solvers import fits

    monkeypatch.setattr(fits, "FASTER", "no_such_module.svm")
    fits.svc_class.cache_clear()
    assert fits.svc_class().__module__ == "sklearn.svm._classes"
    fits.svc_class.cache_clear()
