"""What the network sees: class evidence, maps of layers, and augmented views of some images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featx import plot
from featx.backbones.transform import prepare
from featx.classifier.evidence import Evidence, evidence, layer_maps
from featx.classifier.predictions import Predictions
from featx.classifier.settings import machine_of
from featx.exceptions import UsageError
from featx.images import DecodePolicy, decode_picture, decode_to_see, read_picture
from featx.images.policy import MAX_PIXELS
from featx.plot import Display
from featx.plot.base import BLUE, ORANGE, UNDER_IMAGE, short
from featx.reporting.sections import Known

SIDE = 160
"""Longest side of an image of a sheet in pixels."""

EXPLAINED, COVERED = 6, 2
"""Images whose evidence is drawn, and of them where parts of images must be covered."""

CHANNELS = 6
"""Channels of a layer that are drawn: those that vary most over the image."""

VIEWED, VIEWS = 3, 5
"""Images that are drawn beside augmented views, and views of each."""


def heat(known: Known) -> Display:
    """Draw images beside what in them speaks for the answer and against the next class."""
    predictions = with_images(known)
    chosen = _examples(predictions, EXPLAINED)
    sources = [predictions.images.sources[i] for i in chosen]
    found = evidence(known.clf.model_, sources, machine_of(known.clf), most_covered=COVERED)
    if not found:
        raise UsageError("evidence needs at least one image.")
    cells = []
    for index, one in zip(chosen, found, strict=False):
        answer, other = (short(predictions.classes[code], UNDER_IMAGE) for code in (one.answer, one.other))
        label = label_of(predictions, index)
        truth = f"is {label}" if label else ""
        cells.append([(small(one.image), truth), (_overlaid(one), f"orange: {answer}\nblue: {other}")])
    rows = [[cell for pair in cells[at : at + 2] for cell in pair] for at in range(0, len(cells), 2)]
    how = "exact" if found[0].exact else "by covering parts"
    return plot.sheet(rows, title=f"What speaks for each answer ({how})")


def features(known: Known) -> Display:
    """Draw the maps of an image at each layer of the network."""
    predictions = with_images(known)
    index = _examples(predictions, 1)[0]
    source = predictions.images.sources[index]
    maps = layer_maps(known.clf.model_, source, machine_of(known.clf))
    if not maps:
        raise UsageError("the layers of this network have no maps to draw.")
    rows = [[(pixels_of(predictions, index), label_of(predictions, index))]]
    for tap, found in maps:
        varied = np.argsort(-found.std(axis=(1, 2)), kind="stable")[:CHANNELS]
        size = "×".join(map(str, found.shape))
        captions = [f"{tap.name}, {size}", *[""] * (CHANNELS - 1)]
        rows.append([(_grey(found[c]), text) for c, text in zip(varied, captions, strict=False)])
    return plot.sheet(rows, title="Channels of each layer that vary most over the image", loose=False)


def augmented(known: Known) -> Display:
    """Draw images beside augmented views of them, as the fit made them."""
    predictions = with_images(known)
    model, extractor = known.clf.model_, known.clf.extractor
    policy = model.augmentation.policy if model.augmentation.views else extractor.view_policy
    if policy == "none":
        raise UsageError("the fit made no augmented views (--views); `featx show augment` draws some.")
    spec = model.specs[model.blocks[0]].replace(view=0, view_policy="none")
    rows = []
    for index in _examples(predictions, VIEWED):
        picture = read_picture(predictions.images.sources[index])
        pixels = decode_picture(picture, DecodePolicy.of(spec, MAX_PIXELS))
        specs = [spec, *(spec.replace(view=k, view_policy=policy) for k in range(1, VIEWS + 1))]
        views = [small(prepare(pixels, one, digest=picture.digest)) for one in specs]
        captions = [label_of(predictions, index), *(f"view {k}" for k in range(1, VIEWS + 1))]
        rows.append(list(zip(views, captions, strict=True)))
    return plot.sheet(rows, title=f"Augmented views ({policy})")


def with_images(known: Known) -> Predictions:
    """Return the predictions; raises UsageError if the report is made without images."""
    if known.predictions is None:
        raise UsageError("this figure needs images: give those of the fit, or new labelled images.")
    return known.predictions


def label_of(predictions: Predictions, index: int) -> str:
    """Label of an image, to stand under it."""
    labels = predictions.images.labels
    return "" if labels is None else short(labels[index], UNDER_IMAGE)


def pixels_of(predictions: Predictions, index: int) -> NDArray[np.uint8]:
    """An image at the size of a sheet."""
    policy = DecodePolicy(decode="fast", min_side=SIDE)
    return small(decode_to_see(read_picture(predictions.images.sources[index]), policy))


def small(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels at the size of a sheet."""
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    return np.asarray(image)


def _examples(predictions: Predictions, most: int) -> list[int]:
    """Positions of some images: at most half are mistakes; the others are of all classes."""
    n = len(predictions.images)
    if not n:
        raise UsageError("this figure needs at least one image.")
    held_out = predictions.parts != "train"
    wrong = np.flatnonzero(predictions.wrong)
    wrong = wrong[np.argsort(~held_out[wrong], kind="stable")][: most // 2]
    rest = np.setdiff1d(np.flatnonzero(held_out) if held_out.any() else np.arange(n), wrong)
    order = rest[np.argsort(predictions.truth[rest], kind="stable")]
    spread = order[np.linspace(0, len(order) - 1, min(most - len(wrong), len(order))).round().astype(int)]
    return [*wrong.tolist(), *dict.fromkeys(spread.tolist())]


def _overlaid(one: Evidence) -> NDArray[np.uint8]:
    """A grey image under its evidence: orange speaks for the answer, blue against it."""
    grey = np.asarray(Image.fromarray(small(one.image)).convert("L"), np.float32)[..., None] * np.ones(3)
    size = grey.shape[1], grey.shape[0]
    map_ = np.asarray(Image.fromarray(one.heat).resize(size, Image.Resampling.BICUBIC))[..., None]
    strength = np.abs(map_) / max(float(np.abs(map_).max()), 1e-9)
    colors = [np.array([int(name[at : at + 2], 16) for at in (1, 3, 5)]) for name in (ORANGE, BLUE)]
    mixed = (1 - 0.75 * strength) * grey + 0.75 * strength * np.where(map_ > 0, *colors)
    return np.asarray(mixed.clip(0, 255), np.uint8)


def _grey(channel: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A channel as a grey image, from its lowest to its highest value."""
    low, high = float(channel.min()), float(channel.max())
    values = np.asarray(255 * (channel - low) / max(high - low, 1e-9), np.uint8)
    times = max(1, -(-56 // max(values.shape)))
    return np.repeat(np.repeat(values, times, axis=0), times, axis=1)[..., None] * np.ones(3, np.uint8)
