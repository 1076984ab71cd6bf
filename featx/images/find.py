"""Find pictures: folders, manifests, lists and batches become one ImageSet in a fixed order.

A folder is walked with `os.scandir`, real folders first and links last, so that every folder is read at
most once whatever links say. Nothing is opened on the way except files without an image's extension.
What is left out is either named (`skipped`, a warning) or is no picture by any sign.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from featx.exceptions import DataError, ImageWarning
from featx.images.decode import EXTENSIONS
from featx.images.manifest import MANIFEST_EXTENSIONS, SPLITS, read_manifest
from featx.images.picture import ImageSource, name_sources, reason_of
from featx.tables import escape_name

IMAGE_EXTENSIONS = frozenset(extension for known in EXTENSIONS.values() for extension in known) | {
    ".tga",
    ".ico",
    ".svg",
    ".psd",
    ".eps",
    ".dcm",
    ".raw",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".dng",
}
"""Files that are listed without a look inside; those that featx cannot read are then set aside by name."""

SIGNATURES = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF8",
    b"II*\0",
    b"MM\0*",
    b"\0\0\0\x0cjP  ",
    b"\xff\x4f\xff\x51",
)
"""How pictures begin: a file with another extension or none counts as a picture only with one of these."""

IGNORED_NAMES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"})
"""What systems leave in folders; names that start with a dot are ignored too."""


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
    """

    sources: list[ImageSource]
    names: list[str]
    labels: NDArray[Any] | None = None
    splits: NDArray[Any] | None = None
    groups: NDArray[Any] | None = None
    weights: NDArray[np.float64] | None = None
    skipped: list[Skipped] = field(default_factory=list)
    root: Path | None = None

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
    elif isinstance(source, np.ndarray) and source.ndim > 1:
        found = _load_list(_split_batch(source))
    elif isinstance(source, bytes | bytearray | memoryview | Image.Image):
        found = _load_list([source])
    else:
        found = _load_list(list(source))
    if labelled is False:
        found.labels = None
    if labelled and found.labels is None:
        raise DataError(
            f"{_shown(found.root or 'the pictures')}: no labels; put the pictures into one folder per class, "
            "or give a manifest with the columns path and label."
        )
    return found


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


class _Found(NamedTuple):
    """A picture file: its path below the root, in parts."""

    path: str
    parts: tuple[str, ...]


def _load_folder(root: str, follow_links: bool, labelled: bool | None) -> ImageSet:
    walk = _Walk(root, follow_links)
    files = walk.files
    children = {parts[0] for parts in walk.folders if len(parts) == 1}
    deep = 0  # how many leading folders are split and label
    if labelled is not False:
        split_names = {name: SPLITS[name.lower()] for name in children if name.lower() in SPLITS}
        is_split = (
            bool(children) and len(split_names) == len(children) and any(len(f.parts) > 2 for f in files)
        )
        deep = 2 if is_split else 1 if any(len(file.parts) > 1 for file in files) else 0
    skipped = [
        Skipped("/".join(parts), reason, _label(parts, deep, folder=True)) for parts, reason in walk.skipped
    ]
    lying = [file for file in files if len(file.parts) <= deep]
    files = [file for file in files if len(file.parts) > deep]
    skipped += [
        Skipped("/".join(file.parts), "lies beside the class folders, so it has no label") for file in lying
    ]
    if not files:
        raise DataError(_nothing_found(root, walk, skipped))
    if deep:
        _warn_of_empty_classes(root, walk, deep, files)
    return ImageSet(
        [file.path for file in files],
        ["/".join(file.parts) for file in files],
        np.array([file.parts[deep - 1] for file in files]) if deep else None,
        np.array([split_names[file.parts[0]] for file in files]) if deep == 2 else None,
        skipped=skipped,
        root=Path(root),
    )


def _label(parts: tuple[str, ...], deep: int, *, folder: bool) -> str | None:
    return parts[deep - 1] if deep and len(parts) >= deep + (not folder) else None


def _warn_of_empty_classes(root: str, walk: _Walk, deep: int, files: list[_Found]) -> None:
    filled = {file.parts[:deep] for file in files}
    unread = {parts[:deep] for parts, _ in walk.skipped}
    for parts in walk.folders:
        if len(parts) == deep and parts not in filled | unread:
            warnings.warn(
                f"{_shown(root)}: class folder {_shown('/'.join(parts))} holds no picture; the class is dropped.",
                ImageWarning,
                stacklevel=2,
            )


