"""Heads fitted on rows that are read chunk by chunk are scikit-learn's, in a memory that does not grow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from classifiers import image_classifier
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import accuracy_score
from threadpoolctl import threadpool_limits

from featx import load
from featx.exceptions import SearchError, SearchWarning
from featx.features import FeatureBlocks
from featx.heads import HEADS, SCALINGS, decision_scores, make_pipeline
from featx.modelfile import dump_head, load_head
from featx.search import HeadSearchCV
from featx.search.refit import fit_head, fit_scaler
from featx.solvers import SOLVERS, Block, FitTask, Folds, ScaledFeatures, class_weights
from featx.solvers.moments import FoldMoments
from featx.splits import make_folds
from featx.stores import open_store
from tests.test_stores import make_spec
from tests.tinted import pictures


@pytest.fixture(autouse=True, scope="module")
def one_blas_thread():
    """Small fits lose time with more than one thread each, and lose most of it where others compute too."""
    with threadpool_limits(limits=1):
        yield


pytestmark = pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")  # pixels that never vary
DIGITS, LABELS = load_digits(return_X_y=True)
DIGITS = (DIGITS / 4).astype(np.float32)
STREAMING = [name for name, head in HEADS.items() if head.streams]
TIGHT = {"tol": 1e-7, "max_iter": 20_000}


def stored_blocks(rows: np.ndarray = DIGITS) -> FeatureBlocks:
    """Two blocks that can be read in parts, and refuse to be loaded."""

    def refuse() -> np.ndarray:
        raise AssertionError("a block was loaded whole")

    halves = {"left": rows[:, :24], "right": rows[:, 24:]}
    return FeatureBlocks(
        dict.fromkeys(halves, refuse),
        len(rows),
        widths={name: own.shape[1] for name, own in halves.items()},
        readers={name: own.__getitem__ for name, own in halves.items()},
    )


def tightened(pipeline):
    """The same, where scikit-learn iterates until coefficients have settled."""
    head = pipeline.named_steps["head"]
    for one in (head, getattr(head, "estimator", None)):
        if hasattr(one, "tol") and hasattr(one, "max_iter") and not isinstance(one, RidgeClassifier):
            one.set_params(**TIGHT)
    return pipeline


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 0.01) -> None:
    """Scores within a hundredth of their spread: all, but for one of a hundred rows that are far out."""
    assert np.quantile(np.abs(found - expected), 0.99) < tolerance * expected.std()
    decided = [own > 0 if own.ndim == 1 else own.argmax(axis=1) for own in (found, expected)]
    assert np.mean(decided[0] == decided[1]) > 0.997


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("head", STREAMING)
def test_streamed_rows_are_scored_as_scikit_learn_scores_them(head: str, scaling: str, classes: int) -> None:
    if classes < HEADS[head].min_classes:
        pytest.skip("another head for two classes")
    rows, y = DIGITS[:400], LABELS[:400] % classes
    folds = Folds(tuple(make_folds(y, n_splits=3)), y, classes)
    params = HEADS[head].grid[0]
    blocks = [Block(part, np.float32, streamed=True) for part in (rows[:, :24], rows[:, 24:])]
    task = FitTask(ScaledFeatures(blocks, scaling, folds), [params], precise=True, n_jobs=2)
    answers = {fold: scores for _, fold, scores in SOLVERS[HEADS[head].solver](task)}
    assert set(answers) == {0, 1, 2}
    train, test = folds.splits[1]
    plain = tightened(make_pipeline(head, params, scaling, [24, 40], n_rows=len(train)))
    expected = decision_scores(plain.fit(rows[train].astype(float), y[train]), rows[test])
    found = answers[1]
    if head == "nearest_mean" and classes > 2:  # without the row's own length, which all classes share
        found, expected = (own - own.mean(axis=1, keepdims=True) for own in (found, expected))
    assert_close(found, expected)


@pytest.mark.parametrize("head", ["logistic", "linear_svm", "ridge"])
def test_weights_of_rows_and_classes_enter_as_in_scikit_learn(head: str) -> None:
    rows, y = DIGITS[:300], LABELS[:300] % 3
    weight = np.random.default_rng(0).uniform(0.2, 3, len(y))
    folds = Folds(tuple(make_folds(y, n_splits=3)), y, 3, weight)
    params = HEADS[head].grid[0]
    task = FitTask(
        ScaledFeatures([Block(rows, np.float32, streamed=True)], "none", folds),
        [params],
        class_weight="balanced",
        precise=True,
    )
    ((_, _, scores), *_) = SOLVERS[HEADS[head].solver](task)
    train, test = folds.splits[0]
    both = weight[train] * class_weights("balanced", y[train], weight[train], 3)[y[train]]
    pipeline = tightened(make_pipeline(head, params, "none", [64], n_rows=len(train)))
    pipeline.fit(rows[train].astype(float), y[train], head__sample_weight=both)
    expected = decision_scores(pipeline, rows[test])
    assert_close(scores, expected)


@pytest.mark.parametrize("n_repeats", [1, 3])
def test_moments_of_every_training_part_come_from_one_pass(n_repeats: int) -> None:
    folds = Folds(tuple(make_folds(LABELS, n_splits=4, n_repeats=n_repeats)), LABELS, 10)
    moments = FoldMoments(folds, None)
    asked: list[np.ndarray] = []

    def read(rows: np.ndarray, fold: int) -> np.ndarray:
        asked.append(rows)
        return DIGITS[rows].astype(float)

    assert moments.sum_up(read, 64, chunk=500, run=lambda calls: [call(*given) for call, given in calls])
    np.testing.assert_array_equal(np.concatenate(asked), np.arange(len(LABELS)))
    assert len(moments.groups) == (4 if n_repeats == 1 else 13)  # every row multiplied once, or twice
    for fold, (train, _) in enumerate(folds.splits):
        own, rows = moments.of(fold), DIGITS[train].astype(float)
        np.testing.assert_allclose(own.second, rows.T @ rows, rtol=1e-9)
        np.testing.assert_allclose(own.count, np.bincount(LABELS[train]))
        np.testing.assert_allclose(own.means[3], rows[LABELS[train] == 3].mean(axis=0), rtol=1e-9)


def test_many_rows_in_memory_are_solved_by_moments_alike() -> None:
    folds = Folds(tuple(make_folds(LABELS)), LABELS, 10)
    rows = ScaledFeatures([DIGITS], "standard", folds)
    assert rows.by_moments
    for head in ("ridge", "lda"):
        params = HEADS[head].grid[0]
        ((_, _, scores), *_) = SOLVERS[head](FitTask(rows, [params]))
        train, test = folds.splits[0]
        pipeline = make_pipeline(head, params, "standard", [64], n_rows=len(train))
        expected = decision_scores(pipeline.fit(DIGITS[train].astype(float), LABELS[train]), DIGITS[test])
        np.testing.assert_allclose(scores, expected, atol=1e-4 * expected.std())


def test_columns_whose_moments_do_not_fit_the_memory_are_refused() -> None:
    folds = Folds(tuple(make_folds(LABELS)), LABELS, 10)
    rows = ScaledFeatures([Block(DIGITS, np.float32, streamed=True)], "none", folds)
    with pytest.raises(SearchError, match=r"64 columns .* second moments .* memory="):
        list(SOLVERS["ridge"](FitTask(rows, [{"alpha": 1.0}], memory=100_000)))


@pytest.mark.parametrize("solver", ["softmax", "ridge"])
def test_little_memory_takes_more_passes_and_changes_no_score(solver: str) -> None:
    folds = Folds(tuple(make_folds(LABELS, n_splits=3)), LABELS, 10)
    head = next(head for head in HEADS.values() if head.solver == solver)
    much, little = (
        {
            (i, fold): scores
            for i, fold, scores in SOLVERS[solver](
                FitTask(
                    ScaledFeatures([Block(DIGITS, np.float32, streamed=True)], "standard", folds),
                    head.grid[:2],
                    memory=memory,
                    precise=True,
                )
            )
        }
        for memory in (2**30, 2**20)
    )
    assert much.keys() == little.keys()
    for key in much:
        assert_close(little[key], much[key])


@pytest.mark.parametrize("scaling", ["standard", "center_l2"])
@pytest.mark.parametrize("head", STREAMING)
def test_the_winner_is_a_plain_pipeline_that_is_saved_and_loaded(head: str, scaling: str) -> None:
    point = {f"{head}__{key}": value for key, value in HEADS[head].grid[0].items()}
    rows, names = DIGITS[:300], np.array([f"digit {label}" for label in range(10)])[LABELS[:300]]
    weight = np.random.default_rng(0).uniform(0.5, 2, len(names)) if HEADS[head].takes_weights else None
    search = HeadSearchCV(
        [head], n_trials=0, grid=[{"head": head, "scaling": scaling, **point}], cv=3, random_state=0,
        representations=[("left", "right")], stream_rows=200,
    )  # fmt: skip
    search.fit(stored_blocks(rows), names, sample_weight=weight)
    plain = tightened(make_pipeline(head, HEADS[head].grid[0], scaling, [24, 40], n_rows=len(names)))
    scaled = {} if weight is None or scaling not in ("standard", "center_l2") else {"weight": weight}
    with_scale = make_pipeline(head, HEADS[head].grid[0], scaling, [24, 40], n_rows=len(names))
    scaler = fit_scaler(plain.named_steps["scale"], rows.astype(float), scaled.get("weight"))
    expected_pipeline = fit_head(plain, scaler.transform(rows.astype(float)), names, weight)
    found = decision_scores(search.best_estimator_, rows)
    expected = decision_scores(expected_pipeline, rows)
    assert_close(found, expected)
    again = load_head(dump_head(head, search.best_estimator_), search.classes_)
    np.testing.assert_array_equal(again.predict(rows), search.best_estimator_.predict(rows))
    assert set(vars(search.best_estimator_.named_steps["scale"])) == set(
        vars(with_scale.named_steps["scale"].fit(rows))
    )
    np.testing.assert_allclose(search.predict_proba(stored_blocks(rows)).sum(axis=1), 1)


def test_a_search_over_many_stored_rows_finds_what_a_search_in_memory_finds() -> None:
    grid = [
        {
            "head": head,
            "scaling": "l2",
            **{f"{head}__{key}": value for key, value in HEADS[head].grid[0].items()},
        }
        for head in ("ridge", "lda", "nearest_mean", "logistic")
    ]
    kwargs = {"n_trials": 2, "grid": grid, "cv": 3, "random_state": 0, "representations": [("left", "right")]}
    streamed_search = HeadSearchCV(stream_rows=1000, **kwargs).fit(stored_blocks(), LABELS)
    halves = {"left": DIGITS[:, :24], "right": DIGITS[:, 24:]}
    held = HeadSearchCV(**kwargs).fit(FeatureBlocks(halves, len(DIGITS)), LABELS)
    scores = [dict(zip(map(str, one.cv_results_["params"]), one.cv_results_["mean_test_score"], strict=True))
              for one in (streamed_search, held)]  # fmt: skip
    assert all(scores[0][str(config)] == pytest.approx(scores[1][str(config)], abs=0.002) for config in grid)
    assert set(streamed_search.left_out_) == {"rbf_svm", "knn"}
    assert all("all rows in memory" in why and "1,000" in why for why in streamed_search.left_out_.values())
    assert set(streamed_search.memory_) == {"chunks", "moments", "weights", "scores"}
    assert held.memory_ == {}
    assert np.isfinite(streamed_search.oof_proba_).all()
    assert accuracy_score(LABELS, streamed_search.predict(stored_blocks())) > 0.97


def test_a_head_that_needs_all_rows_is_searched_where_it_is_named() -> None:
    search = HeadSearchCV(
        ["rbf_svm"], n_trials=0, grid="coarse", cv=3, random_state=0, stream_rows=1000, kernel_rows=300
    ).fit(DIGITS, LABELS)
    assert search.left_out_ == {}
    assert search.best_params_["head"] == "rbf_svm"
    assert set(search.cv_results_["approximate"]) == {"fitted on 300 rows of each training part"}


def test_the_study_of_streamed_rows_goes_on_where_it_stopped(tmp_path: Path) -> None:
    kwargs = {"n_trials": 2, "cv": 3, "random_state": 0, "storage": str(tmp_path / "s.journal")}
    first, second = (
        HeadSearchCV(["ridge"], stream_rows=1000, **kwargs).fit(stored_blocks(), LABELS) for _ in range(2)
    )
    assert len(first.study_.trials) == len(second.study_.trials)


def test_a_search_of_streamed_rows_ends_when_its_time_is_up() -> None:
    with pytest.warns(SearchWarning, match="time budget"):
        search = HeadSearchCV(stream_rows=1000, timeout=1e-3, cv=3).fit(stored_blocks(), LABELS)
    assert search.best_score_ > 0.8


def test_images_above_the_limit_are_learnt_without_their_rows_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(HeadSearchCV.__init__.__kwdefaults__, "stream_rows", 20)
    loaded: list[int] = []
    plain = FeatureBlocks.__getitem__
    monkeypatch.setattr(
        FeatureBlocks, "__getitem__", lambda self, name: loaded.append(self.n_rows) or plain(self, name)
    )
    monkeypatch.setattr("featx.evaluation.unlike.MOST_ROWS", 10)  # a sample of 1,000 rows is kept in memory
    monkeypatch.setattr("featx.selection.augmentation.FEW_A_CLASS", 0)  # noise is tried where rows are few
    images, labels = pictures(40)
    clf = image_classifier(
        "test_resnet", pretrained=False, input_size=32, cut=["layer3", "last"], pool="avg", resize="squash",
        n_trials=2, store=tmp_path / "store", random_state=0,
    )  # fmt: skip
    clf.fit_with_test(images, labels)
    assert not {"rbf_svm", "knn"} & {params["head"] for params in clf.cv_results_["params"]}
    assert all(n < 20 for n in loaded)
    clf.save(tmp_path / "model.featx")
    again = load(tmp_path / "model.featx", store=tmp_path / "store")
    np.testing.assert_allclose(again.predict_proba(images), clf.predict_proba(images), atol=1e-6)


MANY = r"""
import json, re, sys, warnings
import numpy as np
from featx.features import FeatureBlocks
from featx.search import HeadSearchCV
from featx.stores import open_store

