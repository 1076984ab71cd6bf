"""Which specs a `FeatureExtractor` means: combinations of cut, pool, resize and view, and the precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from featx.backbones import BackboneCard
from featx.backbones.runtimes import (
    accelerator_likely,
    accelerator_name,
    resolve_device,
    resolve_precision,
)
from featx.exceptions import UsageError
from featx.extractor.pipeline import spread
from featx.extractor.sources import distinct_digests
from featx.images import DecodePolicy, ImageSource, choose_range
from featx.representation import BlockName
from featx.spec import PRECISIONS, FeatureSpec
from featx.stores.base import FeatureStore

ALL = "all"

SAMPLE = 64
"""Images that are looked up to learn whether a space of another precision has them."""


def find_hardware(store: FeatureStore, *, device: str, runtime: str, precision: str) -> tuple[str, str]:
    """Resolve device and precision. An accelerator is kept in the store's notes: torch takes long to import.

    Raises
    ------
    UsageError
        If the device or the precision is unknown, or the device is not available.
    """
    if not accelerator_likely(device):
        device = resolve_device(device, runtime)
        return device, resolve_precision(precision, device)
    name = accelerator_name(device, runtime, precision)
    note = store.recall("hardware", name)
    if note is None:
        found = resolve_device(device, runtime)
        note = {"device": found, "precision": resolve_precision(precision, found)}
        if not found.startswith("cpu"):
            store.remember("hardware", name, note)
    return str(note["device"]), str(note["precision"])


def combine_specs(
    card: BackboneCard,
    *,
    cut: Any,
    pool: Any,
    resize: Any,
    view: Any,
    view_policy: str,
    **fields: Any,
) -> dict[BlockName, FeatureSpec]:
    """Make a spec for each combination of cut, pool, resize and view that the network allows.

    Parameters
    ----------
    card : BackboneCard
        Of the network.
    cut, pool, resize, view, view_policy
        As for `FeatureExtractor`.
    **fields
        Other arguments of `BackboneCard.spec`.

    Raises
    ------
    UnknownTapError, UsageError
        If there is no such cut, or a pooling is possible at none of the cuts.
    """
    cuts = [tap.name for tap in card.taps] if cut == ALL else _as_list(cut)
    pools, views = _as_list(pool), _as_list(view)
    specs: dict[BlockName, FeatureSpec] = {}
    for one_cut in cuts:
        for one_pool in pools:
            if len(cuts) > 1 and one_pool not in card.pools(one_cut):
                continue
            for one_resize in _as_list(resize):
                for number in views:
                    spec = card.spec(
                        one_cut,
                        one_pool,
                        resize=one_resize,
                        view=number,
                        view_policy=view_policy if number else "none",
                        **fields,
                    )
                    specs[spec.block] = spec
    for one_pool in pools:
        if all(spec.pool != one_pool for spec in specs.values()):
            raise UsageError(
                f"pool {one_pool!r} is possible at none of the cuts {', '.join(map(str, cuts))} of "
                f"{card.name}."
            )
    return specs


def stored_precision(
    store: FeatureStore, specs: Iterable[FeatureSpec], precision: str, sources: Sequence[ImageSource]
) -> str:
    """Return the precision whose spaces hold most of the sources, at least half; else `precision`."""
    specs = list(specs)
    known: Mapping[str, FeatureSpec] = store.keys()
    others = [
        other
        for other in PRECISIONS
        if other != precision and all(spec.replace(precision=other).key in known for spec in specs)
    ]
    if not others or not len(sources):
        return precision
    ids, _, _ = distinct_digests([sources[index] for index in spread(len(sources), SAMPLE)])

    def n_stored(name: str) -> int:
        spaces = [spec.replace(precision=name).key for spec in specs]
        return int(sum((~store.missing(key, ids)).sum() for key in spaces))

    best = max((precision, *others), key=n_stored)
    return best if 2 * n_stored(best) >= len(ids) * len(specs) else precision


def resolve_range(extractor: Any, sources: Sequence[ImageSource], remarks: list[str]) -> str:
    """Return the range of deep pixels; ``auto`` looks at a sample, and adds what it chose to the remarks.

    Parameters
    ----------
    extractor : FeatureExtractor
        Its pixel_range, max_pixels, bands and isolate are used.
    sources : sequence of image sources
        The set.
    remarks : list of str
        Changed.
    """
    if extractor.pixel_range != "auto":
        return str(extractor.pixel_range)
    policy = DecodePolicy(max_pixels=extractor.max_pixels, bands=extractor.bands)
    found = choose_range(sources, policy, isolate=extractor.isolate)
    if found != "full":
        black, _, white = found.partition(",")
        remarks.append(
            f"images of more than 8 bits: {black} is black and {white} is white, chosen from a sample "
            "(--range LOW,HIGH chooses others)."
        )
    return found


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple | range | np.ndarray) else [value]
