"""ImageClassifier, the front door: images and labels in, a tuned and calibrated classifier out.

`fit` reads like the walk of one image: turn pictures into rows (most are cached), let the search choose
representation and head on the rows, keep the calibrated winner. Everything dear is ordered here and done
below; nothing here decodes, trains or measures by itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted

from featx.advice import Advice
from featx.backbones import is_model_file
from featx.backbones.runtimes import environment, resolve_device
from featx.backbones.views import name_policy
from featx.classifier.finetuning import check as check_fine_tune
from featx.classifier.finetuning import fine_tune
from featx.classifier.labels import remember_labels
from featx.evaluation import Calibration, Evaluation, evaluate
from featx.exceptions import (
    DataError,
    DriftWarning,
    ImageWarning,
    LabelError,
    TooManyBadImagesError,
    UsageError,
)
from featx.extractor import DEFAULT_BACKBONE, Extraction, Plan, Progress
from featx.features import FeatureBlocks
from featx.finetune import FineTunedNetwork
from featx.heads import decision_scores
from featx.images import (
    MAX_PIXELS,
    ImageSet,
    ImageSource,
    Skipped,
    escape_name,
    golden_pictures,
    load_images,
    read_digests,
)
from featx.search import SearchProgress
from featx.search.plan import n_threads
from featx.search.streaming import chunks_of
from featx.selection.augmentation import PLAIN, Augmentation
from featx.selection.backbones import Race, backbone_names, race, refuse_checkpoint
from featx.selection.candidates import AUTO, choose, widest
from featx.selection.networks import Networks, gather, side_by_side
from featx.selection.tuning import TunedHead, Views, tune
from featx.splits import check_labels, image_groups, stable_test_mask
from featx.stores import open_store
from featx.stores.base import as_ids
from featx.stores.memory import MemoryStore

Images = ImageSet | str | os.PathLike[str] | Sequence[ImageSource] | NDArray[Any]
"""A folder, a manifest, a list of image sources, a batch (n, H, W, 3), or a loaded `ImageSet`."""

MACHINE_PARAMS = (
    "checkpoint", "store", "runtime", "device", "batch_size", "max_pixels", "isolate", "n_jobs", "callback",
)  # fmt: skip
"""Parameters of the extractor that move no row: a loaded model takes them from where it runs."""

RECIPE_PARAMS = (
    "backbone", "cut", "pool", "resize", "input_size", "pretrained", "precision", "dtype", "decode",
    "background", "bit_depth",
)  # fmt: skip
"""Parameters of the extractor that a row depends on."""

SEARCH_PARAMS = (
    "heads", "n_trials", "timeout", "cv", "n_repeats", "scoring", "class_weight", "storage", "study_name",
    "n_jobs", "random_state",
)  # fmt: skip
"""Parameters of the search; where they are "auto", `tuning.resolve` says what that means."""

GOLDEN_COSINE = 0.995
"""Smallest cosine of a row with the same picture's when the model was saved; half precision costs 0.002."""


