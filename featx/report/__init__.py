"""The check of a data set, and figures and pages of results."""

from __future__ import annotations

from featx.report.checking import DataCheck, check

__all__ = ["DataCheck", "check"]
