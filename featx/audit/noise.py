"""Wrong labels: their estimated share, and the images whose labels are suspicious.

Where a model is most confident, its own errors are rarest, so that most remaining contradictions are errors
of the labels (the anchor points of Liu & Tao, TPAMI 2016, and Patrini et al., CVPR 2017). Confident learning
(Northcutt et al., JAIR 2021) counts all confident contradictions instead. On real features with labels that
were flipped on purpose, both find the noise where the model is good. On clean but hard sets, confident
learning calls a tenth to a half of the labels wrong, and the anchors a few percent. Therefore the anchors are
used here, with the lower bound of their interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

from featx.audit.values import AuditData, Finding, listed
from featx.evaluation import CONFIDENCE, Metric
from featx.exceptions import DataError
from featx.records import Record

ANCHOR_SHARE = 0.3
"""Share of the predictions that are used as anchors: fewer are too few to count, more include honest errors.
With 5, 10 and 20 % of labels flipped on purpose, 5.7, 11.3 and 21.7 % were found on catdog (last features),
and 6.9, 11.0 and 21.0 % on clothing_dev; 0 and 0 % on the labels as they are."""

FEWEST_ANCHORS = 20
"""With fewer anchors, the rate is reported as unknown (0 to 1)."""


@dataclass(frozen=True)
class LabelNoise(Record):
    """Contradictions between labels and the most confident out-of-fold predictions.

    Parameters
    ----------
    rate : Metric
        Share of these predictions that contradict the label, with its exact 95 % interval (Clopper &
        Pearson, 1934). It includes confident errors of the model, so it is an upper estimate of the label
        noise.
    n_anchors : int
        Number of these predictions.
    """

    DERIVED: ClassVar[tuple[str, ...]] = ("ceiling",)

    rate: Metric
    n_anchors: int

    @property
    def ceiling(self) -> float:
        """Highest accuracy that can be measured with these labels: 1 - the lower bound of the rate."""
        return 1 - self.rate.low


def label_noise(y_index: ArrayLike, oof_proba: ArrayLike) -> LabelNoise:
    """Estimate the share of wrong labels from out-of-fold probabilities.

    Parameters
    ----------
    y_index : array of shape (n,), int
        Columns of the given labels.
    oof_proba : array of shape (n, n_classes)
        Out-of-fold probabilities; rows of NaN (not scored) are left out.

    Returns
    -------
    LabelNoise

    Raises
    ------
    DataError
        If the shapes do not fit.
    """
    anchors, wrong = _anchors(y_index, oof_proba)
    n_anchors, n_wrong = len(anchors), int(wrong.sum())
    if n_anchors < FEWEST_ANCHORS:
        return LabelNoise(Metric(0.0, 0.0, 1.0), n_anchors)
    tail = (1 - CONFIDENCE) / 2
    low = float(beta.ppf(tail, n_wrong, n_anchors - n_wrong + 1)) if n_wrong else 0.0
    high = float(beta.ppf(1 - tail, n_wrong + 1, n_anchors - n_wrong)) if n_wrong < n_anchors else 1.0
    return LabelNoise(Metric(n_wrong / n_anchors, low, high), n_anchors)


def find_suspicious_labels(data: AuditData) -> Finding | None:
    """Find labels that the most confident out-of-fold predictions contradict.

    `value` is the share of these predictions that contradict their label. Nothing is reported where the 95 %
    interval of the share includes 0.
    """
    if data.labels is None or data.oof_proba is None:
        return None
    classes, codes = np.unique(data.labels, return_inverse=True)
    noise = label_noise(codes, data.oof_proba)
    if not noise.rate.low > 0:
        return None
    anchors, wrong = _anchors(codes, data.oof_proba)
    images = anchors[wrong]
    predicted = data.oof_proba[images].argmax(axis=1)
    texts = [
        f"{data.names[i]} is {data.labels[i]}, predicted {classes[p]}"
        for i, p in zip(images, predicted, strict=True)
    ]
    sentence = (
        f"{len(images)} of the {noise.n_anchors} most confident predictions contradict their label: "
        f"{listed(texts)}. Look at these pictures and correct wrong labels."
    )
    return Finding.of(data, "suspicious_labels", "warning", sentence, images, noise.rate.value)


def _anchors(y_index: ArrayLike, oof_proba: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return the rows of the most confident predictions, and which of these contradict their label."""
    y, proba = np.asarray(y_index, dtype=np.intp), np.asarray(oof_proba, dtype=np.float64)
    if proba.ndim != 2 or len(proba) != len(y):
        raise DataError(f"{len(y)} labels, but probabilities of shape {proba.shape}; give one row a label.")
    scored = np.flatnonzero(~np.isnan(proba).any(axis=1))
    order = np.argsort(-proba[scored].max(axis=1), kind="stable")
    anchors = scored[order[: round(ANCHOR_SHARE * len(scored))]]
    return anchors, proba[anchors].argmax(axis=1) != y[anchors]
