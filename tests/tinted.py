"""Pictures that a network can tell apart after a few steps."""

from __future__ import annotations

import numpy as np


def pictures(n: int = 40, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Noise tinted red or blue."""
    rng = np.random.default_rng(seed)
    y = np.array(["blue", "red"] * (n // 2))
    tint = {"red": (60, -40, -40), "blue": (-40, -40, 60)}
    noise = rng.integers(0, 256, (n, 48, 64, 3)).astype(np.int16)
    return [(x + tint[label]).clip(0, 255).astype(np.uint8) for x, label in zip(noise, y, strict=True)], y
