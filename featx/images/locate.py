"""Locate: from the paths of a manifest to files, also where the paths were written on another machine.

Paths are relative to the manifest. If some of a sample are not there, other readings are tried: other
folders, backslashes, ``file://``, blanks, without the first folders of a path, another case or Unicode form,
without the ending. The one that finds the most is taken and said. A reading that gives two paths one file is
not taken.
"""

from __future__ import annotations

import os
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from featx.exceptions import DataError
from featx.images.decode import EXTENSIONS
from featx.images.labels import folded
from featx.tables import escape_name

SAMPLE = 64
"""Paths that are tried before all are read in another way."""

ENOUGH = 0.5
"""Fraction of the sample that another reading must find."""

MAX_FOLDERS = 30
"""Folders beside the manifest that are tried."""

MAX_DROPPED = 8
"""First folders of a path that may be dropped."""

IMAGE_ENDINGS = frozenset().union(*EXTENSIONS.values())


@dataclass(frozen=True)
class Reading:
    """A way to read paths: below a folder, without their first folders."""

    folder: str
    dropped: int = 0


@dataclass
class _Disk:
    """Folders that were listed once, and what was matched otherwise than exactly."""

    listings: dict[str, dict[str, list[str]] | None] = field(default_factory=dict)
    matched: set[str] = field(default_factory=set)

    def find_file(self, path: str, reading: Reading) -> str | None:
        """The file that a reading of a path gives; None if there is none."""
        wanted = read_path(path, reading)
        found = self.find(wanted) if wanted else None
        return None if found is None or os.path.isdir(found) else found

    def find(self, path: str) -> str | None:
        """The file of this name, also with another case, Unicode form or ending; None if there is none."""
        if os.path.lexists(path):
            return path
        parent, name = os.path.split(path)
        if not name or parent == path:
            return None
        if not self._listing(parent):
            found = self.find(parent)
            if found is None:
                return None
            parent = found
        listing = self._listing(parent) or {}
        for key, how in (
            (folded(name), "in another case or Unicode form"),
            (f"{folded(name)}/", "with its ending"),
        ):
            names = listing.get(key, [])
            if len(names) == 1:
                self.matched.add(how)
                return os.path.join(parent, names[0])
        return None

    def _listing(self, folder: str) -> dict[str, list[str]] | None:
        if folder not in self.listings:
            self.listings[folder] = _list(folder)
        return self.listings[folder]


def _list(folder: str) -> dict[str, list[str]] | None:
    """Names in a folder by their folded form, and those of images also without ending (with ``/``)."""
    try:
        names = os.listdir(folder or ".")
    except (OSError, ValueError):
        return None
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(folded(name), []).append(name)
        stem, ending = os.path.splitext(name)
        if ending.lower() in IMAGE_ENDINGS:
            found.setdefault(f"{folded(stem)}/", []).append(name)
    return found


def locate(paths: Sequence[str], folder: str, root: str | None = None) -> tuple[list[str], str]:
    """Return the file of each path of a manifest, and how the paths were read.

    Parameters
    ----------
    paths : sequence of str
        As they are written.
    folder : str
        The folder of the manifest.
    root : str, optional
        The folder that the paths are relative to, instead.

    Returns
    -------
    files : list of str
        A path that leads nowhere is joined to the folder.
    said : str
        What was guessed, as a sentence; empty if paths are read as they are.
    """
    base = folder if root is None else root
    joined = [os.path.join(base, path) for path in paths]
    chosen = spread(len(paths), SAMPLE)
    if all(_exists(joined[index]) for index in chosen):
        return joined, ""
    sample = [paths[index] for index in chosen]
    reading, hits = _best_reading(sample, folder, root)
    plain = sum(_exists(joined[index]) for index in chosen)
    if hits <= plain or hits < ENOUGH * len(sample):
        return joined, ""
    disk = _Disk()
    found = [disk.find_file(path, reading) for path in paths]
    if not _is_one_to_one(paths, found):
        return joined, ""
    files = [one or plain_one for one, plain_one in zip(found, joined, strict=True)]
    first = next(index for index, one in enumerate(found) if one and one != joined[index])
    also = f" ({' and '.join(sorted(disk.matched))})" if disk.matched else ""
    n_missing = sum(one is None for one in found)
    lost = f"; {n_missing} of {len(paths)} are not found" if n_missing else ""
    return files, (
        f"Paths are read in another way than they are written{also}: {escape_name(paths[first])} as "
        f"{escape_name(files[first])}{lost}."
    )


