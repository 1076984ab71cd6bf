"""Train on one part after another and compare with the probe, until the verdict is settled or time is up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featx.finetune.phases import Phase
from featx.finetune.verdict import Parts, Verdict, judge

if TYPE_CHECKING:
    from featx.finetune.job import Job, TrainingResult


@dataclass
class Clock:
    """Time of one fit.

    Parameters
    ----------
    timeout : float or None
        Seconds; None for no limit.
    """

    timeout: float | None
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return math.inf if self.timeout is None else self.timeout - self.seconds


def cross_fit(
    job: Job,
    parts: Sequence[Parts],
    phases: tuple[Phase, ...],
    *,
    clock: Clock,
    refit: bool,
    minutes: float = 0.0,
    first: TrainingResult | None = None,
    before_part: Callable[[int], None] = lambda number: None,
) -> tuple[list[TrainingResult], Verdict | None]:
    """Train on each part in turn and compare on its remaining images, while the verdict is open.

    Parameters
    ----------
    job : Job
    parts : sequence of Parts
        The first one is always used. A further one is used while the verdict is open and the time left
        suffices for it, and for a training on all images where that follows.
    phases : tuple of Phase
    clock : Clock
    refit : bool
        Whether a training on all images follows if the network is kept.
    minutes : float
        Time that was used to find the phases; it counts as training.
    first : TrainingResult, optional
        A finished training on the first part, which is used instead of another one.
    before_part : callable
        Called with the number of each part before its training.

    Returns
    -------
    trained : list of TrainingResult
        One for each part that was used.
    verdict : Verdict or None
        None if no images are left for a comparison.
    """
    trained: list[TrainingResult] = []
    tuned: list[NDArray[np.float64]] = []
    probed: list[NDArray[np.float64]] = []
    verdict, probe_minutes = None, 0.0
    for number, part in enumerate(parts):
        if verdict is not None:
            if not verdict.is_open:
                break
            if clock.left < refit_seconds(job, trained, parts) * refit + trained[-1].seconds:
                note = f"{number} of {len(parts)} parts were compared, since the time is used up: "
                verdict = replace(verdict, reason=f"{note}{verdict.reason}")
                break
        if number == 0 and first is not None:
            trained.append(first)
        else:
            before_part(number)
            trained.append(job.train(part.train, part.validation, phases))
            minutes += trained[-1].seconds / 60
        if not len(part.comparison):
            break
        started = time.monotonic()
        fitted = job.fit_probe(np.concatenate([part.train, part.validation]))
        probed.append(job.probe_proba(fitted, part.comparison))
        probe_minutes += (time.monotonic() - started) / 60
        tuned.append(job.proba(trained[-1], part.comparison))
        compared = np.concatenate([one.comparison for one in parts[: number + 1]])
        verdict = judge(
            job.y[compared],
            np.concatenate(tuned),
            np.concatenate(probed),
            groups=None if job.groups is None else job.groups[compared],
            parts=number + 1,
            minutes=minutes,
            probe_minutes=probe_minutes,
        )
    return trained, verdict


def refit_seconds(job: Job, trained: Sequence[TrainingResult], parts: Sequence[Parts]) -> float:
    """Return the seconds that a training on all images takes, from those that were trained."""
    images = sum(len(part.train) for part in parts[: len(trained)])
    return sum(one.seconds for one in trained) * len(job.y) / images
