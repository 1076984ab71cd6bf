"""From a picture to the network's input: timm's own transform is the measure."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from featx.backbones.resample import resize
from featx.backbones.transform import prepare
from featx.exceptions import UsageError
from featx.spec import FeatureSpec

Make = Callable[..., Image.Image]
CROP_MODES = {"crop": "center", "squash": "squash", "pad": "border"}


def make_spec(**changes: Any) -> FeatureSpec:
    fields: dict[str, Any] = {
        "architecture": "any",
        "weights": "0" * 64,
        "input_size": (64, 64),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "decoder": "pillow",
    }
    return FeatureSpec(**(fields | changes))


def timms(image: Image.Image, spec: FeatureSpec) -> NDArray[np.int16]:
    """timm's evaluation transform, on Pillow's resize, before normalisation."""
    from timm.data import create_transform

    transform = create_transform(
        input_size=(3, *spec.input_size),
        crop_pct=spec.crop_pct,
        crop_mode=CROP_MODES[spec.resize],
        interpolation=spec.interpolation,
        mean=tuple(part / 255 for part in spec.background),  # what its border is filled with
        normalize=False,
    )
    return transform(image).permute(1, 2, 0).numpy().astype(np.int16)


SIZES = [
    (64, 64),
    (65, 64),
    (64, 65),
    (99, 71),
    (71, 99),
    (640, 480),
    (333, 500),
    (40, 30),
    (9, 31),
    (500, 60),
    (1, 1),
]


@pytest.mark.parametrize("resize", CROP_MODES)
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
@pytest.mark.parametrize("size", SIZES)
def test_every_pixel_is_timms_within_two_grey_levels(
    picture: Make, size: tuple[int, int], crop_pct: float, resize: str
) -> None:
    image = picture(1, width=size[0], height=size[1])
    spec = make_spec(resize=resize, crop_pct=crop_pct, background=(10, 200, 30))
    found = prepare(np.array(image), spec)
    assert found.shape == (64, 64, 3)
    assert found.dtype == np.uint8
    assert np.abs(found - timms(image, spec)).max() <= 2


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "lanczos", "box", "hamming"])
def test_every_interpolation_of_timm_is_there(picture: Make, interpolation: str) -> None:
    image = picture(2, width=300, height=200)
    spec = make_spec(interpolation=interpolation)
    assert np.abs(prepare(np.array(image), spec) - timms(image, spec)).max() <= 2


@pytest.mark.parametrize("resize", CROP_MODES)
@pytest.mark.parametrize("input_size", [(64, 96), (97, 33)])
def test_inputs_need_not_be_square(picture: Make, resize: str, input_size: tuple[int, int]) -> None:
    image = picture(3, width=201, height=150)
    spec = make_spec(resize=resize, input_size=input_size)
    difference = np.abs(prepare(np.array(image), spec) - timms(image, spec))
    newest = int(PIL.__version__.split(".")[0]) >= 12
    assert difference.max() <= (2 if newest else 4)


def test_a_crop_larger_than_the_picture_is_padded_with_black_as_torchvision_does(picture: Make) -> None:
    image = picture(4, width=80, height=60)
    spec = make_spec(crop_pct=1.3, background=(255, 255, 255))
    found = prepare(np.array(image), spec)
    assert math.floor(64 / 1.3) == 49  # rows of picture; 7 black ones above, 8 below
    assert not found[:7].any()
    assert not found[-8:].any()
    assert np.abs(found - timms(image, spec)).max() <= 2


def test_squash_shows_the_whole_picture_and_pad_keeps_its_shape() -> None:
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, :40] = 200
    squashed = prepare(picture, make_spec(resize="squash", crop_pct=1.0))
    assert (squashed[:, :28] == 200).all()
    assert (squashed[:, 36:] == 0).all()
    padded = prepare(picture, make_spec(resize="pad", crop_pct=1.0, background=(1, 2, 3)))
    assert (padded[:16] == (1, 2, 3)).all()
    assert (padded[48:] == (1, 2, 3)).all()
    assert (padded[16:48, :28] == 200).all()


def test_a_line_of_pixels_is_not_blown_up_on_the_way_to_its_crop() -> None:
    line = np.random.default_rng(0).integers(0, 256, (1, 5000, 3), dtype=np.uint8)
    tracemalloc.start()
    found = prepare(line, make_spec(input_size=(224, 224)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # bytes; 256×1,280,000 pixels would be 983 MB
    assert np.abs(found[100].astype(int) - timms_of_line(line)).max() <= 2


def timms_of_line(line: NDArray[np.uint8]) -> NDArray[np.int16]:
    """The middle 224 of 1,280,000 columns, from the few pixels around the middle: the same grid."""
    part = Image.fromarray(line[:, 2490:2510]).resize((20 * 256, 256), Image.Resampling.BICUBIC)
    left = (1_280_000 - 224) // 2 - 2490 * 256
    return np.asarray(part, np.int16)[100, left : left + 224]


def test_read_only_and_strided_pictures_are_taken(picture: Make) -> None:
    image = picture(5, width=120, height=90)
    whole = np.array(image)
    frozen = np.asarray(image)
    assert not frozen.flags.writeable
    expected = prepare(whole, make_spec())
    np.testing.assert_array_equal(prepare(frozen, make_spec()), expected)
    np.testing.assert_array_equal(prepare(np.asfortranarray(whole), make_spec()), expected)
    np.testing.assert_array_equal(prepare(np.stack([whole, whole], 2)[:, :, 0], make_spec()), expected)


def test_a_picture_of_the_right_size_passes_as_it_is_and_is_never_shared() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    found = prepare(picture, make_spec(crop_pct=1.0))
    np.testing.assert_array_equal(found, picture)
    assert found.flags.c_contiguous


def test_an_unknown_interpolation_is_refused_with_those_allowed() -> None:
    with pytest.raises(UsageError, match=r"interpolation 'random' is not one of nearest, bilinear"):
        prepare(np.zeros((9, 9, 3), np.uint8), make_spec(interpolation="random"))


def test_threads_prepare_the_same_pixels(picture: Make) -> None:
    arrays = [np.array(picture(seed, width=200, height=150)) for seed in range(8)]
    expected = [prepare(array, make_spec()) for array in arrays]
    found: list[Any] = [None] * 8

    def work(number: int) -> None:
        found[number] = prepare(arrays[number], make_spec())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.data
@pytest.mark.parametrize(("resize", "cosine"), [("crop", 0.9999), ("squash", 0.999), ("pad", 0.9999)])
def test_embeddings_of_real_photos_are_those_of_timms_transform(
    real_data: Path, resize: str, cosine: float
) -> None:
    """Where height shrinks more than width, Pillow 13 (not 12) begins with columns and rounds otherwise."""
    import torch

    from featx.backbones import load_backbone

    backbone = load_backbone("tf_efficientnet_lite0.in1k", device="cpu")
    spec = backbone.card.spec(decoder="pillow", resize=resize)
    stem = backbone.stem([spec])
    files = sorted((real_data / "catdog").glob("*/*.jpg"))[::50]
    images = [Image.open(file).convert("RGB") for file in files]
    ours = np.stack([prepare(np.asarray(image), spec) for image in images])
    theirs = np.stack([timms(image, spec).astype(np.uint8) for image in images])
    with torch.inference_mode():
        rows, wanted = (stem(torch.from_numpy(batch))[0] for batch in (ours, theirs))
    assert len(files) >= 25
    assert torch.cosine_similarity(rows, wanted).min() >= cosine


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((375, 500), (256, 341)),
        ((40, 30), (90, 200)),
        ((5, 700), (64, 64)),
        ((97, 64), (96, 64)),
        ((1, 1), (3, 2)),
    ],
)
def test_the_resize_without_torch_gives_torchs_bits(
    mode: str, shape: tuple[int, int], size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(0)
    steps = np.kron(rng.integers(0, 2, (shape[0] // 6 + 1, shape[1] // 6 + 1, 3)) * 255, np.ones((6, 6, 1)))
    for picture in (rng.integers(0, 256, (*shape, 3)), steps[: shape[0], : shape[1]]):  # steps overshoot
        pixels = np.ascontiguousarray(picture, np.uint8)
        batch = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)
        theirs = torch.nn.functional.interpolate(batch, size=size, mode=mode, antialias=True)
        assert np.array_equal(resize(pixels, size, mode), theirs[0].permute(1, 2, 0).numpy())


def test_a_part_of_the_resize_without_torch_is_that_part_of_the_whole() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 211, 3), np.uint8)
    whole = resize(pixels, (120, 97), "bicubic")
    part = resize(pixels, (120, 97), "bicubic", (7, 20, 111, 83))
    assert np.array_equal(part, whole[7:111, 20:83])


def test_resizing_many_pictures_never_imports_torch() -> None:
    code = (
        "import sys, numpy as np\n"
        "from featx.backbones.transform import prepare\n"
        "from featx.spec import FeatureSpec\n"
        "spec = FeatureSpec(architecture='any', weights='0' * 64, input_size=(64, 64), crop_pct=1.0,\n"
        "    interpolation='bicubic', mean=(0.5,) * 3, std=(0.5,) * 3, decoder='pillow')\n"
        "picture = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)\n"
        "first = [prepare(picture, spec) for _ in range(9)][-1]\n"
        "assert 'torch' not in sys.modules\n"
        "import torch\n"
        "assert np.array_equal(first, prepare(picture, spec))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
