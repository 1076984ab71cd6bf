"""Decoding: upright 8-bit RGB from every kind of file, within a limit of pixels, or the reason why not."""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import subprocess
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, ImageOps

from featx.exceptions import ImageError, UsageError
from featx.images import DECODERS, DecodePolicy, Picture, decode_picture, read_picture, resolve_decoder
from featx.images.budget import MemoryBudget
from featx.images.pixels import REMARK_DEPTH, REMARK_SATURATED, rgb_from_pillow

Make = Callable[..., Image.Image]


def installed(name: str) -> bool:
    try:
        return resolve_decoder(name) == name
    except UsageError:
        return False


INSTALLED = [name for name in DECODERS if installed(name)]
every_decoder = pytest.mark.parametrize("decoder", INSTALLED)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(source: object, *, name: str | None = None, **policy: object) -> tuple[np.ndarray, list[str]]:
    """Pixels and remarks."""
    remarks: list[str] = []
    picture = source if isinstance(source, Picture) else read_picture(source, name=name)  # type: ignore[arg-type]
    return decode_picture(picture, DecodePolicy(**policy), warn=remarks.append), remarks  # type: ignore[arg-type]


def expected_rgb(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


# JPEG: every decoder agrees with Pillow


@every_decoder
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(64, 48), (65, 47), (33, 40)])
def test_a_jpeg_has_pillows_pixels_whatever_decodes_it(
    picture: Make, decoder: str, subsampling: str, progressive: bool, size: tuple[int, int]
) -> None:
    data = encode(picture(1, *size), "JPEG", quality=90, subsampling=subsampling, progressive=progressive)
    pixels, remarks = decode(data, decoder=decoder)
    np.testing.assert_array_equal(pixels, expected_rgb(data))
    assert remarks == []


@every_decoder
@pytest.mark.data
def test_real_photos_have_pillows_pixels_whatever_decodes_them(real_data: Path, decoder: str) -> None:
    photos = (
        sorted((real_data / "catdog").rglob("*.jpg"))[::70]
        + sorted((real_data / "azure_trees2").rglob("*.jpg"))[:8]
    )
    assert len(photos) >= 25
    for photo in photos:
        pixels, _ = decode(photo, decoder=decoder)
        np.testing.assert_array_equal(pixels, expected_rgb(photo.read_bytes()), err_msg=str(photo))


@every_decoder
@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs_become_rgb(picture: Make, decoder: str, mode: str) -> None:
    data = encode(picture().convert(mode), "JPEG", quality=95)
    pixels, _ = decode(data, decoder=decoder)
    np.testing.assert_array_equal(pixels, expected_rgb(data))
    assert (
        np.abs(
            pixels.astype(int).mean((0, 1)) - np.asarray(picture().convert(mode).convert("RGB")).mean((0, 1))
        ).max()
        < 3
    )


