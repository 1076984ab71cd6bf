"""The check of a data set, and the report of a model: plain data, pages and figures."""

from __future__ import annotations

from featx.reporting.card import model_card
from featx.reporting.checking import DataCheck, check
from featx.reporting.model import Report, report

__all__ = ["DataCheck", "Report", "check", "model_card", "report"]
