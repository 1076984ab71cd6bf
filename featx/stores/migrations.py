"""Rows of older formats, read once with their own checks and written in today's.

Format 0 (before the first release) kept one sha256 for a whole segment, so that one scattered row cost
the reading of all of them, and numbered its segments, so that two writers could take the same name::

    <cache>/v0/<spec.key[:16]>/spec.json
                               <first>-<rows>.h5    /id (n, 32), /features (n, ...), attribute sha256
"""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from featx.exceptions import StoreWarning
from featx.spec import FeatureSpec
from featx.stores.base import Ids
from featx.stores.segments import BadSegmentError
from featx.stores.space import SPEC_FILE, Space


def migrate(path: Path, root: Path) -> None:
    """Move the rows of older formats under `path` into `root`, the folder of today's.

    An old file goes when its rows are durable in the new format, so a crash on the way loses nothing. A
    file that fails its check stays where it is, with a StoreWarning.
    """
    for version, read in READERS.items():
        for spec_file in sorted((path / f"v{version}").glob(f"*/{SPEC_FILE}")):
            _migrate_space(spec_file.parent, root, read)
        with contextlib.suppress(OSError):  # not empty, or never there
            (path / f"v{version}").rmdir()


def read_format_0(path: Path) -> tuple[Ids, NDArray[Any]]:
    """Ids and rows of one segment of format 0; BadSegmentError if its digest is wrong."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            ids, rows, digest = file["id"][:], file["features"][:], file.attrs["sha256"]
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file may fail in any call of the HDF5 library
        raise BadSegmentError(str(error).partition("\n")[0]) from error
    if hashlib.sha256(ids.tobytes() + rows.tobytes()).hexdigest() != digest or len(ids) != len(rows):
        raise BadSegmentError("it does not have the sha256 that was written")
    return ids, rows


def _migrate_space(folder: Path, root: Path, read: Callable[[Path], tuple[Ids, NDArray[Any]]]) -> None:
    spec = FeatureSpec.from_json((folder / SPEC_FILE).read_text())
    space = Space(root, spec.key)
    for old in sorted(folder.glob("*.h5")):
        try:
            ids, rows = read(old)
        except FileNotFoundError:
            continue  # another process is at it too
        except BadSegmentError as error:
            warnings.warn(
                StoreWarning(f"{old}: {error}. It stays there; its rows will be computed again."),
                stacklevel=2,
            )
            continue
        if np.isfinite(rows).all():
            space.write(ids, rows, spec)
        old.unlink(missing_ok=True)
    if not any(folder.glob("*.h5")):
        with contextlib.suppress(OSError):
            (folder / SPEC_FILE).unlink()
            folder.rmdir()


READERS: dict[int, Callable[[Path], tuple[Ids, NDArray[Any]]]] = {0: read_format_0}
