"""Small JSON notes on disk, each with its sha256: written atomically, and a damaged note counts as absent."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featx.files import atomic_write, make_folder, read_plain_json


def write_note(folder: Path, kind: str, name: str, value: Mapping[str, Any]) -> None:
    """Write a note atomically and durably.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    body = json.dumps({"name": name, "value": value}, sort_keys=True)
    note = {"sha256": _digest(body), "note": json.loads(body)}
    path = _path(folder, kind, name)
    for each in (folder, path.parent):
        make_folder(each, follow_links=False)
    atomic_write(path, json.dumps(note, sort_keys=True, indent=1).encode(), follow_links=False)


def read_note(folder: Path, kind: str, name: str) -> dict[str, Any] | None:
    """Read a note; None if it is absent or damaged."""
    try:
        note = read_plain_json(_path(folder, kind, name))
        body = json.dumps(note["note"], sort_keys=True)
        if note["sha256"] != _digest(body) or note["note"]["name"] != name:
            return None
        value: dict[str, Any] = note["note"]["value"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _path(folder: Path, kind: str, name: str) -> Path:
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60].strip(".-")
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return folder / kind / f"{slug}-{digest}.json"


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
