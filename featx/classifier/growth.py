"""Grow a model: compute only new images, keep test images in the test part, and say what changed.

The features of the old images are in the cache and their labels in the model, so the old images are not
opened. By default the head is refitted with the configuration that won before: cross-validated and calibrated
on the grown training part. The search is repeated only if a rival is better there beyond chance.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from featx.advice import Advice, advise_on_features
from featx.classifier.comparison import (
    CLASSES_NAMED,
    ClassChange,
    change_in_words,
    changed_classes,
    class_changes,
    widened,
)
from featx.classifier.estimator import ImageClassifier
from featx.classifier.fitting import Fitted
from featx.classifier.grouping import groups_with_kin, kin_of_training
from featx.classifier.inputs import as_classes
from featx.classifier.model import GROUP_BYTES, FittedImages, ImageModel, hash_groups
from featx.classifier.record import ApartFromKin, FitRecord
from featx.classifier.rivals import better_rival
from featx.classifier.settings import FitSettings, settings_of
from featx.evaluation import Comparison, Evaluation, compare, evaluate
from featx.exceptions import DataError, FeatxWarning, LabelError, UsageError
from featx.features import FeatureBlocks
from featx.images import ImageSet
from featx.records import Record
from featx.representation import BlockName
from featx.selection.candidates import AUTO
from featx.selection.networks import gather
from featx.selection.tuning import TunedHead, tune, tune_again
from featx.spec import FeatureSpec
from featx.splits import check_labels, image_groups, stable_test_mask
from featx.stores.base import FeatureStore

OF_ONE_PASS = {"cut", "pool"}
"""Fields in which specs may differ and still be computed by the same forward pass."""


@dataclass(frozen=True)
class Growth(Record):
    """What new images changed.

    Parameters
    ----------
    n_before, n_added : int
        Images of the old model, and new ones that were taken in.
    n_test : int
        Test images now, of which all old ones were test before.
    computed : int
        Images that went through the network.
    duplicates : tuple of str
        New images that the model knew already (same bytes), or that came twice.
    n_kin : int
        New images that are near copies of others. They are in the part of these.
    apart : ApartFromKin or None
        The score without test images that have kin in the training part; None if there are none.
    conflicts : tuple of str
        Those of them with another label than before, as words; the older label was kept.
    new_classes : tuple
        Labels that the old model did not know.
    change : Comparison
        New model minus old on the whole test part.
    change_on_old_test : Comparison
        The same on the test images that the old model had.
    by_class : tuple of ClassChange
        The most changed first.
    advice : Advice or None
        Measured on the grown training part; None if it could not be measured.
    evaluation : Evaluation
        The new model on the test part.
    choice : str
        Whether the old choice stays, against two rivals, in words; empty if there was no rival.
    """

    n_before: int
    n_added: int
    n_test: int
    computed: int
    duplicates: tuple[str, ...]
    n_kin: int
    apart: ApartFromKin | None
    conflicts: tuple[str, ...]
    new_classes: tuple[Any, ...]
    change: Comparison
    change_on_old_test: Comparison
    by_class: tuple[ClassChange, ...]
    advice: Advice | None
    evaluation: Evaluation
    choice: str = ""

    def sentences(self) -> list[str]:
        """What changed, in words."""
        said = [
            f"{self.n_added} new images beside {self.n_before}; {self.computed} went through the network."
        ]
        if self.duplicates:
            said.append(f"{len(self.duplicates)} were known already (same bytes) and change nothing.")
        if self.n_kin:
            verb = "is a near copy" if self.n_kin == 1 else "are near copies"
            said.append(f"{self.n_kin} new {verb} of others, and in the part of these (--no-auto-groups).")
        if self.apart is not None:
            said.append(f"{self.apart.sentence()}.")
        said += [f"Two labels for one image: {conflict}." for conflict in self.conflicts[:CLASSES_NAMED]]
        if self.new_classes:
            said.append(f"New classes: {', '.join(map(str, self.new_classes))}.")
        if self.choice:
            said.append(self.choice)
        for what, found in (("whole test part", self.change), ("old test part", self.change_on_old_test)):
            said.append(f"On the {what}: {change_in_words(found)}.")
        said += changed_classes(self.by_class)
        options = () if self.advice is None else self.advice.options
        tuning = next((o for o in options if o.action == "fine_tune"), None)
        if tuning is not None and tuning.gain is not None:
            now = "It may be time to fine-tune" if tuning.worthwhile else "It is not yet time to fine-tune"
            said.append(f"{now}: {100 * tuning.gain.value:+.1f} points are expected of it.")
        return said


def grow(
    clf: ImageClassifier,
    images: ImageSet,
    *,
    old: ImageSet | None = None,
    test_size: float = 0.2,
    split_salt: str = "",
    n_trials: int = 0,
) -> tuple[ImageClassifier, Growth]:
    """Add new labelled images to a fitted (or loaded) classifier.

    Parameters
    ----------
    clf : ImageClassifier
        Not changed. Its store must hold the features of its images.
    images : ImageSet
        The new images, with labels.
    old : ImageSet, optional
        The images it was fitted on; needed where the cache does not have their features.
    test_size, split_salt
        For the new images, as in `ImageClassifier.fit_with_test`; the old ones stay where they were.
    n_trials : int
        0 refits the configuration that won before, and searches anew only if one of two rivals is better
        beyond chance out of fold; more searches anew in any case.

    Returns
    -------
    ImageClassifier
        The grown classifier.
    Growth
        What changed.

    Raises
    ------
    UsageError
        If features of the old images are not found.
    DataError
        If the old model has no test part, or no new image is left.
    """
    check_is_fitted(clf)
    model, settings = clf._fitted.model, settings_of(clf)
    _refuse(model, clf._fitted.record, images)
    images = as_classes(images, model.classes)
    store = settings.machine["store"]
    known = model.images
    specs = _cached_specs(model, store, known.ids)
    extractor = gather(specs, model.cards, settings.machine, backbones=model.backbone_files)
    computed = 0
    if old is not None:
        computed += extractor.extract(old.sources, names=old.names, on_error="skip").computed
    _refuse_missing(store, specs, known.ids)
    found = extractor.extract(images.sources, names=images.names, on_error="skip")
    fresh = images.select(found.kept)
    taken, duplicates, conflicts = _new_images(model, found.ids, fresh)
    if not len(taken):
        raise DataError(f"all {len(fresh)} images are known to this model already: nothing to add.")
    data = _join(model, fresh.select(taken), found.ids[taken], settings, test_size, split_salt)
    readers = {name: _reader(store, spec.key, data.ids) for name, spec in specs.items()}
    blocks = FeatureBlocks({}, len(data.ids), readers=readers)

    tuned, choice, searched = _refit(model, clf.record_, settings, specs, blocks, data, n_trials)
    grown_images = FittedImages(
        data.ids, data.is_test, np.searchsorted(tuned.classes, data.labels), data.groups
    )
    grown_model = ImageModel.of(tuned, specs, model.cards, grown_images, model.backbone_files)
    sampled = blocks.take(grown_images.sampled)
    grown_model = grown_model.sampled(grown_model.augmentation.averaged_blocks(sampled, grown_model.blocks))
    test = np.flatnonzero(data.is_test)
    deciding = grown_model.deciding(settings.decide)
    proba, proba_before = (
        one.proba(one.augmentation.averaged_blocks(blocks.take(test), one.blocks))
        for one in (grown_model, model)
    )
    after = deciding.decision.shares(proba)
    before = model.deciding(settings.decide).decision.shares(proba_before)
    before = widened(before, model.classes, grown_model.classes.tolist())
    test_groups = _take(image_groups(data.ids, _names(data.groups)), data.is_test)
    evaluation = evaluate(
        data.labels[test], proba, grown_model.classes, groups=test_groups, decision=deciding.decision
    )
    apart = ApartFromKin.of(evaluation, kin_of_training(data.ids, _names(data.groups), data.is_test))
    units = image_groups(data.ids[~data.is_test], _take(_names(data.groups), ~data.is_test))
    record = dataclasses.replace(
        FitRecord.of(tuned, data.labels[~data.is_test], units, deciding.decision),
        evaluation=evaluation,
        apart=apart,
        operating_points=deciding.operating_points(proba, data.labels[test]),
        skipped=(*images.skipped, *found.skipped),
        remarks=found.remarks,
        n_computed=computed + found.computed,
    )
    if not searched:  # for the rivals of the next growth
        record = dataclasses.replace(record, trials=clf.record_.trials)
    classes = grown_model.classes.tolist()
    codes = np.array([classes.index(label) for label in data.labels[test].tolist()], dtype=np.intp)
    was_test = test < len(known.ids)
    measure = partial(
        advise_on_features,
        blocks.only([name for name, spec in specs.items() if spec.view == 0]).take(~data.is_test),
        data.labels[~data.is_test],
        taps=[tap.name for tap in model.cards[0].taps],
        in_use=grown_model.blocks,
        oof_proba=record.oof_proba,
        head=str(record.params["head"]),
        in_use_name=str(record.params.get("representation", "")),
        groups=units,
        backbone=model.cards[0].name,
        seconds_per_image=(found.seconds - found.loading_s) / found.computed if found.computed else math.nan,
    )
    try:
        advice = measure()
    except Exception as error:  # the model is grown, and does not depend on advice
        advice = None
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        warnings.warn(f"no advice could be measured ({reason}).", FeatxWarning, stacklevel=2)
    growth = Growth(
        n_before=len(known.ids),
        n_added=len(taken),
        n_test=len(test),
        computed=record.n_computed,
        duplicates=duplicates,
        n_kin=data.n_kin,
        apart=apart,
        conflicts=conflicts,
        new_classes=tuple(label for label in classes if label not in model.classes.tolist()),
        change=compare(codes, after, before, groups=test_groups),
        change_on_old_test=compare(
            codes[was_test], after[was_test], before[was_test], groups=_take(test_groups, was_test)
        ),
        by_class=tuple(class_changes(codes, after, before, classes, model.classes.tolist())),
        advice=advice,
        evaluation=evaluation,
        choice=choice,
    )
    grown: ImageClassifier = clone(clf)
    grown._fitted = Fitted(grown_model, record)
    return grown, growth


@dataclass(frozen=True, eq=False)
class _Data:
    """Old and new images together."""

    ids: NDArray[np.uint8]
    labels: NDArray[Any]
    groups: NDArray[Any] | None
    is_test: NDArray[np.bool_]
    n_kin: int


def _refuse(model: ImageModel, record: FitRecord, images: ImageSet) -> None:
    """Refuse what cannot be added, before anything is computed."""
    if images.labels is None:
        raise LabelError("the new images have no labels; give class folders or a manifest with labels.")
    if model.network is not None:
        raise UsageError(
            "the network of this model was fine-tuned on the old images; fit again on all of them, or give "
            "the model file as the backbone: featx fit --backbone MODEL.featx."
        )
    if record.weighted or images.weights is not None:
        raise UsageError("sample weights of the old images are not kept; fit again on all images instead.")
    if "test" not in model.assignment.values():
        raise DataError("this model has no test part to compare on; fit it with one (featx fit) first.")


def _join(
    model: ImageModel,
    fresh: ImageSet,
    fresh_ids: NDArray[np.uint8],
    settings: FitSettings,
    test_size: float,
    salt: str,
) -> _Data:
    known = model.images
    ids = np.concatenate([known.ids, fresh_ids])
    old_labels = model.classes[known.codes].tolist()
    labels = check_labels([*old_labels, *np.asarray(fresh.labels).tolist()])
    groups, n_kin = _joined_groups(known, fresh), 0
    if settings.auto_groups and fresh.groups is None:
        store, isolate = settings.machine["store"], settings.machine["isolate"]
        groups, n_kin = groups_with_kin(fresh, known, ids, groups, store, isolate=isolate)
    is_test = _test_part(model, ids, labels, _names(groups), fresh, test_size, salt)
    return _Data(ids, labels, groups, is_test, n_kin)


def _cached_specs(model: ImageModel, store: FeatureStore, ids: NDArray[np.uint8]) -> dict[Any, FeatureSpec]:
    """The model's specs, and others of the same pass whose features are cached for all old images."""
    block = BlockName.parse(model.blocks[0])
    first = model.specs[block]
    specs = {name: model.specs[name] for name in model.blocks}
    specs |= model.augmentation.specs(specs)
    for key, spec in store.keys().items():
        alike = set(first.differing(spec)) <= OF_ONE_PASS and spec.pool != "none"
        name = spec.block.with_fields(network=block.network)
        if alike and name not in specs and not np.asarray(store.missing(key, ids)).any():
            specs[name] = spec
    return specs


