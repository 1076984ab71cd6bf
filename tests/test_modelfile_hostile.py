"""Crafted heads and arrays are refused with `ModelFileError`, before native code follows their numbers."""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from featx.exceptions import ModelFileError
from featx.heads import HEADS, make_pipeline
from featx.modelfile import MAX_CLASSES, dump_arrays, dump_head, load_arrays, load_head, read_arrays

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
CLASSES = np.arange(3)
SMALL = {"boosting": {"max_iter": 2}, "forest": {"n_estimators": 3}}

pytestmark = pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")

Members = dict[str, bytes]
Change = Callable[[dict[str, Any], dict[str, np.ndarray]], None]


@functools.cache
def saved(name: str, scaling: str = "standard", columns: tuple[int, ...] | None = None) -> Members:
    params = {**HEADS[name].grid[0], **SMALL.get(name, {})}
    pipeline = make_pipeline(name, params, scaling, (4,), n_rows=60, random_state=0, columns=columns)
    return dump_head(name, pipeline.fit(X, np.arange(60) % 3))


def edit(members: Members, change: Change) -> Members:
    """The same head after a change of its description or arrays."""
    plain = json.loads(members["head.json"])
    arrays = {name: array.copy() for name, array in read_arrays(members["head.safetensors"]).items()}
    change(plain, arrays)
    return {"head.json": json.dumps(plain).encode(), "head.safetensors": dump_arrays(arrays)}


def refused(members: Members, classes: np.ndarray = CLASSES) -> str:
    with pytest.raises(ModelFileError) as caught:
        load_head(members, classes, where="evil.featx")
    assert str(caught.value).startswith("evil.featx: ")
    return str(caught.value)


def with_array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Change:
    def edit_arrays(plain: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        arrays[name] = change(arrays[name])

    return edit_arrays


def with_first(name: str, value: Any) -> Change:
    def edit_arrays(plain: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        arrays[name].flat[0] = value

    return edit_arrays


def with_json(**changes: Any) -> Change:
    return lambda plain, arrays: plain.update(changes)


def with_params(**changes: Any) -> Change:
    return lambda plain, arrays: plain["params"].update(changes)


# The description -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"null", b"{}", b"[" * 60_000, b"\x80\x04N.", b"\xff", b"1" * 5000]
)
def test_a_description_that_is_none_is_refused(text: bytes) -> None:
    refused({**saved("logistic"), "head.json": text})


def test_a_description_that_is_too_long_is_refused() -> None:
    assert "head.json is too large" in refused({**saved("logistic"), "head.json": b" " * 70_000})


@pytest.mark.parametrize("member", ["head.json", "head.safetensors"])
def test_a_head_without_a_member_is_refused(member: str) -> None:
    refused({name: data for name, data in saved("logistic").items() if name != member})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_json(head="os.system"), "the head 'os.system' is not known"),
        (with_json(head=["logistic"]), "HeadDescription.head"),
        (with_json(head="ridge"), "the parameters 'C', 'alpha' do not fit"),
        (with_json(head="linear_svm"), None),
        (with_json(scaling="minmax"), "the scaling is not known"),
        (with_json(scaling="none"), "the arrays 'mean', 'scale' do not fit"),
        (with_json(widths=[]), "widths"),
        (with_json(widths=[-4, 8]), "widths"),
        (with_json(widths=[2**20]), "widths"),
        (with_json(widths=[5]), "n_features is 4, but it should be 5"),
        (with_json(widths=[4.0]), "HeadDescription.widths"),
        (with_json(widths=None), "HeadDescription.widths"),
        (with_json(picked=1), "HeadDescription.picked"),
        (with_json(picked=True), "the arrays 'columns' do not fit"),
        (with_json(params=[]), "HeadDescription.params"),
        (with_json(code="import os"), "unknown fields: code"),
        (with_params(C="1"), "C is '1', not of type float"),
        (with_params(C=True), "C is True"),
        (with_params(C=float("nan")), "C is nan"),
        (with_params(C=10**400), "C is 1000"),
        (with_params(tol=1.0), "the parameters 'tol' do not fit"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(change: Change, message: str | None) -> None:
    data = edit(saved("logistic"), change)
    if message is None:  # equal numbers under the name of another linear head are that head
        load_head(data, CLASSES)
    else:
        assert message in refused(data)


@pytest.mark.parametrize("n_classes", [0, 1, 2, 4, MAX_CLASSES + 1])
@pytest.mark.parametrize("name", HEADS)
def test_a_head_of_other_classes_is_refused(name: str, n_classes: int) -> None:
    if name == "knn" and n_classes == 4:
        load_head(saved(name), np.arange(4))  # a class without a neighbour
    else:
        refused(saved(name), np.arange(n_classes))


# Arrays of every head ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
def test_an_array_that_is_missing_or_too_many_is_refused(name: str) -> None:
    for array in read_arrays(saved(name)["head.safetensors"]):
        assert "do not fit" in refused(
            edit(saved(name), lambda plain, arrays, array=array: arrays.pop(array))
        )
    more = edit(saved(name), lambda plain, arrays: arrays.update(evil=np.zeros(3)))
    assert "the arrays 'evil' do not fit" in refused(more)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_a_float_that_is_not_finite_or_too_large_is_refused(name: str, value: float) -> None:
    for array, own in read_arrays(saved(name)["head.safetensors"]).items():
        if own.dtype.kind == "f":
            with np.errstate(over="ignore"):
                data = edit(saved(name), with_first(array, value))
            assert "not finite, or too large" in refused(data)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(
    "change",
    [
        lambda a: a[:0],
        lambda a: a[:-1],
        lambda a: np.concatenate([a, a]),
        lambda a: a[None],
        lambda a: a.astype(np.float16),
        lambda a: a.astype(np.int32 if a.dtype == np.uint32 else np.uint32),
    ],
)
def test_an_array_of_another_shape_or_dtype_is_refused(name: str, change: Any) -> None:
    for array in read_arrays(saved(name)["head.safetensors"]):
        if array == "head.components":
            continue  # more components than any tree reads are sound
        with np.errstate(invalid="ignore"):
            data = edit(
                saved(name), lambda plain, arrays, array=array: arrays.update({array: change(arrays[array])})
            )
        refused(data)


@pytest.mark.parametrize("columns", [[0, 0], [0, 4], [-1, 2], [0, 2**62]])
def test_columns_that_do_not_exist_or_repeat_are_refused(columns: list[int]) -> None:
    data = edit(saved("ridge", columns=(0, 2)), with_array("scaler.columns", lambda _: np.array(columns)))
    refused(data)


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-38])
def test_a_scale_that_is_not_positive_is_refused(scale: float) -> None:
    assert "has values below" in refused(edit(saved("ridge"), with_first("scaler.scale", scale)))


