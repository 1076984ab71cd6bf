"""Times as people write them: ``90``, ``90s``, ``10m``, ``1.5h`` or ``1h30m``."""

from __future__ import annotations

import math
import re
from typing import Any

from featx.exceptions import UsageError

UNITS_S = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400} | {
    "second": 1, "minute": 60, "hour": 3600, "hr": 3600, "day": 86400, "week": 7 * 86400
}  # fmt: skip
"""Seconds of the units of a time; they may have an ``s`` at their end."""


def seconds_of(time: Any) -> float:
    """Return a time in seconds.

    Parameters
    ----------
    time : str or float
        A text such as ``"10m"``, or seconds.

    Raises
    ------
    UsageError
        If it is neither.
    """
    if isinstance(time, str):
        return _read(time)
    if isinstance(time, bool) or not isinstance(time, int | float) or math.isnan(time) or time < 0:
        raise UsageError(f"{time!r} is not a time; write 90s, 10m, 1h30m or seconds")
    return float(time)


def _read(text: str) -> float:
    words = text.strip().lower()
    number = r"\d+(?:\.\d+)?"
    parts = re.findall(rf"({number})\s*([a-z]*)", words)
    is_time = re.fullmatch(rf"{number}|(?:{number}\s*[a-z]+\s*)+", words)
    known = [
        (float(amount), unit if unit in UNITS_S or len(unit) < 3 else unit.removesuffix("s"))
        for amount, unit in parts
    ]
    if not is_time or any(unit not in UNITS_S for _, unit in known):
        raise UsageError(f"{text!r} is not a time; write 90s, 10m, 1h30m or seconds")
    return sum(amount * UNITS_S[unit] for amount, unit in known)
