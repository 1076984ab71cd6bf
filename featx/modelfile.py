"""A fitted head and named arrays as bytes that are safe to read, whoever wrote them.

A saved head is a small JSON text (which head, its parameters and scaling) and arrays in the safetensors
format. The file holds no object: featx builds the scikit-learn estimators itself, and sets their fitted
attributes from arrays that were checked against the declarations in `featx.heads`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import ModelFileError
from featx.files import MODEL_MEMBERS, read_json
from featx.heads import HEADS, SCALINGS
from featx.heads.formulas import Formula, scale
from featx.heads.saved import Arrays, Dims, check_arrays, check_params, require
from featx.heads.scaling import (
    MAX_COLUMNS,
    check_scaler,
    scaler_arrays,
    scaler_from_arrays,
    scaler_to_arrays,
)
from featx.records import Record, from_plain, to_plain

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

HEAD_JSON = "head.json"
HEAD_ARRAYS = "head.safetensors"
HEAD_MEMBERS = {name: MODEL_MEMBERS[name] for name in (HEAD_JSON, HEAD_ARRAYS)}
"""Members of a saved head in an archive, with the most bytes of each."""

MAX_CLASSES = 32_768
"""Most classes of a saved head; one logistic regression against the rest is a Python object for each."""

CLASSES_BYTES = 16 << 20
"""Most bytes of the labels of all classes as an array, where each takes as much as the longest."""

HEADER_BYTES = 1 << 16
"""Most bytes of the JSON header of a safetensors member."""

DTYPES = {
    "BOOL": "bool", "U8": "u1", "U32": "<u4", "I32": "<i4", "I64": "<i8", "F16": "<f2", "F32": "<f4",
    "F64": "<f8",
}  # fmt: skip
"""NumPy dtypes by their names in safetensors."""

OF_SCALER, OF_HEAD = "scaler.", "head."
"""Prefixes of the arrays' names."""


@dataclass(frozen=True)
class HeadDescription(Record):
    """What `head.json` holds: a head, its parameters, its scaling, the widths of its blocks, and whether some
    columns of them were picked.
    """

    head: str
    params: dict[str, Any]
    scaling: str
    widths: tuple[int, ...]
    picked: bool


def dump_head(head: str, pipeline: Pipeline) -> dict[str, bytes]:
    """Members of an archive that hold a fitted pipeline; equal pipelines give equal bytes.

    Parameters
    ----------
    head : str
        A key of ``featx.heads.HEADS``.
    pipeline : sklearn.pipeline.Pipeline
        What `featx.heads.make_pipeline` built for this head, fitted. Its class labels are not saved.

    Returns
    -------
    dict of str to bytes
        Keys of `HEAD_MEMBERS`.

    Raises
    ------
    ModelFileError
        If `load_head` would refuse it.
    """
    scaling, widths, of_scaler = scaler_to_arrays(pipeline.named_steps["scale"])
    own, params = HEADS[head].saved.to_arrays(pipeline.named_steps["head"])
    params = to_plain(params)
    description = HeadDescription(head, params, scaling, tuple(widths), "columns" in of_scaler)
    try:
        _check(description, of_scaler, own, len(pipeline.classes_))
    except ModelFileError as error:
        raise ModelFileError(f"this head cannot be saved: {error}.") from None
    arrays = {OF_SCALER + name: array for name, array in of_scaler.items()}
    arrays |= {OF_HEAD + name: array for name, array in own.items()}
    text = json.dumps(description.to_dict(), sort_keys=True).encode()
    return {HEAD_JSON: text, HEAD_ARRAYS: dump_arrays(arrays)}


