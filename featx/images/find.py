"""Find images: folders, manifests, lists and batches become one ImageSet in a fixed order.

`layout` interprets folders, `manifest` interprets columns. What is left out is in `skipped`, or named by a
warning. No image is decoded here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import glob
import os
import re
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.exceptions import DataError, ImageWarning, UsageError
from featx.images.columns import ManifestOptions
from featx.images.containers import Held, read_container
from featx.images.folder import IMAGE_EXTENSIONS, TABLE_EXTENSIONS, Walk, is_image
from featx.images.kinds import START_BYTES, kind_in_words
from featx.images.labels import doubtful_labels, plain_text
from featx.images.layout import Base, Layout, read_layout, split_of
from featx.images.locate import locate, refuse_outside
from featx.images.manifest import read_manifest
from featx.images.picture import NOT_ASKED, ImageSource, name_sources, reason_of
from featx.images.remote import RemoteWalk, locate_remote, refuse_addresses
from featx.remote import SCHEMES, RemotePath, is_address, is_readable_address
from featx.tables import escape_name

NO_LABEL = (
    "no labels; put the images into one folder per class, or give a manifest with the columns path and label."
)
PIPE = "a pipe is not read; save the table or the images as files first, and give their path"
REASON_BESIDE = "lies beside the class folders, so it has no label"


@dataclass(frozen=True)
class Skipped:
    """An image (or folder) that was set aside.

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


