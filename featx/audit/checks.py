"""The table of checks, and the function that runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from featx.audit import appearance as look
from featx.audit.classes import find_imbalance, find_similar_names, find_small_classes
from featx.audit.copies import find_conflicts, find_copies, find_leaks, find_near_copies
from featx.audit.noise import find_suspicious_labels
from featx.audit.outliers import find_outliers, find_unlike_class
from featx.audit.shortcuts import find_part_differences, find_shortcuts
from featx.audit.sources import find_sources
from featx.audit.values import AuditData, Finding

CHECKS: dict[str, Callable[[AuditData], Finding | None]] = {
    "unreadable": look.find_unreadable,
    "leaks": find_leaks,
    "conflicts": find_conflicts,
    "similar_names": find_similar_names,
    "suspicious_labels": find_suspicious_labels,
    "part_differences": find_part_differences,
    "shortcuts": find_shortcuts,
    "small_classes": find_small_classes,
    "imbalance": find_imbalance,
    "copies": find_copies,
    "near_copies": find_near_copies,
    "sources": find_sources,
    "outliers": find_outliers,
    "unlike_class": find_unlike_class,
    "little_information": look.find_little_information,
    "blurred": look.find_blurred,
    "dark": look.find_dark,
    "overexposed": look.find_overexposed,
    "odd_size": look.find_odd_sizes,
    "exif_rotation": look.find_rotated,
    "wrong_extension": look.find_wrong_extensions,
    "animated": look.find_animated,
    "odd_mode": look.find_odd_modes,
}
"""Each check by its name: a function that returns what it found, or None."""


def audit(
    data: AuditData, checks: Mapping[str, Callable[[AuditData], Finding | None]] = CHECKS
) -> tuple[Finding, ...]:
    """Run checks on labelled images.

    Parameters
    ----------
    data : AuditData
    checks : mapping of str to callable
        All of `CHECKS` by default.

    Returns
    -------
    tuple of Finding
        In the order of the checks, without the checks that found nothing.
    """
    found = (check(data) for check in checks.values())
    return tuple(finding for finding in found if finding is not None)