@every_decoder
@pytest.mark.parametrize("kept", [0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_jpeg_is_refused_whatever_decodes_it(picture: Make, decoder: str, kept: float) -> None:
    data = encode(picture(0, 200, 150), "JPEG")
    with pytest.raises(ImageError, match=r"photo\.jpg: .*(truncated|Truncated|damaged|broken)"):
        decode(data[: int(len(data) * kept)], name="photo.jpg", decoder=decoder)


@every_decoder
def test_a_jpeg_whose_end_marker_alone_is_missing_is_refused(picture: Make, decoder: str) -> None:
    with pytest.raises(ImageError, match="truncated"):
        decode(encode(picture(), "JPEG")[:-2], decoder=decoder)


@every_decoder
def test_bytes_after_the_end_of_a_jpeg_do_no_harm(picture: Make, decoder: str) -> None:
    data = encode(picture(), "JPEG")
    np.testing.assert_array_equal(decode(data + b"trailing bytes", decoder=decoder)[0], expected_rgb(data))


@every_decoder
def test_a_jpeg_that_ends_early_by_its_own_word_is_judged_as_pillow_judges_it(
    picture: Make, decoder: str
) -> None:
    data = encode(picture(0, 200, 150), "JPEG")
    data = data[: len(data) // 2] + b"\xff\xd9"
    np.testing.assert_array_equal(decode(data, decoder=decoder)[0], expected_rgb(data))


@every_decoder
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_upright_whatever_decodes_it(picture: Make, decoder: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(), "JPEG", exif=exif)
    pixels, _ = decode(data, decoder=decoder)
    np.testing.assert_array_equal(pixels, expected_rgb(data))
    assert pixels.shape == ((48, 64, 3) if orientation < 5 else (64, 48, 3))


@pytest.mark.data
def test_real_photos_with_an_orientation_stand_upright(real_data: Path) -> None:
    seen = set()
    for photo in sorted((real_data / "azure_trees2").rglob("*.jpg")):
        stored = Image.open(photo)
        seen.add(stored.getexif().get(0x0112))
        upside_down = stored.getexif().get(0x0112) == 3
        upright = np.rot90(np.asarray(stored), 2) if upside_down else np.asarray(stored)
        np.testing.assert_array_equal(decode(photo)[0], upright)
    assert seen == {None, 0, 3}  # 0, which EXIF does not define, stands in 14 of the 20


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_other_formats_are_turned_upright_once(picture: Make, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    turned = picture().transpose(
        Image.Transpose.ROTATE_180 if orientation == 3 else Image.Transpose.ROTATE_270
    )
    np.testing.assert_array_equal(decode(data)[0], np.asarray(turned))


def test_a_pil_image_is_turned_upright_and_not_changed(picture: Make) -> None:
    image = picture()
    image.getexif()[0x0112] = 6
    pixels, _ = decode(image)
    np.testing.assert_array_equal(pixels, np.asarray(picture().transpose(Image.Transpose.ROTATE_270)))
    assert image.size == (64, 48)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF:UserWarning")
def test_a_damaged_exif_block_counts_as_upright(picture: Make) -> None:
    data = encode(picture(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff broken")
    assert decode(data)[0].shape == (48, 64, 3)


# The decoder table


def test_all_decoders_of_the_table_are_tried_here() -> None:
    missing = [name for name in DECODERS if name not in INSTALLED]
    if missing:
        pytest.skip(f"not installed, and so not tried: {', '.join(missing)}")


def test_auto_is_the_first_decoder_that_is_installed() -> None:
    assert resolve_decoder() == INSTALLED[0]


def test_an_unknown_decoder_is_refused_with_the_names() -> None:
    with pytest.raises(UsageError, match="choose auto or one of simplejpeg, torchcodec, torchvision, pillow"):
        resolve_decoder("opencv")


def test_resolving_and_finding_import_no_torch() -> None:
    code = (
        "import sys, featx.images as i; i.DecodePolicy(); assert 'torch' not in sys.modules;"
        "assert 'pandas' not in sys.modules and 'pyarrow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("raise ImportError('libturbojpeg.so: wrong ELF class')", "wrong ELF class"),
        (
            "import io, numpy; from PIL import Image\n"
            "def decode_jpeg(data, colorspace): return 255 - numpy.asarray(Image.open(io.BytesIO(data)))",
            "differs from Pillow by",
        ),
        ("raise ModuleNotFoundError('No module named simplejpeg')", "No module named simplejpeg"),
    ],
)
def test_a_decoder_that_is_broken_or_disagrees_gives_way_to_pillow_with_a_remark(
    tmp_path: Path, picture: Make, module: str, reason: str
) -> None:
    (tmp_path / "simplejpeg.py").write_text(module)
    (tmp_path / "x.jpg").write_bytes(encode(picture(), "JPEG"))
    code = (
        "import numpy, sys; from PIL import Image; from featx.images import *;"
        "path, reason = sys.argv[1:]; r = [];"
        "p = decode_picture(read_picture(path), DecodePolicy(decoder='simplejpeg'), warn=r.append);"
        "assert (p == numpy.asarray(Image.open(path))).all(); assert reason in r[0] and 'Pillow' in r[0], r"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.jpg"), reason]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})


@every_decoder
def test_threads_decode_to_the_same_pixels(picture: Make, decoder: str) -> None:
    pictures = [read_picture(encode(picture(seed, 90 + seed, 80), "JPEG")) for seed in range(40)]
    policy = DecodePolicy(decoder=decoder)
    alone = [decode_picture(each, policy) for each in pictures]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda each: decode_picture(each, policy), pictures))
    assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


# Transparency


def half_transparent(mode: str) -> Image.Image:
    """Left half opaque black, right half fully transparent black, in `mode`."""
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (20, 0, 40, 40))
    if mode == "P":
        return image.convert("LA").convert("RGBA").quantize(4)
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF")]
)
@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 30)])
def test_transparent_pixels_show_the_background(
    mode: str, kind: str, background: tuple[int, int, int]
) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels, _ = decode(encode(half_transparent(mode), kind, **options), background=background)
    assert pixels[20, 5].tolist() == [0, 0, 0]
    assert pixels[20, 35].tolist() == list(background)


