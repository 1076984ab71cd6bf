"""A model grows: only new images are computed, test stays test, and what changed is said.

The rows of the old images are in the cache and their labels beside them (or in the folder that the user
names), so the old pictures are not opened. The head is refitted warm: the configuration that won before,
cross-validated and calibrated on the grown training part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from featx.advice import Advice, ProbeResult, advise_on_features
from featx.classifier.estimator import MACHINE_PARAMS, SEARCH_PARAMS, ImageClassifier
from featx.classifier.labels import KnownLabels, recall_labels, remember_labels
from featx.evaluation import Comparison, Evaluation, Metric, compare, evaluate
from featx.exceptions import DataError, LabelError, UsageError
from featx.features import FeatureBlocks
from featx.images import ImageSet, read_digests
from featx.representation import BlockName
from featx.selection.networks import gather
from featx.selection.tuning import tune, tune_again
from featx.spec import FeatureSpec
from featx.splits import check_labels, image_groups, stable_test_mask
from featx.stores import open_store
from featx.stores.base import FeatureStore, as_ids

OF_ONE_PASS = {"cut", "pool"}
"""Fields in which spaces may differ and still come from the same forward pass."""

CLASSES_TOLD = 10


@dataclass(frozen=True)
class ClassChange:
    """One class's recall on the test part, before and after.

    Parameters
    ----------
    label : object
        The class.
    n : int
        Its test images.
    before, after : float
        Recall; before is NaN for a class that the old model did not know.
    difference : Metric
        After minus before, paired, with its 95 % interval.
    """

    label: Any
    n: int
    before: float
    after: float
    difference: Metric

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``not distinguishable``."""
        if self.difference.low > 0:
            return "better"
        return "worse" if self.difference.high < 0 else "not distinguishable"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON; None for what is not known."""
        plain = {name: _number(value) for name, value in vars(self).items()}
        return {**plain, "difference": self.difference.to_dict(), "verdict": self.verdict}


@dataclass(frozen=True)
class Growth:
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
        New pictures that the model knew already (same bytes), or that came twice.
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
    advice : Advice
        Measured on the grown training part.
    evaluation : Evaluation
        The new model on the test part.
    """

    n_before: int
    n_added: int
    n_test: int
    computed: int
    duplicates: tuple[str, ...]
    conflicts: tuple[str, ...]
    new_classes: tuple[Any, ...]
    change: Comparison
    change_on_old_test: Comparison
    by_class: tuple[ClassChange, ...]
    advice: Advice
    evaluation: Evaluation

    def sentences(self) -> list[str]:
        """What changed, in words."""
        said = [
            f"{self.n_added} new images beside {self.n_before}; {self.computed} went through the network."
        ]
        if self.duplicates:
            said.append(f"{len(self.duplicates)} were known already (same bytes) and change nothing.")
        said += [f"Two labels for one picture: {conflict}." for conflict in self.conflicts[:CLASSES_TOLD]]
        if self.new_classes:
            said.append(f"New classes: {', '.join(map(str, self.new_classes))}.")
        for what, found in (("whole test part", self.change), ("old test part", self.change_on_old_test)):
            said.append(f"On the {what}: {change_in_words(found)}.")
        said += changed_classes(self.by_class)
        tuning = next((o for o in self.advice.options if o.action == "fine_tune"), None)
        if tuning is not None and tuning.gain is not None:
            now = "It may be time to fine-tune" if tuning.worthwhile else "It is not yet time to fine-tune"
            said.append(f"{now}: {100 * tuning.gain.value:+.1f} points are expected of it.")
        return said

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, ready for JSON."""
        plain = {**vars(self)}
        for name in ("change", "change_on_old_test", "advice", "evaluation"):
            plain[name] = plain[name].to_dict()
        plain["by_class"] = [change.to_dict() for change in self.by_class]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}


def grow(
    clf: ImageClassifier,
    images: ImageSet,
    *,
    old: ImageSet | None = None,
    test_size: float = 0.2,
    split_salt: str = "",
    n_trials: int = 0,
) -> tuple[ImageClassifier, Growth]:
    """Take new labelled images into a fitted (or loaded) classifier.

    Parameters
    ----------
    clf : ImageClassifier
        Left as it is. Its store must hold the rows of its images.
    images : ImageSet
        The new images, with labels.
    old : ImageSet, optional
        The images it was fitted on; needed where the cache does not know their labels or rows.
    test_size, split_salt
        For the new images, as in `ImageClassifier.fit_with_test`; the old ones stay where they were.
    n_trials : int
        0 refits the configuration that won before; more searches anew.

    Returns
    -------
    ImageClassifier
        The grown one.
    Growth
        What changed.

    Raises
    ------
    UsageError
        If labels or rows of the old images are nowhere.
    DataError
        If the old model has no test part, or no new image is left.
    """
    if images.labels is None:
        raise LabelError("the new images have no labels; give class folders or a manifest with labels.")
    if clf.network_ is not None:
        raise UsageError(
            "the network of this model was fine-tuned on the old images; fit again on all of them, or give "
            "the model file as the backbone: featx fit --backbone MODEL.featx."
        )
    if images.weights is not None:
        raise UsageError("sample weights of the old images are not kept; fit again on all images instead.")
    if "test" not in clf.assignment_.values():
        raise DataError("this model has no test part to compare on; fit it with one (featx fit) first.")
    store = open_store(clf.store)
    known = _known(clf, store, old)
    specs = _specs_at_hand(clf, store, known.ids)
    machine = {name: getattr(clf, name) for name in MACHINE_PARAMS} | {"store": store}
    extractor = gather(specs, clf.cards_, machine, backbones=clf._model_files)
    computed = 0
    if old is not None:
        computed += extractor.extract(old.sources, names=old.names, on_error="skip").computed
    _refuse_missing(store, specs, known.ids)
    rows = extractor.extract(images.sources, names=images.names, on_error="skip")
    fresh = images.select(rows.kept)
    taken, duplicates, conflicts = _sort_out(known, rows.ids, fresh)
    if not len(taken):
        raise DataError(f"all {len(fresh)} images are known to this model already: nothing to add.")
    fresh = fresh.select(taken)

    ids = np.concatenate([known.ids, rows.ids[taken]])
    labels = check_labels([*known.labels.tolist(), *np.asarray(fresh.labels).tolist()])
    groups = _joined_groups(known, fresh)
    is_test = _test_part(clf.assignment_, ids, labels, groups, fresh, test_size, split_salt)
    readers = {name: _reader(store, spec.key, ids) for name, spec in specs.items()}
    blocks = FeatureBlocks({}, len(ids), readers=readers)

    grown = _refit(
        clf, specs, blocks.take(~is_test), ids[~is_test], labels[~is_test], _take(groups, ~is_test), n_trials
    )
    grown.n_computed_ = computed + rows.computed
    grown.skipped_ = [*images.skipped, *rows.skipped]
    grown.remarks_ = rows.remarks
    grown.assignment_ = {
        row.tobytes().hex(): "test" if test else "train" for row, test in zip(ids, is_test, strict=True)
    }
    remember_labels(store, grown.assignment_, ids, labels, groups)

    test = np.flatnonzero(is_test)
    test_groups = _take(groups, is_test)
    classes = grown.classes_.tolist()
    after, before = (
        one.proba_of_rows(one.augmentation_.judged(blocks.take(test), one.best_blocks_))
        for one in (grown, clf)
    )
    before = widened(before, clf.classes_, grown.classes_)
    grown.evaluation_ = evaluate(labels[test], after, grown.classes_, groups=test_groups)
    codes = np.array([classes.index(label) for label in labels[test].tolist()], dtype=np.intp)
    was_test = test < len(known.ids)
    advice = advise_on_features(
        blocks.only([name for name, spec in specs.items() if spec.view == 0]).take(~is_test),
        labels[~is_test],
        taps=[tap.name for tap in clf.card_.taps],
        in_use=grown.best_blocks_,
        oof_proba=grown.oof_proba_,
        head=str(grown.best_params_["head"]),
        in_use_name=str(grown.best_params_.get("representation", "")),
        groups=image_groups(ids[~is_test], _take(groups, ~is_test)),
        backbone=clf.card_.name,
        seconds_per_image=(rows.seconds - rows.loading_s) / rows.computed if rows.computed else math.nan,
    )
    return grown, Growth(
        n_before=len(known.ids),
        n_added=len(taken),
        n_test=len(test),
        computed=grown.n_computed_,
        duplicates=duplicates,
        conflicts=conflicts,
        new_classes=tuple(label for label in classes if label not in clf.classes_.tolist()),
        change=compare(codes, after, before, groups=test_groups),
        change_on_old_test=compare(
            codes[was_test], after[was_test], before[was_test], groups=_take(test_groups, was_test)
        ),
        by_class=tuple(class_changes(codes, after, before, classes, clf.classes_.tolist())),
        advice=advice,
        evaluation=grown.evaluation_,
    )


def _known(clf: ImageClassifier, store: FeatureStore, old: ImageSet | None) -> KnownLabels:
    """Digests and labels of the old images, from the cache's notes or from the folder that was named."""
    if old is not None:
        if old.labels is None:
            raise LabelError("the old images have no labels; name the labelled folder that was fitted.")
        digests, _ = read_digests(old.sources, old.names)
        kept = [i for i, d in enumerate(digests) if d is not None and d.hex() in clf.assignment_]
        first = {digests[i]: i for i in reversed(kept)}
        rows = sorted(first.values())
        missing = len(clf.assignment_) - len(rows)
        if missing:
            raise UsageError(
                f"{missing} of the {len(clf.assignment_)} images that the model knows are not among the old "
                "ones named; name the folder that it was fitted on."
            )
        groups = None if old.groups is None else np.asarray(old.groups, dtype=object)[rows]
        return KnownLabels(as_ids([digests[i] or b"" for i in rows]), np.asarray(old.labels)[rows], groups)
    found = recall_labels(store, clf.assignment_)
    if found is None:
        raise UsageError(
            "this cache does not know the labels of the images that the model was fitted on (another "
            "machine, or the cache was deleted); name their folder as well (--old DIR), or fit again on all."
        )
    return found


