"""Mutated pictures: whatever the bytes, the outcome is pixels or an ImageError, soon and within bounds.

The inputs run in a process of their own, so that a crash of a decoder is seen, memory is measured from a
clean start, and an input that hangs ends the process with the place where it hung. The input in flight
lies in a file, which a failure names.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import resource
import shutil
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from featx.exceptions import ImageError
from featx.images import DecodePolicy, decode_picture, read_picture

DATA = Path(os.environ.get("FEATX_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
MAX_PIXELS = 1 << 20
SLOWEST = 20.0  # seconds for one input, on a busy machine; usual is a millisecond
MORE_MEMORY = 200 << 20  # bytes; a picture of MAX_PIXELS takes 3 to 50 MB in the making, the fuzzer its share
ROUND = 1000  # inputs a round: a fresh generator each time, so that its own memory does not add up


@pytest.mark.parametrize(
    "inputs", [1000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_mutated_pictures_are_decoded_or_refused(
    inputs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, __file__, str(inputs), str(tmp_path / "in_flight")]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        culprit = Path(shutil.copy(tmp_path / "in_flight", Path.cwd() / ".fuzz-culprit"))
        pytest.fail(
            f"exit {done.returncode} at the input in {culprit}:\n{done.stdout}\n{done.stderr[-3000:]}"
        )
    assert f"{inputs:,} inputs" in done.stdout
    with capsys.disabled():
        print("\n" + done.stdout.strip())


# The process of its own


def make_seeds(data: Path) -> dict[str, bytes]:
    """Small real pictures in every format that is read, by name."""
    photos = sorted((data / "catdog").rglob("*.jpg"))[::500] if data.is_dir() else []
    seeds = {}
    for number in range(2):
        photo = Image.open(photos[number]) if photos else Image.effect_noise((300, 200), 60)
        small = photo.convert("RGB").resize((72, 54))
        exif = Image.Exif()
        exif[0x0112] = 6
        for name, image, kind, options in (
            ("jpeg", small, "JPEG", {"exif": exif}),
            ("progressive", small, "JPEG", {"progressive": True, "subsampling": "4:2:0"}),
            ("cmyk", small.convert("CMYK"), "JPEG", {}),
            ("png", small, "PNG", {"exif": exif}),
            ("png1", small.convert("1"), "PNG", {}),
            ("pngp", small.quantize(16), "PNG", {"transparency": 3}),
            ("apng", small, "PNG", {"save_all": True, "append_images": [small.rotate(90)]}),
            ("gif", small.quantize(32), "GIF", {"save_all": True, "append_images": [small.rotate(180)]}),
            ("webp", small, "WEBP", {}),
            ("webpl", small.convert("RGBA"), "WEBP", {"lossless": True, "exif": exif}),
            ("tiff", small, "TIFF", {}),
            ("tiffz", small, "TIFF", {"compression": "tiff_deflate"}),
            ("tiffl", small, "TIFF", {"compression": "tiff_lzw", "exif": exif}),
            ("tiffj", small, "TIFF", {"compression": "jpeg"}),
            ("tiff16", small.convert("I;16"), "TIFF", {}),
            ("tiffg4", small.convert("1"), "TIFF", {"compression": "group4"}),
            ("bmp", small, "BMP", {}),
            ("bmpp", small.quantize(16), "BMP", {}),
            ("ppm", small, "PPM", {}),
            ("jp2", small, "JPEG2000", {}),
            ("avif", small, "AVIF", {}),
        ):
            buffer = io.BytesIO()
            with contextlib.suppress(KeyError, OSError):  # a Pillow built without that codec
                image.save(buffer, kind, **options)
                seeds[f"{name}{number}"] = buffer.getvalue()
    for number, drawing in enumerate(sorted((data / "omniglot_small1").rglob("*.png"))[::1500]):
        seeds[f"omniglot{number}"] = drawing.read_bytes()
    return seeds


place = st.integers(0, 120) | st.integers(0, 1 << 20)  # headers deserve as much as bodies
mutation = st.one_of(
    st.tuples(st.just("set"), place, st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("flip"), place, st.integers(0, 7)),
    st.tuples(
        st.just("number"),
        place,
        st.sampled_from([0, 1, 0xFF, 0x4000, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]),
        st.sampled_from([1, 2, 4]),
        st.sampled_from(["big", "little"]),
    ),
    st.tuples(st.just("truncate"), place),
    st.tuples(st.just("delete"), place, st.integers(1, 64)),
    st.tuples(st.just("insert"), place, st.binary(max_size=16)),
    st.tuples(st.just("repeat"), place, st.integers(1, 200), st.integers(2, 400)),
    st.tuples(st.just("splice"), place, st.integers(0, 1000)),
)


def mutate(data: bytes, change: tuple, others: list[bytes]) -> bytes:  # type: ignore[type-arg]
    kind, at, *rest = change
    at %= max(1, len(data))
    match kind:
        case "set":
            return data[:at] + rest[0] + data[at + len(rest[0]) :]
        case "flip":
            return data[:at] + bytes([data[at] ^ 1 << rest[0]]) + data[at + 1 :] if data else data
        case "number":
            number, width, order = rest
            written = (number & (1 << 8 * width) - 1).to_bytes(width, order)
            return data[:at] + written + data[at + width :]
        case "truncate":
            return data[:at]
        case "delete":
            return data[:at] + data[at + rest[0] :]
        case "insert":
            return data[:at] + rest[0] + data[at:]
        case "repeat":
            return data[:at] + data[at : at + rest[0]] * rest[1] + data[at + rest[0] :]
        case _:
            other = others[rest[0] % len(others)]
            return data[:at] + other[at % len(other) :]


def outcome(data: bytes, policy: DecodePolicy) -> tuple[str, bytes]:
    """What became of an input: its pixels, or the kind of refusal."""
    try:
        pixels = decode_picture(read_picture(data), policy)
    except ImageError:
        return "refused", b""
    height, width, channels = pixels.shape
    assert (str(pixels.dtype), channels) == ("uint8", 3)
    assert width * height <= policy.max_pixels
    return "decoded", pixels.tobytes() + bytes([height % 256, width % 256])


def fuzz(inputs: int, in_flight: Path, seeds: dict[str, bytes]) -> str:
    names, files = list(seeds), list(seeds.values())
    exact, judge = DecodePolicy(max_pixels=MAX_PIXELS), DecodePolicy(max_pixels=MAX_PIXELS, decoder="pillow")
    fast = DecodePolicy(max_pixels=MAX_PIXELS, decode="fast", min_side=20)
    counts: Counter[str] = Counter()
    slowest = 0.0
    for name, data in seeds.items():
        assert outcome(data, exact)[0] == "decoded", name
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def try_one(number: int, changes: list[tuple]) -> None:  # type: ignore[type-arg]
        nonlocal slowest
        name = names[number % len(names)]
        data = seeds[name]
        for change in changes:
            data = mutate(data, change, files)
        in_flight.write_bytes(data)
        faulthandler.dump_traceback_later(SLOWEST, exit=True)
        start = time.monotonic()
        verdict, pixels = outcome(data, exact)
        if data[:2] == b"\xff\xd8":  # a native decoder may never say otherwise than Pillow
            assert outcome(data, judge) == (verdict, pixels), name
            outcome(data, fast)
        slowest = max(slowest, time.monotonic() - start)
        faulthandler.cancel_dump_traceback_later()
        counts[verdict] += 1

    for round_number in range(-(-inputs // ROUND)):
        rest = min(ROUND, inputs - sum(counts.values()))
        strategy = given(st.integers(0, 1 << 16), st.lists(mutation, min_size=1, max_size=4))
        seed(round_number)(
            settings(
                max_examples=rest,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )(strategy(try_one))
        )()
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert more <= MORE_MEMORY, f"{more:,} bytes more than at the start"
    return (
        f"fuzz of image bytes: {sum(counts.values()):,} inputs, {counts['decoded']:,} decoded, "
        f"{counts['refused']:,} refused; slowest {slowest:.2f} s, {more >> 20} MB more memory, "
        f"decoder {exact.decoder}"
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    faulthandler.enable()
    print(fuzz(int(sys.argv[1]), Path(sys.argv[2]), make_seeds(DATA)))