def test_a_transparent_colour_of_a_png_or_gif_shows_the_background() -> None:
    grey = Image.new("L", (40, 40), 7)
    grey.paste(99, (20, 0, 40, 40))
    assert decode(encode(grey, "PNG", transparency=7))[0][20, [5, 35], 0].tolist() == [255, 99]
    colour = grey.convert("RGB")
    assert decode(encode(colour, "PNG", transparency=(7, 7, 7)))[0][20, [5, 35], 0].tolist() == [255, 99]
    palette = grey.convert("P")
    assert decode(encode(palette, "GIF", transparency=7))[0][20, [5, 35], 0].tolist() == [255, 99]


def test_half_transparency_is_mixed() -> None:
    image = Image.new("RGBA", (40, 40), (200, 0, 0, 128))
    pixels, _ = decode(encode(image, "PNG"))
    assert np.abs(pixels[0, 0].astype(int) - [227, 127, 127]).max() <= 1  # 200*128/255 + 255*127/255


def test_transparency_of_arrays_and_pil_images_is_laid_on_the_background_too() -> None:
    for image in (
        half_transparent("RGBA"),
        np.asarray(half_transparent("RGBA")),
        half_transparent("LA"),
        half_transparent("P"),
    ):
        assert decode(image)[0][20, [5, 35], 0].tolist() == [0, 255]


# Bit depth


RAMP = np.linspace(0, 65535, 40 * 50).round().astype(np.uint16).reshape(40, 50)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_by_their_full_range(kind: str) -> None:
    data = encode(Image.fromarray(RAMP), kind)
    pixels, remarks = decode(data)
    np.testing.assert_array_equal(pixels[..., 1], np.rint(RAMP / 257.0).astype(np.uint8))
    assert len(remarks) == 1
    assert "more than 8 bits" in remarks[0]


def test_sixteen_bit_arrays_and_pil_images_are_scaled_alike() -> None:
    for source in (RAMP, Image.fromarray(RAMP), np.repeat(RAMP[:, :, None], 3, axis=2)):
        np.testing.assert_array_equal(decode(source)[0][..., 0], np.rint(RAMP / 257.0).astype(np.uint8))


def test_big_endian_sixteen_bit_tiffs_are_read_alike() -> None:
    strip = RAMP.astype(">u2").tobytes()
    tags = [
        (256, 3, 1, 50),
        (257, 3, 1, 40),
        (258, 3, 1, 16),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, 1, 8),
        (277, 3, 1, 1),
        (278, 3, 1, 40),
        (279, 4, 1, len(strip)),
    ]
    entries = b"".join(
        struct.pack(">HHI", *tag[:3])
        + (struct.pack(">HH", tag[3], 0) if tag[1] == 3 else struct.pack(">I", tag[3]))
        for tag in tags
    )
    data = (
        b"MM\0*"
        + struct.pack(">I", 8 + len(strip))
        + strip
        + struct.pack(">H", len(tags))
        + entries
        + bytes(4)
    )
    np.testing.assert_array_equal(decode(data)[0][..., 0], np.rint(RAMP / 257.0).astype(np.uint8))


