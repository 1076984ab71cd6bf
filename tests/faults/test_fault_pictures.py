"""Rows 1 to 20 of the faults in docs/reliability.md: pictures, names, folders."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import shutil
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms
from staging import FIT, SEARCH, TINY, classes, featx, ordinary_rights, photo, pixels

EXTRACT = [*TINY, "--max-bad", "1", "--no-cache"]


def png_of(width: int, height: int, *, rows: int | None = None) -> bytes:
    """A black one-bit PNG of any size, in some hundred bytes; fewer rows make it end early."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    body = b"".join(packer.compress(row) for _ in range(rows or height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


BOMB = png_of(50_000, 50_000, rows=64)


def arrays(folder: Path, *more: Any) -> tuple[Any, dict[str, Any]]:
    """Extract a flat folder; the answer and the arrays of the .npz, rows by file name."""
    said = featx("extract", folder, *EXTRACT, "--dtype", "float32", "-o", "x.npz", *more)
    with np.load("x.npz") as found:
        row_of = dict(zip(found["path"].tolist(), found["last:avg:crop"], strict=True))
        id_of = dict(zip(found["path"].tolist(), found["id"], strict=True))
    return said, {"rows": row_of, "ids": id_of}


def test_row_01_a_truncated_body_is_skipped_with_pillows_reason_and_the_rest_is_learnt(
    tmp_path: Path,
) -> None:
    photos = classes(tmp_path / "photos", each=13, suffix=".jpg")
    victim = photos / "red" / "red_00.jpg"
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    with Image.open(victim) as image:
        image.verify()  # the header is whole
    said = featx("fit", photos, "-o", "m.featx", *FIT)
    assert said.code == 3
    assert "truncated" in said.reasons["red_00.jpg"]
    assert said.document["skipped"][0]["label"] == "red"
    assert said.document["computed"] == 25
    with open("m.featx.skipped.csv", newline="", encoding="utf-8") as file:
        assert [Path(row["path"]).name for row in csv.DictReader(file)] == ["red_00.jpg"]


def test_row_02_empty_files_and_texts_say_what_they_are(tmp_path: Path) -> None:
    photo(tmp_path / "p" / "good.png")
    (tmp_path / "p" / "empty.jpg").write_bytes(b"")
    (tmp_path / "p" / "notes.jpg").write_text("Dear diary, today")
    (tmp_path / "p" / "page.jpg").write_text("<!DOCTYPE html><html>404</html>")
    said = featx("extract", tmp_path / "p", *EXTRACT)
    assert said.code == 3
    assert said.reasons["empty.jpg"].startswith("empty file (0 bytes)")
    assert said.reasons["notes.jpg"] == "text, not an image"  # none of its bytes
    assert "web page" in said.reasons["page.jpg"]
    assert said.document["images"] == 1


def test_row_03_a_folder_named_like_a_picture_is_walked_into(tmp_path: Path) -> None:
    photo(tmp_path / "p" / "a.png", 1)
    photo(tmp_path / "p" / "x.jpg" / "b.png", 2)
    said = featx("extract", tmp_path / "p", *EXTRACT)
    assert (said.code, said.document["images"], said.document["skipped"]) == (0, 2, [])


def test_row_04_a_wrong_extension_is_accepted_and_noted(tmp_path: Path) -> None:
    shutil.move(photo(tmp_path / "p" / "a.jpg"), tmp_path / "p" / "a.png")
    said = featx("extract", tmp_path / "p", *EXTRACT)
    assert (said.code, said.document["images"]) == (0, 1)
    assert any("named .png but holds JPEG" in remark for remark in said.document["remarks"])
    assert said.err.count("named .png but holds JPEG") == 1


def test_row_05_a_flipped_byte_is_another_picture_and_never_gets_the_old_row(tmp_path: Path) -> None:
    folder, cache = tmp_path / "p", tmp_path / "cache"
    photo(folder / "a.png", 1)
    path = photo(folder / "b.jpg", 2)
    command = ("extract", folder, *TINY, "--cache-dir", cache)
    assert featx(*command).document["computed"] == 2
    data = bytearray(path.read_bytes())
    data[-30] ^= 0x04  # in the entropy-coded body: decodes, to other pixels
    path.write_bytes(data)
    said = featx(*command)
    assert (said.code, said.document["computed"]) == (0, 1)


