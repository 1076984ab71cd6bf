"""The scores of a saved head without scikit-learn are those of the scikit-learn pipeline."""

from __future__ import annotations

import numpy as np
import pytest

from featx.heads import HEADS, SCALINGS, decision_scores, make_pipeline
from featx.heads.formulas import scale
from featx.modelfile import dump_head, read_head

MORE = {
    "knn": [{"n_neighbors": 3, "metric": "euclidean", "weights": "distance"},
            {"n_neighbors": 4, "metric": "cosine", "weights": "temperature", "temperature": 0.1}],
}  # fmt: skip
FEW_TREES = {"forest": {"n_estimators": 12}, "boosting": {"max_iter": 8}}
CASES = [(name, {**params, **FEW_TREES.get(name, {})}) for name in HEADS
         for params in [HEADS[name].grid[0], *MORE.get(name, [])]]  # fmt: skip


def blobs(n_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of two blocks (12 and 6 columns) to learn and to predict."""
    rng = np.random.default_rng(0)
    y = np.arange(40 * n_classes) % n_classes
    rows = rng.normal(size=(len(y), 18)) + 1.2 * rng.normal(size=(n_classes, 18))[y]
    new = rng.normal(size=(25, 18)) * 1.5
    return rows.astype(np.float32), y, np.vstack([new, rows[:5]]).astype(np.float32)  # and known rows


def agree(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize(("head", "params"), CASES, ids=lambda value: str(value)[:60])
def test_scores_without_scikit_learn_are_its_scores(head: str, params: dict, n_classes: int) -> None:
    torch = pytest.importorskip("torch")
    rows, y, new = blobs(n_classes)
    scaling = HEADS[head].scalings[0]
    pipeline = make_pipeline(head, params, scaling, [12, 6], n_rows=len(rows), random_state=0).fit(rows, y)
    saved = read_head(dump_head(head, pipeline), n_classes)
    expected = decision_scores(pipeline, new)
    agree(saved.scorer()(new), expected)

    *parts, params = saved.prepared()
    scaler, tensors = ({name: torch.tensor(np.array(own)) for name, own in part.items()} for part in parts)
    scaled = scale(torch, scaling, [12, 6], scaler, torch.tensor(new, dtype=torch.float64))
    agree(saved.formula.scores(torch, tensors, params, scaled).numpy(), expected)


@pytest.mark.parametrize("columns", [None, [0, 3, 17]])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_every_scaling_is_computed_without_scikit_learn(scaling: str, columns: list[int] | None) -> None:
    rows, y, new = blobs(3)
    new[0] = 0
    pipeline = make_pipeline("ridge", {"alpha": 1.0}, scaling, [12, 6], n_rows=len(rows), columns=columns)
    saved = read_head(dump_head("ridge", pipeline.fit(rows, y)), 3)
    agree(saved.scorer()(new), decision_scores(pipeline, new))
