"""Advice in sentences: the first says what to do, each other one a fact with its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator

from featx.advice.recommend import Advice, Domain, Option
from featx.evaluation import Metric

ACTIONS: dict[str, str] = {
    "use_last": "use the last features",
    "use_block": "use {what}",
    "combine": "combine {what}",
    "label_more": "label twice as many images",
    "fine_tune": "fine-tune the layers above {what}",
    "other_backbone": "use the backbone {what} (last features of both compared)",
}
"""What to do, for each action of an option."""


def sentences(advice: Advice) -> list[str]:
    """Say what to do, then why, then the other options."""
    return [
        *_next(advice),
        *(_domain(advice.domain) if advice.domain is not None else ()),
        *_labels(advice),
        *_others(advice),
    ]


def _next(advice: Advice) -> Iterator[str]:
    step = advice.next_step
    if step is None:
        yield (
            f"Leave it as it is: accuracy {advice.accuracy.as_share()} with {advice.in_use}, and no "
            "option is expected to bring a point more."
        )
        return
    first = _do(step)
    yield f"Next, {first}: {_gain(step)}{_cost(step)}."
    if step.action == "label_more" and step.what:
        yield f"The largest gain is expected for {step.what}."


def _domain(domain: Domain) -> Iterator[str]:
    last = domain.layers[-1]
    best = next(layer for layer in domain.layers if layer.block == domain.peak)
    if domain.peak_at_end:
        yield (
            f"The probe is best at or near the end of the network ({last.block}: "
            f"{last.accuracy.as_share()}): no earlier layer is significantly better."
        )
    else:
        yield (
            f"The probe peaks before the end: {best.block} has {best.accuracy.as_share()}, the last features "
            f"{last.accuracy.as_share()} ({best.over_last.as_points()})."
        )
    yield (f"The last features use about {last.effective_rank:.0f} of {last.width} directions.")
    if domain.over_neighbours is not None:
        yield f"A linear head is {_against(domain.over_neighbours)} nearest neighbours."
    if domain.over_random is not None:
        yield f"The pretraining is {_against(domain.over_random)} random weights."
    yield {
        "similar": "So the images are similar to those that the network was trained on.",
        "between": "So the images are neither clearly similar to the network's own nor clearly different.",
        "different": "So the images are different from those that the network was trained on.",
    }[domain.verdict]


def _against(gain: Metric) -> str:
    """Say whether a difference is positive, negative or not significant."""
    if gain.low > 0:
        return f"{gain.as_points()} ahead of"
    return f"{gain.as_points()} behind" if gain.high < 0 else f"not distinguishable ({gain.as_points()}) from"


def _labels(advice: Advice) -> Iterator[str]:
    labels = advice.labels
    if labels is not None:
        enough = "The set is large for its task" if advice.size == "large" else "More labels would still help"
        if advice.size == "small" and labels.gain.value < 0.01:
            enough = "Whether more labels would help is open"
        yield (
            f"{enough}: {labels.n_then:,} instead of {labels.n:,} labels are expected to bring "
            f"{labels.gain.as_points()}."
        )
    if advice.noise is not None and advice.noise.rate.low > 0:
        yield (
            f"Of the most confident predictions, {_as_percent(advice.noise.rate)} contradict their label: if "
            f"these labels are wrong, no accuracy above {advice.noise.ceiling:.3f} can be measured. Look at "
            "them first."
        )


def _others(advice: Advice) -> Iterator[str]:
    for option in advice.options:
        if option is advice.next_step:
            continue
        if option.done:
            yield f"In use already: {_do(option)} ({option.evidence[0]})."
        elif option.gain is not None:
            verdict = "Worth a try after that" if option.worthwhile else "Not worth it now"
            yield f"{verdict}: {_do(option)}, {_gain(option)}{_cost(option)}."


def _do(option: Option) -> str:
    return ACTIONS[option.action].format(what=option.what)


def _gain(option: Option) -> str:
    if option.gain is None:
        return "gain unknown"
    how = "measured" if option.measured and option.action != "label_more" else "expected"
    return f"{how} {option.gain.as_points()}"


def _cost(option: Option) -> str:
    if math.isnan(option.minutes) or option.minutes == 0:
        return ""
    who = "of a person's time" if option.action == "label_more" else "here"
    if option.minutes >= 90:
        return f", about {option.minutes / 60:.1f} hours {who}"
    return f", about {max(option.minutes, 1):.0f} min {who}"


def _as_percent(metric: Metric) -> str:
    return f"{100 * metric.value:.1f} % [{100 * metric.low:.1f}, {100 * metric.high:.1f}]"
