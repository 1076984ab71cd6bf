"""A fitted head and arrays as bytes that can be read back without trusting who wrote them.

skops stores an estimator as JSON and arrays instead of a pickle, but by itself accepts any of hundreds of
scikit-learn's types, and checks types only, not values. So its JSON is held here against a short literal
list before skops sees it, and what native code would index into without looking (trees, support vectors,
neighbours' labels) is checked afterwards, before anything can predict.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import io
import json
import math
import re
import sys
import time
import typing
import zipfile
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType, NoneType, UnionType
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import ModelFileError
from featx.files import pack_members, read_json, unpack_members

SCHEMA = "schema.json"
SCHEMA_BYTES = 256 * 2**20
"""Cap on skops' JSON: boosting of 200 rounds on 100 classes needs 60 MB."""

MAX_ARRAYS = 65_000
"""Cap on the arrays of a head; a zip without zip64 counts to 65,535."""

MIN_PROTOCOL = 2
"""Oldest protocol of skops that featx has ever written."""

ARRAY_NAME = re.compile(r"[0-9]{1,5}\.npy")

ESTIMATORS = frozenset(
    {
        "featx.heads.ExponentialWeights",
        "sklearn._loss.link.Interval",
        "sklearn._loss.link.LogitLink",
        "sklearn._loss.link.MultinomialLogit",
        "sklearn._loss.loss.HalfBinomialLoss",
        "sklearn._loss.loss.HalfMultinomialLoss",
        "sklearn.compose._column_transformer.ColumnTransformer",
        "sklearn.decomposition._pca.PCA",
        "sklearn.discriminant_analysis.LinearDiscriminantAnalysis",
        "sklearn.ensemble._forest.RandomForestClassifier",
        "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
        "sklearn.ensemble._hist_gradient_boosting.gradient_boosting.HistGradientBoostingClassifier",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.linear_model._logistic.LogisticRegression",
        "sklearn.linear_model._ridge.RidgeClassifier",
        "sklearn.multiclass.OneVsRestClassifier",
        "sklearn.neighbors._classification.KNeighborsClassifier",
        "sklearn.neighbors._nearest_centroid.NearestCentroid",
        "sklearn.pipeline.Pipeline",
        "sklearn.preprocessing._data.Normalizer",
        "sklearn.preprocessing._data.StandardScaler",
        "sklearn.preprocessing._function_transformer.FunctionTransformer",
        "sklearn.preprocessing._label.LabelBinarizer",
        "sklearn.preprocessing._label.LabelEncoder",
        "sklearn.svm._classes.LinearSVC",
        "sklearn.svm._classes.SVC",
        "sklearn.tree._classes.DecisionTreeClassifier",
    }
)
"""Objects that a head may be made of."""

NODES: dict[str, frozenset[str]] = {
    "DictNode": frozenset({"builtins.dict"}),
    "ListNode": frozenset({"builtins.list"}),
    "TupleNode": frozenset({"builtins.tuple"}),
    "JsonNode": frozenset({"builtins.str"}),
    "SliceNode": frozenset({"builtins.slice"}),
    "TypeNode": frozenset({"builtins.str", "builtins.int", "builtins.float", "builtins.bool"}),
    "NdArrayNode": frozenset(
        f"numpy.{name}"
        for name in ("ndarray", "bool", "str_", "int32", "int64", "uint8", "uint64", "float32", "float64")
    ),
    "ObjectNode": ESTIMATORS,
    "TreeNode": frozenset({"sklearn.tree._tree.Tree"}),
    "LossNode": frozenset(
        {"sklearn._loss._loss.CyHalfBinomialLoss", "sklearn._loss._loss.CyHalfMultinomialLoss"}
    ),
}
"""skops' kinds of node with the types that each may make. No function, method or constructor is here."""

FIELDS = {
    "DictNode": {"content", "key_types"},
    "JsonNode": {"content", "is_json"},
    "TypeNode": set(),
    "NdArrayNode": {"type", "file", "content", "shape"},
    "TreeNode": {"content", "__reduce__"},
    "LossNode": {"content", "__reduce__"},
}
"""What a node holds beside its type; ``content`` alone where it is not listed."""

LONG = 32
"""Lists of columns from so many on are stored as arrays."""

OLDEST_TIME = 315_619_200
"""Seconds since the epoch: 2 January 1980 UTC, 1 January wherever one is (zip's first day)."""

Node = dict[str, Any]


