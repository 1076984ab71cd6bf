"""Augmentation of features: views as more training rows, features averaged over views, noise on features.

The features of a view are computed like those of any image, so nothing here reads an image. Rows of views and
noisy copies stay in the fold of their image and are never scored. Averaged features also represent an image
when it is predicted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featx.features import FeatureBlocks
from featx.records import Record
from featx.representation import BlockName
from featx.selection.imbalance import IMBALANCED_FROM, imbalance_ratio, views_for_minority
from featx.spec import FeatureSpec

if TYPE_CHECKING:
    from featx.extractor import Extraction

Rows = NDArray[np.float32]

NOISE = 0.2
"""Largest noise to either side, as a fraction of the range of a feature."""

NOISE_COPIES = 2
"""Noisy copies of each row."""

FEW_A_CLASS = 25
"""Up to this mean number of images a class noise is tried by default. FroFA reports gains at 1 to 25 shots,
and the cost for so few rows is small."""


@dataclass(frozen=True)
class Augmentation(Record):
    """The augmentation that a classifier uses.

    Parameters
    ----------
    kind : str
        A key of `KINDS`.
    views : int
        Number of views of each image, if the kind uses them.
    policy : str
        Augmentation policy of the views.
    gain : float
        Out-of-fold score minus that without augmentation.
    """

    kind: str = "none"
    views: int = 0
    policy: str = "none"
    gain: float = 0.0

    @property
    def averages(self) -> bool:
        """Whether an image is predicted from features averaged over its views."""
        return self.kind.startswith("average")

    @property
    def uses_views(self) -> bool:
        """Whether features of views are needed for fitting."""
        return self.kind not in ("none", "noise")

    def specs(self, plain: Mapping[Any, FeatureSpec]) -> dict[Any, FeatureSpec]:
        """Specs of the views of some blocks, by `view_name`."""
        return {
            view_name(name, view): spec.replace(view=view, view_policy=self.policy)
            for name, spec in plain.items()
            for view in range(1, self.views + 1)
        }

    def split(self, blocks: FeatureBlocks, names: Sequence[str]) -> list[FeatureBlocks]:
        """Features of each view, under the names of the plain blocks."""
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
    """Augmented training features.

    Parameters
    ----------
    blocks : FeatureBlocks
        The features; the rows that are scored come first.
    image : array of shape (n_rows,), int
        Index of the image of each row.
    view : array of shape (n_rows,), int
        0 for the rows that are scored: one for each image, in the order of the images.
    """

    blocks: FeatureBlocks
    image: NDArray[np.intp]
    view: NDArray[np.intp]


def view_name(name: str, view: int) -> BlockName:
    """Name of a view's block, from the name of the plain block."""
    return BlockName.parse(name).with_fields(view=view)


def kinds_to_try(y: NDArray[Any], *, views: int) -> tuple[str, ...]:
    """Return the kinds of augmentation to try for these labels and this number of views."""
    from featx.solvers import STREAM_ROWS

    few = len(y) <= FEW_A_CLASS * len(np.unique(y))
    kinds = (
        ["noise"] if few or (views and len(y) <= STREAM_ROWS) else []
    )  # noise needs all features in memory
    if views:
        kinds += ["rows", "average", "average+rows"]
        kinds += ["minority"] if imbalance_ratio(y) >= IMBALANCED_FROM else []
    return tuple(kinds)


def augment(
    kind: str, plain: FeatureBlocks, views: Sequence[FeatureBlocks], y: NDArray[Any], *, random_state: int
) -> Augmented:
    """Return augmented training features.

    Parameters
    ----------
    kind : str
        A key of `KINDS`.
    plain : FeatureBlocks
        Features of the plain images.
    views : sequence of FeatureBlocks
        Features of each view, by the same names.
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
    """Return the mean features of each image."""

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
    """Add uniform noise of up to `NOISE` of each feature's range, and clip to the range.

    This is the channel-wise brightness of frozen feature augmentation (Bär et al., CVPR 2024). The ranges are
    those of all rows; labels are not used.
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
"""Features, and the indices of their images; None for all images in order."""


def _noise(plain: FeatureBlocks, views: Sequence[FeatureBlocks], y: NDArray[Any], seed: int) -> list[Part]:
    return [(plain, None), *((add_noise(plain, seed + copy), None) for copy in range(NOISE_COPIES))]


def _rows(plain: FeatureBlocks, views: Sequence[FeatureBlocks], y: NDArray[Any], seed: int) -> list[Part]:
    return [(plain, None), *((view, None) for view in views)]


def _minority(plain: FeatureBlocks, views: Sequence[FeatureBlocks], y: NDArray[Any], seed: int) -> list[Part]:
    """Use as many views of each image as bring its class close to the size of the largest class."""
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
average of its views, also when it is predicted; ``average+rows``: both; ``noise``: no view is needed."""


def _stacked(parts: Sequence[FeatureBlocks]) -> FeatureBlocks:
    """Stack the rows of several parts."""

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