def refuse_outside(files: Sequence[str], folders: Sequence[str]) -> None:
    """Refuse files of a manifest outside some folders: somebody else may have written the manifest.

    Parameters
    ----------
    files : sequence of str
        As `locate` returns them. What is no file is not looked at.
    folders : sequence of str
        The folder of the manifest, and others that the user has named; empty for the current folder.

    Raises
    ------
    DataError
        If a file, or what a link leads to, is outside.
    """
    inside = tuple(os.path.join(os.path.realpath(folder), "") for folder in folders)
    parents: dict[str, str] = {}
    outside = []
    for file in files:
        parent, name = os.path.split(file)
        if parent not in parents:
            parents[parent] = os.path.join(_real(parent), "")
        real = parents[parent] + name if name not in (".", "..") and not _is_link(file) else _real(file)
        if not real.startswith(inside) and os.path.isfile(file):
            outside.append(file)
    if outside:
        raise DataError(
            f"{len(outside)} of its {len(files)} images are outside its folder, such as "
            f"{escape_name(outside[0])}. If you trust it, give the folder of the images with --root, or "
            "allow all with --follow-links (follow_links=True in Python)."
        )


def _real(path: str) -> str:
    try:
        return os.path.realpath(path)
    except ValueError:  # a null character: no such file
        return path


def _is_link(path: str) -> bool:
    try:
        return os.path.islink(path)
    except ValueError:
        return False


def read_path(path: str, reading: Reading) -> str | None:
    """Return the path that a reading gives; None if nothing of it is left."""
    text = plain_path(path)
    if not reading.dropped:
        return os.path.normpath(os.path.join(reading.folder, text))
    parts = [part for part in text.split("/") if part]
    if len(parts) <= reading.dropped:
        return None
    return os.path.normpath(os.path.join(reading.folder, *parts[reading.dropped :]))


def plain_path(path: str) -> str:
    """Return a path without ``file://``, with ``/`` for backslashes, without blanks at its ends."""
    text = path.strip()
    if text.lower().startswith("file:"):
        text = urllib.request.url2pathname(urllib.parse.urlsplit(text).path)
    return text.replace("\\", "/")


def _best_reading(sample: Sequence[str], folder: str, root: str | None) -> tuple[Reading, int]:
    """The reading that finds the most of the sample; the plainest of several."""
    disk = _Disk()
    best, most = Reading(folder), -1
    for reading in _readings(sample, folder, root):
        found = [disk.find_file(path, reading) for path in sample]
        hits = sum(one is not None for one in found)
        if hits > most and _is_one_to_one(sample, found):
            best, most = reading, hits
        if most == len(sample):
            break
    return best, most


def _readings(sample: Sequence[str], folder: str, root: str | None) -> Iterator[Reading]:
    folders = [root] if root is not None else _folders(folder)
    near = folders[:2]
    deepest = max(len([part for part in plain_path(path).split("/") if part]) for path in sample)
    for dropped in range(min(deepest, MAX_DROPPED + 1)):
        for one in near if dropped else folders:
            yield Reading(one, dropped)


def _folders(folder: str) -> list[str]:
    """The manifest's folder, the one above, the current one, and those beside the manifest."""
    folder = folder or "."
    inside = []
    try:
        with os.scandir(folder) as entries:
            inside = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    except OSError:
        pass
    above = os.path.dirname(os.path.abspath(folder))
    others = [os.path.join(folder, name) for name in inside[:MAX_FOLDERS]]
    return list(dict.fromkeys([folder, above, os.getcwd(), *others]))


def _is_one_to_one(paths: Sequence[str], files: Sequence[str | None]) -> bool:
    """Whether different paths lead to different files."""
    pairs = {(path, one) for path, one in zip(paths, files, strict=True) if one is not None}
    return len({one for _, one in pairs}) == len({os.path.normpath(plain_path(path)) for path, _ in pairs})


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the numbers below `count`, evenly spaced, with both ends."""
    if count <= wanted:
        return list(range(count))
    return sorted({round(step * (count - 1) / (wanted - 1)) for step in range(wanted)})


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except ValueError:
        return False
