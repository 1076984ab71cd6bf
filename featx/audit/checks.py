"""The table of checks, and the function that runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from featx.audit.copies import find_conflicts, find_copies, find_leaks
from featx.audit.noise import find_suspicious_labels
from featx.audit.values import AuditData, Finding

CHECKS: dict[str, Callable[[AuditData], Finding | None]] = {
    "leaks": find_leaks,
    "conflicts": find_conflicts,
    "suspicious_labels": find_suspicious_labels,
    "copies": find_copies,
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
