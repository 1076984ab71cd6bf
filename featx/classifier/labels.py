"""Labels by digest, kept beside the rows, so that a model can grow without its old pictures.

A model file holds which digests it was trained on, and no label of them. The cache on the machine that
fitted it also knows the labels: a note of some bytes an image under the hash of the assignment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.stores.base import FeatureStore, as_ids

NOTES = "labels"

PLAIN = (str, int, float, bool)
"""Types of labels that JSON gives back as they were."""


@dataclass(frozen=True)
class KnownLabels:
    """What is known of the images of a model.

    Parameters
    ----------
    ids : array of shape (n, 32), uint8
        Their digests.
    labels : array of shape (n,)
        Their labels.
    groups : array of shape (n,), or None
        The user's groups; None where there were none.
    """

    ids: NDArray[np.uint8]
    labels: NDArray[Any]
    groups: NDArray[Any] | None


def remember_labels(
    store: FeatureStore,
    assignment: Mapping[str, str],
    ids: NDArray[np.uint8],
    labels: NDArray[Any],
    groups: NDArray[Any] | None,
) -> None:
    """Keep the labels (and groups) of images under the assignment they were split by.

    Labels that are neither text nor numbers cannot be kept; then nothing is.
    """
    values = labels.tolist()
    if not all(isinstance(label, PLAIN) for label in values):
        return
    digests = [row.tobytes().hex() for row in ids]
    names = None if groups is None else [None if g is None else str(g) for g in groups.tolist()]
    note = {
        "labels": dict(zip(digests, values, strict=True)),
        "groups": None if names is None else dict(zip(digests, names, strict=True)),
    }
    store.remember(NOTES, _name(assignment), note)


def recall_labels(store: FeatureStore, assignment: Mapping[str, str]) -> KnownLabels | None:
    """What `remember_labels` kept, or None."""
    note = store.recall(NOTES, _name(assignment))
    if note is None:
        return None
    digests = list(note["labels"])
    groups = None
    if note["groups"] is not None:
        groups = np.array([note["groups"][digest] for digest in digests], dtype=object)
    ids = as_ids([bytes.fromhex(digest) for digest in digests])
    return KnownLabels(ids, np.array(list(note["labels"].values())), groups)


def _name(assignment: Mapping[str, str]) -> str:
    """One name for one assignment, whatever its order."""
    parts = sorted(f"{digest}:{part}" for digest, part in assignment.items())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
