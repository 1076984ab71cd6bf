"""ImageModel: a fitted model as one frozen value, from images to probabilities."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones import BackboneCard
from featx.evaluation import (
    ARGMAX,
    BALANCED,
    Calibration,
    Decision,
    Evaluation,
    OperatingPoint,
    class_indices,
    evaluate,
    make_decision,
)
from featx.evaluation.conformal import label_sets
from featx.evaluation.unlike import TrainingSample, spread
from featx.exceptions import UsageError
from featx.features import FeatureBlocks
from featx.heads import decision_scores
from featx.images import ImageSet, ImageSource
from featx.selection.augmentation import Augmentation
from featx.selection.imbalance import AUTO, IMBALANCED_FROM
from featx.selection.networks import Networks, gather
from featx.spec import FeatureSpec
from featx.splits import is_unnamed
from featx.stores.base import FeatureStore, Ids

if TYPE_CHECKING:
    from featx.extractor.extraction import Extraction
    from featx.finetune import FineTunedNetwork
    from featx.selection.tuning import TunedHead

GROUP_BYTES = 16
"""Bytes of the hash that a group is kept by: a model file does not hold the names of groups."""


@dataclass(frozen=True, eq=False)
class FittedImages:
    """The images that a model was fitted and tested on. Each distinct image stands once.

    Parameters
    ----------
    ids : array of shape (n, 32), uint8
        Digests.
    is_test : array of shape (n,), bool
        Whether an image is in the test part.
    codes : array of shape (n,), int
        Labels, as indices into the classes of the model.
    groups : array of shape (n, GROUP_BYTES), uint8, or None
        Hashes of the groups' names; zeros for an image without a group. None if there were no groups.
    """

    ids: Ids
    is_test: NDArray[np.bool_]
    codes: NDArray[np.intp]
    groups: NDArray[np.uint8] | None

    @classmethod
    def of(
        cls,
        ids: Ids,
        is_test: NDArray[np.bool_],
        labels: NDArray[Any],
        groups: NDArray[Any] | None,
        classes: NDArray[Any],
    ) -> FittedImages:
        """Return the distinct ones of images; an image with several labels keeps the first."""
        first = sorted({row.tobytes(): place for place, row in reversed(list(enumerate(ids)))}.values())
        place = {label: code for code, label in enumerate(classes.tolist())}
        codes = np.array([place[label] for label in labels[first].tolist()], np.intp)
        hashes = None if groups is None else hash_groups(groups[first])
        return cls(np.asarray(ids)[first], is_test[first], codes, hashes)

    @cached_property
    def assignment(self) -> dict[str, str]:
        """Hex digest of each image to ``"train"`` or ``"test"``."""
        return {
            row.tobytes().hex(): "test" if test else "train"
            for row, test in zip(self.ids, self.is_test, strict=True)
        }

    def units_of(self, ids: Ids) -> NDArray[np.int64]:
        """A number for each image, by its digest; images of one group have the same."""
        units = _numbers(ids)
        if self.groups is None:
            return units
        own = np.where(self.groups.any(axis=1), _numbers(self.groups), _numbers(self.ids))
        known = dict(zip(map(bytes, self.ids), own.tolist(), strict=True))
        return np.array(
            [known.get(bytes(digest), unit) for digest, unit in zip(ids, units.tolist(), strict=True)],
            np.int64,
        )

    @property
    def sampled(self) -> NDArray[np.intp]:
        """Positions of the training images that a `TrainingSample` is made of.

        An image that stands in both parts counts as test; if all do, the sample is made of them.
        """
        trained = np.flatnonzero(~self.is_test)
        trained = trained if len(trained) else np.arange(len(self.is_test))
        return trained[spread(len(trained))]


def hash_groups(groups: NDArray[Any]) -> NDArray[np.uint8]:
    """Return hashes of the names of groups, shape (n, GROUP_BYTES); zeros where there is no name."""
    named = [None if is_unnamed(group) else str(group) for group in groups.tolist()]
    hashes = [
        bytes(GROUP_BYTES) if name is None else hashlib.sha256(name.encode()).digest()[:GROUP_BYTES]
        for name in named
    ]
    return np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, GROUP_BYTES)


def _numbers(hashes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The first 8 bytes of each hash as a number."""
    return np.ascontiguousarray(hashes[:, :8]).view(np.int64).ravel()


