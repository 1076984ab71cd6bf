"""What in an image speaks for an answer, and what the layers of a network make of an image.

Where the head is linear and the features are averages of maps, the score is a sum over the places of the
map (class activation maps; Zhou et al., CVPR 2016), so that the evidence is exact. Otherwise parts of the
image are covered, and the loss of the score is measured (Zeiler & Fergus, ECCV 2014).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featx.backbones.card import GRIDS, BackboneCard, Tap
from featx.backbones.transform import prepare
from featx.classifier.model import ImageModel
from featx.heads.scaling import block_weight, scaler_to_arrays
from featx.images import DecodePolicy, ImageSource, decode_picture, read_picture
from featx.images.policy import MAX_PIXELS
from featx.selection.networks import Networks, gather, is_of
from featx.spec import FeatureSpec
from featx.stores.memory import MemoryStore

Floats = NDArray[np.float32]

SIDE = 32
"""Cells of a map of evidence along each side."""

WINDOWS, COVERED = 7, 0.25
"""Places along each side at which a window is covered, and its side as a share of the image's."""

CHUNK = 256
"""Rows that the head is measured on at once."""

TOLERANCE = 0.02
"""Largest difference between a score and its linear form, as a share of the spread of scores."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What in an image speaks for its answer.

    Parameters
    ----------
    image : array of shape (h, w, 3), uint8
        The image as the network gets it, or as it was covered.
    heat : array of shape (SIDE, SIDE), float32
        Evidence of each place for the answer and against the other class. The exact one sums to the
        difference of their scores, up to a constant: of the model, or of the image where it is centred and
        then scaled to unit length.
    answer, other : int
        Columns of the answer, and of the most probable other class.
    exact : bool
        Whether the score is this sum; otherwise parts were covered.
    """

    image: NDArray[np.uint8]
    heat: Floats
    answer: int
    other: int
    exact: bool


def evidence(
    model: ImageModel, sources: Sequence[ImageSource], machine: Mapping[str, Any], *, most_covered: int = 6
) -> list[Evidence]:
    """Measure what in images speaks for the answers.

    Parameters
    ----------
    model : ImageModel
    sources : sequence of image sources
        The images.
    machine : mapping
        Parameters of `FeatureExtractor` that do not change features.
    most_covered : int
        Images that are measured where parts must be covered, which takes `WINDOWS` ** 2 passes for each.
    """
    if not len(sources):
        return []
    found = model.extract(sources, machine, store=MemoryStore()).blocks
    rows = found.stack(list(model.used_blocks))
    order = np.argsort(-model.decision.shares(model.proba(found)), axis=1, kind="stable")[:, :2]
    linear = _linear(model, rows)
    heats = None if linear is None else _exact(model, sources, machine, rows, linear, order)
    exact = heats is not None
    if heats is not None:
        spec = _specs(model)[0]
        images = [_prepared(source, spec) for source in sources]
    else:
        sources, order = sources[:most_covered], order[:most_covered]
        images = [_pixels(source, _specs(model)[0]) for source in sources]
        heats = [_covered(model, image, machine, pair) for image, pair in zip(images, order, strict=True)]
    return [
        Evidence(image, heat, int(answer), int(other), exact)
        for image, heat, (answer, other) in zip(images, heats, order, strict=True)
    ]


def layer_maps(
    model: ImageModel, source: ImageSource, machine: Mapping[str, Any]
) -> list[tuple[Tap, Floats]]:
    """Maps of each layer of the network for an image, each of shape (channels, height, width).

    Layers without a map are left out.
    """
    spec = _specs(model)[0]
    return [(tap, maps[0]) for tap, maps in _maps(model, [spec], [source], machine).values()]


def _maps(
    model: ImageModel,
    specs: Sequence[FeatureSpec],
    sources: Sequence[ImageSource],
    machine: Mapping[str, Any],
) -> dict[str, tuple[Tap, Floats]]:
    """Maps of all layers of the networks of some specs, shape (n, channels, height, width), by `_layer`.

    All layers at once: a network is then converted once for whatever is drawn. Where torch is loaded
    already, it runs so few images in less time than a conversion takes.
    """
    taps = {
        _layer(spec, tap.name): (tap, _unpooled(spec, tap))
        for spec in specs
        for tap in _card(model, spec).taps
        if len(tap.grid) == 2
    }
    if "torch" in sys.modules and machine.get("runtime", "auto") == "auto":
        machine = {**machine, "runtime": "torch"}
    wanted = {name: spec for name, (_, spec) in taps.items()}
    blocks = _networks(model, wanted, machine).extract(sources, store=MemoryStore()).blocks
    return {name: (tap, _as_map(blocks[name], tap)) for name, (tap, _) in taps.items()}


