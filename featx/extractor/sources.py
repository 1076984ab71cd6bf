"""Image sources: what users pass as X, as a sequence, and the digests of its images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featx.images import ImageSet, ImageSource, load_images, read_digests
from featx.stores.base import Ids, as_ids


def as_sources(X: Any) -> Sequence[ImageSource]:
    """Make a sequence of image sources of what users pass as X.

    Parameters
    ----------
    X : ImageSet, or anything that `featx.images.load_images` reads
        A list, array or series of paths, bytes, PIL images, arrays or tensors; a batch of shape (n, H, W, 3)
        or (n, H, W); a data frame; a dataset; a path or a pattern.

    Raises
    ------
    DataError
        If it is none of these, or holds no image.
    """
    if isinstance(X, list) and not X:
        return []
    return X.sources if isinstance(X, ImageSet) else load_images(X).sources


def distinct_digests(sources: Sequence[ImageSource]) -> tuple[Ids, list[int], int]:
    """Read the distinct digests of images.

    Returns
    -------
    ids : array of shape (n, 32), uint8
    positions : list of int
        Position of the first source of each digest.
    unreadable : int
        Number of sources that cannot be read.
    """
    digests, errors = read_digests(sources)
    first: dict[bytes, int] = {}
    for position, digest in enumerate(digests):
        if digest is not None:
            first.setdefault(digest, position)
    return as_ids(first), list(first.values()), len(errors)
