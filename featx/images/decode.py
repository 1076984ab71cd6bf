"""Decode an image's bytes to upright RGB, within a limit of pixels, or say why not.

The header is read first, by Pillow and without allocating the image, and the size checked; then the
body is decoded in full (`verify()` passes a truncated JPEG, only decoding finds it): JPEG by the native
decoder chosen, everything else by Pillow. Pillow's globals stay untouched, so another library in the
process keeps its own limits. Remarks go to a callback, one constant text per kind, so that the caller
can count them; nothing is printed.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import struct

import numpy as np
from PIL import Image

from featx.exceptions import ImageError
from featx.images.budget import DECODING
from featx.images.decoders import load_decoder
from featx.images.deep import (
    MOST_BANDS,
    REMARK_BAND,
    REMARK_BANDS,
    has_deep_planes,
    has_undeclared_band,
    is_deep_colour,
    is_signed_8_bit,
    read_tiff,
    stored_pixels,
    tiff_shape,
    tiff_tags,
)
from featx.images.kinds import START_BYTES, kind_in_words
from featx.images.picture import Picture, reason_of
from featx.images.pixels import (
    DEEP_MODES,
    Pixels,
    Warn,
    chosen_bands,
    ignore_remark,
    orientation,
    rgb_from_pillow,
    rgb_from_pixels,
    upright,
)
from featx.images.policy import DecodePolicy
from featx.tables import escape_name

BYTES_PER_PIXEL = {"1": 8, "L": 8, "P": 8, "RGB": 12, "RGBA": 12, "LA": 12, "PA": 12, "YCbCr": 12, "CMYK": 16}
"""Most bytes that a pixel takes while Pillow decodes it, by mode: Pillow's image, RGB and a turned copy."""

OTHER_BYTES_PER_PIXEL = 28
"""For deep modes, which are scaled as float32, and for WebP, whose decoder keeps two canvases."""

NATIVE_BYTES_PER_PIXEL, COEFFICIENT_BYTES = 8, 2
"""For JPEG by a native decoder: RGB and a copy. A progressive JPEG keeps all coefficients of all channels."""

MAX_JPEG_SCANS = 100
"""A progressive JPEG has about ten; thousands of empty ones take minutes (libjpeg-turbo, LJT-01-004)."""

MAX_SCAN_PIXELS = 2_500_000_000
"""Limit for scans x pixels of a JPEG: about 8 s. 179 megapixels may have 13 scans."""

SCAN = 0xDAFF
"""Start of scan (ITU T.81, table B.1), read as a little-endian number; none occurs inside a scan's data."""

SMALL_SIDE, EXTREME_RATIO = 32, 20

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF", "JXL")
"""What is read, by Pillow's names. HEIF and JXL where a plugin has registered them; never EPS, which runs a
program, nor formats without a signature, which take any bytes for an image."""

EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heif"),
    "JXL": (".jxl",),
}

REMARK_FRAMES = "has several frames or pages; only the first is used"
REMARK_SMALL = f"a side is shorter than {SMALL_SIDE} pixels"
REMARK_RATIO = f"one side is more than {EXTREME_RATIO} times the other"
REMARK_DAMAGED = "damaged JPEG data; decoded as far as it goes"

HEIF_BRANDS = tuple(
    b"ftyp" + brand
    for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis")
)
"""Bytes 4 to 12 of HEIC and AVIF files (ISO 23008-12)."""


def decode_picture(
    picture: Picture,
    policy: DecodePolicy | None = None,
    *,
    warn: Warn | None = None,
    keep_depth: bool = False,
) -> Pixels:
    """Decode an image in full.

    Safe to call from several threads; decoding releases the GIL.

    Parameters
    ----------
    picture : Picture
        As `read_picture` returns it.
    policy : DecodePolicy, optional
        The default policy if left out.
    warn : callable, optional
        Called with each remark about an image that is accepted nevertheless: a str, the same for all
        images of a kind. Remarks are dropped if left out.
    keep_depth : bool
        Whether pixels of more than 8 bits are float32 from 0 to 255, not rounded: what is resized afterwards
        is rounded once.

    Returns
    -------
    array of uint8 (or float32), shape (H, W, 3)
        Upright RGB, contiguous.

    Raises
    ------
    ImageError
        Not an image, truncated, too large, or of a kind that cannot be read; with the decoder's reason.
    """
    policy = policy or DecodePolicy()
    warn = warn or ignore_remark
    try:
        if isinstance(picture.data, bytes):
            pixels = _decode_file(picture.data, picture.name, policy, warn, keep_depth)
        else:
            _check_size((picture.data.shape[1], picture.data.shape[0]), policy)
            height, width = picture.data.shape[:2]
            with DECODING.take(height * width * OTHER_BYTES_PER_PIXEL):
                pixels = rgb_from_pixels(picture.data, policy, warn, keep_depth=keep_depth)
    except Exception as error:  # a damaged file makes decoders raise anything
        raise ImageError(picture.name, escape_name(reason_of(error))) from error
    short, long = sorted(pixels.shape[:2])
    if short < SMALL_SIDE:
        warn(REMARK_SMALL)
    if long > EXTREME_RATIO * short:
        warn(REMARK_RATIO)
    return pixels


