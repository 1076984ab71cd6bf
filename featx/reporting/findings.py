"""Findings of an audit as plain data for a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from featx.audit import Finding
from featx.images import ImageSet
from featx.reporting.page import spread_over

SHOWN, OPEN = 24, 6
"""Images of a finding that a page contains, and that it shows at first."""

SETS, OPEN_SETS, SET_SIZE = 12, 6, 4
"""Groups of a finding that a page has, that it shows at once, and images of each."""

TITLES = {
    "unreadable": "Images that cannot be read",
    "leaks": "Copies across parts",
    "conflicts": "Copies with several labels",
    "similar_names": "Class names that look alike",
    "suspicious_labels": "Suspicious labels",
    "part_differences": "Training against test images",
    "shortcuts": "Shortcuts",
    "small_classes": "Small classes",
    "imbalance": "Balance of classes",
    "copies": "Exact copies",
    "near_copies": "Near copies",
    "sources": "Images of one source",
    "outliers": "Images unlike all others",
    "unlike_class": "Images unlike their class",
    "little_information": "Images of one colour",
    "blurred": "Blurred images",
    "dark": "Dark images",
    "overexposed": "Overexposed images",
    "odd_size": "Unusual sizes",
    "exif_rotation": "Rotated by EXIF",
    "wrong_extension": "Wrong extensions",
    "animated": "Files of several frames",
    "odd_mode": "Unusual modes",
}
"""Title of each check; a check that is not here is named by its key."""


def shown_findings(findings: Sequence[Finding], images: ImageSet) -> list[dict[str, Any]]:
    """Return what a page says of each finding, with the images that it shows.

    Each image is a dict of ``index`` (its position, or -1), ``name``, ``evidence``, ``suggestion`` and
    ``beside``, a list of others.
    """
    return [_shown(finding, images) for finding in findings]


def images_shown(findings: Sequence[dict[str, Any]]) -> set[int]:
    """Return the positions of the images that `shown_findings` returned."""
    rows = [row for one in findings for row in (*one["open"], *one["more"])]
    every = [one for row in rows for image in row for one in (image, *image["beside"])]
    return {image["index"] for image in every} - {-1}


def _shown(finding: Finding, images: ImageSet) -> dict[str, Any]:
    n = len(finding.names)
    blank = ("",) * n
    every = [
        {
            "index": index,
            "name": name,
            "evidence": evidence.partition("; nearest")[0],
            "suggestion": suggestion,
            "beside": [_other(images, other) for other in others],
        }
        for index, name, evidence, suggestion, others in zip(
            finding.indices or (-1,) * n,
            finding.names,
            finding.evidence or blank,
            finding.suggestions or blank,
            finding.beside or ((),) * n,
            strict=True,
        )
    ]
    rows = _sets(finding, every)
    n_open = OPEN_SETS if rows else OPEN
    if not rows:
        ranked = finding.check in ("suspicious_labels", "outliers", "part_differences", "unreadable")
        rows = [[image] for image in (every[:SHOWN] if ranked else spread_over(every, SHOWN))]
    return {
        "check": finding.check,
        "title": TITLES.get(finding.check, finding.check.replace("_", " ")),
        "severity": finding.severity,
        "sentence": finding.sentence,
        "value": finding.value,
        "open": rows[:n_open],
        "more": rows[n_open:],
        "wide": bool(finding.clusters) or any(finding.beside),
        "shown": sum(map(len, rows)),
        "total": n,
    }


def _other(images: ImageSet, index: int) -> dict[str, Any]:
    label = "" if images.labels is None else str(images.labels[index])
    return {"index": index, "name": images.names[index], "label": label}


def _sets(finding: Finding, images: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Images of each group; none where a group has a single named image."""
    if not finding.clusters:
        return []
    clusters = np.asarray(finding.clusters)
    groups = [[images[i] for i in np.flatnonzero(clusters == one)[:SET_SIZE]] for one in np.unique(clusters)]
    several = [group for group in groups if len(group) > 1]
    return several[:SETS] if len(several) == len(groups) else []
