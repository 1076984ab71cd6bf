"""Every head comes back from its bytes as it was, and arrays as they were."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from featx.exceptions import ModelFileError
from featx.heads import HEADS, SCALINGS, make_pipeline
from featx.modelfile import dump_arrays, dump_estimator, load_arrays, load_estimator

ROWS = np.random.default_rng(0).normal(size=(60, 20)).astype(np.float32)


def fitted(
    head: str, *, labels: object = None, scaling: str = "standard", widths: tuple[int, ...] = (20,)
) -> object:
    params = dict(HEADS[head].grid[0])
    if head == "forest":
        params["n_estimators"] = 5
    if head == "boosting":
        params["max_iter"] = 3
    y = np.arange(60) % 3 if labels is None else labels
    return make_pipeline(head, params, scaling, widths, n_rows=60, random_state=0).fit(ROWS, y)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("head", HEADS)
def test_a_head_comes_back_with_the_same_answers(head: str, n_classes: int) -> None:
    pipeline = fitted(head, labels=np.array(["cat", "dog", "o\u00fcl"])[np.arange(60) % n_classes])
    again = load_estimator(dump_estimator(pipeline))
    assert (again.predict(ROWS) == pipeline.predict(ROWS)).all()
    method = "decision_function" if hasattr(pipeline, "decision_function") else "predict_proba"
    assert np.array_equal(getattr(again, method)(ROWS), getattr(pipeline, method)(ROWS))


@pytest.mark.parametrize("widths", [(20,), (12, 8)])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_scaling_of_one_or_more_blocks_comes_back(scaling: str, widths: tuple[int, ...]) -> None:
    pipeline = fitted("logistic", scaling=scaling, widths=widths)
    again = load_estimator(dump_estimator(pipeline))
    assert np.array_equal(again.decision_function(ROWS), pipeline.decision_function(ROWS))


def test_a_head_on_a_few_of_many_columns_stays_quick_to_read() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 30_000))
    pipeline = make_pipeline(
        "linear_svm", {"C": 1.0}, "standard", (30_000,), n_rows=40, columns=range(0, 30_000, 2)
    )
    pipeline.fit(rows, np.arange(40) % 2)
    data = dump_estimator(pipeline)
    again = load_estimator(data)
    assert np.array_equal(again.decision_function(rows), pipeline.decision_function(rows))
    with zipfile.ZipFile(
        io.BytesIO(data)
    ) as archive:  # a list would be 60,000 objects of JSON, seconds to read
        assert len(archive.read("schema.json")) < 100_000


@pytest.mark.parametrize("weights", ["temperature", "distance", "uniform"])
def test_every_vote_of_neighbours_comes_back(weights: str) -> None:
    params = {"n_neighbors": 3, "metric": "cosine", "weights": weights, "temperature": 0.1}
    pipeline = make_pipeline("knn", params, "l2", (20,), n_rows=60).fit(ROWS, np.arange(60) % 3)
    again = load_estimator(dump_estimator(pipeline))
    assert np.array_equal(again.predict_proba(ROWS), pipeline.predict_proba(ROWS))


@pytest.mark.parametrize("head", ["logistic", "rbf_svm", "tree"])
def test_equal_heads_give_equal_bytes(head: str) -> None:
    assert dump_estimator(fitted(head)) == dump_estimator(fitted(head))


def test_no_byte_of_memory_between_a_tree_s_fields_is_saved() -> None:
    saved = {dump_estimator(fitted("tree")) for _ in range(40)}
    assert len(saved) == 1


def test_the_number_of_threads_is_not_taken_from_the_file() -> None:
    pipeline = fitted("forest")
    pipeline.named_steps["head"].n_jobs = 10**9  # type: ignore[attr-defined]
    assert load_estimator(dump_estimator(pipeline)).named_steps["head"].n_jobs is None


def test_what_could_not_be_loaded_is_not_saved() -> None:
    pipeline = fitted("logistic")
    pipeline.extra = print  # type: ignore[attr-defined]
    with pytest.raises(ModelFileError, match="which no head of featx is made of"):
        dump_estimator(pipeline)


def test_saving_and_loading_a_head_imports_no_torch() -> None:
    code = (
        "import sys, numpy as np\n"
        "from featx.heads import make_pipeline\n"
        "from featx.modelfile import dump_estimator, load_estimator\n"
        "head = make_pipeline('ridge', {'alpha': 1.0}, 'standard', (3,), n_rows=6)\n"
        "load_estimator(dump_estimator(head.fit(np.eye(6, 3), [0, 1] * 3)))\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int64", "bool"])
def test_arrays_come_back_as_they_were(dtype: str) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3).astype(dtype), "b": np.zeros((0, 4), dtype), "c": ROWS.T}
    shapes = {"a": (2, 3), "b": (0, 4), "c": (None, 60)}
    found = load_arrays(dump_arrays(arrays), shapes)
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert found["a"].dtype == dtype
