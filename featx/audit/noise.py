"""Wrong labels: their estimated share, and the images whose labels are suspicious.

Where a model is most confident, its own errors are rarest, so that most remaining contradictions are errors
of the labels (the anchor points of Liu & Tao, TPAMI 2016, and Patrini et al., CVPR 2017). Confident learning
(Northcutt et al., JAIR 2021) counts all confident contradictions instead. On real features with labels that
were flipped on purpose, both find the noise where the model is good. On clean but hard sets, confident
learning calls a tenth to a half of the labels wrong, and the anchors a few percent. Therefore the share of
wrong labels is that of the anchors, with its interval, and confident learning only ranks the images.
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
from featx.tables import count

ANCHOR_SHARE = 0.3
"""Share of the predictions that are used as anchors: fewer are too few to count, more include honest errors.
With 5, 10 and 20 % of labels flipped on purpose, 5.7, 11.3 and 21.7 % were found on catdog (last features),
and 6.9, 11.0 and 21.0 % on clothing_dev; 0 and 0 % on the labels as they are."""

MOST_NAMED = 100
"""Suspicious labels of a finding."""

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


def contradictions(y_index: ArrayLike, oof_proba: ArrayLike) -> NDArray[np.intp]:
    """Images that are predicted as another class, by the probability of their label, the smallest first.

    Parameters
    ----------
    y_index, oof_proba
        As for `confident_issues`.
    """
    y, proba = np.asarray(y_index, np.intp), np.asarray(oof_proba, np.float64)
    scored = np.flatnonzero(~np.isnan(proba).any(axis=1))
    found = scored[proba[scored].argmax(axis=1) != y[scored]]
    ranked: NDArray[np.intp] = found[np.argsort(proba[found, y[found]], kind="stable")]
    return ranked


def confident_issues(y_index: ArrayLike, oof_proba: ArrayLike) -> NDArray[np.intp]:
    """Images whose label confident learning doubts, the most doubtful first.

    The off-diagonal of the confident joint (Northcutt et al., JAIR 2021), ranked by the probability of the
    given label: what cleanlab's ``find_label_issues`` with ``filter_by="confident_learning"`` and
    ``return_indices_ranked_by="self_confidence"`` returns.

    Parameters
    ----------
    y_index : array of shape (n,), int
        Columns of the given labels.
    oof_proba : array of shape (n, n_classes)
        Out-of-fold probabilities; rows of NaN (not scored) are left out.
    """
    y, proba = np.asarray(y_index, np.intp), np.asarray(oof_proba, np.float64)
    scored = np.flatnonzero(~np.isnan(proba).any(axis=1))
    y, proba = y[scored], proba[scored]
    given = proba[np.arange(len(y)), y]
    size = np.bincount(y, minlength=proba.shape[1])
    usual = np.bincount(y, weights=given, minlength=proba.shape[1]) / np.maximum(size, 1)
    usual[size == 0] = np.inf
    sure = np.where(proba >= usual - 1e-6, proba, -1.0)
    other = sure.argmax(axis=1)
    doubtful = (sure.max(axis=1) > 0) & (other != y) & (proba.argmax(axis=1) != y)
    found = np.flatnonzero(doubtful)
    ranked: NDArray[np.intp] = scored[found[np.argsort(given[found], kind="stable")]]
    return ranked


def find_suspicious_labels(data: AuditData) -> Finding | None:
    """Find labels that out-of-fold predictions contradict, ranked by confident learning.

    `value` is the share of the most confident predictions that contradict their label. The finding is a
    warning where the 95 % interval of that share excludes 0, else a note. It is a note, too, where the
    predictions are wrong more often than right: most contradictions are then errors of the prediction.
    """
    if data.labels is None or data.proba is None or data.codes is None:
        return None
    classes = np.unique(data.labels)
    confident, contradicted = confident_issues(data.codes, data.proba), contradictions(data.codes, data.proba)
    if not len(contradicted):
        return None
    noise = label_noise(data.codes, data.proba)
    shown = contradicted[:MOST_NAMED]
    proba, labels = data.proba[shown], data.labels
    best = proba.argmax(axis=1)
    texts = [
        f"{data.names[i]} is {labels[i]}, predicted {classes[p]}" for i, p in zip(shown, best, strict=True)
    ] + [""] * (len(contradicted) - len(shown))
    n_scored = int(np.count_nonzero(~np.isnan(data.proba).any(axis=1)))
    weak = 2 * len(contradicted) > n_scored
    wrong = round(noise.rate.value * noise.n_anchors)
    first = f"The most suspicious first: {listed(texts)}."
    if weak:
        sentence = (
            f"The prediction contradicts {len(contradicted)} of {count(n_scored, 'label')}. It is wrong more "
            f"often than right, so it cannot judge labels. {first}"
        )
    else:
        sentence = (
            f"{count(len(contradicted), 'label')} that the prediction contradicts, {len(confident)} of them "
            f"with confidence. {first} Of the {noise.n_anchors} most confident predictions, {wrong} "
            "contradict their label. Look at these images and correct wrong labels."
        )
    near = data.nearest(shown)
    return Finding.of(
        data, "suspicious_labels", "warning" if noise.rate.low > 0 and not weak else "note", sentence, shown,
        noise.rate.value,
        evidence=[
            f"labelled {labels[i]} with probability {p[data.codes[i]]:.3f}, predicted {classes[b]} with "
            f"{p[b]:.3f}" + (f"; nearest images: {_told(data, kin)}" if kin else "")
            for i, p, b, kin in zip(shown, proba, best, near, strict=True)
        ],
        suggestions=[f"relabel:{classes[b]}" for b in best],
        beside=near,
    )  # fmt: skip


def _told(data: AuditData, images: list[int]) -> str:
    """Names of images with their labels."""
    assert data.labels is not None
    return ", ".join(f"{data.names[i]} ({data.labels[i]})" for i in images)


def _anchors(y_index: ArrayLike, oof_proba: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return the rows of the most confident predictions, and which of these contradict their label."""
    y, proba = np.asarray(y_index, dtype=np.intp), np.asarray(oof_proba, dtype=np.float64)
    if proba.ndim != 2 or len(proba) != len(y):
        raise DataError(f"{len(y)} labels, but probabilities of shape {proba.shape}; give one row a label.")
    scored = np.flatnonzero(~np.isnan(proba).any(axis=1))
    order = np.argsort(-proba[scored].max(axis=1), kind="stable")
    anchors = scored[order[: round(ANCHOR_SHARE * len(scored))]]
    return anchors, proba[anchors].argmax(axis=1) != y[anchors]
