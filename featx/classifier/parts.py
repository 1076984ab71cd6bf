"""The parts of what a classifier has fitted, under scikit-learn's names."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from sklearn.utils.validation import check_is_fitted

from featx.classifier.fitting import Fitted
from featx.classifier.model import ImageModel
from featx.evaluation import Evaluation
from featx.exceptions import FeatxError

ONLY_AFTER_FIT = ("training", "study", "cv_results")
"""Parts that are absent where the classifier was loaded or grown."""


def _part(path: str, doc: str) -> Any:
    """Return a property that is a part of what was fitted; absent parts raise AttributeError."""

    def get(self: FittedParts) -> Any:
        check_is_fitted(self)  # its error is an AttributeError, too
        value = attrgetter(path)(self._fitted)
        if value is None and path in ONLY_AFTER_FIT:
            raise AttributeError(f"{path}_ is absent: this classifier was loaded or grown, not fitted here.")
        return value

    return property(get, doc=doc)


class FittedParts:
    """Properties of a fitted classifier; looking at one computes nothing."""

    decide: str | Mapping[Any, float]
    _fitted: Fitted

    @property
    def model_(self) -> ImageModel:
        """The fitted model, with the decision that `decide` describes."""
        try:
            return self._deciding()
        except FeatxError as error:  # hasattr and dir expect this error of an attribute
            raise AttributeError(str(error)) from error

    record_ = _part("record", "How it came about.")
    training_ = _part("training", "The training images, for advice.")
    study_ = _part("study", "All trials.")
    cv_results_ = _part("cv_results", "One entry for each configuration of the search.")
    classes_ = _part("model.classes", "Labels, in their own type.")
    best_estimator_ = _part("model.head", "Pipeline from features to decision scores.")
    best_blocks_ = _part("model.blocks", "Blocks of features that the pipeline uses.")
    specs_ = _part("model.specs", "How these blocks are computed.")
    cards_ = _part("model.cards", "The networks that they come from.")
    card_ = _part("model.card", "The first of these networks.")
    calibration_ = _part("model.calibration", "From decision scores to probabilities.")
    decision_ = property(lambda self: self.model_.decision, doc="How labels follow from probabilities.")
    operating_points_ = _part(
        "record.operating_points", "Scores of other decisions, if classes are imbalanced."
    )
    augmentation_ = _part("model.augmentation", "The augmentation that was kept.")
    network_ = _part("model.network", "The fine-tuned network, or None.")
    assignment_ = _part("model.assignment", "Part of each image, by its hex digest.")
    best_params_ = _part("record.params", "The selected configuration.")
    best_score_ = _part("record.score", "Its cross-validation score; optimistic, since selected by it.")
    scoring_ = _part("record.scoring", "Name of the score that was maximised.")
    choice_ = _part("record.choice", "The selected representation against its rivals, or None.")
    tried_ = _part("record.tried", "What was tried for the winner, and whether it was kept.")
    backbone_comparison_ = _part("record.backbones", "Comparison of the backbones, or None.")
    oof_proba_ = _part("record.oof_proba", "Out-of-fold probabilities of the training images.")
    oof_evaluation_ = _part("record.oof_evaluation", "Out-of-fold estimate on the training images.")
    evaluation_ = _part("record.evaluation", "Score on the held-out test part, or None.")
    fine_tune_ = _part("record.fine_tuning", "What fine-tuning did, or None.")
    skipped_ = _part("record.skipped", "Images that were set aside.")
    remarks_ = _part("record.remarks", "Remarks of the extraction.")
    n_computed_ = _part("record.n_computed", "Images that went through the network.")

    def _folds(self) -> Evaluation | None:
        """The score out of fold by the decision in use; None if `decide` replaces that of the fit."""
        own = self._fitted.model.decision.weights == self._deciding().decision.weights
        return self._fitted.record.oof_evaluation if own else None

    def _deciding(self, decide: str | Mapping[Any, float] | None = None) -> ImageModel:
        """The fitted model with a decision, by default that of the parameter `decide`."""
        check_is_fitted(self)
        return self._fitted.model.deciding(self.decide if decide is None else decide)
