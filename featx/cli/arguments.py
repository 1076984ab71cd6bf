"""Options that several verbs share, each spelt once."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from featx.exceptions import UsageError

EXTRACTOR_OPTIONS = (
    "input_size", "checkpoint", "runtime", "precision", "dtype", "batch_size", "decode", "background",
    "bit_depth", "max_pixels", "isolate",
)  # fmt: skip
"""Options that are parameters of `FeatureExtractor` of the same name, and no parameters of the classifier."""


def add_cache(parser: argparse.ArgumentParser) -> None:
    """``--cache-dir`` and ``--no-cache``."""
    group = parser.add_argument_group("cache")
    group.add_argument("--cache-dir", metavar="DIR", help="folder of cached rows (default: FEATX_CACHE)")
    group.add_argument("--no-cache", action="store_true", help="keep no rows on disk")


def add_backbone(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """What network turns pictures into rows, and how; `several` lets candidates compete."""
    group = parser.add_argument_group("backbone")
    default = "tf_efficientnet_lite0.in1k"
    if several:
        group.add_argument(
            "--backbone",
            default=default,
            metavar="NAME[,NAME...]|auto",
            help="timm model (see `featx models`) or a fine-tuned .featx file; of several, or of all that "
            "are here (auto), the best on at most 500 training images is taken, or the best two side by side",
        )
        group.add_argument(
            "--backbone-budget",
            type=number(0, 1e9),
            default=600.0,
            metavar="S",
            help="seconds for the choice between several (default 600)",
        )
    else:
        group.add_argument(
            "--backbone",
            default=default,
            metavar="NAME",
            help="timm model (see `featx models`), or a fine-tuned .featx file",
        )
    group.add_argument(
        "--checkpoint", metavar="PATH", help="load these weights instead of the pretrained ones"
    )
    group.add_argument("--random-weights", action="store_true", help="no pretrained weights: a baseline")
    group.add_argument(
        "--pool", metavar="P[,P...]", help="avg, max, gem, avg+max, cls, cls+avg, grid2, grid4"
    )
    group.add_argument("--resize", metavar="R[,R...]", help="crop (as trained), squash or pad")
    group.add_argument("--input-size", type=_size, metavar="N|HxW", help="pixels fed to the network")
    add_compute(parser)


def add_compute(parser: argparse.ArgumentParser) -> None:
    """Where and how pictures are computed: nothing that changes a row beyond the stated tolerance."""
    group = parser.add_argument_group("compute")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, mps or xpu")
    group.add_argument("--runtime", default="auto", help="auto, torch or openvino")
    group.add_argument("--batch-size", type=_auto_or_int, default="auto", metavar="N|auto")


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Fields of the recipe that trade accuracy for speed."""
    group = parser.add_argument_group("precision")
    group.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    group.add_argument(
        "--decode", default="exact", choices=["exact", "fast"], help="fast: let JPEG decoders scale down"
    )
    group.add_argument(
        "--max-pixels",
        type=_positive,
        default=178_956_970,
        metavar="N",
        help="refuse larger pictures (default %(default)s)",
    )
    group.add_argument(
        "--bit-depth", default="full", choices=["full", "minmax"], help="how 16-bit pictures are scaled"
    )
    group.add_argument(
        "--background",
        type=_color,
        default=(255, 255, 255),
        metavar="R,G,B",
        help="behind transparent pixels",
    )
    group.add_argument(
        "--isolate", action="store_true", help="decode in a subprocess, for files that crash decoders"
    )


def extractor(args: argparse.Namespace, **given: Any) -> Any:
    """Return the `FeatureExtractor` that the options of a verb describe.

    Parameters
    ----------
    args : argparse.Namespace
        Parsed options; a verb need not have all of them.
    **given
        Parameters that the verb sets itself.
    """
    from featx.extractor import FeatureExtractor

    options = vars(args)
    params = {name: options[name] for name in EXTRACTOR_OPTIONS if name in options}
    if "random_weights" in options:
        params["pretrained"] = not args.random_weights
    if options.get("views"):
        params |= {"view": range(args.views + 1), "view_policy": args.view_policy}
    return FeatureExtractor(**{**params, **given})


def add_skipping(parser: argparse.ArgumentParser) -> None:
    """What happens to pictures that cannot be read."""
    group = parser.add_argument_group("unreadable pictures")
    group.add_argument("--strict", action="store_true", help="stop at the first picture that cannot be read")
    group.add_argument(
        "--max-bad", type=_percent, default=0.05, metavar="FRACTION", help="stop above this (default 0.05)"
    )
    group.add_argument("--follow-links", action="store_true", help="follow symbolic links out of the folder")


def store_of(args: argparse.Namespace) -> Any:
    """The ``store`` parameter that the cache options ask for."""
    if args.no_cache and args.cache_dir:
        raise UsageError("--no-cache and --cache-dir exclude each other; give one of them.")
    return "memory" if args.no_cache else args.cache_dir


def listed(text: str | None) -> list[str] | None:
    """Split ``"a,b"``; None stays None."""
    if text is None:
        return None
    return [part.strip() for part in text.split(",") if part.strip()]


def one_or_list(text: str | None, default: str) -> str | list[str]:
    """A single name stays a string: one representation, nothing to choose."""
    parts = listed(text) or [default]
    return parts[0] if len(parts) == 1 else parts


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuse an output path before the work, not after it."""
    if not os.path.basename(path):
        raise UsageError(f"{str(path)!r} names no file; give the name of a file to write.")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise UsageError(f"{path}: the folder {folder} does not exist; make it, or choose another output.")
    if os.path.isdir(path):
        raise UsageError(f"{path} is a folder; give the name of a file to write.")
    if not os.access(folder, os.W_OK):
        raise UsageError(f"{path}: the folder {folder} cannot be written; choose another output.")


def whole(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """Argument type: a whole number from `low` to `high`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return number

    return read


def number(low: float, high: float) -> Callable[[str], float]:
    """Argument type: a number from `low` to `high`."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
        return value

    return read


def _size(text: str) -> int | tuple[int, int]:
    sides = [_positive(side) for side in text.lower().split("x")]
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"{text!r}: write one side (224) or height and width (224x320)")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


def _auto_or_int(text: str) -> int | str:
    return text if text == "auto" else _positive(text)


def _percent(text: str) -> float:
    try:
        fraction = float(text.rstrip("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        fraction = -1.0
    if not 0 <= fraction <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a fraction (0.05) nor a percentage (5%)")
    return fraction


def _color(text: str) -> tuple[int, ...]:
    try:
        channels = tuple(int(part) for part in text.split(","))
    except ValueError:
        channels = ()
    if len(channels) != 3 or not all(0 <= channel <= 255 for channel in channels):
        raise argparse.ArgumentTypeError(
            f"{text!r}: write red, green and blue from 0 to 255, e.g. 255,255,255"
        )
    return channels
