"""What a check reads and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from featx.records import Record
from featx.tables import escape_name

NAMES_LISTED = 10
"""Images that a sentence names; the rest is counted."""


@dataclass(frozen=True)
class AuditData:
    """What is known of labelled images. A check whose input is None returns None.

    Parameters
    ----------
    names : sequence of str, length n
        Names of the images, for messages.
    digests : ndarray of shape (n, 32), uint8, optional
        SHA-256 of each image's bytes.
    labels : ndarray of shape (n,), optional
        Label of each image.
    is_test : ndarray of shape (n,), bool, optional
        Whether an image is in the test part.
    oof_proba : ndarray of shape (n, n_classes), float64, optional
        Out-of-fold probabilities, columns in the order of the sorted labels. Rows of NaN were not scored.
    """

    names: Sequence[str]
    digests: NDArray[np.uint8] | None = None
    labels: NDArray[Any] | None = None
    is_test: NDArray[np.bool_] | None = None
    oof_proba: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Finding(Record):
    """What one check found.

    Parameters
    ----------
    check : str
        Name of the check, a key of `CHECKS`.
    severity : {'info', 'warning', 'error'}
        ``error``: a reported score is wrong. ``warning``: some labels are wrong. ``info``: no action needed.
    sentence : str
        The fact, with its numbers and what to do.
    indices : tuple of int
        Positions of the images.
    names : tuple of str
        Names of the images, in the same order.
    value : float
        The number that the check measures; each check documents its own.
    """

    check: str
    severity: Literal["info", "warning", "error"]
    sentence: str
    indices: tuple[int, ...]
    names: tuple[str, ...]
    value: float

    @classmethod
    def of(
        cls,
        data: AuditData,
        check: str,
        severity: Literal["info", "warning", "error"],
        sentence: str,
        indices: Sequence[int] | NDArray[np.intp],
        value: float,
    ) -> Finding:
        """Return a finding on some images of the data; their names are looked up."""
        found = tuple(int(index) for index in indices)
        return cls(check, severity, sentence, found, tuple(data.names[i] for i in found), float(value))


def listed(texts: Sequence[str]) -> str:
    """Join the first texts, safe to print, and count the others."""
    more = [f"and {len(texts) - NAMES_LISTED} more"] if len(texts) > NAMES_LISTED else []
    return "; ".join([*map(escape_name, texts[:NAMES_LISTED]), *more])
