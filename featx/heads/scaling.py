"""Scaling of the features before a head: each block on its own, to about unit length.

One range of C, gamma or alpha then serves every representation, and blocks side by side have equal weight.
A block is divided by the square root of its width, unless its rows have length 1 already.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from featx.exceptions import UsageError
from featx.heads.saved import Array, Arrays, require

if TYPE_CHECKING:
    from sklearn.preprocessing import StandardScaler

SCALINGS = ("standard", "l2", "center_l2", "none")
"""Scalings of a block: unit variance, unit length, centred and then unit length, none."""

LEARNT_SCALINGS = ("standard", "center_l2")
"""Scalings that are fitted on the training rows, and so depend on their weights."""

MAX_COLUMNS = 2**18
"""Most columns of a saved scaler; scikit-learn keeps a Python list of all of them."""

COLUMNS = Array(("int64",), ("n_features",), low=0, below="n_columns")
MEAN = Array(("float64",), ("n_features",), largest=1e15)
SCALE = Array(("float64",), ("n_features",), low=1e-15, largest=1e15)
"""Limits that keep scaled features finite in single precision."""


def make_scaler(scaling: str, widths: Sequence[int], *, columns: Sequence[int] | None = None) -> Any:
    """Build the unfitted transformer that scales blocks side by side.

    Parameters
    ----------
    scaling : str
        One of `SCALINGS`.
    widths : sequence of int
        Columns of each block.
    columns : sequence of int, optional
        The columns to keep, if not all. They are scaled as one block.
    """
    if scaling not in SCALINGS:
        raise UsageError(f"scaling {scaling!r} is not known; choose one of {', '.join(SCALINGS)}.")
    if len(widths) == 1 and columns is None and scaling in ("l2", "center_l2"):
        return _block_scaler(scaling)
    from sklearn.compose import ColumnTransformer

    if columns is not None:
        places: list[Any] = [[int(column) for column in columns]]
        widths = [len(columns)]
    else:
        ends = np.cumsum(widths).tolist()
        places = [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
    return ColumnTransformer(
        [(f"block{number}", _block_scaler(scaling), place) for number, place in enumerate(places)],
        transformer_weights={f"block{number}": block_weight(scaling, w) for number, w in enumerate(widths)},
    )


def block_weight(scaling: str, width: int) -> float:
    """Return the factor that brings a scaled row of `width` columns to about unit length."""
    return 1.0 if scaling in ("l2", "center_l2") else 1 / math.sqrt(width)


def standard_scalers(scaler: Any, columns: Any = slice(None)) -> Iterator[tuple[StandardScaler, Any]]:
    """Iterate over the parts of a fitted scaler that learn, with the columns that each sees."""
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    if isinstance(scaler, StandardScaler):
        yield scaler, columns
    elif isinstance(scaler, Pipeline):
        yield from standard_scalers(scaler.steps[0][1], columns)
    elif isinstance(scaler, ColumnTransformer):
        for name, own, where in scaler.transformers_:
            if name != "remainder":
                yield from standard_scalers(own, where)


def scaler_to_arrays(scaler: Any) -> tuple[str, list[int], Arrays]:
    """Return the scaling, the widths of the blocks and the arrays of a fitted `make_scaler`."""
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler

    arrays: Arrays = {}
    if isinstance(scaler, ColumnTransformer):
        parts = [(part, place) for name, part, place in scaler.transformers_ if name != "remainder"]
        widths = [place.stop - place.start for _, place in parts if isinstance(place, slice)]
        if not widths:
            arrays["columns"] = np.array(parts[0][1], np.int64)
            widths = [scaler.n_features_in_]
        block = parts[0][0]
    else:
        block, widths = scaler, [scaler.n_features_in_]
    kinds = {StandardScaler: "standard", Normalizer: "l2", Pipeline: "center_l2"}
    scaling = kinds.get(type(block), "none")
    learnt = [standard for standard, _ in standard_scalers(scaler)]
    if learnt:
        arrays["mean"] = np.concatenate([standard.mean_ for standard in learnt])
    if scaling == "standard":
        arrays["scale"] = np.concatenate([standard.scale_ for standard in learnt])
    return scaling, [int(width) for width in widths], arrays


def scaler_arrays(scaling: str, *, picked: bool) -> dict[str, Array]:
    """Return the declaration of the arrays of a scaler; `picked` if it keeps some columns only."""
    declared = {"columns": COLUMNS} if picked else {}
    if scaling in LEARNT_SCALINGS:
        declared["mean"] = MEAN
    return declared | ({"scale": SCALE} if scaling == "standard" else {})


def check_scaler(arrays: Arrays) -> None:
    """Check what the declaration of a scaler's arrays does not express.

    Raises
    ------
    ModelFileError
        If a column is picked twice.
    """
    columns = arrays.get("columns")
    if columns is not None:
        require(len(np.unique(columns)) == len(columns), "a column is picked twice")


def scaler_from_arrays(scaling: str, widths: Sequence[int], arrays: Arrays) -> Any:
    """Build the fitted scaler from checked arrays."""
    columns = arrays.get("columns")
    scaler = make_scaler(scaling, widths, columns=None if columns is None else columns.tolist())
    scaler.fit(np.zeros((1, sum(widths)), np.float32))  # for the attributes that are not learnt
    start = 0
    for standard, _ in standard_scalers(scaler):
        own = slice(start, start + standard.n_features_in_)
        standard.mean_, start = arrays["mean"][own], own.stop
        if "scale" in arrays:
            standard.scale_ = arrays["scale"][own]
            standard.var_ = standard.scale_**2
    return scaler


def _block_scaler(scaling: str) -> Any:
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler

    if scaling == "standard":
        return StandardScaler()
    if scaling == "l2":
        return Normalizer()
    if scaling == "center_l2":
        return Pipeline([("center", StandardScaler(with_std=False)), ("length", Normalizer())])
    return "passthrough"