def test_minmax_uses_the_pictures_own_range() -> None:
    narrow = (RAMP // 64 + 300).astype(np.uint16)  # 300 to 1323: black under the full range
    data = encode(Image.fromarray(narrow), "PNG")
    assert decode(data)[0].max() == 5
    pixels, remarks = decode(data, pixel_range="minmax")
    assert (pixels.min(), pixels.max(), remarks) == (0, 255, [])


def test_minmax_of_a_flat_picture_is_black() -> None:
    assert decode(np.full((40, 40), 500, np.uint16), pixel_range="minmax")[0].max() == 0


def test_floats_are_taken_as_zero_to_one_and_what_lies_beyond_is_clipped_with_a_remark() -> None:
    values = np.full((40, 40), 0.5, np.float32)
    pixels, remarks = decode(encode(Image.fromarray(values), "TIFF"))
    assert (np.unique(pixels).tolist(), len(remarks)) == ([128], 1)
    values[0, :3] = [300.0, -1.0, np.nan]
    pixels, remarks = decode(encode(Image.fromarray(values), "TIFF"))
    assert pixels[0, :4, 0].tolist() == [255, 0, 0, 128]
    assert remarks == [REMARK_DEPTH]
    values[0, 3:30] = 2.0
    assert REMARK_SATURATED in decode(encode(Image.fromarray(values), "TIFF"))[1]


def test_thirty_two_bit_integers_are_taken_as_sixteen_bit_data() -> None:
    data = encode(Image.fromarray(RAMP.astype(np.int32)), "TIFF")
    np.testing.assert_array_equal(decode(data)[0][..., 0], np.rint(RAMP / 257.0).astype(np.uint8))


def test_sixteen_bit_colour_is_scaled_not_clipped() -> None:
    rows = b"".join(
        b"\0" + struct.pack(">9H", 65535, 256, 0, 32768, 1000, 65280, 128, 257, 514) for _ in range(3)
    )
    data = png(3, 3, rows, bit_depth=16, colour=2)
    assert decode(data)[0][0].tolist() == [[255, 1, 0], [128, 4, 254], [0, 1, 2]]


def png(width: int, height: int, rows: bytes, *, bit_depth: int = 8, colour: int = 0) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


# Grey, 1 bit, palettes, colour spaces, frames


@pytest.mark.data
def test_one_bit_pictures_become_black_and_white(real_data: Path) -> None:
    drawing = next((real_data / "omniglot_small1").rglob("*.png"))
    assert Image.open(drawing).mode == "1"
    pixels, _ = decode(drawing)
    assert pixels.shape == (105, 105, 3)
    assert np.unique(pixels).tolist() == [0, 255]
    np.testing.assert_array_equal(pixels, expected_rgb(drawing.read_bytes()))


@pytest.mark.data
def test_a_grey_spectrogram_becomes_three_equal_channels(real_data: Path) -> None:
    pixels, _ = decode(next((real_data / "fsdd_spectrograms").rglob("*.png")))
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()


@pytest.mark.data
def test_the_large_pictures_among_the_small_ones_decode(real_data: Path) -> None:
    large = [path for path in (real_data / "sign_digits").rglob("*.JPG") if path.stat().st_size > 500_000]
    assert len(large) == 3
    assert {decode(path)[0].shape for path in large} == {(3024, 3024, 3)}


@pytest.mark.parametrize("array", [np.eye(40, dtype=bool), np.eye(40, dtype=np.uint8) * np.uint8(255)])
def test_grey_and_bool_arrays_become_rgb(array: np.ndarray) -> None:
    pixels, _ = decode(array)
    assert (pixels.shape, pixels[0, 0].tolist(), pixels[0, 1].tolist()) == ((40, 40, 3), [255] * 3, [0] * 3)


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "P", "1", "L", "CMYK"])
def test_a_pil_image_of_any_mode_has_pillows_rgb(picture: Make, mode: str) -> None:
    image = picture().convert(mode)
    np.testing.assert_array_equal(decode(image)[0], np.asarray(image.convert("RGB")))


