"""Image sources: what users pass as X, as a sequence, and the digests of its images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sklearn.base import TransformerMixin
from sklearn.utils import Tags

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


class ImageTransformer(TransformerMixin):
    """A transformer of images; `fit_transform` reads an iterator, a file or a dataset once, not twice."""

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> Any:
        """`fit`, then `transform`.

        Parameters
        ----------
        X, y
            As for `fit`.
        **fit_params
            As for `fit`.

        Returns
        -------
        array of shape (n_images, n_features), float32
        """
        given = X if hasattr(X, "columns") else as_sources(X)
        return super().fit_transform(given, y, **fit_params)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.input_tags.three_d_array = True
        tags.requires_fit = True
        return tags  # type: ignore[no-any-return]


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
