"""Checks of images with the same bytes: copies, leaks into the test part, and conflicting labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featx.audit.values import AuditData, Finding, listed


def first_copies(digests: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Position of the first image with the same digest, for each image.

    Parameters
    ----------
    digests : ndarray of shape (n, d), uint8

    Returns
    -------
    ndarray of shape (n,), int
        An image that repeats no earlier one has its own position.
    """
    seen: dict[bytes, int] = {}
    places = [seen.setdefault(digest, place) for place, digest in enumerate(map(bytes, digests))]
    return np.array(places, dtype=np.intp)


def find_copies(data: AuditData) -> Finding | None:
    """Find images with the same bytes as an earlier image; `value` is their number."""
    if data.digests is None:
        return None
    copies = np.flatnonzero(first_copies(data.digests) != np.arange(len(data.digests)))
    if not len(copies):
        return None
    sentence = (
        f"{len(copies)} of the {len(data.digests)} pictures are copies of others (same bytes): "
        f"{listed([data.names[i] for i in copies.tolist()])}. Copies stay on one side of every split."
    )
    return Finding.of(data, "copies", "info", sentence, copies, len(copies))


def find_leaks(data: AuditData) -> Finding | None:
    """Find test images whose bytes are also in the training part; `value` is the number of pictures.

    A split by digest keeps copies together. A split that was given by the user may separate them; the test
    score is then too high.
    """
    if data.digests is None or data.is_test is None:
        return None
    digests = list(map(bytes, data.digests))
    trained = {digest for digest, test in zip(digests, data.is_test, strict=True) if not test}
    leaks = [i for i, digest in enumerate(digests) if data.is_test[i] and digest in trained]
    if not leaks:
        return None
    pictures = len({digests[i] for i in leaks})
    sentence = (
        f"{pictures} test pictures are in the training part too (same bytes), so the test score is too "
        "good. Remove them from one side."
    )
    return Finding.of(data, "leaks", "error", sentence, leaks, pictures)


def find_conflicts(data: AuditData) -> Finding | None:
    """Find images with the same bytes and several labels; `value` is the number of such pictures."""
    if data.digests is None or data.labels is None:
        return None
    labels, first = data.labels, first_copies(data.digests)
    pairs: dict[int, int] = {}
    for place in np.flatnonzero(labels[first] != labels).tolist():
        pairs.setdefault(int(first[place]), place)
    if not pairs:
        return None
    both = [" and ".join(f"{data.names[i]} is {labels[i]}" for i in pair) for pair in pairs.items()]
    sentence = (
        f"{len(pairs)} of the pictures {'has' if len(pairs) == 1 else 'have'} several labels "
        f"(same bytes): {listed(both)}. Copies stay on one side of every split; keep the right one."
    )
    indices = [i for pair in pairs.items() for i in pair]
    return Finding.of(data, "conflicts", "warning", sentence, indices, len(pairs))
