"""Files at URLs of object stores and web servers: read, listed and written by fsspec, with retries.

A plain string is never read as a URL: only a `RemotePath` is, and only the command line, the options ``root``
and ``store``, and programs that use featx create one. So a manifest from somebody else cannot make featx send
a request.
"""

from __future__ import annotations

from featx.remote.address import SCHEMES, RemotePath, is_address, is_readable_address
from featx.remote.kept import read_file

__all__ = ["SCHEMES", "RemotePath", "is_address", "is_readable_address", "read_file"]
