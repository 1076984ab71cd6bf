"""Fit a model on images: extract, search, fine-tune where requested, evaluate the held-out part."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.state import STATE
from featx.classifier.advising import TrainingSet
from featx.classifier.budget import EXTRACTION, NETWORKS, SEARCH, VIEWS
from featx.classifier.finetuning import fine_tune
from featx.classifier.grouping import kin_of_training, with_auto_groups
from featx.classifier.inputs import (
    FitData,
    all_skipped,
    as_classes,
    fit_data,
    held_out_part,
    labels_of,
    refuse_absent,
    refuse_too_many,
    refuse_unseen,
    warn_of_training_images,
)
from featx.classifier.model import FittedImages, ImageModel
from featx.classifier.planning import check_request
from featx.classifier.presets import missing_networks
from featx.classifier.record import ApartFromKin, FitRecord
from featx.classifier.settings import FitSettings
from featx.evaluation import Evaluation, OperatingPoint, shortfall
from featx.exceptions import FeatxWarning
from featx.extractor import Extraction, Plan, Progress
from featx.features import FeatureBlocks
from featx.images import ImageSet, Skipped
from featx.search import SearchProgress
from featx.search.costs import LEAST_BUDGET
from featx.search.plan import read_budget
from featx.selection.augmentation import Augmentation
from featx.selection.backbones import planned_names, select_networks
from featx.selection.candidates import AUTO, widest
from featx.selection.networks import Networks, gather
from featx.selection.tuning import NOISE_SHARE, Views, tune
from featx.splits import group_codes

FEW_IMAGES = 8
"""Images of which one view is computed, to know what all views of all images take."""

LEAST_SEARCH_S = 1.0
"""Seconds of a search for which a budget leaves no time."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A model, and what is known of it in this process.

    Parameters
    ----------
    model : ImageModel
        What predicts.
    record : FitRecord
        How it came about.
    training : TrainingSet, optional
        The training images, for advice.
    study : optuna.Study, optional
        All trials.
    cv_results : dict of arrays, optional
        One entry for each configuration of the search.
    images : ImageSet, optional
        All images of the fit, for reports.
    expected : array of shape (n_images, n_features), optional
        For a loaded model: features of synthetic images when it was saved, until they have been checked.
    """

    model: ImageModel
    record: FitRecord
    training: TrainingSet | None = None
    images: ImageSet | None = field(default=None, repr=False)
    study: Any = field(default=None, repr=False)
    cv_results: Mapping[str, Any] | None = field(default=None, repr=False)
    expected: NDArray[np.float32] | None = field(default=None, repr=False)


def fit_images(images: ImageSet, split: Mapping[str, Any] | None, settings: FitSettings) -> Fitted:
    """Fit a model on the training part, and evaluate it on the test part.

    Parameters
    ----------
    images : ImageSet
        With labels.
    split : mapping or None
        ``test_size``, ``salt`` and ``previous`` of `held_out_part`; None for no test part. Nothing is chosen
        or fitted on the test part.
    settings : FitSettings
        The parameters.

    Raises
    ------
    TooManyBadImagesError
        If more images than `settings.max_bad` allows cannot be read.
    LabelError
        If a class of the test part is not in the training part.
    """
    seconds: dict[str, float] = {}
    budget = settings.budget
    budget.begin(
        networks=len(settings.backbones) > 1,
        views=settings.views > 0,
        fine_tune=settings.fine_tune is not False,
    )
    images, names, held_out = _prepare(images, split, settings, seconds)
    _name_extra(settings)
    with _timed(seconds, "select"):
        networks, comparison = select_networks(
            settings.backbones,
            images.select(~held_out),
            recipe=settings.recipe,
            machine=settings.machine,
            n_all=len(images),
            budget_s=settings.backbone_budget,
            limit_s=budget.share(NETWORKS) if budget.is_limited else math.inf,
            extraction_s=lambda: EXTRACTION * budget.left,
            optional=settings.optional,
            say=settings.say,
            n_jobs=settings.n_threads,
            random_state=settings.seed,
        )
    with _timed(seconds, "extract"):
        found = networks.extract(images.sources, names=images.names, on_error="skip", ids=images.ids)
    STATE.release_networks()  # the search needs their memory; to open one again takes 0.06 s, by torch 0.16 s
    data = fit_data(images, held_out, found, max_bad=settings.max_bad)
    features = found.blocks.take(~data.is_test)
    budget.learn(comparison)
    views = _views(data.train, networks, settings)
    with _timed(seconds, "search"):
        tuned = tune(
            features,
            data.y,
            groups=data.groups,
            weight=data.train.weights,
            settings=_limited(settings, len(data.y)),
            views=views,
            callback=_reporter(settings),
        )
    model = ImageModel.of(
        tuned,
        found.specs,
        networks.cards_,
        _fitted_images(images, names, found, data, tuned.classes),
        networks.backbone_files,
    ).sampling(found, data.images, settings.machine)
    deciding = model.deciding(settings.decide)
    points = deciding.operating_points(tuned.oof_proba, data.y)
    record = FitRecord.of(tuned, data.y, data.groups, deciding.decision)
    training = TrainingSet(
        data.train, found.ids[~data.is_test], networks.specs_, networks.cards_, networks.backbone_files
    )
    with _timed(seconds, "fine-tune"):
        network, report = fine_tune(model, record, training, features, settings)
    if network is not None:
        model = replace(model, network=network).sampling(found, data.images, settings.machine)
    if split is not None:
        evaluation, points = _measure(model, found, data, settings, seconds)
        record = _compared(replace(record, evaluation=evaluation), model, found, data)
    if budget.is_limited:
        settings.say(budget.describe(seconds), stage="budget")
    record = replace(
        record,
        operating_points=points,
        backbones=comparison,
        fine_tuning=report,
        skipped=data.skipped,
        remarks=found.remarks,
        weighted=data.train.weights is not None,
        seconds=seconds,
        n_computed=found.computed,
    )
    return Fitted(model, record, training, data.images, tuned.study, tuned.cv_results)


def _name_extra(settings: FitSettings) -> None:
    """Name the extra with more networks, once for each cache, if a choice could use them."""
    store = settings.machine["store"]
    missing = missing_networks() if settings.optional else ()
    if missing and store.recall("hints", missing[0].extra) is None:
        settings.say(
            f"pip install 'featx[{missing[0].extra}]' adds {', '.join(one.name for one in missing)} to the "
            f"networks that are compared ({sum(one.megabytes for one in missing)} MB)"
        )
        store.remember("hints", missing[0].extra, {"named": True})


def _prepare(
    images: ImageSet, split: Mapping[str, Any] | None, settings: FitSettings, seconds: dict[str, float]
) -> tuple[ImageSet, NDArray[Any] | None, NDArray[np.bool_]]:
    """Check the settings, and find groups and the test part.

    Returns the images with groups as codes, the names of the groups, and the mask of the test part.
    """
    refuse_absent(images, settings.max_bad)
    settings.report(Progress(0, len(images)))  # the first seconds load the network
    check_request(images, settings)
    with _timed(seconds, "group"):
        images = with_auto_groups(images, settings)
    held_out = np.zeros(len(images), bool)
    if split is not None:
        images, held_out = held_out_part(images, **split)
    names = images.groups
    if names is not None:
        images = replace(images, groups=group_codes(names, len(images)))
    return images, names, held_out


def _measure(
    model: ImageModel, found: Extraction, data: FitData, settings: FitSettings, seconds: dict[str, float]
) -> tuple[Evaluation, tuple[OperatingPoint, ...]]:
    """Evaluate the decision in use, and the other ones, on the test part."""
    deciding = model.deciding(settings.decide)
    settings.report(Progress(0, len(data.test), stage="evaluate"))
    with _timed(seconds, "evaluate"):
        features = _test_features(model, found, data, settings)
        evaluation = deciding.evaluate(features, data.test, found.ids[data.is_test])
        points = deciding.operating_points(model.proba(features), labels_of(data.test))
    settings.report(Progress(len(data.test), len(data.test), stage="evaluate"))
    return evaluation, points


def _compared(record: FitRecord, model: ImageModel, found: Extraction, data: FitData) -> FitRecord:
    """The record with the score apart from kin; warn of a score far below that of cross-validation."""
    assert record.evaluation is not None
    kin = kin_of_training(found.ids, data.images.groups, data.is_test)
    _warn_of_shortfall(model, record.evaluation, record.oof_evaluation)
    return replace(record, apart=ApartFromKin.of(record.evaluation, kin))


def _warn_of_shortfall(model: ImageModel, evaluation: Evaluation, folds: Evaluation) -> None:
    said = "" if model.network is not None else shortfall(evaluation, folds)  # folds are of the head
    if said:
        warnings.warn(said, FeatxWarning, stacklevel=5)


def evaluate_images(
    model: ImageModel,
    folds: Evaluation | None,
    images: ImageSet,
    extract: Callable[[], Extraction],
    max_bad: float,
    min_confidence: float | None = None,
) -> tuple[Evaluation, list[Skipped]]:
    """Evaluate a model on labelled images; return also the images that were set aside.

    Parameters
    ----------
    model : ImageModel
        The model.
    folds : Evaluation or None
        Its score out of fold by the same decision: a score that is far below it is said in a warning.
    images : ImageSet
        With labels.
    extract : callable
        Returns their features; called when the labels have been checked.
    max_bad : float
        Fraction of images that may be unreadable.
    min_confidence : float, optional
        As for `ImageClassifier.evaluate`.
    """
    images = as_classes(images, model.classes)
    refuse_unseen(labels_of(images), model.classes, what="labels")
    found = extract()
    skipped = all_skipped(images, found.kept, found.skipped)
    refuse_too_many(skipped, len(images) + len(images.skipped), max_bad)
    warn_of_training_images(found.ids, model.assignment)
    readable = images.select(found.kept)
    evaluation = model.evaluate(found.blocks, readable, found.ids, min_confidence=min_confidence)
    if folds is not None:
        _warn_of_shortfall(model, evaluation, folds)
    return evaluation, skipped


def plan_fit(images: ImageSet, settings: FitSettings) -> dict[str, Plan]:
    """Plan the extraction of a fit for each backbone that may be chosen; keeps nothing."""
    recipe = dict(settings.recipe)
    if settings.views:
        recipe |= {"view": list(range(settings.views + 1)), "view_policy": settings.view_policy}
    if recipe["resize"] == AUTO:  # the others are tried on a few hundred images only
        recipe["resize"] = "crop"
    names = planned_names(
        settings.backbones,
        settings.machine["store"],
        n_all=len(images),
        budget_s=settings.backbone_budget,
        optional=settings.optional,
    )
    return {
        name: widest({**recipe, "backbone": name}, settings.machine, images.sources).plan(images.sources)
        for name in names
    }


def _limited(settings: FitSettings, n_images: int) -> Mapping[str, Any]:
    """Parameters of the search, with the seconds that the budget leaves for it."""
    budget, search = settings.budget, settings.search
    if not budget.is_limited:
        planned = read_budget(search["budget"], n_images)
        if LEAST_BUDGET < planned < math.inf:
            settings.say(
                f"the search takes about {planned:.0f} s at most, as long as the features of {n_images:,} "
                "images (--budget changes it)",
                stage="search",
            )
        return search
    seconds = max(budget.share(SEARCH) / (1 + NOISE_SHARE), LEAST_SEARCH_S)
    given, planned = search["timeout"], search["budget"]
    return {
        **search,
        "timeout": seconds if given is None else min(seconds, given),
        "budget": seconds if planned == AUTO else planned,
    }


def _views(train: ImageSet, networks: Networks, settings: FitSettings) -> Views:
    """Augmented views of the training images, which are computed when the tuning requests them.

    They are not, if a budget leaves too little time for it.
    """
    requested = Augmentation("rows", settings.views, settings.view_policy)
    budget = settings.budget

    def features(names: tuple[str, ...]) -> list[FeatureBlocks]:
        specs = requested.specs({name: networks.specs_[name] for name in names})
        gathered = partial(gather, cards=networks.cards_, machine=settings.machine)
        if budget.is_limited:
            first = {name: spec for name, spec in specs.items() if spec.view == 1}
            one = gathered(first, backbones=networks.backbone_files)
            few = one.extract(train.sources[:FEW_IMAGES], names=train.names[:FEW_IMAGES])
            each = (few.seconds - few.loading_s) / max(few.computed, 1)
            seconds, left = each * settings.views * len(train), budget.share(VIEWS)
            if seconds > left / 2:
                settings.say(
                    f"no views are tried: their features take about {seconds:.0f} s, and the budget leaves "
                    f"{left:.0f} s for views",
                    stage="views",
                )
                return []
        extractor = gathered(specs, backbones=networks.backbone_files)
        return requested.split(extractor.extract(train.sources, names=train.names).blocks, names)

    return Views(settings.views, settings.view_policy, features, seconds=lambda: budget.share(VIEWS))


def _fitted_images(
    images: ImageSet, names: NDArray[Any] | None, found: Extraction, data: FitData, classes: NDArray[Any]
) -> FittedImages:
    groups = None if names is None else names[found.kept]
    labels = labels_of(images)[found.kept]
    return FittedImages.of(found.ids, data.is_test, labels, groups, classes)


def _test_features(
    model: ImageModel, found: Extraction, data: FitData, settings: FitSettings
) -> FeatureBlocks:
    """Features of the test part; only views and a fine-tuned network need another extraction."""
    return model.features_of(found, data.images, np.flatnonzero(data.is_test), settings.machine)


def _reporter(settings: FitSettings) -> Callable[[SearchProgress], None]:
    """Report the progress of the search as that of the fit."""

    def report(state: SearchProgress) -> None:
        eta = None if math.isnan(state.eta_s) else state.eta_s
        settings.report(Progress(state.done, state.total, eta_s=eta, stage=f"search ({state.stage})"))

    return report


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - began