def dump_estimator(estimator: Any) -> bytes:
    """Bytes of a fitted scikit-learn pipeline, without pickle; equal pipelines give equal bytes.

    skops' addresses in memory are left out, equal arrays are stored once, long lists of columns are stored as
    arrays, and random generators, which only fitting uses, are dropped.

    Raises
    ------
    ModelFileError
        If it is made of a type that `load_estimator` would refuse.
    """
    if time.time() < OLDEST_TIME:
        raise ModelFileError(
            "this head cannot be saved while the machine's clock stands before 1980, which the format of "
            "archives does not know. Set the clock."
        )
    try:
        raw = _skops().dumps(_with_arrays(estimator))
    except Exception as error:  # skops has many kinds for what it cannot store
        raise ModelFileError(f"this head cannot be saved without pickle: {error}") from error
    with zipfile.ZipFile(io.BytesIO(raw)) as source:
        schema = json.loads(source.read(SCHEMA))
        names: dict[bytes, str] = {}
        for node in _walk(schema):
            node.pop("__id__", None)
            if "file" in node:
                data = _without_padding(source.read(node["file"]))
                node["file"] = names.setdefault(data, f"{len(names)}.npy")
    arrays = {name: data for data, name in names.items()}
    text = json.dumps(schema, separators=(",", ":")).encode()
    _check_schema(schema, arrays, "this head")
    return pack_members({SCHEMA: text, **arrays}, where="this head", max_members=MAX_ARRAYS)


def _with_arrays(value: Any) -> Any:
    """The same, with long lists of whole numbers as arrays: skops makes an object of every item of a list.

    A `ColumnTransformer` lists its columns several times over; thousands of them took seconds to read.
    """
    if isinstance(value, dict):
        return {name: _with_arrays(item) for name, item in value.items()}
    if isinstance(value, list) and len(value) >= LONG and all(type(item) is int for item in value):
        return np.array(value, np.int64)
    if type(value) in (list, tuple):
        return type(value)(_with_arrays(item) for item in value)
    if _full_name(value).endswith((".Pipeline", ".ColumnTransformer")):
        slim = copy.copy(value)
        vars(slim).update({name: _with_arrays(item) for name, item in vars(value).items()})
        return slim
    return value


def load_estimator(data: bytes, *, where: str = "head") -> Any:
    """Read what `dump_estimator` wrote, as a hostile file.

    Parameters
    ----------
    data : bytes
        The bytes.
    where : str
        Name of the file and member, for messages.

    Returns
    -------
    estimator
        Fitted, with `n_jobs` reset: how many threads to use is this machine's matter.

    Raises
    ------
    ModelFileError
        If a type is not on the list, or a value could lead native code astray. No code of the file has
        run, since it holds none: types are looked up by name in the list before anything is imported.
    """
    members = unpack_members(data, where=where, max_members=MAX_ARRAYS)
    text = members.pop(SCHEMA, b"")
    if len(text) > SCHEMA_BYTES:
        raise ModelFileError(f"{where}: its {SCHEMA} has {len(text):,} bytes; at most {SCHEMA_BYTES:,}.")
    _check_schema(read_json(text, where=f"{where}: {SCHEMA}"), members, where)
    try:
        estimator = _skops().loads(data, trusted=sorted(frozenset().union(*NODES.values())))
        _check_values(estimator)
    except ModelFileError as error:
        raise ModelFileError(f"{where}: {error}") from None
    except Exception as error:  # whatever a crafted value makes of scikit-learn's own checks
        reason = f"{type(error).__name__}: {error}"
        raise ModelFileError(f"{where}: its values make no estimator ({reason[:200]}).") from error
    return estimator


def dump_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Bytes of named numeric arrays, as safetensors."""
    from safetensors.numpy import save

    return bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def load_arrays(
    data: bytes, shapes: Mapping[str, tuple[int | None, ...]], *, where: str = "arrays"
) -> dict[str, NDArray[Any]]:
    """Read what `dump_arrays` wrote: exactly the named arrays, each of its shape.

    Parameters
    ----------
    data : bytes
        The bytes.
    shapes : mapping of str to tuple
        Shapes by name; None stands for any length.
    where : str
        Name of the file and member, for messages.

    Raises
    ------
    ModelFileError
        If the header lies about the data, or names and shapes are others.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays: dict[str, NDArray[Any]] = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise ModelFileError(f"{where}: is no sound safetensors data ({error}).") from None
    if set(arrays) != set(shapes):
        odd = ", ".join(map(ascii, sorted(set(arrays) ^ set(shapes))[:10]))
        raise ModelFileError(f"{where}: its arrays are not the expected ones; they differ in {odd}.")
    for name, wanted in shapes.items():
        found = arrays[name].shape
        fits = len(found) == len(wanted) and all(w in (None, f) for f, w in zip(found, wanted, strict=True))
        if not fits:
            raise ModelFileError(f"{where}: array {name!r} has shape {found}, expected {wanted}.")
    return arrays


