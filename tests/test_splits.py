"""The test part is stable, folds part no group, and labels that cannot be learnt are refused in words."""

from __future__ import annotations

import hashlib
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.exceptions import DataError, FeatxWarning, LabelError, SearchWarning, UsageError
from featx.splits import (
    check_labels,
    divisible,
    fold_repeats,
    image_groups,
    make_folds,
    stable_test_mask,
    stratified_sample,
)


def digests(n: int, seed: int = 0) -> np.ndarray:
    hashes = [hashlib.sha256(f"{seed}/{number}".encode()).digest() for number in range(n)]
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(n, 32)


def assignment(ids: np.ndarray, mask: np.ndarray) -> dict[str, str]:
    return {row.tobytes().hex(): "test" if test else "train" for row, test in zip(ids, mask, strict=True)}


# The test part -------------------------------------------------------------------------------------------


def test_an_image_is_test_where_its_salted_hash_lies_below_the_threshold() -> None:
    ids, labels = digests(400), np.arange(400) % 2
    hashes = [hashlib.sha256(b"salt" + row.tobytes()).digest() for row in ids]
    below = np.array([int.from_bytes(value[:8]) / 2**64 < 0.3 for value in hashes])
    assert (stable_test_mask(ids, labels, test_size=0.3, salt="salt") == below).all()


@settings(max_examples=30, deadline=None)
@given(start=st.integers(60, 200), more=st.integers(1, 200), seed=st.integers(0, 5), salt=st.text(max_size=5))
def test_what_is_test_stays_test_and_what_is_train_stays_train_when_the_set_grows(
    start: int, more: int, seed: int, salt: str
) -> None:
    ids = digests(start + more, seed)
    labels = np.arange(start + more) % 7
    before = stable_test_mask(ids[:start], labels[:start], salt=salt)
    after = stable_test_mask(ids, labels, salt=salt, previous=assignment(ids[:start], before))
    assert (after[:start] == before).all()


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(80)), seed=st.integers(0, 5))
def test_the_order_of_the_images_does_not_matter(order: list[int], seed: int) -> None:
    ids, labels = digests(80, seed), np.arange(80) % 3
    mask = stable_test_mask(ids, labels)
    assert (stable_test_mask(ids[order], labels[order]) == mask[order]).all()


def test_growth_without_a_kept_assignment_moves_nothing_where_no_class_is_short() -> None:
    ids, labels = digests(4000), np.arange(4000) % 2
    before = stable_test_mask(ids[:1000], labels[:1000])
    assert (stable_test_mask(ids, labels)[:1000] == before).all()


def test_copies_change_no_side_of_the_others() -> None:
    ids = digests(60)
    labels = np.arange(60) % 2
    rows = np.r_[0, 0, 0, 1, 1, np.arange(2, 60)]  # the copies come first
    assert (stable_test_mask(ids[rows], labels[rows]) == stable_test_mask(ids, labels)[rows]).all()


def test_a_salt_and_names_of_groups_may_be_text_that_is_no_unicode() -> None:
    ids, labels = digests(40), np.arange(40) % 2
    names = [f"\udcff{number // 2}" for number in range(40)]
    assert 0 < stable_test_mask(ids, labels, salt="\udcff", groups=names).sum() < 40


def test_another_salt_is_another_split() -> None:
    ids, labels = digests(1000), np.arange(1000) % 2
    first, second = (stable_test_mask(ids, labels, salt=salt) for salt in ("", "other"))
    assert 20 < (first & second).sum() < 70  # 40 expected of two independent fifths


def test_every_class_of_twenty_has_test_images_and_none_is_used_up() -> None:
    labels = np.repeat(np.arange(136), 20)
    counts = np.bincount(labels[stable_test_mask(digests(2720), labels)], minlength=136)
    assert counts.min() >= 2
    assert counts.max() <= 18
    assert abs(counts.mean() - 4) < 0.5


