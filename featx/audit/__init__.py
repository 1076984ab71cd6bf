"""Checks of labelled images: files, copies, labels, classes, parts, shortcuts and outliers.

`audit` runs every function of the table `CHECKS` and returns what they found. Torch is not needed.
"""

from __future__ import annotations

from featx.audit.checks import CHECKS, audit
from featx.audit.copies import find_conflicts, find_copies, find_leaks, find_near_copies, first_copies
from featx.audit.facts import FactsOfDecoded, image_facts
from featx.audit.fixes import Fixes, apply_fixes, issue_rows, read_fixes, write_issues, write_manifest
from featx.audit.near import NearCopies, near_copies
from featx.audit.noise import LabelNoise, confident_issues, find_suspicious_labels, label_noise
from featx.audit.sources import name_groups, small_copies
from featx.audit.values import AuditData, Finding

__all__ = [
    "CHECKS",
    "AuditData",
    "FactsOfDecoded",
    "Finding",
    "Fixes",
    "LabelNoise",
    "NearCopies",
    "apply_fixes",
    "audit",
    "confident_issues",
    "find_conflicts",
    "find_copies",
    "find_leaks",
    "find_near_copies",
    "find_suspicious_labels",
    "first_copies",
    "image_facts",
    "issue_rows",
    "label_noise",
    "name_groups",
    "near_copies",
    "read_fixes",
    "small_copies",
    "write_issues",
    "write_manifest",
]
