"""Augmentation on rows: views as more training rows, views averaged into one row, noise in feature space.

A view's row is a row like any other, so nothing here sees a picture. Rows of views and of noise belong to
their image's fold and never score; averaged rows stand for their image when it is judged, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.extractor import Extraction
from featx.features import FeatureBlocks
from featx.records import Record
from featx.representation import BlockName
from featx.selection.imbalance import IMBALANCED_FROM, imbalance_ratio, views_for_minority
from featx.solvers import STREAM_ROWS
from featx.spec import FeatureSpec

Rows = NDArray[np.float32]

NOISE = 0.2
"""Largest step of feature-space noise to either side, as a fraction of a feature's range."""

NOISE_COPIES = 2
"""Noisy copies of each row."""

FEW_A_CLASS = 25
"""Up to as many images a class, on average, noise is tried without being asked for: FroFA's gains are at 1 to
25 shots, and so few rows cost nothing."""


@dataclass(frozen=True)
class Augmentation(Record):
    """What of augmentation a classifier uses.

    Parameters
    ----------
    kind : str
        A key of `KINDS`.
    views : int
        Views of each image, where the kind uses them.
    policy : str
        Of the views.
    gain : float
        Out-of-fold score less that without it.
    """

    kind: str = "none"
    views: int = 0
    policy: str = "none"
    gain: float = 0.0

    @property
    def averages(self) -> bool:
        """Whether an image is judged by the average of its views."""
        return self.kind.startswith("average")

    @property
    def uses_views(self) -> bool:
        """Whether rows of views are needed to fit it."""
        return self.kind not in ("none", "noise")

    def specs(self, plain: Mapping[Any, FeatureSpec]) -> dict[Any, FeatureSpec]:
        """Recipes of the views of some blocks, by the names that `view_name` gives."""
        return {
            view_name(name, view): spec.replace(view=view, view_policy=self.policy)
            for name, spec in plain.items()
            for view in range(1, self.views + 1)
        }

    def split(self, blocks: FeatureBlocks, names: Sequence[str]) -> list[FeatureBlocks]:
        """Rows of each view, under the names of the plain blocks."""
        return [
            blocks.renamed({name: view_name(name, view) for name in names})
            for view in range(1, self.views + 1)
        ]

    def averaged_blocks(self, blocks: FeatureBlocks, names: Sequence[str]) -> FeatureBlocks:
        """Features that predictions are made from: averaged over the views, if that is the kind."""
        if not self.averages:
            return blocks
        return average([blocks.only(names), *self.split(blocks, names)])

    def averaged(self, found: Extraction, names: Sequence[str]) -> Extraction:
        """The extraction with `averaged_blocks`."""
        if not self.averages:
            return found
        return dataclasses.replace(found, blocks=self.averaged_blocks(found.blocks, names))


PLAIN = Augmentation()


@dataclass(frozen=True)
class Augmented:
    """Training rows, those that score first.

    Parameters
    ----------
    blocks : FeatureBlocks
        The rows.
    image : array of shape (n_rows,), int
        Which image each is of.
    view : array of shape (n_rows,), int
        0 for the rows that score: one of each image, in the images' order.
    """

    blocks: FeatureBlocks
    image: NDArray[np.intp]
    view: NDArray[np.intp]


def view_name(name: str, view: int) -> BlockName:
    """Name of a view's block, from the name of the plain block."""
    return BlockName.parse(name).with_fields(view=view)


def kinds_to_try(y: NDArray[Any], *, views: int) -> tuple[str, ...]:
    """What may help with these labels and so many views."""
    few = len(y) <= FEW_A_CLASS * len(np.unique(y))
    kinds = ["noise"] if few or (views and len(y) <= STREAM_ROWS) else []  # noise needs all rows in memory
    if views:
        kinds += ["rows", "average", "average+rows"]
        kinds += ["minority"] if imbalance_ratio(y) >= IMBALANCED_FROM else []
    return tuple(kinds)


def augment(
    kind: str, plain: FeatureBlocks, views: Sequence[FeatureBlocks], y: NDArray[Any], *, random_state: int
) -> Augmented:
    """Training rows of a kind.

    Parameters
    ----------
    kind : str
        A key of `KINDS`.
    plain : FeatureBlocks
        Rows of the plain images.
    views : sequence of FeatureBlocks
        Rows of each view, by the same names.
    y : array of shape (n,)
        Labels of the images.
    random_state : int
        Seed of the noise.
    """
    parts = KINDS[kind](plain, views, y, random_state)
    every = np.arange(plain.n_rows)
    images = [every if index is None else index for _, index in parts]
    taken = [blocks if index is None else blocks.take(index) for blocks, index in parts]
    numbers = [np.full(len(index), number) for number, index in enumerate(images)]
    return Augmented(_stacked(taken), np.concatenate(images), np.concatenate(numbers))


