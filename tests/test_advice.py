"""Advice: scores of layers and backbones, choices, rare classes, and what to do next."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from featx.advice import (
    Advice,
    BackboneScore,
    FineTuning,
    LayerScore,
    RandomBaseline,
    RepresentationScore,
    advise,
    advise_on_features,
    assess_domain,
    depth_profile,
    effective_rank,
    fine_tune_from,
    h_score,
    log_me,
    probe,
    sentences,
)
from featx.audit import label_noise
from featx.curves import Forecast, ScorePath, TransferEffect, compare_paths, forecast, learning_curve
from featx.evaluation import Metric
from featx.exceptions import DataError, UsageError
from featx.features import FeatureBlocks
from featx.reporting.figures import plot_advice, plot_curve, plot_depth, to_png
from featx.representation import BlockName, Representation
from featx.selection.choice import Candidate, Choice, choose
from featx.selection.halving import plan_halving, survivors
from featx.selection.imbalance import (
    IMBALANCED_FROM,
    imbalance_ratio,
    views_for_minority,
)
from featx.splits import stratified_sample


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits: real images, 64 pixels as rows."""
    X, y = load_digits(return_X_y=True)
    return X[:500].astype(np.float32), y[:500]


@pytest.fixture(scope="module")
def layers(digits: tuple[np.ndarray, np.ndarray]) -> tuple[LayerScore, ...]:
    """A 'network' whose middle layer sees the whole picture and whose last one its upper quarter."""
    X, y = digits
    blocks = FeatureBlocks({"a:avg:crop": X[:, :2], "b:grid4:crop": X, "last:avg:crop": X[:, :16]}, len(y))
    return depth_profile(blocks, y, {"a:avg:crop": 0.3, "b:grid4:crop": 0.6, "last:avg:crop": 1.0})


# Probes --------------------------------------------------------------------------------------------------


def test_a_probe_finds_the_layer_where_accuracy_peaks(layers: tuple[LayerScore, ...]) -> None:
    assert [layer.block for layer in layers] == ["a:avg:crop", "b:grid4:crop", "last:avg:crop"]
    assert layers[0].over_last.high < 0
    assert layers[1].over_last.low > 0
    assert (layers[2].over_last.low, layers[2].over_last.high) == (0, 0)