# Values that native code would follow --------------------------------------------------------------------

ASTRAY, NO_FEATURE = "points astray", "a feature that does not exist"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("left_child", 10**9, ASTRAY),
        ("left_child", 0, ASTRAY),  # a cycle: predicting would never end
        ("right_child", 0, ASTRAY),
        ("right_child", -2, ASTRAY),
        ("right_child", -1, ASTRAY),
        ("left_child", -(2**63), ASTRAY),
        ("feature", 4, NO_FEATURE),
        ("feature", -2, NO_FEATURE),
        ("feature", 2**62, NO_FEATURE),
        ("missing_go_to_left", 2, "not below 2"),
        ("sizes", 10**9, "more nodes than the file"),
        ("sizes", 1, "do not fit"),
        ("sizes", 0, "below 1"),
        ("sizes", -(2**63), "below 1"),
        ("depths", 2**62, "not below"),
        ("depths", -1, "below 0"),
        ("values", -1.0, "below 0"),
    ],
)
@pytest.mark.parametrize("kind", ["tree", "forest"])
def test_a_tree_that_leads_astray_is_refused(kind: str, field: str, value: Any, message: str) -> None:
    assert message in refused(edit(saved(kind), with_first(f"head.{field}", value)))


def test_a_child_in_the_next_tree_of_a_forest_is_refused() -> None:
    def change(plain: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        arrays["head.left_child"][0] = arrays["head.sizes"][0]

    assert ASTRAY in refused(edit(saved("forest"), change))


def test_sizes_that_overflow_to_the_right_sum_are_refused() -> None:
    def change(plain: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        arrays["head.sizes"][:] = [2**31 - 1, 2**31 - 1, 1]

    refused(edit(saved("forest"), change))


@pytest.mark.parametrize("n_estimators", [2, 4, 2**62, -1])
def test_a_forest_that_miscounts_its_trees_is_refused(n_estimators: int) -> None:
    assert "trees" in refused(edit(saved("forest"), with_params(n_estimators=n_estimators)))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("left", 10**9, ASTRAY),
        ("left", 0, ASTRAY),
        ("right", 2**32 - 1, ASTRAY),
        ("feature_idx", 64, NO_FEATURE),
        ("feature_idx", -1, NO_FEATURE),
        ("is_leaf", 2, "not below 2"),
        ("missing_go_to_left", 255, "not below 2"),
        ("sizes", 2**31 - 1, "more nodes than the file"),
    ],
)
def test_a_boosted_tree_that_leads_astray_is_refused(field: str, value: int, message: str) -> None:
    assert message in refused(edit(saved("boosting"), with_first(f"head.{field}", value)))


@pytest.mark.parametrize("rounds", [1, 3, 2**62, -2])
def test_boosting_that_miscounts_its_rounds_is_refused(rounds: int) -> None:
    assert "rounds" in refused(edit(saved("boosting"), with_params(max_iter=rounds)))


