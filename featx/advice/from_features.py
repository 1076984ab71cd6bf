"""Advice for a fitted search, measured on its features.

The search compared representations by one number each. Here the most important ones (the best block of each
layer, the last features, the current representation) are probed again on at most a thousand images, so that
they can be compared image by image. The learning curve is measured on the current representation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.advice.measures import BackboneScore, ProbeResult, depth_profile, probe
from featx.advice.recommend import (
    Advice,
    FineTuning,
    RepresentationScore,
    advise,
    assess_domain,
    fine_tune_from,
    is_last_average,
)
from featx.audit import label_noise
from featx.curves import curve_head, forecast, learning_curve
from featx.evaluation import evaluate
from featx.features import FeatureBlocks
from featx.representation import SIDE_BY_SIDE, layer_of
from featx.search.screening import screen_representations
from featx.splits import check_labels, stratified_sample

PROBED_IMAGES = 1_000
"""Images (stratified) for the probes."""

EPOCHS = 15
"""Epochs of fine-tuning by default, for its expected cost."""

PASSES = 3
"""Cost of an epoch in forward passes of the trained layers: one forward, and a backward one of twice that."""


@dataclass(frozen=True)
class RandomBaseline:
    """Features of the same network with random weights, on some of the images.

    Parameters
    ----------
    features : array of shape (m, d)
    index : array of shape (m,), int
        Their rows in the blocks.
    block : str, optional
        The corresponding block of the pretrained network; its last features by default.
    """

    features: NDArray[np.float32]
    index: NDArray[np.intp]
    block: str | None = None


def advise_on_features(
    blocks: FeatureBlocks,
    y: ArrayLike,
    *,
    taps: Sequence[str],
    in_use: Sequence[str],
    oof_proba: NDArray[np.float64],
    head: str = "ridge",
    in_use_name: str = "",
    groups: ArrayLike | None = None,
    random_baseline: RandomBaseline | None = None,
    backbone: str = "",
    backbones: Sequence[BackboneScore] = (),
    fine_tuning: FineTuning | None = None,
    seconds_per_image: float = math.nan,
    n_jobs: int = 1,
    random_state: int = 0,
) -> Advice:
    """Measure what advice is based on, from features, and derive the options.

    Parameters
    ----------
    blocks : FeatureBlocks
        Features of all blocks that were compared, by `BlockName`.
    y : array of shape (n,)
        Labels.
    taps : sequence of str
        Names of the network's layers by depth; the last one is the end.
    in_use : sequence of str
        Blocks of the current classifier.
    oof_proba : array of shape (n, C)
        Its calibrated out-of-fold probabilities, classes in sorted order; NaN where an image was not scored.
    head : str
        Its head; the curve is measured with `curve_head` of it.
    in_use_name : str
        Name of the current representation; its blocks side by side by default.
    groups : array of shape (n,), optional
        Images of a group stay in one fold.
    random_baseline : RandomBaseline, optional
    backbone : str
        Name of the current backbone.
    backbones : sequence of BackboneScore
        Other backbones that were compared.
    fine_tuning : FineTuning, optional
        By default its cost is estimated from `seconds_per_image`.
    seconds_per_image : float
        Extraction time of one image on this machine.
    n_jobs, random_state : int
        Threads and seed.

    Returns
    -------
    Advice
    """
    labels = check_labels(y)
    classes, codes = np.unique(labels, return_inverse=True)
    owners = None if groups is None else np.asarray(groups)
    proba = np.asarray(oof_proba, np.float64)
    scored = ~np.isnan(proba).any(axis=1)
    accuracy = evaluate(
        codes[scored],
        proba[scored],
        range(len(classes)),
        groups=None if owners is None else owners[scored],
        n_boot=500,
    ).metrics["accuracy"]
    noise = label_noise(codes, proba)
    curve = learning_curve(
        blocks.only(in_use),
        labels,
        head=curve_head(head),
        groups=groups,
        n_jobs=n_jobs,
        random_state=random_state,
    )

    few = stratified_sample(codes, PROBED_IMAGES, random_state, per_class=2, groups=owners)
    some, few_owners = blocks.take(few), None if owners is None else owners[few]

    def probe_on(
        names: Sequence[str] | NDArray[np.float32], name: str, *, rows: NDArray[np.intp], kind: str
    ) -> ProbeResult:
        own = names if isinstance(names, np.ndarray) else blocks.take(rows).only(list(names))
        return probe(
            own,
            codes[rows],
            head=kind,
            groups=None if owners is None else owners[rows],
            name=name,
            n_jobs=n_jobs,
            random_state=random_state,
        )

    best = best_of_each_tap(
        some, codes[few], taps, groups=few_owners, n_jobs=n_jobs, random_state=random_state
    )
    last = best[taps[-1]] if taps[-1] in best else next(reversed(best.values()))
    depths = {block: (taps.index(tap) + 1) / len(taps) for tap, block in best.items()}
    layers = depth_profile(
        some, codes[few], depths, groups=few_owners, n_jobs=n_jobs, random_state=random_state
    )
    linear = probe_on([last], last, rows=few, kind="ridge")
    neighbours = probe_on([last], last, rows=few, kind="knn")
    over_random = None
    if random_baseline is not None:
        counterpart = random_baseline.block or last
        pretrained = probe_on([counterpart], counterpart, rows=random_baseline.index, kind="ridge")
        over_random = pretrained.minus(
            probe_on(random_baseline.features, "random", rows=random_baseline.index, kind="ridge")
        )
    domain = None
    if len(layers) > 1:  # a single layer has no depth profile
        domain = assess_domain(layers, over_neighbours=linear.minus(neighbours), over_random=over_random)

    name = in_use_name or SIDE_BY_SIDE.join(in_use)
    tried = {layer.block: (layer.block,) for layer in layers} | {name: tuple(in_use)}
    representations = []
    for title, own in tried.items():
        found = probe_on(own, title, rows=few, kind="ridge")
        width = sum(blocks.width(block) for block in own)
        representations.append(RepresentationScore(title, own, found.accuracy, found.minus(linear), width))
    if fine_tuning is None and domain is not None:
        cut = fine_tune_from(domain)
        trained = 1 - (taps.index(cut) + 1) / len(taps) if cut in taps else 1.0
        minutes = EPOCHS * PASSES * len(codes) * seconds_per_image * max(trained, 1 / len(taps)) / 60
        fine_tuning = FineTuning(minutes, cut)
    return advise(
        n=len(codes),
        n_classes=len(classes),
        accuracy=accuracy,
        in_use=name,
        domain=domain,
        representations=representations,
        labels=forecast(curve, ceiling=noise.ceiling),
        curve=curve,
        noise=noise,
        fine_tuning=fine_tuning,
        backbones=backbones,
        backbone=backbone,
        seconds_per_image=seconds_per_image,
    )


def best_of_each_tap(
    blocks: FeatureBlocks,
    codes: NDArray[np.intp],
    taps: Sequence[str],
    *,
    groups: ArrayLike | None = None,
    n_jobs: int = 1,
    random_state: int = 0,
) -> dict[str, str]:
    """Return the best block of each layer by leave-one-out ridge; for the last layer its average.

    The average of the last features is common practice, so the other blocks are compared with it.
    """
    found = screen_representations(
        blocks,
        codes,
        int(codes.max()) + 1,
        groups=None if groups is None else np.asarray(groups),
        combine=False,
        n_jobs=n_jobs,
        random_state=random_state,
    )
    best: dict[str, str] = {}
    for one in found:
        best.setdefault(layer_of(one.blocks[0]), one.blocks[0])
    usual = [one.blocks[0] for one in found if is_last_average(one.blocks[0])]
    if usual:
        best[taps[-1]] = usual[0]
    return {tap: best[tap] for tap in taps if tap in best}
