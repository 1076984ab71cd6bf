"""Dataclasses as plain JSON values, and back: one implementation that follows the annotations.

A record that is read back may come from a file that a stranger wrote. So every value is checked against its
annotation: type, length of tuples, and finite numbers. Nothing is converted silently.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, Union

import numpy as np

MAY_BE_NAN = "may be NaN"

FloatOrNaN = Annotated[float, MAY_BE_NAN]
"""A float that may be NaN. It is written as null, since NaN is not JSON, and read back as NaN."""

APART = {"apart": True}
"""Metadata of fields that are not part of the plain values, such as large arrays."""

LARGEST_INT = 2**63
"""Integers of records fit into 64 bits."""


class Record:
    """Base of dataclasses that are saved, printed with ``--json`` or shown in a report.

    `to_dict` gives plain values; `from_dict` reads them back and checks them. Properties that `to_dict`
    should include are listed in `DERIVED`; `from_dict` ignores them. A field that is declared with
    ``field(metadata=APART)`` is saved elsewhere: both methods leave it out.
    """

    DERIVED: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain numbers, strings, lists and dicts, ready for JSON."""
        names = [field.name for field in dataclasses.fields(self) if _is_plain(field)]  # type: ignore[arg-type]
        return {name: to_plain(getattr(self, name)) for name in (*names, *self.DERIVED)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Read what `to_dict` returned.

        Raises
        ------
        TypeError
            If a value does not fit its annotation; the message names the field.
        ValueError
            If a field is missing, or one is not known.
        """
        return typing.cast(Self, from_plain(cls, plain, cls.__name__))


def to_plain(value: Any) -> Any:
    """Return a value made of plain numbers, strings, lists and dicts.

    Parameters
    ----------
    value : object
        A record, a NumPy array or scalar, a mapping, a sequence, or a plain value. Floats that are not
        finite become None, since JSON has no such numbers.
    """
    if isinstance(value, Record):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return to_plain(value.tolist())
    if isinstance(value, np.generic):
        return to_plain(value.item())
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_plain(wanted: Any, value: Any, where: str) -> Any:
    """Build a value of an annotated type from plain values, and check it.

    Parameters
    ----------
    wanted : type or annotation
        A dataclass, a plain type, or a tuple, list, dict, array, union or literal of these. Any other
        annotation accepts the value as it is.
    value : object
        What `to_plain` returned.
    where : str
        Name of the field, for messages.

    Raises
    ------
    TypeError
        If the value does not fit.
    ValueError
        If a field of a dataclass is missing, or one is not known.
    """
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is Annotated:
        if MAY_BE_NAN in arguments[1:] and value is None:
            return math.nan
        return from_plain(arguments[0], value, where)
    if origin in (Union, UnionType):
        return _from_union(arguments, value, where)
    if origin is Literal:
        return value if value in arguments else _refuse(wanted, value, where)
    if origin is np.ndarray:
        return _from_array(arguments, value, where)
    if origin in (tuple, list) or wanted in (tuple, list):
        return _from_sequence(origin or wanted, arguments, value, where)
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            _refuse(wanted, value, where)
        kind, own = arguments
        return {
            from_plain(kind, key, where): from_plain(own, item, f"{where}.{key}")
            for key, item in value.items()
        }
    if dataclasses.is_dataclass(wanted):
        return _from_fields(wanted, value, where)
    if wanted in (int, float):
        return _number(wanted, value, where)
    if wanted in (str, bool, NoneType, dict):
        return value if isinstance(value, wanted) else _refuse(wanted, value, where)
    return value


def _is_plain(field: dataclasses.Field[Any]) -> bool:
    return not field.metadata.get("apart", False)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _from_fields(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        _refuse(kind, value, where)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init and _is_plain(field)}
    unknown = set(value) - set(fields) - set(getattr(kind, "DERIVED", ()))
    missing = [
        name
        for name, field in fields.items()
        if name not in value
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if unknown or missing:
        raise ValueError(
            f"{where}: missing fields: {', '.join(missing) or 'none'}; unknown fields: "
            f"{', '.join(sorted(map(str, unknown))[:10]) or 'none'}"
        )
    hints = _hints(kind)
    return kind(
        **{name: from_plain(hints[name], value[name], f"{where}.{name}") for name in fields if name in value}
    )


def _from_union(kinds: Sequence[Any], value: Any, where: str) -> Any:
    reasons: list[Exception] = []
    for kind in sorted(kinds, key=lambda kind: kind is Any):
        try:
            return from_plain(kind, value, where)
        except (TypeError, ValueError) as error:
            reasons.append(error)
    if value is not None and len(kinds) == 2 and NoneType in kinds:  # the reason of the only other kind
        raise reasons[0 if kinds[0] is not NoneType else 1]
    return _refuse(" or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds), value, where)


def _from_sequence(kind: Any, arguments: Sequence[Any], value: Any, where: str) -> Any:
    if not isinstance(value, list | tuple):
        _refuse(kind, value, where)
    if not arguments:
        return kind(value)
    if kind is list or arguments[-1] is Ellipsis:
        own: Sequence[Any] = [arguments[0]] * len(value)
    elif len(arguments) == len(value):
        own = arguments
    else:
        raise TypeError(f"{where} has {len(value)} items; {len(arguments)} are expected")
    return kind(
        from_plain(one, item, f"{where}[{number}]")
        for number, (one, item) in enumerate(zip(own, value, strict=True))
    )


def _from_array(arguments: Sequence[Any], value: Any, where: str) -> Any:
    scalar = typing.get_args(arguments[1])
    dtype = scalar[0] if scalar and isinstance(scalar[0], type) else None
    if not isinstance(value, list | tuple | np.ndarray):
        _refuse(np.ndarray, value, where)
    array = np.asarray(value)
    if dtype is None or not issubclass(dtype, np.number):
        return array
    if array.size and (array.dtype.kind not in "iuf" or not np.isfinite(array).all()):
        _refuse(dtype, value, where)
    return array.astype(dtype)


def _number(kind: Any, value: Any, where: str) -> Any:
    fits = isinstance(value, int | kind) and not isinstance(value, bool)
    if not fits or not -LARGEST_INT <= value < LARGEST_INT or not math.isfinite(value):
        _refuse(kind, value, where)
    return value


def _refuse(wanted: Any, value: Any, where: str) -> Any:
    name = getattr(wanted, "__name__", str(wanted))
    raise TypeError(f"{where} is {value!r:.60}, not of type {name}")


def as_frame(rows: list[dict[str, Any]], columns: Sequence[str]) -> Any:
    """Return rows as a pandas DataFrame with these columns, or as they are without pandas."""
    try:
        import pandas
    except ImportError:
        return rows
    return pandas.DataFrame(rows, columns=list(columns))