def _nothing_found(root: str, walk: _Walk, skipped: list[Skipped]) -> str:
    listed = "; ".join(f"{_shown(each.name)}: {each.reason}" for each in skipped[:10])
    why = f" Set aside: {listed}{' ...' if len(skipped) > 10 else ''}." if skipped else ""
    others = f" ({walk.others} files of other kinds)" if walk.others else ""
    return (
        f"{_shown(root)}: no picture found{others}; featx looks for one folder per class, "
        f"or for pictures such as {', '.join(('.jpg', '.png', '.tif', '.webp'))} in the folder itself.{why}"
    )


class _Walk:
    """All picture files below a folder, sorted by path, and what was left out."""

    def __init__(self, root: str, follow_links: bool) -> None:
        self.files: list[_Found] = []
        self.folders: list[tuple[str, ...]] = []
        self.skipped: list[tuple[tuple[str, ...], str]] = []
        self.others = 0
        self._follow_links = follow_links
        self._real_root = os.path.realpath(root)
        self._read: set[tuple[int, int]] = set()
        self._links: list[tuple[str, tuple[str, ...]]] = []
        self._walk(root, ())
        while self._links:  # after all real folders: a link to one of them is then known to lead back
            self._links.sort(reverse=True)
            self._follow(*self._links.pop())
        self.files.sort(key=lambda file: file.parts)
        self.folders.sort()
        self.skipped.sort()

    def _walk(self, top: str, top_parts: tuple[str, ...]) -> None:
        waiting = [(top, top_parts)]
        while waiting:
            path, parts = waiting.pop()
            if parts:
                self.folders.append(parts)
            try:
                status = os.stat(path)
                self._read.add((status.st_dev, status.st_ino))
                with os.scandir(path) as entries:
                    for entry in entries:
                        if not _is_ignored(entry.name):
                            self._sort_in(entry, (*parts, entry.name), waiting)
            except OSError as error:
                if not parts:
                    raise DataError(f"{_shown(path)}: {reason_of(error)}.") from error
                self.skipped.append((parts, f"folder not read: {reason_of(error)}"))

    def _sort_in(
        self, entry: os.DirEntry[str], parts: tuple[str, ...], waiting: list[tuple[str, tuple[str, ...]]]
    ) -> None:
        if entry.is_symlink():
            self._links.append((entry.path, parts))
        elif entry.is_dir(follow_symlinks=False):
            waiting.append((entry.path, parts))
        elif not entry.is_file(follow_symlinks=False):
            self.skipped.append((parts, "not a regular file (a pipe, socket or device)"))
        elif _is_picture(entry.path):
            self.files.append(_Found(entry.path, parts))
        else:
            self.others += 1

    def _follow(self, path: str, parts: tuple[str, ...]) -> None:
        target = os.path.realpath(path)
        inside = target == self._real_root or target.startswith(self._real_root.rstrip(os.sep) + os.sep)
        try:
            status = os.stat(path)
        except OSError as error:  # also a link that leads to itself
            self.skipped.append(
                (parts, f"a link to {_shown(target)} that cannot be followed: {reason_of(error)}")
            )
            return
        if not inside and not self._follow_links:
            if stat.S_ISDIR(status.st_mode) or _is_picture(path):
                self.skipped.append(
                    (
                        parts,
                        f"a link out of the folder, to {_shown(target)}; follow it with --follow-links",
                    )
                )
        elif stat.S_ISREG(status.st_mode):
            if _is_picture(path):
                self.files.append(_Found(path, parts))
        elif (status.st_dev, status.st_ino) in self._read:
            warnings.warn(
                f"{_shown(path)}: a link back to {_shown(target)} (a loop or second name); read once.",
                ImageWarning,
                stacklevel=2,
            )
        elif stat.S_ISDIR(status.st_mode):
            self._walk(path, parts)


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in IGNORED_NAMES


def _is_picture(path: str) -> bool:
    if os.path.splitext(path)[1].lower() in IMAGE_EXTENSIONS:
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb", buffering=0) as file:
            start = file.read(16) or b""
    except OSError:
        return False  # no extension of an image, and no look inside: no sign of a picture
    return start.startswith(SIGNATURES) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")


def _shown(path: object) -> str:
    return escape_name(str(path))