class ImageClassifier(ClassifierMixin, BaseEstimator):
    """Pretrained features and a tuned classical head, as one scikit-learn classifier of images.

    Parameters
    ----------
    backbone : str, list of str or "auto", default "tf_efficientnet_lite0.in1k"
        Any timm name with its tag. The default's ImageNet weights come with the installation. Of several, or
        of all whose weights are on this machine ("auto"), the best on at most 500 training images goes on;
        the best two, if their blocks side by side are better by a standard error (see `race_`).
    cut : str, int, list or None, default "auto"
        Layer whose output is used: None for the whole network without its classifier, a tap's name or
        number (see ``featx taps``), a list of them, or "auto" for all: the search then chooses one, or
        several side by side.
    pool : str or list, default "auto"
        How a layer's map becomes a row: avg, max, gem, avg+max, cls, cls+avg, grid2, grid4; several, or
        "auto" for all that the layer allows, are chosen from.
    resize : {"crop", "squash", "pad"} or list, default "auto"
        What happens to pictures that are not square: the centre, all of it squeezed, or all of it with
        bars. "auto" tries each on a few hundred training images and leaves the usual one only for one that
        is better by more than chance.
    input_size : int or tuple of int, optional
        Side, or height and width, in pixels fed to the network; default as the weights were trained.
    backbone_budget : float, default 600
        Seconds that the choice between several backbones may take; the dearest are left out if need be.
    checkpoint : path, optional
        File or folder of weights to load instead of the pretrained ones.
    pretrained : bool, default True
        False takes random weights seeded by 0: a baseline, and a way to work without a network.
    views : int, default 0
        Augmented views of each training image to compute for the representation that won. They are tried as
        more training rows, as averaged features (then each image is also predicted from its views), and both;
        what helps out of fold is kept (see `augmentation_`).
    view_policy : str, default "light"
        light, photo, document, medical, or such as ``"flip=0.5,rotate=10"`` (see ``featx show augment``).
    heads : sequence of str, optional
        Names of `featx.heads.HEADS` to try; default the cheap ones.
    n_trials : int, default 50
        Optuna trials beyond the screening grid.
    timeout : float, optional
        Seconds for the search.
    cv : int, default 5
        Folds; lowered to the smallest class.
    n_repeats : int or "auto", default "auto"
        How often the folds are drawn anew; "auto" is once from 500 images on, two or three times below.
    scoring : str or callable, default "auto"
        Any scikit-learn scorer. "auto" is balanced accuracy where the largest class has three times the
        images of the smallest, or more, and accuracy else.
    class_weight : None, "auto", "balanced", "sqrt", "search" or dict, default "auto"
        Weights of classes. "auto" tries, where the imbalance is as above and `scoring` counts classes alike,
        balanced weights, their square root, logit adjustment and thresholds for the winner, and keeps what
        helps out of fold (see `tried_`); probabilities are then calibrated for classes of equal weight.
    store : path, FeatureStore, "memory" or None
        Where rows are kept. None is the cache folder (``FEATX_CACHE``); "memory" keeps nothing on disk.
    runtime, device, precision, dtype, batch_size, decode, background, bit_depth, max_pixels, isolate
        See `FeatureExtractor`.
    fine_tune : {"auto", True, False}, default False
        Whether the network's upper layers are retrained on the training part after the search, and kept if
        they beat the tuned head there beyond chance (see `featx.finetune`). It takes minutes to hours, so it
        must be asked for. "auto" tries it where a better network could be told from chance at all, which
        depends on the number of images and on how many the head gets wrong.
    fine_tune_params : dict, optional
        Parameters of `featx.finetune.FineTuner`: ``unfreeze``, ``head``, ``phases``, ``view_policy``, ...
    storage, study_name
        Optuna's storage URL and study name, to watch or resume a search.
    max_bad : float, default 0.05
        Fraction of unreadable pictures that `fit` sets aside with a warning; more is an error.
    n_jobs : int, optional
        Threads of extraction and search.
    random_state : int, optional
        Seed of folds, search and heads.
    callback : callable, optional
        Called with every `featx.extractor.Progress` event.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, in their own type.
    search_ : TunedHead
        What the search found (absent in a loaded model).
    best_params_ : dict
        Head and settings that won.
    best_score_ : float
        Mean cross-validation score that the winner was chosen by: optimistic, being a maximum.
    study_ : optuna.Study
        All trials (absent in a loaded model).
    cv_results_ : dict of arrays
        One entry for each configuration of the search (absent in a loaded model).
    best_blocks_ : tuple of str
        Representations that the winner uses, ``cut:pool:resize``.
    specs_ : dict of str to FeatureSpec
        Their recipes.
    best_estimator_ : sklearn.pipeline.Pipeline
        From rows to decision scores; plain scikit-learn.
    calibration_ : Calibration
        From decision scores to probabilities, fitted on out-of-fold scores.
    adjustment_ : Adjustment or None
        What is added to the decision scores in favour of rare classes, where that helped.
    scoring_ : str or callable
        What was maximised.
    choice_ : Choice or None
        The winner against the runner-up representation and the cheapest one within a standard error, by a
        paired test: "not distinguishable, the cheaper is taken" is an answer. ``choice_.sentences()`` says
        it. None where there was nothing to choose from.
    tried_ : tuple of Tried
        What was tried for the winner besides, what it gained out of fold, and whether it was kept.
    augmentation_ : Augmentation
        What of augmentation was kept: views, their average, noise in feature space (tried unasked where there
        are at most 25 images a class), or nothing; and what it gained out of fold.
    oof_proba_ : ndarray of shape (n_images, n_classes)
        Out-of-fold probabilities of the training images.
    oof_evaluation_ : Evaluation
        Out-of-fold estimate on the training images.
    fine_tune_ : FineTuneReport or None
        What came of fine-tuning and why; None where it was not asked for.
    network_ : FineTunedNetwork or None
        The fine-tuned network, if it was kept: then it predicts instead of `best_estimator_`.
    evaluation_ : Evaluation
        Score on the held-out test part; only after `fit_with_test`.
    advice_ : Advice
        What to do next, measured lazily (see the property).
    assignment_ : dict of str to str
        Hex digest of each image to "train" or "test".
    card_ : BackboneCard
        What is known of the network.
    cards_ : tuple of BackboneCard
        The same of all networks whose blocks were searched, where two backbones go on together.
    race_ : Race or None
        How the candidates did, with their costs; None where one backbone was named.
    remarks_ : tuple of str
        What the extraction found worth saying, e.g. which field made a new space of rows.
    skipped_ : list of Skipped
        Pictures that were set aside, with the reason.
    n_computed_ : int
        Pictures that went through the network in the last fit; 0 when all rows were cached.
    """

    race_: Race | None
    network_: FineTunedNetwork | None
    _training: ImageSet
    _advice: Advice | None

    def __init__(
        self,
        backbone: str | Sequence[str] = DEFAULT_BACKBONE,
        *,
        cut: str | int | Sequence[str | int] | None = AUTO,
        pool: str | Sequence[str] = AUTO,
        resize: str | Sequence[str] = AUTO,
        input_size: int | tuple[int, int] | None = None,
        backbone_budget: float = 600.0,
        checkpoint: str | os.PathLike[str] | None = None,
        pretrained: bool = True,
        views: int = 0,
        view_policy: str = "light",
        heads: Sequence[str] | None = None,
        n_trials: int = 30,
        timeout: float | None = None,
        cv: int = 5,
        n_repeats: int | str = AUTO,
        scoring: str | Callable[..., float] = AUTO,
        class_weight: str | Mapping[Any, float] | None = AUTO,
        store: Any = None,
        runtime: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        dtype: str = "float16",
        batch_size: int | str = "auto",
        decode: str = "exact",
        background: tuple[int, int, int] = (255, 255, 255),
        bit_depth: str = "full",
        max_pixels: int = MAX_PIXELS,
        isolate: bool = False,
        fine_tune: bool | str = False,
        fine_tune_params: Mapping[str, Any] | None = None,
        storage: Any = None,
        study_name: str | None = None,
        max_bad: float = 0.05,
        n_jobs: int | None = None,
        random_state: int | None = None,
        callback: Callable[[Any], None] | None = None,
    ) -> None:
        self.backbone = backbone
        self.cut = cut
        self.pool = pool
        self.resize = resize
        self.input_size = input_size
        self.backbone_budget = backbone_budget
        self.checkpoint = checkpoint
        self.pretrained = pretrained
        self.views = views
        self.view_policy = view_policy
        self.heads = heads
        self.n_trials = n_trials
        self.timeout = timeout
        self.cv = cv
        self.n_repeats = n_repeats
        self.scoring = scoring
        self.class_weight = class_weight
        self.store = store
        self.runtime = runtime
        self.device = device
        self.precision = precision
        self.dtype = dtype
        self.batch_size = batch_size
        self.decode = decode
        self.background = background
        self.bit_depth = bit_depth
        self.max_pixels = max_pixels
        self.isolate = isolate
        self.fine_tune = fine_tune
        self.fine_tune_params = fine_tune_params
        self.storage = storage
        self.study_name = study_name
        self.max_bad = max_bad
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.callback = callback

    def fit(
        self,
        X: Images,
        y: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Learn from all the images given.

        Parameters
        ----------
        X : Images
            A folder of class folders, a manifest, a list of image sources, or a batch.
        y : array-like of shape (n_images,), optional
            Labels; needed unless `X` brings them.
        groups : array-like of shape (n_images,), optional
            Images of one group (a patient, a speaker) stay in one fold.
        sample_weight : array-like of shape (n_images,), optional
            Weights of the images.

        Returns
        -------
        self

        Raises
        ------
        LabelError
            If the labels cannot be learnt.
        TooManyBadImagesError
            If more than `max_bad` of the images cannot be read.
        """
        images = as_images(X, y, groups=groups, sample_weight=sample_weight)
        check_labels(_labels(images))
        rows, images = self._extract(images, training=images)
        self._learn(rows.ids, rows.blocks, images)
        self.__dict__.pop("evaluation_", None)  # an earlier call's, of other data
        self.assignment_ = _assignment(rows.ids, np.zeros(len(rows.ids), bool))
        self.network_, self.fine_tune_ = fine_tune(self, images, rows.blocks)
        return self

    def fit_with_test(
        self,
        X: Images,
        y: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        test_size: float = 0.2,
        split_salt: str = "",
        previous: Mapping[str, str] | None = None,
    ) -> Self:
        """Learn from the training part and score on the held-out test part, which nothing else touches.

        The test part is the ``test/`` folder or the manifest's split where the data has one. Else it is a
        stable, stratified hash split: an image that is test today is test after the set has grown.

        Parameters
        ----------
        X, y, groups, sample_weight
            As in `fit`.
        test_size : float, default 0.2
            Fraction of each class that is held out.
        split_salt : str, default ""
            Another text draws another split.
        previous : mapping of str to str, optional
            An earlier `assignment_`; images in it stay where they were.

        Returns
        -------
        self
        """
        images = as_images(X, y, groups=groups, sample_weight=sample_weight)
        check_labels(_labels(images))
        if images.splits is not None and (images.splits == "test").any():
            is_test = images.splits == "test"
        else:
            images = _read_digests(images)
            assert images.ids is not None
            is_test = stable_test_mask(
                images.ids,
                _labels(images),
                test_size=test_size,
                salt=split_salt,
                groups=images.groups,
                previous=previous,
            )
        train = images.select(~is_test)
        rows, images = self._extract(images, training=train)
        is_test = is_test[rows.kept]
        _warn_of_leaks(rows.ids, is_test)
        train, test = images.select(~is_test), images.select(is_test)
        _refuse_unseen(_labels(test), np.unique(_labels(train)), what="test images")
        self._learn(rows.ids[~is_test], rows.blocks.take(~is_test), train)
        self.assignment_ = _assignment(rows.ids, is_test)
        remember_labels(rows.store, self.assignment_, rows.ids, _labels(images), images.groups)
        self.network_, self.fine_tune_ = fine_tune(self, train, rows.blocks.take(~is_test))
        other = self.network_ is not None or self.augmentation_.averages
        of_test = self.extract(test).blocks if other else rows.blocks.take(is_test)
        self.evaluation_ = self._evaluation(of_test, test)
        return self

    def predict(self, X: Images) -> NDArray[Any]:
        """Most probable label of each image, shape (n_images,); the argmax of `predict_proba`.

        Raises
        ------
        ImageError
            If a picture cannot be read; `extract` with ``on_error="skip"`` and `proba_of_rows` set it aside.
        """
        proba = self.predict_proba(X)
        return np.asarray(self.classes_[proba.argmax(1)])

    def predict_proba(self, X: Images) -> NDArray[np.float64]:
        """Calibrated probabilities, shape (n_images, n_classes), in the order of `classes_`."""
        return self.proba_of_rows(self.extract(as_images(X)).blocks)

    def decision_function(self, X: Images) -> NDArray[np.float64]:
        """Calibrated decision scores, shape (n_images,) for two classes, else (n_images, n_classes)."""
        check_is_fitted(self, "best_estimator_")
        return self._calibration().scores(self._decisions(self.extract(as_images(X)).blocks))

    def score(self, X: Images, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None) -> float:
        """Accuracy on labelled images.

        Raises
        ------
        LabelError
            If `y` has a class that was not learnt.
        """
        check_is_fitted(self, "best_estimator_")
        images = as_images(X, y)
        truth = _labels(images)
        _refuse_unseen(truth, self.classes_, what="labels")
        right = (self.predict(images) == truth).astype(float)
        return float(np.average(right, weights=None if sample_weight is None else np.asarray(sample_weight)))

    def evaluate(
        self,
        X: Images,
        y: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
        min_confidence: float | None = None,
    ) -> Evaluation:
        """Metrics with intervals, confusion matrix and per-class table on labelled images.

        Unreadable pictures are set aside and listed in ``skipped_``, up to `max_bad` of them.

        Parameters
        ----------
        X, y, groups
            As in `fit`.
        min_confidence : float, optional
            Also report coverage and accuracy when less probable answers are withheld.
        """
        check_is_fitted(self, "best_estimator_")
        images = as_images(X, y, groups=groups)
        _refuse_unseen(_labels(images), self.classes_, what="labels")
        rows = self.extract(images, on_error="skip")
        self.skipped_ = _all_skipped(images, rows)
        _refuse_too_many(self.skipped_, len(images) + len(images.skipped), self.max_bad)
        return self._evaluation(rows.blocks, images.select(rows.kept), min_confidence=min_confidence)

    def extract(self, X: Images, *, on_error: str = "raise") -> Extraction:
        """Rows of the representation that won, for new images.

        Parameters
        ----------
        X : Images
            As for `predict`.
        on_error : {"raise", "skip"}
            What to do with a picture that cannot be read.
        """
        check_is_fitted(self, "best_estimator_")
        images = as_images(X)
        rows = self._chosen().extract(images.sources, names=images.names, on_error=on_error)
        rows = self._judging().judge(rows, self.best_blocks_)
        if rows.computed:
            self._check_network(rows)
        return rows

    def proba_of_rows(self, blocks: FeatureBlocks) -> NDArray[np.float64]:
        """Probabilities, shape (n_rows, n_classes), from rows that `extract` returned."""
        return self._calibration().proba(self._decisions(blocks))

    def decisions_of_rows(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Decision scores before calibration, from the rows of the best blocks side by side."""
        scores = decision_scores(self.best_estimator_, rows)
        return scores if self.adjustment_ is None else self.adjustment_.scores(scores)

    @property
    def advice_(self) -> Advice:
        """What to do next, measured when it is first asked for; plain data, see `featx.advice.Advice`.

        A fit keeps references to the images that it was given, not their rows: these are read from the
        store again (computed again with ``store="memory"``). What they cannot tell, the same network with
        random weights, is tried on a few hundred images.

        Raises
        ------
        UsageError
            If the classifier was loaded from a file: advice needs a fit in this process.
        """
        from featx.classifier.advising import advise_classifier

        check_is_fitted(self, "best_estimator_")
        training: ImageSet | None = getattr(self, "_training", None)
        if training is None:
            raise UsageError("advice needs the images of a fit in this process; call fit, then ask.")
        if self._advice is None:
            self._advice = advise_classifier(self, training)
        return self._advice

    def plan(self, X: Images) -> Plan:
        """What `fit` would compute for these images, and how long that takes here; keeps nothing.

        Of several backbones, the dearest one's; `plans` tells each.
        """
        return max(self.plans(X).values(), key=lambda plan: plan.seconds)

    def plans(self, X: Images) -> dict[str, Plan]:
        """`plan` for each backbone that may be chosen, by name."""
        images, params = as_images(X), self._recipe()
        if self.views:
            params |= {"view": list(range(self.views + 1)), "view_policy": self.view_policy}
        if params["resize"] == AUTO:  # the others are tried on a few hundred images only
            params["resize"] = "crop"
        return {
            name: widest({**params, "backbone": name}, self._machine(), images.sources).plan(images.sources)
            for name in backbone_names(self.backbone)
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the classifier to one ``.featx`` file, which `featx.load` reads.

        The rows of a few synthetic pictures are computed (or read from the store) to go with it.

        Returns
        -------
        pathlib.Path
            The file.
        """
        from featx.classifier.packing import save

        check_is_fitted(self, "best_estimator_")
        return save(self, path)

    def _extract(self, images: ImageSet, *, training: ImageSet) -> tuple[Extraction, ImageSet]:
        """Rows of every readable picture, and the image set without the others.

        Which representations are extracted is chosen on the `training` part alone.
        """
        extractor = self._candidates(training, n_all=len(images))
        rows = extractor.extract(images.sources, names=images.names, on_error="skip", ids=images.ids)
        self.skipped_ = _all_skipped(images, rows)
        _refuse_too_many(self.skipped_, len(images) + len(images.skipped), self.max_bad)
        self.card_, self.cards_ = extractor.card_, extractor.cards_
        self._model_files = {
            one.card_.weights: str(one.backbone)
            for one in extractor.extractors
            if is_model_file(one.backbone)
        }
        self.specs_ = rows.specs
        self.n_computed_ = rows.computed
        self.remarks_ = rows.remarks
        kept = images.select(rows.kept)
        _warn_of_conflicts(rows.ids, kept)
        return rows, kept

    def _candidates(self, training: ImageSet, *, n_all: int) -> Networks:
        """An extractor of every representation that the search may choose."""
        check_fine_tune(self)
        codes = np.unique(np.array([str(label) for label in _labels(training)]), return_inverse=True)[1]
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        names, self.race_ = backbone_names(self.backbone), None
        refuse_checkpoint(names, self.checkpoint)
        recipe, threads = self._recipe(), n_threads(self.n_jobs)
        machine = {**self._machine(), "store": open_store(self.store)}  # one: what is tried is kept for all
        if len(names) > 1:
            judged = {**recipe, "resize": "crop" if recipe["resize"] == AUTO else recipe["resize"]}
            self.race_ = race(
                {name: widest({**judged, "backbone": name}, machine, training.sources) for name in names},
                training,
                codes,
                groups=training.groups,
                n_all=n_all,
                budget_s=self.backbone_budget,
                say=self._say,
                n_jobs=threads,
                random_state=seed,
            )
            names = self.race_.winners
        wide = [widest({**recipe, "backbone": name}, machine, training.sources) for name in names]
        return side_by_side(
            [choose(one, training, codes, machine=machine, random_state=seed, n_jobs=threads) for one in wide]
        )

    def _learn(self, ids: NDArray[np.uint8], blocks: FeatureBlocks, images: ImageSet) -> None:
        y = check_labels(_labels(images))
        groups = image_groups(ids, images.groups)
        settings = {name: getattr(self, name) for name in SEARCH_PARAMS}
        tuned = tune(
            blocks,
            y,
            groups=groups,
            weight=images.weights,
            settings=settings,
            views=self._views(images),
            callback=self._report,
        )
        self._take(tuned)
        self.oof_evaluation_ = evaluate(y, self.oof_proba_, self.classes_, groups=groups)
        self._golden_rows: NDArray[np.float32] | None = None
        self._training, self._advice = images, None
        self.network_, self.fine_tune_ = None, None

    def _views(self, images: ImageSet) -> Views:
        """Views of the training images, computed when they are asked for."""
        asked = Augmentation("rows", self.views, name_policy(self.view_policy))
        if self.views < 0 or (self.views and asked.policy == "none"):
            raise UsageError(f"views={self.views} of policy {asked.policy!r}: give 0, or more and a policy.")

        def rows(names: tuple[str, ...]) -> list[FeatureBlocks]:
            specs = asked.specs({name: self.specs_[name] for name in names})
            extractor = gather(specs, self.cards_, self._machine(), backbones=self._model_files)
            return asked.split(extractor.extract(images.sources, names=images.names).blocks, names)

        return Views(self.views, asked.policy, rows)

    def _take(self, tuned: TunedHead) -> None:
        """Copy what was tuned."""
        self.search_ = tuned
        self.study_ = tuned.study
        self.cv_results_ = tuned.cv_results
        self.classes_ = tuned.classes
        self.best_params_ = tuned.params
        self.best_score_ = tuned.score
        self.best_blocks_ = tuned.blocks
        self.best_estimator_ = tuned.pipeline
        self.adjustment_ = tuned.adjustment
        self.augmentation_ = tuned.augmentation
        self.calibration_ = tuned.calibration
        self.oof_proba_ = tuned.oof_proba
        self.scoring_ = tuned.scoring
        self.choice_ = tuned.choice
        self.tried_ = tuned.tried

    def _say(self, words: str, *, stage: str = "backbones") -> None:
        if self.callback is not None:
            self.callback(Progress(0, 0, stage=stage, message=words))

    def _report(self, state: SearchProgress) -> None:
        if self.callback is not None:
            eta = None if math.isnan(state.eta_s) else state.eta_s
            self.callback(Progress(state.done, state.total, eta_s=eta, stage=f"search ({state.stage})"))

    def _decisions(self, blocks: FeatureBlocks) -> NDArray[np.float64]:
        check_is_fitted(self, "best_estimator_")
        network = self.network_
        score = self.decisions_of_rows if network is None else network.logits_of_features
        return np.concatenate([score(rows) for _, rows in chunks_of(blocks, self._answering())])

    def _calibration(self) -> Calibration:
        network = self.network_
        return self.calibration_ if network is None else network.calibration

    def _answering(self) -> tuple[str, ...]:
        """Blocks that predictions are made from."""
        network = self.network_
        return self.best_blocks_ if network is None else (network.feature_spec.block,)

    def _evaluation(
        self, blocks: FeatureBlocks, images: ImageSet, *, min_confidence: float | None = None
    ) -> Evaluation:
        proba = self.proba_of_rows(blocks)
        return evaluate(
            _labels(images), proba, self.classes_, groups=images.groups, abstain_below=min_confidence
        )

    def _check_network(self, computed: Extraction) -> None:
        """After loading: the network must still give the rows that are kept in the model file.

        A store remembers what has proved it; another version, runtime or processor must prove it anew.
        """
        expected, self._golden_rows = self._golden_rows, None
        if expected is None:
            return
        keys = "".join(spec.key for spec in computed.specs.values())
        name = hashlib.sha256(keys.encode() + expected.tobytes()).hexdigest()
        here = environment(computed.runtime, resolve_device(self.device, self.runtime))
        if computed.store.recall("proven", name) == here:
            return
        found = self._judging().judge(
            self._chosen().extract(golden_pictures(), store=MemoryStore()), self.best_blocks_
        )
        rows = found.blocks.stack(self._answering())
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(expected, axis=1)
        cosine = np.einsum("ij,ij->i", rows, expected) / lengths
        if not cosine.min() >= GOLDEN_COSINE:
            warnings.warn(
                f"the network gives other rows than when this model was saved (cosine {cosine.min():.4f}, at "
                f"least {GOLDEN_COSINE} is expected): another version, "
                "runtime or processor. Evaluate the model before you trust it, or fit it again.",
                DriftWarning,
                stacklevel=4,
            )
            return
        computed.store.remember("proven", name, here)

    def _chosen(self) -> Networks:
        """An extractor of just what predicts: the representations that won, or the fine-tuned network's."""
        network = self.network_
        return self._of_probe() if network is None else Networks([network.to_extractor(**self._machine())])

    def _of_probe(self) -> Networks:
        specs = {name: self.specs_[name] for name in self.best_blocks_}
        if self.augmentation_.averages:
            specs |= self.augmentation_.specs(specs)
        return gather(specs, self.cards_, self._machine(), backbones=self._model_files)

    def _judging(self) -> Augmentation:
        """How an image is judged: by its average, where that was kept and no other network predicts."""
        return self.augmentation_ if self.network_ is None else PLAIN

    def _recipe(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in RECIPE_PARAMS}

    def _machine(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in MACHINE_PARAMS}

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "best_estimator_")

    def __getstate__(self) -> dict[str, Any]:
        """Without the images of the training part: a copy predicts, and cannot be asked for advice."""
        state: dict[str, Any] = dict(super().__getstate__())
        return {name: value for name, value in state.items() if name != "_training"}

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags

    def __sklearn_clone__(self) -> ImageClassifier:
        """An unfitted copy that shares the store, which is no parameter to be copied."""
        params = self.get_params(deep=False)
        shared = {name: params.pop(name) for name in ("store", "storage", "callback")}
        return type(self)(**{name: clone(value, safe=False) for name, value in params.items()}, **shared)


def as_images(
    X: Images,
    y: ArrayLike | None = None,
    *,
    groups: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> ImageSet:
    """One `ImageSet` from whatever the user holds; what is given beside `X` wins over what `X` brings.

    Raises
    ------
    DataError
        If the lengths differ.
    """
    images = X if isinstance(X, ImageSet) else load_images(X)
    extra = {"labels": y, "groups": groups, "weights": sample_weight}
    given = {name: _as_array(values) for name, values in extra.items() if values is not None}
    for name, values in given.items():
        if values.ndim == 0:
            raise DataError(f"{name} are a single value ({values.item()!r}); give one for each image.")
        if len(values) != len(images):
            raise DataError(f"{len(images)} images but {len(values)} {name}; give one for each image.")
    return dataclasses.replace(images, **given) if given else images  # type: ignore[arg-type]


def _as_array(values: ArrayLike) -> NDArray[Any]:
    """As NumPy does it, but a list of mixed types stays one: 1 and "1" must not become the same label."""
    if isinstance(values, list | tuple) and len({type(value) for value in values}) > 1:
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array
    return np.asarray(values)


def _labels(images: ImageSet) -> NDArray[Any]:
    if images.labels is None:
        raise LabelError(
            "these images have no labels; give y, a folder of class folders, or a manifest with a column "
            "'label'."
        )
    return images.labels


def _refuse_unseen(labels: NDArray[Any], classes: NDArray[Any], *, what: str) -> None:
    unseen = sorted({str(label) for label in labels} - {str(label) for label in classes})
    if unseen:
        raise LabelError(
            f"the {what} have classes that were not learnt: {', '.join(unseen[:10])}; "
            f"learnt are {', '.join(str(label) for label in classes[:10])}."
        )


def _all_skipped(images: ImageSet, rows: Extraction) -> list[Skipped]:
    """What the walk and the extraction set aside, with the labels of the latter."""
    if images.labels is None:
        return [*images.skipped, *rows.skipped]
    lost = np.setdiff1d(np.arange(len(images)), rows.kept)
    labelled = [
        dataclasses.replace(picture, label=images.labels[index])
        for picture, index in zip(rows.skipped, lost, strict=True)
    ]
    return [*images.skipped, *labelled]


def _refuse_too_many(skipped: Sequence[Skipped], total: int, max_bad: float) -> None:
    if not skipped:
        return
    listed = "; ".join(f"{escape_name(s.name)}: {s.reason}" for s in skipped[:10])
    more = f"; and {len(skipped) - 10} more" if len(skipped) > 10 else ""
    summary = f"{len(skipped)} of {total} pictures cannot be used: {listed}{more}"
    if len(skipped) > max_bad * total:
        raise TooManyBadImagesError(
            f"{summary}. That is more than the {max_bad:.0%} that max_bad allows; mend or remove them, or "
            "raise max_bad (--max-bad)."
        )
    by_class = Counter(str(s.label) for s in skipped if s.label is not None)
    per_class = ", ".join(f"{escape_name(label)} {count}" for label, count in by_class.most_common(10))
    warnings.warn(
        f"{summary}" + (f" (by class: {per_class})" if per_class else ""), ImageWarning, stacklevel=5
    )


def _warn_of_conflicts(ids: NDArray[np.uint8], images: ImageSet) -> None:
    """One picture under several labels: at most one of them is right, and none can be learnt."""
    first: dict[bytes, int] = {}
    pairs: dict[bytes, str] = {}
    labels = _labels(images)
    for index, digest in enumerate(map(bytes, ids)):
        other = first.setdefault(digest, index)
        if labels[other] != labels[index]:
            both = " and ".join(f"{images.names[i]} is {labels[i]}" for i in (other, index))
            pairs.setdefault(digest, escape_name(both))
    if pairs:
        listed = "; ".join(list(pairs.values())[:10])
        more = f"; and {len(pairs) - 10} more" if len(pairs) > 10 else ""
        warnings.warn(
            f"{len(pairs)} of the pictures {'has' if len(pairs) == 1 else 'have'} several labels "
            f"(same bytes): {listed}{more}. Copies stay on one side of every split; keep the right one.",
            ImageWarning,
            stacklevel=4,
        )


def _warn_of_leaks(ids: NDArray[np.uint8], is_test: NDArray[np.bool_]) -> None:
    """A hash split keeps equal pictures together; a given one may not, and its score is then too good."""
    both = set(map(bytes, ids[is_test])) & set(map(bytes, ids[~is_test]))
    if both:
        warnings.warn(
            f"{len(both)} test pictures are in the training part too (same bytes), so the test score is too "
            "good. Remove them from one side.",
            ImageWarning,
            stacklevel=4,
        )


def _read_digests(images: ImageSet) -> ImageSet:
    """The image set with digests, and without the pictures whose files cannot be read."""
    digests, errors = read_digests(images.sources, images.names)
    labels = _labels(images)
    lost = [Skipped(error.name, error.reason, labels[position]) for position, error in sorted(errors.items())]
    readable = images.select([position for position, digest in enumerate(digests) if digest])
    readable.skipped = [*images.skipped, *lost]
    readable.ids = as_ids(digest for digest in digests if digest)
    return readable


def _assignment(ids: NDArray[np.uint8], is_test: NDArray[np.bool_]) -> dict[str, str]:
    return {row.tobytes().hex(): "test" if test else "train" for row, test in zip(ids, is_test, strict=True)}
