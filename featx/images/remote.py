"""Images at addresses: folders of an object store, and the addresses that a manifest may name.

Somebody else may have written a manifest. So it may only name addresses below its own folder, or below the
one that the user gives (``root``); a manifest on this disk may name none without that.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from featx.exceptions import DataError
from featx.images.folder import IMAGE_EXTENSIONS, TABLE_EXTENSIONS, SetAside, is_ignored
from featx.images.picture import reason_of
from featx.remote import RemotePath, is_address
from featx.remote.access import find
from featx.tables import escape_name

NAMED = 3
"""Paths that a message names."""


@dataclass
class RemoteWalk:
    """What lies below a folder of an object store; the attributes are those of `featx.images.folder.Walk`.

    Images are recognised by their file extension alone: nothing is read.
    """

    root: RemotePath
    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    others: int = 0

    def __post_init__(self) -> None:
        try:
            found = find(self.root)
        except OSError as error:
            raise DataError(f"{escape_name(self.root)}: {reason_of(error)}.") from error
        folders = set()
        for one in found:
            name = one.address.removeprefix(self.root.as_folder)
            parts = name.split("/")
            if any(is_ignored(part) for part in parts):
                continue
            folders |= {"/".join(parts[:depth]) for depth in range(1, len(parts))}
            if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS:
                self.files.append(name)
            else:
                self.others += 1
                if name.lower().endswith(TABLE_EXTENSIONS):
                    self.tables.append(name)
        self.files.sort()
        self.folders = sorted(folders)
        self.tables.sort(key=lambda name: (name.count("/"), name))

    def path(self, name: str) -> RemotePath:
        """The address of a name."""
        return RemotePath(self.root.as_folder + name) if name else self.root


def locate_remote(paths: Sequence[str], root: RemotePath) -> list[RemotePath]:
    """Return the address of each path of a manifest.

    Parameters
    ----------
    paths : sequence of str
        Relative to the root, or addresses below it.
    root : RemotePath

    Raises
    ------
    DataError
        If one is not below the root; it names some.
    """
    found, outside = [], []
    for path in paths:
        try:
            found.append(root.below(path))
        except ValueError as error:
            outside.append(f"{escape_name(path)} ({error})")
    if outside:
        raise DataError(
            f"{len(outside)} of its {len(paths)} images are not below {escape_name(root)}: "
            f"{'; '.join(outside[:NAMED])}. If you trust it, give an address that all begin with, such as "
            "--root https://example.org/."
        )
    return found


def refuse_addresses(paths: Sequence[str]) -> None:
    """Refuse addresses in a manifest on this disk, for which no root was given.

    Raises
    ------
    DataError
        It names the first, and the option.
    """
    remote = [path for path in paths if is_address(path)]
    if remote:
        start = _common_folder(remote)
        raise DataError(
            f"{len(remote)} of its {len(paths)} paths are addresses, such as {escape_name(remote[0])}. featx "
            f"reads only addresses that you name: if you trust it, give --root {escape_name(start)}."
        )


def _common_folder(addresses: Sequence[str]) -> str:
    """The longest address that all others are below; a scheme alone where they have no more in common."""
    start = os.path.commonprefix([address.strip() for address in addresses])  # noqa: RUF071
    return start[: start.rfind("/") + 1] or f"{addresses[0].strip().partition('://')[0]}://"