def test_a_short_class_is_filled_from_new_images_only() -> None:
    ids, labels = digests(120), np.repeat([0, 1], 60)
    kept = assignment(ids[:110], np.r_[np.arange(60) < 12, np.zeros(50, bool)])  # class 1: 50 train, no test
    mask = stable_test_mask(ids, labels, previous=kept)
    assert not mask[60:110].any()
    assert mask[110:].sum() >= 6  # half of a fifth of 60


def test_the_fill_leaves_two_images_of_each_class_for_training() -> None:
    labels = np.repeat(np.arange(30), 3)
    for seed in range(5):
        mask = stable_test_mask(digests(90, seed), labels, test_size=0.9)
        assert (np.bincount(labels[mask], minlength=30) == 1).all()


def test_a_class_without_a_test_image_is_named() -> None:
    ids, labels = digests(102), ["cat"] * 100 + ["owl"] * 2
    with pytest.warns(FeatxWarning, match=r"1 class: 'owl' \(2 images\)"):
        mask = stable_test_mask(ids, labels)
    assert not mask[100:].any()


def test_a_set_that_can_spare_no_test_image_is_refused() -> None:
    with pytest.raises(DataError, match="leave none for a test part"):
        stable_test_mask(digests(4), ["a", "a", "b", "b"])


@settings(max_examples=30, deadline=None)
@given(names=st.lists(st.sampled_from("abcdefghijkl"), min_size=60, max_size=120), seed=st.integers(0, 3))
def test_a_group_is_wholly_test_or_wholly_train(names: list[str], seed: int) -> None:
    names = names + list("mmnnooppqqrr")  # groups of one image of each class, so that some can be spared
    ids, labels = digests(len(names), seed), np.arange(len(names)) % 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FeatxWarning)
        mask = stable_test_mask(ids, labels, groups=names, test_size=0.3)
    for name in set(names):
        assert len(set(mask[np.array(names) == name])) == 1


def test_a_group_keeps_its_side_when_it_grows() -> None:
    ids, labels = digests(600), np.arange(600) % 2
    groups = np.array([f"patient {number % 40}" for number in range(600)])
    before = stable_test_mask(ids[:300], labels[:300], groups=groups[:300])
    after = stable_test_mask(ids, labels, groups=groups, previous=assignment(ids[:300], before))
    sides = dict(zip(groups[:300], before, strict=True))
    assert [sides[name] for name in groups[300:]] == after[300:].tolist()


def test_byte_identical_images_are_on_the_same_side() -> None:
    ids = digests(300)
    twins = np.concatenate([ids, ids])
    mask = stable_test_mask(twins, np.arange(600) % 3)
    assert (mask[:300] == mask[300:]).all()


def test_a_new_image_of_a_group_on_both_sides_trains() -> None:
    ids, labels = digests(101), np.arange(101) % 2
    groups = np.array([f"g{number // 2}" for number in range(100)] + ["g0"])
    kept = assignment(ids[:100], np.isin(np.arange(100) % 4, (0, 3)))  # g0 holds a test and a training image
    assert not stable_test_mask(ids, labels, groups=groups, previous=kept)[100]


@pytest.mark.parametrize("share", [0, 1, -0.2, 20])
def test_a_test_size_that_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        stable_test_mask(digests(10), [0, 1] * 5, test_size=share)


# Groups --------------------------------------------------------------------------------------------------


def test_groups_join_through_names_and_through_equal_bytes() -> None:
    ids = digests(6)[[0, 1, 0, 3, 4, 3]]  # 0 and 2 are twins, 3 and 5 too
    groups = ["x", "x", "y", None, "", None]
    assert image_groups(ids, groups).tolist() == [0, 0, 0, 1, 2, 1]


def test_images_without_groups_are_alone_unless_byte_identical() -> None:
    assert image_groups(digests(4)[[0, 1, 1, 2]]).tolist() == [0, 1, 1, 2]


