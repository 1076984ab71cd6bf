"""From measured values to what to do next: plain data first, words second.

CS231n's rule (similar or different, small or large) is answered by measuring: where along the network a
probe peaks, how far the pretraining is ahead of random weights, and what a doubling of the labels brings.
Nothing here computes anything dear; the caller hands in what it measured, and what was not measured is
either left out or says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from featx.advice.measures import LayerScore
from featx.audit import LabelNoise
from featx.curves import Forecast, LearningCurve
from featx.evaluation import Metric
from featx.selection.halving import BackboneScore

if TYPE_CHECKING:
    from featx.report.figures import ScorePath

WORTH = 0.01
"""A gain of less than a point is not worth a person's afternoon."""

FINE_TUNING: dict[str, tuple[float, float, float]] = {
    "similar": (0.10, 0.0, 0.3),
    "between": (0.20, 0.0, 0.45),
    "different": (0.30, 0.0, 0.6),
}
"""Part of the remaining errors that fine-tuning puts right, with its band, where nobody measured it: from
near sets, where it brings little, to far ones (spectrograms went from 0.93 to 0.96, two fifths of the
errors). An expectation, and said to be one."""

FINE_TUNE_FROM = 20
"""Images of a class, on average, below which fine-tuning mostly overfits."""

SECONDS_PER_LABEL = 3.0
"""What a person takes to label one image in a sorted folder; the caller may know better."""

SATURATED = 0.01
"""The set is large for its task if twice the labels bring surely less than this."""

CLASSES_NAMED = 3


@dataclass(frozen=True)
class Domain:
    """Similar or different: how the data stand to what the network was trained on.

    Parameters
    ----------
    verdict : {'similar', 'between', 'different'}
        ``different`` if an earlier layer is better than the last beyond its interval, or the pretraining is
        not ahead of random weights; ``similar`` if none is better by as much as a point; else ``between``.
    layers : tuple of LayerScore
        Probes by depth.
    peak : str
        Block of the best layer.
    peak_at_end : bool
        Whether no earlier layer is better than the last beyond its interval.
    neighbours_behind : Metric or None
        Accuracy of a linear probe less that of nearest neighbours on the last features: small where
        classes already are clusters.
    over_random : Metric or None
        Accuracy of the last features less that of the same network with random weights.
    """

    verdict: str
    layers: tuple[LayerScore, ...]
    peak: str
    peak_at_end: bool
    neighbours_behind: Metric | None = None
    over_random: Metric | None = None


@dataclass(frozen=True)
class Representation:
    """One representation that was tried by the search.

    Parameters
    ----------
    name : str
        Its blocks, joined by `` + ``.
    accuracy : Metric
        Out of fold.
    over_last : Metric
        Accuracy less that of the last features' average, paired.
    width : int
        Columns.
    """

    name: str
    accuracy: Metric
    over_last: Metric
    width: int

    @property
    def action(self) -> str:
        """``use_last``, ``use_block`` or ``combine``."""
        blocks = self.name.split(" + ")
        if len(blocks) > 1 or ":" not in self.name:
            return "combine"
        return "use_last" if blocks[0].startswith("last:avg") else "use_block"


@dataclass(frozen=True)
class FineTuning:
    """What fine-tuning would cost here, and what it brings if that was measured.

    Parameters
    ----------
    minutes : float
        Of training, on this machine.
    cut : str
        Tap above which the layers are trained.
    gain : Metric or None
        Measured accuracy less the probe's; None if it was not tried.
    """

    minutes: float
    cut: str
    gain: Metric | None = None


@dataclass(frozen=True)
class Option:
    """One thing that could be done.

    Parameters
    ----------
    action : {'use_last', 'use_block', 'combine', 'label_more', 'fine_tune', 'other_backbone'}
        What kind of thing.
    what : str
        The block, blocks, classes, cut or backbone.
    gain : Metric or None
        Expected change of accuracy against what is in use; None if unknown.
    minutes : float
        Its cost: of this machine, for labels of a person; NaN if unknown.
    evidence : tuple of str
        The numbers that the gain rests on.
    measured : bool
        Whether the gain was measured on these data, and is no rule of experience.
    done : bool
        Whether the classifier at hand has it already.
    """

    action: str
    what: str
    gain: Metric | None
    minutes: float
    evidence: tuple[str, ...]
    measured: bool = True
    done: bool = False

    @property
    def worthwhile(self) -> bool:
        """Whether it should be done: its expected gain is worth it, and measured gains exclude zero."""
        if self.gain is None or self.done or self.gain.value < WORTH:
            return False
        return not self.measured or self.gain.low > 0


