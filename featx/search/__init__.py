"""The search over representation, scaling and classifier head, on features: no torch, no images."""

from __future__ import annotations

from featx.search.cv import HeadSearchCV
from featx.search.plan import SearchProgress

__all__ = ["HeadSearchCV", "SearchProgress"]
