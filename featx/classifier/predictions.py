"""Predictions of a model image by image, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.classifier.model import ImageModel
from featx.evaluation import Decision
from featx.evaluation.answers import AnswerTable
from featx.extractor import Extraction
from featx.images import ImageSet


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of images, with what is known of them.

    Parameters
    ----------
    images : ImageSet
        The images that could be read.
    ids : array of shape (n, 32), uint8
        Their digests.
    parts : array of shape (n,), str
        ``train``, ``test``, or ``new`` for an image that the model does not know.
    classes : array of shape (n_classes,)
        Labels of the columns.
    proba : array of shape (n, n_classes)
        Probabilities: out-of-fold for training images; NaN where they are not known.
    unlike : array of shape (n,)
        How unlike the training images each is, as a percentile.
    found : Extraction
        The features.
    decision : Decision
        How answers follow from probabilities.
    """

    images: ImageSet
    ids: NDArray[np.uint8]
    parts: NDArray[np.str_]
    classes: NDArray[Any]
    proba: NDArray[np.float64]
    unlike: NDArray[np.float64]
    found: Extraction
    decision: Decision

    @classmethod
    def of(
        cls, model: ImageModel, images: ImageSet, found: Extraction, oof_proba: NDArray[np.float64] | None
    ) -> Predictions:
        """Return the predictions of images whose features were extracted.

        Without `oof_proba`, training images get the answers of the model, which knows them.
        Training images get their out-of-fold probabilities, if all of them are among the images, in the order
        of the fit; else NaN.
        """
        kept = images.select(found.kept)
        parts = np.array(model.parts(found.ids), dtype=np.str_)
        proba = model.proba(found.blocks) if len(kept) else np.empty((0, len(model.classes)))
        unlike = model.unlike(found.blocks, found.ids) if len(kept) else np.empty(0)
        trained = parts == "train"
        if oof_proba is not None:
            proba[trained] = oof_proba if trained.sum() == len(oof_proba) else np.nan
        return cls(kept, found.ids, parts, model.classes, proba, unlike, found, model.decision)

    @property
    def truth(self) -> NDArray[np.intp]:
        """Columns of the labels, shape (n,); -1 for no label, and for a class that was not learnt."""
        if self.images.labels is None:
            return np.full(len(self.images), -1)
        place = {label: code for code, label in enumerate(self.classes.tolist())}
        return np.array([place.get(label, -1) for label in self.images.labels.tolist()], np.intp)

    @property
    def answers(self) -> NDArray[np.intp]:
        """Columns of the answers, shape (n,); -1 where there is no probability."""
        known = np.asarray(~np.isnan(self.proba).any(axis=1))
        shares = self.decision.shares(np.where(known[:, None], self.proba, 1.0))
        return np.where(known, shares.argmax(axis=1), -1)

    @property
    def wrong(self) -> NDArray[np.bool_]:
        """Images with a label whose answer is another one, shape (n,)."""
        return np.asarray((self.truth >= 0) & (self.answers >= 0) & (self.answers != self.truth))

    def take(self, chosen: NDArray[Any]) -> Predictions:
        """Return the predictions of some images, by a mask or by positions."""
        index = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        return Predictions(
            self.images.select(index),
            self.ids[index],
            self.parts[index],
            self.classes,
            self.proba[index],
            self.unlike[index],
            self.found,
            self.decision,
        )

    def rows(self) -> list[dict[str, Any]]:
        """One dict of `featx.evaluation.answers.COLUMNS` for each image."""
        labels = self.images.labels
        return AnswerTable.of(
            self.classes.tolist(),
            self.proba,
            self.decision,
            names=self.images.names,
            parts=self.parts.tolist(),
            truth=[None] * len(self.images) if labels is None else labels.tolist(),
            unlike=self.unlike,
        ).rows()