def _refuse_missing(store: FeatureStore, specs: Mapping[str, FeatureSpec], ids: NDArray[np.uint8]) -> None:
    for name, spec in specs.items():
        missing = int(np.asarray(store.missing(spec.key, ids)).sum())
        if missing:
            raise UsageError(
                f"the features of {missing} of the {len(ids)} old images are not in this cache ({name}); "
                "name their folder as well (--old DIR), or fit again on all images."
            )


def _new_images(
    model: ImageModel, ids: NDArray[np.uint8], images: ImageSet
) -> tuple[NDArray[np.intp], tuple[str, ...], tuple[str, ...]]:
    """Positions of new images; names of the others; and descriptions of labels that contradict older ones."""
    labels = model.classes[model.images.codes].tolist()
    label_of = dict(zip(map(bytes, model.images.ids), labels, strict=True))
    taken, duplicates, conflicts = [], [], []
    for index, (digest, label) in enumerate(
        zip(map(bytes, ids), np.asarray(images.labels).tolist(), strict=True)
    ):
        if digest not in label_of:
            label_of[digest] = label
            taken.append(index)
            continue
        duplicates.append(images.names[index])
        if label_of[digest] != label:
            conflicts.append(f"{images.names[index]} is {label_of[digest]} and now {label}")
    return np.array(taken, dtype=np.intp), tuple(duplicates), tuple(conflicts)