def _layer(spec: FeatureSpec, cut: str) -> str:
    """Name of a layer among those of several networks."""
    return f"{spec.weights}/{cut}"


def _unpooled(spec: FeatureSpec, tap: Tap) -> FeatureSpec:
    return spec.replace(cut=tap.name, pool="none", final_norm=spec.final_norm or not tap.has_norm)


def _specs(model: ImageModel) -> list[FeatureSpec]:
    """How the blocks that predict are computed."""
    if model.network is not None:
        return [model.network.feature_spec]
    return [model.specs[name] for name in model.blocks]


def _card(model: ImageModel, spec: FeatureSpec) -> BackboneCard:
    cards = model.cards if model.network is None else (model.network.tuned_card,)
    return next(card for card in cards if is_of(spec, card))


def _networks(model: ImageModel, specs: Mapping[Any, FeatureSpec], machine: Mapping[str, Any]) -> Networks:
    if model.network is None:
        return gather(specs, model.cards, machine, backbones=model.backbone_files)
    extractor = model.network.to_extractor(**machine)
    extractor.specs_ = dict(specs)
    return Networks([extractor])


def _two(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores of all classes, shape (n, n_classes), also where there are two."""
    return scores if scores.ndim == 2 else np.column_stack([-scores / 2, scores / 2])


def _linear(
    model: ImageModel, rows: Floats
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]] | None:
    """How scores follow from features: weights of scaled features, factors of the scaling, columns.

    Weights are of shape (m, n_classes), factors of shape (n, m): scaling to unit length is another factor for
    each image. None if scores are not linear in the scaled features.
    """
    columns, factors = np.arange(rows.shape[1]), np.ones(rows.shape)
    scaled = rows.astype(np.float64)
    if model.network is None:
        head, scaler = model.head.named_steps["head"], model.head.named_steps["scale"]
        if not hasattr(head, "decision_function"):
            return None
        columns, factors, scaled = _factors(scaler, rows)

    def score(values: NDArray[np.float64]) -> NDArray[np.float64]:
        if model.network is not None:
            return _two(model.scores_of(model.network.logits_of_features(values)))
        return _two(model.scores_of(np.asarray(head.decision_function(values), np.float64)))

    middle = scaled.mean(axis=0)
    size = max(float(np.abs(scaled - middle).max()), 1e-3)
    steps = size * np.random.default_rng(0).normal(size=(4, len(middle)))
    at = score(np.concatenate([middle + steps, middle - steps, middle[None]]))
    moves = max(float(np.abs(at[:4] - at[4:8]).max()), 1e-9)
    if not np.abs(at[:4] + at[4:8] - 2 * at[8]).max() <= TOLERANCE * moves:
        return None
    weights = np.empty((len(middle), at.shape[1]))
    for start in range(0, len(middle), CHUNK):
        some = np.arange(start, min(start + CHUNK, len(middle)))
        moved = np.repeat(middle[None], len(some), axis=0)
        moved[np.arange(len(some)), some] += size
        weights[some] = (score(moved) - at[8]) / size
    if not np.abs(steps @ weights - (at[:4] - at[8])).max() <= TOLERANCE * moves:
        return None
    return weights, factors, columns


def _factors(scaler: Any, rows: Floats) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Columns that a scaler keeps, what it multiplies them by in each row, and the scaled rows."""
    scaling, widths, arrays = scaler_to_arrays(scaler)
    columns = arrays.get("columns", np.arange(rows.shape[1]))
    kept = rows[:, columns].astype(np.float64)
    widths = [len(columns)] if "columns" in arrays else widths
    factors = np.empty(kept.shape)
    ends = np.cumsum(widths)
    for end, width in zip(ends, widths, strict=True):
        own = slice(end - width, end)
        if scaling in ("l2", "center_l2"):
            lengths = np.linalg.norm(kept[:, own] - arrays.get("mean", np.zeros(len(columns)))[own], axis=1)
            factors[:, own] = 1 / np.maximum(lengths, 1e-12)[:, None]
        else:
            factors[:, own] = block_weight(scaling, width) / arrays.get("scale", np.ones(len(columns)))[own]
    return columns, factors, np.asarray(scaler.transform(rows), np.float64)


def _exact(
    model: ImageModel,
    sources: Sequence[ImageSource],
    machine: Mapping[str, Any],
    rows: Floats,
    linear: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]],
    order: NDArray[np.intp],
) -> list[Floats] | None:
    """Evidence as a sum over the places of maps; None if features are no averages of maps."""
    specs = _specs(model)
    views = {(spec.resize, spec.input_size, spec.crop_pct, spec.view) for spec in specs}
    pools = {spec.pool for spec in specs}
    taps = [_card(model, spec).tap(spec.cut) for spec in specs]
    default = all(_card(model, spec).input_size == spec.input_size for spec in specs)
    mapped = all(len(tap.grid) == 2 for tap in taps)
    if len(views) > 1 or not pools <= {"avg", *GRIDS} or not mapped or not default:
        return None
    found = _maps(model, specs, sources, machine)
    total = np.zeros((len(sources), SIDE, SIDE), np.float64)
    weights, factors, columns = linear
    margins = np.zeros(rows.shape)
    for image, (answer, other) in enumerate(order):
        margins[image, columns] = factors[image] * (weights[:, answer] - weights[:, other])
    start = 0
    for spec in specs:
        maps = found[_layer(spec, spec.cut)][1]
        side = GRIDS.get(spec.pool, 1)
        place = _averaging(maps.shape[2:], side)
        pooled = np.einsum("nchw,ghw->ncg", maps, place).reshape(len(maps), -1)
        own = rows[:, start : start + pooled.shape[1]]
        if np.abs(pooled - own).max() > TOLERANCE * max(float(np.abs(own).max()), 1e-6):
            return None  # the network does more than average, such as a norm after the pooling
        part = margins[:, start : start + pooled.shape[1]].reshape(len(rows), -1, side * side)
        start += pooled.shape[1]
        for image, margin in enumerate(part):
            total[image] += _spread_out(
                np.einsum("chw,cg,ghw->hw", maps[image], margin, place, optimize=True)
            )
    return list(total.astype(np.float32))