def picture_size(picture: Picture) -> tuple[int, int]:
    """Width and height as the file stores them (before any turn), from the header alone.

    Raises
    ------
    ImageError
        Not an image.
    """
    if isinstance(picture.data, np.ndarray):
        return picture.data.shape[1], picture.data.shape[0]
    try:
        image, _ = open_header(picture.data, DecodePolicy(), picture.name)
    except Exception as error:  # a damaged file makes decoders raise anything
        raise ImageError(picture.name, escape_name(reason_of(error))) from error
    return image.size


def _decode_file(data: bytes, name: str, policy: DecodePolicy, warn: Warn, keep_depth: bool) -> Pixels:
    with DECODING.held():
        opened = _open_any(data, policy, name)
        if isinstance(opened, np.ndarray):
            return _rgb_of_bands(opened, policy, warn, keep_depth)
        image, kind = opened
        _check_size(image.size, policy)
        _remark_extension(name, kind, warn)
        if kind == "TIFF" and has_undeclared_band(image) and not policy.bands:
            warn(REMARK_BAND)
        with DECODING.take(0 if kind == "WEBP" else _working_bytes(image, kind)):
            stored = _stored(image, kind, data, policy, name)
            if stored is not None:
                rgb = rgb_from_pixels(stored, policy, warn, keep_depth=keep_depth)
                return rgb if kind == "TIFF" else upright(rgb, orientation(image))
            if kind == "JPEG":
                _check_scans(data, image.size)
                pixels = _decode_jpeg(data, image, policy, warn)
                if pixels is not None:
                    pixels = rgb_from_pixels(pixels, policy, warn) if policy.bands else pixels
                    return upright(pixels, orientation(image))
            elif getattr(image, "is_animated", False):
                warn(REMARK_FRAMES)
            image.load()
            pixels = rgb_from_pillow(image, policy, warn, keep_depth=keep_depth)
            return upright(pixels, orientation(image))  # after load: TIFF turns itself, PNG may say it last


def _rgb_of_bands(pixels: Pixels, policy: DecodePolicy, warn: Warn, keep_depth: bool) -> Pixels:
    if pixels.ndim == 3 and pixels.shape[2] > 3 and not policy.bands:
        warn(REMARK_BANDS)
        pixels = pixels[:, :, :3]
    elif pixels.ndim == 3 and pixels.shape[2] in (1, 2) and not policy.bands:
        pixels = pixels[:, :, 0]
    with DECODING.take(pixels.shape[0] * pixels.shape[1] * OTHER_BYTES_PER_PIXEL):
        return rgb_from_pixels(pixels, policy, warn, keep_depth=keep_depth)


def deep_pixels(picture: Picture, policy: DecodePolicy) -> Pixels | None:
    """Return the pixels of an image of more than 8 bits as they are stored; None if it has 8 bits.

    Raises
    ------
    ImageError
        If it cannot be decoded.
    """
    try:
        if not isinstance(picture.data, bytes):
            stored = picture.data
        else:
            opened = _open_any(picture.data, policy, picture.name)
            if isinstance(opened, np.ndarray):
                stored = opened
            else:
                image, kind = opened
                _check_size(image.size, policy)
                if image.mode not in DEEP_MODES and not is_deep_colour(image):
                    return None
                found = _stored(image, kind, picture.data, policy, picture.name)
                stored = np.asarray(image) if found is None else found
        stored = chosen_bands(stored, policy.bands)
        stored = stored[..., :3] if stored.ndim == 3 else stored
    except Exception as error:  # a damaged file makes decoders raise anything
        raise ImageError(picture.name, escape_name(reason_of(error))) from error
    return stored if stored.dtype.itemsize > 1 else None


def _stored(image: Image.Image, kind: str, data: bytes, policy: DecodePolicy, name: str) -> Pixels | None:
    """All bands as the file stores them, where Pillow would lose some of it; else None."""
    undeclared = kind == "TIFF" and has_undeclared_band(image)
    deep = kind in ("PNG", "TIFF") and is_deep_colour(image)
    if not deep and not undeclared:
        return None
    pixels = stored_pixels(lambda: open_header(data, policy, name)[0])
    return pixels[:, :, : pixels.shape[2] - 1] if undeclared and not policy.bands else pixels