# Folds ---------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    data=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 15)), min_size=40, max_size=150),
    n_splits=st.integers(2, 6),
    seed=st.integers(0, 3),
)
def test_folds_part_no_group_cover_every_row_and_leave_every_class_to_learn(
    data: list[tuple[int, int]], n_splits: int, seed: int
) -> None:
    y, groups = np.array(data).T
    y = np.r_[y, 0, 0, 1, 1, 2, 2, 3, 3]  # every class is in at least two groups
    groups = np.r_[groups, np.arange(100, 108)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SearchWarning)
        folds = make_folds(y, n_splits=n_splits, groups=groups, random_state=seed)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(len(y)))
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])
        assert len(test)
        assert set(y[train]) == {0, 1, 2, 3}


def test_a_class_that_rarer_classes_put_into_one_fold_is_parted() -> None:
    y = np.array([1, 0, 2, 0, 2, 2, 0, 1, 0])
    groups = np.array([5, 4, 3, 5, 2, 4, 3, 2, 5])
    with pytest.warns(SearchWarning, match="2 folds instead of 3"):
        folds = make_folds(y, groups=groups, n_splits=3, random_state=0)
    assert [test.tolist() for _, test in folds] == [[0, 1, 3, 5, 8], [2, 4, 6, 7]]
    assert all(set(y[train]) == {0, 1, 2} for train, _ in folds)


@pytest.mark.parametrize(("n_splits", "n_repeats"), [(1, 1), (0, 1), (3, 0)])
def test_less_than_two_folds_or_one_repeat_is_refused(n_splits: int, n_repeats: int) -> None:
    with pytest.raises(UsageError, match="at least 2 folds and 1 repeat"):
        make_folds([0, 1] * 10, n_splits=n_splits, n_repeats=n_repeats)


@pytest.mark.parametrize(
    ("n", "repeats"), [(0, 3), (1, 3), (166, 3), (249, 3), (250, 2), (499, 2), (500, 1), (10**6, 1)]
)
def test_small_sets_draw_their_folds_more_often(n: int, repeats: int) -> None:
    assert fold_repeats(n) == repeats


def test_folds_hold_equal_shares_of_every_class() -> None:
    y = np.repeat([0, 1, 2], [100, 50, 10])
    for _, test in make_folds(y, n_splits=5):
        assert np.bincount(y[test]).tolist() == [20, 10, 2]


def test_grouped_folds_of_equal_groups_are_balanced() -> None:
    groups = np.repeat(np.arange(50), 8)  # 50 groups of 8, each half of either class
    y = np.tile([0, 1], 200)
    for _, test in make_folds(y, n_splits=5, groups=groups):
        assert np.bincount(y[test]).tolist() == [40, 40]


def test_repeats_draw_other_folds_and_the_seed_decides() -> None:
    y = np.arange(40) % 2
    folds = make_folds(y, n_splits=4, n_repeats=2, random_state=3)
    assert len(folds) == 8
    assert any((a[1].tolist() != b[1].tolist()) for a, b in zip(folds[:4], folds[4:], strict=True))
    again = make_folds(y, n_splits=4, n_repeats=2, random_state=3)
    assert all((a[1] == b[1]).all() for a, b in zip(folds, again, strict=True))


def test_fewer_images_than_folds_lower_the_folds_and_say_so() -> None:
    with pytest.warns(SearchWarning, match="3 folds instead of 5: the smallest class, 'owl', has 3 images"):
        folds = make_folds(["cat"] * 20 + ["owl"] * 3)
    assert len(folds) == 3


def test_a_class_of_one_image_is_named_with_the_way_out() -> None:
    with pytest.raises(LabelError, match=r"a single image: 'owl'.*leave these classes out"):
        make_folds(["cat"] * 20 + ["owl"])
    with pytest.raises(LabelError, match=r"^2 classes have a single image: 'elk', 'owl'\. "):
        make_folds(["cat"] * 20 + ["owl", "elk"] + ["fox"] * 2)


def test_a_class_within_one_group_is_refused() -> None:
    with pytest.raises(LabelError, match="a single group: 1"):
        make_folds([0] * 10 + [1] * 5, groups=[1, 1, 2, 2, 3, 3, 4, 4, 5, 5] + [6] * 5)


