"""One time limit for a fit: how it is dealt, and what a stage does without time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from featx import FeatureExtractor, ImageClassifier
from featx.advice import BackboneScore
from featx.classifier.budget import EXPECTED, NETWORKS, RESERVE, SEARCH, TUNING, VIEWS, Budget
from featx.classifier.settings import settings_of
from featx.evaluation import Metric
from featx.exceptions import UsageError
from featx.selection.backbones import BackboneComparison
from featx.selection.halving import HalvingPlan


class Watch:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def budget(given: Any = 100, **stages: bool) -> tuple[Budget, Watch]:
    watch = Watch()
    found = Budget(given, now=watch)
    found.begin(**{"networks": True, "views": True, "fine_tune": True, **stages})
    return found, watch


def compared(low: float, value: float) -> BackboneComparison:
    metric = Metric(value, low, 2 * value - low)
    scores = tuple(
        BackboneScore(name, metric, metric, 0.0, 0.0, 100, minutes) for name, minutes in (("a", 2), ("b", 1))
    )
    return BackboneComparison(
        scores, ("a", "b"), metric, HalvingPlan(((100, 1),), ("b", "a"), 1.0, {}), metric
    )


def test_a_stage_gets_its_share_of_what_is_left() -> None:
    found, watch = budget()
    assert found.left == pytest.approx(100 * (1 - RESERVE))
    assert found.share(NETWORKS) == pytest.approx(95 * 0.1 / sum(EXPECTED.values()))
    watch.time += 45
    search = found.share(SEARCH)
    assert search == pytest.approx(50 * 0.4 / 0.7)
    watch.time += search / 2  # what a stage does not use, the next ones get
    assert found.share(VIEWS) == pytest.approx((50 - search / 2) * 0.1 / 0.3)
    assert found.share(TUNING) == pytest.approx(found.left)
    watch.time += 60
    assert found.share(TUNING) == found.left == 0


def test_stages_that_were_not_asked_for_get_nothing() -> None:
    found, _ = budget("10m", networks=False, views=False, fine_tune=False)
    assert found.seconds == 600
    assert found.share(VIEWS) == found.share(TUNING) == found.share(NETWORKS) == 0
    assert found.share(SEARCH) == found.left == 570


@pytest.mark.parametrize(
    ("low", "value", "share"), [(0.01, 0.03, 0.3), (-0.02, 0.01, 0.2), (-0.04, -0.01, 0.1)]
)
def test_fine_tuning_gets_more_where_an_earlier_layer_has_paid(
    low: float, value: float, share: float
) -> None:
    found, _ = budget(views=False)
    found.learn(compared(low, value))
    assert found.share(SEARCH) == pytest.approx(95 * 0.4 / (0.4 + share))
    found.learn(None)
    assert found.share(SEARCH) == pytest.approx(95 * 0.4 / (0.4 + share))


def test_winners_whose_features_take_too_long_give_way() -> None:
    found = compared(0.0, 0.1)
    assert found.within(1_000).winners == ("a", "b")
    assert found.within(150).winners == ("a",)
    late = found.within(70)
    assert late.winners == ("b",)
    assert "would not fit the 70 s that the budget leaves" in late.plan.left_out["a"]
    assert found.within(1).winners == ("b",)


@pytest.mark.parametrize("given", ["soon", -1, float("nan"), True, 0])
def test_what_is_no_time_is_refused_before_the_work(given: Any) -> None:
    with pytest.raises(UsageError, match="10m"):
        settings_of(ImageClassifier(budget=given, store="memory"))


def test_without_a_limit_nothing_is_said_of_it() -> None:
    found, watch = budget(None)
    watch.time += 1e6
    assert not found.is_limited
    assert found.share(TUNING) == found.left == float("inf")


def test_the_use_is_said_with_what_took_longer() -> None:
    found, watch = budget(60)
    watch.time += 50
    assert found.describe({"extract": 30.2, "group": 0.1, "search": 19.6}) == (
        "50 s of the budget of 60 s were used (extract 30 s, search 20 s)"
    )
    watch.time += 25
    assert "; 15 s more than the budget, since a step that has begun is finished" in found.describe({})


def test_fine_tuning_and_views_need_time(class_folders: Path) -> None:
    said: list[str] = []
    clf = ImageClassifier(
        "test_resnet", budget="5s", cut="last", pool="avg", resize="crop", heads=["ridge"], cv=2, n_trials=1,
        fine_tune=True, random_state=0, n_jobs=1, store="memory", callback=lambda e: said.append(e.message),
        extractor=FeatureExtractor(
            pretrained=False, runtime="torch", view=range(2000), view_policy="light"
        ),
    ).fit(class_folders)  # fmt: skip
    report = clf.record_.fine_tuning
    assert not report.tried
    assert "s of the budget are left" in report.reason
    assert any("no views are tried: their features take about" in text for text in said)
    assert clf.search.timeout is None  # parameters stay as they were
    assert dataclasses.asdict(clf.augmentation_)["kind"] in ("none", "noise")
