"""Advice for a fitted model: measure on its training images what its own features cannot tell.

The features of the training images are in the cache. What is computed here besides, on a few hundred images:
the same network with random weights, and other backbones if they are named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.advice import (
    Advice,
    BackboneScore,
    FineTuning,
    RandomBaseline,
    advise_on_features,
)
from featx.backbones import BackboneCard
from featx.classifier.model import ImageModel
from featx.classifier.record import FitRecord
from featx.extractor import Extraction, FeatureExtractor
from featx.features import FeatureBlocks
from featx.images import ImageSet
from featx.progress import silent
from featx.representation import is_usual
from featx.selection.backbones import compare_backbones
from featx.selection.networks import gather
from featx.spec import FeatureSpec
from featx.splits import divisible, image_groups, stratified_sample
from featx.stores.base import Ids
from featx.threads import n_threads

BASELINE_IMAGES = 300
"""Images for the network with random weights. The difference is either large, which as many show, or not."""


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """The training images of a fit, and all representations that were extracted for them.

    Parameters
    ----------
    images : ImageSet
        The training part.
    ids : array of shape (n, 32), uint8
        Digests of these images.
    specs : mapping of str to FeatureSpec
        How each block is computed.
    cards : tuple of BackboneCard
        The networks.
    backbone_files : mapping of str to str
        As for `ImageModel`.
    """

    images: ImageSet
    ids: Ids
    specs: Mapping[str, FeatureSpec]
    cards: tuple[BackboneCard, ...]
    backbone_files: Mapping[str, str]

    def extract(self, machine: Mapping[str, Any]) -> Extraction:
        """Read the features from the store; what is missing is computed again."""
        networks = gather(self.specs, self.cards, machine, backbones=self.backbone_files)
        return networks.extract(self.images.sources, names=self.images.names)


def advise_model(
    model: ImageModel,
    record: FitRecord,
    training: TrainingSet,
    machine: Mapping[str, Any],
    *,
    features: FeatureBlocks | None = None,
    others: Sequence[str] = (),
    budget_s: float = math.inf,
    fine_tuning: FineTuning | None = None,
    random_state: int = 0,
) -> Advice:
    """Measure what to do next, on the training part alone.

    Parameters
    ----------
    model : ImageModel
        The fitted model.
    record : FitRecord
        How it came about.
    training : TrainingSet
        Its training images.
    machine : mapping
        Parameters of `FeatureExtractor` that do not change features.
    features : FeatureBlocks, optional
        Features of the training images, if they are at hand.
    others : sequence of str
        Backbones to compare on at most 500 images, by successive halving.
    budget_s : float
        Seconds for this comparison.
    fine_tuning : FineTuning, optional
        What is known of fine-tuning.
    random_state : int
        Seed.

    Returns
    -------
    Advice
    """
    images = training.images
    if features is None:
        features = training.extract(machine).blocks
    labels = np.asarray(images.labels)
    units = image_groups(training.ids, images.groups)
    verdict = None if record.fine_tuning is None else record.fine_tuning.verdict
    if fine_tuning is None and record.fine_tuning is not None and verdict is not None:
        fine_tuning = FineTuning(verdict.minutes, record.fine_tuning.cut or "the input", verdict.gain)
    card = training.cards[0]
    baseline, seconds = _random_baseline(card, training, units, machine, random_state)
    return advise_on_features(
        features,
        labels,
        taps=[tap.name for tap in card.taps],
        in_use=model.blocks,
        oof_proba=record.oof_proba,
        head=str(record.params["head"]),
        in_use_name=str(record.params.get("representation", "")),
        groups=units,
        random_baseline=baseline,
        backbone=card.name,
        backbones=_others(card, images, labels, units, machine, others, budget_s, random_state),
        fine_tuning=fine_tuning,
        seconds_per_image=seconds,
        n_jobs=n_threads(machine["n_jobs"]),
        random_state=random_state,
    )


def _random_baseline(
    card: BackboneCard,
    training: TrainingSet,
    units: NDArray[np.intp],
    machine: Mapping[str, Any],
    random_state: int,
) -> tuple[RandomBaseline | None, float]:
    """Features of the network with random weights, and the seconds an image takes it.

    The first is None if the network of the model has random weights itself.
    """
    if card.source.startswith("random:"):
        return None, math.nan
    images = training.images
    codes = np.unique(np.asarray(images.labels), return_inverse=True)[1]
    chosen = stratified_sample(codes, BASELINE_IMAGES, random_state, per_class=2, groups=units)
    last = (item for item in training.specs.items() if is_usual(item[0]))
    name, spec = next(last, next(iter(training.specs.items())))
    # Without the callback: that there are no cached features of these weights is expected.
    extractor = FeatureExtractor(
        card.name, pretrained=False, cut=spec.cut, pool=spec.pool, resize=spec.resize,
        input_size=spec.input_size, precision=spec.precision, pixel_range=spec.pixel_range, bands=spec.bands,
        **{**machine, "checkpoint": None, "callback": silent},
    )  # fmt: skip
    sources = [images.sources[row] for row in chosen]
    found = extractor.extract(sources, names=[images.names[row] for row in chosen], on_error="skip")
    kept = chosen[found.kept]
    rows = divisible(codes[kept], units[kept])
    block = next(iter(found.blocks.values()))[rows]
    seconds = (found.seconds - found.loading_s) / found.computed if found.computed else math.nan
    return RandomBaseline(block, kept[rows], name), seconds


def _others(
    card: BackboneCard,
    images: ImageSet,
    labels: NDArray[np.generic],
    units: NDArray[np.intp],
    machine: Mapping[str, Any],
    names: Sequence[str],
    budget_s: float,
    random_state: int,
) -> tuple[BackboneScore, ...]:
    """Other backbones, by their last features, against the one in use."""
    names = [name for name in dict.fromkeys(names) if name != card.name]
    if not names:
        return ()
    pretrained = not card.source.startswith("random:")
    sources = images.sources  # for the range of deep pixels
    extractors = {card.name: FeatureExtractor(card.name, pretrained=pretrained, **machine).fit(sources)}
    apart = {**machine, "checkpoint": None}
    extractors |= {
        name: FeatureExtractor(name, pretrained=pretrained, **apart).fit(sources) for name in names
    }
    return compare_backbones(
        extractors,
        images,
        np.unique(labels, return_inverse=True)[1],
        groups=units,
        always=card.name,
        budget_s=budget_s,
        n_jobs=n_threads(machine["n_jobs"]),
        random_state=random_state,
    ).scores