def test_paired_differences_are_surer_than_the_two_accuracies(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    a, b = probe(X, y), probe(X[:, :56], y)
    difference = a.minus(b)
    assert difference.value == pytest.approx(a.accuracy.value - b.accuracy.value)
    assert difference.high - difference.low < 0.75 * (a.accuracy.high - a.accuracy.low) * math.sqrt(2)


def test_copies_make_a_probe_no_surer(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits[0][:200, :24], digits[1][:200]
    once = probe(X, y).accuracy
    copied = probe(np.tile(X, (3, 1)), np.tile(y, 3), groups=np.tile(np.arange(200), 3)).accuracy
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.3)


def test_features_and_labels_must_match() -> None:
    with pytest.raises(DataError, match="give one row for each label"):
        probe(np.zeros((3, 2)), [0, 1])


def test_effective_rank_counts_equal_directions() -> None:
    rng = np.random.default_rng(0)
    three = rng.normal(size=(2000, 3)) @ np.linalg.qr(rng.normal(size=(20, 3)))[0].T
    assert effective_rank(three) == pytest.approx(3, abs=0.01)
    assert effective_rank(three.T) < 3  # wide rows, by the other Gram matrix
    assert effective_rank(np.outer(np.arange(10.0), np.ones(4))) == pytest.approx(1)
    assert effective_rank(np.ones((5, 3))) == 1


@pytest.mark.parametrize("shape", [(120, 15), (40, 90)])
def test_log_me_is_the_evidence_of_bayesian_regression(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=shape)
    y = (X[:, 0] + 0.5 * rng.normal(size=shape[0]) > 0).astype(int)
    evidence = []
    for c in (0, 1):
        target = (y == c).astype(float)
        # evidence of N(0, I / beta + X X' / alpha), made largest over alpha and beta by brute force
        values, vectors = np.linalg.eigh(X @ X.T)
        seen = (vectors.T @ target) ** 2
        log_alpha, log_beta = np.meshgrid(np.linspace(-6, 8, 561), np.linspace(-2, 6, 321))
        variance = np.exp(-log_beta)[..., None] + np.exp(-log_alpha)[..., None] * values.clip(0)
        log = -0.5 * (np.log(2 * np.pi * variance) + seen / variance).sum(axis=-1)
        evidence.append(log.max() / len(y))
    assert log_me(X, y) == pytest.approx(np.mean(evidence), abs=2e-3)


def test_transferability_scores_prefer_features_that_separate_classes(
    digits: tuple[np.ndarray, np.ndarray],
) -> None:
    X, y = digits
    noise = np.random.default_rng(0).normal(size=X.shape)
    for score in (log_me, h_score):
        assert score(X, y) > score(X[:, :16], y) > score(noise, y)


def test_the_h_score_of_a_worked_example() -> None:
    # Two classes at -1 and +1 on a line with variance s2 within: trace = between / total = 1 / (1 + s2).
    rng = np.random.default_rng(0)
    y = np.arange(20_000) % 2
    X = (2 * y - 1 + 0.5 * rng.normal(size=len(y)))[:, None]
    assert h_score(X, y) == pytest.approx(1 / 1.25, abs=0.01)


def test_a_layer_survives_json(layers: tuple[LayerScore, ...]) -> None:
    assert LayerScore.from_dict(json.loads(json.dumps(layers[0].to_dict()))) == layers[0]


# Backbones -----------------------------------------------------------------------------------------------


def test_halving_doubles_images_and_halves_candidates() -> None:
    plan = plan_halving({"a": 0.01, "b": 0.01, "c": 0.02, "d": 0.04}, n_images=5000)
    assert plan.rounds == ((500, 2), (1000, 1))
    # 500 images of all four (0.08 s), then 500 more of the two dearest.
    assert plan.seconds == pytest.approx(500 * 0.08 + 500 * 0.06)
    assert plan.candidates[-1] == "d"


def test_a_small_budget_takes_fewer_images_then_fewer_candidates() -> None:
    costs = {"a": 0.01, "b": 0.01, "c": 0.02, "d": 0.04}
    less = plan_halving(costs, n_images=5000, budget_s=30)
    assert less.seconds <= 30
    assert len(less.candidates) == 4
    assert less.rounds[-1][0] < 1000
    least = plan_halving({**costs, "huge": 10.0}, n_images=5000, budget_s=30)
    assert list(least.left_out) == ["huge"]
    assert least.seconds <= 30


def test_one_candidate_stays_even_without_a_budget() -> None:
    assert plan_halving({"a": 1.0, "b": 2.0}, n_images=200, budget_s=0).candidates == ("a",)


def test_halving_needs_costs() -> None:
    with pytest.raises(UsageError, match="above 0"):
        plan_halving({"a": 0.0}, n_images=10)


def test_of_equal_survivors_the_cheaper_goes_on() -> None:
    assert survivors({"a": 0.9, "b": 0.9, "c": 0.95}, 2, {"a": 3.0, "b": 1.0}) == ["c", "b"]


def test_a_backbone_score_survives_json() -> None:
    score = BackboneScore("big", around(0.9), around(0.08), 1.2, 5.0, 500)
    again = BackboneScore.from_dict(json.loads(json.dumps(score.to_dict())))
    assert again.accuracy == score.accuracy
    assert math.isnan(again.minutes)


# An honest choice ----------------------------------------------------------------------------------------


def answers(n: int, share: float, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth of two classes and probabilities that are right with the given share."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    right = rng.random(n) < share
    return y, np.eye(2)[np.where(right, y, 1 - y)] * 0.8 + 0.1


def test_a_cheaper_candidate_that_is_as_good_is_taken() -> None:
    y, proba = answers(400, 0.9)
    almost = proba.copy()
    almost[:2] = almost[:2, ::-1]  # two answers differ
    better, worse = (
        (proba, almost) if (proba.argmax(1) == y).mean() > (almost.argmax(1) == y).mean() else (almost, proba)
    )
    found = choose([Candidate("wide", better, 5000), Candidate("narrow", worse, 300)], y)
    assert (found.name, found.best) == ("narrow", "wide")
    assert "does not differ significantly" in found.sentences()[0]


def test_a_winner_beyond_chance_stays_though_dear() -> None:
    y, good = answers(400, 0.95)
    rng = np.random.default_rng(1)
    poor = np.eye(2)[np.where(rng.random(400) < 0.8, y, 1 - y)] * 0.8 + 0.1
    found = choose([Candidate("cheap", poor, 1), Candidate("dear", good, 100)], y)
    assert found.name == found.best == "dear"
    assert found.runner_up == "cheap"
    assert found.against_runner_up is not None
    assert found.against_runner_up.verdict == "a"


def test_too_little_evidence_does_not_excuse_a_much_worse_score() -> None:
    y, good = answers(20, 1.0)
    worse = good.copy()
    worse[:2] = worse[:2, ::-1]  # 10 points less on 20 images: not significant
    pair = [Candidate("good", good, 10), Candidate("cheap", worse, 1)]
    assert choose(pair, y).name == "cheap"
    assert choose(pair, y, tolerance=0.01).name == "good"


def test_a_preferred_candidate_is_the_one_that_others_are_held_against() -> None:
    y, good = answers(20, 1.0)
    worse = good.copy()
    worse[0] = worse[0, ::-1]
    pair = [Candidate("higher", good, 5), Candidate("surer", worse, 10)]
    found = choose(pair, y, preferred="surer")
    assert (found.best, found.runner_up, found.name) == ("surer", "higher", "higher")  # cheaper, and as good
    assert choose([pair[1], Candidate("higher", good, 20)], y, preferred="surer").name == "surer"


def test_a_single_candidate_is_chosen_without_a_test() -> None:
    y, proba = answers(10, 0.9)
    found = choose([Candidate("only", proba, 1)], y)
    assert (found.name, found.runner_up, found.sentences()) == ("only", None, [])
    with pytest.raises(UsageError, match="at least one candidate"):
        choose([], y)


def test_a_choice_survives_json() -> None:
    y, a = answers(100, 0.9)
    found = choose([Candidate("a", a, 2), Candidate("b", np.flip(a, 1), 1)], y)
    assert Choice.from_dict(json.loads(json.dumps(found.to_dict()))) == found


# Rare classes --------------------------------------------------------------------------------------------


def test_the_ratio_of_the_largest_to_the_smallest_class() -> None:
    assert imbalance_ratio(["a"] * 6 + ["b"] * 2) == 3.0 == IMBALANCED_FROM


def test_minorities_get_more_views() -> None:
    assert views_for_minority(["a"] * 90 + ["b"] * 30 + ["c"] * 2, most=8) == {"a": 0, "b": 2, "c": 8}


# What to do ----------------------------------------------------------------------------------------------


def layer(block: str, depth: float, accuracy: float, over_last: float, half: float = 0.02) -> LayerScore:
    return LayerScore(
        BlockName.parse(block), depth, around(accuracy, half), around(over_last, half), 100.0, 1280
    )


def representation(blocks: list[str], accuracy: Metric, over_last: Metric) -> RepresentationScore:
    names = tuple(map(BlockName.parse, blocks))
    return RepresentationScore(str(Representation(names)), names, accuracy, over_last, 1280)


def around(value: float, half: float = 0.02) -> Metric:
    return Metric(value, value - half, value + half)


def doubling(gain: float, half: float = 0.01) -> Forecast:
    by_class = ()
    return Forecast(500, 1000, around(0.8), around(0.8 + gain), around(gain, half), by_class, 1.0, 0.05, 0.7)


FAR = [
    layer("b.2:grid4:crop", 0.5, 0.90, 0.2),
    layer("b.6:avg:crop", 0.9, 0.75, 0.05),
    layer("last:avg:crop", 1, 0.7, 0, 0),
]
NEAR = [
    layer("b.2:grid4:crop", 0.5, 0.8, -0.18),
    layer("b.6:avg:crop", 0.9, 0.97, -0.01),
    layer("last:avg:crop", 1, 0.98, 0, 0),
]


def test_a_best_layer_before_the_end_means_different() -> None:
    found = assess_domain(FAR)
    assert (found.verdict, found.peak, found.peak_at_end) == ("different", "b.2:grid4:crop", False)


def test_a_best_layer_at_the_end_means_similar() -> None:
    assert assess_domain(NEAR, over_random=around(0.3)).verdict == "similar"


def test_pretraining_no_better_than_random_weights_means_different() -> None:
    assert assess_domain(NEAR, over_random=around(0.01)).verdict == "different"


def test_a_difference_that_is_not_significant_means_between() -> None:
    assert assess_domain([layer("b.6:avg:crop", 0.9, 0.995, 0.015), NEAR[-1]]).verdict == "between"


def test_layers_above_the_peak_are_fine_tuned() -> None:
    assert fine_tune_from(assess_domain(FAR)) == "b.2"
    assert fine_tune_from(assess_domain(NEAR)) == "b.6"


def test_a_measured_profile_is_different(layers: tuple[LayerScore, ...]) -> None:
    found = assess_domain(layers)
    assert (found.verdict, found.peak) == ("different", "b:grid4:crop")


def test_a_better_block_comes_first() -> None:
    tried = [
        representation(["last:avg:crop"], around(0.70), Metric(0, 0, 0)),
        representation(["b.2:grid4:crop"], around(0.90), around(0.20)),
        representation(["b.2:grid4:crop", "last:avg:crop"], around(0.905), around(0.205)),
    ]
    found = advise(n=500, n_classes=10, accuracy=around(0.7), in_use="last:avg:crop", representations=tried)
    assert found.next_step is not None
    assert (found.next_step.action, found.next_step.what) == ("combine", "b.2:grid4:crop + last:avg:crop")
    assert next(o for o in found.options if o.action == "use_last").done
    after = advise(n=500, n_classes=10, accuracy=around(0.9), in_use="b.2:grid4:crop", representations=tried)
    assert after.next_step is None  # half a point more is not worth it
    back = next(o.gain for o in after.options if o.action == "use_last")
    assert (back.value, back.low, back.high) == pytest.approx((-0.2, -0.22, -0.18))


def test_labels_are_recommended_where_they_are_worthwhile() -> None:
    found = advise(
        n=500, n_classes=10, accuracy=around(0.8), in_use="last:avg:crop", labels=doubling(0.05),
        seconds_per_image=0.5, seconds_per_label=2.5,
    )  # fmt: skip
    assert found.size == "small"
    assert found.next_step is not None
    assert found.next_step.action == "label_more"
    assert found.next_step.minutes == pytest.approx(500 * 3 / 60)
    assert (
        advise(
            n=500, n_classes=10, accuracy=around(0.8), in_use="last:avg:crop", labels=doubling(0.002, 0.002)
        ).size
        == "large"
    )


def test_the_classes_to_label_are_named(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    labels = forecast(learning_curve(X[:300], y[:300], n_repeats=1))
    found = advise(n=300, n_classes=10, accuracy=around(0.9), in_use="last:avg:crop", labels=labels)
    option = next(o for o in found.options if o.action == "label_more")
    assert option.what.split(", ")[0] == str(labels.by_class[0].label)


def test_fine_tuning_is_expected_to_pay_on_different_data_with_enough_images() -> None:
    common = {
        "n_classes": 10,
        "accuracy": around(0.8),
        "in_use": "b.2:grid4:crop",
        "domain": assess_domain(FAR),
    }
    enough = advise(n=1000, **common)
    few = advise(n=60, **common)
    assert enough.fine_tune
    assert not few.fine_tune
    option = next(o for o in enough.options if o.action == "fine_tune")
    assert option.what == "b.2"
    assert not option.measured
    assert option.gain == Metric(pytest.approx(0.06), 0.0, pytest.approx(0.12))


def test_a_measured_gain_replaces_the_expectation() -> None:
    tried = FineTuning(minutes=7.0, cut="b.4", gain=Metric(-0.01, -0.03, 0.01))
    found = advise(
        n=1000,
        n_classes=10,
        accuracy=around(0.8),
        in_use="last:avg:crop",
        domain=assess_domain(FAR),
        fine_tuning=tried,
    )
    option = next(o for o in found.options if o.action == "fine_tune")
    assert option.measured
    assert option.minutes == 7.0
    assert not found.fine_tune


def test_wrong_labels_reduce_the_expected_gain() -> None:
    y = np.zeros(1000, int)
    y[:100] = 1  # a tenth of the labels contradict an answer that is sure
    noise = label_noise(y, np.tile([0.95, 0.05], (1000, 1)))
    common = {"n": 1000, "n_classes": 2, "accuracy": around(0.85), "in_use": "last:avg:crop"}
    clean = advise(**common, domain=assess_domain(FAR))
    noisy = advise(**common, domain=assess_domain(FAR), noise=noise)
    gain = [next(o.gain.value for o in a.options if o.action == "fine_tune") for a in (clean, noisy)]
    assert gain[1] < gain[0]
    assert any("contradict their label" in sentence for sentence in sentences(noisy))


def test_another_backbone_is_advised_with_its_cost() -> None:
    other = BackboneScore("big", around(0.9), around(0.08), 1.2, 5.0, 500, 12.0)
    same = BackboneScore("lite", around(0.82), Metric(0, 0, 0), 1.0, 4.0, 500, 1.0)
    found = advise(
        n=500,
        n_classes=10,
        accuracy=around(0.8),
        in_use="last:avg:crop",
        backbones=[other, same],
        backbone="lite",
    )
    assert found.next_step is not None
    assert (found.next_step.action, found.next_step.what) == ("other_backbone", "big")
    assert sentences(found)[0] == (
        "Next, use the backbone big (last features of both compared): measured +8.0 points [+6.0, +10.0], "
        "about 12 min here."
    )


def test_an_interval_that_a_single_group_leaves_open_is_null_in_json() -> None:
    unknown = Metric(0.3, math.nan, math.nan)
    found = advise(
        n=50, n_classes=2, accuracy=Metric(0.8, math.nan, math.nan), in_use="last:avg:crop",
        domain=assess_domain(NEAR, over_random=unknown),
    )  # fmt: skip
    text = json.dumps(found.to_dict(), allow_nan=False)
    again = Advice.from_dict(json.loads(text))
    assert again.domain is not None
    assert again.domain.over_random is not None
    assert math.isnan(again.domain.over_random.low)


def test_nothing_to_gain_is_an_answer() -> None:
    found = advise(
        n=1399, n_classes=2, accuracy=around(0.99, 0.005), in_use="last:avg:crop",
        domain=assess_domain(NEAR, over_random=around(0.3)), labels=doubling(0.001, 0.001),
    )  # fmt: skip
    assert found.next_step is None
    assert sentences(found)[0].startswith("Leave it as it is: accuracy 0.990 [0.985, 0.995]")


def test_the_sentences_carry_the_numbers() -> None:
    found = advise(
        n=500, n_classes=10, accuracy=around(0.9), in_use="b.2:grid4:crop",
        domain=assess_domain(FAR, over_neighbours=around(0.05), over_random=around(0.1)),
        labels=doubling(0.05),
    )  # fmt: skip
    text = " ".join(sentences(found))
    for part in (
        "peaks before the end: b.2:grid4:crop has 0.900 [0.880, 0.920]",
        "+5.0 points [+3.0, +7.0] ahead of nearest neighbours",
        "ahead of random weights.",
        "1,000 instead of 500 labels are expected to bring +5.0 points [+4.0, +6.0]",
        "different from those that the network was trained on",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("difference", "said"),
    [
        (around(-0.1), "-10.0 points [-12.0, -8.0] behind random weights"),
        (around(0.01), "not distinguishable (+1.0 points [-1.0, +3.0]) from random weights"),
    ],
)
def test_pretraining_that_is_behind_or_even_is_called_so(difference: Metric, said: str) -> None:
    found = advise(
        n=500, n_classes=10, accuracy=around(0.9), in_use="b.2:grid4:crop",
        domain=assess_domain(FAR, over_random=difference),
    )  # fmt: skip
    assert said in " ".join(sentences(found))


def test_advice_survives_json(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    found = advise(
        n=300, n_classes=10, accuracy=around(0.9), in_use="last:avg:crop",
        domain=assess_domain(FAR, over_random=around(0.1)),
        labels=forecast(learning_curve(X[:300], y[:300], n_repeats=1)),
        curve=learning_curve(X[:300], y[:300], n_repeats=1),
        noise=label_noise(np.zeros(100, int), np.tile([0.9, 0.1], (100, 1))),
        fine_tuning=FineTuning(math.nan, "b.2"),
    )  # fmt: skip
    again = Advice.from_dict(json.loads(json.dumps(found.to_dict())))
    assert again.to_dict() == found.to_dict()
    assert sentences(again) == sentences(found)


# From rows -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(digits: tuple[np.ndarray, np.ndarray]) -> tuple[FeatureBlocks, np.ndarray, np.ndarray]:
    """Blocks of a 'network' whose last layer sees the upper quarter, labels, out-of-fold probabilities."""
    X, y = digits
    layers = {
        "early:avg:crop": X[:, :2],
        "middle:grid2:crop": X,
        "middle:avg:crop": X[:, 8:24],
        "last:avg:crop": X[:, :16],
    }
    proba = cross_val_predict(LogisticRegression(max_iter=1000), X / 16, y, cv=5, method="predict_proba")
    return FeatureBlocks({BlockName.parse(name): rows for name, rows in layers.items()}, len(y)), y, proba


def test_advice_is_measured_from_the_features(
    searched: tuple[FeatureBlocks, np.ndarray, np.ndarray],
) -> None:
    blocks, y, proba = searched
    rng = np.random.default_rng(0)
    baseline = RandomBaseline(rng.normal(size=(200, 16)).astype(np.float32), np.arange(200))
    found = advise_on_features(
        blocks, y, taps=["early", "middle", "last"], in_use=["middle:grid2:crop"], oof_proba=proba,
        head="rbf_svm", random_baseline=baseline, seconds_per_image=0.02,
    )  # fmt: skip
    assert found.accuracy.value == pytest.approx((proba.argmax(axis=1) == y).mean())
    assert found.domain is not None
    assert [layer.block for layer in found.domain.layers] == [
        "early:avg:crop",
        "middle:grid2:crop",
        "last:avg:crop",
    ]
    assert found.domain.verdict == "different"
    assert found.domain.over_random is not None
    assert found.domain.over_random.low > 0.3
    assert found.labels is not None
    assert found.labels.n_then == 2 * len(y)
    done = [option for option in found.options if option.done]
    assert [option.what for option in done] == ["middle:grid2:crop"]
    # 15 epochs of 3 passes over 500 images at 0.02 s, of one layer of three
    assert plot_advice(found).startswith(b"\x89PNG")
    tuned = next(option for option in found.options if option.action == "fine_tune")
    assert (tuned.what, tuned.minutes) == ("middle", pytest.approx(15 * 3 * 500 * 0.02 / 3 / 60))


def test_a_combination_in_use_is_named_and_compared(
    searched: tuple[FeatureBlocks, np.ndarray, np.ndarray],
) -> None:
    blocks, y, proba = searched
    found = advise_on_features(
        blocks,
        y,
        taps=["early", "middle", "last"],
        in_use=["middle:grid2:crop", "last:avg:crop"],
        oof_proba=proba,
    )
    done = next(option for option in found.options if option.done)
    assert (done.action, done.what) == ("combine", "middle:grid2:crop + last:avg:crop")


def test_probes_use_a_stratified_thousand() -> None:
    codes = np.repeat([0, 1, 2], [9000, 990, 3])
    rows = stratified_sample(codes, 1000, 0, per_class=2)
    assert np.bincount(codes[rows]).tolist() == [901, 99, 2]
    assert (np.diff(rows) > 0).all()


# Figures -------------------------------------------------------------------------------------------------


def test_the_three_claims_of_transfer_are_measured() -> None:
    x = (10.0, 20.0, 40.0, 80.0, 160.0)
    transferred = ScorePath("pretrained", x, tuple(around(v) for v in (0.6, 0.8, 0.85, 0.88, 0.9)))
    scratch = ScorePath("scratch", x, tuple(around(v) for v in (0.5, 0.52, 0.55, 0.65, 0.7)))
    found = compare_paths(transferred, scratch)
    assert found.start == pytest.approx((0.6, 0.5))
    assert found.slope == pytest.approx((0.25, 0.05))  # up to 40, the middle of 10 to 160 in its logarithm
    assert found.end == pytest.approx((0.9, 0.7))
    assert found.sentences()[2] == "Higher asymptote: 0.900 against 0.700 from scratch."
    assert TransferEffect.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_paths_apart_are_not_compared() -> None:
    few, many = (ScorePath("p", x, (around(0.5),) * 2) for x in ((1.0, 2.0), (3.0, 4.0)))
    with pytest.raises(UsageError, match="share no range"):
        compare_paths(few, many)


def test_advice_without_measurements_has_no_figure() -> None:
    with pytest.raises(UsageError, match="nothing to draw"):
        plot_advice(advise(n=10, n_classes=2, accuracy=around(0.8), in_use="last:avg:crop"))


def test_figures_are_drawn_without_a_screen(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    curve = learning_curve(X[:200], y[:200], n_repeats=1)
    scratch = ScorePath("from scratch", (40.0, 160.0), (around(0.3), around(0.5)))
    drawn = plot_curve(curve, scratch=scratch)
    assert drawn.get_xlabel() == "labelled images"
    assert len(drawn.get_legend().get_texts()) == 3
    assert to_png(drawn).startswith(b"\x89PNG")
    depth = plot_depth(FAR, random=around(0.4))
    assert depth.get_xticklabels()[0].get_text() == "b.2\ngrid4\ncrop"
