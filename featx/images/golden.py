"""Images made here, never a user's: what a kept model or an exported graph is tried on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GOLDEN_PICTURES = 8
GOLDEN_SIDE = 96
GOLDEN_SEED = 20_260


def golden_pictures() -> list[NDArray[np.uint8]]:
    """Seeded synthetic images, each (96, 96, 3) uint8: smooth colour fields with noise; never a user's."""
    rng = np.random.default_rng(GOLDEN_SEED)
    across = np.linspace(0, 1, GOLDEN_SIDE)
    pictures = []
    for _ in range(GOLDEN_PICTURES):
        frequency = rng.uniform(1, 12, (2, 3))
        waves = np.sin(across[:, None, None] * frequency[0] * 6.28) * np.cos(
            across[None, :, None] * frequency[1] * 6.28
        )
        noisy = 127 + 90 * waves + rng.normal(0, 20, waves.shape)
        pictures.append(noisy.clip(0, 255).astype(np.uint8))
    return pictures
