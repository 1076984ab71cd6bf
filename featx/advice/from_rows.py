"""Advice for a fitted search: what its rows still have to be asked, asked on at most a thousand of them.

The search has compared representations by one number each; here the few that matter (each layer's best
block, the last features, what is in use) are probed again so that they can be compared image by image, and
the learning curve is measured on the representation in use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featx.advice.measures import Probe, depth_profile, probe
from featx.advice.recommend import (
    Advice,
    FineTuning,
    Representation,
    advise,
    fine_tune_from,
    judge_domain,
)
from featx.audit import label_noise
from featx.curves import curve_head, forecast, learning_curve
from featx.evaluation import evaluate
from featx.features import FeatureBlocks
from featx.representation import SIDE_BY_SIDE, layer_of
from featx.search.screening import screen_representations
from featx.selection.halving import BackboneScore
from featx.splits import check_labels

PROBED_ROWS = 1_000
"""Rows (stratified) that probes look at."""

EPOCHS = 15
"""Epochs of fine-tuning at its defaults ..."""

PASSES = 3
"""... each of which costs a forward and a backward pass (twice the forward one) of the trained layers."""


@dataclass(frozen=True)
class Twin:
    """The same network with random weights, on some of the same images.

    Parameters
    ----------
    rows : array of shape (m, d)
        Its last features.
    index : array of shape (m,), int
        Which rows of the blocks they belong to.
    block : str, optional
        The block of the pretrained network that was made alike; its last features by default.
    """

    rows: NDArray[np.float32]
    index: NDArray[np.intp]
    block: str | None = None


def advise_on_rows(
    blocks: FeatureBlocks,
    y: ArrayLike,
    *,
    taps: Sequence[str],
    in_use: Sequence[str],
    oof_proba: NDArray[np.float64],
    head: str = "ridge",
    in_use_name: str = "",
    groups: ArrayLike | None = None,
    twin: Twin | None = None,
    backbone: str = "",
    backbones: Sequence[BackboneScore] = (),
    fine_tuning: FineTuning | None = None,
    seconds_per_image: float = math.nan,
    n_jobs: int = 1,
    random_state: int = 0,
) -> Advice:
    """Measure what advice needs on rows that are at hand, and weigh it.

    Parameters
    ----------
    blocks : FeatureBlocks
        Rows of all that was tried, named ``tap:pool:resize``.
    y : array of shape (n,)
        Labels.
    taps : sequence of str
        The network's layers by depth, ending with the last.
    in_use : sequence of str
        Blocks that the classifier uses.
    oof_proba : array of shape (n, C)
        Its calibrated out-of-fold probabilities, classes in sorted order; NaN where a row never scored.
    head : str
        Its head: the curve is measured with a cheap one of its kind.
    in_use_name : str
        What to call the representation in use; its blocks side by side by default.
    groups : array of shape (n,), optional
        Images of a group stay in one fold.
    twin : Twin, optional
        The network with random weights.
    backbone : str
        Name of the backbone in use.
    backbones : sequence of BackboneScore
        Others that were screened.
    fine_tuning : FineTuning, optional
        What is known of it; its cost is estimated from `seconds_per_image` by default.
    seconds_per_image : float
        What extracting an image costs here.
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

    few = stratified_rows(codes, PROBED_ROWS, random_state=random_state)
    some, few_owners = blocks.take(few), None if owners is None else owners[few]

    def ask(
        names: Sequence[str] | NDArray[np.float32], name: str, *, rows: NDArray[np.intp], kind: str
    ) -> Probe:
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
    linear = ask([last], last, rows=few, kind="ridge")
    neighbours = ask([last], last, rows=few, kind="knn")
    over_random = None
    if twin is not None:
        alike = twin.block or last
        pretrained = ask([alike], alike, rows=twin.index, kind="ridge")
        over_random = pretrained.minus(ask(twin.rows, "random", rows=twin.index, kind="ridge"))
    domain = None
    if len(layers) > 1:  # a single layer tells nothing of depth
        domain = judge_domain(layers, neighbours_behind=linear.minus(neighbours), over_random=over_random)

    name = in_use_name or SIDE_BY_SIDE.join(in_use)
    tried = {layer.block: (layer.block,) for layer in layers} | {name: tuple(in_use)}
    representations = []
    for title, own in tried.items():
        answer = ask(own, title, rows=few, kind="ridge")
        width = sum(blocks.width(block) for block in own)
        representations.append(Representation(title, answer.accuracy, answer.minus(linear), width))
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
    """For each layer, by depth, the block that ridge scores best leaving one out; the last keeps its average.

    The last features' average is what everybody uses: the others are measured against it.
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
        best.setdefault(layer_of(one.blocks[0]), one.name)
    usual = [one.name for one in found if one.name.startswith(f"{taps[-1]}:avg")]
    if usual:
        best[taps[-1]] = usual[0]
    return {tap: best[tap] for tap in taps if tap in best}


def stratified_rows(codes: NDArray[np.intp], most: int, *, random_state: int = 0) -> NDArray[np.intp]:
    """Sorted positions of about `most` rows, each class by its share and at least twice where it can be."""
    if len(codes) <= most:
        return np.arange(len(codes))
    rng = np.random.default_rng(random_state)
    picked = []
    for c in np.unique(codes):
        own = rng.permutation(np.flatnonzero(codes == c))
        picked.append(own[: max(2, round(most * len(own) / len(codes)))])
    return np.sort(np.concatenate(picked))