def test_row_06_a_bomb_is_skipped_and_pillows_globals_stay(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    photo(tmp_path / "p" / "good.png")
    (tmp_path / "p" / "bomb.png").write_bytes(BOMB)
    said = featx("extract", tmp_path / "p", *EXTRACT)
    assert said.code == 3
    assert "50,000 x 50,000 pixels are more than max_pixels 178,956,970" in said.reasons["bomb.png"]
    assert "--max-pixels" in said.reasons["bomb.png"]
    assert before == Image.MAX_IMAGE_PIXELS
    lower = featx("extract", tmp_path / "p" / "good.png", *EXTRACT, "--max-pixels", "3000")
    assert "64 x 48 pixels are more than max_pixels 3,000" in lower.reasons["good.png"]


def test_row_06_a_bomb_among_the_pictures_of_a_fit_does_not_end_it(tmp_path: Path) -> None:
    photos = classes(tmp_path / "photos", each=12)
    (photos / "blue" / "aaa_bomb.png").write_bytes(BOMB)
    said = featx("fit", photos, "-o", "m.featx", *TINY, "--cut", "last", *SEARCH)  # looks at shapes first
    assert said.code == 3
    assert list(said.reasons) == ["aaa_bomb.png"]


def test_row_07_a_large_picture_within_the_limit_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()  # 90 megapixels: above Pillow's limit for its warning, below its error
    (tmp_path / "p" / "large.png").write_bytes(png_of(9_500, 9_500))
    said = featx("extract", tmp_path / "p", *EXTRACT)
    assert (said.code, said.document["images"], said.err.count("Bomb")) == (0, 1, 0)


def test_row_08_tiny_and_narrow_pictures_are_accepted_with_a_warning(tmp_path: Path) -> None:
    photo(tmp_path / "p" / "dot.png", width=1, height=1)
    photo(tmp_path / "p" / "line.png", width=5000, height=1)
    said = featx("extract", tmp_path / "p", *EXTRACT)
    assert (said.code, said.document["images"]) == (0, 2)
    assert "a side is shorter than 32 pixels" in said.err
    assert "more than 20 times the other" in said.err


def test_row_09_a_rotated_twin_gives_the_same_row_in_the_same_space(tmp_path: Path) -> None:
    upright = pixels(5)
    (tmp_path / "p").mkdir()
    Image.fromarray(upright).save(tmp_path / "p" / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(np.rot90(upright)).save(tmp_path / "p" / "turned.png", exif=exif)
    said, found = arrays(tmp_path / "p")
    assert len(said.document["spaces"]) == 1
    np.testing.assert_allclose(
        found["rows"]["turned.png"], found["rows"]["upright.png"], rtol=1e-5, atol=1e-6
    )


def test_row_10_cmyk_is_converted_with_its_profile_and_without(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    image = Image.fromarray(pixels(3)).convert("CMYK")
    image.save(tmp_path / "p" / "plain.jpg", quality=95)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()  # of another colour space
    image.save(tmp_path / "p" / "odd.jpg", quality=95, icc_profile=profile)
    Image.fromarray(pixels(3)).save(tmp_path / "p" / "rgb.png")
    said, found = arrays(tmp_path / "p")
    assert (said.code, len(found["rows"])) == (0, 3)
    assert "colour profile cannot be used" in said.err
    plain, rgb = found["rows"]["plain.jpg"], found["rows"]["rgb.png"]
    assert plain @ rgb / np.linalg.norm(plain) / np.linalg.norm(rgb) > 0.99


def test_row_11_deep_pictures_are_scaled_not_clipped_and_it_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    grey = 60 + pixels(7)[:, :, 0] // 4
    Image.fromarray(grey).save(tmp_path / "p" / "eight.png")
    for name in ("deep_1.png", "deep_2.png"):
        Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "p" / name)
    Image.fromarray((grey / 255).astype(np.float32)).save(tmp_path / "p" / "float.tif")
    said, found = arrays(tmp_path / "p")
    for name in ("deep_1.png", "deep_2.png", "float.tif"):
        # they are resized in their own depth, the other in 8 bits: they differ by a grey level
        np.testing.assert_allclose(found["rows"][name], found["rows"]["eight.png"], rtol=0, atol=2e-3)
    assert said.err.count("more than 8 bits") == 1
    _, stretched = arrays(tmp_path / "p", "--range", "minmax")
    assert not np.allclose(stretched["rows"]["deep_1.png"], found["rows"]["deep_1.png"], rtol=1e-3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_row_12_what_is_transparent_lies_on_white_or_the_colour_asked_for(mode: str, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    hidden = Image.fromarray(np.dstack([pixels(1), np.zeros((48, 64), np.uint8)]))
    image = hidden if mode == "RGBA" else hidden.convert(mode)
    image.save(tmp_path / "p" / "hidden.png", **({"transparency": bytes(256)} if mode == "P" else {}))
    Image.new("RGB", (64, 48), "white").save(tmp_path / "p" / "white.png")
    Image.new("RGB", (64, 48), (10, 200, 30)).save(tmp_path / "p" / "green.png")
    _, found = arrays(tmp_path / "p")
    np.testing.assert_array_equal(found["rows"]["hidden.png"], found["rows"]["white.png"])
    _, found = arrays(tmp_path / "p", "--background", "10,200,30")
    np.testing.assert_array_equal(found["rows"]["hidden.png"], found["rows"]["green.png"])


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".tif"])
def test_row_13_of_several_frames_the_first_is_used_and_it_is_said(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    frames = [Image.fromarray(pixels(seed)) for seed in (1, 2)]
    lossless = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / "p" / f"all{suffix}", save_all=True, append_images=frames[1:], **lossless)
    frames[0].save(tmp_path / "p" / f"first{suffix}", **lossless)
    said, found = arrays(tmp_path / "p")
    assert "only the first is used" in said.err
    np.testing.assert_array_equal(found["rows"][f"all{suffix}"], found["rows"][f"first{suffix}"])


def test_row_14_grey_and_one_bit_pictures_are_rgb_ones(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    grey = np.where(pixels(2)[:, :, 0] > 127, 255, 0).astype(np.uint8)
    Image.fromarray(np.dstack([grey] * 3)).save(tmp_path / "p" / "rgb.png")
    Image.fromarray(grey).save(tmp_path / "p" / "grey.png")
    Image.fromarray(grey > 0).save(tmp_path / "p" / "bit.png")
    _, found = arrays(tmp_path / "p")
    np.testing.assert_array_equal(found["rows"]["grey.png"], found["rows"]["rgb.png"])
    np.testing.assert_array_equal(found["rows"]["bit.png"], found["rows"]["rgb.png"])


STRANGE = (
    "naïve Ünï.png",
    " spaced  out .png",
    "new\nline.png",
    "esc\x1b[31mape.png",
    os.fsdecode(b"caf\xe9.png"),
)


def test_row_15_any_file_name_works_and_is_shown_escaped(shared: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(STRANGE):
        photo(tmp_path / "p" / "plain.png", seed).rename(tmp_path / "p" / name)
    (tmp_path / "p" / "bad\x1b[31m\n.jpg").write_bytes(b"")
    said = featx(
        "predict", shared / "m.featx", tmp_path / "p", "-o", "out.csv", "--max-bad", "1", "--no-cache"
    )
    assert said.code == 3
    assert {one["path"] for one in said.document["predictions"]} == set(STRANGE)  # JSON is exact
    text = Path("out.csv").read_bytes().decode("utf-8")
    assert "naïve Ünï.png" in text
    assert "caf\\xe9.png" in text
    assert "new\\nline.png" in text
    assert len(text.splitlines()) == 1 + len(STRANGE)
    assert "bad\\x1b[31m\\n.jpg" in Path("out.csv.skipped.csv").read_text("utf-8")
    assert "\x1b" not in text + said.err
    strict = featx("predict", shared / "m.featx", tmp_path / "p", "--strict", "--no-cache")
    assert strict.code == 1
    assert "\x1b" not in strict.err
    assert "bad\\x1b[31m" in strict.err


def test_row_16_a_loop_is_named_once_and_links_out_are_followed_on_request(tmp_path: Path) -> None:
    photo(tmp_path / "p" / "a.png", 1)
    photo(tmp_path / "elsewhere" / "b.png", 2)
    (tmp_path / "p" / "loop").symlink_to(tmp_path / "p")
    (tmp_path / "p" / "out.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    said = featx("extract", tmp_path / "p", *EXTRACT)
    assert said.document["images"] == 1
    assert "--follow-links" in said.reasons["out.png"]
    assert said.err.count("a loop or second name") == 1
    followed = featx("extract", tmp_path / "p", *EXTRACT, "--follow-links")
    assert (followed.code, followed.document["images"]) == (0, 2)


def test_row_17_what_may_not_be_read_is_skipped_with_the_way_out(tmp_path: Path) -> None:
    photo(tmp_path / "p" / "a.png", 1)
    photo(tmp_path / "p" / "locked.png", 2).chmod(0)
    photo(tmp_path / "p" / "closed" / "c.png", 3)
    (tmp_path / "p" / "closed").chmod(0)
    try:
        with ordinary_rights():
            said = featx("extract", tmp_path / "p", *EXTRACT)
    finally:
        (tmp_path / "p" / "closed").chmod(0o755)
    assert (said.code, said.document["images"]) == (3, 1)
    assert said.reasons["locked.png"].startswith("permission denied; make it readable (chmod u+r")
    assert said.reasons["closed"].startswith(
        "folder not read: permission denied; make it readable (chmod u+r"
    )


class Opened:
    """Do something at the n-th opening of a file whose path ends so; hooks cannot be removed, only ended."""

    def __init__(self, ending: str, number: int, act: Any) -> None:
        self.left, self.active = number, True
        self._ending, self._act = ending, act
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.active or event != "open" or not str(args[0]).endswith(self._ending):
            return
        self.left -= 1
        if not self.left:
            self.active = False
            self._act()


def test_row_18_what_is_decoded_is_what_was_hashed(tmp_path: Path) -> None:
    path = photo(tmp_path / "p" / "a.png", 1)
    before = path.read_bytes()
    after = photo(tmp_path / "other" / "b.png", 2).read_bytes()
    # the journal of what is being decoded is opened when the first picture is read but not yet decoded
    Opened(".journal", 1, lambda: path.write_bytes(after))
    featx("extract", tmp_path / "p", *TINY, "--dtype", "float32", "-o", "x.npz", "--cache-dir", "cache")
    assert path.read_bytes() == after
    with np.load("x.npz") as found:
        digest, row = found["id"][0].tobytes(), found["last:avg:crop"][0]
    assert digest == hashlib.sha256(before).digest()
    path.write_bytes(before)
    _, again = arrays(tmp_path / "p")
    np.testing.assert_array_equal(row, again["rows"]["a.png"])


def test_row_18_a_picture_that_vanishes_between_split_and_extraction_is_skipped(tmp_path: Path) -> None:
    photos = classes(tmp_path / "photos", each=12)
    victim = photos / "red" / "red_03.png"
    Opened("red_03.png", 2, victim.unlink)
    said = featx("fit", photos, "-o", "m.featx", *FIT)
    assert said.code == 3
    assert said.reasons["red_03.png"].startswith("no such file or directory; it was moved or deleted")
    assert said.document["computed"] == 23


def test_row_19_an_empty_folder_is_an_error_and_litter_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said = featx("extract", tmp_path / "empty", *EXTRACT)
    assert said.code == 1
    assert "no image found" in said.error
    photos = classes(tmp_path / "photos")
    (photos / "green").mkdir()
    (photos / "green" / "Thumbs.db").write_bytes(b"litter")
    for litter in (".hidden.png", "Thumbs.db", "__MACOSX/red_00.png", ".git/x.png"):
        (photos / "red" / litter).parent.mkdir(exist_ok=True)
        (photos / "red" / litter).write_bytes(b"litter")
    said = featx("fit", photos, "-o", "m.featx", *FIT)
    assert (said.code, said.document["skipped"], said.document["computed"]) == (0, [], 24)
    assert "class folder green holds no image; the class is dropped" in said.err


@pytest.mark.parametrize("verb", ["fit", "extract", "predict"])
def test_row_20_more_than_5_percent_bad_is_an_error_after_the_first_ten(
    verb: str, shared: Path, tmp_path: Path
) -> None:
    photos = classes(tmp_path / "photos", each=12)
    for number in range(12):
        (photos / "red" / f"bad_{number:02d}.jpg").write_bytes(b"")
    argv: dict[str, list[Any]] = {
        "fit": [photos, "-o", "o.featx", *FIT],
        "extract": [photos, "-o", "o.npz", *TINY],
        "predict": [shared / "m.featx", photos, "-o", "o.csv"],
    }
    said = featx(verb, *argv[verb])
    assert said.code == 1
    assert "12 of 36 images cannot be used" in said.error
    assert "--max-bad" in said.error
    assert "bad_09.jpg: empty file" in said.err
    assert "bad_10.jpg" not in said.err
    ending = {"fit": "featx", "extract": "npz", "predict": "csv"}.get(verb)
    with open(f"o.{ending}.skipped.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 12
    assert featx(verb, *argv[verb], "--max-bad", "34%").code == 3
    assert featx(verb, *argv[verb], "--max-bad", "34%", "--strict").code == 1


def test_row_20_nothing_but_bad_pictures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for number in range(3):
        (tmp_path / "p" / f"{number}.jpg").write_bytes(io.BytesIO(b"\0" * 9).getvalue())
    said = featx("extract", tmp_path / "p", *TINY)
    assert said.code == 1
    assert "none of the 3 images can be used: 0.jpg: " in said.error
