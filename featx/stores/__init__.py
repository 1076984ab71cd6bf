"""Stores of features by spec and image digest: on disk, on an object store, in memory; the default one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from featx.exceptions import StoreError
from featx.folders import platform_cache
from featx.remote import RemotePath, is_address
from featx.stores.base import FORMAT, FeatureStore
from featx.stores.memory import MemoryStore

CACHE_VARIABLE = "FEATX_CACHE"
MEMORY = "memory"
MODELS = "models"
"""Folder of a cache for converted networks."""


def open_store(store: str | os.PathLike[str] | FeatureStore | None = None) -> FeatureStore:
    """Open the store that a user named.

    Parameters
    ----------
    store : path-like, 'memory', FeatureStore or None
        A folder, or an address on an object store (``s3://bucket/cache``); a store in memory; a store that
        is already open; or the default one (`default_cache`).

    Raises
    ------
    StoreError
        If the folder cannot be used.
    StoreFormatError
        If a newer featx made it.
    UsageError
        If the address has another scheme, or its package is missing.
    """
    if store is None:
        store = default_cache()
    if not isinstance(store, str | os.PathLike):
        return store
    if is_address(store):
        from featx.stores.objects import ObjectStore

        return ObjectStore(store)
    return STORES[MEMORY](Path()) if store == MEMORY else STORES["hdf5"](Path(store))


def default_cache() -> Path | RemotePath:
    """The default cache: the folder or address in ``FEATX_CACHE``, else the platform's folder for caches.

    Raises
    ------
    StoreError
        If neither is known, as for a service without ``HOME``.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return RemotePath(named) if is_address(named) else Path(named)
    return platform_cache(CACHE_VARIABLE)


def converted_networks(*stores: FeatureStore) -> tuple[Path | None, bool]:
    """Return the folder of converted networks, and whether new ones are kept there.

    It is that of the first store that has one. Where features are kept in memory only, it is that of the
    default cache, which is only read: the network still opens in a moment if this machine has converted it.
    """
    for store in stores:
        folder = store.folder(MODELS)
        if folder is not None:
            return folder, True
    try:
        cache = default_cache()
        cache = platform_cache(CACHE_VARIABLE) if isinstance(cache, RemotePath) else cache
        return cache / f"v{FORMAT}" / MODELS, False
    except StoreError:
        return None, False


def _hdf5(path: Path) -> FeatureStore:
    from featx.stores.hdf5 import HDF5Store  # h5py is loaded only for a store on disk
    from featx.stores.layout import is_read_only
    from featx.stores.readonly import ReadOnlyStore

    return ReadOnlyStore(path) if is_read_only(path) else HDF5Store(path)


STORES: dict[str, Callable[[Path], FeatureStore]] = {
    "hdf5": _hdf5,
    MEMORY: lambda _path: MemoryStore(),
}