def _specs_at_hand(
    clf: ImageClassifier, store: FeatureStore, ids: NDArray[np.uint8]
) -> dict[Any, FeatureSpec]:
    """The model's recipes, and others of the same pass of which the rows of all old images are there."""
    block = BlockName.parse(clf.best_blocks_[0])
    first = clf.specs_[block]
    specs = {name: clf.specs_[name] for name in clf.best_blocks_}
    specs |= clf.augmentation_.specs(specs)
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
                f"the rows of {missing} of the {len(ids)} old images are not in this cache ({name}); name "
                "their folder as well (--old DIR), or fit again on all images."
            )


def _sort_out(
    known: KnownLabels, ids: NDArray[np.uint8], images: ImageSet
) -> tuple[NDArray[np.intp], tuple[str, ...], tuple[str, ...]]:
    """Positions that are really new; names of the others; and those whose labels contradict an older one."""
    label_of = dict(zip(map(bytes, known.ids), known.labels.tolist(), strict=True))
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


def _joined_groups(known: KnownLabels, fresh: ImageSet) -> NDArray[Any] | None:
    if known.groups is None and fresh.groups is None:
        return None
    none = np.full(len(known.ids), None, dtype=object)
    old = none if known.groups is None else known.groups
    new = np.full(len(fresh), None, dtype=object)
    if fresh.groups is not None:
        new[:] = [None if group is None else str(group) for group in fresh.groups.tolist()]
    return np.concatenate([old, new])


