"""Advice in sentences: each says one fact with its numbers, the first what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from featx.advice.recommend import Advice, Domain, Option
    from featx.evaluation import Metric

DO: dict[str, str] = {
    "use_last": "use the last features",
    "use_block": "use {what}",
    "combine": "combine {what}",
    "label_more": "label twice as many images",
    "fine_tune": "fine-tune the layers above {what}",
    "other_backbone": "use the backbone {what} (last features of both compared)",
}


def say(advice: Advice) -> list[str]:
    """Sentences: what to do, then why, then what was weighed besides."""
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
            f"Leave it as it is: accuracy {_value(advice.accuracy)} with {advice.in_use}, and nothing that "
            "was measured promises a point more."
        )
        return
    first = _do(step)
    yield f"Next, {first}: {_gain(step)}{_cost(step)}."
    if step.action == "label_more" and step.what:
        yield f"Most is to be won for {step.what}."


def _domain(domain: Domain) -> Iterator[str]:
    last = domain.layers[-1]
    best = next(layer for layer in domain.layers if layer.block == domain.peak)
    if domain.peak_at_end:
        yield (
            f"The probe is best at or near the end of the network ({last.block}: {_value(last.accuracy)}): "
            "no earlier layer is better beyond its interval."
        )
    else:
        yield (
            f"The probe peaks before the end: {best.block} has {_value(best.accuracy)}, the last features "
            f"{_value(last.accuracy)} ({_points(best.over_last)})."
        )
    yield (f"The last features use about {last.effective_rank:.0f} of {last.width} directions.")
    if domain.neighbours_behind is not None:
        yield f"A linear head is {_against(domain.neighbours_behind)} nearest neighbours."
    if domain.over_random is not None:
        yield f"The pretraining is {_against(domain.over_random)} random weights."
    yield {
        "similar": "So the pictures are similar to those that the network was trained on.",
        "between": "So the pictures are neither clearly similar to the network's own nor clearly different.",
        "different": "So the pictures are different from those that the network was trained on.",
    }[domain.verdict]


def _against(gain: Metric) -> str:
    """How one thing stands to another, by the difference and its interval."""
    if gain.low > 0:
        return f"{_points(gain)} ahead of"
    return f"{_points(gain)} behind" if gain.high < 0 else f"not distinguishable ({_points(gain)}) from"


def _labels(advice: Advice) -> Iterator[str]:
    labels = advice.labels
    if labels is not None:
        enough = "The set is large for its task" if advice.size == "large" else "More labels would still help"
        if advice.size == "small" and labels.gain.value < 0.01:
            enough = "Whether more labels would help is open"
        yield (
            f"{enough}: {labels.n_then:,} instead of {labels.n:,} labels are expected to bring "
            f"{_points(labels.gain)}."
        )
    if advice.noise is not None and advice.noise.rate.low > 0:
        yield (
            f"Of the answers that the classifier is surest of, {_percent(advice.noise.rate)} contradict "
            "their label: if these labels are wrong, no accuracy above "
            f"{advice.noise.ceiling:.3f} can be measured. Look at them first."
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
    return DO[option.action].format(what=option.what)


def _gain(option: Option) -> str:
    if option.gain is None:
        return "gain unknown"
    how = "measured" if option.measured and option.action != "label_more" else "expected"
    return f"{how} {_points(option.gain)}"


def _cost(option: Option) -> str:
    if math.isnan(option.minutes) or option.minutes == 0:
        return ""
    who = "of a person's time" if option.action == "label_more" else "here"
    if option.minutes >= 90:
        return f", about {option.minutes / 60:.1f} hours {who}"
    return f", about {max(option.minutes, 1):.0f} min {who}"


def _value(metric: Metric) -> str:
    return f"{metric.value:.3f} [{metric.low:.3f}, {metric.high:.3f}]"


def _points(metric: Metric) -> str:
    return f"{100 * metric.value:+.1f} points [{100 * metric.low:+.1f}, {100 * metric.high:+.1f}]"


def _percent(metric: Metric) -> str:
    return f"{100 * metric.value:.1f} % [{100 * metric.low:.1f}, {100 * metric.high:.1f}]"
