"""Every head is loaded from its bytes with equal predictions, and arrays are loaded as they were saved."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from featx.exceptions import ModelFileError
from featx.heads import HEADS, SCALINGS, decision_scores, make_pipeline
from featx.modelfile import dump_arrays, dump_head, load_arrays, load_head

X = np.random.default_rng(0).normal(size=(60, 20)).astype(np.float32)
NEW = np.random.default_rng(1).normal(size=(40, 20)).astype(np.float32)

pytestmark = pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")

LABELS = {
    "str": ["cat", "dog", "o\u00fcl"],
    "int": [-3, 5, 2**40],
    "float": [-3.0, 0.0, 7.0],
    "bool": [False, True],
    "object": ["a", "b", "c"],
}


def fitted(
    head: str, *, labels: Any = (0, 1, 2), scaling: str = "standard", dtype: Any = np.float32, **layout: Any
) -> Any:
    params: dict[str, Any] = dict(HEADS[head].grid[0])
    params |= {"forest": {"n_estimators": 5}, "boosting": {"max_iter": 3}}.get(head, {})
    layout = {"widths": (20,), "n_rows": 60, "random_state": 0} | layout
    values = np.array(labels, dtype=object if isinstance(labels, tuple) and labels[0] == "a" else None)
    return make_pipeline(head, params, scaling, **layout).fit(
        X.astype(dtype), values[np.arange(60) % len(values)]
    )


def reloaded(head: str, pipeline: Any) -> Any:
    return load_head(dump_head(head, pipeline), pipeline.classes_)


def assert_same_predictions(again: Any, pipeline: Any) -> None:
    for features in (NEW, NEW.astype(np.float64)):
        assert (again.predict(features) == pipeline.predict(features)).all()
        np.testing.assert_allclose(
            decision_scores(again, features), decision_scores(pipeline, features), rtol=0, atol=1e-12
        )
        if hasattr(pipeline, "predict_proba"):
            np.testing.assert_allclose(
                again.predict_proba(features), pipeline.predict_proba(features), rtol=0, atol=1e-12
            )


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("head", HEADS)
def test_a_loaded_head_predicts_as_before(head: str, n_classes: int, kind: str) -> None:
    labels = tuple(LABELS[kind][:n_classes])
    if len(labels) < n_classes:
        pytest.skip("bool labels have two classes")
    pipeline = fitted(head, labels=labels)
    again = reloaded(head, pipeline)
    assert again.classes_.dtype == pipeline.classes_.dtype
    assert_same_predictions(again, pipeline)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", [{"widths": (20,)}, {"widths": (12, 8)}, {"columns": [3, 0, 17]}])
@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("head", HEADS)
def test_a_loaded_head_scales_as_before(head: str, scaling: str, layout: Any, dtype: Any) -> None:
    pipeline = fitted(head, scaling=scaling, dtype=dtype, **layout)
    assert_same_predictions(reloaded(head, pipeline), pipeline)


def test_a_head_on_a_few_of_many_columns_is_small_and_quick_to_load() -> None:
    features = np.random.default_rng(0).normal(size=(40, 30_000))
    columns = range(0, 30_000, 2)
    pipeline = make_pipeline("linear_svm", {"C": 1.0}, "standard", (30_000,), n_rows=40, columns=columns)
    pipeline.fit(features, np.arange(40) % 2)
    again = reloaded("linear_svm", pipeline)
    assert np.array_equal(again.decision_function(features), pipeline.decision_function(features))
    assert sum(map(len, dump_head("linear_svm", pipeline).values())) < 4 * 8 * len(columns) + 2000


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("weights", ["temperature", "distance", "uniform"])
def test_every_vote_of_neighbours_is_loaded(weights: str, metric: str) -> None:
    params = {"n_neighbors": 3, "metric": metric, "weights": weights, "temperature": 0.1}
    pipeline = make_pipeline("knn", params, "l2", (20,), n_rows=60).fit(X, np.arange(60) % 3)
    assert_same_predictions(reloaded("knn", pipeline), pipeline)


@pytest.mark.parametrize("head", HEADS)
def test_equal_heads_give_equal_bytes(head: str) -> None:
    first = dump_head(head, fitted(head))
    assert first == dump_head(head, fitted(head))
    assert first == dump_head(head, load_head(first, np.arange(3)))


def test_a_head_is_saved_whatever_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    assert reloaded("ridge", fitted("ridge"))


def test_a_loaded_forest_has_the_feature_importances_of_the_saved_one() -> None:
    pipeline = fitted("forest")
    again = reloaded("forest", pipeline)
    own, other = (one.named_steps["head"].feature_importances_ for one in (pipeline, again))
    np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e31])
def test_a_head_that_could_not_be_loaded_is_not_saved(value: float) -> None:
    pipeline = fitted("logistic")
    pipeline.named_steps["head"].coef_[0, 0] = value
    with pytest.raises(ModelFileError, match="array 'coef' has values that are not finite, or too large"):
        dump_head("logistic", pipeline)


def test_the_text_of_a_saved_head_says_what_it_is() -> None:
    members = dump_head("ridge", fitted("ridge", widths=(12, 8)))
    assert json.loads(members["head.json"]) == {
        "head": "ridge",
        "params": {"alpha": 1.0},
        "picked": False,
        "scaling": "standard",
        "widths": [12, 8],
    }


def test_saving_and_loading_a_head_imports_no_torch() -> None:
    code = (
        "import sys, numpy as np\n"
        "from featx.heads import make_pipeline\n"
        "from featx.modelfile import dump_head, load_head\n"
        "head = make_pipeline('ridge', {'alpha': 1.0}, 'standard', (3,), n_rows=6)\n"
        "load_head(dump_head('ridge', head.fit(np.eye(6, 3), [0, 1] * 3)), np.array([0, 1]))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int64", "bool"])
def test_arrays_come_back_as_they_were(dtype: str) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3).astype(dtype), "b": np.zeros((0, 4), dtype), "c": X.T}
    shapes = {"a": (2, 3), "b": (0, 4), "c": (None, 60)}
    found = load_arrays(dump_arrays(arrays), shapes)
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert found["a"].dtype == dtype
