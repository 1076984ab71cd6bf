"""Crafted heads and arrays are refused, and nothing in them runs: every weapon here was seen to be loaded."""

from __future__ import annotations

import functools
import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from hypothesis import given, settings
from hypothesis import strategies as st

from featx.exceptions import ModelFileError
from featx.files import pack_members, unpack_members
from featx.heads import HEADS, make_pipeline
from featx.modelfile import MAX_ARRAYS, dump_arrays, dump_estimator, load_arrays, load_estimator

ROWS = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Node = dict[str, Any]
Arrays = dict[str, bytes]


SMALL = {"boosting": {"max_iter": 2}, "forest": {"n_estimators": 3}}


@functools.cache
def head(name: str, n_classes: int = 3, **changes: Any) -> bytes:
    params = {**HEADS[name].grid[0], **changes}
    pipeline = make_pipeline(name, params, "none", (4,), n_rows=60, random_state=0)
    return dump_estimator(pipeline.fit(ROWS, np.arange(60) % n_classes))


@pytest.fixture(scope="module")
def logistic() -> bytes:
    return head("logistic")


def edit(data: bytes, change: Callable[[Node, Arrays], None]) -> bytes:
    """The same head after a change of its schema or arrays, packed as a sound zip."""
    arrays = unpack_members(data, where="x", max_members=MAX_ARRAYS)
    schema = json.loads(arrays.pop("schema.json"))
    change(schema, arrays)
    text = json.dumps(schema).encode()
    return pack_members({"schema.json": text, **arrays}, where="x", max_members=MAX_ARRAYS)


def refused(data: bytes) -> str:
    with pytest.raises(ModelFileError) as caught:
        load_estimator(data, where="evil.featx: head.skops")
    assert "evil.featx: head.skops" in str(caught.value)
    return str(caught.value)


def node(kind: str, loader: str, **fields: Any) -> Node:
    module, _, name = kind.rpartition(".")
    return {"__class__": name, "__module__": module, "__loader__": loader, **fields}


def json_node(value: Any) -> Node:
    return node("builtins.str", "JsonNode", content=json.dumps(value), is_json=True)


def tuple_node(*nodes: Node) -> Node:
    return node("builtins.tuple", "TupleNode", content=list(nodes))


def type_node(kind: str = "builtins.str") -> Node:
    return node(kind, "TypeNode")


def dict_node(content: dict[str, Node], key_type: Node | None = None) -> Node:
    types = node("builtins.list", "ListNode", content=[key_type or type_node() for _ in content])
    return node("builtins.dict", "DictNode", content=content, key_types=types)


def objects(schema: Node) -> Iterator[Node]:
    """Every node of a schema."""
    waiting: list[Any] = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "__loader__" in value:
                yield value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def first(schema: Node, cls: str) -> Node:
    return next(found for found in objects(schema) if found["__class__"] == cls and "content" in found)


def attributes(schema: Node, cls: str) -> dict[str, Node]:
    """Attributes of the first object of a class, wherever it is in the schema."""
    content: dict[str, Node] = first(schema, cls)["content"]["content"]
    return content


