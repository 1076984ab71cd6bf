"""ImageClassifier: a scikit-learn classifier of images.

The estimator checks its input, keeps two values (`ImageModel` and `FitRecord`) and gives their parts
scikit-learn's names. What it does is done by the functions of this package.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.validation import check_is_fitted

from featx.advice import Advice
from featx.classifier.advising import advise_model
from featx.classifier.fitting import evaluate_images, fit_images, plan_fit
from featx.classifier.inputs import (
    Images,
    as_classes,
    as_images,
    labelled_images,
    labels_of,
    refuse_unseen,
)
from featx.classifier.packing import save_model
from featx.classifier.parts import FittedParts
from featx.classifier.presets import PRESET
from featx.classifier.reading import check_network
from featx.classifier.settings import machine_of, saved_params, settings_of
from featx.classifier.tables import ResultTables
from featx.evaluation import Evaluation
from featx.exceptions import FeatxWarning, UsageError
from featx.extractor import Extraction, FeatureExtractor, Plan
from featx.finetune import FineTuner
from featx.search import HeadSearchCV
from featx.selection.candidates import AUTO


class ImageClassifier(ResultTables, FittedParts, ClassifierMixin, BaseEstimator):
    """Pretrained features and a tuned classical head, as one scikit-learn classifier of images.

    Parameters
    ----------
    backbone : str or list of str, default "preset"
        Any timm name with its tag. Several are compared on at most 500 training images; the best is used, or
        the concatenated features of the best two if they are better by a standard error. "auto" stands for
        all whose weights are on this machine: in Python packages, or in the cache of the Hugging Face hub.
    preset : {"quick", "good", "best"}, default "good"
        Values of `backbone`, `cut`, `pool`, `resize`, `heads`, `n_trials`, `fine_tune`, `backbone_budget` and
        the views of the extractor (see ``featx presets``). They are used for parameters whose value is
        "preset", their default.
    budget : float or str, optional
        Time for the whole fit: seconds, or a text such as "90s", "10m" or "2h". Features of all images are
        computed even if they take longer, and a step that has begun is finished. By default only the search
        has a budget: the time that the features of the images take with the default backbone
        (``search__budget``).
    cut : str, int, list or None, default "preset"
        Layer whose output is used: None for the whole network without its classifier, the name or number of
        a layer (see ``featx taps``), a list of them, or "auto" for all.
    pool : str or list, default "preset"
        Pooling of a feature map, as for `FeatureExtractor`; a list, or "auto" for all that the layer allows.
    resize : {"crop", "squash", "pad", "auto"} or list, default "preset"
        How images that are not square are resized: centre crop, change of aspect ratio, or padding. "auto"
        tries each on a few hundred training images, and uses another one than "crop" only if it is
        significantly better.
    heads : sequence of str or None, default "preset"
        Names of `featx.heads.HEADS` to try; None for those that are quick to fit.
    n_trials : int or "auto", default "preset"
        Optuna trials in addition to the coarse grid; "auto" is at most 30, and none where they cannot help.
    cv : int or "auto", default "auto"
        Folds; at most the size of the smallest class. "auto" is 5; where one linear model on all of them
        would take most of the search's budget, only some of them are evaluated.
    scoring : str or callable, default "auto"
        Any scikit-learn scorer. "auto" is accuracy, and lets `decide` favour rare classes.
    class_weight : None, "balanced", "sqrt", "search" or dict, default None
        Weights of the classes in training and in the decision rule; as for `HeadSearchCV`.
    decide : {"auto", "argmax", "balanced"} or dict, default "auto"
        Decision rule from probabilities to labels: the most probable class ("argmax"), as if all classes were
        equally frequent ("balanced"), or by the cost of missing each class (``{"rare": 5}``; others cost 1).
        "auto" favours rare classes if the largest class has at least three times the images of the smallest,
        and `scoring` is "auto" or a metric in which all classes count the same. The weight of rare classes is
        tuned on out-of-fold probabilities; it is used only if macro-F1 gains significantly and more than
        accuracy loses (see `tried_`). Another value can be set after the fit. Probabilities do not depend on
        it.
    fine_tune : {"auto", True, False}, default "preset"
        Whether the network's upper layers are trained on the training part after the search, and used if
        they are expected to be better than the tuned head (minutes to hours). "auto": if a gain is likely.
    backbone_budget : float, str or "auto", default "preset"
        Time for the comparison of backbones. The most expensive ones are left out if it is too short. "auto"
        is the time of the features of all images with the default backbone, or 600 s if the backbones are
        given by name.
    max_bad : float, default 0.05
        Fraction of unreadable images that `fit` skips with a warning; more is an error.
    auto_groups : bool, default True
        If no groups are given: whether near copies, and images of one source, stay in one part and one fold.
    store : path, FeatureStore, "memory" or None, default None
        Where features are kept. None is the cache folder (``FEATX_CACHE``); "memory" keeps nothing on disk.
    device : str, default "auto"
        cuda, mps, xpu or cpu. Of several devices ("cuda:0,cuda:1", "all") the extraction uses all, and
        fine-tuning the first.
    n_jobs : int, optional
        Threads of extraction and search; all cores by default.
    random_state : int, optional
        Seed of folds, search and heads.
    callback : callable, optional
        Called with every `featx.extractor.Progress` event.
    verbose : bool or "auto", default "auto"
        Whether bars show the progress where there is no `callback`; "auto" on a terminal and in a notebook.
    extractor : FeatureExtractor, optional
        All other parameters of the extraction, such as ``extractor__decode="fast"``. The parameters above
        replace its own of the same name. ``extractor__view=range(k + 1)`` with ``extractor__view_policy``
        allows k augmented views of each training image. They are tried as more training data, as averaged
        features (images are then also predicted from the average over their views), and as both, and used if
        the out-of-fold score is better (see `augmentation_`).
    search : HeadSearchCV, optional
        All other parameters of the search, such as ``search__storage``. ``search__n_repeats="auto"`` (the
        default here) draws the folds once for 500 images or more, and two or three times for fewer.
    fine_tuner : FineTuner, optional
        All other parameters of fine-tuning, such as ``fine_tuner__unfreeze``.

    Attributes
    ----------
    model_ : ImageModel
        The fitted model.
    record_ : FitRecord
        What the fit tried, selected and measured.
    study_ : optuna.Study
        All trials. Absent in a loaded model; ``record_.trials`` has the best ones.
    cv_results_ : dict of arrays
        One entry for each configuration of the search. Absent in a loaded model.
    training_ : TrainingSet
        The training images. Absent in a loaded or unpickled model.
    classes_, best_estimator_, best_blocks_, specs_, cards_, card_, calibration_, decision_, ...
        Parts of `model_`.
    best_params_, best_score_, scoring_, choice_, tried_, oof_proba_, evaluation_, skipped_, ...
        Parts of `record_`. `evaluation_` is None after `fit`, which has no test part.

    Examples
    --------
    >>> from PIL import Image
    >>> from featx import ImageClassifier
    >>> reds = [Image.new("RGB", (40, 40), (200 + i, 10, 10)) for i in range(8)]
    >>> blues = [Image.new("RGB", (40, 40), (10, 10, 200 + i)) for i in range(8)]
    >>> clf = ImageClassifier("test_resnet", n_trials=2, extractor=FeatureExtractor(pretrained=False))
    >>> clf = clf.set_params(store="memory", random_state=0).fit(reds + blues, ["red"] * 8 + ["blue"] * 8)
    >>> clf.predict(reds[:2]).tolist()
    ['red', 'red']
    """

    def __init__(
        self,
        backbone: str | Sequence[str] = PRESET,
        *,
        preset: str = "good",
        budget: float | str | None = None,
        cut: str | int | Sequence[str | int] | None = PRESET,
        pool: str | Sequence[str] = PRESET,
        resize: str | Sequence[str] = PRESET,
        heads: str | Sequence[str] | None = PRESET,
        n_trials: int | str = PRESET,
        cv: Any = AUTO,
        scoring: str | Callable[..., float] = AUTO,
        class_weight: str | Mapping[Any, float] | None = None,
        decide: str | Mapping[Any, float] = AUTO,
        fine_tune: bool | str = PRESET,
        backbone_budget: float | str = PRESET,
        max_bad: float = 0.05,
        auto_groups: bool = True,
        store: Any = None,
        device: str = "auto",
        n_jobs: int | None = None,
        random_state: int | None = None,
        callback: Callable[[Any], None] | None = None,
        verbose: bool | str = AUTO,
        extractor: FeatureExtractor | None = None,
        search: HeadSearchCV | None = None,
        fine_tuner: FineTuner | None = None,
    ) -> None:
        self.backbone = backbone
        self.preset = preset
        self.budget = budget
        self.cut = cut
        self.pool = pool
        self.resize = resize
        self.heads = heads
        self.n_trials = n_trials
        self.cv = cv
        self.scoring = scoring
        self.class_weight = class_weight
        self.decide = decide
        self.fine_tune = fine_tune
        self.backbone_budget = backbone_budget
        self.max_bad = max_bad
        self.auto_groups = auto_groups
        self.store = store
        self.device = device
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.callback = callback
        self.verbose = verbose
        # Made here, so that nested parameters can be set before fit: set_params(extractor__decode="fast").
        self.extractor = FeatureExtractor() if extractor is None else extractor
        self.search = HeadSearchCV(n_repeats=AUTO) if search is None else search
        self.fine_tuner = FineTuner() if fine_tuner is None else fine_tuner

    def fit(
        self,
        X: Images,
        y: ArrayLike | None = None,
        *,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Fit on all images, without a test part.

        Parameters
        ----------
        X : Images
            What `featx.images.load_images` reads: a folder, a manifest, a list, a data frame, a dataset, ...
        y : array-like of shape (n_images,), optional
            Labels; needed unless `X` has them.
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
        images = labelled_images(X, y, groups=groups, sample_weight=sample_weight)
        self._fitted = fit_images(images, None, settings_of(self))
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
        """Fit on the training part, and evaluate on the held-out test part, which is used for nothing else.

        The test part is the ``test/`` folder or the manifest's split if the data has one. Otherwise it is
        stratified and chosen by a hash of the images' content: test images stay test images when the set
        grows. The result is in `evaluation_`.

        Parameters
        ----------
        X, y, groups, sample_weight
            As for `fit`.
        test_size : float, default 0.2
            Fraction of each class that is held out.
        split_salt : str, default ""
            Another text draws another split.
        previous : mapping of str to str, optional
            An earlier `assignment_`; its images stay in their part.

        Returns
        -------
        self

        Raises
        ------
        LabelError, TooManyBadImagesError
            As `fit`.
        DataError
            If there are too few images for a test part.
        """
        images = labelled_images(X, y, groups=groups, sample_weight=sample_weight)
        split = {"test_size": test_size, "salt": split_salt, "previous": previous}
        self._fitted = fit_images(images, split, settings_of(self))
        return self

    def predict(self, X: Images, *, decide: str | Mapping[Any, float] | None = None) -> NDArray[Any]:
        """Predict the label of each image.

        Parameters
        ----------
        X : Images
            As for `fit`.
        decide : {"auto", "argmax", "balanced"} or dict, optional
            Another decision rule than that of the parameter `decide`.

        Returns
        -------
        array of shape (n_images,)
            Labels, in the type of `classes_`.

        Raises
        ------
        ImageError
            If an image cannot be read; to skip it, use ``extract(on_error="skip")`` and `proba_of_features`.
        """
        model = self._deciding(decide)
        return model.labels(self.predict_proba(X))

    def predict_proba(self, X: Images) -> NDArray[np.float64]:
        """Predict calibrated probabilities; they do not depend on the decision rule.

        Parameters
        ----------
        X : Images
            As for `fit`.

        Returns
        -------
        array of shape (n_images, n_classes), float64
            In the order of `classes_`.

        Raises
        ------
        ImageError
            If an image cannot be read.
        """
        return self.proba_of_features(self.extract(X).blocks)

    def decision_function(self, X: Images) -> NDArray[np.float64]:
        """Decision scores, shape (n_images,) for two classes, else (n_images, n_classes).

        They are log probabilities, up to a constant for each image, plus the logarithms of the decision
        rule's weights. `predict` returns the class of the largest one.
        """
        model = self._deciding()
        return model.scores(self.extract(X).blocks)

    def score(self, X: Images, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None) -> float:
        """Accuracy on labelled images.

        Raises
        ------
        LabelError
            If `y` has a class that was not learnt.
        """
        check_is_fitted(self)
        images = as_classes(as_images(X, y), self.classes_)
        truth = labels_of(images)
        refuse_unseen(truth, self.classes_, what="labels")
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

        Parameters
        ----------
        X, y, groups
            As for `fit`.
        min_confidence : float, optional
            Also report coverage and accuracy without predictions of a lower probability.

        Returns
        -------
        Evaluation

        Raises
        ------
        TooManyBadImagesError
            If more than `max_bad` of the images cannot be read.

        Warns
        -----
        ImageWarning
            About unreadable images, and about images that the model was trained on.
        """
        model = self._deciding()
        images = as_images(X, y, groups=groups)
        extract = partial(self.extract, images, on_error="skip")
        return evaluate_images(model, self._folds(), images, extract, self.max_bad, min_confidence)[0]

    def extract(self, X: Images, *, on_error: str = "raise") -> Extraction:
        """Features of new images, from which `predict` computes its results.

        Parameters
        ----------
        X : Images
            As for `predict`.
        on_error : {"raise", "skip"}
            What to do with an image that cannot be read.

        Returns
        -------
        Extraction
            The features in `blocks`, and the skipped images.
        """
        check_is_fitted(self)
        images, machine = as_images(X), machine_of(self)
        model = self._fitted.model
        found = model.extract(images.sources, machine, names=images.names, on_error=on_error)
        expected = self._fitted.expected
        if found.computed and expected is not None:
            self._fitted = dataclasses.replace(self._fitted, expected=None)
            check_network(model, found, expected, machine)
        return found

    def advice(self, **options: Any) -> Advice:
        """Measure what to do next: layer, more labels or not, fine-tuning, other backbones.

        Features of the training images are read from the store (computed again with ``store="memory"``).

        Parameters
        ----------
        **options
            ``others``, ``budget_s``, ``fine_tuning`` and ``random_state`` of
            `featx.classifier.advising.advise_model`.

        Raises
        ------
        UsageError
            If the classifier was loaded from a file: advice needs the images of a fit.
        """
        check_is_fitted(self)
        training = self._fitted.training
        if training is None:
            raise UsageError("advice needs the images of a fit in this process; call fit, then advice.")
        return advise_model(self.model_, self.record_, training, machine_of(self), **options)

    def plans(self, X: Images) -> dict[str, Plan]:
        """Return what `fit` would compute for these images, and how long it takes here, for each backbone."""
        return plan_fit(as_images(X), settings_of(self))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the classifier to one ``.featx`` file, which `featx.load` reads.

        The file also has the features of a few synthetic images; `load` checks that they are still the same.

        Parameters
        ----------
        path : path
            File to write; its name ends in ``.featx``.

        Returns
        -------
        pathlib.Path
            The file.
        """
        check_is_fitted(self)
        params, left_out = saved_params(self)
        if left_out:
            warnings.warn(
                f"{', '.join(left_out)} cannot be saved: objects of these types are not part of a model "
                "file. Set them again before the loaded model is fitted.",
                FeatxWarning,
                stacklevel=2,
            )
        return save_model(self._fitted.model, self.record_, params, machine_of(self), path)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_fitted")

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the training images: a copy can predict, but not give advice."""
        state: dict[str, Any] = dict(super().__getstate__())
        if "_fitted" in state:
            state["_fitted"] = dataclasses.replace(state["_fitted"], training=None, images=None)
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags

    def __sklearn_clone__(self) -> ImageClassifier:
        """An unfitted copy that shares the store, which is no parameter to be copied."""
        params = self.get_params(deep=False)
        shared = {name: params.pop(name) for name in ("store", "callback")}
        return type(self)(**{name: clone(value, safe=False) for name, value in params.items()}, **shared)
