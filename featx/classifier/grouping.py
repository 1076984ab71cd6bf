"""Groups that the images themselves suggest: near copies, and images of one source by name."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from featx.audit import image_facts, name_groups, near_copies, small_copies
from featx.audit.values import count
from featx.classifier.inputs import with_digests
from featx.classifier.settings import FitSettings
from featx.images import ImageSet
from featx.splits import joined_groups


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
        images.sources, images.ids, settings.machine["store"], n_jobs=settings.machine["n_jobs"]
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
