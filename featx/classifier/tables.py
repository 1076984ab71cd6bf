"""Tables of a classifier's predictions, image by image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from featx.classifier.inputs import Images, as_images
from featx.classifier.predictions import Predictions
from featx.evaluation.answers import COLUMNS
from featx.exceptions import UsageError
from featx.features import FeatureBlocks
from featx.records import as_frame

if TYPE_CHECKING:
    from featx.classifier.fitting import Fitted


class ResultTables:
    """Predictions of `ImageClassifier` image by image, as a DataFrame, or a list of dicts without pandas."""

    _fitted: Fitted

    def proba_of_features(self, features: FeatureBlocks) -> NDArray[np.float64]:
        """Return probabilities, shape (n, n_classes), from features that `extract` returned."""
        check_is_fitted(self)
        return self._fitted.model.proba(features)

    def predictions(self, X: Images | None = None, y: ArrayLike | None = None) -> Predictions:
        """Return the predictions of images; those of the fit by default, if it was in this process.

        Training images get their out-of-fold probabilities.

        Raises
        ------
        UsageError
            If no images are given, and the classifier was loaded.
        """
        check_is_fitted(self)
        images = self._fitted.images if X is None else as_images(X, y)
        if images is None:
            raise UsageError("the images of the fit are not known: this classifier was loaded. Give images.")
        found = self.extract(images, on_error="skip")  # type: ignore[attr-defined]
        model = self.model_  # type: ignore[attr-defined]
        return Predictions.of(model, images, found, self._fitted.record.oof_proba)

    def mistakes(self) -> Any:
        """Return images of the fit whose answer is not their label: the test part, and others out of fold.

        Raises
        ------
        UsageError
            If the classifier was loaded; ``predictions(images)`` has the same for given images.
        """
        found = self.predictions()
        return as_frame(found.take(found.wrong).rows(), COLUMNS)

    def oof_table(self) -> Any:
        """Return the out-of-fold answer of each training image of the fit; raises as `mistakes`."""
        found = self.predictions()
        return as_frame(found.take(found.parts == "train").rows(), COLUMNS)

    def predict_sets(self, X: Images, coverage: float = 0.9) -> list[list[Any]]:
        """Return a set of labels for each image; it contains the true label for a share `coverage` of images.

        Conformal prediction (`featx.evaluation.conformal`); it holds for images like the training images.

        Raises
        ------
        UsageError
            If the network was fine-tuned, since there are no out-of-fold probabilities of it.
        """
        return self.sets_of(self.predict_proba(X), coverage)  # type: ignore[attr-defined]

    def sets_of(self, proba: NDArray[np.float64], coverage: float) -> list[list[Any]]:
        """`predict_sets` from probabilities; the most probable label of each set comes first."""
        check_is_fitted(self)
        return self._fitted.model.sets_of(proba, self._fitted.record.conformal, coverage)

    def unlike(self, X: Images) -> NDArray[np.float64]:
        """Return how unlike the training images each image is, shape (n_images,).

        The distance of its features to the nearest training image, as a percentile (0 to 100) of the
        distances of training images to the nearest other one; see `featx.evaluation.unlike`.
        """
        found = self.extract(as_images(X))  # type: ignore[attr-defined]
        return self._fitted.model.unlike(found.blocks, found.ids)