@dataclass(frozen=True)
class Advice:
    """What was measured, and what to do next.

    Parameters
    ----------
    n, n_classes : int
        Images and classes.
    accuracy : Metric
        Of the classifier at hand, out of fold.
    in_use : str
        Representation it uses.
    domain : Domain or None
        Similar or different.
    size : {'small', 'large', 'unknown'}
        Whether more labels would help.
    labels : Forecast or None
        What twice the labels would bring.
    noise : LabelNoise or None
        How far wrong labels cap the accuracy.
    options : tuple of Option
        The best to do next first; what is done already, or not worth it, after.
    curve : LearningCurve or None
        What `labels` was foretold from.
    """

    n: int
    n_classes: int
    accuracy: Metric
    in_use: str
    domain: Domain | None
    size: str
    labels: Forecast | None
    noise: LabelNoise | None
    options: tuple[Option, ...] = field(default=())
    curve: LearningCurve | None = field(default=None, repr=False, compare=False)

    @property
    def next_step(self) -> Option | None:
        """The option to take next, None if nothing is worth it."""
        return next((option for option in self.options if option.worthwhile), None)

    @property
    def fine_tune(self) -> bool:
        """Whether fine-tuning is expected to pay: what ``fine_tune="auto"`` asks."""
        return any(option.action == "fine_tune" and option.worthwhile for option in self.options)

    def sentences(self) -> list[str]:
        """The advice in words, one fact a sentence."""
        from featx.advice.words import say

        return say(self)

    def plot(self, *, scratch: ScorePath | None = None) -> bytes:
        """Draw the probe by depth and the learning curve with its band, side by side, as PNG.

        Parameters
        ----------
        scratch : ScorePath, optional
            A network trained from scratch on the same images, over the number of labels.
        """
        from featx.report.figures import draw

        return draw(self, scratch=scratch)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, ready for JSON."""
        domain = None
        if self.domain is not None:
            domain = {
                **vars(self.domain),
                "layers": [layer.to_dict() for layer in self.domain.layers],
                "neighbours_behind": _plain(self.domain.neighbours_behind),
                "over_random": _plain(self.domain.over_random),
            }
        return {
            "n": self.n,
            "n_classes": self.n_classes,
            "accuracy": _plain(self.accuracy),
            "in_use": self.in_use,
            "domain": domain,
            "size": self.size,
            "labels": self.labels and self.labels.to_dict(),
            "noise": self.noise and self.noise.to_dict(),
            "curve": self.curve and self.curve.to_dict(),
            "options": [
                {
                    **vars(option),
                    "gain": _plain(option.gain),
                    "minutes": None if math.isnan(option.minutes) else option.minutes,
                    "evidence": list(option.evidence),
                    "worthwhile": option.worthwhile,
                }
                for option in self.options
            ],
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Advice:
        """Read what `to_dict` gave, also after a trip through JSON."""
        values: dict[str, Any] = {**plain, "accuracy": Metric.from_dict(plain["accuracy"])}
        if plain["domain"] is not None:
            own = dict(plain["domain"])
            own["layers"] = tuple(LayerScore.from_dict(layer) for layer in own["layers"])
            for name in ("neighbours_behind", "over_random"):
                own[name] = own[name] and Metric.from_dict(own[name])
            values["domain"] = Domain(**own)
        values["curve"] = plain["curve"] and LearningCurve.from_dict(plain["curve"])
        values["labels"] = plain["labels"] and Forecast.from_dict(plain["labels"])
        values["noise"] = plain["noise"] and LabelNoise(
            Metric.from_dict(plain["noise"]["rate"]), plain["noise"]["n_anchors"]
        )
        options = []
        for row in plain["options"]:
            own = {k: v for k, v in row.items() if k != "worthwhile"}
            own["gain"] = own["gain"] and Metric.from_dict(own["gain"])
            own["minutes"] = math.nan if own["minutes"] is None else own["minutes"]
            options.append(Option(**{**own, "evidence": tuple(own["evidence"])}))
        values["options"] = tuple(options)
        return cls(**values)


def advise(
    *,
    n: int,
    n_classes: int,
    accuracy: Metric,
    in_use: str,
    domain: Domain | None = None,
    representations: Sequence[Representation] = (),
    labels: Forecast | None = None,
    curve: LearningCurve | None = None,
    noise: LabelNoise | None = None,
    fine_tuning: FineTuning | None = None,
    backbones: Sequence[BackboneScore] = (),
    backbone: str = "",
    seconds_per_image: float = math.nan,
    seconds_per_label: float = SECONDS_PER_LABEL,
) -> Advice:
    """Weigh what was measured and say what to do next.

    Parameters
    ----------
    n, n_classes : int
        Images and classes.
    accuracy : Metric
        Of the classifier at hand, out of fold.
    in_use : str
        Representation it uses, named as in `representations`.
    domain : Domain, optional
        From `judge_domain`.
    representations : sequence of Representation
        What the search compared.
    labels : Forecast, optional
        From ``featx.curves.forecast``.
    curve : LearningCurve, optional
        What it was foretold from.
    noise : LabelNoise, optional
        From ``featx.audit.label_noise``.
    fine_tuning : FineTuning, optional
        Its cost here, and its gain if it was measured.
    backbones : sequence of BackboneScore
        Other backbones on the screened images.
    backbone : str
        Name of the backbone in use.
    seconds_per_image : float
        What extracting one image costs here.
    seconds_per_label : float
        What labelling one image costs a person.

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
    size = "unknown"
    if labels is not None:
        size = "large" if labels.gain.high < SATURATED else "small"
    return Advice(n, n_classes, accuracy, in_use, domain, size, labels, noise, tuple(options), curve)


