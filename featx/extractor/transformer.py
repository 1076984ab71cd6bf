"""What scikit-learn expects of a transformer of images."""

from __future__ import annotations

from typing import Any

from sklearn.base import TransformerMixin

from featx.extractor.sources import as_sources


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

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.input_tags.three_d_array = True
        tags.requires_fit = True
        return tags  # type: ignore[no-any-return]
