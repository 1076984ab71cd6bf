"""Checks of labelled images: copies, leaks, conflicting and suspicious labels.

`audit` runs every function of the table `CHECKS` and returns what they found. Torch is not needed.
"""

from __future__ import annotations

from featx.audit.checks import CHECKS, audit
from featx.audit.copies import find_conflicts, find_copies, find_leaks, first_copies
from featx.audit.noise import LabelNoise, find_suspicious_labels, label_noise
from featx.audit.values import AuditData, Finding

__all__ = [
    "CHECKS",
    "AuditData",
    "Finding",
    "LabelNoise",
    "audit",
    "find_conflicts",
    "find_copies",
    "find_leaks",
    "find_suspicious_labels",
    "first_copies",
    "label_noise",
]
