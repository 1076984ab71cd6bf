"""Checks of copies: in one set, across its parts, and with conflicting labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.audit.probe import balanced_accuracy, holdout_scores
from featx.audit.values import AuditData, Finding, Severity, listed
from featx.tables import count

MANY_COPIES = 0.01
"""Share of the images from which copies are a warning: the set is smaller than it looks."""


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
    first = first_copies(data.digests)
    copies = np.flatnonzero(first != np.arange(len(first)))
    if not len(copies):
        return None
    verb = "is a copy" if len(copies) == 1 else "are copies"
    sentence = (
        f"{len(copies):,} of {count(len(first), 'image')} {verb} "
        f"of others (same bytes): {listed([data.names[i] for i in copies.tolist()])}. "
        "Copies stay on one side of every split."
    )
    return Finding.of(
        data, "copies", _severity(len(copies), len(first)), sentence, copies, len(copies),
        evidence=[f"same bytes as {data.names[first[i]]}" for i in copies],
        suggestions=["drop" if _agree(data, (i, first[i])) else "" for i in copies],
        beside=[(first[i],) for i in copies],
    )  # fmt: skip


def find_near_copies(data: AuditData) -> Finding | None:
    """Find resized, recompressed, mirrored or slightly cropped copies; `value` is the number of groups."""
    near = data.near
    if near is None or not len(near.pairs):
        return None
    groups = near.groups[near.pairs[:, 0]]
    n_groups = len(np.unique(groups))
    members: dict[int, list[str]] = {}
    for (a, b), correlation, mirrored in zip(near.pairs, near.correlation, near.mirrored, strict=True):
        kind = "mirrored copy" if mirrored else "near copy"
        for one, other in ((a, b), (b, a)):
            text = f"{kind} of {data.names[other]} (correlation {correlation:.3f})"
            members.setdefault(int(one), []).append(text)
    order = sorted(members, key=lambda i: (near.groups[i], i))
    shown = [f"{data.names[a]} and {data.names[b]}" for a, b in near.pairs]
    sentence = (
        f"{count(n_groups, 'group')} of near copies (resized, recompressed, mirrored or a little cropped; "
        f"{count(len(order), 'image')}): {listed(shown)}. They stay on one side of every split."
    )
    return Finding.of(
        data, "near_copies", _severity(len(order) - n_groups, len(near.groups)), sentence, order, n_groups,
        evidence=["; ".join(members[i][:3]) for i in order],
        suggestions=[f"group:copies-{near.groups[i]}" for i in order],
        clusters=[near.groups[i] for i in order],
    )  # fmt: skip


def find_leaks(data: AuditData) -> Finding | None:
    """Find images in both training and test part, as copies or near copies; `value` is their number.

    A split by digest keeps copies together. A split that was given by the user may separate them; the test
    score is then too high. The finding gives the score of a quick classifier with and without them.
    """
    if data.digests is None or data.parts is None:
        return None
    groups = first_copies(data.digests) if data.near is None else data.near.groups
    rank = np.select([data.parts == "train", data.parts == "val"], [0, 1], 2)
    lowest = np.full(len(groups), 2)
    np.minimum.at(lowest, groups, rank)
    leaks = np.flatnonzero(rank > lowest[groups])
    if not len(leaks):
        return None
    kin = {int(i): int(np.flatnonzero((groups == groups[i]) & (rank == lowest[groups[i]]))[0]) for i in leaks}
    same = sum(bytes(data.digests[i]) == bytes(data.digests[k]) for i, k in kin.items())
    kinds = "same bytes" if same == len(leaks) else f"{same} with the same bytes, {len(leaks) - same} near"
    parts = " and ".join(np.unique(data.parts[leaks]).tolist())
    sentence = (
        f"{count(len(leaks), f'{parts} image')} {'has a copy' if len(leaks) == 1 else 'have copies'} in an "
        f"earlier part ({kinds}), so the score on them is too good{_cost(data, leaks)}. "
        "Remove them from one side."
    )
    return Finding.of(
        data, "leaks", "error", sentence, leaks, len(leaks),
        evidence=[f"copy of {data.names[k]} ({data.parts[k]})" for k in kin.values()],
        suggestions=["drop"] * len(leaks),
        beside=[(k,) for k in kin.values()],
    )  # fmt: skip


def find_conflicts(data: AuditData) -> Finding | None:
    """Find copies and near copies with several labels; `value` is the number of such groups."""
    if data.digests is None or data.labels is None:
        return None
    labels = data.labels
    groups = first_copies(data.digests) if data.near is None else data.near.groups
    order = np.argsort(groups, kind="stable")
    runs = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    found = [run for run in runs if len(run) > 1 and not _agree(data, run)]
    if not found:
        return None
    pairs = [(run[0], run[labels[run] != labels[run[0]]][0]) for run in found]
    both = [" and ".join(f"{data.names[i]} is {labels[i]}" for i in pair) for pair in pairs]
    sentence = (
        f"{count(len(found), 'image')} {'has' if len(found) == 1 else 'have'} several labels (copies or near "
        f"copies): {listed(both)}. Copies stay on one side of every split; keep the right one."
    )
    indices = [int(i) for run in found for i in run]
    return Finding.of(
        data, "conflicts", "warning", sentence, indices, len(found),
        evidence=[f"labelled {labels[i]}" for i in indices],
        clusters=[groups[i] for i in indices],
    )  # fmt: skip


def _severity(redundant: int, n: int) -> Severity:
    return "warning" if redundant > MANY_COPIES * n else "note"


def _agree(data: AuditData, images: Sequence[Any] | NDArray[np.intp]) -> bool:
    return data.labels is None or len({data.labels[i] for i in images}) == 1


def _cost(data: AuditData, leaks: NDArray[np.intp]) -> str:
    """Accuracy of a quick classifier on the test part, with the leaked images and without them."""
    if data.features is None or data.codes is None or data.parts is None:
        return ""
    test = np.flatnonzero(data.parts == "test")
    rest = np.setdiff1d(test, leaks)
    if len(rest) == len(test) or not len(rest):
        return ""
    train = np.flatnonzero(data.parts == "train")
    scores = np.full((len(data.codes), int(data.codes.max()) + 1), np.nan)
    scores[test] = holdout_scores(data.features, data.codes, train, test)
    every, clean = (balanced_accuracy(scores[some], data.codes[some]) for some in (test, rest))
    return f": a quick classifier has a balanced accuracy of {every:.3f} with them and {clean:.3f} without"