@dataclass(eq=False)
class ImageSet:
    """Images with their names, labels, splits, groups and weights: one entry per image in each.

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
        Images of one group are never divided between training and test part, or between folds.
    weights : array of float64, optional
        Sample weights.
    skipped : list of Skipped
        What was set aside on the way.
    root : Path, optional
        The folder or manifest they come from.
    ids : array of shape (n, 32), uint8, optional
        Digests, where the images have just been read (see `read_digests`).
    remarks : list of str
        What was guessed about folders, columns and paths, as sentences.
    no_label : str
        Why there are no labels, as a sentence, where that is known.
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
    remarks: list[str] = field(default_factory=list)
    no_label: str = ""

    def __len__(self) -> int:
        return len(self.sources)

    def __repr__(self) -> str:
        classes = "" if self.labels is None else f", {len(set(self.labels.tolist()))} classes"
        return f"ImageSet({len(self):,} images{classes}, {len(self.skipped):,} set aside)"

    def select(self, chosen: ArrayLike) -> ImageSet:
        """The same set with some images only, by mask or by positions, in their order."""
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
            list(self.remarks),
            self.no_label,
        )


def load_images(
    source: Any,
    *,
    follow_links: bool = False,
    labelled: bool | None = None,
    table: ManifestOptions | None = None,
) -> ImageSet:
    """Find the images that a user means; none is read yet.

    Parameters
    ----------
    source : object
        * A folder of class folders (``cat/``, ``dog/``): the folder's name is the label, folders below it
          are walked.
        * A folder of split folders (``train/``, ``Testing/``, ``seg_test/``, ...) of class folders, or of
          class folders of split folders. Folders beside the splits are left out with a warning.
        * A folder that holds nothing but one of these.
        * A folder of images: no labels.
        * A manifest (``.csv``, ``.tsv``, ``.parquet``, ``.xlsx``) with the columns ``path`` and, as you like,
          ``label``, ``split``, ``group``, ``weight``; paths are relative to the manifest.
        * A `RemotePath` of one of these: a folder of an object store (images are recognised by their file
          extension), a manifest, an image.
        * A pattern of paths, such as ``photos/*.jpg`` or ``photos/**/*.png``.
        * One image: a path, bytes, an open file, a PIL image, an array or a tensor.
        * A list, an iterator or a batch of those; pairs of image and label.
        * A data frame, a torch dataset, or a Hugging Face dataset; see
          `featx.images.containers.read_container`.
    follow_links : bool, default=False
        Also read links that lead out of the folder, and files outside the folder of a manifest (and outside
        its root, if that is given).
    labelled : bool, optional
        False takes every image below a folder and gives no labels, True insists on labels; by default
        what is found decides.
    table : ManifestOptions, optional
        Columns, root and separator of a manifest.

    Returns
    -------
    ImageSet
        Sorted by path for folders, in the given order otherwise.

    Raises
    ------
    DataError
        If there is nothing there, a class would be named like a split, or the manifest cannot be used; with
        the row, the column and the fix.
    UsageError
        If options of a manifest are given, and the source is none.

    Warns
    -----
    ImageWarning
        A folder was left out; a class folder without images was dropped; classes differ only by case; a link
        led back.
    """
    if isinstance(source, str | os.PathLike):
        found = _load_path(os.fsdecode(source), follow_links, labelled, table or ManifestOptions())
    elif isinstance(source, ImageSet):
        found = dataclasses.replace(source)
    else:
        found = _load_held(read_container(source))
    if labelled is False:
        found.labels = None
    if labelled and found.labels is None:
        raise DataError(f"{_shown(found.root or 'the images')}: {found.no_label or NO_LABEL}")
    if found.labels is not None:
        for sentence in doubtful_labels(found.labels):
            _warn(f"{_shown(found.root)}: {sentence}")
    return found


def load_paths(
    paths: Sequence[str | os.PathLike[str]],
    *,
    follow_links: bool = False,
    labelled: bool | None = None,
    table: ManifestOptions | None = None,
) -> ImageSet:
    """Several paths as one set: images, folders and manifests in the order given, as a shell gives them.

    Parameters
    ----------
    paths : sequence of paths
        Each as for `load_images`.
    follow_links, labelled, table
        As for `load_images`.

    Returns
    -------
    ImageSet
        Names begin with the path they come from, except where there is only one. What is not known of
        every image (labels, splits, ...) is left out. Labels of a table that are numbers become texts where
        other labels are texts.

    Raises
    ------
    DataError
        As `load_images`, or for no paths.
    """
    if not paths:
        raise DataError("no paths were given; name images, folders or a manifest.")
    found = [load_images(path, follow_links=follow_links, labelled=labelled, table=table) for path in paths]
    if len(found) == 1:
        return found[0]

    def joined(name: str) -> NDArray[Any] | None:
        columns = [getattr(each, name) for each in found]
        if any(column is None for column in columns):
            return None
        if len({column.dtype.kind for column in columns}) > 1:
            columns = [np.array([str(value) for value in column.tolist()]) for column in columns]
        return np.concatenate(columns)

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
        remarks=list(dict.fromkeys(remark for each in found for remark in each.remarks)),
        no_label=next((each.no_label for each in found if each.no_label), ""),
    )


def _load_path(path: str, follow_links: bool, labelled: bool | None, table: ManifestOptions) -> ImageSet:
    if isinstance(path, RemotePath):
        return _load_address(path, follow_links, labelled, table)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        if matched := _match(path):
            return load_paths(matched, follow_links=follow_links, labelled=labelled)
        raise DataError(f"{_shown(path)}: {_why_absent(path, error)}.") from error
    is_folder, extension = stat.S_ISDIR(mode), os.path.splitext(path)[1].lower()
    if stat.S_ISFIFO(mode) and extension not in IMAGE_EXTENSIONS:  # one named like an image is set aside
        raise DataError(f"{_shown(path)}: {PIPE}.")
    if not is_folder and (
        extension in TABLE_EXTENSIONS
        or (extension == ".txt" and {"--path-column", "--sep"} & set(table.given()))
    ):
        return _load_manifest(path, follow_links, labelled, table)
    if table.given():
        raise UsageError(f"{', '.join(table.given())}: options of a manifest, and {_shown(path)} is none.")
    if is_folder:
        return _load_folder(path, follow_links, labelled)
    if labelled is not False and stat.S_ISREG(mode) and not is_image(path):
        raise DataError(
            f"{_shown(path)}: {_kind_of(path)}. Give a folder of class folders, or a manifest "
            f"({', '.join(TABLE_EXTENSIONS)}) with the columns path and label."
        )
    return ImageSet([path], [path], root=Path(path).parent)


def _load_address(
    address: RemotePath, follow_links: bool, labelled: bool | None, table: ManifestOptions
) -> ImageSet:
    """The images of an address, by its ending: a manifest, an image, else a folder."""
    extension = os.path.splitext(address.name)[1].lower()
    if extension in TABLE_EXTENSIONS:
        return _load_manifest(address, follow_links, labelled, table)
    if table.given():
        raise UsageError(f"{', '.join(table.given())}: options of a manifest, and {_shown(address)} is none.")
    if extension in IMAGE_EXTENSIONS:
        return ImageSet([address], [address])
    return _load_folder(address, follow_links, labelled)


def _why_absent(path: str, error: Exception) -> str:
    """Why a path leads nowhere, and what is meant by it."""
    if path == "-":
        return PIPE
    if is_address(path):
        return NOT_ASKED if is_readable_address(path) else f"featx reads {', '.join(SCHEMES)} addresses only"
    if path.startswith(("file:", "~")):
        given = path.removeprefix("file://").removeprefix("file:")
        return f"no such file; give the path itself: {_shown(os.path.expanduser(given))}"
    if glob.has_magic(path):
        return "no file matches this pattern"
    folder, name = os.path.split(path.rstrip("/"))
    with contextlib.suppress(OSError, ValueError):
        near = difflib.get_close_matches(name, os.listdir(folder or "."), 1)
        if near and isinstance(error, FileNotFoundError):
            return f"no such file or directory; the nearest name is {_shown(os.path.join(folder, near[0]))}"
    return reason_of(error)


def _kind_of(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return kind_in_words(file.read(START_BYTES), path)
    except OSError as error:
        return reason_of(error)


def _load_manifest(path: str, follow_links: bool, labelled: bool | None, table: ManifestOptions) -> ImageSet:
    manifest = read_manifest(path, labelled=labelled is not False, options=table)
    files: list[ImageSource]
    folder, root, said = path.rpartition("/")[0] if isinstance(path, RemotePath) else "", table.root, ""
    try:
        if is_address(root) or (folder and root is None):
            files = [*locate_remote(manifest.paths, RemotePath(root or folder))]
        else:
            refuse_addresses(manifest.paths)
            found, said = locate(manifest.paths, os.path.dirname(path), root)
            if not follow_links:
                refuse_outside(found, [os.path.dirname(path), *([] if root is None else [root])])
            files = [*found]
    except DataError as error:
        raise DataError(f"{_shown(path)}: {error}") from None
    return ImageSet(
        files,
        manifest.paths,
        manifest.labels,
        manifest.splits,
        manifest.groups,
        manifest.weights,
        root=None if folder else Path(path),
        remarks=([_sentence(manifest.said)] if manifest.said else []) + ([said] if said else []),
        no_label=manifest.no_label,
    )


def _load_held(held: Held) -> ImageSet:
    labels = None
    if held.labels is not None:
        labels = np.asarray(held.labels)
        if len({type(label) for label in held.labels}) > 1:  # 1 and "1" stay two labels
            labels = np.empty(len(held.labels), dtype=object)
            labels[:] = held.labels
    return ImageSet(
        held.sources,
        name_sources(held.sources),
        labels,
        None if held.splits is None else np.array([_split_of(split) for split in held.splits]),
        None if held.groups is None else np.array(held.groups, dtype=object),
        None if held.weights is None else np.array(held.weights, dtype=np.float64),
        remarks=held.remarks,
        no_label=held.no_label,
    )


def _split_of(name: str) -> str:
    split = split_of(name)
    if split is None:
        raise DataError(f"{escape_name(name)!r} is not a split; name splits train, val or test.")
    return split


def _match(pattern: str) -> list[str]:
    """Files of a pattern such as ``photos/**/*.jpg``, sorted; empty where it is no pattern."""
    return sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else []


def _load_folder(root: str, follow_links: bool, labelled: bool | None) -> ImageSet:
    walk = RemoteWalk(root) if isinstance(root, RemotePath) else Walk(root, follow_links)
    try:
        layout = _FLAT if labelled is False else read_layout(walk.files)
    except DataError as error:
        raise DataError(f"{_shown(root)}: {error}") from None
    placed = {name: layout.place(name) for name in walk.files if not layout.is_left_out(name)}
    files = [name for name, place in placed.items() if place is not None]
    skipped = [
        Skipped(each.name, each.reason, (layout.place(each.name, is_folder=each.is_folder) or (None,))[0])
        for each in walk.set_aside
        if not layout.is_left_out(each.name)
    ]
    skipped += [Skipped(name, REASON_BESIDE) for name, place in placed.items() if place is None]
    if not files:
        raise DataError(_nothing_found(walk, skipped))
    for sentence in layout.warned:
        _warn(f"{_shown(root)}: {sentence}")
    _warn_of_empty_classes(walk, files, layout)
    _warn_of_empty_splits(walk, files, layout)
    found = [place for name in files if (place := placed[name])]
    said = [*layout.said, *_two_spellings(files, layout)]
    return ImageSet(
        [walk.path(name) for name in files],
        files,
        np.array([label for label, _ in found]) if layout.has_labels else None,
        np.array([split for _, split in found]) if layout.has_splits else None,
        skipped=skipped,
        root=None if isinstance(root, RemotePath) else Path(root),
        remarks=[_sentence(said)] if said else [],
        no_label="" if layout.has_labels else _no_label_hint(walk),
    )


_FLAT = Layout([Base()], has_labels=False)
"""All images below a folder, without labels."""


def _two_spellings(files: list[str], layout: Layout) -> list[str]:
    """Classes whose folders differ only by blanks at their ends or by their Unicode form."""
    folders: dict[str, set[str]] = {}
    for folder in {layout.class_folder(name) for name in files} - {None}:
        written = str(folder).rpartition("/")[2]
        folders.setdefault(plain_text(written), set()).add(written)
    return [
        f"the class {_shown(label)} has folders whose names differ by blanks or by their Unicode form"
        for label, written in sorted(folders.items())
        if len(written) > 1
    ]


def _no_label_hint(walk: Walk | RemoteWalk) -> str:
    """Where the labels of images without class folders may be."""
    if walk.tables:
        table = _shown(os.path.join(walk.root, walk.tables[0]))
        return f"{table} may be a manifest; give it instead of the folder."
    stems = [
        re.fullmatch(r"([^\W\d_]+)[\W_]*\d+", os.path.basename(n).rpartition(".")[0]) for n in walk.files
    ]
    first = sorted({stem[1] for stem in stems if stem})
    if all(stems) and 1 < len(first) <= len(stems) // 2:
        listed = ", ".join(map(_shown, first[:5]))
        return (
            f"The names of the files begin with {listed}; if these are the classes, make a folder for each."
        )
    return ""


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def _warn_of_empty_classes(walk: Walk | RemoteWalk, files: list[str], layout: Layout) -> None:
    kept = {layout.class_folder(name) for name in [*files, *(f"{each.name}/" for each in walk.set_aside)]}
    for folder in walk.folders:
        if (
            layout.class_folder(f"{folder}/") == folder
            and folder not in kept
            and not layout.is_left_out(folder)
        ):
            _warn(f"{_shown(walk.root)}: class folder {_shown(folder)} holds no image; the class is dropped.")


def _warn_of_empty_splits(walk: Walk | RemoteWalk, files: list[str], layout: Layout) -> None:
    """Warn of folders beside the split folders that are named like a split and hold no image."""
    parents = {base.prefix[:-1].rpartition("/")[0] for base in layout.bases if base.split}
    for folder in walk.folders:
        parent, _, name = folder.rpartition("/")
        split = split_of(name)
        if not (parent in parents and split) or layout.is_left_out(folder):
            continue
        if not any(file.startswith(f"{folder}/") for file in files):
            instead = "; a test part is drawn from the other images" if split == "test" else ""
            _warn(f"{_shown(walk.root)}: the folder {_shown(folder)} holds no image{instead}.")


def _warn(text: str) -> None:
    warnings.warn(text, ImageWarning, stacklevel=3)


def _nothing_found(walk: Walk | RemoteWalk, skipped: list[Skipped]) -> str:
    listed = "; ".join(f"{_shown(each.name)}: {each.reason}" for each in skipped[:10])
    why = f" Set aside: {listed}{' ...' if len(skipped) > 10 else ''}." if skipped else ""
    others = f" ({walk.others} files of other kinds)" if walk.others else ""
    return (
        f"{_shown(walk.root)}: no image found{others}; featx looks for one folder per class, "
        f"or for images such as .jpg, .png, .tif, .webp in the folder itself.{why}"
    )


def _shown(path: object) -> str:
    return escape_name(str(path))
