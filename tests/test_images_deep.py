"""Images of more than 8 bits, or of other bands than red, green and blue."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from featx import FeatureExtractor
from featx.backbones.transform import prepare
from featx.exceptions import ImageError, ImageWarning, UsageError
from featx.images import DecodePolicy, choose_range, decode_picture, read_picture
from featx.images.facts import SCALARS, measure_facts

Make = Callable[..., Image.Image]


def png16(pixels: NDArray[np.uint16]) -> bytes:
    """A PNG of 16 bits: grey, RGB or RGBA by the shape."""
    height, width = pixels.shape[:2]
    colour = {2: 0, 3: 2, 4: 6}[pixels.ndim if pixels.ndim == 2 else pixels.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(pixels: NDArray[np.generic], extra: int | None = None, order: str = "<") -> bytes:
    """An uncompressed TIFF of (H, W, bands); `extra` is the tag ExtraSamples."""
    height, width, bands = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    kind = 3 if pixels.dtype.kind == "f" else 1
    photometric = 2 if bands in (3, 4) else 1
    tags = [(256, 4, [width]), (257, 4, [height]), (258, 3, [8 * pixels.dtype.itemsize] * bands)]
    tags += [(259, 3, [1]), (262, 3, [photometric]), (273, 4, [8]), (277, 3, [bands]), (278, 4, [height])]
    tags += [(279, 4, [len(data)]), (284, 3, [1]), *([] if extra is None else [(338, 3, [extra])])]
    tags += [(339, 3, [kind] * bands)]
    at, more, entries = 8 + len(data) + 2 + 12 * len(tags) + 4, b"", b""
    for tag, size, values in tags:
        packed = struct.pack(f"{order}{len(values)}{'H' if size == 3 else 'I'}", *values)
        if len(packed) > 4:
            packed, more = struct.pack(f"{order}I", at + len(more)), more + packed
        entries += struct.pack(f"{order}HHI", tag, size, len(values)) + packed.ljust(4, b"\0")
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HI", 42, 8 + len(data))
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + b"\0\0\0\0" + more


def decode(source: object, **policy: str) -> tuple[NDArray[np.uint8], list[str]]:
    remarks: list[str] = []
    return decode_picture(read_picture(source), DecodePolicy(**policy), warn=remarks.append), remarks  # type: ignore[arg-type]


@pytest.fixture
def rgb(picture: Make) -> NDArray[np.uint8]:
    return np.asarray(picture(1, 48, 40))


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize(
    "write", [png16, tiff, lambda a: tiff(a, order=">")], ids=["png", "tiff", "tiff, MM"]
)
def test_all_bits_of_sixteen_bit_colour_are_read(rgb: NDArray[np.uint8], bits: int, write) -> None:
    top = 2**bits - 1
    deep = np.rint(rgb / 255.0 * top).astype(np.uint16)
    data = write(deep)
    assert choose_range([data], DecodePolicy()) == f"0,{top}"
    pixels, remarks = decode(data, pixel_range=f"0,{top}")
    assert (pixels.tolist(), remarks) == (rgb.tolist(), [])


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda g: g.astype(np.uint16) * 16, "0,4095"),
        (lambda g: png16(g.astype(np.uint16) * 64), "0,16383"),
        (lambda g: png16(g.astype(np.uint16) * 257), "0,65535"),
        (lambda g: tiff((g / 255).astype(np.float32)[:, :, None]), "0,1"),
        (lambda g: tiff(g.astype(np.float32)[:, :, None]), "0,255"),
        (lambda g: tiff((g * 16.0).astype(np.float32)[:, :, None]), "0,4095"),
        (lambda g: Image.fromarray(g.astype(np.int32) * 4), "0,1023"),
        (lambda g: tiff((g / 127.5 - 1).astype(np.float32)[:, :, None]), "-1,1"),
        (lambda g: 7000 + 8 * g.astype(np.uint16), "7000,9100"),
        (lambda g: tiff((g * 4.0 - 1000).astype(np.float32)[:, :, None]), "-1000,100"),
        (lambda g: g, "full"),
    ],
)
def test_the_range_is_that_of_the_set(make: Callable[[NDArray[np.uint8]], object], expected: str) -> None:
    grey = np.tile(np.arange(256, dtype=np.uint8), (40, 1))
    source = make(grey)
    assert choose_range([source], DecodePolicy()) == expected  # type: ignore[list-item]
    if expected != "full":
        pixels, remarks = decode(source, pixel_range=expected)
        assert remarks == []
        assert len(np.unique(pixels)) > 225
        assert np.abs(pixels[0, :, 0].astype(int) - grey[0]).max() <= 20


def test_one_bright_pixel_or_a_broken_file_does_not_change_the_range() -> None:
    images = [np.full((40, 40), 100 * n, np.uint16) for n in range(10)]
    images[0] = images[0].copy()
    images[0][0, 0] = 65535
    assert choose_range([*images, b"\x89PNG" + b"\0" * 20 + b"\x10"], DecodePolicy()) == "0,1023"


def test_pixels_beyond_the_range_are_remarked_from_one_percent_on() -> None:
    grey = np.full((50, 40), 100, np.uint16)
    grey[0, :20] = 60_000
    assert decode(grey, pixel_range="0,4095")[1] == []
    grey[0, 20:30] = 60_000
    assert "more than 1 % of its pixels lie beyond the range" in decode(grey, pixel_range="0,4095")[1][0]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("extra", [None, 0])
def test_a_band_that_is_not_declared_as_transparency_is_none(rgb, dtype, extra) -> None:
    four = np.dstack([rgb, 255 - rgb[:, :, 0]]).astype(dtype)
    data = tiff(four, extra)
    pixels, remarks = decode(data, pixel_range="0,255")
    assert pixels.tolist() == rgb.tolist()
    assert "a fourth band that is not declared as transparency" in remarks[0]
    infrared, remarks = decode(data, bands="4", pixel_range="0,255")
    assert (infrared[:, :, 0].tolist(), remarks) == (four[:, :, 3].tolist(), [])
    mixed, _ = decode(data, bands="4,3,1", pixel_range="0,255")
    assert mixed.tolist() == four[:, :, [3, 2, 0]].tolist()


def test_a_band_that_is_declared_as_transparency_shows_the_background(rgb: NDArray[np.uint8]) -> None:
    clear = np.dstack([rgb, np.zeros(rgb.shape[:2], np.uint8)])
    assert (decode(tiff(clear, 2))[0] == 255).all()
    assert (decode(tiff(clear.astype(np.uint16) * 257, 2))[0] == 255).all()
    assert (decode(png16(clear.astype(np.uint16) * 257))[0] == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "array"])
def test_bands_can_be_chosen_of_any_image(rgb: NDArray[np.uint8], kind: str) -> None:
    source: object = rgb
    if kind != "array":
        buffer = io.BytesIO()
        Image.fromarray(rgb).save(buffer, kind)
        source = buffer.getvalue()
    plain, _ = decode(source)
    assert decode(source, bands="3,2,1")[0].tolist() == plain[:, :, ::-1].tolist()
    assert decode(source, bands="2")[0].tolist() == np.repeat(plain[:, :, 1:2], 3, 2).tolist()
    with pytest.raises(ImageError, match="band 5 was chosen"):
        decode(source, bands="5")


@pytest.mark.parametrize("bands", [2, 5, 7, 13])
def test_other_numbers_of_bands_are_read_by_tifffile_or_name_the_extra(
    rgb: NDArray[np.uint8], bands: int
) -> None:
    data = tiff(np.repeat(rgb[:, :, :1], bands, axis=2))
    try:
        import tifffile  # noqa: F401
    except ImportError:
        with pytest.raises(ImageError, match=r"pip install 'featx\[tiff\]'"):
            decode(data)
        return
    assert decode(data)[0].tolist() == np.repeat(rgb[:, :, :1], 3, axis=2).tolist()
    assert decode(data, bands=str(bands))[0].tolist() == np.repeat(rgb[:, :, :1], 3, axis=2).tolist()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pixel_range", "4095", "such as 0,4095"),
        ("pixel_range", "5,5", "such as 0,4095"),
        ("pixel_range", "0,nan", "such as 0,4095"),
        ("bands", "1,2", "one or three numbers from 1"),
        ("bands", "0", "one or three numbers from 1"),
        ("bands", "r,g,b", "one or three numbers from 1"),
    ],
)
def test_a_range_and_bands_that_are_none_are_refused(field: str, value: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DecodePolicy(**{field: value})


def test_the_range_of_a_set_is_part_of_its_features(tmp_path: Path, rgb: NDArray[np.uint8]) -> None:
    paths = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        path.write_bytes(png16(np.roll(rgb, number, axis=1).astype(np.uint16) * 16))
        paths.append(str(path))
        Image.fromarray(np.roll(rgb, number, axis=1)).save(tmp_path / f"{number}.8.png")
    options = {"pretrained": False, "store": "memory", "runtime": "torch", "dtype": "float32"}
    extractor = FeatureExtractor("test_resnet", **options).fit(paths)
    (spec,) = extractor.specs_.values()
    assert (spec.pixel_range, spec.bands) == ("0,4095", "")
    found = extractor.extract(paths)
    assert "0 is black and 4095 is white" in " ".join(found.remarks)
    eight = FeatureExtractor("test_resnet", **options).fit_transform(
        [p.replace(".png", ".8.png") for p in paths]
    )
    assert np.abs(found.blocks[next(iter(found.blocks))] - eight).max() < 0.05 * np.abs(eight).max()
    full = FeatureExtractor("test_resnet", pixel_range="full", **options).fit(paths)
    assert next(iter(full.specs_.values())).key != spec.key


def test_integers_beside_floats_are_each_scaled_by_their_type(rgb: NDArray[np.uint8]) -> None:
    floats = tiff((rgb[:, :, :1] / 255).astype(np.float32))
    assert choose_range([png16(rgb.astype(np.uint16) * 257), floats], DecodePolicy()) == "full"


def test_deep_pixels_are_resized_in_their_depth() -> None:
    """Three rows of 100.4 and one of 101.4, in grey levels of 8 bits: their mean is 100.65."""
    extractor = FeatureExtractor("test_resnet", pretrained=False, resize="squash", store="memory").fit()
    deep = np.full((1600, 1600), round(100.4 * 257), np.uint16)
    deep[::4] = round(101.4 * 257)
    picture, policy = read_picture(deep), DecodePolicy(pixel_range="0,65535")
    kept, rounded = decode_picture(picture, policy, keep_depth=True), decode_picture(picture, policy)
    assert (kept.dtype, rounded.dtype) == (np.float32, np.uint8)
    assert kept.mean() == pytest.approx(100.65, abs=0.01)
    for interpolation in ("bilinear", "bicubic", "lanczos"):
        spec = next(iter(extractor.specs_.values())).replace(interpolation=interpolation)
        made = prepare(kept, spec)
        assert made.dtype == np.uint8
        assert np.median(made) == 101
        assert np.median(prepare(rounded, spec)) == 100  # a rounding before


def test_deep_images_reach_the_network_unrounded(tmp_path: Path) -> None:
    deep = np.full((1600, 1600), round(100.4 * 257), np.uint16)
    deep[::4] = round(101.4 * 257)
    (tmp_path / "deep.png").write_bytes(png16(deep))
    grey = [np.full((1600, 1600, 3), level, np.uint8) for level in (100, 101)]
    extractor = FeatureExtractor(
        "test_resnet", pretrained=False, runtime="torch", resize="squash", store="memory",
        pixel_range="0,65535",
    )  # fmt: skip
    found = extractor.fit_transform([str(tmp_path / "deep.png"), *grey])
    assert np.abs(found[0] - found[2]).max() < np.abs(found[0] - found[1]).max() / 2


def test_transparent_deep_pixels_show_the_background() -> None:
    half = np.full((40, 40, 4), 65535, np.uint16)
    half[..., :3], half[..., 3] = 0, 32768
    pixels, _ = decode(png16(half), pixel_range="0,65535")
    assert set(np.unique(pixels)) <= {127, 128}


@pytest.mark.parametrize(
    "missing", [-9999.0, -99999.0, -32768.0, -3.4028234663852886e38, 3.4e38, 9.96921e36, np.nan, np.inf]
)
def test_values_that_stand_for_no_data_do_not_choose_the_range(missing: float) -> None:
    values = np.tile(np.linspace(0, 1, 200, dtype=np.float32), (40, 1))
    values[:, :40] = missing
    data = tiff(values[:, :, None])
    low, high = (float(one) for one in choose_range([data], DecodePolicy()).split(","))
    assert 0 <= low < 0.25
    assert high == 1
    pixels, remarks = decode(data, pixel_range=f"{low},{high}")
    assert pixels[0, 199, 0] == 255
    assert np.diff(pixels[0, 60:, 0].astype(int)).min() >= 0
    assert "beyond the range" in "".join(remarks)


def test_a_value_of_no_data_that_lies_among_the_others_is_a_value() -> None:
    values = np.tile(np.linspace(-12000, 0, 200, dtype=np.float32), (40, 1))
    values[:, :40] = -9999
    assert choose_range([tiff(values[:, :, None])], DecodePolicy()).startswith("-10000,")


def test_signed_bytes_of_a_tiff_are_not_read_as_unsigned(rgb: NDArray[np.uint8]) -> None:
    grey = rgb[:, :, :1]
    data = tiff((grey.astype(np.int16) - 128).astype(np.int8)).replace(
        struct.pack("<HHIHH", 339, 3, 1, 1, 0), struct.pack("<HHIHH", 339, 3, 1, 2, 0)
    )
    pixels, _ = decode(data, pixel_range="-128,127")
    assert pixels[:, :, 0].tolist() == grey[:, :, 0].tolist()


def test_grey_with_alpha_of_sixteen_bits_is_read_in_its_depth(rgb: NDArray[np.uint8]) -> None:
    deep = rgb[:, :, 0].astype(np.uint16) * 16 + 7
    alpha = np.where(np.arange(deep.shape[1]) < 20, 65535, 0).astype(np.uint16) + np.zeros_like(deep)
    height, width = deep.shape
    both = np.stack([deep, alpha], axis=-1).reshape(height, -1)
    data = png16(both).replace(
        struct.pack(">IIBB", 2 * width, height, 16, 0), struct.pack(">IIBB", width, height, 16, 4)
    )
    header = data[12:29]
    data = data.replace(data[29:33], struct.pack(">I", zlib.crc32(header)), 1)
    pixels, _ = decode(data, pixel_range="0,4095")
    expected = np.rint(deep[:, :20] * (255 / 4095))
    assert np.abs(pixels[:, :20, 0] - expected).max() <= 1
    assert (pixels[:, 20:] == 255).all()


def test_bands_of_sixteen_bits_in_planes_name_the_extra_that_reads_them(
    rgb: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    data = tiff(rgb.astype(np.uint16) * 257).replace(
        struct.pack("<HHIHH", 284, 3, 1, 1, 0), struct.pack("<HHIHH", 284, 3, 1, 2, 0)
    )
    with pytest.raises(ImageError, match=r"featx\[tiff\]"):
        decode(data)


@pytest.mark.parametrize("factor", [64, 257])
def test_a_set_of_several_scales_is_said(factor: int, rgb: NDArray[np.uint8]) -> None:
    dark = [rgb[:, :, 0].astype(np.uint16) + number for number in range(4)]
    bright = [factor * rgb[:, :, 0].astype(np.uint16) + number for number in range(4)]
    with pytest.warns(ImageWarning, match=r"4 of 8 images .* become nearly black .*--range minmax"):
        choose_range([*dark, *bright], DecodePolicy())
    assert choose_range(bright, DecodePolicy()).startswith("0,")  # a warning would be an error
    assert choose_range([np.zeros((9, 9), np.uint16), *bright], DecodePolicy()).startswith("0,")


def test_facts_and_pages_show_deep_images_by_their_own_range(rgb: NDArray[np.uint8]) -> None:
    plain = measure_facts(read_picture(rgb))
    for deep in (rgb.astype(np.uint16) * 16, rgb.astype(np.uint16) + 30_000):
        found = measure_facts(read_picture(deep))
        brightness, contrast = (SCALARS.index(name) for name in ("brightness", "contrast"))
        assert abs(found[brightness] - plain[brightness]) < 40
        assert found[contrast] > 0.8 * plain[contrast]
