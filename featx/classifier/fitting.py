"""Fit a model on images: extract, search, fine-tune where requested, evaluate the held-out part."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx import __version__
from featx.backbones import BackboneCard
from featx.classifier.advising import TrainingSet
from featx.classifier.finetuning import fine_tune
from featx.classifier.inputs import (
    all_skipped,
    labels_of,
    refuse_too_many,
    refuse_unseen,
    warn_of_findings,
)
from featx.classifier.labels import remember_labels
from featx.classifier.model import ImageModel
from featx.classifier.record import FitRecord, best_trials
from featx.classifier.settings import FitSettings
from featx.evaluation import evaluate
from featx.extractor import Extraction, Progress
from featx.features import FeatureBlocks
from featx.images import ImageSet
from featx.search import SearchProgress
from featx.selection.augmentation import Augmentation
from featx.selection.backbones import select_networks
from featx.selection.networks import Networks, gather
from featx.selection.tuning import TunedHead, Views, tune
from featx.spec import FeatureSpec
from featx.splits import check_labels, image_groups
from featx.stores.base import Ids

PACKAGES = ("scikit-learn", "numpy", "timm", "torch")
"""Packages whose versions a record names."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a fit returns.

    Parameters
    ----------
    model : ImageModel
        What predicts.
    record : FitRecord
        How it came about.
    training : TrainingSet
        The training images, for advice.
    study : optuna.Study
        All trials.
    cv_results : dict of arrays
        One entry for each configuration of the search.
    """

    model: ImageModel
    record: FitRecord
    training: TrainingSet
    study: Any = field(repr=False)
    cv_results: Mapping[str, Any] = field(repr=False)


def fit_images(images: ImageSet, is_test: NDArray[np.bool_] | None, settings: FitSettings) -> Fitted:
    """Fit a model on the training part, and evaluate it on the test part.

    Parameters
    ----------
    images : ImageSet
        With labels.
    is_test : array of shape (n,), bool, or None
        The test part; None if there is none. Nothing is chosen or fitted on it.
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
    held_out = np.zeros(len(images), bool) if is_test is None else is_test
    with _timed(seconds, "select"):
        networks, comparison = select_networks(
            settings.backbones,
            images.select(~held_out),
            recipe=settings.recipe,
            machine=settings.machine,
            n_all=len(images),
            budget_s=settings.backbone_budget,
            say=settings.say,
            n_jobs=settings.n_threads,
            random_state=settings.seed,
        )
    with _timed(seconds, "extract"):
        found = networks.extract(images.sources, names=images.names, on_error="skip", ids=images.ids)
    skipped = all_skipped(images, found.kept, found.skipped)
    refuse_too_many(skipped, len(images) + len(images.skipped), settings.max_bad)
    images, held_out = images.select(found.kept), held_out[found.kept]
    warn_of_findings(found.ids, images, held_out)
    train, test = images.select(~held_out), images.select(held_out)
    features = found.blocks.take(~held_out)
    y, groups = check_labels(labels_of(train)), image_groups(found.ids[~held_out], train.groups)
    refuse_unseen(labels_of(test), np.unique(y), what="test images")
    with _timed(seconds, "search"):
        tuned = tune(
            features,
            y,
            groups=groups,
            weight=train.weights,
            settings=settings.search,
            views=_views(train, networks, settings),
            callback=_reporter(settings),
        )
    model = model_of(tuned, found.specs, networks.cards_, found.ids, held_out, networks.backbone_files)
    record = record_of(tuned, y, groups)
    training = TrainingSet(
        train, found.ids[~held_out], networks.specs_, networks.cards_, networks.backbone_files
    )
    with _timed(seconds, "fine-tune"):
        network, report = fine_tune(model, record, training, features, settings)
    model = replace(model, network=network)
    remember_labels(found.store, model.assignment, found.ids, labels_of(images), images.groups)
    evaluation = None
    if is_test is not None:
        with _timed(seconds, "evaluate"):
            evaluation = model.evaluate(_test_features(model, found, held_out, test, settings), test)
    record = replace(
        record,
        evaluation=evaluation,
        backbones=comparison,
        fine_tuning=report,
        skipped=tuple(skipped),
        remarks=found.remarks,
        seconds=seconds,
        n_computed=found.computed,
    )
    return Fitted(model, record, training, tuned.study, tuned.cv_results)


