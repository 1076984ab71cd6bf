"""The work of one actor: the features of some images, written to the cache that all workers share."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featx.backbones import BackboneCard
from featx.exceptions import StoreError
from featx.extractor.fixed import SpecExtractor
from featx.spec import FeatureSpec

DIGEST, NAME, POSITION, REASON, COMPUTED, REMARK, WORKER = (
    "digest", "featx_name", "featx_position", "reason", "computed", "remark", "worker",
)  # fmt: skip
"""Columns of the result: one row for each image, the number of computed images and remarks in the first one.
Name and position are also columns of a list of images."""


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
        A file in the cache folder, by which a worker knows that it sees the same folder.
    column : str, optional
        As for `extract`.
    paths : bool
        Whether texts are paths.
    **params
        As for `SpecExtractor`.

    Raises
    ------
    StoreError
        If this machine does not see the cache folder.
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
        if not mark.exists():
            raise StoreError(
                f"the machine {socket.gethostname()} does not see the cache folder {params['store']} of the "
                "machine that began the extraction; give a folder on a file system that all machines share "
                "(--cache-dir)."
            )
        self._column, self._paths = column, paths
        self._extractor = SpecExtractor(specs, card, **params)

    def __call__(self, table: Any) -> dict[str, list[Any]]:
        """Compute a block.

        Parameters
        ----------
        table : pyarrow.Table
            One image in each row (see `image_of`).
        """
        from featx.distributed.rows import image_of

        rows = table.to_pylist()
        pairs = [image_of(row, self._column, paths=self._paths) for row in rows]
        names = [
            row.get(NAME) or name or _unnamed(source) for row, (name, source) in zip(rows, pairs, strict=True)
        ]
        there = [place for place, (_, source) in enumerate(pairs) if source is not None]
        digests, reasons = [b""] * len(rows), ["the row has no image"] * len(rows)
        computed, remarks = 0, ""
        if there:
            found = self._extractor.extract_usable(
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
        }


def _unnamed(source: Any) -> str:
    """Name an image that has none by its content."""
    return f"sha256 {hashlib.sha256(source).hexdigest()[:16]}" if isinstance(source, bytes) else "an image"
