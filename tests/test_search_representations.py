"""Representations: exact leave-one-out, combinations, picked features, the simplest within an error."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneGroupOut, LeaveOneOut, cross_val_predict

from featx import HeadSearchCV
from featx.exceptions import UsageError
from featx.features import FeatureBlocks
from featx.representation import PICKED
from featx.search.feature_selection import RELEVANT_COUNTS, pick_relevant
from featx.search.screening import screen_representations, shortlist

X, Y = load_digits(return_X_y=True)
X, Y = X[:200].astype(np.float32) / 16, Y[:200]


def blocks(**more: np.ndarray) -> FeatureBlocks:
    """Upper and lower halves of the digits, noise, and blocks that a test adds."""
    noise = np.random.default_rng(0).normal(size=(200, 40)).astype(np.float32)
    rows = {
        "last:avg:crop": noise,
        "blocks.1:grid4:crop": X[:, :32],
        "blocks.2:grid4:crop": X[:, 32:],
        **more,
    }
    return FeatureBlocks(rows, 200)


def search(**changes) -> HeadSearchCV:
    quick = {"heads": ("ridge",), "n_trials": 2, "cv": 3, "random_state": 0, "n_jobs": 1}
    return HeadSearchCV(**{**quick, **changes})


def expected_accuracy(rows: np.ndarray, y: np.ndarray, alpha: float, cv, groups=None) -> float:
    """Leave-one-out accuracy and error, with a fit of scikit-learn's ridge for every row or group."""
    spread = rows.std(axis=0)
    scaled = np.where(spread > 1e-6, (rows - rows.mean(axis=0)) / np.where(spread == 0, 1, spread), 0)
    scaled = scaled / np.sqrt(rows.shape[1])
    target = np.where(np.arange(y.max() + 1) == y[:, None], 1.0, -1.0)
    left_out = cross_val_predict(Ridge(alpha=alpha), scaled.astype(float), target, cv=cv, groups=groups)
    return float(np.mean(left_out.argmax(axis=1) == y)), float(np.mean((target - left_out) ** 2))


@pytest.mark.parametrize("width", [32, 200])  # by columns, by the kernel
def test_the_screening_is_exact_leave_one_out_of_ridge(width: int) -> None:
    rng = np.random.default_rng(0)
    rows = np.hstack([X[:60], rng.normal(size=(60, 200)).astype(np.float32)])[:, :width]
    (found,) = screen_representations(FeatureBlocks({"one": rows}, 60), Y[:60], 10)
    accuracy, error = expected_accuracy(rows, Y[:60], found.alpha, LeaveOneOut())
    assert found.score == pytest.approx(accuracy, abs=1e-9)
    assert found.error == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("width", [32, 200])
def test_a_group_is_left_out_as_a_whole(width: int) -> None:
    rng = np.random.default_rng(0)
    rows = np.hstack([X[:60], rng.normal(size=(60, 200)).astype(np.float32)])[:, :width]
    groups = np.arange(60) // 4
    (found,) = screen_representations(FeatureBlocks({"one": rows}, 60), Y[:60], 10, groups=groups)
    accuracy, error = expected_accuracy(rows, Y[:60], found.alpha, LeaveOneGroupOut(), groups)
    assert found.score == pytest.approx(accuracy, abs=1e-9)
    assert found.error == pytest.approx(error, rel=1e-4)


def test_two_halves_together_are_better_than_each_alone_and_noise_is_last() -> None:
    found = screen_representations(blocks(), Y, 10)
    assert found[0].blocks == ("blocks.1:grid4:crop", "blocks.2:grid4:crop")
    assert found[0].width == 64
    assert [one.name for one in found if len(one.blocks) == 1][-1] == "last:avg:crop"
    assert len(screen_representations(blocks(), Y, 10, combine=False)) == 3


def test_the_shortlist_always_has_the_usual_features() -> None:
    found = shortlist(screen_representations(blocks(), Y, 10))
    assert "last:avg:crop" in {one.name for one in found}
    assert [one.rank for one in found] == sorted((one.rank for one in found), reverse=True)


def test_a_seeded_sample_limits_the_cost() -> None:
    first, again = (screen_representations(blocks(), Y, 10, max_rows=80, random_state=1) for _ in range(2))
    assert [(one.name, one.score) for one in first] == [(one.name, one.score) for one in again]
    assert all(round(one.score * 80) == pytest.approx(one.score * 80) for one in first)


def test_blocks_are_loaded_once_for_the_screening_and_released() -> None:
    loaded: list[str] = []

    def loader(name: str, rows: np.ndarray):
        def load() -> np.ndarray:
            loaded.append(name)
            return rows

        return load

    lazy = FeatureBlocks({name: loader(name, rows) for name, rows in blocks().items()}, 200, widths={
        name: rows.shape[1] for name, rows in blocks().items()})  # fmt: skip
    screen_representations(lazy, Y, 10)
    assert sorted(loaded) == sorted(blocks())


def test_the_group_lasso_picks_the_features_that_separate_classes() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4
    rows = rng.normal(size=(200, 100)).astype(np.float32)
    rows[:, [5, 50, 70]] += 3 * np.eye(4)[labels][:, :3]
    picked = pick_relevant(
        FeatureBlocks({"a": rows[:, :40], "b": rows[:, 40:]}, 200),
        labels,
        4,
        [np.arange(150), np.arange(50, 200)],
        [3],
    )[3]
    for columns in picked:
        assert columns.tolist() == [5, 50, 70]