def judge_domain(
    layers: Sequence[LayerScore],
    *,
    neighbours_behind: Metric | None = None,
    over_random: Metric | None = None,
) -> Domain:
    """Tell from probes by depth, and from a random twin where there is one, how far the data are.

    Parameters
    ----------
    layers : sequence of LayerScore
        By depth, from `depth_profile`.
    neighbours_behind, over_random : Metric, optional
        See `Domain`.

    Returns
    -------
    Domain
    """
    peak = max(layers, key=lambda layer: layer.accuracy.value)
    at_end = not any(layer.over_last.low > 0 for layer in layers)
    ahead = over_random is None or over_random.low > 0
    if not at_end or not ahead:
        verdict = "different"
    elif peak.over_last.value <= WORTH:
        verdict = "similar"
    else:
        verdict = "between"
    return Domain(verdict, tuple(layers), peak.block, at_end, neighbours_behind, over_random)


def fine_tune_from(domain: Domain) -> str:
    """Name the tap above which to train: where the probe peaks, or one stage below the end.

    Up to the peak the pretrained features serve the task; what lies above is what has to change.
    """
    last = domain.layers[-1]
    below = [layer for layer in domain.layers if layer.depth < last.depth] or [last]
    if domain.peak_at_end:
        return _tap(below[-1].block)
    better = [layer for layer in below if layer.over_last.low > 0]
    return _tap(max(better, key=lambda layer: layer.accuracy.value).block)


def _representation_options(tried: Sequence[Representation], in_use: str) -> Iterator[Option]:
    """The best of each kind: last, one block, a combination."""
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
            f"accuracy {_interval(best.accuracy)} out of fold",
            f"against the last features {_points(best.over_last)}",
            f"{best.width} columns",
        )
        yield Option(action, best.name, gain, 0.0, evidence, done=best.name == in_use)


def _against(a: Metric, b: Metric) -> Metric:
    """Difference of two differences from the same third, by the wider of their intervals."""
    wider = a if a.high - a.low >= b.high - b.low else Metric(-b.value, -b.high, -b.low)
    value = a.value - b.value
    return Metric(value, value + wider.low - wider.value, value + wider.high - wider.value)


def _label_options(labels: Forecast | None, per_image: float, per_label: float) -> Iterator[Option]:
    if labels is None:
        return
    more = labels.n_then - labels.n
    machine = 0.0 if math.isnan(per_image) else per_image
    evidence = [
        f"the learning curve at {labels.n} labels is at {_interval(labels.now)} and heads for "
        f"{_interval(labels.then)} at {labels.n_then}",
        f"its error falls as n^-{labels.exponent:.1f} towards {labels.asymptote:.3f}",
    ]
    if labels.ceiling < 1:
        evidence.append(f"wrong labels cap it at {labels.ceiling:.3f}")
    gaining = [c for c in labels.by_class if c.gain.value > 0][:CLASSES_NAMED]
    evidence += [
        f"{c.label}: recall {_interval(c.recall)}, {_points(c.gain)} with twice the labels" for c in gaining
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
        evidence = (f"measured on an inner part of the training set: {_points(fine_tuning.gain)}",)
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
        f"the probe peaks at {domain.peak}",
    ]
    if per_class < FINE_TUNE_FROM:
        share = (0.0, -0.1, share[2] / 2)
        evidence_list.append(
            f"{per_class:.0f} images a class are few to train layers on ({FINE_TUNE_FROM} or more)"
        )
    gain = Metric(*(errors * part for part in share))
    yield Option("fine_tune", cut, gain, minutes, tuple(evidence_list), measured=False)


def _backbone_options(scores: Sequence[BackboneScore], current: str) -> Iterator[Option]:
    others = [score for score in scores if score.name != current]
    if not others:
        return
    best = max(others, key=lambda score: score.accuracy.value)
    evidence = (
        f"ridge on the same {best.n} images: {_interval(best.accuracy)}",
        f"against {current or 'the one in use'} {_points(best.over_current)}",
        f"LogME {best.log_me:.3f}, H-score {best.h_score:.2f}",
    )
    yield Option("other_backbone", best.name, best.over_current, best.minutes, evidence)


def _tap(block: str) -> str:
    return block.split(":")[0]


def _plain(metric: Metric | None) -> dict[str, float | None] | None:
    return None if metric is None else metric.to_dict()


def _interval(metric: Metric) -> str:
    return f"{metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}]"


def _points(metric: Metric) -> str:
    return f"{100 * metric.value:+.1f} points [{100 * metric.low:+.1f}, {100 * metric.high:+.1f}]"