@dataclass(frozen=True, eq=False)
class SavedHead:
    """A head as it was saved, with all values checked.

    Parameters
    ----------
    description : HeadDescription
        Which head, its parameters, its scaling.
    of_scaler, own : dict of str to array
        Arrays of the scaler and of the classifier.
    dims : dict of str to int
        Lengths of the arrays' dimensions.
    """

    description: HeadDescription
    of_scaler: Arrays
    own: Arrays
    dims: Dims

    @property
    def formula(self) -> Formula | None:
        """Its scores without scikit-learn; None if only scikit-learn computes them."""
        return HEADS[self.description.head].formula

    def prepared(self) -> tuple[Arrays, Arrays, Mapping[str, Any]]:
        """Return the arrays of the scaler and of the classifier, and the parameters, for its formula.

        Raises
        ------
        LookupError
            If the head has no formula.
        """
        if self.formula is None:
            raise LookupError(f"the head {self.description.head} has no formula")
        prepare = self.formula.prepare
        arrays, params = prepare(self.own, self.description.params, self.dims["n_classes"])
        return _as_doubles(self.of_scaler), _as_doubles(arrays), params

    def scorer(self) -> Callable[[NDArray[Any]], NDArray[np.float64]]:
        """Return the decision scores as a function of features (n, n_columns), without scikit-learn.

        Raises
        ------
        LookupError
            If the head has no formula.
        """
        if self.formula is None:
            raise LookupError(f"the head {self.description.head} has no formula")
        return HeadScores(self)

    def pipeline(self, classes: NDArray[Any]) -> Pipeline:
        """Build the fitted scikit-learn pipeline.

        Attributes that only fitting uses (sample counts, random states) are absent or at defaults.
        """
        from sklearn.pipeline import Pipeline

        described = self.description
        scaler = scaler_from_arrays(described.scaling, described.widths, self.of_scaler)
        saved = HEADS[described.head].saved
        return Pipeline(
            [("scale", scaler), ("head", saved.from_arrays(self.own, described.params, classes, self.dims))]
        )


