"""The work of one actor: the features of some images, written to the cache that all workers share."""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from featx.backbones import BackboneCard
from featx.distributed.rows import Row, image_of
from featx.exceptions import FeatxError, StoreError
from featx.extractor.fixed import SpecExtractor
from featx.remote import RemotePath, is_address
from featx.spec import FeatureSpec

DIGEST, NAME, POSITION, REASON, COMPUTED, REMARK, WORKER, ERROR = COLUMNS = (
    "digest", "featx_name", "featx_position", "reason", "computed", "remark", "worker", "error",
)  # fmt: skip
"""Columns of the result: one row for each image. The number of computed images, the remarks and an error that
ended the block are in its first row. Name and position are also columns of a list of images."""


class Worker:
    """Computes missing features of blocks of images.

    Ray makes one in each actor. Features are committed before a block is returned. If the process dies, Ray
    repeats its block in another one, which computes only what was not committed.

    Parameters
    ----------
    specs : mapping of BlockName to FeatureSpec
        What to compute.
    card : BackboneCard
        Of the network.
    mark : Path
        A file in the cache folder, by which a worker checks that it has the same folder.
    column : str, optional
        As for `extract`.
    paths : bool
        Whether texts are paths.
    **params
        As for `SpecExtractor`.
    """

    def __init__(
        self,
        specs: Mapping[Any, FeatureSpec],
        card: BackboneCard,
        *,
        mark: Path,
        column: str | None,
        paths: bool,
        **params: Any,
    ) -> None:
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._column, self._paths, self._mark = column, paths, mark
        self._open = partial(SpecExtractor, specs, card, **params)
        self._extractor: SpecExtractor | None = None

    def __call__(self, table: Any) -> dict[str, list[Any]]:
        """Compute a block.

        Parameters
        ----------
        table : pyarrow.Table
            One image in each row (see `image_of`).

        Returns
        -------
        dict of str to list
            See `COLUMNS`. An error of featx is a value, since Ray would hide its cause.
        """
        rows = table.to_pylist()
        try:
            return self._compute(rows)
        except FeatxError as error:
            empty = [b""] * len(rows)
            words, numbers = [""] * len(rows), [0] * len(rows)
            error_of_first = [pickle.dumps(error), *empty[1:]]
            return dict(
                zip(
                    COLUMNS,
                    (empty, words, numbers, words, numbers, words, words, error_of_first),
                    strict=True,
                )
            )

    def _compute(self, rows: list[Row]) -> dict[str, list[Any]]:
        extractor = self._opened()
        pairs = [image_of(row, self._column, paths=self._paths) for row in rows]
        if any(POSITION in row for row in rows):  # from a list of files, whose URLs the user has allowed
            pairs = [(name, RemotePath(one) if is_address(one) else one) for name, one in pairs]
        names = [
            row.get(NAME) or name or _unnamed(source) for row, (name, source) in zip(rows, pairs, strict=True)
        ]
        there = [place for place, (_, source) in enumerate(pairs) if source is not None]
        digests, reasons = [b""] * len(rows), ["the row has no image"] * len(rows)
        computed, remarks = 0, ""
        if there:
            found = extractor.extract_usable(
                [pairs[place][1] for place in there], names=[names[place] for place in there]
            )
            kept = set(found.kept.tolist())
            refused = iter(found.skipped)
            for number, place in enumerate(there):
                reasons[place] = "" if number in kept else next(refused).reason
            for number, digest in zip(found.kept.tolist(), found.ids, strict=True):
                digests[there[number]] = digest.tobytes()
            computed, remarks = found.computed, "\n".join(found.remarks)
        first = [True] + [False] * (len(rows) - 1)
        return {
            NAME: names,
            POSITION: [row.get(POSITION, -1) for row in rows],
            DIGEST: digests,
            REASON: reasons,
            COMPUTED: [computed * one for one in first],
            REMARK: [remarks if one else "" for one in first],
            WORKER: [self._name] * len(rows),
            ERROR: [b""] * len(rows),
        }

    def _opened(self) -> SpecExtractor:
        """Open the cache at the first block, since Ray hides errors of a constructor."""
        if self._extractor is None:
            if not self._mark.exists():
                raise StoreError(
                    f"the machine {socket.gethostname()} does not see the cache folder "
                    f"{self._mark.parents[2]} of the machine that began the extraction; give a folder on a "
                    "file system that all machines share (--cache-dir)."
                )
            self._extractor = self._open()
        return self._extractor


def _unnamed(source: Any) -> str:
    """Name an image that has none by its content."""
    return f"sha256 {hashlib.sha256(source).hexdigest()[:16]}" if isinstance(source, bytes) else "an image"
