"""ImageClassifier, the front door: images and labels in, a tuned and calibrated classifier out.

`fit` reads like the walk of one image: turn pictures into rows (most are cached), let the search choose
representation and head on the rows, keep the calibrated winner. Everything dear is ordered here and done
below; nothing here decodes, trains or measures by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from featx.evaluation import Evaluation, evaluate
from featx.exceptions import DataError, LabelError
from featx.extractor import Extraction, FeatureExtractor
from featx.images import ImageSet, ImageSource, load_images
from featx.rows import RowBlocks
from featx.search import HeadSearchCV
from featx.splits import check_labels, image_groups, stable_test_mask

DEFAULT_BACKBONE = "tf_efficientnet_lite0.in1k"

Images = ImageSet | str | os.PathLike[str] | Sequence[ImageSource] | NDArray[Any]
"""A folder, a manifest, a list of image sources, a batch (n, H, W, 3), or a loaded `ImageSet`."""

EXTRACTOR_PARAMS = (
    "backbone", "cut", "pool", "resize", "input_size", "checkpoint", "pretrained", "store", "runtime",
    "device", "precision", "dtype", "batch_size", "decode", "background", "bit_depth", "callback",
)  # fmt: skip
"""Parameters that `ImageClassifier` hands to its `FeatureExtractor` as they are."""

SEARCH_PARAMS = (
    "heads", "n_trials", "timeout", "cv", "scoring", "class_weight", "storage", "study_name", "n_jobs",
    "random_state",
)  # fmt: skip
"""Parameters that `ImageClassifier` hands to its `HeadSearchCV` as they are."""


class ImageClassifier(ClassifierMixin, BaseEstimator):
    """Pretrained features and a tuned classical head, as one scikit-learn classifier of images.

    Parameters
    ----------
    backbone : str, default "tf_efficientnet_lite0.in1k"
        Any timm name with its tag. The default's ImageNet weights come with the installation.
    cut : str, int, list or None, default None
        Layer whose output is used: None for the whole network without its classifier, a tap's name or
        number (see ``featx taps``), or a list of them: the search then chooses.
    pool : str or list, default "avg"
        How a layer's map becomes a row: avg, max, gem, avg+max, cls, cls+avg, grid2, grid4.
    resize : {"crop", "squash", "pad"} or list, default "crop"
        What happens to pictures that are not square.
    input_size : int or tuple of int, optional
        Side, or height and width, in pixels fed to the network; default as the weights were trained.
    checkpoint : path, optional
        File or folder of weights to load instead of the pretrained ones.
    pretrained : bool, default True
        False takes random weights seeded by 0: a baseline, and a way to work without a network.
    heads : sequence of str, optional
        Names of `featx.heads.HEADS` to try; default the cheap ones.
    n_trials : int, default 50
        Optuna trials beyond the screening grid.
    timeout : float, optional
        Seconds for the search.
    cv : int, default 5
        Folds; lowered to the smallest class.
    scoring : str or callable, default "accuracy"
        Any scikit-learn scorer.
    class_weight : None, "balanced" or dict
        As in scikit-learn.
    store : path, FeatureStore, "memory" or None
        Where rows are kept. None is the cache folder (``FEATX_CACHE``); "memory" keeps nothing on disk.
    runtime, device, precision, dtype, batch_size, decode, background, bit_depth
        See `FeatureExtractor`.
    storage, study_name
        Optuna's storage URL and study name, to watch or resume a search.
    max_bad : float, default 0.05
        Fraction of unreadable pictures that `fit` sets aside with a warning; more is an error.
    n_jobs : int, optional
        Threads of the search.
    random_state : int, optional
        Seed of folds, search and heads.
    callback : callable, optional
        Called with every `featx.extractor.Progress` event.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, in their own type.
    search_ : HeadSearchCV
        The fitted search (absent in a loaded model).
    best_params_ : dict
        Head and settings that won.
    best_score_ : float
        Mean cross-validation score that the winner was chosen by: optimistic, being a maximum.
    study_ : optuna.Study
        All trials (absent in a loaded model).
    best_blocks_ : tuple of str
        Representations that the winner uses, ``cut:pool:resize``.
    specs_ : dict of str to FeatureSpec
        Their recipes.
    best_estimator_ : sklearn.pipeline.Pipeline
        From rows to decision scores; plain scikit-learn.
    calibration_ : Calibration
        From decision scores to probabilities, fitted on out-of-fold scores.
    oof_evaluation_ : Evaluation
        Out-of-fold estimate on the training images.
    evaluation_ : Evaluation
        Score on the held-out test part; only after `fit_with_test`.
    assignment_ : dict of str to str
        Hex digest of each image to "train" or "test".
    skipped_ : list of Skipped
        Pictures that were set aside, with the reason.
    n_computed_ : int
        Pictures that went through the network in the last fit; 0 when all rows were cached.
    """

    def __init__(
        self,
        backbone: str = DEFAULT_BACKBONE,
        *,
        cut: str | int | Sequence[str | int] | None = None,
        pool: str | Sequence[str] = "avg",
        resize: str | Sequence[str] = "crop",
        input_size: int | tuple[int, int] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        pretrained: bool = True,
        heads: Sequence[str] | None = None,
        n_trials: int = 50,
        timeout: float | None = None,
        cv: int = 5,
        scoring: str | Callable[..., float] = "accuracy",
        class_weight: str | Mapping[Any, float] | None = None,
        store: Any = None,
        runtime: str = "auto",
        device: str = "auto",
        precision: str = "auto",
        dtype: str = "float16",
        batch_size: int | str = "auto",
        decode: str = "exact",
        background: tuple[int, int, int] = (255, 255, 255),
        bit_depth: str = "full",
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
        self.checkpoint = checkpoint
        self.pretrained = pretrained
        self.heads = heads
        self.n_trials = n_trials
        self.timeout = timeout
        self.cv = cv
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
        rows, images = self._extract(images)
        self._learn(rows.ids, rows.blocks, images)
        self.assignment_ = _assignment(rows.ids, np.zeros(len(rows.ids), bool))
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
        labels = check_labels(_labels(images))
        rows, images = self._extract(images)
        if images.splits is not None and (images.splits == "test").any():
            is_test = images.splits == "test"
            _warn_of_leaks(rows.ids, is_test)
        else:
            is_test = stable_test_mask(
                rows.ids,
                _labels(images),
                test_size=test_size,
                salt=split_salt,
                groups=images.groups,
                previous=previous,
            )
        train, test = images.select(~is_test), images.select(is_test)
        _refuse_unseen(_labels(test), np.unique(_labels(train)), what="test images")
        self._learn(rows.ids[~is_test], rows.blocks.take(~is_test), train)
        self.assignment_ = _assignment(rows.ids, is_test)
        self.evaluation_ = self._evaluation(rows.blocks.take(is_test), test)
        return self

    def predict(self, X: Images) -> NDArray[Any]:
        """Most probable label of each image, shape (n_images,); the argmax of `predict_proba`.

        Raises
        ------
        ImageError
            If a picture cannot be read. `predict_rows` with an extraction that skips is the way around it.
        """
        return np.asarray(self.classes_)[self.predict_proba(X).argmax(1)]

    def predict_proba(self, X: Images) -> NDArray[np.float64]:
        """Calibrated probabilities, shape (n_images, n_classes), in the order of `classes_`."""
        return self.proba_of_rows(self.extract(as_images(X), on_error="raise").blocks)

    def decision_function(self, X: Images) -> NDArray[np.float64]:
        """Calibrated decision scores, shape (n_images,) for two classes, else (n_images, n_classes)."""
        blocks = self.extract(as_images(X), on_error="raise").blocks
        return self.calibration_.scores(_decision(self.best_estimator_, blocks.stack(self.best_blocks_)))

    def score(self, X: Images, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None) -> float:
        """Accuracy on labelled images.

        Raises
        ------
        LabelError
            If `y` has a class that was not learnt.
        """
        images = as_images(X, y)
        truth = _labels(images)
        _refuse_unseen(truth, self.classes_, what="labels")
        return float(np.average(self.predict(images) == truth, weights=sample_weight))

    def evaluate(
        self, X: Images, y: ArrayLike | None = None, *, groups: ArrayLike | None = None
    ) -> Evaluation:
        """Metrics with intervals, confusion matrix and per-class table on labelled images.

        Unreadable pictures are set aside and listed in ``skipped_``.
        """
        check_is_fitted(self, "best_estimator_")
        images = as_images(X, y, groups=groups)
        _refuse_unseen(_labels(images), self.classes_, what="labels")
        rows = self.extract(images, on_error="skip")
        self.skipped_ = [*images.skipped, *rows.skipped]
        return self._evaluation(rows.blocks, images.select(rows.kept))

    def extract(self, images: ImageSet, *, on_error: str = "raise") -> Extraction:
        """Rows of the representation that won, for new images."""
        check_is_fitted(self, "best_estimator_")
        return self._extractor(self.best_blocks_).extract(
            images.sources, names=images.names, on_error=on_error
        )

    def proba_of_rows(self, blocks: RowBlocks) -> NDArray[np.float64]:
        """Probabilities, shape (n_rows, n_classes), from rows that `extract` returned."""
        check_is_fitted(self, "best_estimator_")
        return self.calibration_.proba(_decision(self.best_estimator_, blocks.stack(self.best_blocks_)))

    def plan(self, X: Images) -> Any:
        """What `fit` would compute for these images, and how long that takes here."""
        return self._extractor().plan(as_images(X).sources)

    def save(self, path: str | os.PathLike[str]) -> Any:
        """Write the classifier to one ``.featx`` file; see `featx.load`.

        Returns
        -------
        pathlib.Path
            The file.
        """
        from featx.modelfile import save_classifier

        check_is_fitted(self, "best_estimator_")
        return save_classifier(self, path)

    def _extract(self, images: ImageSet) -> tuple[Extraction, ImageSet]:
        """Rows of every readable picture, and the image set without the others."""
        extraction = self._extractor().extract(images.sources, names=images.names, on_error="skip")
        self.skipped_ = [*images.skipped, *_with_labels(extraction.skipped, images)]
        _refuse_too_many(self.skipped_, len(images) + len(images.skipped), self.max_bad)
        self.n_computed_ = extraction.computed
        return extraction, images.select(extraction.kept)

    def _extractor(self, blocks: Sequence[str] | None = None) -> FeatureExtractor:
        """The extractor of all candidate blocks, or of the chosen ones only."""
        raise NotImplementedError

    def _learn(self, ids: NDArray[np.uint8], blocks: RowBlocks, images: ImageSet) -> None:
        y = check_labels(_labels(images))
        params = {name: getattr(self, name) for name in SEARCH_PARAMS}
        search = HeadSearchCV(**params)
        groups = image_groups(ids, images.groups)
        search.fit(blocks, y, groups=groups, sample_weight=images.weights)
        self.search_ = search
        self.classes_ = search.classes_
        self.best_params_ = search.best_params_
        self.best_score_ = search.best_score_
        self.best_blocks_ = search.best_blocks_
        self.best_estimator_ = search.best_estimator_
        self.calibration_ = search.calibration_
        self.study_ = search.study_
        self.oof_evaluation_ = evaluate(y, search.oof_proba_, search.classes_, groups=groups)

    def _evaluation(self, blocks: RowBlocks, images: ImageSet) -> Evaluation:
        return evaluate(_labels(images), self.proba_of_rows(blocks), self.classes_, groups=images.groups)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags


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
    given = {name: np.asarray(values) for name, values in extra.items() if values is not None}
    for name, values in given.items():
        if len(values) != len(images):
            raise DataError(f"{len(images)} images but {len(values)} {name}; give one for each image.")
    return dataclasses.replace(images, **given) if given else images


def _labels(images: ImageSet) -> NDArray[Any]:
    if images.labels is None:
        raise LabelError(
            "these images have no labels; give y, a folder of class folders, or a manifest with a label column."
        )
    return images.labels


def _assignment(ids: NDArray[np.uint8], is_test: NDArray[np.bool_]) -> dict[str, str]:
    return {row.tobytes().hex(): "test" if test else "train" for row, test in zip(ids, is_test, strict=True)}