def check_fields(record: Any) -> None:
    """Hold every field of a dataclass that was read from a file against its annotation.

    Numbers must be finite: neither Infinity nor NaN is JSON, though Python reads them. A field that is
    annotated otherwise than with Python's plain types, tuples, dicts and dataclasses is left alone.

    Raises
    ------
    TypeError
        Naming the field.
    """
    for name, wanted in typing.get_type_hints(type(record)).items():
        if not _fits(value := getattr(record, name), wanted):
            raise TypeError(f"{type(record).__name__}.{name} is {value!r:.60}, not of type {wanted}")


def _fits(value: Any, wanted: Any) -> bool:
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(key, arguments[0]) and _fits(one, arguments[1]) for key, one in value.items()
        )
    if dataclasses.is_dataclass(wanted):
        if not isinstance(value, wanted):  # type: ignore[arg-type]
            return False
        check_fields(value)
        return True
    if wanted in (int, float):
        number = isinstance(value, int | wanted) and not isinstance(value, bool)
        return number and -(2**63) <= value < 2**63 and math.isfinite(value)
    return isinstance(value, wanted) if wanted in (str, bool, NoneType) else True


def _skops() -> Any:
    """Import skops without torch.

    It asks scikit-learn for all estimators, which imports every package below `sklearn`, and one of these
    adapts torch: two seconds more. An empty module in its place for that moment is left alone.
    """
    adapter = "sklearn.externals.array_api_compat.torch"
    if adapter in sys.modules or "skops.io" in sys.modules:
        return importlib.import_module("skops.io")
    sys.modules[adapter] = ModuleType(adapter)
    try:
        return importlib.import_module("skops.io")
    finally:
        del sys.modules[adapter]


def _without_padding(data: bytes) -> bytes:
    """The same array, with zeros between the fields of a record where memory held whatever it held."""
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if array.dtype.names is None:
        return data
    clean = np.zeros(array.shape, array.dtype)  # zeros_like copies a zero field by field, and no padding
    for name in array.dtype.names:
        clean[name] = array[name]
    buffer = io.BytesIO()
    np.save(buffer, clean, allow_pickle=False)
    return buffer.getvalue()


def _walk(root: Node) -> Iterator[Node]:
    """Every node of a dump of our own, parents first; generators become null on the way."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node["__loader__"] in ("RandomGeneratorNode", "RandomStateNode"):
            node.clear()
            node.update(
                __class__="str", __module__="builtins", __loader__="JsonNode", content="null", is_json=True
            )
        yield node
        waiting += reversed(_children(node))


def _children(node: Node) -> list[Node]:
    """The nodes right below one, by what skops reads of each kind."""
    content = node.get("content")
    match node["__loader__"]:
        case "DictNode":
            return [node["key_types"], *content.values()]  # type: ignore[union-attr]
        case "ListNode" | "TupleNode":
            return list(content)  # type: ignore[arg-type]
        case "NdArrayNode" if node["type"] == "json":
            return [*content, node["shape"]]  # type: ignore[misc]
        case "TreeNode" | "LossNode":
            return [content, node["__reduce__"]["args"]]  # type: ignore[list-item]
        case "ObjectNode":
            return [content] if content is not None else []
    return []


def _check_schema(schema: Any, arrays: Mapping[str, bytes], where: str) -> None:
    """Hold skops' JSON against the list: types, fields, arrays. Nothing is imported or made here."""
    unread = set(arrays)
    for name, data in arrays.items():
        if not ARRAY_NAME.fullmatch(name):
            raise ModelFileError(f"{where}: member {name[:80]!a} has no place in a head.")
        _check_npy(data, f"{where}: {name}")
    try:
        if schema.pop("protocol") < MIN_PROTOCOL or schema["__loader__"] != "ObjectNode":
            raise ModelFileError(f"{where}: is not a head, or of an unknown protocol.")
        schema.pop("_skops_version", None)
        waiting = [schema]
        while waiting:
            node = waiting.pop()
            _check_node(node, where)
            if node["__loader__"] == "NdArrayNode" and node["type"] == "numpy":
                unread.discard(node["file"])
                if node["file"] not in arrays:
                    raise ModelFileError(f"{where}: array {str(node['file'])[:80]!a} is missing.")
            waiting += _children(node)
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelFileError(f"{where}: its {SCHEMA} is not as featx writes it ({error!r:.100}).") from None
    if unread:
        raise ModelFileError(f"{where}: holds arrays that nothing refers to: {sorted(unread)[:10]}.")


