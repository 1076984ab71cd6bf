"""What a check reads and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featx.audit.near import NearCopies, near_copies
from featx.audit.probe import Fold, nearest, probe_folds, probe_proba
from featx.images.facts import ImageFacts
from featx.records import Record
from featx.splits import image_groups, joined_groups
from featx.tables import escape_name

NAMES_LISTED = 5
"""Images that a sentence names; the rest is counted."""

NEIGHBOURS = 5
"""Nearest neighbours that are compared."""

Severity = Literal["note", "warning", "error"]


@dataclass(frozen=True, eq=False)
class AuditData:
    """What is known of labelled images. A check whose input is None returns None.

    Parameters
    ----------
    names : sequence of str, length n
        Names of the images, for messages.
    digests : ndarray of shape (n, 32), uint8, optional
        SHA-256 of each image's bytes.
    labels : ndarray of shape (n,), optional
        Label of each image.
    parts : ndarray of shape (n,), str, optional
        ``train``, ``val`` or ``test``.
    groups : ndarray of shape (n,), optional
        Groups that the user names.
    oof_proba : ndarray of shape (n, n_classes), float64, optional
        Out-of-fold probabilities, columns in the order of the sorted labels. Rows of NaN were not scored.
    facts : ImageFacts, optional
        Facts of each image.
    features : ndarray of shape (n, d), float32, optional
        Features of a pretrained network.
    skipped : sequence of (str, str)
        Name and reason of each image that cannot be used.
    """

    names: Sequence[str]
    digests: NDArray[np.uint8] | None = None
    labels: NDArray[Any] | None = None
    parts: NDArray[Any] | None = None
    groups: NDArray[Any] | None = None
    oof_proba: NDArray[np.float64] | None = None
    facts: ImageFacts | None = None
    features: NDArray[np.float32] | None = None
    skipped: Sequence[tuple[str, str]] = ()

    @cached_property
    def near(self) -> NearCopies | None:
        """Near copies among the images, if facts and digests are known."""
        if self.facts is None or self.digests is None:
            return None
        return near_copies(self.facts, self.digests)

    @cached_property
    def units(self) -> NDArray[np.intp] | None:
        """Number of the unit of each image: copies, near copies and groups must stay together."""
        if self.digests is None:
            return None
        units = image_groups(self.digests, self.groups)
        return units if self.near is None else joined_groups(units, self.near.groups)

    @cached_property
    def codes(self) -> NDArray[np.intp] | None:
        """Labels as indices into the sorted classes."""
        return None if self.labels is None else np.unique(self.labels, return_inverse=True)[1]

    @cached_property
    def folds(self) -> list[Fold]:
        """Folds of the labelled images, with each unit in one of them."""
        return [] if self.codes is None else probe_folds(self.codes, self.units)

    @cached_property
    def proba(self) -> NDArray[np.float64] | None:
        """Out-of-fold probabilities: those given, or those of a ridge classifier of the features."""
        if self.oof_proba is not None or self.features is None or self.codes is None:
            return self.oof_proba
        return probe_proba(self.features, self.codes, self.folds)

    @cached_property
    def neighbours(self) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """The `NEIGHBOURS` nearest images of every image, and their cosines; features must be known."""
        assert self.features is not None
        return nearest(self.features, np.arange(len(self.features)), NEIGHBOURS)

    def nearest(self, images: Sequence[int] | NDArray[np.intp]) -> list[list[int]]:
        """Return the `NEIGHBOURS` nearest images of each of some images, by the cosine of features."""
        if self.features is None:
            return [[] for _ in images]
        found: list[list[int]] = nearest(self.features, np.asarray(images, np.intp), NEIGHBOURS)[0].tolist()
        return found


@dataclass(frozen=True)
class Finding(Record):
    """What one check found.

    Parameters
    ----------
    check : str
        Name of the check, a key of `CHECKS`.
    severity : {'note', 'warning', 'error'}
        ``error``: a reported score is wrong. ``warning``: labels or images need a look. ``note``: no action
        is needed.
    sentence : str
        The fact, with its numbers and what to do.
    indices : tuple of int
        Positions of the images.
    names : tuple of str
        Names of the images, in the same order.
    value : float
        The number that the check measures; each check documents its own.
    evidence : tuple of str
        What was seen in each image; empty if there is nothing to say of single images.
    suggestions : tuple of str
        Suggested action for each image (see `featx.audit.fixes`); empty, or an empty text for none.
    clusters : tuple of int
        Number of the group of each image, where the check finds groups.
    beside : tuple of tuple of int
        Positions of other images to look at beside each: the original of a copy, or nearest images.
    """

    check: str
    severity: Severity
    sentence: str
    indices: tuple[int, ...]
    names: tuple[str, ...]
    value: float
    evidence: tuple[str, ...] = ()
    suggestions: tuple[str, ...] = ()
    clusters: tuple[int, ...] = ()
    beside: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(
        cls,
        data: AuditData,
        check: str,
        severity: Severity,
        sentence: str,
        indices: Sequence[int] | NDArray[np.intp],
        value: float,
        **more: Sequence[Any] | NDArray[Any],
    ) -> Finding:
        """Return a finding on some images of the data; their names are looked up."""
        found = tuple(int(index) for index in indices)
        names = tuple(data.names[i] for i in found)
        beside = tuple(tuple(int(i) for i in others) for others in more.pop("beside", ()))
        plain = {name: tuple(np.asarray(values).tolist()) for name, values in more.items()}
        return cls(check, severity, sentence, found, names, float(value), beside=beside, **plain)


def listed(texts: Sequence[str]) -> str:
    """Join the first texts, safe to print, and count the others."""
    more = [f"and {len(texts) - NAMES_LISTED} more"] if len(texts) > NAMES_LISTED else []
    return "; ".join([*map(escape_name, texts[:NAMES_LISTED]), *more])


def joined(words: Sequence[str]) -> str:
    """``["a", "b", "c"]`` -> ``"a, b and c"``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
