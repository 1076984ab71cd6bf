"""Measured advice for a fitted ImageClassifier: orders the little that its own rows cannot tell.

Its rows are in the cache. What is extracted here besides, on a few hundred images of the training part: the
same network with random weights, and other backbones where they were asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.advice import (
    Advice,
    BackboneScore,
    FineTuning,
    RandomBaseline,
    advise_on_features,
    stratified_rows,
)
from featx.classifier.estimator import MACHINE_PARAMS, ImageClassifier, Images, as_images
from featx.evaluation import Metric
from featx.exceptions import UsageError
from featx.extractor import FeatureExtractor
from featx.images import ImageSet
from featx.search.plan import n_threads
from featx.selection.backbones import race
from featx.selection.networks import gather
from featx.splits import image_groups

BASELINE_IMAGES = 300
"""Images for the network with random weights: enough to see whether it is much worse."""


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
        Backbones to try on at most 500 images, by successive halving.
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
    plain = {name: spec for name, spec in clf.specs_.items() if spec.view == 0}
    rows = gather(plain, clf.cards_, _machine(clf), backbones=clf._model_files).extract(
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
    if fine_tuning is None and clf.fine_tune_ is not None and clf.fine_tune_.verdict is not None:
        found = clf.fine_tune_.verdict.comparison
        gain = Metric(found.difference, found.low, found.high)
        fine_tuning = FineTuning(clf.fine_tune_.verdict.minutes, clf.fine_tune_.cut or "the input", gain)
    baseline, seconds = _random_baseline(clf, images, labels, random_state)
    taps = [tap.name for tap in clf.card_.taps]
    return advise_on_features(
        rows.blocks.take(trains),
        labels,
        taps=taps,
        in_use=clf.best_blocks_,
        oof_proba=clf.oof_proba_,
        head=str(clf.best_params_["head"]),
        in_use_name=str(clf.best_params_.get("representation", "")),
        groups=units,
        random_baseline=baseline,
        backbone=clf.card_.name,
        backbones=_others(clf, images, labels, units, others, budget_s, random_state),
        fine_tuning=fine_tuning,
        seconds_per_image=seconds,
        n_jobs=n_threads(clf.n_jobs),
        random_state=random_state,
    )


def _random_baseline(
    clf: ImageClassifier, images: ImageSet, labels: NDArray[np.generic], random_state: int
) -> tuple[RandomBaseline | None, float]:
    """The same network untrained, and the seconds that an image takes it; None if it is untrained already."""
    if clf.card_.source.startswith("random:"):
        return None, math.nan
    codes = np.unique(labels, return_inverse=True)[1]
    chosen = stratified_rows(codes, BASELINE_IMAGES, random_state=random_state)
    last = (item for item in clf.specs_.items() if item[0].startswith("last:avg"))
    name, spec = next(last, next(iter(clf.specs_.items())))
    # without a callback: that these features are not in the store is no news
    machine = {**_machine(clf), "checkpoint": None, "callback": None}
    extractor = FeatureExtractor(
        clf.card_.name, pretrained=False, cut=spec.cut, pool=spec.pool, resize=spec.resize,
        input_size=spec.input_size, precision=spec.precision, **machine,
    )  # fmt: skip
    sources = [images.sources[row] for row in chosen]
    rows = extractor.extract(sources, names=[images.names[row] for row in chosen], on_error="skip")
    block = next(iter(rows.blocks.values()))
    seconds = (rows.seconds - rows.loading_s) / rows.computed if rows.computed else math.nan
    return RandomBaseline(block, chosen[rows.kept], name), seconds


def _others(
    clf: ImageClassifier,
    images: ImageSet,
    labels: NDArray[np.generic],
    units: NDArray[np.intp],
    names: Sequence[str],
    budget_s: float,
    random_state: int,
) -> tuple[BackboneScore, ...]:
    """Other backbones, by their last features, against the one in use."""
    names = [name for name in dict.fromkeys(names) if name != clf.card_.name]
    if not names:
        return ()
    own = {**_machine(clf), "pretrained": clf.pretrained}
    extractors = {clf.card_.name: FeatureExtractor(clf.card_.name, **own).fit()}
    extractors |= {name: FeatureExtractor(name, **{**own, "checkpoint": None}).fit() for name in names}
    codes = np.unique(labels, return_inverse=True)[1]
    return race(
        extractors,
        images,
        codes,
        groups=units,
        always=clf.card_.name,
        budget_s=budget_s,
        n_jobs=n_threads(clf.n_jobs),
        random_state=random_state,
    ).scores


def _machine(clf: ImageClassifier) -> dict[str, Any]:
    """Parameters of the classifier's extractors that move no row."""
    return {name: getattr(clf, name) for name in MACHINE_PARAMS}