def _check_node(node: Node, where: str) -> None:
    loader, kind = node["__loader__"], f"{node['__module__']}.{node['__class__']}"
    if kind not in NODES.get(loader, ()):
        raise ModelFileError(
            f"{where}: holds a {kind[:80]!a} ({str(loader)[:40]}), which no head of featx is made of. It was "
            "not opened; if the file came from someone else, do not trust it."
        )
    extra = set(node) - {"__class__", "__module__", "__loader__"} - FIELDS.get(loader, {"content"})
    if extra:
        raise ModelFileError(
            f"{where}: a {loader} holds the fields {sorted(extra)[:5]}, which featx never writes."
        )
    if loader == "SliceNode" and not all(
        value is None or type(value) is int for value in node["content"].values()
    ):
        raise ModelFileError(f"{where}: a slice is not of whole numbers.")
    if loader == "TreeNode":  # the constructor's (n_features, n_classes, n_outputs)
        arguments = _children(node)[1]["content"]
        if len(arguments) != 3 or arguments[2].get("content") != "1":
            raise ModelFileError(f"{where}: a tree has not one output.")


def _check_npy(data: bytes, where: str) -> None:
    """Hold an array's header against its bytes: NumPy allocates what the header claims before reading."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(file)
    except Exception as error:  # NumPy parses the header as Python text, with many ways to fail
        raise ModelFileError(f"{where}: is no array ({str(error)[:80]!a}).") from None
    if dtype.hasobject or dtype.kind not in "biufUV":
        raise ModelFileError(f"{where}: holds {dtype}, not numbers or text.")
    count = 1
    for length in shape:  # in Python's integers, which do not overflow
        count *= length
    if any(length < 0 for length in shape) or count * dtype.itemsize != len(data) - file.tell():
        raise ModelFileError(
            f"{where}: its header claims shape {shape} of {dtype}, which is not what its bytes hold."
        )


# Values. Python and NumPy check themselves; native code does not, so what it indexes is checked here.


def _check_values(root: Any) -> None:
    from sklearn.base import BaseEstimator

    if not isinstance(root, BaseEstimator):
        raise ModelFileError(f"holds a {type(root).__name__}, not an estimator.")
    waiting: list[Any] = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
        elif _full_name(value) in ESTIMATORS:
            _check_attributes(value)
            CHECKS.get(type(value).__name__, _nothing)(value)
            waiting += vars(value).values()


def _check_attributes(value: Any) -> None:
    """Refuse an attribute that hides one of its class, such as a method; put thread counts back."""
    hidden = sorted(set(vars(value)) & set(dir(type(value))))
    if hidden:
        raise ModelFileError(
            f"a {type(value).__name__} replaces its own {', '.join(hidden[:5])}; it is hostile."
        )
    if "n_jobs" in vars(value):
        value.n_jobs = None


def _check_pipeline(pipeline: Any) -> None:
    _demand(pipeline.memory is None, "a pipeline names a folder to cache in")


def _check_function(transformer: Any) -> None:
    functions = (transformer.func, transformer.inverse_func)
    _demand(functions == (None, None), "a transformer names a function")


def _check_svc(svc: Any) -> None:
    """The library behind it walks support vectors and coefficients by the counts that it is given."""
    n_classes, n_vectors = len(svc.classes_), len(svc.support_vectors_)
    pairs = n_classes * (n_classes - 1) // 2
    counts = np.asarray(svc._n_support)
    _demand(svc.kernel in ("rbf", "linear") and not svc._sparse, "an SVM has an unknown kernel")
    _demand(
        svc.support_vectors_.shape == (n_vectors, svc.n_features_in_), "support vectors are of another width"
    )
    _demand(
        counts.shape == (n_classes,)
        and counts.min() >= 0
        and counts.sum() == n_vectors
        and svc.support_.shape == (n_vectors,)
        and svc._dual_coef_.shape == (n_classes - 1, n_vectors)
        and svc._intercept_.shape == (pairs,)
        and len(svc._probA) in (0, pairs)
        and len(svc._probB) == len(svc._probA),
        "an SVM's coefficients do not fit its support vectors",
    )


def _check_neighbours(knn: Any) -> None:
    """Neighbours' labels index the table of votes."""
    rows, labels = knn._fit_X, np.asarray(knn._y)
    _demand(
        knn.algorithm == knn._fit_method == "brute" and knn._tree is None,
        "neighbours are not searched by force",
    )
    _demand(
        {knn.metric, knn.effective_metric_} <= {"cosine", "euclidean"}, "neighbours have an unknown metric"
    )
    weights = knn.weights
    known = (
        weights in ("uniform", "distance") if isinstance(weights, str) else _full_name(weights) in ESTIMATORS
    )
    _demand(known, "neighbours have unknown weights")
    _demand(
        isinstance(rows, np.ndarray)
        and rows.dtype in (np.float32, np.float64)
        and rows.shape == (len(labels), knn.n_features_in_)
        and labels.ndim == 1
        and labels.dtype.kind in "iu"
        and (not len(labels) or 0 <= labels.min() <= labels.max() < len(knn.classes_)),
        "neighbours' rows and labels do not fit",
    )


