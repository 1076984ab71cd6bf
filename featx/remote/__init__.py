"""Files at addresses (object stores and web servers): read, listed and written by fsspec, with retries.

Nothing here is called for a plain text: only a `RemotePath` is read, and only the command line, the options
``root`` and ``store``, and programs that use featx make one. So no table and no list of a stranger makes
featx send a request.
"""

from __future__ import annotations

from featx.remote.address import SCHEMES, RemotePath, is_address, is_readable_address
from featx.remote.kept import read_file

__all__ = ["SCHEMES", "RemotePath", "is_address", "is_readable_address", "read_file"]
