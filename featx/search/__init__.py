"""The search over representation, scaling and head, on rows alone: no torch, no images."""

from __future__ import annotations

from featx.search.cv import HeadSearchCV
from featx.search.loop import SearchProgress

__all__ = ["HeadSearchCV", "SearchProgress"]