def plant(owner: Node, planted: Node, name: str = "planted") -> None:
    """Make a node an attribute of an object, so that making the object makes it."""
    owner["content"]["content"][name] = planted
    owner["content"]["key_types"]["content"].append(type_node())


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def replace_array(
    cls: str, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> Callable[[Node, Arrays], None]:
    """Change an array of the first object of a class; one that others share stays theirs."""

    def edit_schema(schema: Node, arrays: Arrays) -> None:
        owner = attributes(schema, cls)[name]
        array = np.load(io.BytesIO(arrays[owner["file"]]))
        owner["file"] = f"{len(arrays)}.npy"
        arrays[owner["file"]] = npy(np.ascontiguousarray(change(array)))
        text = json.dumps(schema)
        for unread in [file for file in arrays if f'"{file}"' not in text]:
            del arrays[unread]

    return edit_schema


def set_field(field: str, value: int) -> Callable[[np.ndarray], np.ndarray]:
    """Change a field of the first record."""

    def change(records: np.ndarray) -> np.ndarray:
        changed = records.copy()
        changed[field][0] = value
        return changed

    return change


# Types off the list --------------------------------------------------------------------------------------


def weapons(canary: Path) -> dict[str, Node]:
    """Nodes that would make the folder `canary`, or hold what could."""
    path = tuple_node(json_node(str(canary)))
    function = node("posix.mkdir", "FunctionNode")
    parts = {"func": function, "args": path, "kwds": dict_node({}), "namespace": json_node(None)}
    return {
        "constructor": node("posix.mkdir", "ConstructorFromReduceNode", content=path),
        "loss": node("posix.mkdir", "LossNode", content=dict_node({}), __reduce__={"args": path}),
        "dict key": dict_node({str(canary): json_node(0)}, type_node("posix.mkdir")),
        "module": node("planted_module.Evil", "ObjectNode"),
        "function": function,
        "partial": node("functools.partial", "PartialNode", content=parts),
        "method caller": node(
            "operator.methodcaller", "OperatorFuncNode", attrs=tuple_node(json_node("mkdir"))
        ),
    }


RUNS_WHEN_LOADED = ("constructor", "loss", "dict key", "module")


@pytest.mark.parametrize("weapon", list(weapons(Path("x"))))
def test_a_type_off_the_list_is_refused_and_nothing_runs(
    logistic: bytes, weapon: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "canary"
    (tmp_path / "planted_module.py").write_text(
        f"import os\nos.mkdir({str(canary)!r})\nclass Evil:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = edit(logistic, lambda schema, arrays: plant(schema, weapons(canary)[weapon]))
    assert "no head of featx is made of" in refused(data)
    assert not canary.exists()
    if weapon in RUNS_WHEN_LOADED:  # the weapon is real: trusted, it goes off
        skops.io.loads(data, trusted=skops.io.get_untrusted_types(data=data))
        assert canary.exists()


@pytest.mark.parametrize(
    ("kind", "loader"),
    [
        ("sklearn.linear_model._stochastic_gradient.SGDClassifier", "ObjectNode"),
        ("sklearn.compose._target.TransformedTargetRegressor", "ObjectNode"),
        ("posix.system", "NdArrayNode"),
        ("posix.system", "ListNode"),
        ("builtins.eval", "TupleNode"),
        ("collections.OrderedDict", "DictNode"),
        ("builtins.eval", "TypeNode"),
        ("builtins.object", "TypeNode"),
        ("sklearn.svm._classes.SVC", "TypeNode"),
        ("builtins.set", "SetNode"),
        ("builtins.bytes", "BytesNode"),
        ("numpy.random._generator.Generator", "RandomGeneratorNode"),
        ("scipy.sparse._csr.csr_matrix", "SparseMatrixNode"),
        ("builtins.str", "CachedNode"),
        ("builtins.str", "NoSuchNode"),
        ("builtins.list", ["ListNode"]),
    ],
)
def test_a_node_or_type_that_no_head_needs_is_refused(logistic: bytes, kind: str, loader: Any) -> None:
    planted = node(kind, loader, content=[], type="numpy", file="0.npy")
    refused(edit(logistic, lambda schema, arrays: plant(schema, planted)))


def test_shared_nodes_that_unfold_without_end_are_refused(logistic: bytes) -> None:
    """Skops visits a node once for each path to it: 60 levels of two references are 2**60 visits."""

    def change(schema: Node, arrays: Arrays) -> None:
        plant(schema, {**tuple_node(), "__id__": 1000}, "level0")
        for level in range(1, 60):
            reference = {**tuple_node(), "__id__": 1000 + level - 1}
            plant(schema, {**tuple_node(reference, dict(reference)), "__id__": 1000 + level}, f"level{level}")

    assert "['__id__']" in refused(edit(logistic, change))


def test_nodes_nested_too_deeply_are_refused(logistic: bytes) -> None:
    def change(schema: Node, arrays: Arrays) -> None:
        planted = json_node(0)
        for _ in range(420):
            planted = tuple_node(planted)
        plant(schema, planted)

    refused(edit(logistic, change))


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{}", b"[" * 100_000, b'{"protocol": 2}', b"\xff"])
def test_a_schema_that_is_none_is_refused(logistic: bytes, text: bytes) -> None:
    members = unpack_members(logistic, where="x")
    refused(pack_members({**members, "schema.json": text}, where="x"))


@pytest.mark.parametrize("protocol", [-1, 0, 1, 99, True, "2", None])
def test_a_protocol_that_featx_never_wrote_is_refused(logistic: bytes, protocol: Any) -> None:
    refused(edit(logistic, lambda schema, arrays: schema.update(protocol=protocol)))


@pytest.mark.parametrize("root", [json_node([1, 2]), tuple_node(), dict_node({})])
def test_what_is_no_estimator_is_refused(root: Node) -> None:
    text = json.dumps({**root, "protocol": 2}).encode()
    refused(pack_members({"schema.json": text}, where="x"))


# Attributes ----------------------------------------------------------------------------------------------


def set_value(cls: str, name: str, value: Any) -> Callable[[Node, Arrays], None]:
    def change(schema: Node, arrays: Arrays) -> None:
        if name in attributes(schema, cls):
            attributes(schema, cls)[name] = json_node(value)
        else:
            plant(first(schema, cls), json_node(value), name)

    return change


@pytest.mark.parametrize("name", ["predict", "decision_function", "classes", "__class__", "_impl"])
def test_an_attribute_that_replaces_its_class_own_is_refused(name: str) -> None:
    data = edit(head("rbf_svm"), set_value("SVC", name, "nu_svc"))
    if name == "classes":  # the class has no such thing, so it is a mere attribute
        load_estimator(data)
    else:
        assert f"replaces its own {name}" in refused(data)


def test_a_folder_to_cache_in_is_refused(logistic: bytes) -> None:
    """Such a pipeline would read pickles from that folder when it is fitted again."""
    assert "names a folder to cache in" in refused(edit(logistic, set_value("Pipeline", "memory", "/tmp")))


def test_a_function_to_transform_with_is_refused(logistic: bytes) -> None:
    def change(schema: Node, arrays: Arrays) -> None:
        attributes(schema, "FunctionTransformer")["func"] = type_node()

    assert "names a function" in refused(edit(logistic, change))


def test_a_slice_of_anything_but_whole_numbers_is_refused(logistic: bytes) -> None:
    planted = node("builtins.slice", "SliceNode", content={"start": 0, "stop": "9", "step": None})
    assert "slice" in refused(edit(logistic, lambda schema, arrays: plant(schema, planted)))


# Values that native code would follow --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("left_child", 10**9, "points astray"),
        ("left_child", 0, "points astray"),  # a cycle: predicting would never end
        ("right_child", 0, "points astray"),
        ("right_child", -2, "points astray"),
        ("right_child", -1, "points astray"),
        ("left_child", -(2**62), "points astray"),
        ("feature", 4, "a feature that rows do not have"),
        ("feature", -2, "a feature that rows do not have"),
        ("feature", 2**62, "a feature that rows do not have"),
    ],
)
@pytest.mark.parametrize("kind", ["tree", "forest"])
def test_a_tree_that_leads_astray_is_refused(kind: str, field: str, value: int, message: str) -> None:
    data = head(kind, **SMALL.get(kind, {}))
    assert message in refused(edit(data, replace_array("Tree", "nodes", set_field(field, value))))


def test_a_tree_that_claims_more_nodes_than_it_has_keeps_to_its_array() -> None:
    data = edit(head("tree"), set_value("Tree", "node_count", 10**7))
    tree = load_estimator(data).named_steps["head"].tree_
    assert tree.node_count == tree.capacity < 100


@pytest.mark.parametrize("count", [1, 0, -1, 10**30, "7", None])
def test_a_tree_that_miscounts_its_nodes_is_refused(count: Any) -> None:
    refused(edit(head("tree"), set_value("Tree", "node_count", count)))


@pytest.mark.parametrize(("position", "value"), [(0, 10**6), (0, 2), (2, 2), (2, 0), (2, -1), (2, 10**9)])
def test_a_tree_made_for_other_columns_or_outputs_is_refused(position: int, value: int) -> None:
    def change(schema: Node, arrays: Arrays) -> None:
        first(schema, "Tree")["__reduce__"]["args"]["content"][position] = json_node(value)

    refused(edit(head("tree"), change))


def test_a_tree_whose_values_are_short_is_refused() -> None:
    refused(edit(head("tree"), replace_array("Tree", "values", lambda values: values[:1])))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("left", 10**9, "points astray"),
        ("left", 0, "points astray"),
        ("right", 2**32 - 1, "points astray"),
        ("feature_idx", 64, "a feature that rows do not have"),
        ("feature_idx", -1, "a feature that rows do not have"),
        ("is_categorical", 1, "categories"),
    ],
)
def test_a_boosted_tree_that_leads_astray_is_refused(field: str, value: int, message: str) -> None:
    change = replace_array("TreePredictor", "nodes", set_field(field, value))
    assert message in refused(edit(head("boosting", **SMALL["boosting"]), change))