def average(parts: Sequence[FeatureBlocks]) -> FeatureBlocks:
    """The mean row of each image."""

    def load(name: str) -> Callable[[], Rows]:
        return lambda: np.mean([part[name] for part in parts], axis=0, dtype=np.float32)

    def read(name: str) -> Callable[[NDArray[np.intp]], Rows]:
        return lambda some: np.mean([part.part(name, some) for part in parts], axis=0, dtype=np.float32)

    first = parts[0]
    return FeatureBlocks(
        {name: load(name) for name in first},
        first.n_rows,
        widths={name: first.width(name) for name in first},
        readers={name: read(name) for name in first},
    )


def add_noise(plain: FeatureBlocks, seed: int) -> FeatureBlocks:
    """Rows moved in each feature by a uniform draw of up to `NOISE` of its range, and kept within it.

    The channel-wise brightness of frozen feature augmentation (Bär et al., CVPR 2024). Ranges are those of
    all rows; no label is looked at.
    """

    def load(name: str, number: int) -> Callable[[], Rows]:
        def moved() -> Rows:
            rows = plain[name]
            low, high = rows.min(axis=0), rows.max(axis=0)
            step = np.random.default_rng([seed, number]).uniform(-NOISE, NOISE, rows.shape)
            return np.asarray(np.clip(rows + (step * (high - low)).astype(np.float32), low, high))

        return moved

    loaders = {name: load(name, number) for number, name in enumerate(plain)}
    return FeatureBlocks(loaders, plain.n_rows, widths={name: plain.width(name) for name in plain})


Part = tuple[FeatureBlocks, "NDArray[np.intp] | None"]
"""Rows, and the images that they are taken of (all)."""


def _noise(plain: FeatureBlocks, views: Sequence[FeatureBlocks], y: NDArray[Any], seed: int) -> list[Part]:
    return [(plain, None), *((add_noise(plain, seed + copy), None) for copy in range(NOISE_COPIES))]


def _rows(plain: FeatureBlocks, views: Sequence[FeatureBlocks], y: NDArray[Any], seed: int) -> list[Part]:
    return [(plain, None), *((view, None) for view in views)]


def _minority(plain: FeatureBlocks, views: Sequence[FeatureBlocks], y: NDArray[Any], seed: int) -> list[Part]:
    """As many views of each image as bring its class near to the largest."""
    wanted = views_for_minority(y, most=len(views))
    number = np.array([wanted[label] for label in y.tolist()])
    return [(plain, None), *((view, np.flatnonzero(number > k)) for k, view in enumerate(views))]


def _average(plain: FeatureBlocks, views: Sequence[FeatureBlocks], y: NDArray[Any], seed: int) -> list[Part]:
    return [(average([plain, *views]), None)]


def _average_and_rows(
    plain: FeatureBlocks, views: Sequence[FeatureBlocks], y: NDArray[Any], seed: int
) -> list[Part]:
    return [(average([plain, *views]), None), (plain, None), *((view, None) for view in views)]


def _none(plain: FeatureBlocks, views: Sequence[FeatureBlocks], y: NDArray[Any], seed: int) -> list[Part]:
    return [(plain, None)]


KINDS: Mapping[str, Callable[[FeatureBlocks, Sequence[FeatureBlocks], NDArray[Any], int], list[Part]]] = {
    "none": _none,
    "noise": _noise,
    "rows": _rows,
    "minority": _minority,
    "average": _average,
    "average+rows": _average_and_rows,
}
"""``rows``: views are more training rows; ``minority``: only of rare classes; ``average``: an image is the
average of its views, also when it is judged; ``average+rows``: both; ``noise``: no view is needed."""


def _stacked(parts: Sequence[FeatureBlocks]) -> FeatureBlocks:
    """Rows of several parts below each other."""

    def load(name: str) -> Callable[[], Rows]:
        return lambda: np.concatenate([part[name] for part in parts])

    first = parts[0]
    ends = np.cumsum([part.n_rows for part in parts])

    def read(name: str) -> Callable[[NDArray[np.intp]], Rows]:
        def some(rows: NDArray[np.intp]) -> Rows:
            out = np.empty((len(rows), first.width(name)), np.float32)
            for part, end in zip(parts, ends, strict=True):
                own = (rows >= end - part.n_rows) & (rows < end)
                out[own] = part.part(name, rows[own] - (end - part.n_rows))
            return out

        return some

    return FeatureBlocks(
        {name: load(name) for name in first},
        int(ends[-1]),
        widths={name: first.width(name) for name in first},
        readers={name: read(name) for name in first},
    )
