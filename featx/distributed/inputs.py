"""The input of `extract` as a Ray dataset of blocks of images."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.distributed.rows import check_rows, image_of
from featx.distributed.worker import NAME, POSITION
from featx.exceptions import DataError, UsageError
from featx.images import ImageSet, Skipped, escape_name, load_images, load_paths
from featx.images.folder import IMAGE_EXTENSIONS
from featx.images.picture import reason_of
from featx.remote import RemotePath

if TYPE_CHECKING:
    import ray.data

PARQUET, SHARD = (".parquet", ".pq"), (".tar",)
"""Endings of tables and of WebDataset shards."""

IMAGES, URLS, TABLES, SHARDS = "images", "URLs", "Parquet", "shards"
"""Kinds of inputs."""

SAMPLE = 64
"""Rows of a dataset that are read to find the column of images, and the range of pixels above 8 bits."""


@dataclass(frozen=True)
class Inputs:
    """A Ray dataset, and what is known of its images before any is read.

    Parameters
    ----------
    dataset : ray.data.Dataset
        One image in each row (see `featx.distributed.rows.image_of`).
    sample : sequence of image sources
        All images of a list, the first ones of a dataset.
    column : str, optional
        Column of the images.
    paths : bool
        Whether texts are paths.
    images : ImageSet or None
        The images, where they are a list of files.
    total : int
        Number of images; 0 if it is not known.
    """

    dataset: ray.data.Dataset
    sample: Sequence[Any]
    column: str | None
    paths: bool
    images: ImageSet | None
    total: int

    @property
    def skipped(self) -> list[Skipped]:
        """Images and folders that were skipped when the images were found."""
        return self.images.skipped if self.images is not None else []


def open_inputs(data: Any, *, column: str | None, block_rows: int) -> Inputs:
    """Make a dataset of the input of `extract`.

    Parameters
    ----------
    data, column, block_rows
        As for `extract`.

    Raises
    ------
    DataError
        If there is no image, or no column of images.
    UsageError
        If images are given that only this process has, or files of several kinds.
    """
    import ray.data

    if isinstance(data, ray.data.Dataset):
        return _of_dataset(data, column, paths=True)
    if isinstance(data, str | os.PathLike):
        data = [data]
    if isinstance(data, list | tuple) and data and all(isinstance(one, str | os.PathLike) for one in data):
        kind, files = kind_of(data, column)
        if kind != IMAGES:
            return _of_dataset(_read(kind, files), column, paths=False)
        return _of_images(load_paths(data, labelled=False), block_rows)
    return _of_images(load_images(data, labelled=False), block_rows)


def kind_of(paths: Sequence[str | os.PathLike[str]], column: str | None = None) -> tuple[str, list[str]]:
    """Return the kind of files at these paths, and the files that Ray reads.

    Parameters
    ----------
    paths : sequence of paths
        As `extract` gets them.
    column : str, optional
        As for `extract`.

    Returns
    -------
    kind : {'images', 'URLs', 'Parquet', 'shards'}
        Images are image files, folders and manifests.
    files : list of str
        Files of folders and patterns.

    Raises
    ------
    UsageError
        If they are of several kinds.
    """
    texts = [os.fsdecode(path) for path in paths]
    files = [file for text in texts for file in _files(text)]
    kinds = {_kind(file, column) for file in files}
    if len(kinds) > 1:
        raise UsageError(
            f"{escape_name(texts[0])}: files of several kinds ({', '.join(sorted(kinds))}); give one kind "
            "at a time."
        )
    return kinds.pop(), files


def _of_images(images: ImageSet, block_rows: int) -> Inputs:
    """Blocks of paths."""
    import pyarrow
    import ray.data

    paths = [source for source in images.sources if isinstance(source, str | os.PathLike)]
    if len(paths) < len(images):
        raise UsageError(
            "images in memory are not sent to other machines; give paths, or a Ray dataset with a column "
            "bytes."
        )
    files = [
        str(source) if isinstance(source, RemotePath) else os.path.abspath(os.fsdecode(source))
        for source in paths
    ]
    bad = next((file for file in files if not _is_text(file)), None)
    if bad is not None:
        raise DataError(
            f"{escape_name(bad)}: the name is not UTF-8, which a table of paths cannot hold; rename it."
        )
    tables = [
        pyarrow.table(
            {
                POSITION: pyarrow.array(range(start, min(start + block_rows, len(files)))),
                NAME: images.names[start : start + block_rows],
                "path": files[start : start + block_rows],
            }
        )
        for start in range(0, len(files), block_rows)
    ]
    return Inputs(ray.data.from_arrow(tables), images.sources, "path", True, images, len(files))


def _of_dataset(dataset: ray.data.Dataset, column: str | None, *, paths: bool) -> Inputs:
    rows = dataset.take(SAMPLE)
    check_rows(rows, column, paths=paths)
    found = [image_of(row, column, paths=paths)[1] for row in rows]
    return Inputs(dataset, [one for one in found if one is not None], column, paths, None, 0)


def _files(text: str) -> list[str]:
    """Files of a pattern or of a folder of tables or shards; else the text itself."""
    if "://" in text:
        return [text]
    if glob.has_magic(text) and not os.path.lexists(text):
        return sorted(glob.glob(text, recursive=True)) or [text]
    if os.path.isdir(text):
        inside = sorted(one for one in os.listdir(text) if not one.startswith((".", "_")))
        if inside and len({_ending(one) for one in inside}) == 1 and _ending(inside[0]) in (*PARQUET, *SHARD):
            return [os.path.join(text, one) for one in inside]
    return [text]


def _kind(file: str, column: str | None) -> str:
    """Return the kind of one file."""
    ending = _ending(file)
    if ending in SHARD:
        return SHARDS
    if ending in PARQUET:
        return TABLES if "://" in file or column is not None or _holds_bytes(file) else IMAGES
    return URLS if "://" in file else IMAGES


def _holds_bytes(file: str) -> bool:
    """Whether a Parquet file has a column of bytes; one without is a manifest."""
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(file)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{escape_name(file)}: not a readable parquet file ({reason_of(error)}).") from error
    types = [one.type for one in schema]
    types += [inner.type for one in types if pyarrow.types.is_struct(one) for inner in one]
    return any(pyarrow.types.is_binary(one) or pyarrow.types.is_large_binary(one) for one in types)


def _read(kind: str, files: list[str]) -> ray.data.Dataset:
    """Open files with Ray's own readers."""
    import ray.data

    paths = [file if "://" in file else str(Path(file).absolute()) for file in files]
    if kind == SHARDS:
        return ray.data.read_webdataset(paths, decoder=None)
    if kind == TABLES:
        return ray.data.read_parquet(paths)
    endings = sorted(ending.lstrip(".") for ending in IMAGE_EXTENSIONS)
    return ray.data.read_binary_files(paths, include_paths=True, file_extensions=endings)


def _ending(file: str) -> str:
    return os.path.splitext(file)[1].lower()


def _is_text(file: str) -> bool:
    try:
        file.encode()
    except UnicodeEncodeError:
        return False
    return True