def model_of(
    tuned: TunedHead,
    specs: Mapping[str, FeatureSpec],
    cards: tuple[BackboneCard, ...],
    ids: Ids,
    is_test: NDArray[np.bool_],
    backbone_files: Mapping[str, str],
) -> ImageModel:
    """Return the model of what was tuned.

    Parameters
    ----------
    tuned : TunedHead
        The tuned head.
    specs : mapping of str to FeatureSpec
        How blocks are computed: at least those of the head.
    cards : tuple of BackboneCard
        The networks.
    ids : array of shape (n, 32), uint8
        Digests of all images.
    is_test : array of shape (n,), bool
        Those of the test part.
    backbone_files : mapping of str to str
        As for `ImageModel`.
    """
    return ImageModel(
        classes=tuned.classes,
        blocks=tuned.blocks,
        specs={name: specs[name] for name in tuned.blocks},
        cards=cards,
        head=tuned.pipeline,
        calibration=tuned.calibration,
        adjustment=tuned.adjustment,
        augmentation=tuned.augmentation,
        assignment={
            row.tobytes().hex(): "test" if test else "train" for row, test in zip(ids, is_test, strict=True)
        },
        backbone_files=backbone_files,
    )


def record_of(tuned: TunedHead, y: NDArray[Any], groups: NDArray[np.intp]) -> FitRecord:
    """Return the record of what was tuned, on training labels `y` in `groups`."""
    return FitRecord(
        params=tuned.params,
        score=tuned.score,
        scoring=tuned.scoring if isinstance(tuned.scoring, str) else tuned.scoring.__name__,
        oof_evaluation=evaluate(y, tuned.oof_proba, tuned.classes, groups=groups),
        choice=tuned.choice,
        tried=tuned.tried,
        trials=best_trials(tuned.cv_results),
        n_configurations=dict(Counter(tuned.cv_results["origin"].tolist())),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        versions={"featx": __version__} | {name: importlib.metadata.version(name) for name in PACKAGES},
        oof_proba=tuned.oof_proba,
    )


def _views(train: ImageSet, networks: Networks, settings: FitSettings) -> Views:
    """Augmented views of the training images, which are computed when the tuning requests them."""
    requested = Augmentation("rows", settings.views, settings.view_policy)

    def features(names: tuple[str, ...]) -> list[FeatureBlocks]:
        specs = requested.specs({name: networks.specs_[name] for name in names})
        extractor = gather(specs, networks.cards_, settings.machine, backbones=networks.backbone_files)
        return requested.split(extractor.extract(train.sources, names=train.names).blocks, names)

    return Views(settings.views, settings.view_policy, features)


def _test_features(
    model: ImageModel,
    found: Extraction,
    held_out: NDArray[np.bool_],
    test: ImageSet,
    settings: FitSettings,
) -> FeatureBlocks:
    """Features of the test part; only views and a fine-tuned network need another extraction."""
    if model.network is None and not model.augmentation.averages:
        return found.blocks.take(held_out)
    return model.extract(test.sources, settings.machine, names=test.names).blocks


def _reporter(settings: FitSettings) -> Callable[[SearchProgress], None]:
    """Report the progress of the search as that of the fit."""

    def report(state: SearchProgress) -> None:
        if settings.callback is not None:
            eta = None if math.isnan(state.eta_s) else state.eta_s
            settings.callback(Progress(state.done, state.total, eta_s=eta, stage=f"search ({state.stage})"))

    return report


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[stage] = time.monotonic() - began
