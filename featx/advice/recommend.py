"""From measured values to recommendations, as plain data.

The rule of CS231n (similar or different data, small or large data set) is applied by measurement: at which
layer a probe is best, how much better pretrained weights are than random ones, and what twice the labels
would bring. Nothing is computed here: the caller passes what it measured, and what was not measured is left
out or marked as such.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from featx.advice.measures import BackboneScore, LayerScore
from featx.audit import LabelNoise
from featx.curves import Forecast, LearningCurve
from featx.evaluation import Metric
from featx.records import FloatOrNaN, Record
from featx.representation import BlockName, layer_of

Verdict = Literal["similar", "between", "different"]

WORTH = 0.01
"""Smallest gain of accuracy that is worth a person's work: one point."""

FINE_TUNING: dict[Verdict, tuple[float, float, float]] = {
    "similar": (0.10, 0.0, 0.3),
    "between": (0.20, 0.0, 0.45),
    "different": (0.30, 0.0, 0.6),
}
"""Expected share of the remaining errors that fine-tuning corrects, with lower and upper bound, where it was
not measured. It is small for images like those of the pretraining, and larger for others (on spectrograms,
accuracy rose from 0.93 to 0.96: two fifths of the errors)."""

FINE_TUNE_FROM = 8
"""Mean number of images of a class below which fine-tuning was not measured. With 8 it gained 6.2 points on
shape_edges16, and lost 1.4 on shape_silhouettes16 ("Far sets" of docs/finetuning.md)."""

SECONDS_PER_LABEL = 3.0
"""Time to label one image in a sorted folder, by default."""

SATURATED = 0.01
"""A data set is large if twice the labels bring less than this, by the upper bound."""

CLASSES_NAMED = 3
"""Most classes that are named as those to label."""


@dataclass(frozen=True)
class Domain(Record):
    """How similar the images are to those that the network was trained on.

    Parameters
    ----------
    verdict : {'similar', 'between', 'different'}
        ``different`` if an earlier layer is significantly better than the last one, or pretrained weights
        are not significantly better than random ones; ``similar`` if no layer is better by more than a
        point; else ``between``.
    layers : tuple of LayerScore
        Probes by depth.
    peak : str
        Block of the best layer.
    peak_at_end : bool
        Whether no earlier layer is significantly better than the last one.
    over_neighbours : Metric or None
        Accuracy of a linear probe minus that of nearest neighbours, on the last features. It is small where
        the classes already form clusters.
    over_random : Metric or None
        Accuracy of the last features minus that of the same network with random weights.
    """

    verdict: Verdict
    layers: tuple[LayerScore, ...]
    peak: str
    peak_at_end: bool
    over_neighbours: Metric | None = None
    over_random: Metric | None = None


@dataclass(frozen=True)
class RepresentationScore:
    """A representation that the search compared.

    Parameters
    ----------
    name : str
        Its text, for people.
    blocks : tuple of str
        Its blocks.
    accuracy : Metric
        Out of fold.
    over_last : Metric
        Accuracy minus that of the average of the last features, paired.
    width : int
        Number of columns.
    """

    name: str
    blocks: tuple[str, ...]
    accuracy: Metric
    over_last: Metric
    width: int

    @property
    def action(self) -> str:
        """``use_last``, ``use_block`` or ``combine``."""
        if len(self.blocks) > 1:
            return "combine"
        return "use_last" if is_last_average(self.blocks[0]) else "use_block"


@dataclass(frozen=True)
class FineTuning:
    """Cost of fine-tuning, and its gain if that was measured.

    Parameters
    ----------
    minutes : float
        Training time on this machine.
    cut : str
        Layer above which the network is trained.
    gain : Metric or None
        Measured accuracy minus that of the probe; None if fine-tuning was not tried.
    """

    minutes: float
    cut: str
    gain: Metric | None = None


@dataclass(frozen=True)
class Option(Record):
    """One possible action.

    Parameters
    ----------
    action : {'use_last', 'use_block', 'combine', 'label_more', 'fine_tune', 'other_backbone'}
    what : str
        The block, blocks, classes, layer or backbone.
    gain : Metric or None
        Expected change of accuracy compared with the current classifier; None if unknown.
    minutes : float
        Its cost: time of this machine, or of a person for labels; NaN if unknown.
    evidence : tuple of str
        The numbers that the gain is based on.
    measured : bool
        Whether the gain was measured on these images; else it is an expectation.
    done : bool
        Whether the current classifier does this already.
    """

    DERIVED: ClassVar[tuple[str, ...]] = ("worthwhile",)

    action: str
    what: str
    gain: Metric | None
    minutes: FloatOrNaN
    evidence: tuple[str, ...]
    measured: bool = True
    done: bool = False

    @property
    def worthwhile(self) -> bool:
        """Whether the expected gain is at least `WORTH`, and significant if it was measured."""
        if self.gain is None or self.done or self.gain.value < WORTH:
            return False
        return not self.measured or self.gain.low > 0


