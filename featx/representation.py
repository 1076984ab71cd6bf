"""BlockName and Representation: which features a classifier is fitted on.

A block is the features of one network, layer, pooling, resizing and view. A representation is one block,
several blocks side by side, or the features picked over several blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

SIDE_BY_SIDE = " + "
"""Separates the blocks in the text of a representation."""

PICKED = "relevant:"
"""Begins the text of a representation of picked features; their number follows."""

_TEXT = re.compile(
    r"(?:(?P<network>[^/]+)/)?(?P<cut>[^:/]+):(?P<pool>[^:/]+):(?P<resize>[^:/]+)(?::view(?P<view>\d+))?"
)


_PICKED_TEXT = re.compile(re.escape(PICKED) + r"(?P<count>\d+)")


class BlockName(str):
    """Name of a block of features: a value with fields, equal to its text ``network/cut:pool:resize:viewK``.

    The network is left out where it is the first one, and the view where it is 0. Being text, it is a key
    that people can write; code reads the fields and never takes the text apart.

    Parameters
    ----------
    cut : str
        Layer, such as ``"blocks.4"``; ``"last"`` is the whole network without its classifier.
    pool : str
        Pooling, such as ``"avg"`` or ``"grid4"``.
    resize : str
        ``"crop"``, ``"squash"`` or ``"pad"``.
    network : str, default ""
        timm name of the network; empty for the first or only one.
    view : int, default 0
        0 for the plain image, k for its k-th augmented view.
    """

    cut: str
    pool: str
    resize: str
    network: str
    view: int

    def __new__(  # noqa: D102
        cls, cut: str, pool: str, resize: str, network: str = "", view: int = 0
    ) -> Self:
        text = f"{cut}:{pool}:{resize}" + (f":view{view}" if view else "")
        self = super().__new__(cls, f"{network}/{text}" if network else text)
        self.cut, self.pool, self.resize, self.network, self.view = cut, pool, resize, network, view
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return (self.cut, self.pool, self.resize, self.network, self.view)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text of a name.

        Raises
        ------
        ValueError
            If it is not the name of a block.
        """
        found = _TEXT.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r:.80} is not the name of a block (cut:pool:resize)")
        return cls(
            found["cut"], found["pool"], found["resize"], found["network"] or "", int(found["view"] or 0)
        )

    def with_fields(self, **changes: Any) -> Self:
        """Copy with some fields changed."""
        fields = {name: getattr(self, name) for name in ("cut", "pool", "resize", "network", "view")}
        return type(self)(**{**fields, **changes})


def block_name(text: str) -> str:
    """Return a name as `BlockName` if it is the name of a block of an image's features, else as it is."""
    if isinstance(text, BlockName) or _TEXT.fullmatch(text) is None:
        return text
    return BlockName.parse(text)


@dataclass(frozen=True)
class Representation:
    """The features that a head is fitted on.

    Parameters
    ----------
    blocks : tuple of str
        Names of the blocks, in the order in which they stand side by side: `BlockName` for features of
        images, any text for other features.
    picked : int, optional
        Number of features that are picked over the blocks; None for all of them.
    """

    blocks: tuple[str, ...]
    picked: int | None = None

    @classmethod
    def read(cls, text: str, blocks: Iterable[str]) -> Self:
        """Read the text of a representation that is made from `blocks`, all of them."""
        found = _PICKED_TEXT.fullmatch(text)
        return cls(tuple(map(block_name, blocks)), int(found["count"]) if found else None)

    def __str__(self) -> str:
        """Text for people and for Optuna."""
        return SIDE_BY_SIDE.join(self.blocks) if self.picked is None else f"{PICKED}{self.picked}"

    def width(self, widths: Mapping[str, int]) -> int:
        """Return the number of columns that it is made from."""
        return sum(widths[name] for name in self.blocks)

    def complexity(self, widths: Mapping[str, int]) -> tuple[int, int, int]:
        """Return a key that sorts simple representations first.

        Few blocks are simpler than many, and picked features are the least simple. Then come the usual
        features before others, and few columns before many.
        """
        if self.picked is not None:
            return (len(self.blocks), self.picked, 0)
        return (len(self.blocks), 0 if is_usual(self.blocks[0]) else 1, self.width(widths))


def is_picked(text: str) -> bool:
    """Return whether a text is that of picked features."""
    return _PICKED_TEXT.fullmatch(text) is not None


def layer_of(block: str) -> str:
    """Return the layer of a block, with its network; a block that is not of a network is its own layer."""
    if not isinstance(block, BlockName):
        return block
    return f"{block.network}/{block.cut}" if block.network else block.cut


def is_usual(block: str) -> bool:
    """Return whether a block is an average of the (first) network's last features: common practice."""
    return (
        isinstance(block, BlockName)
        and not block.network
        and block.cut == "last"
        and block.pool in ("avg", "avg+max")
    )
