"""Shares of a set of images for several processes, and waiting for what the others compute."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import UsageError
from featx.stores.base import FeatureStore, Ids

POLL_S = 2.0
"""Seconds between two looks at the store, at most."""


@dataclass(frozen=True)
class Shard:
    """One of equal shares of a set of images.

    Parameters
    ----------
    number : int
        From 1 to `count`.
    count : int
        Number of shares.
    """

    number: int
    count: int

    @classmethod
    def read(cls, text: str) -> Shard:
        """Read ``3/16``: the third of sixteen shares.

        Raises
        ------
        UsageError
            If it is written in another way, or there is no such share.
        """
        found = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", text)
        number, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= count:
            raise UsageError(f"shard {text!r}: write NUMBER/COUNT with 1 <= NUMBER <= COUNT, such as 3/16.")
        return cls(number, count)

    def of(self, n: int) -> NDArray[np.intp]:
        """Positions of this share among n images: every `count`-th one."""
        return np.arange(self.number - 1, n, self.count)


def missing(store: FeatureStore, keys: Iterable[str], ids: Ids) -> NDArray[np.bool_]:
    """Return which images lack features of one of the specs, shape (n,).

    Parameters
    ----------
    store : FeatureStore
    keys : iterable of str
        Keys of the specs.
    ids : array of shape (n, 32), uint8
        Digests of the images.
    """
    absent = np.zeros(len(ids), bool)
    for key in keys:
        absent |= store.missing(key, ids)
    return absent


def wait_for(
    store: FeatureStore,
    keys: Iterable[str],
    ids: Ids,
    *,
    patience: float,
    report: Callable[[int], None] | None = None,
) -> NDArray[np.bool_]:
    """Wait until other processes have committed the features of all images.

    Parameters
    ----------
    store, keys, ids
        As for `missing`.
    patience : float
        Seconds without any new image after which it is given up.
    report : callable, optional
        ``report(n)`` is called with the number of missing images whenever it has changed.

    Returns
    -------
    array of shape (n,), bool
        Images that are still missing.
    """
    keys, fewest = list(keys), len(ids) + 1
    last = time.monotonic()
    while True:
        absent = missing(store, keys, ids)
        left = int(absent.sum())
        if left < fewest:
            fewest, last = left, time.monotonic()
            if report is not None:
                report(left)
        if not left or time.monotonic() - last >= patience:
            return absent
        time.sleep(min(POLL_S, max(patience / 4, 0.05)))
