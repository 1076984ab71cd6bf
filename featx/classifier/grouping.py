"""Groups that the images themselves suggest: near copies, and images of one source by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.audit import image_facts, name_groups, near_copies, small_copies
from featx.classifier.inputs import with_digests
from featx.classifier.model import GROUP_BYTES, FittedImages, ImageModel
from featx.classifier.settings import FitSettings
from featx.images import ImageSet
from featx.splits import image_groups, joined_groups
from featx.stores.base import FeatureStore, Ids
from featx.tables import count


def with_auto_groups(images: ImageSet, settings: FitSettings) -> ImageSet:
    """Return the images with groups of near copies and of images of one source, and say what was grouped.

    Groups that the user gives are used as they are. An image without kin has no group.

    Parameters
    ----------
    images : ImageSet
        With labels.
    settings : FitSettings
        Store, threads and callback.
    """
    if images.groups is not None or not settings.auto_groups:
        return images
    images = with_digests(images)
    assert images.ids is not None
    facts, there = image_facts(
        images.sources,
        images.ids,
        settings.machine["store"],
        n_jobs=settings.machine["n_jobs"],
        isolate=settings.machine["isolate"],
    )
    place = np.flatnonzero(there)
    if len(place) < 2:
        return images
    ids = images.ids[place]
    facts = facts.take(place)
    near = near_copies(facts, ids)
    sources = name_groups([images.names[i] for i in place], small_copies(facts))
    groups = _names(images, place, near.groups, sources)
    if groups is None:
        return images
    alike = np.unique(near.pairs)
    if len(alike):
        settings.say(_line(len(alike), len(np.unique(near.groups[alike])), "near copies"), stage="groups")
    if sources is not None:
        member = np.bincount(sources)[sources] > 1
        n_groups = len(np.unique(sources[member]))
        settings.say(_line(int(member.sum()), n_groups, "images that share a name"), stage="groups")
    return dataclasses.replace(images, groups=groups)


def kin_of_training(
    ids: NDArray[np.uint8], groups: NDArray[Any] | None, is_test: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Mask of the test images that have a copy, or an image of their group, in the training part."""
    units = image_groups(ids, groups)
    return np.isin(units[is_test], units[~is_test])


def near_trained(
    model: ImageModel, images: ImageSet, store: FeatureStore, *, isolate: bool = False
) -> NDArray[np.bool_]:
    """Mask of images that are copies, or near copies, of training images whose facts are in a store.

    Images that the model was fitted or tested on are no copies of themselves; images that cannot be decoded
    have no copies.
    """
    known = model.images
    trained = known.ids[~known.is_test]
    old, there = image_facts([b""] * len(trained), trained, store)
    images = with_digests(images)
    assert images.ids is not None
    copies = np.isin(_views(images.ids), _views(trained))
    if not there.any():
        return copies
    facts, readable = image_facts(images.sources, images.ids, store, isolate=isolate)
    place, own = np.flatnonzero(readable), np.flatnonzero(there)
    both = old.take(own).joined(facts.take(place))
    near = near_copies(both, np.concatenate([trained[own], images.ids[place]]))
    copies[place] |= np.isin(near.groups[len(own) :], near.groups[: len(own)])
    return copies


def groups_with_kin(
    images: ImageSet,
    known: FittedImages,
    ids: Ids,
    groups: NDArray[np.uint8] | None,
    store: FeatureStore,
    *,
    isolate: bool = False,
) -> tuple[NDArray[np.uint8] | None, int]:
    """Return the groups of old and new images, with near copies of new images in one group.

    Parameters
    ----------
    images : ImageSet
        The new images.
    known : FittedImages
        The old images. Those whose facts are not in the store have no near copies.
    ids : array of shape (n, 32), uint8
        Digests of the old images, then of the new ones.
    groups : array of shape (n, GROUP_BYTES), uint8, or None
        Hashes of their groups; zeros for no group.
    store : FeatureStore
    isolate : bool
        Decode in other processes.

    Returns
    -------
    array of shape (n, GROUP_BYTES), uint8, or None
        Hashes of groups.
    int
        Number of new images that are near copies of others.
    """
    n_old = len(known.ids)
    facts, there = image_facts([*[b""] * n_old, *images.sources], ids, store, isolate=isolate)
    place = np.flatnonzero(there)
    near = np.arange(len(ids))
    if len(place) > 1:
        found = near_copies(facts.take(place), ids[place]).groups
        near[place] = place[np.unique(found, return_index=True)[1]][found]
    new = near[n_old:]
    kin = np.bincount(near, minlength=len(ids))[new] > 1
    near[~np.isin(near, new[kin])] = -1
    if not kin.any():
        return groups, 0
    own = np.zeros((len(ids), GROUP_BYTES), np.uint8) if groups is None else groups.copy()
    names = np.full(len(ids), None, object)
    names[:] = [row.tobytes() if row.any() else None for row in own]
    alike = np.where(near >= 0, near, len(ids) + np.arange(len(ids)))
    units = joined_groups(image_groups(ids, names), alike)
    for unit in np.unique(units[near >= 0]):
        members = np.flatnonzero(units == unit)
        own[members] = np.frombuffer(min(ids[i].tobytes() for i in members)[:GROUP_BYTES], np.uint8)
    return own, int(kin.sum())


def _views(ids: NDArray[np.uint8]) -> NDArray[Any]:
    return np.ascontiguousarray(ids).view("V32").ravel()


def _line(n_images: int, n_groups: int, what: str) -> str:
    return (
        f"{count(n_images, 'image')} in {count(n_groups, 'group')} of {what} stay on one side of every split "
        "(--no-auto-groups turns this off)"
    )


def _names(
    images: ImageSet, place: NDArray[np.intp], near: NDArray[np.intp], sources: NDArray[np.intp] | None
) -> NDArray[np.object_] | None:
    """Names of groups, made from digests, so that they do not depend on the order; None if there is none."""
    assert images.ids is not None
    ids = images.ids[place]
    joined = near if sources is None else joined_groups(near, sources)
    names = np.full(len(images), None, object)
    order = np.argsort(joined, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(joined[order])) + 1):
        digests = {ids[i].tobytes() for i in members}
        if len(digests) > 1:
            names[place[members]] = f"auto-{min(digests).hex()[:32]}"
    return None if all(name is None for name in names) else names
