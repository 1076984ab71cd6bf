"""DigestIndex: the row number of each digest, in 36 bytes a row, in memory only.

The index is a list of runs of digests. A run is merged with its neighbour if they are of similar size, so
adding is cheap during a long extraction, and there are never more than about log2(n) runs to search. A run is
sorted by the first 8 bytes of its digests after some queries; the first queries scan it, since sorting a
million digests takes as long as ten scans. A dictionary takes ten times the time and memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featx.stores.base import DIGEST_BYTES, Ids

WORDS = DIGEST_BYTES // 8

SCANS = 8
"""Queries that scan a run before it is sorted."""

SCANNED_SHARE = 16
"""A run is scanned only if it has at least so many digests for each one of the query."""

SIEVE_BITS = 16
"""A scan looks up these bits of every digest in a table of the queried ones; few others pass."""


@dataclass
class _Run:
    """Digests as 64-bit words in the machine's byte order, and their row numbers."""

    words: NDArray[np.uint64]  # (n, 4)
    place: NDArray[np.uint32]  # (n,)
    is_sorted: bool = False
    queries: int = 0

    def __len__(self) -> int:
        return len(self.place)

    def find(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Row number of each digest, -1 where there is none."""
        self.queries += 1
        scan = self.queries <= SCANS and SCANNED_SHARE * len(words) <= len(self)
        if not self.is_sorted and scan:
            return _find(_sifted(self, words), words)
        if not self.is_sorted:
            order = np.argsort(self.words[:, 0], kind="stable")  # as a scan finds them
            self.words = np.take(self.words, order, axis=0)  # 6 times as fast as words[order]
            self.place = np.take(self.place, order)
            self.is_sorted = True
        return _find(self, words)


class DigestIndex:
    """Digests to row numbers. Of several rows of a digest, all queries find the same one."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, ids: Ids, first_place: int) -> None:
        """Add ids whose rows are numbered from `first_place` (below 2**32)."""
        if not len(ids):
            return
        place = np.arange(first_place, first_place + len(ids), dtype=np.uint32)
        self._runs.append(_Run(_words(ids), place))
        while len(self._runs) > 1 and 2 * len(self._runs[-1]) >= len(self._runs[-2]):
            self._runs[-2:] = [_merge(self._runs[-2:])]

    def drop(self, first_place: int, last_place: int) -> None:
        """Drop the rows numbered from `first_place` to `last_place` - 1."""
        kept = []
        for run in self._runs:
            mask = (run.place < first_place) | (run.place >= last_place)
            if mask.any():
                kept.append(run if mask.all() else _Run(run.words[mask], run.place[mask], run.is_sorted))
        self._runs = kept

    def find(self, ids: Ids) -> NDArray[np.int64]:
        """Row number of each digest, shape (n,); -1 where there is none."""
        words = _words(ids)
        places = np.full(len(words), -1, np.int64)
        for run in reversed(self._runs):
            open_ = np.flatnonzero(places < 0)
            if not len(open_):
                break
            places[open_] = run.find(words[open_])
        return places


def _find(run: _Run, words: NDArray[np.uint64]) -> NDArray[np.int64]:
    places = np.full(len(words), -1, np.int64)
    at = np.searchsorted(run.words[:, 0], words[:, 0])
    asked = np.arange(len(words))
    while len(asked):  # once, and again only for digests that share 8 bytes with another one
        inside = at < len(run)
        asked, at = asked[inside], at[inside]
        alike = run.words[at, 0] == words[asked, 0]
        asked, at = asked[alike], at[alike]
        same = (run.words[at] == words[asked]).all(axis=1)
        places[asked[same]] = run.place[at[same]]
        asked, at = asked[~same], at[~same] + 1
    return places


def _sifted(run: _Run, words: NDArray[np.uint64]) -> _Run:
    """The part of a run whose digests may be among the queried ones, sorted."""
    asked_for = np.zeros(1 << SIEVE_BITS, bool)
    asked_for[words.view(np.uint16).reshape(len(words), -1)[:, 0]] = True
    passed = np.flatnonzero(asked_for[run.words.view(np.uint16).reshape(len(run), -1)[:, 0]])
    some = run.words[passed]
    order = np.argsort(some[:, 0], kind="stable")
    return _Run(some[order], run.place[passed[order]], is_sorted=True)


def _merge(runs: list[_Run]) -> _Run:
    words, places = [run.words for run in runs], [run.place for run in runs]
    return _Run(np.concatenate(words), np.concatenate(places))


def _words(ids: Ids) -> NDArray[np.uint64]:
    return np.ascontiguousarray(ids).view(np.uint64).reshape(-1, WORDS)
