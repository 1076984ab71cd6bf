"""The saved form of a fitted head: named arrays of declared shapes and dtypes, and a few parameters.

A model file may come from a stranger, so nothing in it says what to build. Each head declares which arrays it
needs; `check_arrays` compares the arrays of a file with that declaration before the head uses them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from featx.exceptions import ModelFileError
from featx.records import from_plain

Arrays = dict[str, NDArray[Any]]
Params = dict[str, Any]
Dims = dict[str, int]

FLOAT = ("float32", "float64")

LARGEST = 1e30
"""Largest absolute value of a saved float, unless the array declares another."""


@dataclass(frozen=True)
class Array:
    """Declaration of a saved array.

    Parameters
    ----------
    dtypes : tuple of str
        NumPy names of the dtypes that are allowed.
    shape : tuple of str
        Names of the dimensions. ``n_classes``, ``n_outputs`` (1 for two classes), ``n_features`` (columns
        that reach the head) and ``n_columns`` (columns that reach the scaler) are known. Any other name
        stands for the length that its first array has; it is 1 or larger.
    low : float, optional
        Smallest value.
    below : int or str, optional
        Number, or name of the dimension, that all values are smaller than.
    largest : float
        Largest absolute value of floats, which must be finite.
    """

    dtypes: tuple[str, ...]
    shape: tuple[str, ...]
    low: float | None = None
    below: int | str | None = None
    largest: float = LARGEST


@dataclass(frozen=True)
class SavedForm:
    """How a fitted classifier becomes arrays and parameters, and is built again from them.

    Parameters
    ----------
    arrays : mapping of str to Array
        Declaration of the arrays.
    to_arrays : callable
        ``to_arrays(classifier)`` returns the arrays by name and the parameters.
    from_arrays : callable
        ``from_arrays(arrays, params, classes, dims)`` returns the fitted classifier. The arrays and
        parameters were checked by their declarations and by `check`.
    params : mapping of str to type
        Parameters with their annotations, as in `featx.records`.
    check : callable
        ``check(arrays, params, dims)`` checks what the declarations do not express with `require`.
    """

    arrays: Mapping[str, Array]
    to_arrays: Callable[[Any], tuple[Arrays, Params]]
    from_arrays: Callable[[Arrays, Params, NDArray[Any], Dims], Any]
    params: Mapping[str, Any]
    check: Callable[[Arrays, Params, Dims], None] = lambda arrays, params, dims: None


def require(holds: Any, otherwise: str) -> None:
    """Raise `ModelFileError` with the message `otherwise` if `holds` is false."""
    if not holds:
        raise ModelFileError(otherwise)


def check_params(params: Mapping[str, Any], declared: Mapping[str, Any]) -> None:
    """Compare parameters with their annotations.

    Raises
    ------
    ModelFileError
        If a parameter is missing, not known, or of another type.
    """
    require(set(params) == set(declared), f"the parameters {_some(set(params) ^ set(declared))} do not fit")
    try:
        for name, kind in declared.items():
            from_plain(kind, params[name], name)
    except (TypeError, ValueError) as error:
        raise ModelFileError(f"a parameter does not fit: {error}") from None


def check_arrays(arrays: Mapping[str, NDArray[Any]], declared: Mapping[str, Array], dims: Dims) -> None:
    """Compare arrays with their declarations; add the dimensions that were found to `dims`.

    Raises
    ------
    ModelFileError
        If an array is missing, not known, or of another dtype or shape, or a value is out of its range.
    """
    require(set(arrays) == set(declared), f"the arrays {_some(set(arrays) ^ set(declared))} do not fit")
    for name, wanted in declared.items():
        array = arrays[name]
        require(array.dtype.name in wanted.dtypes, f"array {name!r} has dtype {array.dtype}")
        require(array.ndim == len(wanted.shape), f"array {name!r} has {array.ndim} dimensions")
        for dim, length in zip(wanted.shape, array.shape, strict=True):
            require(length >= 1, f"array {name!r} is empty")
            expected = dims.setdefault(dim, length)
            require(length == expected, f"array {name!r}: {dim} is {length}, but it should be {expected}")
    for name, wanted in declared.items():
        _check_values(name, arrays[name], wanted, dims)


def _check_values(name: str, array: NDArray[Any], wanted: Array, dims: Dims) -> None:
    if array.dtype.kind == "f":
        largest = max(abs(float(array.max())), abs(float(array.min())))  # NaN if any value is
        require(largest <= wanted.largest, f"array {name!r} has values that are not finite, or too large")
    if wanted.low is not None:
        require(array.min() >= wanted.low, f"array {name!r} has values below {wanted.low}")
    if wanted.below is not None:
        limit = dims[wanted.below] if isinstance(wanted.below, str) else wanted.below
        require(int(array.max()) < limit, f"array {name!r} has values that are not below {limit}")


def _some(names: set[str]) -> str:
    return ", ".join(ascii(str(name)[:40]) for name in sorted(names, key=str)[:5]) or "none"