@dataclass(frozen=True, eq=False)
class ImageModel:
    """A fitted model.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        Labels, in their own type.
    blocks : tuple of str
        Blocks of features that the head uses, in order.
    specs : mapping of str to FeatureSpec
        How each of these blocks is computed.
    cards : tuple of BackboneCard
        The networks that they come from.
    head : sklearn.pipeline.Pipeline, or a function
        Scaler and classifier, from features to decision scores.
    calibration : Calibration
        From decision scores to probabilities of classes that are weighted by `class_weights`.
    class_weights : tuple of float
        Weights of the classes in training. `proba` divides by them, so that its probabilities are those of
        the training frequencies.
    decision : Decision
        How a label follows from the probabilities.
    augmentation : Augmentation
        Augmentation that the features of an image go through.
    network : FineTunedNetwork or None
        The fine-tuned network. If there is one, it predicts instead of `head`.
    images : FittedImages
        The images that it was fitted and tested on.
    sample : TrainingSample or None
        A sample of its training images in its representation. None until it is made, at the end of a fit.
    backbone_files : mapping of str to str
        For digests of weights that came from a saved model: its path on this machine. Not saved.
    graphs : mapping of str to bytes
        For digests of weights: the converted network, in a model file that runs without torch.
    """

    classes: NDArray[Any]
    blocks: tuple[str, ...]
    specs: Mapping[str, FeatureSpec]
    cards: tuple[BackboneCard, ...] = field(repr=False)
    head: Any
    calibration: Calibration
    class_weights: tuple[float, ...]
    decision: Decision
    augmentation: Augmentation
    images: FittedImages
    network: FineTunedNetwork | None = None
    sample: TrainingSample | None = None
    backbone_files: Mapping[str, str] = field(default_factory=dict)
    graphs: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        tuned: TunedHead,
        specs: Mapping[str, FeatureSpec],
        cards: tuple[BackboneCard, ...],
        images: FittedImages,
        backbone_files: Mapping[str, str],
    ) -> ImageModel:
        """Return the model of what was tuned.

        Parameters
        ----------
        tuned : TunedHead
            The tuned head.
        specs : mapping of str to FeatureSpec
            How blocks are computed: at least those of the head.
        cards, images, backbone_files
            As for `ImageModel`.
        """
        return cls(
            classes=tuned.classes,
            blocks=tuned.blocks,
            specs={name: specs[name] for name in tuned.blocks},
            cards=cards,
            head=tuned.pipeline,
            calibration=tuned.calibration,
            class_weights=tuned.class_weights,
            decision=tuned.decision,
            augmentation=tuned.augmentation,
            images=images,
            backbone_files=backbone_files,
        )

    @property
    def assignment(self) -> Mapping[str, str]:
        """Hex digest of each image to ``"train"`` or ``"test"``."""
        return self.images.assignment

    @property
    def card(self) -> BackboneCard:
        """The first network."""
        return self.cards[0]

    @property
    def used_blocks(self) -> tuple[str, ...]:
        """Blocks that predictions are made from: the head's, or that of the fine-tuned network."""
        return self.blocks if self.network is None else (self.network.feature_spec.block,)

    def extract(
        self,
        sources: Sequence[ImageSource],
        machine: Mapping[str, Any],
        *,
        names: Sequence[str] | None = None,
        on_error: str = "raise",
        store: FeatureStore | None = None,
    ) -> Extraction:
        """Compute, or read from the store, the features that predictions are made from.

        Parameters
        ----------
        sources : sequence of image sources
            Images.
        machine : mapping
            Parameters of `FeatureExtractor` that do not change features (`MACHINE_PARAMS`).
        names, on_error, store
            As for `FeatureExtractor.extract`.
        """
        if self.network is None:
            return self.extract_for_head(sources, machine, names=names, on_error=on_error, store=store)
        return self.networks(machine).extract(sources, names=names, on_error=on_error, store=store)

    def extract_for_head(
        self,
        sources: Sequence[ImageSource],
        machine: Mapping[str, Any],
        *,
        names: Sequence[str] | None = None,
        on_error: str = "raise",
        store: FeatureStore | None = None,
    ) -> Extraction:
        """`extract` for the head on frozen features, also where a fine-tuned network predicts."""
        networks = replace(self, network=None).networks(machine)
        found = networks.extract(sources, names=names, on_error=on_error, store=store)
        return self.augmentation.averaged(found, self.blocks)

    def networks(self, machine: Mapping[str, Any]) -> Networks:
        """Extractors of the blocks that predictions are made from, with all views.

        Parameters
        ----------
        machine : mapping
            As for `extract`.
        """
        if self.network is not None:
            graph = self.graphs.get(self.network.weights)
            return Networks([self.network.to_extractor(graph=graph, **machine)])
        specs = {name: self.specs[name] for name in self.blocks}
        if self.augmentation.averages:
            specs |= self.augmentation.specs(specs)
        return gather(specs, self.cards, machine, backbones=self.backbone_files, graphs=self.graphs)

    def deciding(self, decide: str | Mapping[Any, float]) -> ImageModel:
        """The same model with another decision; ``"auto"`` is the decision that was found in training.

        Parameters
        ----------
        decide : {'auto', 'argmax', 'balanced'} or mapping of class to float
            As for `ImageClassifier`.

        Raises
        ------
        UsageError
            If it is none of these.
        LabelError
            If it names a class that the model does not know.
        """
        if isinstance(decide, str) and decide == AUTO:
            return self
        return replace(self, decision=make_decision(decide, self.classes, self._counts))

    def operating_points(
        self, proba: NDArray[np.float64], labels: NDArray[Any]
    ) -> tuple[OperatingPoint, ...]:
        """What the most probable class, the decision in use and a balanced one score; empty for balanced
        classes.

        Parameters
        ----------
        proba : array of shape (n, n_classes)
            Probabilities; rows of NaN do not count.
        labels : array of shape (n,)
            True labels.
        """
        if self.decision.is_argmax and self._counts.max() < IMBALANCED_FROM * self._counts.min():
            return ()
        known = np.isfinite(proba).all(axis=1)
        y = class_indices(np.asarray(labels)[known], self.classes.tolist())
        others = [make_decision(decide, self.classes, self._counts) for decide in (ARGMAX, BALANCED)]
        decisions = {own.weights: own for own in (others[0], self.decision, others[1])}
        return tuple(
            OperatingPoint.of(own, y, proba[known], used=own.weights == self.decision.weights)
            for own in decisions.values()
        )

    def scores(self, features: FeatureBlocks) -> NDArray[np.float64]:
        """Decision scores, shape (n,) for two classes, else (n, n_classes): log probabilities, up to a
        constant for each image, plus the logarithms of the weights of the decision.
        """
        return self.scores_of(self._decisions(features))

    def scores_of(self, decisions: NDArray[np.float64]) -> NDArray[np.float64]:
        """`scores` from the decision scores of the head or of the network."""
        return self.decision.shift(self._trained.shift(self._calibration.scores(decisions)))

    def proba(self, features: FeatureBlocks) -> NDArray[np.float64]:
        """Probabilities calibrated to the training frequencies, shape (n, n_classes), from features that
        `extract` returned. They do not depend on the decision.
        """
        return self._trained.shares(self._calibration.proba(self._decisions(features)))

    def proba_of_rows(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """`proba` from the features of `used_blocks` side by side, shape (n, n_features)."""
        return self._trained.shares(self._calibration.proba(self._score(rows)))

    def sets_of(
        self, proba: NDArray[np.float64], thresholds: tuple[float, ...], coverage: float
    ) -> list[list[Any]]:
        """Sets of labels that hold the truth in a share `coverage` of images; the most probable come first.

        Parameters
        ----------
        proba : array of shape (n, n_classes)
        thresholds : tuple of float
            See `featx.evaluation.conformal`; those of the fit.
        coverage : float

        Raises
        ------
        UsageError
            If there are no thresholds, or those of the head, and a fine-tuned network predicts.
        """
        if self.network is not None or not thresholds:
            raise UsageError("this model has no out-of-fold probabilities of its own: no sets can be given.")
        order = np.argsort(-proba, axis=1, kind="stable")
        inside = np.take_along_axis(label_sets(proba, thresholds, coverage), order, axis=1)
        return [self.classes[row[kept]].tolist() for row, kept in zip(order, inside, strict=True)]

    def labels(self, proba: NDArray[np.float64]) -> NDArray[Any]:
        """Labels that the decision gives for probabilities, shape (n,)."""
        return np.asarray(self.classes[self.decision.shares(proba).argmax(axis=1)])

    def features_of(
        self, found: Extraction, images: ImageSet, rows: NDArray[np.intp], machine: Mapping[str, Any]
    ) -> FeatureBlocks:
        """Features that predictions are made from, of some of the images that `found` is of."""
        if self.network is None and not self.augmentation.averages:
            return found.blocks.take(rows)
        some = images.select(rows)
        return self.extract(some.sources, machine, names=some.names).blocks

    def sampling(self, found: Extraction, images: ImageSet, machine: Mapping[str, Any]) -> ImageModel:
        """The same model with its sample of training images, from the images of the fit."""
        place = {bytes(digest): row for row, digest in enumerate(found.ids)}
        rows = np.array([place[bytes(one)] for one in self.images.ids[self.images.sampled]], np.intp)
        return self.sampled(self.features_of(found, images, rows, machine))

    def sampled(self, features: FeatureBlocks) -> ImageModel:
        """The same model with the sample whose features, those of `images.sampled`, are given."""
        rows = np.concatenate([part for _, part in features.chunks(self.used_blocks)])
        sample = TrainingSample.of(rows, self.images.units_of(self.images.ids[self.images.sampled]))
        return replace(self, sample=sample)

    def unlike(self, features: FeatureBlocks, ids: Ids) -> NDArray[np.float64]:
        """How unlike the training images other images are, as a percentile (0 to 100), shape (n,).

        Parameters
        ----------
        features : FeatureBlocks
            Of the images, as `extract` returned them.
        ids : array of shape (n, 32), uint8
            Their digests. An image that the model knows is compared with others than itself and its group.
        """
        assert self.sample is not None
        units = self.images.units_of(ids)
        found = [np.empty(0)]
        for where, part in features.chunks(self.used_blocks):
            found.append(self.sample.percentiles(part, units[where]))
        return np.concatenate(found)

    def evaluate(
        self,
        features: FeatureBlocks,
        images: ImageSet,
        ids: Ids,
        *,
        min_confidence: float | None = None,
    ) -> Evaluation:
        """Compare predictions with the labels of the images that the features and digests are of."""
        assert images.labels is not None
        return evaluate(
            images.labels,
            self.proba(features),
            self.classes,
            groups=images.groups,
            decision=self.decision,
            abstain_below=min_confidence,
            names=images.names,
            parts=self.parts(ids),
            unlike=self.unlike(features, ids),
        )

    def parts(self, ids: Ids) -> list[str]:
        """Part of images by their digests: ``train``, ``test``, or ``new``."""
        return [self.assignment.get(row.tobytes().hex(), "new") for row in ids]

    @property
    def _counts(self) -> NDArray[np.intp]:
        """Training images of each class."""
        return np.bincount(self.images.codes[~self.images.is_test], minlength=len(self.classes))

    @property
    def _trained(self) -> Decision:
        """From classes weighted as in training to the training frequencies."""
        return Decision("", tuple(1 / weight for weight in self.class_weights))

    @property
    def _calibration(self) -> Calibration:
        return self.calibration if self.network is None else self.network.calibration

    def _decisions(self, features: FeatureBlocks) -> NDArray[np.float64]:
        return np.concatenate([self._score(part) for _, part in features.chunks(self.used_blocks)])

    def _score(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        if self.network is not None:
            return self.network.logits_of_features(rows)
        return decision_scores(self.head, rows)
