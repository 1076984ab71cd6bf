"""Which networks a choice may compare, by what they cost; and weights from the hub for those.

The cost of a network is counted (multiplications and additions of one image), not measured, so that the same
images get the same networks on every machine.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from featx.backbones import count_operations, download, is_model_file, local_names
from featx.backbones.sources import count_parameters
from featx.exceptions import FeatxError, WeightsNotFoundError
from featx.extractor import DEFAULT_BACKBONE
from featx.selection.halving import FEWEST_IMAGES
from featx.stores.base import FeatureStore

LOADING = 500
"""Images that the default network computes in the time in which another one is loaded and converted: 5 to 6 s
against 9 to 12 ms for an image (photos of 400 by 533 pixels, 2 cores of an AMD EPYC, 2026-11-29)."""


@dataclass(frozen=True)
class Affordable:
    """Networks that may be compared.

    Parameters
    ----------
    names : tuple of str
        The network that is the measure of the cost first, then the others, the cheapest first.
    images : int
        Most images to compare them on; 0 if there is nothing to compare.
    left_out : dict of str to str
        The others, with the reason.
    """

    names: tuple[str, ...]
    images: int
    left_out: dict[str, str]


def affordable(work: Mapping[str, float], *, n_all: int, n_images: int, most: int) -> Affordable:
    """Choose rivals of the default network that cost no more than its features of all images.

    Cost is that of loading the rivals and of their features of the images that they are compared on. It is
    paid at most: the features of the network that wins are computed in any case.

    Parameters
    ----------
    work : mapping of str to float
        Operations for an image of each network.
    n_all : int
        Images of the whole set.
    n_images : int
        Images of the training part.
    most : int
        Most images for a comparison.
    """
    first = DEFAULT_BACKBONE if DEFAULT_BACKBONE in work else min(work, key=lambda name: work[name])
    rivals = sorted((name for name in work if name != first), key=lambda name: work[name])
    reason = (
        f"loading it and its features of {FEWEST_IMAGES} images would cost more than the features of {first} "
        f"for all {n_all:,} images"
    )
    for kept in range(len(rivals), 0, -1):
        each = sum(work[name] for name in rivals[:kept]) / work[first]
        images = min(most, n_images, int((n_all - LOADING * (kept - 1)) / each))
        if images >= FEWEST_IMAGES:
            return Affordable((first, *rivals[:kept]), images, dict.fromkeys(rivals[kept:], reason))
    return Affordable((first,), 0, dict.fromkeys(rivals, reason))


def operations(names: Sequence[str], store: FeatureStore) -> dict[str, float]:
    """Operations for an image of each network, from the notes of the store where they are known.

    Infinite for a network that cannot be made here.
    """
    version = importlib.metadata.version("timm")
    found = {}
    for name in names:
        note = store.recall("operations", f"{version} {name}")
        if note is None:
            try:
                note = {"operations": count_operations(name)}
            except Exception:  # some networks do not run without numbers
                found[name] = math.inf
                continue
            store.remember("operations", f"{version} {name}", note)
        found[name] = float(note["operations"])
    return found


def too_slow(
    names: Sequence[str],
    store: FeatureStore,
    seconds: float,
    loading: float,
    n_images: int,
    budget_s: float,
) -> dict[str, str]:
    """Networks that could not be loaded and compute the images of a first round in time, with the reason.

    Parameters
    ----------
    names : sequence of str
        The first one is used in any case.
    store : FeatureStore
        Its notes have the operations of networks.
    seconds, loading : float
        Time of an image with the first one, and of loading it.
    n_images : int
        Images of the training part.
    budget_s : float
        Seconds for the comparison.
    """
    if len(names) < 2:
        return {}
    work, images = operations(names, store), min(FEWEST_IMAGES, n_images)
    spent, late = 0.0, {}
    for name in sorted(names[1:], key=lambda name: work[name]):
        cost = loading + seconds * images * work[name] / work[names[0]]
        if spent + cost > budget_s:
            late[name] = f"about {cost:.0f} s for loading it and {images} images do not fit {budget_s:.0f} s"
        else:
            spent += cost
    return late


def fetch(names: Sequence[str], say: Callable[[str], None], *, allowed: bool = True) -> dict[str, str]:
    """Download the weights of networks that are not here; say size and licence first.

    Parameters
    ----------
    names : sequence of str
        timm names.
    say : callable
        Called with a sentence before each download.
    allowed : bool
        Whether anything may be downloaded.

    Returns
    -------
    dict of str to str
        Networks that could not be had, with the reason. After the first one no other is tried.
    """
    here = set(local_names())
    missing = [name for name in names if name not in here and not is_model_file(name)]
    if not allowed:
        return dict.fromkeys(missing, "its weights are not on this machine, and downloads are not allowed")
    failed: dict[str, str] = {}
    for place, name in enumerate(missing):
        try:
            say(_of_hub(name))
            download(name)
        except WeightsNotFoundError:
            reason = "its weights are not on this machine, and the hub could not be reached"
            failed |= dict.fromkeys(missing[place:], reason)
            break
        except FeatxError as error:
            failed[name] = str(error).rstrip(".")
    return failed


def _of_hub(name: str) -> str:
    """Describe a download."""
    import timm

    config = timm.get_pretrained_cfg(name)
    licence = (config.license if config is not None else None) or "not known"
    megabytes = 4e-6 * count_parameters(name)
    return f"downloading {name} from the hub: {megabytes:.0f} MB, licence {licence}"
