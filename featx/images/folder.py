"""Walk a folder: every image file below it, sorted, and what was left out with the reason.

`os.scandir` distinguishes files and folders without another system call. Real folders are read first and
links last, so a link leads to a folder that is known already or to a new one, and every folder is read at
most once. Names are paths below the root with ``/``.
"""

from __future__ import annotations

import os
import stat
import warnings
from dataclasses import dataclass, field
from typing import NamedTuple

from featx.exceptions import DataError, ImageWarning
from featx.images.decode import EXTENSIONS
from featx.images.picture import reason_of
from featx.tables import escape_name

OTHER_EXTENSIONS = (".tga", ".ico", ".svg", ".psd", ".eps", ".dcm", ".cr2", ".cr3", ".nef", ".arw", ".dng")
"""Images that featx cannot read; they are listed, so that the user is warned."""

TABLE_EXTENSIONS = (".csv", ".tsv", ".parquet", ".pq", ".xlsx")
"""Of manifests."""

IMAGE_EXTENSIONS = frozenset(OTHER_EXTENSIONS).union(*EXTENSIONS.values())

SIGNATURES = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"GIF8",
    b"II*\0",  # TIFF, little and big endian
    b"MM\0*",
    b"\0\0\0\x0cjP  ",  # JPEG 2000, boxed and bare
    b"\xff\x4f\xff\x51",
)
"""How images begin: a file with another extension, or none, counts as an image only with one of these."""

IGNORED_NAMES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin"})
"""What systems leave in folders; names that start with a dot are ignored too."""


class SetAside(NamedTuple):
    """A file or folder that could not be taken."""

    name: str
    reason: str
    is_folder: bool


@dataclass
class Walk:
    """What lies below a folder.

    Parameters
    ----------
    root : str
        The folder.
    follow_links : bool
        Whether links that lead out of it are followed.

    Attributes
    ----------
    files, folders : list of str
        Names of image files and of all folders, sorted.
    set_aside : list of SetAside
        What could not be read, sorted by name.
    tables : list of str
        Names of files that may be manifests, sorted.
    others : int
        Number of files that are no images by any sign.
    """

    root: str
    follow_links: bool = False
    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    others: int = 0
    _links: list[str] = field(default_factory=list)
    _read: set[tuple[int, int]] = field(default_factory=set)  # device and inode of each folder

    def __post_init__(self) -> None:
        self._real_root = os.path.join(os.path.realpath(self.root), "")
        self._read_folder("")
        while self._links:
            self._links.sort(reverse=True)
            self._follow(self._links.pop())
        self.files.sort()
        self.folders.sort()
        self.set_aside.sort()
        self.tables.sort(key=lambda name: (name.count("/"), name))

    def _read_folder(self, top: str) -> None:
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            if folder:
                self.folders.append(folder)
            path = self.path(folder)
            try:
                status = os.stat(path)
                self._read.add((status.st_dev, status.st_ino))
                with os.scandir(path) as entries:
                    for entry in entries:
                        if not is_ignored(entry.name):
                            self._sort_in(entry, f"{folder}/{entry.name}" if folder else entry.name, waiting)
            except OSError as error:
                if not folder:
                    raise DataError(f"{escape_name(path)}: {reason_of(error)}.") from error
                self.set_aside.append(SetAside(folder, f"folder not read: {reason_of(error)}", True))

    def _sort_in(self, entry: os.DirEntry[str], name: str, waiting: list[str]) -> None:
        if entry.is_symlink():
            self._links.append(name)
        elif entry.is_dir(follow_symlinks=False):
            waiting.append(name)
        elif not entry.is_file(follow_symlinks=False):
            self.set_aside.append(SetAside(name, "not a regular file (a pipe, socket or device)", False))
        else:
            self._take_file(name)

    def _follow(self, name: str) -> None:
        path = self.path(name)
        target = os.path.realpath(path)
        try:
            status = os.stat(path)
        except OSError as error:  # it leads nowhere, to itself, or where we may not go
            reason = f"a link to {escape_name(target)} that cannot be followed: {reason_of(error)}"
            self.set_aside.append(SetAside(name, reason, False))
            return
        is_folder = stat.S_ISDIR(status.st_mode)
        if (status.st_dev, status.st_ino) in self._read:
            warnings.warn(
                f"{escape_name(path)}: a loop or second name; leads to {escape_name(target)}; read once.",
                ImageWarning,
                stacklevel=2,
            )
        elif not (self.follow_links or target.startswith(self._real_root)):
            if is_folder or is_image(path):
                reason = f"a link out of the folder, to {escape_name(target)}; --follow-links follows it"
                self.set_aside.append(SetAside(name, reason, is_folder))
        elif is_folder:
            self._read_folder(name)
        elif stat.S_ISREG(status.st_mode):
            self._take_file(name)

    def _take_file(self, name: str) -> None:
        if is_image(self.path(name)):
            self.files.append(name)
        else:
            self.others += 1
            if name.lower().endswith(TABLE_EXTENSIONS):
                self.tables.append(name)

    def path(self, name: str) -> str:
        """The path to open for a name."""
        return os.path.join(self.root, name) if name else self.root


def is_ignored(name: str) -> bool:
    """Whether a file or a folder is one that systems leave behind, or is hidden."""
    return name.startswith(".") or name.lower() in IGNORED_NAMES


def is_image(path: str) -> bool:
    """Whether a file is an image by its ending or by its first bytes."""
    if os.path.splitext(path)[1].lower() in IMAGE_EXTENSIONS:
        return True
    try:
        with open(path, "rb", buffering=0) as file:
            start = file.read(16)
    except OSError:
        return False  # no extension of an image and no look inside: no sign of an image
    return start.startswith(SIGNATURES) or (start[:4] == b"RIFF" and start[8:12] == b"WEBP")
