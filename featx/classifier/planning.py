"""What the search of a fit will choose from, and how long it takes at most."""

from __future__ import annotations

from dataclasses import dataclass

from featx.classifier.inputs import labels_of
from featx.classifier.settings import FitSettings
from featx.heads import DEFAULT_HEADS, check_heads
from featx.images import ImageSet
from featx.search.plan import read_budget
from featx.selection.candidates import AUTO, widest


@dataclass(frozen=True)
class SearchTime:
    """What a search would do.

    Attributes
    ----------
    representations : int
        Blocks of features to choose from.
    heads : int
        Heads to choose from.
    seconds : float
        Time that is planned at most, on two cores.
    """

    representations: int
    heads: int
    seconds: float


def plan_search(images: ImageSet, settings: FitSettings) -> SearchTime:
    """Say what a search would do.

    Parameters
    ----------
    images : ImageSet
        With labels.
    settings : FitSettings
        The parameters; of several backbones the first is taken.
    """
    search = settings.search
    check_heads(search["heads"])
    recipe = {**settings.recipe, "backbone": settings.backbones[0]}
    if recipe["resize"] == AUTO:  # the others are tried on a few hundred images only
        recipe["resize"] = "crop"
    extractor = widest(recipe, settings.machine)
    seconds = min(read_budget(search["budget"], len(labels_of(images))), settings.budget.seconds)
    return SearchTime(len(extractor.specs_), len(search["heads"] or DEFAULT_HEADS), seconds)
