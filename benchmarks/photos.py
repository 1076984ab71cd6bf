"""The photographs that are timed: catdog as it is, and large ones made from it.

A copy with a few bytes behind the end of the JPEG is another image to a store (its digest is another) and the
same work to a decoder.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from pairs import DATA, OUT, SEED, say
from PIL import Image

from featx.images import load_images

LARGE = (2000, 1500)
LARGE_QUALITY, GRAIN = 90, 6.0
"""An enlarged photo is smoother than a camera's: grain makes its file as large (about 1 MB)."""


def small(n: int | None = None) -> list[str]:
    """Paths of the catdog photos, seeded shuffle, the first n."""
    sources = [str(source) for source in load_images(DATA / "catdog").sources]
    order = np.random.default_rng(SEED).permutation(len(sources))
    return [sources[index] for index in order[:n]]


def large(n: int) -> list[str]:
    """Paths of n photos of 2,000×1,500 pixels, made at the first request."""
    folder = OUT / "large"
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.jpg" for number in range(n)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    if missing:
        say(f"making {len(missing)} photos of {LARGE[0]}×{LARGE[1]} pixels (once)")
        sources = small(n)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda number: _enlarge(sources[number], paths[number], number), missing))
    return [str(path) for path in paths]


def more(times: int, folder: Path) -> list[str]:
    """Every catdog photo so many times, each time another file."""
    paths = []
    for source in small():
        content = Path(source).read_bytes()
        for copy in range(times):
            path = folder / f"{len(paths):05}.jpg"
            path.write_bytes(content + copy.to_bytes(4, "little"))
            paths.append(str(path))
    return paths


def _enlarge(source: str, path: Path, seed: int) -> None:
    with Image.open(source) as image:
        pixels = np.asarray(image.convert("RGB").resize(LARGE, Image.Resampling.BICUBIC), np.float32)
    grain = np.random.default_rng(seed).standard_normal((LARGE[1], LARGE[0], 1), np.float32)
    noisy = np.clip(pixels + GRAIN * grain, 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(path, quality=LARGE_QUALITY)
