"""Containers of images as a list of images with their labels, splits, groups and weights.

Data frames, tensors, datasets of torch and of Hugging Face, open files, iterators. They are recognised by
their methods and attributes, so that none of their packages is imported here.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featx.exceptions import DataError, ImageWarning
from featx.images.columns import is_alias
from featx.images.picture import ImageSource
from featx.tables import escape_name

IMAGE_COLUMNS = (
    "path", "image", "img", "file", "filename", "file_name", "filepath", "file_path", "pixel_values",
)  # fmt: skip
"""Names of the column of images, in order of preference; one column alone may have any name."""

FACTS = ("label", "split", "group", "weight")
"""Names of other columns that are read. Case is ignored."""

SOURCES = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)
"""Types of one image."""


@dataclass
class Held:
    """Images, and what is known of each; None is not known.

    Parameters
    ----------
    sources : list of image sources
    labels, splits, groups, weights : sequence, optional
        One entry for each image.
    remarks : list of str
        What was guessed about columns, as sentences.
    no_label : str
        Why there are no labels, as a sentence, where that is known.
    """

    sources: list[ImageSource]
    labels: Sequence[Any] | None = None
    splits: Sequence[Any] | None = None
    groups: Sequence[Any] | None = None
    weights: Sequence[Any] | None = None
    remarks: list[str] = field(default_factory=list)
    no_label: str = ""


def read_container(X: Any) -> Held:
    """Return the images of anything that holds several, or of one image.

    Parameters
    ----------
    X : object
        * A data frame (pandas, polars, pyarrow), or a dict of columns: a column ``path`` or ``image`` and, if
          they are there, ``label``, ``split``, ``group`` and ``weight``; or one column of any name.
        * A tensor or an array: one image, or a batch. A tensor has its channels first, as torch has them, and
          may be float from 0 to 1.
        * A torch dataset whose items are images, or an image and its label. Of a torchvision ``ImageFolder``
          the files are read, without its transform.
        * A Hugging Face dataset with a column of images, or a ``DatasetDict`` of them.
        * An open file, one image, or an iterable of images or of pairs of image and label.

    Raises
    ------
    DataError
        If it is none of these, or holds no image.
    """
    if isinstance(X, bytes | bytearray | memoryview | Image.Image):
        return Held([X])
    if hasattr(X, "read") and not hasattr(X, "columns"):
        return Held([as_source(X)])
    if hasattr(X, "features") and hasattr(X, "cast_column"):
        return _of_hub_dataset(X)
    if isinstance(X, Mapping) and X and all(hasattr(one, "cast_column") for one in X.values()):
        return _of_splits(X)
    columns = _columns(X)
    if columns is not None:
        return _of_columns(columns)
    if _is_tensor(X):
        return Held(list(_tensor_images(X)))
    if hasattr(X, "dataset") and hasattr(X, "batch_size"):
        raise DataError(
            f"a {type(X).__name__} gives batches, in an order of its own; give its dataset: loader.dataset."
        )
    if hasattr(X, "to_numpy"):  # a series
        X = X.to_numpy()
    if isinstance(X, np.ndarray):
        return _of_array(X)
    if not isinstance(X, Iterable) and hasattr(X, "__getitem__") and hasattr(X, "__len__"):
        return _of_torch_dataset(X)
    if not isinstance(X, Iterable):
        return Held([as_source(X)])
    items = list(X)
    if not items:
        raise DataError(_nothing(X))
    return _of_items(items)


def as_source(item: Any) -> ImageSource:
    """Return one item as an image source: tensors as arrays, files and dicts of the hub as bytes or path.

    Raises
    ------
    DataError
        If it is no image.
    """
    if isinstance(item, SOURCES):
        return item
    if isinstance(item, Mapping) and ("bytes" in item or "path" in item):  # an encoded image of the hub
        inner = item.get("bytes") or item.get("path")
        if isinstance(inner, str | os.PathLike | bytes):
            return inner
    if hasattr(item, "read"):
        data = item.read()
        if isinstance(data, bytes) and data:
            return data
        if isinstance(data, bytes):
            raise DataError("an open file gives no bytes: it is empty, or was read before; open it again.")
        raise DataError("an open text file is not an image; open it with mode 'rb'.")
    if _is_tensor(item):
        found = list(_tensor_images(item))
        if len(found) == 1:
            return found[0]
        raise DataError(f"a tensor of shape {tuple(item.shape)} is not one image.")
    raise DataError(
        f"a {type(item).__name__} is not an image; give a path, the bytes of a file, a PIL image "
        "or an (H, W, 3) uint8 array."
    )


def _of_items(items: Sequence[Any]) -> Held:
    """A list of images, of pairs of image and label, or of dicts, such as records of JSON."""
    if all(isinstance(item, Mapping) and set(item) - {"bytes", "path"} for item in items):
        names = dict.fromkeys(name for item in items for name in item)
        return _of_columns({str(name): [item.get(name) for item in items] for name in names})
    if all(isinstance(item, tuple) and len(item) == 2 and _is_image(item[0]) for item in items):
        images, labels = zip(*items, strict=True)
        return Held(_as_sources(images), [_plain_label(label) for label in labels])
    return Held(_as_sources(items))


def _is_image(value: Any) -> bool:
    return isinstance(value, SOURCES) or hasattr(value, "read") or _is_tensor(value)


def _as_sources(items: Iterable[Any]) -> list[ImageSource]:
    found = []
    for position, item in enumerate(items):
        try:
            found.append(as_source(item))
        except DataError as error:
            raise DataError(f"item {position}: {error}") from None
    return found


def _nothing(X: Any) -> str:
    if isinstance(X, Iterator):
        return (
            f"a {type(X).__name__} gave no image: it was used before, or no file matches its pattern. Make a "
            "list of it: list(...)."
        )
    return "an empty list of images; give at least one."


# --- arrays and tensors ---


def _of_array(array: NDArray[Any]) -> Held:
    if array.dtype == object or array.dtype.kind in "USO":
        if array.ndim > 1 and array.size != len(array):
            raise DataError(f"an array of paths has shape (n,), not {array.shape}.")
        items = array.reshape(-1).tolist()
        if not items:
            raise DataError(_nothing(array))
        return _of_items(items)
    return Held(split_batch(array))


def split_batch(array: NDArray[Any]) -> list[ImageSource]:
    """One image, or the images of a batch: (n, H, W, C), or (n, H, W) of grey ones.

    Raises
    ------
    DataError
        If it is neither.
    """
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4)):
        return [array]
    if array.ndim == 3 or (array.ndim == 4 and array.shape[3] in (1, 3, 4)):
        if not len(array):
            raise DataError(f"an array of shape {array.shape} holds no image; give at least one.")
        return list(array)
    hint = (
        "; channels come last: array.transpose(0, 2, 3, 1)" if array.shape[1:2] in ((1,), (3,), (4,)) else ""
    )
    raise DataError(f"an array of shape {array.shape} is not a batch of images; give (n, H, W, 3){hint}.")


def _is_tensor(value: Any) -> bool:
    """A tensor of torch, or of another library that is no NumPy array and turns into one."""
    if isinstance(value, np.ndarray | np.generic) or not hasattr(value, "shape"):
        return False
    return hasattr(value, "detach") or (hasattr(value, "__array__") and not hasattr(value, "to_numpy"))


def _tensor_images(tensor: Any) -> Iterator[NDArray[Any]]:
    """uint8 images (H, W) or (H, W, C) of a tensor (C, H, W) or (n, C, H, W), or with the channels last."""
    of_torch = hasattr(tensor, "detach")
    array = np.asarray(tensor.detach().cpu() if of_torch else tensor)
    shape = array.shape
    if array.ndim == 4 and not len(array):
        raise DataError(f"a tensor of shape {shape} holds no image; give at least one.")
    first = array.ndim in (3, 4) and shape[-3] in (1, 3, 4)
    last = array.ndim in (3, 4) and shape[-1] in (1, 3, 4)
    if first and (of_torch or not last):
        array = np.moveaxis(array, -3, -1)
    elif not (last or array.ndim == 2 or (array.ndim == 3 and not of_torch)):
        raise DataError(f"a tensor of shape {shape} is not a batch of images; use (n, 3, H, W) or (3, H, W).")
    if array.dtype.kind == "f":
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        if not (low >= 0 and high <= 1):
            raise DataError(
                f"a float tensor holds values from {low:.3g} to {high:.3g}, not from 0 to 1; give images "
                "before they are normalised, or uint8 from 0 to 255."
            )
        array = np.rint(array * 255).astype(np.uint8)
    if array.ndim >= 3 and array.shape[-1] == 1:
        array = array[..., 0]
    is_batch = len(shape) == 4 or not (first or last or len(shape) == 2)
    yield from array if is_batch else [array]


# --- data frames ---


def _columns(X: Any) -> dict[str, Sequence[Any]] | None:
    """The columns of a data frame, a pyarrow table or a dict of lists; None for anything else."""
    if isinstance(X, Mapping):
        return {str(name): list(values) for name, values in X.items()}
    if hasattr(X, "column_names") and hasattr(X, "to_pydict"):  # pyarrow, where `columns` are arrays
        return {str(name): list(values) for name, values in X.to_pydict().items()}
    if hasattr(X, "columns") and hasattr(X, "shape"):
        return {str(name): _values(X[name]) for name in X.columns}
    return None


def _values(column: Any) -> list[Any]:
    if hasattr(column, "columns"):
        raise DataError("a data frame has two columns of one name; rename one.")
    return list(column.to_list() if hasattr(column, "to_list") else column)


def _of_columns(columns: Mapping[str, Sequence[Any]]) -> Held:
    listed = ", ".join(escape_name(name) for name in columns) or "none"
    by_name = {name.strip().lower(): values for name, values in columns.items()}
    name = next((name for name in IMAGE_COLUMNS if name in by_name), None)
    label = next((one for one in ("label", *_of_role("label", by_name)) if one in by_name), None)
    if name is None and len(columns) == 1 and label is None:
        name = next(iter(by_name))
    if name is None:
        raise DataError(
            f"none of the columns ({listed}) is named path or image; rename the column of images, or select "
            "it: frame['...']. Images by class are given as two columns, path and label."
        )
    if not len(by_name[name]):
        raise DataError(f"the column {name!r} is empty; give at least one image.")
    lengths = {len(values) for values in by_name.values()}
    if len(lengths) > 1:
        raise DataError(f"the columns ({listed}) have different lengths: {sorted(lengths)}.")
    try:
        sources = _as_sources(by_name[name])
    except DataError as error:
        raise DataError(f"column {name!r}, {error}") from None
    facts = {fact: by_name[fact] for fact in FACTS if fact in by_name and fact != name}
    groups = facts.get("group")
    if label is not None:
        facts["label"] = by_name[label]
    others = [one for one in by_name if one not in (name, *FACTS)]
    return Held(
        sources,
        _complete(facts.get("label"), "label", _plain_label),
        _complete(facts.get("split"), "split", str),
        None if groups is None else [None if _is_missing(group) else group for group in groups],
        _complete(facts.get("weight"), "weight", float),
        remarks=[] if label in ("label", None) else [f"Column {escape_name(label)} is read as label."],
        no_label=f"The columns are {listed}; give one as y, or rename it label." if others else "",
    )


def _of_role(role: str, names: Iterable[str]) -> list[str]:
    """The column that has another name for a role, as in manifests; none where several have."""
    found = [name for name in names if is_alias(name, role)]
    return found if len(found) == 1 else []


def _complete(values: Sequence[Any] | None, name: str, convert: Callable[[Any], Any]) -> list[Any] | None:
    """The values of a column; None if all are missing, an error if some are."""
    if values is None:
        return None
    missing = [position for position, value in enumerate(values) if _is_missing(value)]
    if len(missing) == len(values):
        return None
    if missing:
        raise DataError(
            f"column {name!r}: {len(missing)} of {len(values)} values are missing, the first in row "
            f"{missing[0]}; fill them in, or leave these rows out."
        )
    try:
        return [convert(value) for value in values]
    except (TypeError, ValueError) as error:
        raise DataError(f"column {name!r}: {error}") from None


def _is_missing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    try:
        return value is None or bool(value != value)
    except (TypeError, ValueError):  # pandas.NA has no truth, an array has several
        return type(value).__name__ == "NAType"


def _plain_label(label: Any) -> Any:
    """A label as Python's own type, where an array, a tensor or NumPy's scalar holds one."""
    if hasattr(label, "item") and math.prod(getattr(label, "shape", ())) == 1:
        label = label.item()
    if isinstance(label, list | tuple | dict | set | bytes | Image.Image) or hasattr(label, "shape"):
        raise DataError(f"a label is one value for each image, not {label!r:.60}.")
    return label


# --- datasets ---


def _of_torch_dataset(X: Any) -> Held:
    """A dataset with ``__getitem__`` and ``__len__``; its items are images, or begin with image and label."""
    if not len(X):
        raise DataError(f"a {type(X).__name__} without images; give at least one.")
    names = getattr(X, "classes", None)
    files = getattr(X, "samples", None)
    if isinstance(files, list) and files and all(_is_file_and_label(one) for one in files):
        if getattr(X, "transform", None) is not None:
            _warn(f"the files of a {type(X).__name__} are read; its transform is not applied.")
        return Held([path for path, _ in files], _named([label for _, label in files], names))
    images, labels = [], []
    for position in range(len(X)):
        image, label = _image_and_label(X[position], position)
        images.append(image)
        labels.append(label)
    known = [label for label in labels if label is not None]
    return Held(_as_sources(images), _named(labels, names) if len(known) == len(labels) else None)


def _is_file_and_label(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str | os.PathLike)


def _image_and_label(item: Any, position: int) -> tuple[Any, Any]:
    if isinstance(item, tuple | list) and item:
        return item[0], (_plain_label(item[1]) if len(item) > 1 else None)
    if isinstance(item, Mapping) and "bytes" not in item:
        by_name = {str(name).lower(): value for name, value in item.items()}
        name = next((name for name in IMAGE_COLUMNS if name in by_name), None)
        if name is None:
            listed = ", ".join(map(str, item))
            raise DataError(f"item {position} has no image among {listed}; name it 'image' or 'path'.")
        label = by_name.get("label", by_name.get("labels"))
        return by_name[name], (None if label is None else _plain_label(label))
    return item, None


def _named(labels: list[Any], names: Any) -> list[Any]:
    """Labels by the names of their classes, where these are known."""
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        numbers = {label for label in labels if isinstance(label, int)}
        if len(numbers) == len(set(labels)) and all(0 <= number < len(names) for number in numbers):
            return [names[label] for label in labels]
    return labels


def _of_hub_dataset(X: Any) -> Held:
    """A Hugging Face dataset: the encoded images of its image column, and the names of its classes."""
    features = X.features or {}
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    if not images:
        images = [name for name in IMAGE_COLUMNS if name in features]
    if not images:
        raise DataError(f"this dataset has no column of images among {', '.join(features)}.")
    image = next((name for name in IMAGE_COLUMNS if name in images), images[0])
    if type(features[image]).__name__ == "Image":
        X = X.cast_column(image, type(features[image])(decode=False))
    classes = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    label = next((name for name in ("label", "labels") if name in features), None)
    if label is None and classes:
        label = classes[0] if len(classes) == 1 else None
        if label is None:
            _warn(f"this dataset has several columns of labels ({', '.join(classes)}); give one as y.")
    others = [name for name in features if name not in (image, label)]
    rows = list(X.remove_columns(others) if others else X)
    if not rows:
        raise DataError("a dataset without images; give at least one.")
    labels = None
    if label is not None:
        codes = [_plain_label(row[label]) for row in rows]
        if not all(code is None or code == -1 for code in codes):  # -1: a test part without labels
            labels = _named(codes, getattr(features[label], "names", None))
    if len(images) > 1:
        _warn(f"this dataset has several columns of images ({', '.join(images)}); {image} is used.")
    return Held(_as_sources(row[image] for row in rows), labels)


def _of_splits(X: Mapping[str, Any]) -> Held:
    """A `DatasetDict`; its keys are splits."""
    parts = {name: _of_hub_dataset(part) for name, part in X.items()}
    if any(part.labels is None for part in parts.values()):
        listed = ", ".join(name for name, part in parts.items() if part.labels is None)
        raise DataError(f"the splits {listed} have no labels; choose one that has: dataset['train'].")
    return Held(
        [source for part in parts.values() for source in part.sources],
        [label for part in parts.values() for label in part.labels or ()],
        [name for name, part in parts.items() for _ in part.sources],
    )


def _warn(text: str) -> None:
    warnings.warn(text, ImageWarning, stacklevel=2)
