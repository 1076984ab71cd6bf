"""Checks of images that are unlike all others, or unlike their class."""

from __future__ import annotations

import numpy as np

from featx.audit.values import NEIGHBOURS, AuditData, Finding, listed
from featx.tables import count

OUTLYING = 4.5
"""Modified z-score of the distance to the nearest images from which an image is an outlier."""

FEWEST = 30
MOST_NAMED = 50


def find_outliers(data: AuditData) -> Finding | None:
    """Find images that are far from all others; `value` is their number."""
    if data.features is None or len(data.features) < FEWEST:
        return None
    cosine = data.neighbours[1].mean(axis=1)
    middle = float(np.median(cosine))
    spread = max(float(np.median(np.abs(cosine - middle))) / 0.6745, 1e-3)
    far = (middle - cosine) / spread
    found = np.flatnonzero(far > OUTLYING)
    found = found[np.argsort(-far[found])]
    if not len(found):
        return None
    shown = found[:MOST_NAMED]
    sentence = (
        f"{count(len(found), 'image')} unlike all others: {listed([data.names[i] for i in shown])}. "
        "Do they belong to the set?"
    )
    return Finding.of(
        data, "outliers", "note", sentence, shown, len(found),
        evidence=[f"mean cosine {cosine[i]:.2f} to the nearest images (median {middle:.2f})" for i in shown],
    )  # fmt: skip


def find_unlike_class(data: AuditData) -> Finding | None:
    """Find images whose nearest images are all of one other class; `value` is
    their number.
    """
    if data.features is None or data.codes is None or data.labels is None or len(data.codes) < FEWEST:
        return None
    codes = data.codes
    if np.median(np.bincount(codes)) <= 2 * NEIGHBOURS:
        return None
    near = data.neighbours[0]
    alone = (codes[near] != codes[:, None]).all(axis=1)
    one_class = (codes[near] == codes[near[:, :1]]).all(axis=1)
    found = np.flatnonzero(alone & one_class)
    if not len(found):
        return None
    shown = found[:MOST_NAMED]
    texts = [f"{data.names[i]} is {data.labels[i]} among {data.labels[near[i, 0]]}" for i in shown]
    number = count(len(found), "image")
    sentence = f"{number} whose {NEIGHBOURS} nearest images are of another class: {listed(texts)}."
    return Finding.of(
        data, "unlike_class", "note", sentence, shown, len(found),
        evidence=[f"nearest images are {data.labels[near[i, 0]]}" for i in shown],
        suggestions=[f"relabel:{data.labels[near[i, 0]]}" for i in shown],
    )  # fmt: skip