# Labels --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["a", "b", "a"], ["a", "b"]),
        ([1, 0, 1], [0, 1]),
        ([1.0, 2.0], [1.0, 2.0]),
        (np.array([1.0, 2.0], np.float32), [1.0, 2.0]),
        ([True, False], [False, True]),
        (pd.Series(["x", "y"]), ["x", "y"]),
        (pd.Series(["x", "y"], dtype="category"), ["x", "y"]),
        (np.array(["x", "y"], dtype=object), ["x", "y"]),
        (np.array([[3], [4]]), [3, 4]),
        (["\u00fc ber", "<b>"], ["<b>", "\u00fc ber"]),
    ],
)
def test_labels_keep_their_type(labels: object, classes: list[object]) -> None:
    found = np.unique(check_labels(labels)).tolist()
    assert found == classes
    assert [type(value) for value in found] == [type(value) for value in classes]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", None, "b", None], r"2 labels are missing \(None, NaN or blank\), in rows 1, 3"),
        ([1.0, float("nan")], "1 label is missing .* in rows 1"),
        (np.array([0.0, np.nan, 1.0]), "in rows 1"),
        (pd.Series(["a", pd.NA, "b"]), "in rows 1"),
        (["a", pd.NA, "b"], "1 label is missing .* in rows 1"),
        ([pd.NaT, "a"], "in rows 0"),
        ([0.5, 1.0, 2.25], "continuous: 2 values are no whole number, such as 0.5 in row 0"),
        ([1.0, float("inf")], "continuous"),
        (["a", 1, "b"], r"mixed types: string in row 0 \('a'\), number in row 1 \(1\)"),
        ([True, 1, 0], "mixed types: boolean in row 0"),
        ([["a", "b"], ["c"]], "row 0 .*multi-label"),
        (np.eye(3), r"shape \(3, 3\).*multi-label"),
        (["cat"] * 120, r"at least 2 classes are needed, got only 'cat' \(120 images\)"),
        ([], "no labels"),
        ([b"a", b"b"], "a bytes"),
        ([2**70, 1], "beyond 64 bits"),
    ],
)
def test_labels_that_cannot_be_learnt_are_refused_in_words(labels: object, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        check_labels(labels)


def test_labels_and_images_of_different_number_are_refused_with_both() -> None:
    with pytest.raises(LabelError, match="5 images, but 4 labels"):
        stable_test_mask(digests(5), [0, 1, 0, 1])


# Samples -------------------------------------------------------------------------------------------------


def test_a_sample_keeps_the_shares_of_the_classes() -> None:
    codes = np.repeat([0, 1, 2], [600, 300, 100])
    rows = stratified_sample(codes, 100, 0)
    assert (np.diff(rows) > 0).all()
    assert np.bincount(codes[rows]).tolist() == [60, 30, 10]
    assert rows.tolist() != stratified_sample(codes, 100, 1).tolist()
    assert len(stratified_sample(codes, 33, 0)) == 33
    assert stratified_sample(codes, 1000, 0).tolist() == list(range(1000))


def test_a_sample_may_hold_some_of_every_class() -> None:
    codes = np.repeat([0, 1, 2], [900, 97, 3])
    rows = stratified_sample(codes, 50, 0, per_class=5)
    assert (np.diff(rows) > 0).all()
    assert np.bincount(codes[rows]).tolist() == [45, 5, 3]


def test_a_sample_has_two_groups_of_each_class_that_has_them() -> None:
    codes = np.repeat(np.arange(40), 6)
    groups = [None if row % 6 == 5 else str(row // 6) for row in range(240)]  # five together, one alone
    rows = stratified_sample(codes, 40, 0, per_class=2, groups=groups)
    assert np.bincount(codes[rows]).tolist() == [2] * 40
    assert (rows[rows % 6 == 5] // 6).tolist() == list(range(40))
    assert divisible(codes, groups).all()
    assert not divisible(codes, codes).any()
    assert (
        divisible(np.array([0, 0, 1, 2, 2]), ["a", "a", "b", "c", "d"]).tolist() == [False] * 3 + [True] * 2
    )
