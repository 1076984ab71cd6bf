"""Sets of which no image is left: how many exist, the first that does not, and the likely cause."""

from __future__ import annotations

import ntpath
import os
from collections.abc import Sequence
from typing import TypeGuard

from featx.exceptions import TooManyBadImagesError
from featx.images.find import Skipped
from featx.images.picture import NOT_ASKED, ImageSource
from featx.remote import RemotePath, is_address
from featx.tables import escape_name

LISTED = 3
"""Images that are named with their reason."""


def nothing_left(sources: Sequence[ImageSource], skipped: Sequence[Skipped]) -> TooManyBadImagesError:
    """Return the error for a set of which no image can be used.

    Parameters
    ----------
    sources : sequence of image sources
        All images, none of which can be used.
    skipped : sequence of Skipped
        Why, in the same order.
    """
    total = len(sources)
    if total == 1:
        one = skipped[0]
        return TooManyBadImagesError(
            f"{escape_name(one.name)}: {one.reason}. It is the only image, so there is nothing to do.",
            skipped,
        )
    paths = [os.fsdecode(source) for source in sources if _is_path(source)]
    absent = [path for path in paths if not _exists(path)]
    if not absent:
        return TooManyBadImagesError(
            f"none of the {total:,} images can be used: {_listed(skipped)}.", skipped
        )
    n_there = total - len(absent)
    there = (
        f"{n_there:,} of the {total:,} images exist" if n_there else f"none of the {total:,} images exists"
    )
    rest = f", and no image can be used ({_listed(skipped)})" if n_there else ""
    return TooManyBadImagesError(
        f"{there}{rest}. The first that does not exist is {escape_name(absent[0])}. "
        f"{likely_cause(absent[0])}",
        skipped,
    )


def absent_images(sources: Sequence[ImageSource], names: Sequence[str]) -> list[tuple[int, Skipped]]:
    """Return position and reason of the paths that lead nowhere."""
    found = []
    for position, (source, name) in enumerate(zip(sources, names, strict=True)):
        if _is_path(source) and not _exists(os.fsdecode(source)):
            found.append((position, Skipped(name, "no such file or directory")))
    return found


def likely_cause(path: str) -> str:
    """Say, as sentences, why a path leads nowhere, and what to do."""
    if is_address(path):
        return f"It is {NOT_ASKED}."
    above = path
    while above and not _exists(above) and os.path.dirname(above) != above:
        above = os.path.dirname(above)
    missing = path[len(above) :].strip("/").split("/")[0]
    if "\\" in path or ntpath.splitdrive(os.path.basename(path))[0]:
        cause = "It was written on Windows"
    elif not above or above == "/" or missing == "":
        cause = "It was written on another machine" if os.path.isabs(path) else "The path is misspelt"
    elif os.path.isdir(above):
        cause = f"The folder {escape_name(above)} exists, and {escape_name(missing)} is not in it"
    else:
        cause = f"{escape_name(above)} is not a folder"
    return (
        f"{cause}: the images were moved, or the paths are relative to another folder. In a manifest, name "
        "the folder that holds them (--root DIR)."
    )


def _listed(skipped: Sequence[Skipped]) -> str:
    listed = "; ".join(f"{escape_name(one.name)}: {one.reason}" for one in skipped[:LISTED])
    return listed + (f"; and {len(skipped) - LISTED:,} more" if len(skipped) > LISTED else "")


def _is_path(source: ImageSource) -> TypeGuard[str | os.PathLike[str]]:
    """Whether a source is a path on this machine."""
    return isinstance(source, str | os.PathLike) and not isinstance(source, RemotePath)


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:  # a NUL in the name
        return False