def _joined_groups(known: FittedImages, fresh: ImageSet) -> NDArray[np.uint8] | None:
    """Hashes of the groups of old and new images; None if there are no groups."""
    if known.groups is None and fresh.groups is None:
        return None
    old = np.zeros((len(known.ids), GROUP_BYTES), np.uint8) if known.groups is None else known.groups
    none = np.full(len(fresh), None, dtype=object)
    return np.concatenate([old, hash_groups(none if fresh.groups is None else fresh.groups)])


def _names(groups: NDArray[np.uint8] | None) -> NDArray[Any] | None:
    """Hashes of groups as names; None for an image without a group."""
    if groups is None:
        return None
    names = np.full(len(groups), None, dtype=object)
    names[:] = [row.tobytes().hex() if row.any() else None for row in groups]
    return names


def _test_part(
    model: ImageModel,
    ids: NDArray[np.uint8],
    labels: NDArray[Any],
    groups: NDArray[Any] | None,
    fresh: ImageSet,
    test_size: float,
    salt: str,
) -> NDArray[np.bool_]:
    """Old images stay where they were; new ones go by their folder, or by the hash split."""
    if fresh.splits is None or not (fresh.splits == "test").any():
        return stable_test_mask(
            ids, labels, test_size=test_size, salt=salt, groups=groups, previous=model.assignment
        )
    return np.concatenate([model.images.is_test, fresh.splits == "test"])


