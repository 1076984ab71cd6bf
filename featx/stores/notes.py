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
    path = folder / note_path(kind, name)
    for each in (folder, path.parent):
        make_folder(each, follow_links=False)
    atomic_write(path, note_text(name, value), follow_links=False)


def note_text(name: str, value: Mapping[str, Any]) -> bytes:
    """The content of a note's file."""
    body = json.dumps({"name": name, "value": value}, sort_keys=True)
    note = {"sha256": _digest(body), "note": json.loads(body)}
    return json.dumps(note, sort_keys=True, indent=1).encode()


def read_note(folder: Path, kind: str, name: str) -> dict[str, Any] | None:
    """Read a note; None if it is absent or damaged."""
    try:
        return note_value(read_plain_json(folder / note_path(kind, name)), name)
    except (OSError, ValueError, RecursionError):
        return None


def note_value(note: Any, name: str) -> dict[str, Any] | None:
    """The value of a note; None if it is damaged, or that of another name."""
    try:
        body = json.dumps(note["note"], sort_keys=True)
        if note["sha256"] != _digest(body) or note["note"]["name"] != name:
            return None
        value: dict[str, Any] = note["note"]["value"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def note_path(kind: str, name: str) -> str:
    """Where a note is, below the folder of notes."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:60].strip(".-")
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"{kind}/{slug}-{digest}.json"


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
