"""``featx show augment``: some pictures beside their views, as the network would see them."""

from __future__ import annotations

import argparse
import io
from typing import TYPE_CHECKING, Any

from featx.cli import arguments
from featx.cli.console import Console

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

GAP = 4
"""Pixels between pictures."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the one thing that is shown so far."""
    shown = parser.add_subparsers(metavar="WHAT", required=True)
    augment = shown.add_parser(
        "augment",
        help="pictures beside their augmented views",
        description="Pictures (left) beside their augmented views, as the network would see them.",
    )
    augment.set_defaults(run=_augment)
    augment.add_argument("data", nargs="+", help="images, folders or a manifest")
    augment.add_argument(
        "-o", "--output", default="augment.png", metavar="FILE", help="PNG to write (default augment.png)"
    )
    augment.add_argument(
        "--policy",
        default="photo",
        metavar="NAME",
        help="none, light, photo, document, medical, or such as flip=0.5,rotate=10 (default photo)",
    )
    augment.add_argument("--views", type=int, default=6, metavar="K", help="views of each (default 6)")
    augment.add_argument(
        "--images", type=int, default=4, metavar="N", help="pictures, spread over the set (default 4)"
    )
    augment.add_argument("--resize", default="crop", choices=["crop", "squash", "pad"])
    augment.add_argument("--backbone", default="tf_efficientnet_lite0.in1k", metavar="NAME")
    augment.add_argument("--random-weights", action="store_true", help="no pretrained weights are needed")
    augment.add_argument("--follow-links", action="store_true")
    arguments.add_cache(augment)


def _augment(args: argparse.Namespace, console: Console) -> int:
    """Draw the grid."""
    arguments.check_writable(args.output)
    if args.views < 1 or args.images < 1:
        from featx.exceptions import UsageError

        raise UsageError(f"--views {args.views} and --images {args.images} must be 1 or more.")
    import numpy as np
    from PIL import Image

    from featx.backbones import open_card
    from featx.backbones.transform import prepare
    from featx.backbones.views import name_policy
    from featx.exceptions import DataError, ImageError
    from featx.files import atomic_write
    from featx.images import DecodePolicy, decode_picture, load_paths, read_picture, resolve_decoder
    from featx.stores import open_store

    policy = name_policy(args.policy)
    images = load_paths(args.data, follow_links=args.follow_links, labelled=False)
    card = open_card(
        args.backbone, pretrained=not args.random_weights, store=open_store(arguments.store_of(args))
    )
    recipe = {"resize": args.resize, "decoder": resolve_decoder()}
    specs = [card.spec(**recipe)]
    specs += [card.spec(**recipe, view=k, view_policy=policy) for k in range(1, args.views + 1)]
    chosen = np.unique(np.linspace(0, len(images) - 1, min(args.images, len(images))).round().astype(int))
    rows: list[list[NDArray[np.uint8]]] = []
    names = []
    for index in chosen:
        try:
            picture = read_picture(images.sources[index], name=images.names[index])
            pixels = decode_picture(picture, DecodePolicy())
        except ImageError as error:
            console.warn(str(error))
            continue
        rows.append([prepare(pixels, spec, digest=picture.digest) for spec in specs])
        names.append(images.names[index])
    if not rows:
        raise DataError("none of the pictures could be read; name others.")
    buffer = io.BytesIO()
    Image.fromarray(_grid(rows)).save(buffer, "PNG")
    atomic_write(args.output, buffer.getvalue())
    shown = f"{len(rows)} picture{'' if len(rows) == 1 else 's'} (left)"
    console.text(f"{shown} and {args.views} views of each under {policy!r}: {args.output}")
    console.data(output=args.output, policy=policy, views=args.views, pictures=names)
    return 0


def _grid(rows: list[list[NDArray[np.uint8]]]) -> Any:
    """Pictures of one size in rows and columns, on white."""
    import numpy as np

    height, width = rows[0][0].shape[:2]
    canvas = np.full(
        (len(rows) * (height + GAP) - GAP, len(rows[0]) * (width + GAP) - GAP, 3), 255, dtype=np.uint8
    )
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = i * (height + GAP), j * (width + GAP)
            canvas[top : top + height, left : left + width] = picture
    return canvas
