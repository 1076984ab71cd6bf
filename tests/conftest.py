"""What all tests share: where the real images are, and one writer of small pictures."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread in each worker; NumPy and torch read this when imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from answers import Answer
from hypothesis import settings
from object_server import object_server, objects  # noqa: F401
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("FEATX_TEST_DATA", ROOT.parent / "shared" / "data"))

settings.register_profile("ci", derandomize=True)  # a change is judged by the same examples as the last one
if os.environ.get("CI"):
    settings.load_profile("ci")

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a network


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real image sets; the test is skipped where they are absent."""
    if not DATA.is_dir():
        pytest.skip(f"no real image sets at {DATA} (set FEATX_TEST_DATA)")
    return DATA


@pytest.fixture(scope="session")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Cache folders, one for each test: `mktemp` would list the thousands before each time."""
    root = tmp_path_factory.mktemp("caches")
    return (root / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def own_cache(caches: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test gets an empty cache folder of its own."""
    folder = next(caches)
    folder.mkdir()
    monkeypatch.setenv("FEATX_CACHE", str(folder))
    return folder


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Tiny networks run no faster on more, and a resumed process must count as the first one did."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """Make a seeded RGB picture: smooth colours with noise, so that resizing and JPEG have work to do."""

    def make(
        seed: int = 0, width: int = 64, height: int = 48, tint: tuple[int, int, int] = (0, 0, 0)
    ) -> Image.Image:
        rng = np.random.default_rng(seed)
        small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        large = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        smooth = np.asarray(large, np.int16)
        noisy = smooth + rng.integers(-12, 13, smooth.shape) + np.array(tint)
        return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))

    return make


@pytest.fixture
def class_folders(tmp_path: Path, picture: Callable[..., Image.Image]) -> Path:
    """Two class folders, `red` and `blue`, of 12 PNG files each, that a classifier can tell apart."""
    root = tmp_path / "photos"
    for label, tint in (("red", (90, -60, -60)), ("blue", (-60, -60, 90))):
        (root / label).mkdir(parents=True)
        for number in range(12):
            seed = number + (100 if label == "red" else 0)
            picture(seed, tint=tint).save(root / label / f"{label}_{number:02d}.png")
    return root


@pytest.fixture
def six_more(tmp_path: Path, picture: Callable[..., Image.Image]) -> Path:
    """A class folder `red` with six new pictures like those of `class_folders`."""
    red = tmp_path / "new" / "red"
    red.mkdir(parents=True)
    for seed in range(6):
        picture(700 + seed, tint=(90, -60, -60)).save(red / f"{seed}.png")
    return red.parent


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Answer:
    """Run a command; its exit code and what it said on both streams."""
    from featx.cli import main

    def run(*argv: object) -> tuple[int, str]:
        capsys.readouterr()
        code = main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return code, err + out

    return run