def _refit(
    model: ImageModel,
    record: FitRecord,
    settings: FitSettings,
    specs: Mapping[str, FeatureSpec],
    blocks: FeatureBlocks,
    data: _Data,
    n_trials: int,
) -> tuple[TunedHead, str, bool]:
    """Tune on the grown training part: by default only the configuration that won before.

    Returns the model, what was found of its rivals, and whether the search was repeated.
    """
    train = ~data.is_test
    blocks, labels = blocks.take(train), data.labels[train]
    units = image_groups(data.ids[train], _take(_names(data.groups), train))
    search = {**settings.search, "n_trials": n_trials, "storage": None, "study_name": None, "callback": None}
    plain = blocks.only([name for name, spec in specs.items() if spec.view == 0])
    if n_trials:
        return tune(plain, labels, groups=units, settings=search), "", True
    tuned = tune_again(
        blocks.only(model.blocks), labels, groups=units, settings=search, params=record.params,
        views=model.augmentation.split(blocks, model.blocks),
        augmentation=model.augmentation,
    )  # fmt: skip
    if model.augmentation.uses_views:  # rivals would have to be tried with views, too
        return tuned, "", False
    choice, is_better = better_rival(tuned, record, plain, labels, groups=units, settings=search)
    if is_better:
        tuned = tune(plain, labels, groups=units, settings={**search, "n_trials": AUTO})
    return tuned, choice, is_better


def _reader(
    store: FeatureStore, key: str, ids: NDArray[np.uint8]
) -> Callable[[NDArray[np.intp]], NDArray[Any]]:
    return lambda some: store.read(key, ids[some])


def _take(values: NDArray[Any] | None, mask: NDArray[Any]) -> NDArray[Any] | None:
    return None if values is None else values[mask]
