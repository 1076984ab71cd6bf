"""FineTuner: train the layers above a cut in phases, on features of the layer below the cut.

The lower layers run once per image. The network is compared with the probe on images that neither was
trained on. Torch is imported when something is trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from featx.evaluation import Calibration, fit_calibration
from featx.exceptions import DataError, UsageError
from featx.extractor import FeatureExtractor, Progress
from featx.finetune.crossfit import Clock, cross_fit, refit_seconds
from featx.finetune.features import MEMORY
from featx.finetune.inputs import (
    DISK_LIMIT,
    FineTuneInputs,
    FineTunePlan,
    SourceSettings,
    as_features,
    as_images,
    image_reporter,
)
from featx.finetune.phases import HEADS, Phase, TrainedLayer, default_phases, describe_phases
from featx.finetune.probe import LinearProbe
from featx.finetune.recipes import RECIPES, Recipe, choose_recipe
from featx.finetune.verdict import Parts, Verdict, make_parts, without_chosen
from featx.progress import shown_by
from featx.solvers import CLASS_WEIGHTS
from featx.solvers import class_weights as weigh_classes
from featx.splits import check_labels

if TYPE_CHECKING:
    from featx.finetune.job import Job, TrainingResult


class FineTuner(ClassifierMixin, BaseEstimator):
    """Train the upper layers of a pretrained network in phases, on features of the layer below them.

    Parameters
    ----------
    backbone : str or FeatureExtractor
        A timm name, or an extractor whose backbone, store, resize, decoding and device are used (not its cut
        and pooling).
    unfreeze : int or str, default 2
        What is trained: the last k stages of the network (the layers between its taps, see ``featx taps``),
        everything above a tap, or ``"all"``, for which images are streamed.
    head : {'probe', 'linear', 'mlp'}, default 'probe'
        Initial head: the tuned probe (LP-FT, Kumar et al. 2022), zeros, or a random hidden layer with
        dropout as in the Keras tutorials.
    phases : sequence of Phase, optional
        By default the head alone first, except for ``head='probe'``; then everything unfrozen.
    recipes : {'auto'} or mapping of str to Recipe, optional
        Choose cut, phases, views and size of the input among these, by successive halving; what is given for
        them is not used. ``auto`` stands for `featx.finetune.RECIPES`.
    resize : {'crop', 'squash', 'pad'}, optional
        By default that of the extractor (the first of several).
    views : int, default 0
        Stored augmented views of each image. An epoch draws one of them or the plain image.
    view_policy : str, default 'light'
        Augmentation of stored views or of streamed images; ``"none"`` for none.
    class_weight : None, 'balanced', 'sqrt' or dict, default None
        As in scikit-learn; ``sqrt`` is the square root of ``balanced``. Probabilities are those of classes
        with these weights.
    validation : float, default 0.15
        Share of the training images on which the best epoch is chosen and the network is calibrated.
    verdict : float, default 0.2
        Share of the images on which the network is compared with the probe; 0 for no comparison. While it is
        not clear which is better, training and comparison are repeated with another, disjoint share for the
        comparison.
    n_verdicts : int, optional
        Largest number of these comparisons. By default ``1 / verdict``, which uses each image once.
    refit : bool, default True
        Whether a network that is kept is trained again on all images, for as many epochs.
    monitor : {'accuracy', 'loss'}, default 'accuracy'
        Validation metric that chooses the best epoch.
    n_trials : int, default 0
        Optuna trials of the parameters of the last phase and of `unfreeze`; bad trials are pruned early.
    timeout : float, optional
        Seconds for the fit. When they are used up, no further trial or comparison begins, and there is no
        training on all images if it would take longer. A training that has begun is finished.
    precision : {'auto', 'fp32', 'bf16', 'fp16'}, default 'auto'
        Precision of the forward pass in training. ``auto`` is bf16 where the device supports it natively,
        else fp16 on CUDA, else fp32. On a CPU depthwise convolutions stay in fp32.
    disk_limit, memory : int
        Bytes on the disk that stored features may need, above which images are streamed; and in memory.
    checkpoints : path, optional
        Folder for a file that is written after each epoch, from which the same `fit` resumes (trials of the
        tuning start again). If `random_state` is None, the seed is then derived from the labels.
    random_state : int, optional
        Seed of parts, order, dropout and views.
    callback : callable, optional
        Called with `featx.extractor.Progress` events.
    verbose : bool or "auto", default "auto"
        Whether bars show the progress without a `callback`; "auto" on a terminal and in a notebook.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    network_ : FineTunedNetwork
    verdict_ : Verdict or None
        Comparison with the probe on images that neither was trained on.
    history_ : list of dict
        Epochs of the training of `network_`: loss, accuracy, learning rates, seconds. If no epoch was better
        than the initial weights, those of the training that found this.
    trained_ : list of list of TrainedLayer
        What each phase trained.
    phases_ : tuple of Phase
    unfreeze_ : int or str
    recipe_ : str or None
        The recipe that was chosen.
    plan_ : FineTunePlan, or None for features
    study_ : optuna.Study
        Only with `n_trials`.
    """

    def __init__(
        self,
        backbone: str | FeatureExtractor = "tf_efficientnet_lite0.in1k",
        *,
        unfreeze: int | str = 2,
        head: str = "probe",
        phases: Sequence[Phase] | None = None,
        recipes: str | Mapping[str, Recipe] | None = None,
        resize: str | None = None,
        views: int = 0,
        view_policy: str = "light",
        class_weight: str | Mapping[Any, float] | None = None,
        validation: float = 0.15,
        verdict: float = 0.2,
        n_verdicts: int | None = None,
        refit: bool = True,
        monitor: str = "accuracy",
        n_trials: int = 0,
        timeout: float | None = None,
        precision: str = "auto",
        disk_limit: int = DISK_LIMIT,
        memory: int = MEMORY,
        checkpoints: str | Path | None = None,
        random_state: int | None = None,
        callback: Callable[[Progress], None] | None = None,
        verbose: bool | str = "auto",
    ) -> None:
        self.backbone = backbone
        self.unfreeze = unfreeze
        self.head = head
        self.phases = phases
        self.recipes = recipes
        self.resize = resize
        self.views = views
        self.view_policy = view_policy
        self.class_weight = class_weight
        self.validation = validation
        self.verdict = verdict
        self.n_verdicts = n_verdicts
        self.refit = refit
        self.monitor = monitor
        self.n_trials = n_trials
        self.timeout = timeout
        self.precision = precision
        self.disk_limit = disk_limit
        self.memory = memory
        self.checkpoints = checkpoints
        self.random_state = random_state
        self.callback = callback
        self.verbose = verbose

    def fit(
        self,
        X: Any,
        y: ArrayLike,
        *,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        probe: LinearProbe | None = None,
    ) -> Self:
        """Train, compare with the probe, and train again on all images if the network is better.

        Parameters
        ----------
        X : ImageSet, list of image sources, or features
            Images; or their features at the cut, a float array of shape (n, C, H, W) or (n, L, C), or a
            `FeatureSource`.
        y : array-like of shape (n,)
        groups : array-like of shape (n,), optional
            Images of one group are in the same part (training, validation, comparison).
        sample_weight : array-like of shape (n,), optional
            Weights in the loss.
        probe : LinearProbe, optional
            The tuned classifier on frozen features of the same images, in the same order.

        Returns
        -------
        self

        Raises
        ------
        LabelError, ImageError
            If labels or images cannot be used.
        UsageError
            If a parameter or a phase does not fit the network.
        """
        labels = check_labels(y)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        self._check(X, labels)
        state: Any = self.random_state
        if state is None and self.checkpoints is not None:
            state = np.frombuffer(hashlib.sha256(codes.tobytes()).digest(), np.uint32)
        seed = int(np.random.default_rng(state).integers(1 << 31))
        phases = self.first_phases()
        inputs = self._open(X, groups, seed)
        parts = make_parts(
            labels,
            validation=self.validation,
            verdict=self.verdict,
            n_verdicts=self.n_verdicts,
            groups=inputs.groups,
            random_state=seed % 1000,
        )
        self.unfreeze_, self.phases_ = self.unfreeze, phases
        self.recipe_: str | None = None
        self.verdict_: Verdict | None = None
        recipes = RECIPES if isinstance(self.recipes, str) else self.recipes or {}
        jobs: dict[Any, Job] = {}

        def open_job(unfreeze: int | str, recipe: str | None = None) -> Job:
            """Open the job of a cut or a recipe once; report the disk space first."""
            if (unfreeze, recipe) not in jobs:
                tuner, opened = self, inputs
                if recipe is not None:
                    tuner = FineTuner(**recipes[recipe].params(self.get_params(deep=False)))
                    tuner.classes_, opened = self.classes_, tuner._open(X, groups, seed)
                plan = opened.plan(unfreeze)
                self._tell("fine-tuning: " + plan.reason if plan is not None else "")
                jobs[unfreeze, recipe] = tuner._job(opened, unfreeze, codes, sample_weight, probe)
            return jobs[unfreeze, recipe]

        clock = Clock(self.timeout)
        if self.n_trials:
            from featx.finetune.tuning import tune

            self.study_, self.unfreeze_, self.phases_ = tune(
                open_job,
                inputs.choices(self.unfreeze, phases),
                parts[0],
                phases,
                n_trials=self.n_trials,
                timeout=self.timeout,
                seed=seed,
                tell=self._tell,
            )
        chosen = None
        if recipes:
            chosen = choose_recipe(
                recipes,
                lambda name: open_job(recipes[name].unfreeze, name),
                parts[0],
                clock=clock,
                refit=self.refit,
                tell=self._tell,
            )
            self.recipe_, self.phases_ = chosen.name, chosen.phases
            self.unfreeze_ = recipes[chosen.name].unfreeze
        tuning_minutes = 0.0
        if self.n_trials or chosen is not None:
            parts, tuning_minutes = without_chosen(parts), clock.seconds / 60
        job = open_job(self.unfreeze_, self.recipe_)
        self.plan_ = job.inputs.plan(self.unfreeze_)
        self.trained_: list[list[TrainedLayer]] = job.describe(self.phases_)
        for line in describe_phases(self.phases_, self.trained_, self.head):
            self._tell(line)
        if chosen is not None and chosen.verdict is not None:
            trained, self.verdict_ = [chosen.trained], chosen.verdict
        else:
            trained, self.verdict_ = cross_fit(
                job,
                parts,
                self.phases_,
                clock=clock,
                refit=self.refit,
                minutes=tuning_minutes,
                first=None if chosen is None else chosen.trained,
                before_part=lambda number: self._report(job, len(parts[number].train), number, len(parts)),
            )
        self._keep(job, trained, parts[: len(trained)], clock)
        for path in job.files:
            path.unlink(missing_ok=True)
        return self

    def plan(self, X: Any) -> FineTunePlan:
        """Return where `fit` would take the features of these images from, and their size on the disk.

        Raises
        ------
        UsageError
            If X holds features.
        """
        found = self._open(X, None, 0).plan(self.unfreeze)
        if found is None:
            raise UsageError("plan() needs images; the given features are not stored.")
        return found

    def describe(self, n_classes: int = 2) -> list[list[TrainedLayer]]:
        """Return what each phase would train: names of parameters, their number, learning rates.

        Parameters
        ----------
        n_classes : int
            Number of outputs of the head.
        """
        job = self._job(self._open(None, None, 0), self.unfreeze, np.arange(n_classes), None, None)
        return job.describe(self.first_phases())

    def first_phases(self) -> tuple[Phase, ...]:
        """Return the given phases, or the default ones of the head."""
        return tuple(self.phases) if self.phases is not None else default_phases(self.head)

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable label of each image, shape (n,).

        Parameters
        ----------
        X : as for `fit`
        """
        return np.asarray(self.classes_[self.predict_proba(X).argmax(1)])

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return calibrated probabilities, shape (n, n_classes), float64, in the order of `classes_`.

        Parameters
        ----------
        X : as for `fit`

        Raises
        ------
        ImageError
            If an image cannot be read.
        """
        check_is_fitted(self, "network_")
        features = as_features(X)
        if features is not None:
            return self.network_.proba_at_cut(features)
        return self.network_.predict_proba(as_images(X).sources)

    def _open(self, X: Any, groups: ArrayLike | None, seed: int) -> FineTuneInputs:
        given = self.backbone
        return FineTuneInputs.of(
            given if isinstance(given, FeatureExtractor) else FeatureExtractor(given),
            X,
            groups,
            SourceSettings(self.views, self.view_policy, self.disk_limit, self.memory, seed),
            resize=self.resize,
            callback=shown_by(self.callback, self.verbose),
        )

    def _job(
        self,
        inputs: FineTuneInputs,
        unfreeze: int | str,
        codes: NDArray[np.intp],
        sample_weight: ArrayLike | None,
        probe: LinearProbe | None,
    ) -> Job:
        from featx.finetune.job import open_job

        weights = None
        if sample_weight is not None:
            given = np.asarray(sample_weight, np.float64)
            weights = (given / given.mean()).astype(np.float32)
        class_weights, kind, n_classes = None, self.class_weight, int(codes.max()) + 1
        if kind is not None:
            of_class = kind if isinstance(kind, str) else np.array([kind.get(c, 1.0) for c in self.classes_])
            class_weights = weigh_classes(of_class, codes, np.ones(len(codes)), n_classes).astype(np.float32)
        return open_job(
            inputs,
            unfreeze,
            y=codes,
            n_classes=n_classes,
            head=self.head,
            probe=probe,
            weights=weights,
            class_weights=class_weights,
            precision=self.precision,
            monitor=self.monitor,
            checkpoints=None if self.checkpoints is None else Path(self.checkpoints),
        )

    def _check(self, X: Any, labels: NDArray[Any]) -> None:
        if self.head not in HEADS:
            raise UsageError(f"head {self.head!r} is not known; choose one of {', '.join(HEADS)}.")
        if len(X) != len(labels):
            raise DataError(f"{len(X)} images but {len(labels)} labels; give one for each image.")
        if isinstance(self.class_weight, str) and self.class_weight not in CLASS_WEIGHTS:
            raise UsageError(
                f"class_weight {self.class_weight!r} is not known; choose {', '.join(CLASS_WEIGHTS)}, a dict "
                "or None."
            )
        if isinstance(self.recipes, str) and self.recipes != "auto":
            raise UsageError(f"recipes {self.recipes!r} are not known; choose 'auto', a mapping or None.")
        if self.recipes and (self.n_trials or not self.validation or as_features(X) is not None):
            raise UsageError(
                "recipes need images and a share for validation, and allow no trials; pass images, "
                "and neither n_trials nor validation=0."
            )
        for name in ("validation", "verdict"):
            if not 0 <= getattr(self, name) <= 0.5:
                raise UsageError(f"{name} is {getattr(self, name)!r}; it is a share from 0 to 0.5.")

    def _keep(self, job: Job, trained: list[TrainingResult], parts: Sequence[Parts], clock: Clock) -> None:
        """Calibrate on the validation images, and train on all images if the network is kept."""
        stops = np.concatenate([part.validation for part in parts])
        calibration = Calibration("identity")
        if len(stops):
            scores = [job.logits(one, part.validation) for one, part in zip(trained, parts, strict=True)]
            truth = job.y[stops]
            weight = None if job.class_weights is None else job.class_weights[truth]
            calibration = fit_calibration(
                np.concatenate(scores), truth, len(self.classes_), sample_weight=weight
            )
        final = trained[0]
        if self.refit and len(stops) and (self.verdict_ is None or self.verdict_.kept):
            if clock.left < refit_seconds(job, trained, parts):
                self._tell("fine-tuning: no time is left for a training on all images")
            else:
                final = self._train_on_all(job, trained)
        self.history_ = [*(final.run.history or trained[0].run.history)]
        verdict = None if self.verdict_ is None else self.verdict_.to_dict()
        self.network_ = job.network(final, self.classes_, calibration, verdict)

    def _train_on_all(self, job: Job, trained: Sequence[TrainingResult]) -> TrainingResult:
        """Train on all images, for as many epochs as were best."""
        epochs = np.median([one.run.best_epochs for one in trained], axis=0).round().astype(int)
        everything = np.arange(len(job.y))
        self._report(job, len(everything))
        return job.train(everything, everything[:0], self.phases_, last_epochs=tuple(map(int, epochs)))

    def _report(self, job: Job, n: int, number: int = 0, parts: int = 0) -> None:
        """Report the progress of the next training, on `n` images."""
        name = f"fine-tuning: part {number + 1} of at most {parts}" if parts > 1 else "fine-tuning"
        total = n * sum(phase.epochs for phase in self.phases_)
        job.on_images = image_reporter(shown_by(self.callback, self.verbose), total, name)

    def _tell(self, message: str) -> None:
        if self.callback is not None and message:
            self.callback(Progress(0, 0, stage="fine-tuning", message=message))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags
