"""Metrics agree with worked examples, intervals cover, calibration keeps the order of the answers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics as reference

from featx.evaluation import METRICS, Calibration, Comparison, Evaluation, compare, evaluate, fit_calibration
from featx.evaluation.metrics import Metric
from featx.exceptions import DataError, LabelError, UsageError


def answers(
    n: int, n_classes: int, *, skill: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True indices, well calibrated probabilities, and their logits."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, n_classes)) * skill
    proba = softmax(logits, axis=1)
    y = (rng.random((n, 1)) > proba.cumsum(axis=1)).sum(axis=1).clip(max=n_classes - 1)
    return y, proba, logits


# Metrics -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 5])
def test_metrics_agree_with_scikit_learn(n_classes: int) -> None:
    y, proba, _ = answers(200, n_classes, skill=2.0)
    found = evaluate(y, proba, range(n_classes), n_boot=2)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(y, proba.argmax(1)))
    assert found["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(y, proba.argmax(1)))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(y, proba.argmax(1), average="macro"))
    assert found["log_loss"] == pytest.approx(reference.log_loss(y, proba, labels=range(n_classes)))
    assert (found.confusion == reference.confusion_matrix(y, proba.argmax(1))).all()


def test_a_verdict_is_what_its_interval_says_and_the_exact_test_never_contradicts_it() -> None:
    rng = np.random.default_rng(0)
    verdicts = set()
    for n in (8, 15, 30, 80, 200):
        for gain in (0.0, 0.05, 0.15, 0.3):
            y = rng.integers(0, 2, n)
            right_b = rng.random(n) < 0.6
            right_a = right_b | (rng.random(n) < gain)
            a, b = (np.eye(2)[np.where(right, y, 1 - y)] for right in (right_a, right_b))
            found = compare(y, a, b, n_boot=200, random_state=0)
            zero = found.low <= 0 <= found.high
            assert (found.verdict == "not distinguishable") == zero
            assert found.low <= found.difference <= found.high
            if found.mcnemar_p >= 0.05:
                assert zero
            verdicts.add(found.verdict)
    assert verdicts == {"a", "not distinguishable"}


def test_calibration_error_of_a_worked_example() -> None:
    # Four answers at 0.9, of which three are right (gap 0.15), and four at 0.6, all right (gap -0.4).
    proba = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 4)
    y = np.array([0, 0, 0, 1, 0, 0, 0, 0])
    assert evaluate(y, proba, [0, 1], n_boot=2)["ece"] == pytest.approx((0.15 + 0.4) / 2)


def test_a_metric_is_shown_with_its_interval() -> None:
    assert str(Metric(0.51234, 0.4, 0.6)) == "0.5123 [0.4000, 0.6000]"
    assert Metric(0.5, 0.4, 0.6).as_share() == "0.500 [0.400, 0.600]"
    assert Metric(0.012, -0.003, 0.027).as_points() == "+1.2 points [-0.3, +2.7]"
    assert Metric(0.5, math.nan, math.nan).as_share() == "0.500 [not known]"
    assert str(Metric(math.nan, math.nan, math.nan)) == "not known"


def test_groups_of_another_shape_are_refused() -> None:
    with pytest.raises(DataError, match=r"4 images, but groups of shape \(3,\)"):
        evaluate([0, 1, 0, 1], np.full((4, 2), 0.5), [0, 1], groups=["a", "b", "c"])


def test_a_class_without_test_images_takes_no_part_in_balanced_accuracy() -> None:
    proba = np.array([[0.8, 0.1, 0.1], [0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1]])
    found = evaluate([0, 0, 1, 1], proba, [0, 1, 2], n_boot=2)
    assert found["balanced_accuracy"] == pytest.approx((1 + 0.5) / 2)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), n_classes=st.integers(2, 6), name=st.sampled_from(sorted(METRICS)))
def test_a_weight_of_k_is_k_copies_of_the_row(seed: int, n_classes: int, name: str) -> None:
    y, proba, _ = answers(40, n_classes, skill=1.0, seed=seed)
    weight = np.random.default_rng(seed).integers(0, 4, (3, 40)).astype(float)
    copies = [np.repeat(np.arange(40), row.astype(int)) for row in weight]
    expected = [METRICS[name](y[rows], proba[rows]) for rows in copies]
    assert METRICS[name](y, proba, weight) == pytest.approx(expected)


def test_per_class_table_of_a_worked_example() -> None:
    proba = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6], [0.7, 0.3]])
    cat, dog = evaluate(["cat", "cat", "cat", "dog", "dog"], proba, ["cat", "dog"], n_boot=2).per_class
    assert (cat.label, cat.precision, cat.recall, cat.support) == ("cat", 2 / 3, 2 / 3, 3)
    assert (dog.label, dog.precision, dog.recall, dog.support) == ("dog", 1 / 2, 1 / 2, 2)


# Intervals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "macro_f1", "log_loss"])
def test_intervals_cover_the_truth_about_19_times_of_20(name: str) -> None:
    y, proba, _ = answers(100_000, 3, skill=1.5, seed=99)
    truth = METRICS[name](y, proba)
    covered = 0
    for start in range(0, 60_000, 300):  # 200 samples of 300
        rows = slice(start, start + 300)
        metric = evaluate(y[rows], proba[rows], range(3), n_boot=200).metrics[name]
        covered += metric.low <= truth <= metric.high
    assert 180 <= covered <= 200  # 190 expected; sd 3.1


def test_shuffled_labels_score_chance() -> None:
    covered = 0
    for seed in range(100):
        y, proba, _ = answers(200, 4, skill=2.0, seed=seed)
        shuffled = np.random.default_rng(seed).permutation(y)
        metric = evaluate(shuffled, proba, range(4), n_boot=200).metrics["accuracy"]
        covered += metric.low <= 0.25 <= metric.high
    assert covered >= 88


def test_images_of_one_group_widen_the_interval() -> None:
    y, proba, _ = answers(50, 2, skill=1.5)
    y, proba, groups = np.repeat(y, 20), np.repeat(proba, 20, axis=0), np.repeat(np.arange(50), 20)
    alone = evaluate(y, proba, [0, 1]).metrics["accuracy"]
    together = evaluate(y, proba, [0, 1], groups=groups).metrics["accuracy"]
    # Twenty copies of each row are 50 independent units: sqrt(20) = 4.5 times the width.
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(20**0.5, rel=0.15)


def test_all_right_is_not_certain() -> None:
    proba = np.tile([0.9, 0.1], (60, 1))
    proba[30:] = proba[30:, ::-1]
    metric = evaluate(np.repeat([0, 1], 30), proba, [0, 1]).metrics["accuracy"]
    assert (metric.value, metric.high) == (1, 1)
    assert metric.low == pytest.approx(0.025 ** (1 / 60))  # Clopper & Pearson


def test_all_right_on_a_rare_class_leaves_balanced_accuracy_uncertain() -> None:
    y = np.repeat([0, 1], [990, 10])
    metric = evaluate(y, np.eye(2)[y], [0, 1]).metrics["balanced_accuracy"]
    assert metric.low == pytest.approx(0.025 ** (1 / 20))


def test_a_single_group_has_no_interval() -> None:
    y, proba, _ = answers(50, 2, skill=1.0)
    metric = evaluate(y, proba, [0, 1], groups=["only"] * 50).metrics["accuracy"]
    assert math.isnan(metric.low)
    assert math.isnan(metric.high)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 60), n_classes=st.integers(2, 5), seed=st.integers(0, 100))
def test_every_value_lies_within_its_interval_and_its_range(n: int, n_classes: int, seed: int) -> None:
    y, proba, _ = answers(n, n_classes, skill=2.0, seed=seed)
    for name, metric in evaluate(y, proba, range(n_classes), n_boot=50).metrics.items():
        assert 0 <= metric.low <= metric.value <= metric.high
        assert name == "log_loss" or metric.high <= 1


def test_the_seed_decides_the_interval() -> None:
    y, proba, _ = answers(80, 3, skill=1.0)
    first, second, other = (evaluate(y, proba, range(3), random_state=seed).metrics for seed in (1, 1, 2))
    assert first == second
    assert first != other


# Abstention, plain data, refusals ------------------------------------------------------------------------


def test_abstention_reports_coverage_and_the_accuracy_of_what_is_answered() -> None:
    proba = np.array([[0.95, 0.05]] * 6 + [[0.55, 0.45]] * 4)
    y = np.array([0] * 6 + [1] * 4)
    found = evaluate(y, proba, [0, 1], abstain_below=0.9)
    assert found.coverage == 0.6
    assert found.accuracy_answered is not None
    assert found.accuracy_answered.value == 1.0
    assert found["accuracy"] == 0.6


def test_abstaining_from_everything_is_said() -> None:
    y, proba, _ = answers(20, 3, skill=0.1)
    found = evaluate(y, proba, range(3), abstain_below=0.99)
    assert (found.coverage, found.accuracy_answered) == (0.0, None)


@pytest.mark.parametrize("labels", [["a", "b", "<script>"], [1, 2, 30], [1.0, 2.0, 3.0]])
@pytest.mark.parametrize("one_group", [False, True])
def test_an_evaluation_survives_json(labels: list[object], one_group: bool) -> None:
    y, proba, _ = answers(30, 3, skill=1.0)
    groups = ["g"] * 30 if one_group else None
    found = evaluate(
        np.array(labels)[y], proba, np.array(labels), groups=groups, abstain_below=0.4, n_boot=20
    )
    text = json.dumps(found.to_dict(), allow_nan=False)
    again = Evaluation.from_dict(json.loads(text))
    assert json.dumps(again.to_dict()) == text
    assert again.classes == tuple(labels)
    assert (again.confusion == found.confusion).all()


def test_a_label_that_the_classifier_never_saw_is_named() -> None:
    with pytest.raises(LabelError, match=r"1 label\(s\) .* never saw: 'owl'"):
        evaluate(["cat", "owl"], np.full((2, 2), 0.5), ["cat", "dog"])


@pytest.mark.parametrize(
    "proba", [[[0.5, 0.6]], [[float("nan"), 1.0]], [[-0.5, 1.5]], [[0.2, 0.3, 0.5]], [[0.5, 0.5]] * 2]
)
def test_what_is_no_probability_is_refused(proba: list[list[float]]) -> None:
    with pytest.raises(DataError, match="probabilities"):
        evaluate([0], proba, [0, 1])


# Comparison ----------------------------------------------------------------------------------------------


def test_mcnemar_of_a_worked_example() -> None:
    # 10 answers differ: a is right on 9, b on 1. Two-sided binomial: 2 (1 + 10) / 2^10.
    y = np.zeros(100, int)
    right, wrong = [0.9, 0.1], [0.1, 0.9]
    a = np.array([right] * 99 + [wrong])
    b = np.array([right] * 90 + [wrong] * 9 + [right])
    found = compare(y, a, b)
    assert found.mcnemar_p == pytest.approx(22 / 1024)
    assert (found.only_a_right, found.only_b_right, found.verdict) == (9, 1, "a")
    assert found.difference == pytest.approx(0.08)


def test_three_images_more_are_not_distinguishable_even_if_the_bootstrap_is_sure() -> None:
    y = np.zeros(100, int)
    a = np.tile([0.9, 0.1], (100, 1))
    b = a.copy()
    b[:3] = [0.1, 0.9]
    found = compare(y, a, b)
    assert found.mcnemar_p == pytest.approx(0.25)
    assert found.verdict == "not distinguishable"


def test_swapping_the_two_swaps_the_verdict() -> None:
    y, good, _ = answers(500, 3, skill=3.0)
    bad = np.full_like(good, 1 / 3)
    assert (compare(y, good, bad).verdict, compare(y, bad, good).verdict) == ("a", "b")
    assert (
        compare(y, good, bad, metric="log_loss").verdict,
        compare(y, bad, good, metric="log_loss").verdict,
    ) == (
        "a",
        "b",
    )


def test_equal_classifiers_are_called_different_one_time_of_twenty_at_most() -> None:
    called = 0
    for seed in range(100):
        y, a, _ = answers(150, 2, skill=1.0, seed=seed)
        rng = np.random.default_rng([seed, 1])
        b = softmax(np.log(a) + rng.normal(size=a.shape), axis=1)
        a = softmax(np.log(a) + rng.normal(size=a.shape), axis=1)
        called += compare(y, a, b, n_boot=200).verdict != "not distinguishable"
    assert called <= 9


def test_groups_make_a_difference_less_certain() -> None:
    y, good, _ = answers(40, 2, skill=2.0, seed=1)
    bad = good[::-1]
    wide = compare(
        np.tile(y, 10), np.tile(good, (10, 1)), np.tile(bad, (10, 1)), groups=np.tile(np.arange(40), 10)
    )
    narrow = compare(np.tile(y, 10), np.tile(good, (10, 1)), np.tile(bad, (10, 1)))
    assert wide.high - wide.low > 2.5 * (narrow.high - narrow.low)


def test_a_comparison_takes_labels_and_survives_json() -> None:
    y, proba, _ = answers(30, 2, skill=1.0)
    found = compare(np.array(["no", "yes"])[y], proba, proba, classes=["no", "yes"])
    assert Comparison.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert (found.difference, found.low, found.high, found.mcnemar_p) == (0, 0, 0, 1)


def test_an_unknown_metric_is_refused_with_the_list() -> None:
    with pytest.raises(UsageError, match="choose one of accuracy, balanced_accuracy"):
        compare([0], [[1.0, 0.0]], [[1.0, 0.0]], metric="auc")


# Calibration ---------------------------------------------------------------------------------------------


def test_temperature_finds_the_scale_that_the_scores_lost() -> None:
    y, _, logits = answers(20_000, 5, skill=2.0)
    found = fit_calibration(logits * 7 + 3, y, 5)
    assert found.kind == "temperature"
    assert found.a == pytest.approx(1 / 7, rel=0.03)


def test_sigmoid_finds_the_slope_and_the_shift() -> None:
    rng = np.random.default_rng(0)
    decision = rng.normal(size=50_000) * 3
    y = (rng.random(50_000) < 1 / (1 + np.exp(-(0.5 * decision - 1)))).astype(int)
    found = fit_calibration(decision, y, 2)
    assert (found.kind, found.a, found.b) == (
        "sigmoid",
        pytest.approx(0.5, rel=0.05),
        pytest.approx(-1, rel=0.05),
    )


def test_calibration_lowers_the_loss_of_overconfident_scores() -> None:
    y, _, logits = answers(2000, 4, skill=1.0)
    overconfident = softmax(logits * 10, axis=1)
    calibrated = fit_calibration(logits * 10, y, 4).proba(logits * 10)
    assert METRICS["log_loss"](y, calibrated) < METRICS["log_loss"](y, overconfident) / 2
    assert METRICS["ece"](y, calibrated) < 0.05


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(4, 40),
    n_classes=st.integers(2, 5),
    scale=st.sampled_from([1e-6, 1, 1e6]),
    seed=st.integers(0, 99),
)
def test_the_most_probable_class_is_the_one_that_the_scores_decide_for(
    n: int, n_classes: int, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    decision = rng.normal(size=(n, n_classes) if n_classes > 2 else n) * scale
    calibration = fit_calibration(decision, rng.integers(0, n_classes, n), n_classes)
    scores, proba = calibration.scores(decision), calibration.proba(decision)
    decided = scores.argmax(axis=1) if n_classes > 2 else (scores > 0).astype(int)
    assert (proba.argmax(axis=1) == decided).all()
    assert proba.sum(axis=1) == pytest.approx(1)
    assert calibration.a > 0


def test_perfectly_parted_scores_do_not_become_certainty() -> None:
    decision = np.r_[np.full(50, -5.0), np.full(50, 5.0)]
    proba = fit_calibration(decision, np.repeat([0, 1], 50), 2).proba(decision)
    assert proba.max() == pytest.approx(51 / 52, abs=1e-3)  # Platt's smoothed target


def test_scores_are_a_slope_times_the_decision_and_a_shift() -> None:
    calibration = Calibration("sigmoid", 2.0, -1.0)
    assert calibration.scores([0.5, 1.0]).tolist() == [0.0, 1.0]
    assert calibration.proba([[0.5], [1.0]])[:, 1] == pytest.approx([0.5, 1 / (1 + math.exp(-1))])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 200.0])
@pytest.mark.parametrize("n", [8, 60])
def test_a_sigmoid_is_that_of_scikit_learn(n: int, scale: float) -> None:
    from sklearn.calibration import _SigmoidCalibration

    rng = np.random.default_rng(n)
    y = np.arange(n) % 2
    decision = (rng.normal(size=n) + y) * scale
    weight = rng.integers(1, 4, n).astype(float)
    theirs = _SigmoidCalibration().fit(decision, y, weight).predict(decision)
    found = fit_calibration(decision, y, 2, sample_weight=weight)
    assert found.proba(decision)[:, 1] == pytest.approx(theirs, abs=2e-3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 200.0])
@pytest.mark.parametrize(("n", "n_classes"), [(7, 3), (90, 4)])
def test_a_temperature_has_the_least_loss_on_smoothed_targets(n: int, n_classes: int, scale: float) -> None:
    rng = np.random.default_rng(n)
    y = np.arange(n) % n_classes
    decision = (rng.normal(size=(n, n_classes)) + np.eye(n_classes)[y]) * scale
    weight = rng.integers(1, 4, n).astype(float)
    share = 1 / (weight.sum() + n_classes)
    target = np.full((n, n_classes), share)
    target[np.arange(n), y] = 1 - (n_classes - 1) * share

    def loss(slope: float) -> float:
        return float(-(weight @ (target * np.log(softmax(slope * decision, axis=1))).sum(axis=1)))

    found = fit_calibration(decision, y, n_classes, sample_weight=weight).a
    assert loss(found) < min(loss(found * 1.001), loss(found / 1.001))


@pytest.mark.parametrize(("shape", "n_classes"), [((6, 3), 2), ((6,), 3), ((6, 4), 3)])
def test_scores_that_do_not_fit_the_classes_are_refused(shape: tuple[int, ...], n_classes: int) -> None:
    with pytest.raises(DataError, match=rf"do not fit {n_classes} classes"):
        fit_calibration(np.ones(shape), np.arange(6) % n_classes, n_classes)


def test_two_columns_are_calibrated_as_their_difference() -> None:
    y, _, logits = answers(300, 2, skill=1.0)
    both = fit_calibration(logits, y, 2)
    assert both == fit_calibration(logits[:, 1] - logits[:, 0], y, 2)
    assert both.proba(logits).shape == (300, 2)


def test_weight_zero_drops_an_image_and_weight_two_doubles_it() -> None:
    y, _, logits = answers(60, 3, skill=1.0)
    weight = np.r_[np.zeros(20), np.full(20, 2.0), np.ones(20)]
    rows = np.r_[20:40, 20:60]
    weighted = fit_calibration(logits, y, 3, sample_weight=weight)
    # Scores are brought to unit spread before the fit, so the search ends a rounding error apart.
    assert weighted.a == pytest.approx(fit_calibration(logits[rows], y[rows], 3).a, rel=1e-3)


def test_identity_leaves_scores_alone_and_calibrations_survive_json() -> None:
    scores = np.array([[1.0, 2.0, 3.0]])
    assert (Calibration("identity").scores(scores) == scores).all()
    calibration = fit_calibration(np.arange(6.0), [0, 0, 1, 0, 1, 1], 2)
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


def test_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="finite"):
        fit_calibration([0.0, np.inf, 1.0], [0, 1, 0], 2)