class HeadScores:
    """Decision scores of a saved head that has a formula, as a function that can be pickled.

    Parameters
    ----------
    head : SavedHead
        The head.
    """

    def __init__(self, head: SavedHead) -> None:
        self._head = head

    def __call__(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Scores of features (n, n_columns)."""
        formula, described = self._head.formula, self._head.description
        assert formula is not None
        of_scaler, arrays, params = self._prepared
        scaled = scale(np, described.scaling, described.widths, of_scaler, np.asarray(rows, np.float64))
        return np.asarray(formula.scores(np, arrays, params, scaled))

    @functools.cached_property
    def _prepared(self) -> tuple[Arrays, Arrays, Mapping[str, Any]]:
        return self._head.prepared()

    def __reduce__(self) -> tuple[type[HeadScores], tuple[SavedHead]]:
        return HeadScores, (self._head,)


def read_head(members: Mapping[str, bytes], n_classes: int, *, where: str = "head") -> SavedHead:
    """Read what `dump_head` wrote, as a hostile file.

    Parameters
    ----------
    members : mapping of str to bytes
        Members of the archive; those in `HEAD_MEMBERS` are read.
    n_classes : int
        Number of classes.
    where : str
        Name of the file, for messages.

    Raises
    ------
    ModelFileError
        If a value is missing, of another type or shape, out of its range, or does not fit the others.
    """
    with _as_forged(where):
        for name, most in HEAD_MEMBERS.items():
            require(len(members[name]) <= most, f"{name} is too large")
        plain = read_json(members[HEAD_JSON], where=HEAD_JSON)
        description = HeadDescription.from_dict(plain)
        found = read_arrays(members[HEAD_ARRAYS], where=HEAD_ARRAYS)
        of_scaler = {n.removeprefix(OF_SCALER): a for n, a in found.items() if n.startswith(OF_SCALER)}
        own = {n.removeprefix(OF_HEAD): a for n, a in found.items() if not n.startswith(OF_SCALER)}
        dims = _check(description, of_scaler, own, n_classes)
        return SavedHead(description, of_scaler, own, dims)


def load_head(members: Mapping[str, bytes], classes: NDArray[Any], *, where: str = "head") -> Pipeline:
    """Read what `dump_head` wrote as a fitted scikit-learn pipeline; see `read_head`.

    Parameters
    ----------
    members, where
        As for `read_head`.
    classes : array of shape (n_classes,)
        Class labels, sorted.
    """
    head = read_head(members, len(classes), where=where)
    with _as_forged(where):
        return head.pipeline(classes)


@contextlib.contextmanager
def _as_forged(where: str) -> Iterator[None]:
    """Raise what goes wrong with values of a head as a `ModelFileError` that names the file."""
    try:
        yield
    except ModelFileError as error:
        reason = str(error).rstrip(".")
        raise ModelFileError(f"{where}: {reason}; the file is damaged or forged.") from None
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise ModelFileError(f"{where}: the head's values do not fit ({str(error)[:200]}).") from None


def read_classes(values: Any, dtype: Any) -> NDArray[Any]:
    """Class labels in their own type, from plain values of a file that may be forged.

    Parameters
    ----------
    values : list of str, int, float or bool
        The labels.
    dtype : str
        Their NumPy dtype, or ``"object"``. NumPy widens text by itself, so the width in a file is not used.

    Raises
    ------
    TypeError, ValueError
        If they are no distinct labels of that type, or would take more than `CLASSES_BYTES`.
    """
    labels = from_plain(list[str | int | float | bool], values, "classes")
    kind = np.dtype(from_plain(str, dtype, "classes"))
    longest = max((len(label) for label in labels if isinstance(label, str)), default=1)
    if len(labels) * max(4 * longest, kind.itemsize if kind.kind not in "US" else 0) > CLASSES_BYTES:
        raise ValueError(f"{len(labels):,} classes with up to {longest:,} characters, which is too much")
    classes = np.array(labels) if kind.kind in "US" else np.array(labels, dtype=kind)
    if classes.ndim != 1 or len(np.unique(classes)) != len(classes) or len(classes) < 2:
        raise ValueError(f"the classes {values!r:.80}")
    return classes


def _check(description: HeadDescription, of_scaler: Arrays, own: Arrays, n_classes: int) -> Dims:
    """Compare all values with their declarations; return the dimensions."""
    require(description.head in HEADS, f"the head {description.head[:40]!a} is not known")
    require(description.scaling in SCALINGS, "the scaling is not known")
    require(2 <= n_classes <= MAX_CLASSES, f"{n_classes} classes are too few or too many")
    widths = description.widths
    n_columns = sum(widths)
    require(
        widths and min(widths) >= 1 and n_columns <= MAX_COLUMNS, f"the widths {str(widths)[:40]} do not fit"
    )
    saved = HEADS[description.head].saved
    check_params(description.params, saved.params)
    dims = {"n_classes": n_classes, "n_outputs": 1 if n_classes == 2 else n_classes, "n_columns": n_columns}
    if not description.picked:
        dims["n_features"] = n_columns
    check_arrays(of_scaler, scaler_arrays(description.scaling, picked=description.picked), dims)
    check_arrays(own, saved.arrays, dims)
    check_scaler(of_scaler)
    saved.check(own, description.params, dims)
    return dims


def _as_doubles(arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    return {n: a.astype(np.float64, copy=False) if a.dtype.kind == "f" else a for n, a in arrays.items()}


def dump_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Bytes of named numeric arrays in the safetensors format."""
    from safetensors.numpy import save

    return bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def read_arrays(data: bytes, *, where: str = "arrays") -> Arrays:
    """Read named arrays in the safetensors format without copying: the arrays are read-only views of `data`.

    Raises
    ------
    ModelFileError
        If the header is not the one that fits the data: each array must begin where the one before it ends,
        and the last must end with the data.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(HEADER_BYTES, len(data) - 8):
        raise ModelFileError(
            f"{where}: its header of {length:,} bytes is larger than the data, or too large."
        )
    header = read_json(data[8 : 8 + length], where=where)
    try:
        entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        arrays, position = {}, 8 + length
        for name, entry in entries:
            arrays[name], position = _view(data, entry, position, 8 + length)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(f"{where}: is not sound safetensors data ({str(error)[:100]}).") from None
    if position != len(data):
        raise ModelFileError(f"{where}: holds {len(data) - position:,} bytes that belong to no array.")
    return arrays


def _view(data: bytes, entry: dict[str, Any], position: int, start: int) -> tuple[NDArray[Any], int]:
    """One array of safetensors data, which must begin at `position`, and where it ends."""
    shape, (begin, end), dtype = entry["shape"], entry["data_offsets"], np.dtype(DTYPES[entry["dtype"]])
    if set(entry) != {"dtype", "shape", "data_offsets"} or len(shape) > 4:
        raise ValueError(f"unknown fields {sorted(entry)}, or {len(shape)} dimensions")
    if not all(type(number) is int and 0 <= number < 2**40 for number in (*shape, begin, end)):
        raise ValueError("shapes and offsets must be whole numbers")
    if start + begin != position or end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"an array of shape {shape} does not fit the bytes {begin} to {end}")
    array: NDArray[Any] = np.ndarray(tuple(shape), dtype, data, position)
    return np.require(array, requirements="A"), start + end


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
        If the header does not fit the data, or names and shapes are others.
    """
    arrays = read_arrays(data, where=where)
    if set(arrays) != set(shapes):
        odd = ", ".join(map(ascii, sorted(set(arrays) ^ set(shapes))[:10]))
        raise ModelFileError(f"{where}: its arrays are not the expected ones; they differ in {odd}.")
    for name, wanted in shapes.items():
        found = arrays[name].shape
        fits = len(found) == len(wanted) and all(w in (None, f) for f, w in zip(found, wanted, strict=True))
        if not fits:
            raise ModelFileError(f"{where}: array {name!r} has shape {found}, expected {wanted}.")
    return arrays
