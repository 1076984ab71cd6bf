"""Near copies: images that are resized, recompressed, mirrored, slightly cropped or turned copies of others.

The small copies (`ImageFacts.thumbs`) of an image and of its nearest neighbour are aligned by an affine map
(Lucas & Kanade, IJCAI 1981, with a gain), and their correlation is measured. How alike two different images
of this set can be is estimated from the set itself: the correlation of images with a neighbour that is not
the nearest. Copies are far beyond that. No network is used, so that groups do not depend on one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from featx.images.facts import THUMB, ImageFacts
from featx.threads import map_in_threads, n_threads

Floats = NDArray[np.float32]

TAIL = 5.0
"""Robust standard deviations beyond the median of the set's log(1 - correlation). 60 planted copies of
catdog have 5.9 and more; different images of catdog, sign_digits, clothing_dev and fsdd_spectrograms have
3.6 and less."""

LEAST = 0.95
"""Smallest correlation of near copies."""

BULK_RANK, BULK_IMAGES = 5, 400
"""The set's own correlations are measured with the neighbour of this rank, so that a set in which every
image has some copies has them, too, and on so many images."""

CELL = 4096
"""Images that are compared with each other; larger sets are divided into overlapping cells."""

PAIRS = 128
"""Pairs that are aligned at once by a thread."""

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True, eq=False)
class NearCopies:
    """Near copies that were found.

    Parameters
    ----------
    pairs : array of shape (m, 2), int
        Positions of two images.
    correlation : array of shape (m,), float32
        Of their aligned small copies.
    mirrored : array of shape (m,), bool
        Whether one is mirrored.
    threshold : float
        Smallest correlation that counts in this set.
    groups : array of shape (n,), int
        Group of each image; an image without copies is on its own.
    """

    pairs: NDArray[np.intp]
    correlation: Floats
    mirrored: NDArray[np.bool_]
    threshold: float
    groups: NDArray[np.intp]


def near_copies(facts: ImageFacts, digests: NDArray[np.uint8]) -> NearCopies:
    """Find near copies; exact copies are in the same group, but not among the pairs.

    Parameters
    ----------
    facts : ImageFacts
        Of n images.
    digests : array of shape (n, 32), uint8
        Of their bytes.
    """
    if len(facts) < 2:
        alone = np.arange(len(facts))
        return NearCopies(np.empty((0, 2), np.intp), np.empty(0, np.float32), np.empty(0, bool), LEAST, alone)
    _, first, inverse = np.unique(
        np.ascontiguousarray(digests).view("V32").ravel(), return_index=True, return_inverse=True
    )
    grey = facts.thumbs[first] @ LUMA
    pairs, mirrored, bulk = _candidates(grey)
    centre, spread = _spread_of(grey, bulk)
    limit = min(1 - np.exp(centre - TAIL * spread), 1 - 1e-4) if len(bulk) else LEAST
    limit = float(max(limit, LEAST))
    coarse = 1 - np.exp(centre - TAIL / 2 * spread) if len(bulk) else 0.0
    score = _aligned(grey, pairs, mirrored, min(float(coarse), 0.95))
    found = score >= limit
    ends = first[pairs[found]]
    links = coo_array((np.ones(len(ends)), (inverse[ends[:, 0]], inverse[ends[:, 1]])), (len(first),) * 2)
    groups = connected_components(links, directed=False)[1][inverse]
    order = np.argsort(-score[found], kind="stable")
    return NearCopies(ends[order], score[found][order], mirrored[found][order], limit, groups.astype(np.intp))


def _candidates(grey: Floats) -> tuple[NDArray[np.intp], NDArray[np.bool_], NDArray[np.intp]]:
    """Return pairs of nearest neighbours, which are mirrored, and pairs of the rank `BULK_RANK`."""
    plain, flipped = _rows(_halved(grey)), _rows(_halved(grey[:, :, ::-1]))
    nearest = np.full(len(grey), -1, np.intp)
    best = np.full(len(grey), -np.inf, np.float32)
    mirrored = np.zeros(len(grey), bool)
    bulk: list[NDArray[np.intp]] = []
    for cell in _cells(plain):
        if len(cell) < 2:
            continue
        upright = plain[cell] @ plain[cell].T
        np.fill_diagonal(upright, -1)
        turned = plain[cell] @ flipped[cell].T
        np.fill_diagonal(turned, -1)
        either = np.maximum(upright, turned)
        place = either.argmax(axis=1)
        value = either[np.arange(len(cell)), place]
        better = value > best[cell]
        nearest[cell[better]], best[cell[better]] = cell[place[better]], value[better]
        mirrored[cell[better]] = (turned > upright)[np.flatnonzero(better), place[better]]
        some = np.unique(np.linspace(0, len(cell) - 1, min(len(cell), BULK_IMAGES)).astype(int))
        rank = min(BULK_RANK, len(cell) - 1)
        ranked = np.argpartition(-upright[some], rank - 1, axis=1)[:, rank - 1]
        bulk.append(np.column_stack([cell[some], cell[ranked]]))
    has = np.flatnonzero(nearest >= 0)
    ends = np.sort(np.column_stack([has, nearest[has]]), axis=1)
    pairs, where = np.unique(ends, axis=0, return_index=True)
    both = np.concatenate(bulk) if bulk else np.empty((0, 2), np.intp)
    step = max(1, len(both) // BULK_IMAGES)
    return pairs.reshape(-1, 2), mirrored[has][where], both[::step]


def _spread_of(grey: Floats, bulk: NDArray[np.intp]) -> tuple[float, float]:
    """Median and robust standard deviation of log(1 - correlation) of pairs that are no copies."""
    if not len(bulk):
        return 0.0, 1.0
    score = _aligned(grey, bulk, np.zeros(len(bulk), bool), -1.0)
    middle, far = np.percentile(np.log(np.maximum(1 - score, 1e-6)), (50, 75))
    return float(middle), max(float(far - middle) / 0.6745, 0.1)


def _aligned(grey: Floats, pairs: NDArray[np.intp], mirrored: NDArray[np.bool_], coarse: float) -> Floats:
    """Return the correlation of pairs; those below `coarse` at half the size are not aligned further."""

    def align(start: int) -> Floats:
        part = slice(start, start + PAIRS)
        a, b = grey[pairs[part, 0]], grey[pairs[part, 1]]
        b = np.where(mirrored[part, None, None], b[:, :, ::-1], b)
        found, maps = _align(_halved(a), _halved(b), np.zeros((len(a), 6), np.float32), steps=3)
        close = np.flatnonzero(found >= coarse)
        if len(close):
            found[close] = _align(a[close], b[close], maps[close], steps=4)[0]
        return found

    scores = map_in_threads(n_threads(), align, range(0, len(pairs), PAIRS))
    return np.concatenate([np.empty(0, np.float32), *scores])


def _align(a: Floats, b: Floats, maps: Floats, steps: int) -> tuple[Floats, Floats]:
    """Align images `b` to `a`, shape (m, side, side), by Gauss-Newton steps; return correlations and maps."""
    side = a.shape[1]
    half = (side - 1) / 2
    y, x = ((np.mgrid[:side, :side].reshape(2, -1) - half) / half).astype(np.float32)
    slope_y, slope_x = (half * slope for slope in np.gradient(b, axis=(1, 2)))
    target = a.reshape(len(a), -1)
    best, found = np.full(len(a), -1, np.float32), maps.copy()
    for step in range(steps + 1):
        to_y = maps[:, 0:1] + (1 + maps[:, 1:2]) * y + maps[:, 2:3] * x
        to_x = maps[:, 3:4] + maps[:, 4:5] * y + (1 + maps[:, 5:6]) * x
        inside = ((np.abs(to_y) <= 1) & (np.abs(to_x) <= 1)).astype(np.float32)
        place = _Places(to_y * half + half, to_x * half + half, side)
        fixed, moved = _centred(target, inside), _centred(place.of(b), inside)
        lengths = np.linalg.norm(fixed, axis=1), np.linalg.norm(moved, axis=1)
        now = (fixed * moved).sum(axis=1) / np.maximum(lengths[0] * lengths[1], 1e-3)
        now[inside.mean(axis=1) < 0.6] = -1
        better = now > best
        best[better], found[better] = now[better], maps[better]
        if step == steps:
            break
        dy, dx = place.of(slope_y), place.of(slope_x)
        jacobian = np.stack([dy, dy * y, dy * x, dx, dx * y, dx * x], axis=1) * inside[:, None]
        gain = (lengths[1] / np.maximum(lengths[0], 1e-3))[:, None]
        normal = jacobian @ jacobian.transpose(0, 2, 1)
        damping = 1e-3 * np.trace(normal, axis1=1, axis2=2) / 6 + 1e-3
        normal += damping[:, None, None] * np.eye(6, dtype=np.float32)
        change = np.linalg.solve(normal, jacobian @ (gain * fixed - moved)[:, :, None])[:, :, 0]
        maps = np.clip(found + change, -0.4, 0.4).astype(np.float32)
    return best, found


class _Places:
    """Positions in images, shape (m, k), at which bilinear values of several images are taken."""

    def __init__(self, y: Floats, x: Floats, side: int) -> None:
        y, x = np.clip(y, 0, side - 1.001), np.clip(x, 0, side - 1.001)
        row, column = y.astype(np.intp), x.astype(np.intp)
        self._down, self._right = (y - row).astype(np.float32), (x - column).astype(np.float32)
        first = np.arange(len(y))[:, None] * side**2 + row * side + column
        self._corners = [first + shift for shift in (0, 1, side, side + 1)]

    def of(self, images: Floats) -> Floats:
        """Values of images of shape (m, side, side)."""
        flat = np.ascontiguousarray(images).ravel()
        corner = [flat.take(place) for place in self._corners]
        upper = corner[0] + (corner[1] - corner[0]) * self._right
        lower = corner[2] + (corner[3] - corner[2]) * self._right
        values: Floats = upper + (lower - upper) * self._down
        return values


def _centred(values: Floats, weight: Floats) -> Floats:
    mean = (values * weight).sum(axis=1, keepdims=True) / np.maximum(weight.sum(axis=1, keepdims=True), 1)
    return np.asarray((values - mean) * weight)


def _halved(grey: Floats) -> Floats:
    half = THUMB // 2
    return np.asarray(grey.reshape(len(grey), half, 2, half, 2).mean(axis=(2, 4)))


def _rows(grey: Floats) -> Floats:
    rows = grey.reshape(len(grey), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    unit: Floats = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-3)
    return unit


def _cells(rows: Floats) -> list[NDArray[np.intp]]:
    """Divide many images into cells around some of them; each image is in its two nearest cells."""
    n = len(rows)
    if n <= 2 * CELL:
        return [np.arange(n)]
    centres = rows[np.random.default_rng(0).choice(n, 2 * n // CELL + 1, replace=False)]
    mirror = np.arange(rows.shape[1]).reshape(THUMB // 2, -1)[:, ::-1].ravel()
    closeness = np.maximum(
        rows @ centres.T, rows @ centres[:, mirror].T
    )  # an image is beside its mirror image
    two = np.argpartition(-closeness, 1, axis=1)[:, :2]
    return [np.flatnonzero((two == cell).any(axis=1)) for cell in range(len(centres))]