@pytest.mark.parametrize(
    "change",
    [
        with_array("head.counts", lambda a: a + 1000),
        with_array("head.counts", lambda a: a * 0),
        with_array("head.counts", lambda a: np.array([2**31 - 1, 2**31 - 1, 60], np.int32)),
        with_array("head.counts", lambda a: np.array([len(saved("rbf_svm")), -60, 60], np.int32)),
        with_array("head.dual_coef", lambda a: a[:1]),
        with_array("head.intercept", lambda a: a[:1]),
        with_array("head.support", lambda a: a + 60),
        with_array("head.support", lambda a: a - 60),
        with_params(gamma=0.0),
        with_params(gamma=-1.0),
        with_params(n_rows=5),
        with_params(n_rows=2**40),
    ],
)
def test_support_vectors_that_do_not_fit_are_refused(change: Change) -> None:
    refused(edit(saved("rbf_svm"), change))


@pytest.mark.parametrize(
    "change",
    [
        with_array("head.labels", lambda a: a + 10**6),
        with_array("head.labels", lambda a: a + 1),
        with_array("head.labels", lambda a: a - 1),
        with_array("head.labels", lambda a: a.astype(np.float64)),
        with_array("head.features", lambda a: a.astype(np.int64)),
        with_params(n_neighbors=61),
        with_params(n_neighbors=0),
        with_params(n_neighbors=2.0),
        with_params(metric="haversine"),
        with_params(metric="precomputed"),
        with_params(weights="evil"),
        with_params(weights="temperature"),
        with_params(weights="temperature", temperature=0.0),
        with_params(temperature=1.0),
    ],
)
def test_neighbours_that_do_not_fit_are_refused(change: Change) -> None:
    refused(edit(saved("knn"), change))


# safetensors ---------------------------------------------------------------------------------------------


def tensors(entries: dict[str, Any], data: bytes, length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: Any = (1,), offsets: Any = (0, 4), dtype: Any = "F32", **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


@pytest.mark.parametrize(
    "data",
    [
        tensors({"a": entry([1000])}, bytes(4)),
        tensors({"a": entry([2**62, 4], [0, 0])}, b""),
        tensors({"a": entry([0, 2**62], [0, 0])}, b""),
        tensors({"a": entry()}, bytes(2)),
        tensors({"a": entry()}, bytes(400)),
        tensors({"a": entry(offsets=[100, 104])}, bytes(104)),
        tensors({"a": entry(offsets=[-4, 0])}, bytes(4)),
        tensors({"a": entry(offsets=[0, 4.0])}, bytes(4)),
        tensors({"a": entry(offsets=[0])}, bytes(4)),
        tensors({"a": entry(offsets=[4, 0])}, bytes(4)),
        tensors({"a": entry(offsets=None)}, bytes(4)),
        tensors({"a": entry([-1])}, bytes(4)),
        tensors({"a": entry([True])}, bytes(4)),
        tensors({"a": entry([1] * 100)}, bytes(4)),
        tensors({"a": entry(1)}, bytes(4)),
        tensors({"a": entry(dtype="EVIL")}, bytes(4)),
        tensors({"a": entry(dtype=["F32"])}, bytes(4)),
        tensors({"a": entry(dtype="BF16", offsets=[0, 2])}, bytes(2)),
        tensors({"a": entry(evil=1)}, bytes(4)),
        tensors({"a": entry()}, bytes(4), length=2**40),
        tensors({"a": entry()}, bytes(4), length=2**64 - 1),
        tensors({"a": entry()}, bytes(4), length=3),
        tensors({"b": entry()}, bytes(4)),
        tensors({name: entry() for name in "ab"}, bytes(4)),
        tensors({"a": entry(), "__metadata__": {"a": "b"}}, bytes(4)),
        tensors({"a": entry(), " " * 70_000: entry(offsets=[4, 8])}, bytes(8)),
        tensors({"a": []}, b""),
        tensors({}, b""),
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 60_000) + b"[" * 60_000,
        b"\x80\x04N.",
        b"",
    ],
)
def test_safetensors_that_lie_are_refused(data: bytes) -> None:
    with pytest.raises(ModelFileError, match=r"evil\.featx"):
        load_arrays(data, {"a": (None,)}, where="evil.featx")


def test_an_array_at_an_odd_place_is_read_whole() -> None:
    data = tensors(
        {"a": entry(dtype="U8", offsets=[0, 1]), "b": entry([2], [1, 17], "F64")}, bytes(1) + bytes(16)
    )
    assert read_arrays(data)["b"].flags.aligned


def test_an_array_of_another_shape_than_expected_is_refused() -> None:
    data = dump_arrays({"a": np.zeros((3, 2))})
    with pytest.raises(ModelFileError, match=r"array 'a' has shape \(3, 2\), expected \(None, 5\)"):
        load_arrays(data, {"a": (None, 5)})
