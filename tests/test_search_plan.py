"""A search as values: the plan, its results, their ranking, and a selected configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.datasets import load_digits

from featx import HeadSearchCV
from featx.exceptions import SearchError, UsageError
from featx.features import FeatureBlocks
from featx.representation import BlockName, Representation
from featx.search.evaluator import COMPLETE, FAILED, Result
from featx.search.loop import run
from featx.search.outcome import Results, best_of_each, ranked, table, winner
from featx.search.plan import SearchPlan, SearchSettings, make_plan
from featx.search.refit import refit, select

X, Y = load_digits(return_X_y=True)
X, Y = X[:150].astype(np.float32) / 16, Y[:150] % 3
TOP, BOTTOM = "blocks.1:grid4:crop", "last:avg:crop"


def blocks() -> FeatureBlocks:
    return FeatureBlocks({TOP: X[:, :32], BOTTOM: X[:, 32:]}, len(X))


def settings(**changes: Any) -> SearchSettings:
    quick = {"heads": ("ridge", "lda"), "n_trials": 3, "cv": 3, "random_state": 0, "n_jobs": 1}
    return SearchSettings(**HeadSearchCV(**{**quick, **changes}).get_params(deep=False))


def plan(**changes: Any) -> SearchPlan:
    return make_plan(blocks(), Y, settings(**changes))


def made_up(own: SearchPlan, *entries: tuple[str, str, list[float], float]) -> Results:
    """Results of (representation, head, scores, Brier score) that need no fit."""
    found = []
    for text, head, scores, brier in entries:
        point = own.space.known_good(own.space.by_text[text])
        params = next(one for one in point if one["head"] == head)
        found.append(Result(params, own.space.read(params), scores, COMPLETE, brier=brier))
    return Results(own, tuple(found), None, lambda params: np.empty(0))


def test_the_functions_give_what_the_estimator_gives() -> None:
    own = plan()
    results = run(own)
    selected = select(results, winner(results))
    search = HeadSearchCV(("ridge", "lda"), n_trials=3, cv=3, random_state=0, n_jobs=1).fit(blocks(), Y)
    assert selected.params == search.best_params_
    assert selected.score == search.best_score_
    np.testing.assert_array_equal(selected.oof_proba, search.oof_proba_)
    np.testing.assert_array_equal(table(results)["mean_test_score"], search.cv_results_["mean_test_score"])
    rows = blocks().stack(selected.blocks)
    np.testing.assert_array_equal(
        refit(own, selected).decision_function(rows), search.best_estimator_.decision_function(rows)
    )


def test_a_plan_is_frozen_and_holds_no_estimator() -> None:
    own = plan()
    with pytest.raises(dataclasses.FrozenInstanceError):
        own.seed = 1  # type: ignore[misc]
    values = [getattr(own, field.name) for field in dataclasses.fields(own)]
    assert not any(isinstance(value, BaseEstimator) for value in values)


def test_representations_are_values_and_their_text_is_in_parameters_only() -> None:
    own = plan(representations=[(TOP,), (TOP, BOTTOM), ("relevant:20",)])
    assert own.space.representations == (
        Representation((TOP,)), Representation((TOP, BOTTOM)), Representation((TOP, BOTTOM), 20),
    )  # fmt: skip
    assert all(isinstance(name, BlockName) for one in own.space.representations for name in one.blocks)
    points = [params for some in own.space.quick_points() for params in some]
    texts = {params["representation"] for params in points}
    assert texts == {TOP, f"{TOP} + {BOTTOM}", "relevant:20"}
    assert {own.space.read(params).representation for params in points} == set(own.space.representations)


def test_every_configuration_can_be_selected() -> None:
    results = run(plan(representations=[(TOP,), (TOP, BOTTOM)]))
    for representation, result in best_of_each(results).items():
        selected = select(results, result)
        assert selected.blocks == representation.blocks
        np.testing.assert_array_equal(selected.scores, result.scores)
        assert np.isfinite(selected.oof_proba).all()


def test_results_rank_by_score_then_probabilities_then_cost() -> None:
    own = plan(representations=[(TOP,), (BOTTOM,)], one_se=False)
    found = made_up(
        own, (TOP, "ridge", [0.8] * 3, 0.3), (TOP, "lda", [0.9] * 3, 0.4), (BOTTOM, "lda", [0.9] * 3, 0.2)
    ).found
    assert ranked(found) == [found[2], found[1], found[0]]
    alike = made_up(own, (TOP, "lda", [0.9] * 3, 0.2), (BOTTOM, "ridge", [0.9] * 3, 0.2)).found
    cheap = min(alike, key=lambda one: one.configuration.head.cost)
    assert ranked(alike)[0] is cheap


def test_the_winner_has_the_best_probabilities_of_those_that_are_as_good() -> None:
    own = plan(representations=[(TOP,), (BOTTOM,)], one_se=False)
    results = made_up(
        own,
        (TOP, "ridge", [0.90, 0.94, 0.92], 0.30),
        (TOP, "lda", [0.91, 0.92, 0.91], 0.20),  # within an error
        (BOTTOM, "lda", [0.50, 0.54, 0.52], 0.10),  # far behind
    )
    assert winner(results) is results.found[1]


def test_the_winner_may_be_of_a_simpler_representation_within_one_standard_error() -> None:
    scores = ([0.90, 0.94, 0.92], [0.91, 0.93, 0.90])
    for one_se in (True, False):
        own = plan(representations=[(TOP, BOTTOM), (BOTTOM,)], one_se=one_se)
        results = made_up(
            own, (f"{TOP} + {BOTTOM}", "ridge", scores[0], 0.1), (BOTTOM, "ridge", scores[1], 0.2)
        )
        assert winner(results) is results.found[1 if one_se else 0]


def test_without_a_complete_result_the_first_cause_is_named() -> None:
    own = plan()
    params = own.grid[0]
    failed = Result(params, own.space.read(params), state=FAILED, error="ValueError: no")
    with pytest.raises(
        SearchError, match="none of 1 configurations could be fitted; first cause: ValueError: no"
    ):
        winner(Results(own, (failed,), None, lambda params: np.empty(0)))


def test_an_approximate_result_does_not_win() -> None:
    own = plan()
    results = made_up(own, *((str(own.space.representations[0]), "ridge", [0.8] * 3, 0.3) for _ in range(2)))
    results.found[0].approximate, results.found[0].scores = "fitted on 10 rows", [0.7] * 3
    assert winner(results) is results.found[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"representations": []}, "representations is empty"),
        ({"representations": "all"}, "pass 'auto'"),
        ({"grid": []}, "grid is empty"),
    ],
)
def test_a_plan_refuses_wrong_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(**changes)
