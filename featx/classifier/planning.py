"""What the search of a fit will choose from, and how long it takes at most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featx.classifier.inputs import labels_of
from featx.classifier.settings import FitSettings
from featx.evaluation import make_decision
from featx.heads import DEFAULT_HEADS, check_heads
from featx.images import ImageSet
from featx.search.plan import read_budget
from featx.search.scoring import check_scoring
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
    check_request(images, settings)
    recipe = {**settings.recipe, "backbone": settings.backbones[0]}
    if recipe["resize"] == AUTO:  # the others are tried on a few hundred images only
        recipe["resize"] = "crop"
    extractor = widest(recipe, settings.machine)
    seconds = min(read_budget(search["budget"], len(labels_of(images))), settings.budget.seconds)
    return SearchTime(len(extractor.specs_), len(search["heads"] or DEFAULT_HEADS), seconds)


def check_request(images: ImageSet, settings: FitSettings) -> None:
    """Check heads, score and decision before the work.

    Raises
    ------
    UsageError
        If a head, a score or a class is not known.
    """
    labels = labels_of(images)
    check_heads(settings.search["heads"])
    if settings.search["scoring"] != AUTO:
        check_scoring(settings.search["scoring"], np.unique(labels))
    if settings.decide != AUTO:
        make_decision(settings.decide, *np.unique(labels, return_counts=True))