@dataclass(frozen=True)
class Advice(Record):
    """What was measured, and the options that follow. `featx.advice.sentences` puts it into words.

    Parameters
    ----------
    n, n_classes : int
        Number of images and classes.
    accuracy : Metric
        Of the current classifier, out of fold.
    in_use : str
        Its representation.
    domain : Domain or None
        Similarity to the images of the pretraining.
    size : {'small', 'large', 'unknown'}
        Whether more labels would help.
    labels : Forecast or None
        What twice the labels would bring.
    noise : LabelNoise or None
        How wrong labels limit the accuracy that can be measured.
    options : tuple of Option
        Worthwhile ones first, by expected gain.
    curve : LearningCurve or None
        The basis of `labels`.
    """

    n: int
    n_classes: int
    accuracy: Metric
    in_use: str
    domain: Domain | None
    size: Literal["small", "large", "unknown"]
    labels: Forecast | None
    noise: LabelNoise | None
    options: tuple[Option, ...] = field(default=())
    curve: LearningCurve | None = field(default=None, repr=False, compare=False)

    @property
    def next_step(self) -> Option | None:
        """The first worthwhile option, or None."""
        return next((option for option in self.options if option.worthwhile), None)

    @property
    def fine_tune(self) -> bool:
        """Whether fine-tuning is worthwhile."""
        return any(option.action == "fine_tune" and option.worthwhile for option in self.options)


def advise(
    *,
    n: int,
    n_classes: int,
    accuracy: Metric,
    in_use: str,
    domain: Domain | None = None,
    representations: Sequence[RepresentationScore] = (),
    labels: Forecast | None = None,
    curve: LearningCurve | None = None,
    noise: LabelNoise | None = None,
    fine_tuning: FineTuning | None = None,
    backbones: Sequence[BackboneScore] = (),
    backbone: str = "",
    seconds_per_image: float = math.nan,
    seconds_per_label: float = SECONDS_PER_LABEL,
) -> Advice:
    """Derive the options from what was measured, and order them.

    Parameters
    ----------
    n, n_classes : int
        Images and classes.
    accuracy : Metric
        Of the current classifier, out of fold.
    in_use : str
        Name of its representation, as in `representations`.
    domain : Domain, optional
        From `assess_domain`.
    representations : sequence of RepresentationScore
        What the search compared.
    labels : Forecast, optional
        From ``featx.curves.forecast``.
    curve : LearningCurve, optional
        The basis of `labels`.
    noise : LabelNoise, optional
        From ``featx.audit.label_noise``.
    fine_tuning : FineTuning, optional
        Its cost, and its gain if it was measured.
    backbones : sequence of BackboneScore
        Backbones that were compared on some of the images.
    backbone : str
        Name of the current backbone.
    seconds_per_image : float
        Extraction time of one image on this machine.
    seconds_per_label : float
        Time of a person to label one image.

    Returns
    -------
    Advice
    """
    options = [
        *_representation_options(representations, in_use),
        *_label_options(labels, seconds_per_image, seconds_per_label),
        *_fine_tuning_options(domain, fine_tuning, accuracy, n / n_classes, noise),
        *_backbone_options(backbones, backbone),
    ]
    options.sort(key=lambda o: (not o.worthwhile, -(o.gain.value if o.gain is not None else -1.0)))
    size: Literal["small", "large", "unknown"] = "unknown"
    if labels is not None:
        size = "large" if labels.gain.high < SATURATED else "small"
    return Advice(n, n_classes, accuracy, in_use, domain, size, labels, noise, tuple(options), curve)


def assess_domain(
    layers: Sequence[LayerScore],
    *,
    over_neighbours: Metric | None = None,
    over_random: Metric | None = None,
) -> Domain:
    """Decide from measured differences how similar the images are to those of the pretraining.

    Parameters
    ----------
    layers : sequence of LayerScore
        By depth, from `depth_profile`.
    over_neighbours, over_random : Metric, optional
        See `Domain`.

    Returns
    -------
    Domain
    """
    peak = max(layers, key=lambda layer: layer.accuracy.value)
    at_end = not any(layer.over_last.low > 0 for layer in layers)
    ahead = over_random is None or over_random.low > 0
    verdict: Verdict = "between"
    if not at_end or not ahead:
        verdict = "different"
    elif peak.over_last.value <= WORTH:
        verdict = "similar"
    return Domain(verdict, tuple(layers), peak.block, at_end, over_neighbours, over_random)


def fine_tune_from(domain: Domain) -> str:
    """Name the layer above which to train: the best one, or the one before the last.

    Up to the best layer the pretrained features serve the task; the layers above it have to change.
    """
    last = domain.layers[-1]
    below = [layer for layer in domain.layers if layer.depth < last.depth] or [last]
    if domain.peak_at_end:
        return layer_of(below[-1].block)
    better = [layer for layer in below if layer.over_last.low > 0]
    return layer_of(max(better, key=lambda layer: layer.accuracy.value).block)


