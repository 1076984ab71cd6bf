"""Find pictures: folders, manifests, lists and batches become one ImageSet in a fixed order.

What the folders mean (class, or split and class) is read off their names once all are known. What is
left out is named, in `skipped` or by a warning, or is no picture by any sign. No picture is read here.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from featx.exceptions import DataError, ImageWarning
from featx.images.folder import Walk
from featx.images.manifest import MANIFEST_EXTENSIONS, SPLITS, read_manifest
from featx.images.picture import ImageSource, name_sources, reason_of
from featx.tables import escape_name

REASON_BESIDE = "lies beside the class folders, so it has no label"


@dataclass(frozen=True)
class Skipped:
    """A picture (or folder) that was set aside.

    Parameters
    ----------
    name : str
        Its path.
    reason : str
        Why, and what to do about it.
    label : any
        Its class, where it is known.
    """

    name: str
    reason: str
    label: Any = None


@dataclass
class ImageSet:
    """Pictures with what is known about each; all lists and arrays have one entry per picture.

    Parameters
    ----------
    sources : list of image sources
        What `read_picture` reads.
    names : list of str
        What to call them: paths below `root`, paths as given, or positions.
    labels : array, optional
        Classes, in the type they were given; class folders' are str.
    splits : array of str, optional
        ``train``, ``val`` or ``test``.
    groups : array, optional
        Pictures of one group never stand on both sides of a split.
    weights : array of float64, optional
        Sample weights.
    skipped : list of Skipped
        What was set aside on the way.
    root : Path, optional
        The folder or manifest they come from.
    ids : array of shape (n, 32), uint8, optional
        Digests, where the pictures have just been read (see `read_digests`).
    """

    sources: list[ImageSource]
    names: list[str]
    labels: NDArray[Any] | None = None
    splits: NDArray[Any] | None = None
    groups: NDArray[Any] | None = None
    weights: NDArray[np.float64] | None = None
    skipped: list[Skipped] = field(default_factory=list)
    root: Path | None = None
    ids: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.sources)

    def select(self, chosen: ArrayLike) -> ImageSet:
        """The same set with some pictures only, by mask or by positions, in their order."""
        index = np.asarray(chosen)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.intp)

        def part(values: NDArray[Any] | None) -> NDArray[Any] | None:
            return None if values is None else values[index]

        return ImageSet(
            [self.sources[position] for position in index],
            [self.names[position] for position in index],
            part(self.labels),
            part(self.splits),
            part(self.groups),
            part(self.weights),
            list(self.skipped),
            self.root,
            part(self.ids),
        )


def load_images(
    source: ImageSource | Iterable[ImageSource], *, follow_links: bool = False, labelled: bool | None = None
) -> ImageSet:
    """Find the pictures that a user means; none is read yet.

    Parameters
    ----------
    source : path, list of image sources, or array
        * A folder of class folders (``cat/``, ``dog/``): the folder's name is the label, folders below it
          are walked.
        * A folder of ``train/``, ``val/`` or ``test/`` folders, and no others, of class folders.
        * A folder of pictures: no labels.
        * A manifest (``.csv``, ``.tsv``, ``.parquet``) with the columns ``path`` and, as you like,
          ``label``, ``split``, ``group``, ``weight``; paths are relative to the manifest.
        * One picture: a path, bytes, a PIL image or an array.
        * A list of those, or a batch of shape (n, H, W, 3).
    follow_links : bool, default=False
        Also read links that lead out of the folder.
    labelled : bool, optional
        False takes every picture below a folder and gives no labels, True insists on labels; by default
        what is found decides.

    Returns
    -------
    ImageSet
        Sorted by path for folders, in the given order otherwise.

    Raises
    ------
    DataError
        If there is nothing there, or the manifest cannot be used; with the row, the column and the fix.

    Warns
    -----
    ImageWarning
        A class folder without pictures was dropped; a link led back.
    """
    if isinstance(source, str | os.PathLike):
        found = _load_path(os.fsdecode(source), follow_links, labelled)
    elif isinstance(source, np.ndarray) and source.ndim != 1:
        found = _load_list(_split_batch(source))
    elif isinstance(source, bytes | bytearray | memoryview | Image.Image):
        found = _load_list([source])
    elif isinstance(source, Iterable):
        found = _load_list(list(source))
    else:
        found = _load_list([source])
    if labelled is False:
        found.labels = None
    if labelled and found.labels is None:
        raise DataError(
            f"{_shown(found.root or 'the pictures')}: no labels; put the pictures into one folder per class, "
            "or give a manifest with the columns path and label."
        )
    return found


def load_paths(
    paths: Sequence[str | os.PathLike[str]], *, follow_links: bool = False, labelled: bool | None = None
) -> ImageSet:
    """Several paths as one set: pictures, folders and manifests in the order given, as a shell gives them.

    Parameters
    ----------
    paths : sequence of paths
        Each as for `load_images`.
    follow_links, labelled
        As for `load_images`.

    Returns
    -------
    ImageSet
        Names begin with the path they come from, except where there is only one. What is not known of
        every picture (labels, splits, ...) is left out.

    Raises
    ------
    DataError
        As `load_images`, or for no paths.
    """
    if not paths:
        raise DataError("no paths were given; name pictures, folders or a manifest.")
    found = [load_images(path, follow_links=follow_links, labelled=labelled) for path in paths]
    if len(found) == 1:
        return found[0]

    def joined(name: str) -> NDArray[Any] | None:
        columns = [getattr(each, name) for each in found]
        if any(column is None for column in columns):
            return None
        kinds = {column.dtype.kind for column in columns}  # 1 and "1" stay two labels
        return np.concatenate([column.astype(object) for column in columns] if len(kinds) > 1 else columns)

    sources = [source for each in found for source in each.sources]
    return ImageSet(
        sources,
        name_sources(sources),
        joined("labels"),
        joined("splits"),
        joined("groups"),
        joined("weights"),
        [
            Skipped(os.path.join(each.root or "", skipped.name), skipped.reason, skipped.label)
            for each in found
            for skipped in each.skipped
        ],
    )


def _load_path(path: str, follow_links: bool, labelled: bool | None) -> ImageSet:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise DataError(f"{_shown(path)}: {reason_of(error)}.") from error
    if stat.S_ISDIR(mode):
        return _load_folder(path, follow_links, labelled)
    if os.path.splitext(path)[1].lower() in MANIFEST_EXTENSIONS:
        return _load_manifest(path, labelled)
    return ImageSet([path], [path], root=Path(path).parent)


def _load_manifest(path: str, labelled: bool | None) -> ImageSet:
    manifest = read_manifest(path, labelled=labelled is not False)
    folder = os.path.dirname(path)
    return ImageSet(
        [os.path.join(folder, name) for name in manifest.paths],
        manifest.paths,
        manifest.labels,
        manifest.splits,
        manifest.groups,
        manifest.weights,
        root=Path(path),
    )


def _load_list(sources: Sequence[Any]) -> ImageSet:
    if not sources:
        raise DataError("an empty list of pictures; give at least one.")
    for position, source in enumerate(sources):
        if not isinstance(
            source, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray
        ):
            raise DataError(
                f"item {position} is a {type(source).__name__}; a picture is given as a path, the bytes of a "
                "file, a PIL image or an (H, W, 3) uint8 array."
            )
    return ImageSet(list(sources), name_sources(sources))


def _split_batch(array: NDArray[Any]) -> list[ImageSource]:
    """One picture, or the pictures of a batch: (n, H, W, C), or (n, H, W) of grey ones."""
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4)):
        return [array]
    if array.ndim == 3 or (array.ndim == 4 and array.shape[3] in (1, 3, 4)):
        return list(array)
    hint = (
        "; channels come last: array.transpose(0, 2, 3, 1)" if array.shape[1:2] in ((1,), (3,), (4,)) else ""
    )
    raise DataError(f"an array of shape {array.shape} is no batch of pictures; give (n, H, W, 3){hint}.")


def _load_folder(root: str, follow_links: bool, labelled: bool | None) -> ImageSet:
    walk = Walk(root, follow_links)
    layout = _Layout() if labelled is False else _layout(walk)
    files = [name for name in walk.files if name.count("/") >= layout.depth]
    skipped = [
        Skipped(each.name, each.reason, layout.label(each.name, is_folder=each.is_folder))
        for each in walk.set_aside
    ]
    skipped += [Skipped(name, REASON_BESIDE) for name in walk.files if name.count("/") < layout.depth]
    if not files:
        raise DataError(_nothing_found(walk, skipped))
    _warn_of_empty_classes(walk, files, layout)
    return ImageSet(
        [walk.path(name) for name in files],
        files,
        np.array([layout.label(name) for name in files]) if layout.has_labels else None,
        np.array([SPLITS[name.partition("/")[0].lower()] for name in files]) if layout.has_splits else None,
        skipped=skipped,
        root=Path(root),
    )


@dataclass(frozen=True)
class _Layout:
    """What the leading folders of a picture's name mean: a split, then a class."""

    has_splits: bool = False
    has_labels: bool = False

    @property
    def depth(self) -> int:
        return self.has_splits + self.has_labels

    def label(self, name: str, *, is_folder: bool = False) -> str | None:
        parts = name.split("/")
        known = self.has_labels and len(parts) + is_folder > self.depth
        return parts[self.depth - 1] if known else None


