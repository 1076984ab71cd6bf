"""The results folder of a suite: one file for each cell, and claims of cells that are being computed.

A cell is claimed by creating a file, which fails if it exists. So several machines can work on one folder.
The owner renews its claim while it works; a claim that is not renewed is taken over.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.exceptions import DataError
from featx.files import atomic_write

RENEW_S = 10.0
STALE_S = 90.0
"""Seconds after which a claim is renewed, and after which a claim that was not renewed is taken over."""

KEY = ("data", "backbone", "features", "method", "budget", "seed")
"""What identifies a cell within a suite."""


@dataclass(frozen=True)
class Cell:
    """One fit of a suite: where it belongs, and what its result depends on.

    Parameters
    ----------
    data, backbone, features, method : str
        Names; `features` is the block's name, empty for methods on images.
    budget : int or str
    seed : int
    id : str
        Digest of the above and of all that changes the result (definitions, digest of the data).
    """

    data: str
    backbone: str
    features: str
    method: str
    budget: int | str
    seed: int
    id: str

    @property
    def words(self) -> str:
        """The cell in words, for messages."""
        parts = [
            self.data,
            self.backbone,
            self.features,
            self.method,
            f"budget {self.budget}",
            f"seed {self.seed}",
        ]
        return ", ".join(part for part in parts if part and part != "none")


class ResultsFolder:
    """Results of a suite on disk.

    Parameters
    ----------
    path : path
        The folder; it is created when something is written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def write(self, cell: Cell, row: dict[str, Any]) -> None:
        """Store the result of a cell, whole or not at all."""
        self._cells.mkdir(parents=True, exist_ok=True)
        atomic_write(self._cells / f"{cell.id}.json", json.dumps(row, indent=1).encode())

    def read(self, cell: Cell) -> dict[str, Any] | None:
        """Return the stored result of a cell, or None."""
        return _read_json(self._cells / f"{cell.id}.json")

    def rows(self) -> list[dict[str, Any]]:
        """All stored results, sorted by their cells.

        Raises
        ------
        DataError
            If the folder holds no results.
        """
        files = sorted(self._cells.glob("*.json")) if self._cells.is_dir() else []
        rows = [row for row in map(_read_json, files) if row is not None]
        if not rows:
            raise DataError(
                f"{self.path}: there are no results of a suite; run `featx bench FILE -o {self.path}`."
            )
        return sorted(rows, key=lambda row: [str(row[key]) for key in KEY])

    def write_tables(self) -> None:
        """Write ``rows.csv`` and ``rows.jsonl``, and ``rows.parquet`` if pyarrow is installed."""
        rows = [{key: value for key, value in row.items() if key != "right"} for row in self.rows()]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        stream = io.StringIO()
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_write(self.path / "rows.csv", stream.getvalue().encode())
        atomic_write(self.path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        with contextlib.suppress(ImportError):
            import pyarrow
            import pyarrow.parquet

            table = pyarrow.Table.from_pylist(
                [{key: _text_budget(key, row.get(key)) for key in columns} for row in rows]
            )
            sink = io.BytesIO()
            pyarrow.parquet.write_table(table, sink)
            atomic_write(self.path / "rows.parquet", sink.getvalue())

    @contextlib.contextmanager
    def claim(self, cell: Cell) -> Iterator[bool]:
        """Claim a cell while the block runs; False if another process has claimed it."""
        self._claims.mkdir(parents=True, exist_ok=True)
        path = self._claims / cell.id
        if not self._take(path):
            yield False
            return
        done = threading.Event()
        renewing = threading.Thread(target=_renew, args=(path, done), daemon=True)
        renewing.start()
        try:
            yield True
        finally:
            done.set()
            renewing.join()
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    def _take(self, path: Path) -> bool:
        try:
            with path.open("x") as file:
                file.write(f"{socket.gethostname()} {os.getpid()}\n")
            return True
        except FileExistsError:
            pass
        try:
            stale = time.time() - path.stat().st_mtime > STALE_S
        except FileNotFoundError:
            return self._take(path)
        if not stale:
            return False
        with contextlib.suppress(FileNotFoundError):  # one of several that take over succeeds
            path.rename(path.with_name(f".stale-{uuid.uuid4().hex}"))
            for old in self._claims.glob(".stale-*"):
                old.unlink(missing_ok=True)
            return self._take(path)
        return False

    @property
    def _cells(self) -> Path:
        return self.path / "cells"

    @property
    def _claims(self) -> Path:
        return self.path / "claims"


def pack_right(right: NDArray[np.bool_]) -> str:
    """Whether each test image was classified correctly, as text."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpack_right(row: dict[str, Any]) -> NDArray[np.bool_]:
    """Whether each test image was classified correctly, shape (n_test,)."""
    bits = np.frombuffer(base64.b64decode(row["right"]), np.uint8)
    return np.unpackbits(bits, count=int(row["n_test"])).astype(bool)


def finished(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of cells that did not fail."""
    return [row for row in rows if not row["error"]]


def _renew(path: Path, done: threading.Event) -> None:
    while not done.wait(RENEW_S):
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _text_budget(key: str, value: Any) -> Any:
    return str(value) if key == "budget" else value
