"""Fine-tuning after the search, on the training part alone; the network is kept only if it is better.

Early stopping and the comparison use inner parts of the training part (see `featx.finetune`), so the test
part is never used. The report says why the network was kept or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from featx.classifier.advising import TrainingSet, advise_model
from featx.classifier.budget import LEAST_S, TUNING
from featx.classifier.model import ImageModel
from featx.classifier.record import FineTuneReport, FitRecord
from featx.classifier.settings import FitSettings
from featx.exceptions import DataError, LabelError, UsageError
from featx.extractor import FeatureExtractor
from featx.features import FeatureBlocks
from featx.finetune import FineTunedNetwork, FineTuner, LinearProbe, describe_phases, worth_trying
from featx.selection.candidates import AUTO
from featx.selection.networks import is_of
from featx.solvers import CLASS_WEIGHTS
from featx.splits import check_labels

AUTO_TIMEOUT = 3600.0
"""Seconds for all of fine-tuning with ``fine_tune="auto"``, where ``fine_tuner__timeout`` does not say."""
OF_RECIPES = frozenset(
    {"unfreeze", "phases", "views", "view_policy", "n_trials", "validation", "head", "recipes"}
)
"""Parameters of the fine-tuner that leave nothing to choose for a recipe, or do not go with one."""


def fine_tune(
    model: ImageModel,
    record: FitRecord,
    training: TrainingSet,
    features: FeatureBlocks,
    settings: FitSettings,
) -> tuple[FineTunedNetwork | None, FineTuneReport | None]:
    """Fine-tune if that was requested; return the network if it is kept, and the report.

    Both are None if fine-tuning was not requested.

    Parameters
    ----------
    model : ImageModel
        With the tuned head.
    record : FitRecord
        Of the search.
    training : TrainingSet
        The training images.
    features : FeatureBlocks
        Their features.
    settings : FitSettings
        The parameters.
    """
    if settings.fine_tune is False:
        return None, None
    advised: dict[str, Any] = {}
    budget = settings.budget
    if budget.share(TUNING) < LEAST_S:
        return None, _not_tried(f"{budget.left:.0f} s of the budget are left", settings)
    if settings.fine_tune == AUTO:
        reason, cut = _advised(model, record, training, features, settings)
        if reason:
            return None, _not_tried(reason, settings)
        advised = {} if budget.is_limited else {"timeout": AUTO_TIMEOUT}
        if chooses_recipe(settings):
            advised |= {"recipes": AUTO}
        elif cut:
            advised |= {"unfreeze": cut}
    tuner = tuner_of(settings, model=model, params=record.params, **advised)
    if budget.is_limited:
        tuner.timeout = min(budget.share(TUNING), math.inf if tuner.timeout is None else tuner.timeout)
    try:
        images = training.images
        tuner.fit(
            images,
            check_labels(images.labels),
            groups=images.groups,
            sample_weight=images.weights,
            probe=LinearProbe(model.head, features.stack(model.blocks), model.calibration),
        )
    except UsageError as error:
        if tuner.recipes is None or settings.fine_tune != AUTO:
            raise
        return None, _not_tried(str(error), settings)  # the network takes no recipe, or the time is too short
    except LabelError as error:  # the result of the search remains
        reason = f"the images cannot be divided into parts for training, stopping and comparison ({error})"
        return None, _not_tried(reason, settings)
    verdict = tuner.verdict_
    reason = "kept without a comparison, since verdict is 0." if verdict is None else verdict.reason
    report = FineTuneReport(
        tried=True,
        kept=verdict is None or verdict.kept,
        reason=f"recipe {tuner.recipe_}: {reason}" if tuner.recipe_ else reason,
        verdict=verdict,
        cut="" if tuner.network_.whole else tuner.network_.spec.cut,
        disk="" if tuner.plan_ is None else tuner.plan_.reason,
        phases=tuple(describe_phases(tuner.phases_, tuner.trained_, tuner.head)),
        history=tuple(tuner.history_),
    )
    return tuner.network_ if report.kept else None, report


def chooses_recipe(settings: FitSettings) -> bool:
    """Whether fine-tuning chooses among the recipes."""
    return settings.fine_tune == AUTO and OF_RECIPES.isdisjoint(settings.fine_tuner)


def tuner_of(
    settings: FitSettings,
    *,
    model: ImageModel | None = None,
    params: Mapping[str, Any] | None = None,
    **advised: Any,
) -> FineTuner:
    """Return the fine-tuner of a fit: its network, resizing, store, device and seed.

    Parameters
    ----------
    settings : FitSettings
        Parameters of the fine-tuner that were given win over `advised`.
    model : ImageModel, optional
        Its first network and resizing are used; without one, those of the settings.
    params : mapping, optional
        The selected configuration, whose class weights are used.
    **advised
        Parameters of `FineTuner`.
    """
    extractor = {**settings.recipe, **settings.machine, "cut": None, "pool": "avg"}
    if model is not None:
        first = model.specs[model.blocks[0]]
        card = next(card for card in model.cards if is_of(first, card))
        extractor |= {
            "resize": first.resize,
            "pixel_range": first.pixel_range,
            "backbone": model.backbone_files.get(card.weights, card.name),
        }
    else:
        extractor["backbone"] = settings.backbones[0]
        extractor["resize"] = "crop" if extractor["resize"] == AUTO else extractor["resize"]
    advised["class_weight"] = _class_weight(settings, params or {})
    return FineTuner(
        FeatureExtractor(**extractor),
        random_state=settings.random_state,
        callback=settings.callback,
        **{**advised, **settings.fine_tuner},
    )


def _not_tried(reason: str, settings: FitSettings) -> FineTuneReport:
    report = FineTuneReport(False, False, f"not tried: {reason.rstrip('.')}.")
    settings.say(f"fine-tuning {report.reason}", stage="fine-tuning")
    return report


def _advised(
    model: ImageModel,
    record: FitRecord,
    training: TrainingSet,
    features: FeatureBlocks,
    settings: FitSettings,
) -> tuple[str, str]:
    """Return why fine-tuning is not worth trying, empty if it is, and the layer that the advice begins at.

    Images unlike those of the pretraining are tried whatever the advice expects: on such sets fine-tuning was
    better with 8 images of a class, and where the probe was right on 99 % (docs/finetuning.md).
    """
    accuracy = record.oof_evaluation.metrics["accuracy"].value
    worth, reason = worth_trying(len(training.images), accuracy)
    if not worth:
        return reason, ""
    if settings.budget.is_limited:  # advice takes minutes, and recipes stop where nothing is gained
        return "", ""
    try:
        advice = advise_model(model, record, training, settings.machine, features=features)
    except DataError as error:
        return f"there are too few images to measure whether it pays ({error})", ""
    option = next((option for option in advice.options if option.action == "fine_tune"), None)
    if option is None:
        return "", ""
    near = advice.domain is not None and advice.domain.verdict == "similar"
    if near and not option.worthwhile:
        gain = f" ({100 * option.gain.value:+.1f} points)" if option.gain is not None else ""
        return f"the advice for these images expects too little of it{gain}", ""
    return "", option.what


def _class_weight(settings: FitSettings, params: Mapping[str, Any]) -> Any:
    """Class weights as given, or as the selected head has them if they were searched."""
    given = settings.search["class_weight"]
    if isinstance(given, Mapping) or given in (None, *CLASS_WEIGHTS):
        return given
    return params.get("class_weight")
