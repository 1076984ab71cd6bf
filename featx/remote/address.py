"""RemotePath: an address that featx may read, and which addresses lie below another one."""

from __future__ import annotations

import re
import urllib.parse

from featx.exceptions import UsageError

SCHEMES = ("s3", "gs", "gcs", "hf", "https", "http")
"""Allowed schemes. Others of fsspec are refused, since some of them run programs or read local files."""

WEB = ("https", "http")

_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*)://")
_BAD = re.compile(r"[\x00-\x1f\x7f\\]")


class RemotePath(str):
    """The URL of a file or a folder that featx may read; a subclass of str.

    A plain string is never read as a URL.

    Parameters
    ----------
    address : str
        Such as ``s3://bucket/photos/`` or ``https://example.org/photos.csv``; see `SCHEMES`.

    Raises
    ------
    UsageError
        If it has another scheme, a user name or a password, control characters, backslashes, or ``..``.
    """

    __slots__ = ()

    def __new__(cls, address: str) -> RemotePath:
        """Check the address."""
        text = address.strip()
        reason = _refusal(text)
        if reason:
            raise UsageError(f"{address!a}: {reason}.")
        scheme, rest = text.split("://", 1)
        return super().__new__(cls, f"{scheme.lower()}://{rest}")

    @property
    def scheme(self) -> str:
        """The part before ``://``."""
        return self.partition("://")[0]

    @property
    def on_web(self) -> bool:
        """Whether it is on a web server, where folders cannot be listed and nothing can be stored."""
        return self.scheme in WEB

    @property
    def name(self) -> str:
        """The last part of the path, without a query."""
        path = urllib.parse.urlsplit(self).path if self.on_web else self.partition("://")[2]
        return path.rstrip("/").rpartition("/")[2]

    @property
    def as_folder(self) -> str:
        """The prefix of all addresses below it."""
        return str(self) if self.endswith("/") else f"{self}/"

    def below(self, path: str) -> RemotePath:
        """Return the address of a path below this one.

        Parameters
        ----------
        path : str
            A relative path, or an address.

        Raises
        ------
        ValueError
            If it is not below this address; the message says why.
        """
        if is_address(path):
            try:
                found = RemotePath(path)
            except UsageError as error:
                raise ValueError(str(error)) from None
            if not found.startswith(self.as_folder):
                raise ValueError(f"it is not below {self}")
            return found
        text = path.strip().replace("\\", "/").removeprefix("./")
        if text.startswith("/") or not text:
            raise ValueError(f"it is not a path below {self}")
        try:
            return RemotePath(self.as_folder + (urllib.parse.quote(text) if self.on_web else text))
        except UsageError as error:
            raise ValueError(str(error)) from None

    def __truediv__(self, name: str) -> RemotePath:
        return self.below(name)


def is_address(text: object) -> bool:
    """Whether a text begins with a scheme, such as ``s3://``; ``file://`` is a path."""
    found = _SCHEME.match(text) if isinstance(text, str) else None
    return found is not None and found[1].lower() != "file"


def is_readable_address(text: object) -> bool:
    """Whether a text begins with one of `SCHEMES`."""
    found = _SCHEME.match(text) if isinstance(text, str) else None
    return found is not None and found[1].lower() in SCHEMES


def _refusal(text: str) -> str:
    if not is_readable_address(text):
        return f"no address that featx reads; it reads {', '.join(f'{scheme}://' for scheme in SCHEMES)}"
    if _BAD.search(text):
        return "an address with a backslash or a control character"
    scheme, rest = text.split("://", 1)
    on_web = scheme.lower() in WEB
    if on_web and "@" in rest.partition("/")[0]:
        return "an address with a user name or a password; write them into ~/.netrc or a query of your own"
    path = rest.partition("?")[0] if on_web else rest
    while on_web and (plain := urllib.parse.unquote(path)) != path:
        path = plain
    if any(part in (".", "..") for part in path.replace("\\", "/").split("/")):
        return "an address with the part '.' or '..'"
    return ""
