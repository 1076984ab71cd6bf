"""Recipes of fine-tuning that are known to win, and the choice among them by successive halving.

Every recipe is trained for a quarter of its epochs, with a schedule of that length, so that short trainings
can be compared. The better half is then trained for all epochs. All of this uses the images for training and
validation of one part, and not those of its comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from featx.exceptions import FeatxError, UsageError
from featx.extractor import FeatureExtractor
from featx.finetune.crossfit import Clock
from featx.finetune.phases import Phase
from featx.finetune.verdict import Parts, Verdict, judge

if TYPE_CHECKING:
    from featx.finetune.job import Job, TrainingResult

FEW = 500
"""Images below which a recipe trains as for few images. The experiments had 128, and 960 or more."""
FIRST = 0.25
"""Share of the epochs after which the worse half of the recipes is dropped."""
SHARES = (1.0, 0.5)
"""Shares of the epochs for the better half of the recipes: the first for which there is time. Two of three
recipes are left. To train both for half of the epochs, and the better one anew for all, would cost as much.
"""
HOPELESS = 0.05
"""Chance of a gain on the validation images below which nothing is trained after the first rung. It is low,
since a quarter of the epochs is less than what the network can do."""

ALL_LAYERS = Phase(epochs=14, lr=1e-3, batch_norm="trained")
FEW_ALL_LAYERS = ALL_LAYERS.replace(epochs=40, batch_size=16)
UPPER_LAYERS = Phase(epochs=20, lr=5e-4, batch_size=16)
UNFLIPPED = "rotate=10,shear=8,shift=0.08,zoom=0.15,border=edge"
FLIPPED = "flip=0.5,rotate=10,shift=0.08,zoom=0.15,border=edge"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained, how, and on which augmented images.

    Parameters
    ----------
    unfreeze : int or str
        See `FineTuner`.
    phase : Phase
        The training, with the head from the start.
    few : Phase
        The same for fewer than `FEW` images.
    view_policy : str
        Augmentation.
    views : int
        Stored augmented views of each image; 0 where images are augmented afresh in each epoch.
    side : int, optional
        Side of the input in pixels; by default that of the extractor.
    source : str
        The experiment of docs/finetuning.md that set it.
    """

    unfreeze: int | str
    phase: Phase
    few: Phase
    view_policy: str
    source: str
    views: int = 0
    side: int | None = None

    def params(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of a `FineTuner` with this recipe's cut, views and size of the input."""
        extractor = given["backbone"]
        if not isinstance(extractor, FeatureExtractor):
            extractor = FeatureExtractor(extractor)
        if self.side is not None:
            extractor = FeatureExtractor(**{**extractor.get_params(deep=False), "input_size": self.side})
        own = {"unfreeze": self.unfreeze, "views": self.views, "view_policy": self.view_policy}
        return {**given, **own, "backbone": extractor}

    def describe(self, n: int) -> str:
        """Say what is trained, for `n` training images."""
        what = {"all": "all layers"}.get(str(self.unfreeze), f"the last {self.unfreeze} stages")
        if isinstance(self.unfreeze, str) and self.unfreeze != "all":
            what = f"all layers above {self.unfreeze}"
        size = f" at {self.side} pixels" if self.side else ""
        images = f"{self.views} stored augmented views" if self.views else "augmented images"
        phase = self.phases(n)[-1]
        return f"{what}{size}, on {images}, {phase.epochs} epochs, learning rate {phase.lr:g}"

    def phases(self, n: int, share: float = 1.0) -> tuple[Phase, ...]:
        """Return the phases for `n` training images and a share of the epochs."""
        phase = self.few if n < FEW else self.phase
        return (
            Phase(trainable="head", epochs=0),
            phase.replace(epochs=max(1, math.ceil(share * phase.epochs))),
        )


RECIPES: Mapping[str, Recipe] = {
    "all-80": Recipe(
        unfreeze="all", phase=ALL_LAYERS, few=FEW_ALL_LAYERS, view_policy=UNFLIPPED, side=80,
        source="far sets: +3.3 points on omniglot_small1",
    ),
    "upper": Recipe(
        unfreeze=2, phase=UPPER_LAYERS, few=UPPER_LAYERS, view_policy=FLIPPED, views=8,
        source="settings for 128 images: 0.856 on shape_edges16, where the probe has 0.794",
    ),
    "all-112": Recipe(
        unfreeze="all", phase=ALL_LAYERS, few=FEW_ALL_LAYERS, view_policy=UNFLIPPED, side=112,
        source="far sets: +0.9 points on sign_digits; for 128 images 0.844 on shape_edges16",
    ),
}  # fmt: skip
"""Recipes by name, the cheapest first (for an image, from the table of epochs in docs/finetuning.md)."""


@dataclass(frozen=True)
class ChosenRecipe:
    """The best recipe.

    Parameters
    ----------
    name : str
        Its name.
    trained : TrainingResult
        Its last training on the images of the part.
    verdict : Verdict or None
        Only if the first trainings show nothing to gain: the comparison with the probe on the validation
        images.
    """

    name: str
    trained: TrainingResult
    verdict: Verdict | None = None

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Phases of the training: with fewer epochs if the time did not suffice for all."""
        return self.trained.settings.phases


class _TimeIsUp(Exception):
    """Ends a training."""


def choose_recipe(
    recipes: Mapping[str, Recipe],
    open_job: Callable[[str], Job],
    part: Parts,
    *,
    clock: Clock,
    refit: bool,
    tell: Callable[[str], None],
) -> ChosenRecipe:
    """Choose a recipe by successive halving.

    Parameters
    ----------
    recipes : mapping of str to Recipe
        The cheapest first.
    open_job : callable
        Returns the job of a recipe, by its name.
    part : Parts
        Images for training and validation.
    clock : Clock
        The budget of the fit.
    refit : bool
        Whether a training on all images follows.
    tell : callable
        Called with a sentence about each training.

    Raises
    ------
    UsageError
        If no recipe can be trained with this network, or none within the time.
    """
    n = len(part.train)
    found: dict[str, TrainingResult] = {}
    failed: dict[str, str] = {}

    def train(name: str, phases: tuple[Phase, ...]) -> None:
        try:
            if clock.left <= 0:
                raise _TimeIsUp
            found[name] = _train(open_job(name), part, phases, clock)
        except _TimeIsUp:
            failed[name] = f"{clock.timeout:.0f} seconds are too short"
        except FeatxError as error:  # not every network takes a small input
            failed[name] = str(error)
        else:
            tell(
                f"fine-tuning, recipe {name}: {_score(found[name])[0]:.1%} of {len(part.validation)} "
                f"validation images after {phases[-1].epochs} epochs, {found[name].seconds / 60:.1f} minutes"
            )

    for name in recipes:
        train(name, recipes[name].phases(n, FIRST))
    if not found:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise UsageError(f"no recipe of fine-tuning could be trained ({reasons}).")
    ranked = sorted(found, key=lambda name: _score(found[name]))[::-1]
    best = ranked[0]
    verdict = _compare(open_job(best), part, found[best], clock)
    if verdict.chance < HOPELESS:
        reason = f"stopped after the first epochs of {len(found)} recipes: {verdict.reason}"
        return ChosenRecipe(best, found[best], replace(verdict, kept=False, reason=reason))
    left = ranked[: math.ceil(len(ranked) / 2)]
    images = 1 + refit * len(open_job(best).y) / n
    for name in sorted(left, key=lambda name: _seconds(found[name], recipes[name].phases(n))):
        for share in SHARES:
            phases = recipes[name].phases(n, share)
            if phases != found[name].settings.phases and clock.left > images * _seconds(found[name], phases):
                train(name, phases)
                break
    best = max(left, key=lambda name: _score(found[name]))
    return ChosenRecipe(best, found[best])


def _train(job: Job, part: Parts, phases: tuple[Phase, ...], clock: Clock) -> TrainingResult:
    """Train and keep the last epoch, at which the schedule ends; raise `_TimeIsUp` after the last second."""

    def listen(record: dict[str, Any]) -> None:
        if clock.left < 0:
            raise _TimeIsUp

    epochs = tuple(phase.epochs for phase in phases)
    return job.train(
        part.train, part.validation, phases, last_epochs=epochs, on_epoch=listen, resumable=False
    )


def _score(trained: TrainingResult) -> tuple[float, float]:
    """Accuracy on the validation images after the last epoch; the log loss breaks ties."""
    last = trained.run.history[-1]
    return float(last["val_accuracy"]), -float(last["val_loss"])


def _seconds(trained: TrainingResult, phases: tuple[Phase, ...]) -> float:
    """Seconds that a training with other phases takes."""
    return trained.seconds * phases[-1].epochs / len(trained.run.history)


def _compare(job: Job, part: Parts, trained: TrainingResult, clock: Clock) -> Verdict:
    """Compare with the probe on the validation images."""
    index = part.validation
    return judge(
        job.y[index],
        job.proba(trained, index),
        job.probe_proba(job.fit_probe(part.train), index),
        groups=None if job.groups is None else job.groups[index],
        minutes=clock.seconds / 60,
    )
