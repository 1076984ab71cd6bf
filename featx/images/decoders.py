"""JPEG decoders that agree with Pillow, fastest first.

All of them are libjpeg-turbo underneath, with the same upsampling, DCT and colour conversion: on the
photos of the tests their pixels are Pillow's, bit for bit. They differ in speed and in what surrounds
them. Against Pillow on 200 photos of about 445 pixels, one thread: simplejpeg 1.6 times as fast,
TorchCodec and torchvision 1.4 (`benchmarks/decoders.py`, 2 cores of an AMD EPYC). simplejpeg needs no
torch and is the only one that reports damage instead of printing it; torchvision's is deprecated since
0.29. All release the GIL. What a native decoder refuses is given to Pillow, whose verdict counts.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featx.exceptions import UsageError

Decode: TypeAlias = Callable[[bytes], NDArray[np.uint8]]

AGREEMENT = 0.5
"""Most that a decoder may differ from Pillow, in levels of 255 (a fast DCT: 1; plain upsampling: 7)."""

START_OF_SCAN, APP1 = 0xDA, 0xE1  # JPEG markers (ITU T.81, table B.1)


@dataclass(frozen=True)
class Decoder:
    """One way to decode a JPEG.

    Parameters
    ----------
    module : str
        What must be installed.
    minimum : tuple of int
        Its oldest version (major, minor) that has the function.
    load : callable
        Import it and return the function from bytes to (H, W, 3) uint8, not turned by EXIF.
    """

    module: str
    minimum: tuple[int, int]
    load: Callable[[], Decode | None]


def resolve_decoder(name: str = "auto") -> str:
    """Name of the decoder to use; ``auto`` is the first of `DECODERS` that is installed.

    Nothing is imported: a warm run knows its decoder without loading torch.

    Raises
    ------
    UsageError
        For a name that is not in the table, or not installed.
    """
    if name == "auto":
        return next(each for each in DECODERS if _is_installed(each))
    if name not in DECODERS:
        raise UsageError(f"decoder {name!r} is not known; choose auto or one of {', '.join(DECODERS)}.")
    if not _is_installed(name):
        wanted = ".".join(map(str, DECODERS[name].minimum))
        raise UsageError(
            f"decoder {name!r} is not installed; `pip install '{DECODERS[name].module}>={wanted}'`, "
            f"or choose auto or one of {', '.join(each for each in DECODERS if _is_installed(each))}."
        )
    return name


@functools.cache
def load_decoder(name: str) -> tuple[Decode | None, str]:
    """The native function, or None and a remark that says why Pillow decodes instead.

    A decoder is used only if it agrees here and now: a build on another JPEG library may upsample or
    convert colours in its own way.
    """
    try:
        decode = DECODERS[name].load()
        if decode is None:
            return None, ""
        difference = _difference_from_pillow(decode)
        if difference <= AGREEMENT:
            return decode, ""
        reason = f"differs from Pillow by {difference:.1f} of 255"
    except Exception as error:  # a broken binary raises anything
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return None, f"decoder {name} is not usable here ({reason}); Pillow decodes instead"


def _difference_from_pillow(decode: Decode) -> float:
    """Mean absolute difference on a steep colour gradient, halved in colour resolution."""
    y, x = np.mgrid[:96, :128]
    steep = np.stack([7 * x + 3 * y, 2 * x + 11 * y, 5 * x], axis=-1) % 256
    buffer = io.BytesIO()
    Image.fromarray(steep.astype(np.uint8)).save(buffer, "JPEG", quality=90, subsampling="4:2:0")
    with Image.open(buffer) as image:
        expected = np.asarray(image.convert("RGB"), dtype=np.float32)
    return float(np.abs(decode(buffer.getvalue()) - expected).mean())


@functools.cache
def _is_installed(name: str) -> bool:
    decoder = DECODERS[name]
    if importlib.util.find_spec(decoder.module) is None:
        return False
    try:
        version = importlib.metadata.version(decoder.module)
        major, minor = version.split(".")[:2]
        return (int(major), int(minor)) >= decoder.minimum
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return True  # no metadata (a source tree): the import will tell


def _load_simplejpeg() -> Decode:
    import simplejpeg

    def decode(data: bytes) -> NDArray[np.uint8]:
        return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB"))

    return decode


def _load_torchcodec() -> Decode:
    import torch
    from torchcodec.decoders import decode_jpeg

    def decode(data: bytes) -> NDArray[np.uint8]:
        encoded = torch.frombuffer(_without_exif(data), dtype=torch.uint8)
        return _channels_last(decode_jpeg(encoded, mode="RGB"))

    return decode


def _without_exif(data: bytes) -> bytearray:
    """A copy without APP1 segments: TorchCodec turns by EXIF and has no option against it.

    Raises
    ------
    ValueError
        If the header is not a row of segments; Pillow then decides.
    """
    kept, position = bytearray(data[:2]), 2
    while data[position] == 0xFF and data[position + 1] != START_OF_SCAN:
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if data[position + 1] != APP1:
            kept += data[position:end]
        position = end
    if data[position] != 0xFF:
        raise ValueError("no JPEG marker where one is due")
    return kept + data[position:]


def _load_torchvision() -> Decode:
    import torch
    from torchvision.io import ImageReadMode  # importing it registers the operator

    operator = torch.ops.image.decode_jpeg  # torchvision.io.decode_jpeg warns of its deprecation

    def decode(data: bytes) -> NDArray[np.uint8]:
        encoded = torch.frombuffer(bytearray(data), dtype=torch.uint8)  # a copy: torch wants it writable
        return _channels_last(operator(encoded, ImageReadMode.RGB.value, False))

    return decode


def _channels_last(tensor: Any) -> NDArray[np.uint8]:
    return np.ascontiguousarray(tensor.permute(1, 2, 0).numpy())


DECODERS: dict[str, Decoder] = {
    "simplejpeg": Decoder("simplejpeg", (1, 8), _load_simplejpeg),
    "torchcodec": Decoder("torchcodec", (0, 16), _load_torchcodec),
    "torchvision": Decoder("torchvision", (0, 21), _load_torchvision),
    "pillow": Decoder("PIL", (11, 0), lambda: None),
}
