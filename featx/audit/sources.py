"""Check of file names: images of one source, such as the frames of a video or the versions of a photo."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featx.audit.probe import nearest
from featx.audit.values import AuditData, Finding, listed
from featx.images.facts import ImageFacts
from featx.tables import count

VERSION = re.compile(r"[._](jpe?g|png)\.rf\.[0-9a-f]{8,}$", re.IGNORECASE)
"""What Roboflow appends to the name of each augmented version of an image."""

COUNTER = re.compile(r"[ _.-]*\(?\d+\)?$")

LARGEST_SHARE = 0.5
"""A larger share of a folder's images with one stem is no source, but the name of a class or a camera."""

LEAST_SHARE, LEAST_LIFT = 0.8, 3.0
"""Share of images whose nearest image of the same folder has the same stem, and how many times that share is
what chance gives, from which stems are proposed as groups."""

FEWEST = 8


def name_stems(names: Sequence[str]) -> NDArray[np.str_]:
    """Return what images of one source share: folder and file name without counter and extension.

    Examples
    --------
    >>> name_stems(["walk/horse01-3.png", "cat/a_17_jpg.rf.0123456789abcdef.jpg", "x/one.jpg"]).tolist()
    ['walk/horse01', 'cat/a_17', 'x/one']
    """
    stems = []
    for name in names:
        folder, _, file = name.rpartition("/")
        base = file.rpartition(".")[0] or file
        version = VERSION.sub("", base)
        shorter = version if version != base else COUNTER.sub("", base)
        stems.append(f"{folder}/{shorter or base}")
    return np.array(stems, dtype=np.str_)


def name_groups(names: Sequence[str], pixels: NDArray[np.float32]) -> NDArray[np.intp] | None:
    """Return groups of images that share a stem, if their nearest neighbours are in the same group.

    Parameters
    ----------
    names : sequence of str, length n
    pixels : array of shape (n, d)
        Features, or small copies, of the images.

    Returns
    -------
    array of shape (n,), int, or None
        None if the names tell nothing of the images.
    """
    stems, codes, sizes = np.unique(name_stems(names), return_inverse=True, return_counts=True)
    _, folders, folder_sizes = np.unique(
        [name.rpartition("/")[0] for name in names], return_inverse=True, return_counts=True
    )
    share = sizes[codes] / folder_sizes[folders]
    member = np.flatnonzero((sizes[codes] > 1) & (share <= LARGEST_SHARE))
    if len(member) < FEWEST:
        return None
    same = np.zeros(len(codes), bool)
    for folder in np.unique(folders[member]):
        inside = np.flatnonzero(folders == folder)
        near = inside[nearest(pixels[inside], np.arange(len(inside)), 1)[0][:, 0]]
        same[inside] = codes[near] == codes[inside]
    chance = float(((sizes[codes[member]] - 1) / (folder_sizes[folders[member]] - 1)).mean())
    if same[member].mean() < max(LEAST_SHARE, LEAST_LIFT * chance):
        return None
    alone = np.setdiff1d(np.arange(len(codes)), member)
    groups = codes.copy()
    groups[alone] = len(stems) + np.arange(len(alone))
    return np.unique(groups, return_inverse=True)[1]


def small_copies(facts: ImageFacts) -> NDArray[np.float32]:
    """Pixels of small copies for `name_groups`, where there are no features."""
    return facts.thumbs[:, ::2, ::2].reshape(len(facts), -1).astype(np.float32)


def find_sources(data: AuditData) -> Finding | None:
    """Find images whose names share a stem and that are alike; `value` is the number of groups."""
    if data.facts is None and data.features is None:
        return None
    pixels = data.features if data.features is not None else small_copies(data.facts)  # type: ignore[arg-type]
    groups = name_groups(data.names, pixels)
    if groups is None:
        return None
    sizes = np.bincount(groups)
    images = np.flatnonzero(sizes[groups] > 1)
    images = images[np.argsort(groups[images], kind="stable")]
    stems = name_stems(data.names)
    n_groups = len(np.unique(groups[images]))
    shown = listed(np.unique(stems[images]).tolist())
    sentence = (
        f"{count(len(images), 'image')} in {count(n_groups, 'group')} that share a name and look alike, such "
        f"as frames or versions of one source: {shown}. They stay on one side of every split."
    )
    return Finding.of(
        data, "sources", "note", sentence, images, n_groups,
        evidence=[f"name starts with {stems[i]}" for i in images],
        suggestions=[f"group:{stems[i]}" for i in images],
        clusters=groups[images],
    )  # fmt: skip
