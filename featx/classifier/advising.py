"""Measured advice for a fitted ImageClassifier: orders the little that its own rows cannot tell.

Its rows are in the cache. What is extracted here besides, on a few hundred images of the training part: the
same network with random weights, and other backbones where they were asked for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.advice import (
    Advice,
    BackboneScore,
    FineTuning,
    Twin,
    advise_on_rows,
    plan_halving,
    rank_backbones,
    survivors,
)
from featx.advice.from_rows import stratified_rows
from featx.advice.measures import probe
from featx.classifier.estimator import MACHINE_PARAMS, ImageClassifier, Images, as_images
from featx.exceptions import UsageError
from featx.extractor import FeatureExtractor
from featx.images import ImageSet
from featx.rows import RowBlocks
from featx.search.loop import n_threads
from featx.splits import image_groups
from featx.stores.memory import MemoryStore

TWIN_IMAGES = 300
"""Images of the random twin: it is either far behind, which as many show, or it is not."""

SPEED_IMAGES = 16
"""Images that tell a candidate's speed here."""


def advise_classifier(
    clf: ImageClassifier,
    X: Images,
    y: ArrayLike | None = None,
    *,
    groups: ArrayLike | None = None,
    others: Sequence[str] = (),
    budget_s: float = math.inf,
    fine_tuning: FineTuning | None = None,
    random_state: int = 0,
) -> Advice:
    """Measure what to do next, on the training part alone.

    Parameters
    ----------
    clf : ImageClassifier
        Fitted in this process (a loaded one has forgotten its search) on `X`.
    X, y, groups
        What it was fitted on; images of its test part are left out.
    others : sequence of str
        Backbones to try on at most a thousand images, by successive halving.
    budget_s : float
        Seconds that this may take.
    fine_tuning : FineTuning, optional
        What is known of fine-tuning.
    random_state : int
        Seed.

    Returns
    -------
    Advice

    Raises
    ------
    UsageError
        If the classifier was loaded, or was fitted on other images.
    """
    if not hasattr(clf, "search_"):
        raise UsageError("advice needs the search of a fit in this process; call fit, then ask.")
    images = as_images(X, y, groups=groups)
    rows = FeatureExtractor.from_specs(clf.specs_, clf.card_, **_machine(clf)).extract(
        images.sources, names=images.names, on_error="skip"
    )
    trains = np.array([clf.assignment_.get(row.tobytes().hex()) == "train" for row in rows.ids])
    images = images.select(rows.kept).select(trains)
    labels = np.asarray(images.labels)
    if len(labels) != len(clf.oof_proba_):
        raise UsageError(
            f"{len(labels)} of these images are in the training part of {len(clf.oof_proba_)}: "
            "ask about the images that the classifier was fitted on."
        )
    units = image_groups(rows.ids[trains], images.groups)
    twin, seconds = _random_twin(clf, images, labels, random_state)
    taps = [tap.name for tap in clf.card_.taps]
    return advise_on_rows(
        rows.blocks.take(trains),
        labels,
        taps=taps,
        in_use=clf.best_blocks_,
        oof_proba=clf.oof_proba_,
        head=str(clf.best_params_["head"]),
        in_use_name=str(clf.best_params_.get("representation", "")),
        groups=units,
        twin=twin,
        backbone=clf.card_.name,
        backbones=_others(clf, images, labels, units, others, budget_s, random_state),
        fine_tuning=fine_tuning,
        seconds_per_image=seconds,
        n_jobs=n_threads(clf.n_jobs),
        random_state=random_state,
    )


def _random_twin(
    clf: ImageClassifier, images: ImageSet, labels: NDArray[np.generic], random_state: int
) -> tuple[Twin | None, float]:
    """The same network untrained, and the seconds that an image takes it; None if it is untrained already."""
    if clf.card_.source.startswith("random:"):
        return None, math.nan
    codes = np.unique(labels, return_inverse=True)[1]
    chosen = stratified_rows(codes, TWIN_IMAGES, random_state=random_state)
    last = next((spec for name, spec in clf.specs_.items() if name.startswith("last:avg")), None)
    spec = last or next(iter(clf.specs_.values()))
    machine = {**_machine(clf), "checkpoint": None}
    extractor = FeatureExtractor(
        clf.backbone, pretrained=False, resize=spec.resize, input_size=spec.input_size,
        precision=spec.precision, **machine,
    )  # fmt: skip
    sources = [images.sources[row] for row in chosen]
    rows = extractor.extract(sources, names=[images.names[row] for row in chosen], on_error="skip")
    block = next(iter(rows.blocks.values()))
    seconds = (rows.seconds - rows.loading_s) / rows.computed if rows.computed else math.nan
    return Twin(block, chosen[rows.kept]), seconds


def _others(
    clf: ImageClassifier,
    images: ImageSet,
    labels: NDArray[np.generic],
    units: NDArray[np.intp],
    names: Sequence[str],
    budget_s: float,
    random_state: int,
) -> tuple[BackboneScore, ...]:
    """Other backbones by successive halving: images double, candidates halve, rows are kept."""
    names = [name for name in dict.fromkeys(names) if name != clf.backbone]
    if not names:
        return ()
    began = time.monotonic()
    extractors = {name: FeatureExtractor(name, **_machine(clf)) for name in (clf.backbone, *names)}
    costs = {name: _seconds_per_image(own, images) for name, own in extractors.items()}
    rivals = {name: costs[name] for name in names}
    plan = plan_halving(rivals, n_images=len(images), budget_s=max(budget_s - (time.monotonic() - began), 0))
    codes = np.unique(labels, return_inverse=True)[1]
    inside = list(plan.candidates)
    for size, keep in plan.rounds:
        chosen = stratified_rows(codes, size, random_state=random_state)
        found = {name: _rows(extractors[name], images, chosen) for name in inside}
        accuracy = {
            name: probe(own, labels[chosen], groups=units[chosen]).accuracy.value
            for name, own in found.items()
        }
        inside = survivors(accuracy, keep, costs)
    found = {name: found[name] for name in inside} | {
        clf.backbone: _rows(extractors[clf.backbone], images, chosen)
    }
    minutes = {name: cost * len(images) / 60 for name, cost in costs.items()}
    blocks = RowBlocks(found, len(chosen))
    return rank_backbones(blocks, labels[chosen], current=clf.backbone, minutes=minutes, groups=units[chosen])


def _rows(extractor: FeatureExtractor, images: ImageSet, chosen: NDArray[np.intp]) -> NDArray[np.float32]:
    """Last features of some images, which were readable before."""
    sources = [images.sources[row] for row in chosen]
    return next(iter(extractor.extract(sources, names=[images.names[row] for row in chosen]).blocks.values()))


def _seconds_per_image(extractor: FeatureExtractor, images: ImageSet) -> float:
    """Measured on a few pictures, kept nowhere."""
    timed = FeatureExtractor(**{**extractor.get_params(), "store": MemoryStore()})
    plan = timed.plan(images.sources[:SPEED_IMAGES])
    return 1 / plan.images_per_s if plan.images_per_s else math.nan


def _machine(clf: ImageClassifier) -> dict[str, Any]:
    """Parameters of the classifier's extractors that move no row."""
    return {name: getattr(clf, name) for name in MACHINE_PARAMS}
