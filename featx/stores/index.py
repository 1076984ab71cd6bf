"""DigestIndex: where each digest's row is, in 36 bytes a row, without a file of its own.

Runs of digests sorted by their first 8 bytes; a run is merged into its neighbour when they are of similar
size, so that adding is cheap while a long extraction commits and there are never more than about
log2(n) runs to search. A dictionary of a million digests takes ten times the time and memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featx.stores.base import DIGEST_BYTES, Ids

WORDS = DIGEST_BYTES // 8


@dataclass(frozen=True)
class _Run:
    """Digests as 64-bit words in the machine's byte order, sorted by the first, and their row numbers."""

    words: NDArray[np.uint64]  # (n, 4)
    place: NDArray[np.uint32]  # (n,)

    def __len__(self) -> int:
        return len(self.place)


class DigestIndex:
    """Digests to row numbers. A digest may have several rows; any of them is right."""

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def add(self, ids: Ids, first_place: int) -> None:
        """Note that the rows of `ids` are numbered from `first_place` on (below 2**32)."""
        if not len(ids):
            return
        place = np.arange(first_place, first_place + len(ids), dtype=np.uint32)
        self._runs.append(_sorted_run(_words(ids), place))
        while len(self._runs) > 1 and 2 * len(self._runs[-1]) >= len(self._runs[-2]):
            self._runs[-2:] = [_merge(self._runs[-2:])]

    def drop(self, first_place: int, last_place: int) -> None:
        """Forget the rows numbered from `first_place` to before `last_place`."""
        kept = []
        for run in self._runs:
            mask = (run.place < first_place) | (run.place >= last_place)
            if mask.any():
                kept.append(run if mask.all() else _Run(run.words[mask], run.place[mask]))
        self._runs = kept

    def find(self, ids: Ids) -> NDArray[np.int64]:
        """Row number of each digest, shape (n,); -1 where there is none."""
        words = _words(ids)
        places = np.full(len(words), -1, np.int64)
        for run in reversed(self._runs):
            open_ = np.flatnonzero(places < 0)
            if not len(open_):
                break
            places[open_] = _find(run, words[open_])
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


def _merge(runs: list[_Run]) -> _Run:
    words, places = [run.words for run in runs], [run.place for run in runs]
    return _sorted_run(np.concatenate(words), np.concatenate(places))


def _sorted_run(words: NDArray[np.uint64], place: NDArray[np.uint32]) -> _Run:
    order = np.argsort(words[:, 0])
    return _Run(np.take(words, order, axis=0), np.take(place, order))  # 6 times as fast as words[order]


def _words(ids: Ids) -> NDArray[np.uint64]:
    return np.ascontiguousarray(ids).view(np.uint64).reshape(-1, WORDS)
