"""How long the search of a fit takes here, measured on made-up features of the same shape."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass

import numpy as np

from featx.classifier.inputs import labels_of
from featx.classifier.settings import FitSettings
from featx.exceptions import SearchWarning
from featx.heads import DEFAULT_HEADS, HEADS, check_heads
from featx.images import ImageSet
from featx.search import HeadSearchCV
from featx.selection.candidates import AUTO, widest
from featx.splits import check_labels, fold_repeats

TRIAL_ROWS = 1000
"""Images of the trial at most; more images take proportionally longer."""

TRIAL_S = 15.0
"""Seconds of the trial at most."""


@dataclass(frozen=True)
class SearchTime:
    """What a search would do.

    Attributes
    ----------
    representations : int
        Blocks of features to choose from.
    configurations : int
        Configurations to evaluate, about.
    seconds : float
        Time here, about: at most the time limit of the search.
    """

    representations: int
    configurations: int
    seconds: float


def plan_search(images: ImageSet, settings: FitSettings) -> SearchTime:
    """Estimate the time of the search from a short one on random features.

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
    widths = [extractor.card_.width(spec) for spec in extractor.specs_.values()]
    y = np.unique(check_labels(labels_of(images)), return_inverse=True)[1]
    rng = np.random.default_rng(0)
    kept = np.sort(rng.permutation(len(y))[:TRIAL_ROWS])
    kept = kept[np.bincount(y[kept])[y[kept]] > 1]
    means = rng.normal(size=(y.max() + 1, int(np.median(widths))))
    features = (means[y[kept]] + 2 * rng.normal(size=(len(kept), means.shape[1]))).astype(np.float32)
    trial = HeadSearchCV(
        search["heads"], n_trials=0, timeout=TRIAL_S, cv=search["cv"], n_jobs=settings.n_threads,
        n_repeats=fold_repeats(len(y)) if search["n_repeats"] == AUTO else search["n_repeats"],
        random_state=0, refit=False,
    )  # fmt: skip
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SearchWarning)
        trial.fit(features, y[kept])
    n_grid = len(trial.cv_results_["params"])
    seconds = (time.monotonic() - began) / n_grid
    names = search["heads"] or DEFAULT_HEADS
    n_quick = 0 if len(widths) == 1 else sum(HEADS[name].quick for name in names) * len(widths) + len(names)
    total = n_quick + n_grid + search["n_trials"]
    scale = len(y) / len(kept)
    limit = math.inf if search["timeout"] is None else search["timeout"]
    return SearchTime(len(widths), total, min(total * seconds * scale, limit))
