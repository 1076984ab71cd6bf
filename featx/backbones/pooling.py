"""From an unpooled output to one vector per image: a table of poolings.

Every pooling takes a map of shape (N, C, H, W) and, where a network has them, the other tokens, of
shape (N, P, C). All are plain tensor operations in float32, so that any stem can be traced and converted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

GEM_POWER = 3.0
"""Exponent of generalised-mean pooling (Radenović et al. 2018 start from 3)."""

GEM_FLOOR = 1e-6
"""Smaller activations are set to this value, since a fractional power needs positive numbers."""


def pool_average(map_: Tensor, extra: Tensor | None = None) -> Tensor:
    """Global average, (N, C)."""
    return map_.mean((2, 3))


def pool_maximum(map_: Tensor, extra: Tensor | None = None) -> Tensor:
    """Global maximum, (N, C)."""
    return map_.amax((2, 3))


def pool_gem(map_: Tensor, extra: Tensor | None = None) -> Tensor:
    """Generalised mean, (N, C); negative activations count as zero."""
    return map_.clamp(min=GEM_FLOOR).pow(GEM_POWER).mean((2, 3)).pow(1 / GEM_POWER)


def pool_average_maximum(map_: Tensor, extra: Tensor | None = None) -> Tensor:
    """Averages, then maxima, (N, 2 C)."""
    return torch.cat([pool_average(map_), pool_maximum(map_)], 1)


def pool_class_token(map_: Tensor, extra: Tensor | None) -> Tensor:
    """Class token, (N, C)."""
    assert extra is not None
    return extra[:, 0]


def pool_class_token_average(map_: Tensor, extra: Tensor | None) -> Tensor:
    """Class token, then the average of the image's tokens, (N, 2 C)."""
    return torch.cat([pool_class_token(map_, extra), pool_average(map_)], 1)


def pool_grid(side: int) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Averages over a grid of cells, (N, C side²): ordered by channel, then row, then column.

    The cells are those of torch's ``adaptive_avg_pool2d``, which OpenVINO computes several times slower than
    an average pool with a fixed window, or than averages of slices.
    """

    def pool(map_: Tensor, extra: Tensor | None = None) -> Tensor:
        windows = [_window(_cells(int(size), side)) for size in map_.shape[2:]]
        if all(windows):
            (height, down), (width, right) = windows  # type: ignore[misc]
            return F.avg_pool2d(map_, (height, width), (down, right)).flatten(1)
        return _average(_average(map_, side, 2), side, 3).flatten(1)

    return pool


def _cells(size: int, side: int) -> list[tuple[int, int]]:
    """Start and stop of each cell; cells overlap if `size` is not a multiple of `side`."""
    return [(i * size // side, -(-(i + 1) * size // side)) for i in range(side)]


def _window(cells: list[tuple[int, int]]) -> tuple[int, int] | None:
    """Length and stride of the cells; None if they differ between cells."""
    lengths = {stop - start for start, stop in cells}
    strides = {second[0] - first[0] for first, second in itertools.pairwise(cells)}
    return (lengths.pop(), strides.pop()) if len(lengths) == len(strides) == 1 and strides != {0} else None


def _average(map_: Tensor, side: int, dim: int) -> Tensor:
    cells = _cells(int(map_.shape[dim]), side)
    return torch.cat([map_.narrow(dim, a, b - a).mean(dim, keepdim=True) for a, b in cells], dim)


def keep_all(map_: Tensor, extra: Tensor | None = None) -> Tensor:
    """The map itself, (N, C, H, W), or all tokens, those beside the map first, (N, P + H W, C)."""
    if extra is None:
        return map_.contiguous()
    return torch.cat([extra, map_.flatten(2).transpose(1, 2)], 1)


POOL_FUNCTIONS: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "avg": pool_average,
    "max": pool_maximum,
    "gem": pool_gem,
    "avg+max": pool_average_maximum,
    "cls": pool_class_token,
    "cls+avg": pool_class_token_average,
    "grid2": pool_grid(2),
    "grid4": pool_grid(4),
    "none": keep_all,
}
