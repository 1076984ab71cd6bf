"""Learning curves, what doubling the labels brings, label noise and the few-shot protocol."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from featx.curves import (
    BAND,
    FewShot,
    Forecast,
    LearningCurve,
    curve_head,
    few_shot,
    fit_power_law,
    forecast,
    gain_if_last_doubling_again,
    gain_if_no_change,
    interval_score,
    learning_curve,
)
from featx.exceptions import DataError, LabelError, SearchWarning, UsageError
from featx.features import FeatureBlocks
from featx.heads import HEADS
from featx.splits import fold_repeats


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits: real images, 64 pixels as rows."""
    X, y = load_digits(return_X_y=True)
    return X.astype(np.float32), y


@pytest.fixture(scope="module")
def digits_curve(digits: tuple[np.ndarray, np.ndarray]) -> LearningCurve:
    X, y = digits
    return learning_curve(X[:600], y[:600])


def clouds(
    n: int, n_classes: int, *, gap: float, d: int = 10, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian clouds, one for each class, `gap` standard deviations from the origin."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    centers = rng.normal(size=(n_classes, d))
    centers *= gap / np.linalg.norm(centers, axis=1, keepdims=True)
    return (centers[y] + rng.normal(size=(n, d))).astype(np.float32), y


def exact_curve(
    n: int, *, a: float, s: float, c: float, n_classes: int = 10, noise: float = 0.0, seed: int = 0
) -> LearningCurve:
    """A curve whose points lie on the law, give or take `noise`."""
    sizes = 0.8 * n / 2.0 ** np.arange(4, -1, -1)
    chance = 1 - 1 / n_classes
    error = a + (chance - a) / (1 + (sizes / s) ** c)
    error = error + noise * np.random.default_rng(seed).normal(size=len(sizes))
    covariance = np.diag(np.full(len(sizes), max(noise, 1e-3) ** 2))
    return LearningCurve(
        n=n,
        classes=tuple(range(n_classes)),
        class_counts=np.full(n_classes, n // n_classes),
        head="ridge",
        sizes=sizes,
        error=error,
        covariance=covariance,
        class_error=np.repeat(error[:, None], n_classes, axis=1),
        class_covariance=np.repeat(covariance[None], n_classes, axis=0),
        n_fits=0,
    )


# The curve -----------------------------------------------------------------------------------------------


def test_a_curve_halves_the_labels_down_to_a_sixteenth(digits_curve: LearningCurve) -> None:
    # 5 folds: 480 of 600 images train.
    assert digits_curve.sizes == pytest.approx([30, 60, 120, 240, 480])
    assert (np.diff(digits_curve.error) < 0).all()


def test_the_end_of_a_curve_agrees_with_cross_validation(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits[0][:400], digits[1][:400]
    found = learning_curve(X, y, params=[{"alpha": 1.0}])
    # rows of unit length: alpha 1 there is alpha d on standardised columns
    reference = cross_val_score(make_pipeline(StandardScaler(), RidgeClassifier(alpha=64.0)), X, y, cv=5)
    assert found.accuracy[-1].value == pytest.approx(reference.mean(), abs=0.03)


def test_every_class_is_in_every_subset() -> None:
    X, y = clouds(64, 16, gap=4.0)  # 4 images of each of 16 classes: 3 train, so 48 and the subsets above 16
    found = learning_curve(X, y, head="nearest_mean")
    assert found.sizes.min() >= 16
    assert len(found.sizes) >= 2


def test_few_images_for_each_class_take_smaller_steps() -> None:
    X, y = clouds(160, 16, gap=4.0)  # 8 train for each class: 8, 4, 2, 1 by halving
    steps = learning_curve(X, y).sizes
    X, y = clouds(96, 16, gap=4.0)  # 4.8 train for each class: halving would give 3 points
    finer = learning_curve(X, y).sizes
    assert steps[1] / steps[0] == pytest.approx(2, rel=0.1)
    assert len(finer) >= 4
    assert finer[1] / finer[0] == pytest.approx(np.sqrt(2), rel=0.1)


def test_a_class_of_one_image_is_refused() -> None:
    X, y = clouds(40, 2, gap=3.0)
    with pytest.raises(LabelError, match="single image"):
        learning_curve(np.vstack([X, X[:1]]), np.append(y, 2))


def test_groups_stay_together() -> None:
    # Each picture five times under a label drawn at random: only copies in the training part can tell it.
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(60, 20)), 5, axis=0).astype(np.float32)
    y = np.repeat(rng.integers(0, 2, 60), 5)
    groups = np.repeat(np.arange(60), 5)
    parted = learning_curve(X, y, head="knn", params=[HEADS["knn"].grid[2]])
    kept = learning_curve(X, y, head="knn", params=[HEADS["knn"].grid[2]], groups=groups)
    assert parted.accuracy[-1].value > 0.95
    assert kept.accuracy[-1].value < 0.65


def test_copies_of_images_do_not_make_a_curve_surer() -> None:
    X, y = clouds(200, 2, gap=1.0)
    once = learning_curve(X, y, n_repeats=2)
    groups = np.tile(np.arange(200), 4)
    copied = learning_curve(np.tile(X, (4, 1)), np.tile(y, 4), groups=groups, n_repeats=2)
    assert copied.covariance[-1, -1] == pytest.approx(once.covariance[-1, -1], rel=0.4)


def test_blocks_are_scaled_on_their_own(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits[0][:300], digits[1][:300]
    one = learning_curve(FeatureBlocks({"top": X[:, :32], "bottom": X[:, 32:]}, 300), y)
    scaled = learning_curve(FeatureBlocks({"top": X[:, :32], "bottom": 1000 * X[:, 32:]}, 300), y)
    assert scaled.error == pytest.approx(one.error, abs=0.002)  # an answer or two, by rounding


def test_the_head_that_stands_for_a_winner_is_cheap() -> None:
    assert all(HEADS[curve_head(name)].solver not in ("rbf_svm", "estimator") for name in HEADS)


def test_an_unknown_head_is_named() -> None:
    with pytest.raises(UsageError, match="'bayes' is not known"):
        learning_curve(*clouds(20, 2, gap=1.0), head="bayes")


def test_folds_are_drawn_again_below_500_images() -> None:
    assert [fold_repeats(n) for n in (20, 100, 260, 499, 500, 5000)] == [3, 3, 2, 2, 1, 1]


def test_a_curve_survives_json(digits_curve: LearningCurve) -> None:
    back = LearningCurve.from_dict(json.loads(json.dumps(digits_curve.to_dict())))
    assert back.to_dict() == digits_curve.to_dict()
    assert forecast(back).gain == forecast(digits_curve).gain


def test_a_small_class_lowers_the_folds_without_a_warning() -> None:
    X, y = clouds(60, 2, gap=2.0)
    y[:57:2] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error", SearchWarning)
        learning_curve(X, np.where(np.arange(60) < 4, 2, y))


# The forecast --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "c"), [(0.0, 1.0), (0.05, 0.8), (0.1, 1.2)])
def test_the_law_is_found_again_from_its_own_points(a: float, c: float) -> None:
    curve = exact_curve(400, a=a, s=60, c=c)
    true = [a + (0.9 - a) / (1 + (m / 60) ** c) for m in (400, 800)]
    found = forecast(curve)
    assert found.gain.value == pytest.approx(true[0] - true[1], abs=0.02)
    assert found.gain.low < true[0] - true[1] < found.gain.high
    assert found.now.value == pytest.approx(1 - true[0], abs=0.02)


def test_far_from_zero_the_law_is_a_power_law() -> None:
    law = fit_power_law(exact_curve(400, a=0.0, s=5, c=0.7))
    errors = [1 - law.accuracy(m).value for m in (10_000, 20_000, 40_000)]
    a = law.typical[0]
    assert (errors[1] - a) / (errors[0] - a) == pytest.approx((errors[2] - a) / (errors[1] - a), rel=0.05)


def test_bands_hold_the_truth_when_points_are_noisy() -> None:
    held = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        a, s, c = rng.uniform(0, 0.1), rng.uniform(20, 100), rng.uniform(0.6, 1.4)
        gain = fit_power_law(exact_curve(400, a=a, s=s, c=c, noise=0.01, seed=seed)).gain(800)
        now, then = (a + (0.9 - a) / (1 + (m / s) ** c) for m in (400, 800))
        held += gain.low <= now - then <= gain.high
    assert held >= 0.85 * 40


def test_more_labels_never_harm() -> None:
    found = forecast(exact_curve(100, a=0.3, s=1, c=2.0, noise=0.02))
    assert found.gain.low >= 0
    assert found.then.value >= found.now.value


def test_forecasts_agree_with_held_out_labels(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    held, scores, unchanged, again = 0, [], [], []
    for seed in range(10):
        n = 100 + 50 * (seed % 4)
        rest, own = train_test_split(np.arange(len(y)), test_size=n, stratify=y, random_state=seed)
        test, more = train_test_split(rest, test_size=n, stratify=y[rest], random_state=seed)
        curve = learning_curve(X[own], y[own], random_state=seed)
        gain = fit_power_law(curve).gain(2 * n)
        true = accuracy(X, y, np.append(own, more), test) - accuracy(X, y, own, test)
        held += gain.low <= true <= gain.high
        for kept, band in (
            (scores, gain),
            (unchanged, gain_if_no_change(curve)),
            (again, gain_if_last_doubling_again(curve)),
        ):
            kept.append(interval_score(band.low, band.high, true))
    assert held >= 8
    assert np.mean(scores) < min(np.mean(unchanged), np.mean(again))


def accuracy(X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    """Score of the head and the values that the curve takes, tuned by scikit-learn."""
    folds = GridSearchCV(
        RidgeClassifier(), {"alpha": [6.4, 64.0, 640.0]}
    )  # 0.1, 1, 10 on rows of unit length
    return make_pipeline(StandardScaler(), folds).fit(X[train], y[train]).score(X[test], y[test])


def test_no_accuracy_above_the_ceiling_is_promised() -> None:
    curve = exact_curve(400, a=0.0, s=60, c=1.0)  # 0.883 now, 0.937 then; the fit is a little below
    capped = forecast(curve, ceiling=0.9)
    assert capped.then.high <= 0.9
    assert capped.gain.value == pytest.approx(0.9 - 0.87, abs=0.02)


def test_the_class_with_most_to_gain_comes_first() -> None:
    # Class 2 lies between 0 and 1 and overlaps them; class 3 is far from all.
    rng = np.random.default_rng(0)
    centers = np.array([[0, 0], [3, 0], [1.5, 0], [40, 40]])
    y = np.arange(400) % 4
    X = np.hstack([centers[y] + rng.normal(size=(400, 2)), rng.normal(size=(400, 60))]).astype(np.float32)
    found = forecast(learning_curve(X, np.array(["left", "right", "between", "far"])[y]))
    assert [c.label for c in found.by_class][-1] == "far"
    assert found.by_class[-1].gain.value < 0.02 < found.by_class[0].gain.value


def test_the_interval_score_of_a_worked_example() -> None:
    # Width 0.2; 0.5 lies 0.1 above the interval, which costs 2 / (1 - 0.9) times 0.1.
    assert interval_score(0.2, 0.4, 0.3) == pytest.approx(0.2)
    assert interval_score([0.2], [0.4], [0.5]) == pytest.approx([0.2 + 20 * 0.1])


def test_the_baselines_say_nothing_and_the_same_again() -> None:
    curve = exact_curve(400, a=0.0, s=60, c=1.0)
    last = curve.error[-2] - curve.error[-1]
    assert gain_if_no_change(curve).value == 0
    assert gain_if_last_doubling_again(curve).value == pytest.approx(last)
    assert gain_if_last_doubling_again(curve).high - last == pytest.approx(
        1.645 * np.sqrt(2) * 1e-3, rel=1e-3
    )


def test_a_small_test_part_widens_the_band_by_its_own_chance() -> None:
    # Gain of the last doubling: standard error 0.001 sqrt(2) on 400 images, so 0.0283 an image.
    law = fit_power_law(exact_curve(400, a=0.0, s=60, c=1.0))
    alone, measured = law.gain(800), law.gain(800, n_test=4)
    chance = 1.645 * 0.0283 / np.sqrt(4)
    assert measured.value == alone.value
    assert measured.high - measured.value == pytest.approx(
        np.hypot(alone.high - alone.value, chance), rel=1e-2
    )
    assert law.gain(800, n_test=10**9).low == pytest.approx(alone.low, abs=1e-4)


def test_a_forecast_survives_json(digits_curve: LearningCurve) -> None:
    found = forecast(digits_curve)
    assert found.confidence == BAND
    assert Forecast.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.mark.parametrize(("factor", "confidence"), [(1.0, 0.9), (2.0, 1.0)])
def test_impossible_forecasts_are_refused(factor: float, confidence: float) -> None:
    with pytest.raises(UsageError, match="above 1"):
        forecast(exact_curve(400, a=0.0, s=60, c=1.0), factor=factor, confidence=confidence)


# Few shots -----------------------------------------------------------------------------------------------


def test_more_shots_score_higher_and_vary_less(digits: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = digits
    found = few_shot(X, y, shots=(1, 5, 20), n_draws=30)
    means = [score.accuracy.value for score in found.scores]
    widths = [score.spread[1] - score.spread[0] for score in found.scores]
    assert means[0] < means[1] < means[2]
    assert widths[0] > widths[2]
    assert 0.4 < means[0] < 0.75  # one image of each digit
    for score in found.scores:
        assert score.spread[0] <= score.accuracy.low <= score.accuracy.value <= score.accuracy.high


def test_the_interval_is_of_the_mean_over_draws() -> None:
    X, y = clouds(300, 3, gap=2.0)
    few, many = (few_shot(X, y, shots=(2,), n_draws=n).scores[0] for n in (20, 320))
    ratio = (few.accuracy.high - few.accuracy.low) / (many.accuracy.high - many.accuracy.low)
    assert ratio == pytest.approx(4, rel=0.5)  # sqrt(320 / 20)


def test_a_k_that_leaves_no_test_image_is_left_out() -> None:
    X, y = clouds(30, 3, gap=3.0)
    found = few_shot(X, y, shots=(1, 5, 10, 50), n_draws=4)
    assert [score.k for score in found.scores] == [1, 5]
    assert found.left_out == (10, 50)
    with pytest.raises(DataError, match="the smallest class has 10 images"):
        few_shot(X, y, shots=(10,), n_draws=4)


def test_recall_is_averaged_over_classes() -> None:
    # 90 images of one class, 10 of the other, rows that say nothing: chance is a half, not 0.9 or 0.1.
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], [180, 20])
    found = few_shot(rng.normal(size=(200, 5)), y, shots=(2,), n_draws=200)
    assert found.scores[0].accuracy.value == pytest.approx(0.5, abs=0.03)


def test_no_test_image_is_of_a_group_that_was_learnt_from() -> None:
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(40, 20)), 10, axis=0)
    y = np.repeat(np.arange(40) % 2, 10)
    groups = np.repeat(np.arange(40), 10)
    parted = few_shot(X, y, shots=(50,), n_draws=10, head="knn", params=HEADS["knn"].grid[2])
    kept = few_shot(X, y, shots=(5,), n_draws=50, head="knn", params=HEADS["knn"].grid[2], groups=groups)
    assert parted.scores[0].accuracy.value > 0.9
    assert kept.scores[0].accuracy.value < 0.6


def test_a_protocol_survives_json() -> None:
    found = few_shot(*clouds(30, 3, gap=3.0), shots=(1, 2), n_draws=4)
    assert FewShot.from_dict(json.loads(json.dumps(found.to_dict()))) == found