def _test_part(
    assignment: Mapping[str, str],
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
            ids, labels, test_size=test_size, salt=salt, groups=groups, previous=assignment
        )
    old = [assignment[row.tobytes().hex()] == "test" for row in ids[: len(ids) - len(fresh)]]
    return np.concatenate([np.array(old, dtype=bool), fresh.splits == "test"])


def _refit(
    clf: ImageClassifier,
    specs: Mapping[str, FeatureSpec],
    blocks: FeatureBlocks,
    ids: NDArray[np.uint8],
    labels: NDArray[Any],
    groups: NDArray[Any] | None,
    n_trials: int,
) -> ImageClassifier:
    """The same classifier on the grown training part, warm by default."""
    grown: ImageClassifier = clone(clf)
    for name in MACHINE_PARAMS:
        setattr(grown, name, getattr(clf, name))
    units = image_groups(ids, groups)
    settings = {name: getattr(clf, name) for name in SEARCH_PARAMS}
    settings |= {"n_trials": n_trials, "storage": None, "study_name": None}
    if n_trials:
        plain = blocks.only([name for name, spec in specs.items() if spec.view == 0])
        tuned = tune(plain, labels, groups=units, settings=settings)
    else:
        tuned = tune_again(
            blocks.only(clf.best_blocks_), labels, groups=units, settings=settings, params=clf.best_params_,
            adjusted=clf.adjustment_ is not None, views=clf.augmentation_.split(blocks, clf.best_blocks_),
            augmentation=clf.augmentation_,
        )  # fmt: skip
    grown._take(tuned)
    grown.oof_evaluation_ = evaluate(labels, grown.oof_proba_, grown.classes_, groups=units)
    grown.card_, grown.cards_, grown.race_ = clf.card_, clf.cards_, None
    grown.specs_ = dict(specs)  # those of views too
    grown._golden_rows, grown._model_files = None, clf._model_files
    grown.network_, grown.fine_tune_ = None, None
    return grown