def test_lab_is_converted_by_its_colours(picture: Make) -> None:
    lab = ImageCms.profileToProfile(
        picture(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert np.abs(decode(encode(lab, "TIFF"))[0].astype(int) - np.asarray(picture())).mean() < 3


def cmyk_profile() -> bytes:
    """A printer whose cyan ink is red: an ICC 2.1 profile of one 8-bit table from CMYK to Lab."""
    ramp = bytes(range(256))
    corners = [(0, 0, 0) if index & 1 else (53, 80, 67) if index & 8 else (100, 0, 0) for index in range(16)]
    colours = b"".join(bytes([round(l * 2.55), a + 128, b + 128]) for l, a, b in corners)  # noqa: E741
    unit = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + unit + ramp * 4 + colours + ramp * 3
    header = struct.pack(">I4sI4s4s4s", 144 + len(table), b"none", 0x02100000, b"prtr", b"CMYK", b"Lab ")
    d50 = struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    header = (header + bytes(12) + b"acsp" + bytes(28) + d50).ljust(128, b"\0")
    return header + struct.pack(">I4sII", 1, b"A2B0", 144, len(table)) + table


def test_a_cmyk_jpeg_goes_through_its_profile() -> None:
    image = Image.new("CMYK", (40, 40), (255, 0, 0, 0))
    for kind in ("JPEG", "TIFF"):
        assert decode(encode(image, kind))[0][5, 5].tolist() == [0, 255, 255]
        pixels, remarks = decode(encode(image, kind, icc_profile=cmyk_profile()))
        assert np.abs(pixels[5, 5].astype(int) - [255, 0, 0]).max() < 12  # Lab 53, 80, 67 is sRGB's red
        assert remarks == []


def test_a_profile_that_cannot_be_used_is_left_out_with_a_remark(picture: Make) -> None:
    rgb_profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (b"no profile", rgb_profile):
        data = encode(picture().convert("CMYK"), "JPEG", icc_profile=profile)
        pixels, remarks = decode(data)
        np.testing.assert_array_equal(pixels, expected_rgb(data))
        assert len(remarks) == 1
        assert "profile" in remarks[0]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_an_animation_the_first_frame_is_used_with_a_remark(picture: Make, kind: str) -> None:
    first, second = Image.new("RGB", (40, 40), (255, 0, 0)), Image.new("RGB", (40, 40), (0, 0, 255))
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels, remarks = decode(encode(first, kind, save_all=True, append_images=[second], **options))
    assert pixels[5, 5].tolist() == [255, 0, 0]
    assert len(remarks) == 1
    assert "only the first is used" in remarks[0]


# What is refused, and why


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"hello, I am text", "^[^:]*: text, not an image$"),
        (b"\0" * 9, "not an image"),
        (b"<!DOCTYPE html><p>404", "a web page, not an image; the download failed"),
        (b"  <HTML><p>404", "a web page"),
        (b"<svg xmlns=''/>", "an SVG drawing; convert it to PNG"),
        (b"%PDF-1.4", "a PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript file"),
        (b"version https://git-lfs.github.com/spec/v1", r"run `git lfs pull`"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEI[CF]"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "damaged or unsupported PNG file"),
        (b"\xff\xd8\xff\xe0 nothing", "damaged or unsupported JPEG file"),
        (b"GIF89a", "damaged or unsupported GIF file"),
        (b"II*\0" + bytes(20), "TIFF"),
        (b"BM no bitmap, just words", "."),
    ],
)
def test_what_is_no_picture_says_what_it_is(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        decode(data, name="cat/x.jpg")
    assert str(caught.value).startswith("cat/x.jpg: ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_truncation_is_found_in_every_format(picture: Make, kind: str) -> None:
    data = encode(picture(0, 200, 150), kind)
    with pytest.raises(ImageError):
        decode(data[: int(len(data) * 0.7)])


def test_a_bomb_is_refused_by_its_header(picture: Make) -> None:
    rows = zlib.compress(b"\0" * 100)
    data = png(50_000, 50_000, rows, bit_depth=1)
    with pytest.raises(
        ImageError, match=r"50,000 x 50,000 pixels are more than max_pixels 178,956,970; .*--max-pixels"
    ):
        decode(data)


def test_a_webp_bomb_is_refused_before_its_canvas_is_made() -> None:
    data = encode(Image.new("RGB", (3000, 3000)), "WEBP", lossless=True)
    assert len(data) < 10_000
    with pytest.raises(ImageError, match="3,000 x 3,000"):
        decode(data, max_pixels=1_000_000)
    assert decode(data, max_pixels=9_000_000)[0].shape == (3000, 3000, 3)


def test_a_picture_at_the_limit_is_decoded_and_one_beyond_is_not(picture: Make) -> None:
    data = encode(picture(0, 100, 80), "PNG")
    assert decode(data, max_pixels=8000)[0].shape == (80, 100, 3)
    with pytest.raises(ImageError, match="max_pixels 7,999"):
        decode(data, max_pixels=7999)
    with pytest.raises(ImageError, match="max_pixels 7,999"):
        decode(np.zeros((80, 100, 3), np.uint8), max_pixels=7999)


def test_eleven_thousand_squared_is_decoded_and_pillows_globals_stay() -> None:
    data = png(11_000, 11_000, (b"\0" * 1376) * 11_000, bit_depth=1)
    limits = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow alone warns of a bomb here
        pixels, remarks = decode(data)
    assert (pixels.shape, remarks) == ((11_000, 11_000, 3), [])
    assert limits == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)


@pytest.mark.slow
def test_a_raised_limit_goes_beyond_pillows_own() -> None:
    data = png(20_000, 10_000, (b"\0" * 2501) * 10_000, bit_depth=1)
    assert decode(data, max_pixels=200_000_000)[0].shape == (10_000, 20_000, 3)


def test_threads_share_the_memory_for_pictures() -> None:
    """A PNG of 7.8 megapixels, decoded by 8 threads within 150 MB and their results."""
    code = """
import io, resource
from concurrent.futures import ThreadPoolExecutor
from PIL import Image
from featx.images import budget, decode_picture, read_picture
budget.DECODING.total = 150_000_000
buffer = io.BytesIO()
Image.new("RGBA", (2800, 2800), (10, 20, 30, 40)).save(buffer, "PNG")
picture = read_picture(buffer.getvalue())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with ThreadPoolExecutor(8) as pool:
    assert list(pool.map(lambda _: decode_picture(picture).shape, range(8))) == [(2800, 2800, 3)] * 8
used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
assert used < 430_000_000, used  # the 8 results alone are 188 MB, where none is dropped
assert budget.DECODING.used == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_picture_with_transparency_takes_little_more_than_its_pixels() -> None:
    """40 megapixels: 160 MB as RGBA and 120 MB as RGB; six copies took 880 MB."""
    code = """
import io, resource
from PIL import Image
from featx.images import decode_picture, read_picture
buffer = io.BytesIO()
Image.new("RGBA", (8000, 5000), (10, 20, 30, 40)).save(buffer, "PNG")
data = buffer.getvalue()
buffer = None
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode_picture(read_picture(data))
used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
assert used < 300_000_000, used
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_picture_larger_than_the_budget_is_decoded_alone() -> None:
    shared = MemoryBudget(100)
    used = []

    def work(n_bytes: int) -> None:
        with shared.take(n_bytes):
            used.append((n_bytes, shared.used))
            time.sleep(0.01)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, [40, 40, 500, 40, 60, 300]))
    assert all(total <= 100 or total == n_bytes for n_bytes, total in used)
    assert shared.used == 0