def _open_any(data: bytes, policy: DecodePolicy, name: str) -> tuple[Image.Image, str] | Pixels:
    """The header by Pillow; the pixels of a TIFF that Pillow does not know."""
    tags = tiff_tags(data)
    width, height, n_bands = tiff_shape(tags)
    if n_bands <= MOST_BANDS and not has_deep_planes(tags):
        try:
            image, kind = open_header(data, policy, name)
        except Exception:
            if width * height * n_bands == 0:
                raise
        else:
            if image.mode != "L" or not is_signed_8_bit(tags):
                return image, kind
            _check_size(image.size, policy)
            return np.asarray(image).view(np.int8).astype(np.int16)
    _check_size((width * max(1, n_bands // 4), height), policy)
    return read_tiff(data)


def _working_bytes(image: Image.Image, kind: str) -> int:
    """Bytes that an image takes while it is decoded and prepared, from its header."""
    per_pixel = BYTES_PER_PIXEL.get(image.mode, OTHER_BYTES_PER_PIXEL)
    if is_deep_colour(image):
        per_pixel = OTHER_BYTES_PER_PIXEL
    if kind == "JPEG" and image.mode in ("L", "RGB"):
        per_pixel = NATIVE_BYTES_PER_PIXEL
    if kind == "JPEG" and image.info.get("progressive"):
        per_pixel += COEFFICIENT_BYTES * len(image.getbands())
    return image.width * image.height * per_pixel


def _decode_jpeg(data: bytes, image: Image.Image, policy: DecodePolicy, warn: Warn) -> Pixels | None:
    """Pixels by the native decoder; None where Pillow must judge: scaled, CMYK, exotic or damaged files."""
    if policy.decode == "fast" and policy.min_side and min(image.size) >= 2 * policy.min_side:
        image.draft("RGB", (policy.min_side, policy.min_side))
        return None
    decode, remark = load_decoder(policy.decoder)
    if remark:
        warn(remark)
    if decode is None or image.mode not in ("RGB", "L"):
        return None
    width, height = image.size
    try:
        pixels = decode(data)
    except MemoryError:
        raise
    except Exception:
        image.load()  # raises where Pillow, too, finds the file unreadable
        warn(REMARK_DAMAGED)
        return None
    return pixels if pixels.shape == (height, width, 3) else None


def open_header(data: bytes, policy: DecodePolicy, name: str) -> tuple[Image.Image, str]:
    """Read the header, as `Image.open` does but without its size limit, which is a global."""
    _register_formats()
    if data[4:12] in HEIF_BRANDS:
        _register_heif()
    prefix = data[:16]
    refusal = ""
    for kind in FORMATS:
        factory, accept = Image.OPEN.get(kind, (None, None))
        if factory is None or accept is None or accept(prefix) in (False, None):
            continue
        if kind == "WEBP":
            width, height = _webp_size(data)  # its decoder allocates the image when it is opened
            _check_size((width, height), policy)
            with DECODING.take(width * height * OTHER_BYTES_PER_PIXEL):
                pass  # held until the caller's block ends
        try:
            return factory(io.BytesIO(data), ""), kind
        except MemoryError:
            raise
        except Exception as error:  # another format may yet take it
            refusal = f"a damaged or unsupported {kind} file: {reason_of(error)}"
    raise ValueError(refusal or _not_an_image(data, name))


@functools.cache
def _register_formats() -> None:
    """Import Pillow's plugins; a thread that comes second waits until all are there."""
    Image.init()


@functools.cache
def _register_heif() -> None:
    """Let Pillow open HEIC, where pillow-heif is installed; it is imported at the first such file."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()


def _not_an_image(data: bytes, name: str) -> str:
    if data[4:12] in HEIF_BRANDS:
        return "a HEIC or AVIF photo; `pip install 'featx[heif]'` reads it, or convert it to JPEG"
    return kind_in_words(data[:START_BYTES], name)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas (WebP container specification); (1, 1) where the header is damaged."""
    chunk = data[12:16]
    if chunk == b"VP8X" and len(data) >= 30:
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if chunk == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 " and len(data) >= 30:
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return 1, 1


def _check_size(size: tuple[int, int], policy: DecodePolicy) -> None:
    width, height = size
    if width * height > policy.max_pixels:
        raise ValueError(
            f"{width:,} x {height:,} pixels are more than max_pixels {policy.max_pixels:,}; "
            "shrink the image or raise the limit (--max-pixels)"
        )


def _check_scans(data: bytes, size: tuple[int, int]) -> None:
    limit = min(MAX_JPEG_SCANS, MAX_SCAN_PIXELS // max(1, size[0] * size[1]))
    pairs = [np.frombuffer(data, "<u2", (len(data) - start) // 2, start) for start in (0, 1)]
    scans = sum(int(np.count_nonzero(some == SCAN)) for some in pairs)  # 5 times as fast as `bytes.count`
    if scans > limit:  # a film behind the photo has the two bytes by chance, but seldom a zero next
        scans = data.count(b"\xff\xda\x00")
    if scans > limit:
        raise ValueError(
            f"a JPEG of {scans:,} scans (at most {MAX_JPEG_SCANS}, and at most {MAX_SCAN_PIXELS:,} scans x "
            f"pixels, which is {limit:,} scans for {size[0]:,} x {size[1]:,} pixels); save it again as a "
            "baseline JPEG"
        )


def _remark_extension(name: str, kind: str, warn: Warn) -> None:
    extension = os.path.splitext(name)[1].lower()
    claimed = next((each for each, known in EXTENSIONS.items() if extension in known), kind)
    if claimed != kind:
        warn(f"named {extension} but holds {kind}")
