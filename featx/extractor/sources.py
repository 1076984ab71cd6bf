"""Image sources: what users pass as X, as a sequence, and the digests of its images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from featx.exceptions import UsageError
from featx.images import ImageSource, load_images, read_digests
from featx.stores.base import Ids, as_ids


def as_sources(X: Any) -> Sequence[ImageSource]:
    """Make a sequence of image sources from what users of scikit-learn pass as X.

    Parameters
    ----------
    X : list, array, series, data frame of one column, ImageSet, or path of a folder or manifest
        An array of shape (n, H, W, 3) or (n, H, W) is a batch of n images.

    Raises
    ------
    UsageError
        If it is none of these.
    """
    if hasattr(X, "sources"):
        return list(X.sources)
    if isinstance(X, str | os.PathLike):
        return list(load_images(X).sources)
    if hasattr(X, "columns"):
        if len(X.columns) != 1:
            raise UsageError(
                f"a data frame with columns {list(X.columns)} is not a column of images; select one."
            )
        X = X.iloc[:, 0]
    if hasattr(X, "to_numpy"):
        X = X.to_numpy()
    if isinstance(X, np.ndarray):
        if X.dtype == object or X.dtype.kind in "US":
            if X.ndim > 1 and X.size != len(X):
                raise UsageError(f"an array of paths has shape (n,), not {X.shape}.")
            return list(X.reshape(-1).tolist())
        if X.ndim not in (3, 4) or (X.ndim == 3 and X.shape[2] in (3, 4)):
            raise UsageError(
                f"an array of shape {X.shape} is not a batch of images; give (n, H, W, 3), or a list."
            )
        return list(X)
    if not isinstance(X, Iterable) or isinstance(X, bytes):
        raise UsageError(f"a {type(X).__name__} is not a list of images; give paths, bytes or arrays.")
    return list(X)


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