def _representation_options(tried: Sequence[RepresentationScore], in_use: str) -> Iterator[Option]:
    """The best last features, the best single block and the best combination."""
    own = next((r for r in tried if r.name == in_use), None)
    for action in ("use_last", "use_block", "combine"):
        kind = [r for r in tried if r.action == action]
        if not kind:
            continue
        best = max(kind, key=lambda r: r.accuracy.value)
        if own is not None and own.action == action:
            best = own
        gain = best.over_last if own is None else _against(best.over_last, own.over_last)
        evidence = (
            f"accuracy {best.accuracy.as_share()} out of fold",
            f"compared with the last features {best.over_last.as_points()}",
            f"{best.width} columns",
        )
        yield Option(action, best.name, gain, 0.0, evidence, done=best.name == in_use)


def _against(a: Metric, b: Metric) -> Metric:
    """Difference of two differences with the same reference; it takes the wider of their intervals."""
    wider = a if a.high - a.low >= b.high - b.low else Metric(-b.value, -b.high, -b.low)
    value = a.value - b.value
    return Metric(value, value + wider.low - wider.value, value + wider.high - wider.value)


def _label_options(labels: Forecast | None, per_image: float, per_label: float) -> Iterator[Option]:
    if labels is None:
        return
    more = labels.n_then - labels.n
    machine = 0.0 if math.isnan(per_image) else per_image
    evidence = [
        f"the learning curve at {labels.n} labels is at {labels.now.as_share()} and is expected "
        f"to reach {labels.then.as_share()} at {labels.n_then}",
        f"its error falls as n^-{labels.exponent:.1f} towards {labels.asymptote:.3f}",
    ]
    if labels.ceiling < 1:
        evidence.append(f"wrong labels limit it to {labels.ceiling:.3f}")
    gaining = [c for c in labels.by_class if c.gain.value > 0][:CLASSES_NAMED]
    evidence += [
        f"{c.label}: recall {c.recall.as_share()}, {c.gain.as_points()} with twice the labels"
        for c in gaining
    ]
    what = ", ".join(str(c.label) for c in gaining)
    yield Option("label_more", what, labels.gain, more * (per_label + machine) / 60, tuple(evidence))


def _fine_tuning_options(
    domain: Domain | None,
    fine_tuning: FineTuning | None,
    accuracy: Metric,
    per_class: float,
    noise: LabelNoise | None,
) -> Iterator[Option]:
    if fine_tuning is None and domain is None:
        return
    cut = fine_tuning.cut if fine_tuning is not None else fine_tune_from(domain) if domain else ""
    minutes = fine_tuning.minutes if fine_tuning is not None else math.nan
    if fine_tuning is not None and fine_tuning.gain is not None:
        evidence = (f"measured on an inner part of the training set: {fine_tuning.gain.as_points()}",)
        yield Option("fine_tune", cut, fine_tuning.gain, minutes, evidence)
        return
    if domain is None:
        yield Option("fine_tune", cut, None, minutes, ("not measured",), measured=False)
        return
    ceiling = noise.ceiling if noise is not None else 1.0
    errors = max(ceiling - accuracy.value, 0.0)
    share = FINE_TUNING[domain.verdict]
    evidence_list = [
        f"expected, not measured: {share[0]:.0%} [{share[1]:.0%}, {share[2]:.0%}] of the remaining errors "
        f"on {domain.verdict} data",
        f"the best layer is {domain.peak}",
    ]
    if per_class < FINE_TUNE_FROM:
        share = (0.0, -0.1, share[2] / 2)
        evidence_list.append(
            f"fine-tuning was never measured with so few images as {per_class:.0f} a class (only with "
            f"{FINE_TUNE_FROM} or more)"
        )
    gain = Metric(*(errors * part for part in share))
    yield Option("fine_tune", cut, gain, minutes, tuple(evidence_list), measured=False)


def _backbone_options(scores: Sequence[BackboneScore], current: str) -> Iterator[Option]:
    others = [score for score in scores if score.name != current]
    if not others:
        return
    best = max(others, key=lambda score: score.accuracy.value)
    evidence = (
        f"ridge on the same {best.n} images: {best.accuracy.as_share()}",
        f"compared with {current or 'the current backbone'} {best.over_current.as_points()}",
        f"LogME {best.log_me:.3f}, H-score {best.h_score:.2f}",
    )
    yield Option("other_backbone", best.name, best.over_current, best.minutes, evidence)


def is_last_average(block: str) -> bool:
    """Whether a block is an average of the last features, alone or with another pooling."""
    return isinstance(block, BlockName) and (block.network, block.cut, block.pool[:3]) == ("", "last", "avg")