@pytest.mark.parametrize(
    "change", [lambda nodes: nodes[:0], lambda nodes: nodes.view(np.uint8), lambda nodes: nodes[None]]
)
def test_boosted_nodes_of_another_form_are_refused(change: Callable[[np.ndarray], np.ndarray]) -> None:
    refused(edit(head("boosting", **SMALL["boosting"]), replace_array("TreePredictor", "nodes", change)))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("_n_support", lambda a: a + 1000),
        ("_n_support", lambda a: a * 0),
        ("_n_support", lambda a: a[:1]),
        ("_dual_coef_", lambda a: a[:, :1]),
        ("_dual_coef_", lambda a: a[:1]),
        ("_intercept_", lambda a: a[:1]),
        ("support_vectors_", lambda a: a[:, :2]),
        ("support_vectors_", lambda a: a[:2]),
        ("support_", lambda a: a[:2]),
        ("_probA", lambda a: np.ones(1)),
        ("classes_", lambda a: a[:1]),
    ],
)
def test_support_vectors_that_do_not_fit_are_refused(
    name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    refused(edit(head("rbf_svm"), replace_array("SVC", name, change)))


@pytest.mark.parametrize(
    ("name", "value"),
    [("kernel", "precomputed"), ("kernel", None), ("_sparse", True), ("n_features_in_", 400)],
)
def test_an_svm_of_another_kind_is_refused(name: str, value: Any) -> None:
    refused(edit(head("rbf_svm"), set_value("SVC", name, value)))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("_y", lambda a: a + 10**6),
        ("_y", lambda a: a - 10),
        ("_y", lambda a: a[:3]),
        ("_y", lambda a: a.astype(float)),
        ("_fit_X", lambda a: a[:, :2]),
        ("_fit_X", lambda a: a[:3]),
        ("_fit_X", lambda a: a.astype(np.int64)),
        ("classes_", lambda a: a[:1]),
    ],
)
def test_neighbours_that_do_not_fit_are_refused(
    name: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    refused(edit(head("knn"), replace_array("KNeighborsClassifier", name, change)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("algorithm", "kd_tree"),
        ("_fit_method", "ball_tree"),
        ("metric", "haversine"),
        ("effective_metric_", "precomputed"),
        ("weights", "evil"),
        ("_tree", [1]),
    ],
)
def test_neighbours_searched_another_way_are_refused(name: str, value: Any) -> None:
    refused(edit(head("knn"), set_value("KNeighborsClassifier", name, value)))


def test_mean_rows_that_do_not_fit_are_refused() -> None:
    data = edit(head("nearest_mean"), replace_array("NearestCentroid", "centroids_", lambda a: a[:, :2]))
    assert "mean rows do not fit" in refused(data)


@pytest.mark.parametrize("kind", ["tree", "rbf_svm", "knn", "nearest_mean", "boosting"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_head_with_any_array_mutated_is_refused_or_does_not_crash(kind: str, data: st.DataObject) -> None:
    """A crash would end this process: native code would have followed an index that nobody checked."""

    def change(schema: Node, arrays: Arrays) -> None:
        name = data.draw(st.sampled_from(sorted(arrays)))
        array = np.load(io.BytesIO(arrays[name]))
        if array.size == 0:
            return
        raw = bytearray(array.tobytes())
        for _ in range(data.draw(st.integers(1, 4))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.sampled_from([0, 1, 127, 128, 255]))
        mutated = np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)
        arrays[name] = npy(mutated[: data.draw(st.integers(0, len(mutated)))] if mutated.ndim else mutated)

    try:
        pipeline = load_estimator(edit(head(kind, **SMALL.get(kind, {})), change))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline.predict(ROWS)
    except Exception:  # refused here, or by scikit-learn's own checks
        pass


# Arrays --------------------------------------------------------------------------------------------------


def header(shape: str, descr: str = "'<f8'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (63 - (10 + len(text)) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    "data",
    [
        header("(1000000000000,)") + bytes(8),
        header("(2, 9223372036854775807)") + bytes(16),
        header("(4611686018427387904, 4)") + bytes(8),  # the product overflows 64 bits to 0
        header("(-1,)") + bytes(8),
        header("(1,)") + bytes(16),
        header("(3,)") + bytes(8),
        header("(1,)", "'|O'") + b"\x80\x04N.",
        header("(1,)", "[('a', '|O')]") + bytes(8),
        header("(1,)", "'<M8[s]'") + bytes(8),
        header("__import__('os').mkdir('canary')") + bytes(8),
        header("(" * 3000) + bytes(8),
        b"\x93NUMPY\x01\x00\xff\xff",
        b"\x93NUMPY\x09\x00\x00\x00",
        b"\x80\x04N.",
        b"PK\x03\x04",
        b"",
    ],
)
def test_an_array_whose_header_lies_is_refused(
    logistic: bytes, data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(edit(logistic, lambda schema, arrays: arrays.update({"0.npy": data})))
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "name", ["../x.npy", "x.npy", "0.npz", "evil.pkl", "/0.npy", "999999.npy", "0.npy\n"]
)
def test_a_member_of_another_name_is_refused(logistic: bytes, name: str) -> None:
    refused(edit(logistic, lambda schema, arrays: arrays.update({name: npy(np.zeros(1))})))


def test_an_array_that_nothing_refers_to_is_refused(logistic: bytes) -> None:
    data = edit(logistic, lambda schema, arrays: arrays.update({"64000.npy": npy(np.zeros(1))}))
    assert "nothing refers to" in refused(data)


def test_an_array_that_is_missing_is_refused(logistic: bytes) -> None:
    def change(schema: Node, arrays: Arrays) -> None:
        del arrays["0.npy"]

    assert "is missing" in refused(edit(logistic, change))


def test_skops_own_compressed_file_is_refused(logistic: bytes) -> None:
    raw = skops.io.dumps(load_estimator(logistic), compression=zipfile.ZIP_DEFLATED)
    refused(raw)


# safetensors ---------------------------------------------------------------------------------------------


def tensors(entries: dict[str, Any], data: bytes, length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    "data",
    [
        tensors({"a": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4]}}, bytes(4)),
        tensors({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}}, b""),
        tensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(2)),
        tensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(400)),
        tensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [100, 104]}}, bytes(104)),
        tensors({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        tensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
        tensors({"a": {"dtype": "EVIL", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        tensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4), length=2**40),
        tensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4), length=3),
        tensors({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}, bytes(2)),
        tensors({"b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        tensors({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, bytes(4)),
        tensors({}, b""),
        b"\x80\x04N.",
        b"",
    ],
)  # fmt: skip
def test_safetensors_that_lie_are_refused(data: bytes) -> None:
    with pytest.raises(ModelFileError, match=r"evil\.featx"):
        load_arrays(data, {"a": (None,)}, where="evil.featx")


def test_an_array_of_another_shape_than_expected_is_refused() -> None:
    data = dump_arrays({"a": np.zeros((3, 2))})
    with pytest.raises(ModelFileError, match=r"array 'a' has shape \(3, 2\), expected \(None, 5\)"):
        load_arrays(data, {"a": (None, 5)})