def _as_map(rows: Floats, tap: Tap) -> Floats:
    """Flat unpooled features as maps, shape (n, channels, height, width)."""
    if tap.kind != "tokens":
        return rows.reshape(len(rows), -1, *tap.grid)
    tokens = rows.reshape(len(rows), -1, tap.channels)[:, -math.prod(tap.grid) :]
    return tokens.transpose(0, 2, 1).reshape(len(rows), tap.channels, *tap.grid)


def _averaging(size: tuple[int, ...], side: int) -> Floats:
    """Weight of each place in each cell of a grid, shape (side², h, w); cells may overlap."""
    rows, columns = (
        np.array([
            [float(i * length // side <= place < -(-(i + 1) * length // side)) for place in range(length)]
            for i in range(side)
        ])
        for length in size
    )  # fmt: skip
    cells = np.einsum("ih,jw->ijhw", rows, columns).reshape(side * side, *size)
    return np.asarray(cells / cells.sum(axis=(1, 2), keepdims=True), np.float32)


def _spread_out(heat: NDArray[Any]) -> NDArray[Any]:
    """A map at the size of `SIDE`, with the same sum."""
    smooth = Image.fromarray(heat.astype(np.float32)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    found = np.asarray(smooth, np.float64) * (heat.size / SIDE**2)
    return np.asarray(found + (heat.sum() - found.sum()) / SIDE**2)


def _covered(
    model: ImageModel, image: NDArray[np.uint8], machine: Mapping[str, Any], pair: NDArray[np.intp]
) -> Floats:
    """Loss of the difference of two scores where windows of an image are covered by its mean colour."""
    height, width = image.shape[:2]
    down, right = (max(1, round(COVERED * side)) for side in (height, width))
    tops, lefts = (
        np.linspace(0, side - span, WINDOWS).round().astype(int)
        for side, span in ((height, down), (width, right))
    )
    copies = [image]
    for top in tops:
        for left in lefts:
            copy = image.copy()
            copy[top : top + down, left : left + right] = image.mean(axis=(0, 1))
            copies.append(copy)
    blocks = model.extract(copies, machine, store=MemoryStore()).blocks
    scores = _two(model.scores(blocks))
    margin = scores[:, pair[0]] - scores[:, pair[1]]
    loss = (margin[0] - margin[1:]).reshape(WINDOWS, WINDOWS)
    total, times = np.zeros((height, width)), np.zeros((height, width))
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            total[top : top + down, left : left + right] += loss[i, j]
            times[top : top + down, left : left + right] += 1
    mean = Image.fromarray((total / times).astype(np.float32))
    return np.asarray(mean.resize((SIDE, SIDE), Image.Resampling.BOX), np.float32)


def _prepared(source: ImageSource, spec: FeatureSpec) -> NDArray[np.uint8]:
    picture = read_picture(source)
    pixels = decode_picture(picture, DecodePolicy.of(spec, MAX_PIXELS))
    return prepare(pixels, spec, digest=picture.digest)


def _pixels(source: ImageSource, spec: FeatureSpec) -> NDArray[np.uint8]:
    """An image at a size that windows are covered in, with the black and white of the model."""
    policy = replace(DecodePolicy.of(spec, MAX_PIXELS), decode="fast", min_side=320)
    image = Image.fromarray(decode_picture(read_picture(source), policy))
    image.thumbnail((512, 512))
    return np.asarray(image)