def _layout(walk: Walk) -> _Layout:
    depths = {name.count("/") for name in walk.files}
    if max(depths, default=0) == 0:
        return _Layout()
    tops = {name for name in walk.folders if "/" not in name}
    if all(top.lower() in SPLITS for top in tops):
        return _Layout(has_splits=True, has_labels=max(depths) > 1)
    return _Layout(has_labels=True)


def _warn_of_empty_classes(walk: Walk, files: list[str], layout: _Layout) -> None:
    def top(name: str) -> str:
        return "/".join(name.split("/")[: layout.depth])

    if not layout.has_labels:
        return
    kept = {top(name) for name in files} | {top(each.name) for each in walk.set_aside}
    for folder in walk.folders:
        if folder.count("/") == layout.depth - 1 and folder not in kept:
            warnings.warn(
                f"{_shown(walk.root)}: class folder {_shown(folder)} holds no picture; the class is dropped.",
                ImageWarning,
                stacklevel=2,
            )


def _nothing_found(walk: Walk, skipped: list[Skipped]) -> str:
    listed = "; ".join(f"{_shown(each.name)}: {each.reason}" for each in skipped[:10])
    why = f" Set aside: {listed}{' ...' if len(skipped) > 10 else ''}." if skipped else ""
    others = f" ({walk.others} files of other kinds)" if walk.others else ""
    return (
        f"{_shown(walk.root)}: no picture found{others}; featx looks for one folder per class, "
        f"or for pictures such as .jpg, .png, .tif, .webp in the folder itself.{why}"
    )


def _shown(path: object) -> str:
    return escape_name(str(path))