def _check_centroids(nearest: Any) -> None:
    shape = (len(nearest.classes_), nearest.n_features_in_)
    _demand(nearest.centroids_.shape == shape, "mean rows do not fit")
    _demand(nearest.metric in ("euclidean", "manhattan"), "mean rows have an unknown metric")


def _check_decision_tree(estimator: Any) -> None:
    """scikit-learn follows children and reads features without looking at their range."""
    if "tree_" not in vars(estimator):
        return  # a forest keeps an unfitted one as its pattern, which predicts nothing
    tree = estimator.tree_
    _demand(_full_name(tree) == "sklearn.tree._tree.Tree", "a tree is missing")
    _demand(
        tree.n_features == estimator.n_features_in_
        and tree.n_outputs == 1
        and 0 < tree.node_count == tree.capacity,  # the latter is the length of its array
        "a tree's counts do not fit",
    )
    left, right, feature = tree.children_left, tree.children_right, tree.feature
    _check_nodes(left, right, feature, left != -1, tree.n_features)


def _check_forest(forest: Any) -> None:
    trees = forest.estimators_
    _demand(
        isinstance(trees, list)
        and all(type(tree).__name__ == "DecisionTreeClassifier" for tree in trees)
        and all(tree.n_features_in_ == forest.n_features_in_ for tree in trees),
        "a forest's trees do not fit",
    )


def _check_boosting(boosting: Any) -> None:
    from sklearn.ensemble._hist_gradient_boosting.common import PREDICTOR_RECORD_DTYPE

    mapper = boosting._bin_mapper
    _demand(not np.any(mapper.is_categorical_), "boosting has categories, which features never are")
    for predictor in [predictor for round_ in boosting._predictors for predictor in round_]:
        nodes = predictor.nodes
        _demand(
            isinstance(nodes, np.ndarray)
            and nodes.dtype == PREDICTOR_RECORD_DTYPE
            and nodes.ndim == 1
            and len(nodes),
            "a boosted tree's nodes are of another type",
        )
        inner = nodes["is_leaf"] == 0
        _demand(not nodes["is_categorical"][inner].any(), "boosting has categories, which features never are")
        _check_nodes(nodes["left"], nodes["right"], nodes["feature_idx"], inner, boosting.n_features_in_)


def _check_nodes(
    left: NDArray[Any], right: NDArray[Any], feature: NDArray[Any], inner: NDArray[np.bool_], n_features: int
) -> None:
    """Children stand after their parents (so there is no cycle) and within the tree; features in range."""
    position = np.flatnonzero(inner)
    for child in (left[inner].astype(np.int64), right[inner].astype(np.int64)):
        _demand(bool(((child > position) & (child < len(inner))).all()), "a tree's node points astray")
    own = feature[inner].astype(np.int64)
    _demand(bool(((own >= 0) & (own < n_features)).all()), "a tree asks for a feature that rows do not have")


def _nothing(value: Any) -> None:
    """Types whose predictions are made by NumPy alone, which checks its own indices."""


def _full_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__name__}"


def _demand(holds: Any, otherwise: str) -> None:
    if not holds:
        raise ModelFileError(f"{otherwise}; the file is damaged or hostile.")


CHECKS: dict[str, Callable[[Any], None]] = {
    "Pipeline": _check_pipeline,
    "FunctionTransformer": _check_function,
    "SVC": _check_svc,
    "KNeighborsClassifier": _check_neighbours,
    "NearestCentroid": _check_centroids,
    "DecisionTreeClassifier": _check_decision_tree,
    "RandomForestClassifier": _check_forest,
    "HistGradientBoostingClassifier": _check_boosting,
}
