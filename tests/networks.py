"""Networks with random weights, made once, and what they need of timm."""

from __future__ import annotations

import functools
from importlib.metadata import version

import pytest

from featx.backbones import load_backbone
from featx.backbones.network import Backbone

all_have_layers = pytest.mark.skipif(
    tuple(map(int, version("timm").split(".")[:3])) < (1, 0, 31),
    reason="timm before 1.0.31 does not return the layers of all networks",
)


@functools.cache
def backbone(name: str) -> Backbone:
    """The network on the CPU."""
    return load_backbone(name, pretrained=False, device="cpu")