def peak():  # ru_maxrss begins with that of the process that started this one
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])

warnings.simplefilter("ignore")
store, out = open_store(sys.argv[1]), sys.argv[2]
(key,) = store.keys()
labels = np.load(sys.argv[3])
ids = np.zeros((len(labels), 32), np.uint8)
ids[:, :4] = np.arange(len(labels), dtype=np.uint32)[:, None].view(np.uint8)
few = np.arange(500)
HeadSearchCV(["ridge"], n_trials=0).fit(np.random.default_rng(0).normal(size=(500, 8)), few % 2)  # imports
before = peak()
blocks = FeatureBlocks({}, len(labels), readers={"last:avg": lambda rows: store.read(key, ids[rows])})
search = HeadSearchCV(
    ["ridge", "lda", "logistic"], n_trials=0, cv=3, random_state=0, n_jobs=1, memory=2**28,
    grid=[
        {"head": "ridge", "scaling": "standard", "ridge__alpha": 1.0},
        {"head": "lda", "scaling": "standard", "lda__shrinkage": 0.1},
        {"head": "logistic", "scaling": "standard", "logistic__C": 1.0},
    ],
).fit(blocks, labels)
grown = peak() - before
json.dump(
    {
        "grown": grown, "memory": search.memory_, "left_out": search.left_out_,
        "scores": dict(zip([p["head"] for p in search.cv_results_["params"]],
                           search.cv_results_["mean_test_score"].tolist())),
    },
    open(out, "w"),
)
"""


@pytest.mark.slow
def test_many_stored_rows_take_the_stated_memory_and_give_the_scores_of_scikit_learn(tmp_path: Path) -> None:
    """120,000 rows of 768 in half precision on disk; in single precision they are 352 MiB."""
    n, d = 120_000, 768
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, n)
    means, spread = rng.normal(size=(3, d)) * 0.04, rng.uniform(0.1, 3, d)
    rows = np.empty((n, d), np.float16)
    for start in range(0, n, 10_000):
        where = slice(start, start + 10_000)
        rows[where] = (means[labels[where]] + rng.normal(size=(10_000, d))) * spread
    spec = make_spec()
    ids = np.zeros((n, 32), np.uint8)
    ids[:, :4] = np.arange(n, dtype=np.uint32)[:, None].view(np.uint8)
    store = open_store(tmp_path / "store")
    for start in range(0, n, 20_000):
        store.append(spec.key, ids[start : start + 20_000], rows[start : start + 20_000], spec)
    store.close()
    np.save(tmp_path / "labels.npy", labels)
    command = [sys.executable, "-c", MANY, tmp_path / "store", tmp_path / "out.json", tmp_path / "labels.npy"]
    subprocess.run(command, check=True, timeout=500)
    found = json.loads((tmp_path / "out.json").read_text())
    stated = sum(found["memory"].values())
    assert 0 < found["grown"] < min(stated, n * d * 4 / 2)
    train, test = make_folds(labels, n_splits=3, random_state=0)[0]
    full = rows.astype(np.float32)
    full = (full - full[train].mean(axis=0)) / full[train].std(axis=0) / np.sqrt(d)
    for head, model in {
        "ridge": RidgeClassifier(alpha=1.0),
        "lda": LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1),
        "logistic": LogisticRegression(C=1.0),
    }.items():
        expected = model.fit(full[train], labels[train]).score(full[test], labels[test])
        assert found["scores"][head] == pytest.approx(expected, abs=0.004)  # one fold of 40,000 against three


def test_a_column_that_is_constant_in_a_fold_only_has_no_say() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 12)).astype(np.float32)
    y = (rows[:, 0] > 0).astype(np.intp)
    test = np.arange(0, 300, 10)
    rows[:, 5] = 7000.0
    rows[test, 5] = rng.normal(scale=1e4, size=len(test))  # far from 0, and off the common mean elsewhere
    folds = Folds(((np.setdiff1d(np.arange(300), test), test),), y, 2)
    shared = ScaledFeatures([rows], "standard", folds)
    assert shared.by_moments
    ((_, _, scores),) = SOLVERS["ridge"](FitTask(shared, [{"alpha": 1e-3}]))
    without = ScaledFeatures([np.delete(rows, 5, axis=1)], "standard", folds)
    ((_, _, expected),) = SOLVERS["ridge"](FitTask(without, [{"alpha": 1e-3 * 12 / 11}]))
    np.testing.assert_allclose(scores, expected, atol=1e-3)