def test_features_are_found_with_projected_targets_of_many_classes() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 60
    codes = rng.normal(size=(60, 8))
    rows = rng.normal(size=(600, 80)).astype(np.float32)
    rows[:, 10:18] += 3 * codes[labels]
    (columns,) = pick_relevant(FeatureBlocks({"a": rows}, 600), labels, 60, [np.arange(600)], [8])[8]
    assert set(columns) == set(range(10, 18))


def test_a_search_finds_the_combination_and_reports_its_blocks() -> None:
    found = search(heads=("ridge", "nearest_mean"), n_trials=6).fit(blocks().take(np.arange(150)), Y[:150])
    assert set(found.best_blocks_) >= {"blocks.1:grid4:crop", "blocks.2:grid4:crop"}
    assert found.screening_[0].blocks == ("blocks.1:grid4:crop", "blocks.2:grid4:crop")
    held_out = blocks().take(np.arange(150, 200))
    assert found.score(held_out, Y[150:]) > 0.75
    side_by_side = held_out.stack(found.best_blocks_)
    assert side_by_side.shape[1] == found.n_features_in_
    np.testing.assert_array_equal(found.predict_proba(held_out), found.predict_proba(side_by_side))
    tried = {params["representation"] for params in found.cv_results_["params"]}
    assert tried == {one.name for one in shortlist(found.screening_)}


def test_representations_that_the_user_names_are_tried() -> None:
    wanted = [("blocks.1:grid4:crop",), ("blocks.1:grid4:crop", "blocks.2:grid4:crop")]
    found = HeadSearchCV(("ridge",), n_trials=3, cv=3, random_state=0, representations=wanted).fit(
        blocks(), Y
    )
    assert {params["representation"] for params in found.cv_results_["params"]} == {
        "blocks.1:grid4:crop",
        "blocks.1:grid4:crop + blocks.2:grid4:crop",
    }
    assert found.screening_ == []
    with pytest.raises(UsageError, match="choose blocks from last:avg:crop"):
        search(representations=[("blocks.9",)]).fit(blocks(), Y)


def test_a_single_block_is_searched_without_a_screening() -> None:
    found = HeadSearchCV(("ridge",), n_trials=2, cv=3, random_state=0).fit(
        blocks().only(["blocks.1:grid4:crop"]), Y
    )
    assert found.best_blocks_ == ("blocks.1:grid4:crop",)
    assert "representation" not in found.best_params_
    assert found.screening_ == []


def test_the_simplest_representation_within_one_standard_error_wins() -> None:
    alike = X[:, :32] + np.random.default_rng(1).normal(scale=0.02, size=(200, 32)).astype(np.float32)
    both = blocks(**{"blocks.3:grid4:crop": alike})
    wanted = [("blocks.1:grid4:crop", "blocks.3:grid4:crop"), ("blocks.1:grid4:crop",)]
    simple = search(n_trials=8, cv=5, representations=wanted).fit(both, Y)
    greedy = search(n_trials=8, cv=5, representations=wanted, one_se=False).fit(both, Y)
    assert simple.best_blocks_ == ("blocks.1:grid4:crop",)
    assert greedy.cv_results_["brier"][greedy.best_index_] <= simple.cv_results_["brier"][simple.best_index_]


def test_picked_features_give_a_plain_pipeline_of_their_columns() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 4
    wide = {f"blocks.{k}:avg:crop": rng.normal(size=(200, 700)).astype(np.float32) for k in range(3)}
    for k, rows in enumerate(wide.values()):
        rows[:, 7] += 4 * np.eye(4)[labels][:, k]  # each block has one informative feature of 700
    name = f"{PICKED}{RELEVANT_COUNTS[0]}"
    picked = HeadSearchCV(("ridge",), n_trials=0, cv=3, random_state=0, representations=[(name,)],
                          grid=[{"head": "ridge", "ridge__alpha": 1.0}])  # fmt: skip
    picked.fit(FeatureBlocks(wide, 200), labels)
    assert picked.best_blocks_ == tuple(wide)
    (columns,) = [place for _, _, place in picked.best_estimator_.named_steps["scale"].transformers_][:1]
    assert len(columns) == RELEVANT_COUNTS[0]
    assert {7, 707, 1407} <= set(columns)
    assert picked.predict(FeatureBlocks(wide, 200)).shape == (200,)


def test_features_are_picked_over_all_layers_if_combinations_are_better() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.normal(size=(200, 640)).astype(np.float32) for _ in range(3)]
    halves = [np.repeat(X[:, side], 20, axis=1) for side in (slice(0, 32), slice(32, 64))]
    wide = {f"blocks.{k}:avg:crop": half + 0.3 * noise[k] for k, half in enumerate(halves)}  # both are needed
    known = {
        "blocks.0:avg:crop": np.repeat(X, 10, axis=1),
        "blocks.1:avg:crop": noise[2],
    }  # one has all information
    for blocks_, picks in ((wide, True), (known, False)):
        found = search(n_trials=2).fit(FeatureBlocks(blocks_, 200), Y)
        tried = {params["representation"] for params in found.cv_results_["params"]}
        assert (f"{PICKED}{RELEVANT_COUNTS[0]}" in tried) is picks


def test_features_picked_from_noise_score_at_chance() -> None:
    rng = np.random.default_rng(0)
    noise = FeatureBlocks({f"b{k}": rng.normal(size=(120, 800)).astype(np.float32) for k in range(2)}, 120)
    labels = np.arange(120) % 2
    picked = [(f"{PICKED}{RELEVANT_COUNTS[0]}",)]
    point = {"head": "ridge", "ridge__alpha": 1.0}
    found = search(n_trials=0, grid=[point], representations=picked).fit(noise, labels)
    assert abs(found.best_score_ - 0.5) < 0.2
