"""``featx show``: draw the results of a model, or some images beside their augmented views."""

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
"""Pixels between images."""

FIGURES = {
    "confusion": "the confusion matrix",
    "classes": "recall and precision of each class",
    "calibration": "how often answers are right, by their probability",
    "coverage": "accuracy by share of images answered",
    "roc": "the ROC curve of two classes",
    "precision": "precision against recall of two classes",
    "balance": "the number of images of each class",
    "layers": "the best score with each layer alone",
    "history": "the scores of the search",
    "map": "a map of images by their features",
    "mistakes": "the mistakes",
    "neighbours": "some images with the nearest ones",
    "heat": "what in some images speaks for the answer",
    "features": "the maps of an image at each layer",
    "views": "some images beside the augmented views of the fit",
    "learning": "accuracy by number of training images",
    "training": "loss, accuracy and learning rate of fine-tuning",
}
"""Figures of results, as in `featx.reporting.drawing`, which is slow to import."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions of the verb and their options."""
    shown = parser.add_subparsers(metavar="WHAT", required=True)
    for name, summary in FIGURES.items():
        figure = shown.add_parser(name, help=f"draw {summary}", description=f"Draw {summary}.")
        figure.set_defaults(run=_figure, figure=name)
        arguments.add_model(figure)
        arguments.add_manifest(figure)
        figure.add_argument("data", nargs="?", help="images of the fit, or new labelled images")
        if name == "map":
            arguments.add_embedding(figure)
        output = f"{name}.png"
        figure.add_argument(
            "-o", "--output", default=output, metavar="FILE", help=f"PNG file to write (default {output})"
        )
    augment = shown.add_parser(
        "augment",
        help="draw images beside their augmented views",
        description="Draw images (left) beside their augmented views, as the network gets them.",
    )
    augment.set_defaults(run=_augment)
    augment.add_argument("data", nargs="+", help="images, folders or a manifest")
    augment.add_argument(
        "-o",
        "--output",
        default="augment.png",
        metavar="FILE",
        help="PNG file to write (default %(default)s)",
    )
    augment.add_argument(
        "--policy",
        default="photo",
        metavar="NAME",
        help="none, light, photo, document, medical, or values such as flip=0.5,rotate=10 (default photo)",
    )
    augment.add_argument(
        "--views", type=arguments.whole(1), default=6, metavar="K", help="views of each image (default 6)"
    )
    augment.add_argument(
        "--images", type=arguments.whole(1), default=4, metavar="N", help="images to draw (default 4)"
    )
    augment.add_argument("--resize", default="crop", choices=["crop", "squash", "pad"])
    augment.add_argument(
        "--backbone",
        default=arguments.DEFAULT_BACKBONE,
        metavar="NAME",
        help="timm model, for its input size",
    )
    arguments.add_weights(augment)
    augment.add_argument(
        "--follow-links", action="store_true", help="follow symbolic links out of the folder"
    )
    arguments.add_cache(augment)


def _figure(args: argparse.Namespace, console: Console) -> int:
    """Draw a figure of a model's results."""
    arguments.check_writable(args.output, arguments.FIGURE_ENDINGS)
    from featx.cli import render
    from featx.reporting import report
    from featx.reporting.drawing import draw

    clf = arguments.load_classifier(args, console.progress)
    data = None if args.data is None else arguments.load(args, args.data)
    made = report(clf, None, data, embedding=getattr(args, "map", "tsne"))
    render.figure(console, args.output, draw(made.known, made.sections, args.figure).to_png())
    console.data(output=args.output)
    return 0


def _augment(args: argparse.Namespace, console: Console) -> int:
    """Draw the images and their views in a grid."""
    arguments.check_writable(args.output, arguments.FIGURE_ENDINGS)
    import numpy as np
    from PIL import Image

    from featx.backbones import open_card
    from featx.backbones.transform import prepare
    from featx.backbones.views import name_policy
    from featx.exceptions import DataError, ImageError
    from featx.files import atomic_write
    from featx.images import (
        DecodePolicy,
        choose_range,
        decode_picture,
        load_paths,
        read_picture,
        resolve_decoder,
    )
    from featx.stores import open_store

    policy = name_policy(args.policy)
    images = load_paths(args.data, follow_links=args.follow_links, labelled=False)
    store = open_store(arguments.store_of(args))
    card = open_card(
        args.backbone,
        checkpoint=args.checkpoint,
        pretrained=not args.random_weights,
        allow_download=args.allow_download,
        store=store,
    )
    decoding = DecodePolicy(pixel_range=choose_range(images.sources, DecodePolicy()))
    fields = {"resize": args.resize, "decoder": resolve_decoder()}
    specs = [card.spec(**fields)]
    specs += [card.spec(**fields, view=k, view_policy=policy) for k in range(1, args.views + 1)]
    chosen = np.unique(np.linspace(0, len(images) - 1, min(args.images, len(images))).round().astype(int))
    rows: list[list[NDArray[np.uint8]]] = []
    names = []
    for index in chosen:
        try:
            picture = read_picture(images.sources[index], name=images.names[index])
            pixels = decode_picture(picture, decoding)
        except ImageError as error:
            console.warn(str(error))
            continue
        rows.append([prepare(pixels, spec, digest=picture.digest) for spec in specs])
        names.append(images.names[index])
    if not rows:
        raise DataError("none of the images can be read; give others.")
    buffer = io.BytesIO()
    Image.fromarray(_grid(rows)).save(buffer, "PNG")
    atomic_write(args.output, buffer.getvalue())
    shown = f"{len(rows)} image{'' if len(rows) == 1 else 's'} (left)"
    console.text(f"{shown} and {args.views} views of each under {policy!r}: {args.output}")
    console.data(output=args.output, policy=policy, views=args.views, images=names)
    return 0


def _grid(rows: list[list[NDArray[np.uint8]]]) -> Any:
    """Put images of one size in rows and columns, on white."""
    import numpy as np

    height, width = rows[0][0].shape[:2]
    canvas = np.full(
        (len(rows) * (height + GAP) - GAP, len(rows[0]) * (width + GAP) - GAP, 3), 255, dtype=np.uint8
    )
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (height + GAP), j * (width + GAP)
            canvas[top : top + height, left : left + width] = image
    return canvas
