"""Checks of classes: their sizes and their names."""

from __future__ import annotations

import unicodedata
from collections import defaultdict

import numpy as np

from featx.audit.values import AuditData, Finding, listed
from featx.tables import count, escape_name

IMBALANCED = 3.0
"""Ratio of the largest to the smallest class from which it is named."""

FEW = 10
"""Classes with fewer images are named: their scores are hardly known."""


def find_imbalance(data: AuditData) -> Finding | None:
    """Compare the largest class with the smallest; `value` is the ratio of their sizes."""
    if data.labels is None:
        return None
    classes, sizes = np.unique(data.labels, return_counts=True)
    ratio = sizes.max() / sizes.min()
    if ratio < IMBALANCED:
        return None
    large, small = classes[sizes.argmax()], classes[sizes.argmin()]
    sentence = (
        f"The largest class, {escape_name(str(large))}, has {sizes.max():,} images, {ratio:.1f} times as "
        f"many as the smallest, {escape_name(str(small))} ({sizes.min():,}). Accuracy hardly depends on "
        "small classes: look at the recall of each, or fit for balanced accuracy."
    )
    return Finding.of(data, "imbalance", "note", sentence, (), ratio)


def find_small_classes(data: AuditData) -> Finding | None:
    """Find classes with fewer than `FEW` images; `value` is their number."""
    if data.labels is None:
        return None
    classes, sizes = np.unique(data.labels, return_counts=True)
    small = [f"{label} ({size})" for label, size in zip(classes, sizes, strict=True) if size < FEW]
    if not small:
        return None
    sentence = (
        f"{count(len(small), 'class', 'classes')} with fewer than {FEW} images: {listed(small)}. Add some."
    )
    return Finding.of(data, "small_classes", "note", sentence, (), len(small))


def find_similar_names(data: AuditData) -> Finding | None:
    """Find class names that differ by case, blanks, punctuation or accents only; `value` is their number."""
    if data.labels is None or data.labels.dtype.kind not in "UO":
        return None
    spelt: dict[str, list[str]] = defaultdict(list)
    for label in np.unique(data.labels.astype(str)).tolist():
        spelt[_plain(label)].append(label)
    several = [names for names in spelt.values() if len(names) > 1]
    if not several:
        return None
    shown = listed([" and ".join(repr(name) for name in names) for names in several])
    sentence = f"Class names that differ by case, blanks or accents only: {shown}. Are they one class?"
    labels = data.labels.astype(str)
    size = {label: int((labels == label).sum()) for names in several for label in names}
    usual = {label: max(names, key=lambda name: size[name]) for names in several for label in names}
    images = [i for i, label in enumerate(labels.tolist()) if usual.get(label, label) != label]
    return Finding.of(
        data, "similar_names", "warning", sentence, images, len(several),
        evidence=[f"class {labels[i]!r}" for i in images],
        suggestions=[f"relabel:{usual[labels[i]]}" for i in images],
    )  # fmt: skip


def _plain(label: str) -> str:
    """A label without case, accents, blanks, hyphens and underscores."""
    letters = unicodedata.normalize("NFKD", label.casefold())
    plain = "".join(one for one in letters if not unicodedata.combining(one) and one not in " \t_-.")
    return plain if any(one.isalpha() for one in plain) else label  # "-1" is not "1"