def change_in_words(found: Comparison) -> str:
    """Both scores, the difference with its interval and the exact test, and the verdict."""
    verdict = {"a": "better than before", "b": "worse than before"}.get(found.verdict, found.verdict)
    points = f"{100 * found.difference:+.1f} points [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    scores = f"{found.value_b:.3f} before, {found.value_a:.3f} now"
    return f"{scores}, {points}, exact test p = {found.mcnemar_p:.2g}: {verdict}"


def changed_classes(changes: Sequence[ClassChange]) -> list[str]:
    """The classes that are better or worse beyond chance, in words."""
    said = []
    for word in ("better", "worse"):
        if named := [change for change in changes if change.verdict == word][:CLASSES_TOLD]:
            listed = ", ".join(f"{c.label} ({100 * c.difference.value:+.0f})" for c in named)
            said.append(f"Classes that are {word}: {listed}.")
    return said


def widened(proba: NDArray[np.float64], classes: NDArray[Any], wider: NDArray[Any]) -> NDArray[np.float64]:
    """Columns for classes that were not known, of probability 0."""
    place = {label: index for index, label in enumerate(wider.tolist())}
    out = np.zeros((len(proba), len(wider)))
    for column, label in enumerate(classes.tolist()):
        if label in place:
            out[:, place[label]] = proba[:, column]
    return out


def class_changes(
    codes: NDArray[np.intp],
    after: NDArray[np.float64],
    before: NDArray[np.float64],
    classes: list[Any],
    known: list[Any],
) -> list[ClassChange]:
    """Recall of each class that has test images, the most changed first."""
    found = []
    for index, label in enumerate(classes):
        own = codes == index
        if not own.any():
            continue
        units = np.arange(int(own.sum()))
        now, then = (
            ProbeResult("", (p[own].argmax(axis=1) == index).astype(float), units) for p in (after, before)
        )
        old_recall = float(then.right.mean()) if label in known else math.nan
        found.append(ClassChange(label, len(units), old_recall, float(now.right.mean()), now.minus(then)))
    return sorted(found, key=lambda change: -abs(change.difference.value))


def _reader(
    store: FeatureStore, key: str, ids: NDArray[np.uint8]
) -> Callable[[NDArray[np.intp]], NDArray[Any]]:
    return lambda some: store.read(key, ids[some])


def _take(values: NDArray[Any] | None, mask: NDArray[Any]) -> NDArray[Any] | None:
    return None if values is None else values[mask]


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