def test_a_thread_that_holds_memory_never_waits_for_more() -> None:
    shared = MemoryBudget(100)
    with shared.held():
        for _ in range(3):
            with shared.take(80):
                pass
        assert shared.used == 240
    assert shared.used == 0


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "YCbCr"])
def test_bands_give_the_pixels_of_the_whole(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (97, 61, 4), np.uint8)
    image = Image.fromarray(noise).convert("RGB" if mode in ("P", "YCbCr") else "RGBA").convert(mode)
    if mode == "P":
        image.info["transparency"] = 3
    whole = rgb_from_pillow(image, DecodePolicy(background=(9, 8, 7)), lambda remark: None)
    monkeypatch.setattr("featx.images.pixels.BAND_PIXELS", 61 * 10)
    bands = rgb_from_pillow(image, DecodePolicy(background=(9, 8, 7)), lambda remark: None)
    np.testing.assert_array_equal(bands, whole)


def test_a_photo_with_a_film_behind_it_is_decoded(picture: Make) -> None:
    film = np.random.default_rng(0).bytes(20_000_000)  # has hundreds of byte pairs that look like scans
    data = encode(picture(), "JPEG", progressive=True)
    np.testing.assert_array_equal(decode(data + film)[0], expected_rgb(data))


def test_a_jpeg_of_thousands_of_scans_is_refused(picture: Make) -> None:
    data = encode(picture(0, 64, 64), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    scan = data[start:-2]
    with pytest.raises(ImageError, match=r"2,0\d\d scans"):
        decode(data[:-2] + scan * 2000 + data[-2:])


def test_scans_times_pixels_of_a_jpeg_are_limited() -> None:
    """90 scans of 49 megapixels take many seconds; the message names the limit."""
    data = encode(Image.new("L", (7000, 7000)), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(ImageError, match=r"9\d scans .*2,500,000,000 scans x pixels.*51 scans"):
        decode(data[:-2] + scan * 85 + data[-2:])


# Remarks


@pytest.mark.parametrize(
    ("size", "remark"),
    [
        ((1, 1), "shorter than 32 pixels"),
        ((1, 5000), "more than 20 times"),
        ((31, 31), "shorter"),
        ((40, 801), "20 times"),
    ],
)
def test_tiny_and_extreme_pictures_are_accepted_with_a_remark(size: tuple[int, int], remark: str) -> None:
    pixels, remarks = decode(encode(Image.new("RGB", size), "PNG"))
    assert pixels.shape == (size[1], size[0], 3)
    assert any(remark in each for each in remarks)


def test_an_ordinary_picture_has_no_remarks(picture: Make) -> None:
    assert decode(encode(picture(0, 32, 640), "PNG"))[1] == []


def test_a_wrong_extension_is_accepted_with_a_remark(tmp_path: Path, picture: Make) -> None:
    picture().save(tmp_path / "x.jpg", format="PNG")
    assert decode(tmp_path / "x.jpg")[1] == ["named .jpg but holds PNG"]
    picture().save(tmp_path / "y.JPEG", format="JPEG")
    assert decode(tmp_path / "y.JPEG")[1] == []


def test_the_same_remark_is_the_same_text_for_every_picture() -> None:
    one, other = (decode(encode(Image.new("RGB", size), "PNG"))[1] for size in ((3, 4), (5, 6)))
    assert one == other


# decode="fast"


@pytest.mark.parametrize(
    ("min_side", "expected"), [(224, 250), (300, 500), (600, 1000), (0, 1000), (100, 125)]
)
def test_fast_shrinks_by_a_power_of_two_and_never_below_the_side_asked_for(
    picture: Make, min_side: int, expected: int
) -> None:
    data = encode(picture(0, 1500, 1000), "JPEG")
    pixels, _ = decode(data, decode="fast", min_side=min_side)
    assert pixels.shape == (expected, -(-expected * 3 // 2), 3)


def test_fast_stays_close_to_a_box_filter_and_upright(picture: Make) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(picture(0, 1600, 1200), "JPEG", quality=95, exif=exif)
    pixels, _ = decode(data, decode="fast", min_side=300)
    boxed = np.asarray(Image.fromarray(decode(data)[0]).reduce(4))
    assert pixels.shape == boxed.shape == (400, 300, 3)
    assert np.abs(pixels.astype(int) - boxed).mean() < 2


def test_fast_leaves_other_formats_and_small_photos_exact(picture: Make) -> None:
    for data in (encode(picture(0, 800, 600), "PNG"), encode(picture(0, 400, 300), "JPEG")):
        np.testing.assert_array_equal(decode(data, decode="fast", min_side=224)[0], decode(data)[0])


def test_fast_still_finds_truncation_and_the_limit(picture: Make) -> None:
    data = encode(picture(0, 1500, 1000), "JPEG")
    with pytest.raises(ImageError, match="truncated"):
        decode(data[: len(data) // 2], decode="fast", min_side=100)
    with pytest.raises(ImageError, match="max_pixels"):
        decode(data, decode="fast", min_side=100, max_pixels=1_000_000)


# The policy


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("decode", "quick", "choose one of exact, fast"),
        ("pixel_range", "4095", "choose one of full, minmax"),
        ("background", (1, 2), "three numbers, 0 to 255"),
        ("background", (1, 2, 256), "three numbers, 0 to 255"),
        ("max_pixels", 0, "at least 1"),
        ("min_side", -1, "at least 1 and 0"),
        ("decoder", "cv2", "choose auto or one of"),
        ("decoder", "", "choose auto or one of"),
    ],
)
def test_a_policy_refuses_what_it_cannot_do(field: str, value: object, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DecodePolicy(**{field: value})  # type: ignore[arg-type]


def test_a_policy_holds_the_decoder_by_name() -> None:
    assert DecodePolicy().decoder == resolve_decoder()
    assert {field.name for field in dataclasses.fields(DecodePolicy)} >= {
        "decoder",
        "decode",
        "background",
        "pixel_range",
        "bands",
    }


def test_pixels_are_contiguous_and_writable_memory_of_their_own(picture: Make) -> None:
    array = np.asarray(picture()).copy()
    pixels, _ = decode(array)
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, array)


def test_decoding_needs_no_remarks_callback() -> None:
    assert decode_picture(read_picture(np.zeros((4, 4), np.uint8))).shape == (4, 4, 3)
