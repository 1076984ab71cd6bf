"""FineTuner: the layers above a cut, retrained in phases on cached rows of the layer below.

A classifier like any other. Lower layers run once per image and never again; the comparison with the probe
is on the same images; and what it costs on the disk is told before it is paid. Torch is imported when
something trains.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from featx.backbones import BackboneCard, is_model_file, load_backbone
from featx.backbones.finetuned import BASE, lay_over
from featx.evaluation import fit_calibration
from featx.exceptions import DataError, UsageError
from featx.extractor import FeatureExtractor, Progress
from featx.finetune.phases import HEADS, Phase, default_phases
from featx.finetune.probe import Probe
from featx.finetune.rows import MEMORY, ArrayRows, RowSource, StoredRows, row_bytes
from featx.finetune.tuned import FineTunedNetwork, stem_function
from featx.finetune.verdict import Parts, Verdict, decide, make_parts
from featx.images import ImageSet, image_digest, load_images
from featx.solvers import CLASS_WEIGHTS
from featx.solvers import class_weights as weigh_classes
from featx.spec import LAST, FeatureSpec
from featx.splits import check_labels, image_groups
from featx.stores import open_store
from featx.stores.base import FeatureStore, Ids, as_ids

if TYPE_CHECKING:
    from featx.finetune.job import Job, Training
    from featx.finetune.network import TrainedLayer

HEAD_STARTS = {
    "probe": "as the probe, or as a logistic regression where that is not linear in the last features",
    "linear": "from zeros",
    "mlp": "from random weights",
}
DISK_LIMIT = 20_000_000_000
"""Bytes that unpooled rows may take, by default; more streams from the images instead."""
FREE_SHARE = 0.5
"""They may take no more than this share of what is free on the disk."""


@dataclass(frozen=True)
class FineTunePlan:
    """What fine-tuning would keep on the disk, and how it would run.

    Parameters
    ----------
    cut : str or None
        Layer whose rows are kept; None trains the whole network.
    row_shape : tuple of int
    row_bytes : int
        Of one row on the disk.
    images, views : int
        Pictures, and augmented versions of each.
    disk_bytes : int
        Of all the rows: ``images * (1 + views) * row_bytes``.
    streams : bool
        Whether images are decoded (and the frozen layers run) each epoch instead.
    reason : str
        Why so, in words.
    """

    cut: str | None
    row_shape: tuple[int, ...]
    row_bytes: int
    images: int
    views: int
    disk_bytes: int
    streams: bool
    reason: str


class FineTuner(ClassifierMixin, BaseEstimator):
    """Retrain the upper layers of a pretrained network, in phases, on cached rows of the layer below.

    Parameters
    ----------
    backbone : str or FeatureExtractor
        A timm name; or an extractor whose backbone, store, resize, decoding and device are used (its cut and
        pooling are not).
    unfreeze : int or str
        How much is retrained: so many of the network's last stages (the stretches between its taps, see
        ``featx taps``), everything above a tap, or ``"all"``, for which images stream.
    head : {'probe', 'linear', 'mlp'}
        Start from the tuned probe (LP-FT, Kumar et al. 2022), from zeros, or from a random hidden layer with
        dropout, as the tutorials do.
    phases : sequence of Phase, optional
        What is trained when; by default the head alone first, unless the probe gives it, then all that is
        unfrozen.
    resize : {'crop', 'squash', 'pad'}, optional
        The extractor's by default (the first of several).
    views : int
        Augmented versions of each image that are cached beside the plain one; an epoch draws one of all.
    view_policy : str
        Augmentation of cached views, or of streamed images; ``"none"`` for none.
    class_weight : None, 'balanced', 'sqrt' or dict
        As in scikit-learn; ``sqrt`` is the square root of ``balanced``.
    validation : float
        Share of the training images that decides the best epoch and calibrates.
    verdict : float
        Share that judges against the probe; 0 for no verdict.
    n_verdicts : int
        How many disjoint shares judge, each with a training of its own: small sets need more than one.
    refit : bool
        Whether a network that is kept is trained once more, on all the images, for as many epochs.
    monitor : {'accuracy', 'loss'}
        Validation measure that decides the best epoch.
    n_trials : int
        Optuna trials over the last phase and how much is unfrozen, pruned by epoch; 0 for none.
    timeout : float, optional
        Seconds for these trials.
    precision : {'auto', 'fp32', 'bf16', 'fp16'}
        Of the training's forward pass: ``auto`` is bf16 where the device multiplies it natively, else fp16
        on CUDA, else fp32. On a processor depthwise convolutions stay in fp32.
    disk_limit : int
        Bytes that cached rows may take; above it images stream.
    memory : int
        Bytes of rows that are held at once.
    checkpoints : path, optional
        Folder for a file that is written after each epoch, from which the same `fit` goes on (trials of
        tuning begin anew). Where `random_state` is None it is then made of the data, so that it is the same.
    random_state : int, optional
        Seed of parts, order, dropout and views.
    callback : callable, optional
        Called with `featx.extractor.Progress` events.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    network_ : FineTunedNetwork
        What predicts; it can be saved, and be a backbone again.
    verdict_ : Verdict or None
        Against the probe, on images that neither had seen.
    history_ : list of dict
        Each epoch of the training that made `network_`: loss, accuracy, learning rates, seconds. Where no
        epoch beat the start, those of the training that found so.
    trained_ : list of list of TrainedLayer
        What each phase trained: names, numbers of parameters, learning rates.
    phases_ : tuple of Phase
    unfreeze_ : int or str
    plan_ : FineTunePlan or None
        None where rows were given instead of images.
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
        resize: str | None = None,
        views: int = 0,
        view_policy: str = "light",
        class_weight: str | Mapping[Any, float] | None = None,
        validation: float = 0.15,
        verdict: float = 0.2,
        n_verdicts: int = 1,
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
    ) -> None:
        self.backbone = backbone
        self.unfreeze = unfreeze
        self.head = head
        self.phases = phases
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

    def fit(
        self,
        X: Any,
        y: ArrayLike,
        *,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        probe: Probe | None = None,
    ) -> Self:
        """Train, judge against the probe, and train once more on everything if that is deserved.

        Parameters
        ----------
        X : ImageSet, list of image sources, or rows
            Images; or their rows at the cut, an array of shape (n, C, H, W) or (n, L, C), or a `RowSource`.
        y : array-like of shape (n,)
        groups : array-like of shape (n,), optional
            Images of a group are never parted between training, stopping and judging.
        sample_weight : array-like of shape (n,), optional
            Weights in the loss.
        probe : Probe, optional
            The tuned classifier on frozen features, for the same images in the same order.

        Returns
        -------
        self

        Raises
        ------
        LabelError, ImageError
            If labels or pictures cannot be used.
        UsageError
            If a parameter, or a phase, asks for what this network has not.
        """
        labels = check_labels(y)
        self.classes_, codes = np.unique(labels, return_inverse=True)
        self._check(X, labels)
        state: Any = self.random_state
        if state is None and self.checkpoints is not None:
            state = np.frombuffer(hashlib.sha256(codes.tobytes()).digest(), np.uint32)
        seed = int(np.random.default_rng(state).integers(1 << 31))
        phases = self.first_phases()
        opened = _Opened.of(self, X, groups, seed)
        parts = make_parts(
            labels,
            validation=self.validation,
            verdict=self.verdict,
            n_verdicts=self.n_verdicts,
            groups=opened.groups,
            random_state=seed % 1000,
        )
        self.unfreeze_, self.phases_ = self.unfreeze, phases
        jobs: dict[int | str, Job] = {}

        def open_job(unfreeze: int | str) -> Job:
            """The job above a cut, opened once; what its rows will take is told before."""
            if unfreeze not in jobs:
                plan = opened.plan(unfreeze)
                self._tell("fine-tuning: " + plan.reason if plan is not None else "")
                jobs[unfreeze] = opened.job(unfreeze, codes, sample_weight, probe)
            return jobs[unfreeze]

        began = time.monotonic()
        if self.n_trials:
            from featx.finetune.tuning import tune

            self.study_, self.unfreeze_, self.phases_ = tune(
                open_job,
                opened.choices(self.unfreeze, phases),
                parts[0],
                phases,
                n_trials=self.n_trials,
                timeout=self.timeout,
                seed=seed,
                tell=self._tell,
            )
        tuning_minutes = (time.monotonic() - began) / 60 if self.n_trials else 0.0
        job = open_job(self.unfreeze_)
        self.plan_ = opened.plan(self.unfreeze_)
        self.trained_: list[list[TrainedLayer]] = job.describe(self.phases_)
        for line in describe_phases(self.phases_, self.trained_, self.head):
            self._tell(line)
        job.on_rows = self._reporter(job, parts)
        trained = self._judge(job, parts, tuning_minutes)
        self._keep(job, opened, trained, parts)
        for path in job.files:
            path.unlink(missing_ok=True)
        return self

    def plan(self, X: Any) -> FineTunePlan:
        """What `fit` would keep on the disk for these images, and whether it would stream instead."""
        found = _Opened.of(self, X, None, 0).plan(self.unfreeze)
        if found is None:
            raise UsageError("rows take no more disk than they do; plan takes images.")
        return found

    def describe(self, n_classes: int = 2) -> list[list[TrainedLayer]]:
        """What each phase would train: names of parameters, how many numbers, learning rates.

        Parameters
        ----------
        n_classes : int
            Width of the head.
        """
        opened = _Opened.of(self, None, None, 0)
        return opened.job(self.unfreeze, np.arange(n_classes), None, None).describe(self.first_phases())

    def first_phases(self) -> tuple[Phase, ...]:
        """The phases as given, or as the head asks for; tuning starts from them."""
        return tuple(self.phases) if self.phases is not None else default_phases(self.head)

    def predict(self, X: Any) -> NDArray[Any]:
        """Most probable label of each image or row, shape (n,)."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(1)])

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Calibrated probabilities, shape (n, n_classes)."""
        check_is_fitted(self, "network_")
        rows = _as_rows(X)
        if rows is not None:
            return self.network_.proba_of_rows(rows)
        return self.network_.predict_proba(_as_images(X).sources)

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
        for name in ("validation", "verdict"):
            if not 0 <= getattr(self, name) <= 0.5:
                raise UsageError(f"{name} is {getattr(self, name)!r}; it is a share from 0 to 0.5.")

    def _judge(self, job: Job, parts: Sequence[Parts], minutes: float) -> list[Training]:
        """Train on each part; compare with the probe on what it leaves out; `minutes` were spent before."""
        tuned, probed, probe_minutes = [], [], 0.0
        trainings = []
        for part in parts:
            trained = job.train(part.fit, part.stop, self.phases_)
            trainings.append(trained)
            minutes += trained.seconds / 60
            if len(part.judge):
                started = time.monotonic()
                fitted = job.fit_probe(np.concatenate([part.fit, part.stop]))
                probed.append(job.probe_proba(fitted, part.judge))
                probe_minutes += (time.monotonic() - started) / 60
                tuned.append(job.proba(trained, part.judge))
        judged = np.concatenate([part.judge for part in parts])
        self.verdict_: Verdict | None = None
        if len(judged):
            self.verdict_ = decide(
                job.y[judged],
                np.concatenate(tuned),
                np.concatenate(probed),
                groups=None if job.groups is None else job.groups[judged],
                minutes=minutes,
                probe_minutes=probe_minutes,
            )
        return trainings

    def _keep(self, job: Job, opened: _Opened, trained: list[Training], parts: Sequence[Parts]) -> None:
        """Calibrate on the validation images, and train on all of them if the network is kept."""
        stops = np.concatenate([part.stop for part in parts])
        calibration = None
        if len(stops):
            scores = [job.logits(one, part.stop) for one, part in zip(trained, parts, strict=True)]
            calibration = fit_calibration(np.concatenate(scores), job.y[stops], len(self.classes_))
        final = trained[0]
        if self.refit and len(stops) and (self.verdict_ is None or self.verdict_.kept):
            epochs = np.median([one.run.stops for one in trained], axis=0).round().astype(int)
            everything = np.arange(len(job.y))
            final = job.train(everything, everything[:0], self.phases_, stops=tuple(map(int, epochs)))
        self.history_ = [*(final.run.history or trained[0].run.history)]
        self.network_ = opened.network(self, job, final, calibration)

    def _tell(self, message: str) -> None:
        if self.callback is not None and message:
            self.callback(Progress(0, 0, stage="fine-tuning", message=message))

    def _reporter(self, job: Job, parts: Sequence[Parts]) -> Callable[[int, str], None] | None:
        if self.callback is None:
            return None
        callback, started = self.callback, time.monotonic()
        epochs = sum(phase.epochs for phase in self.phases_)
        total = epochs * (sum(len(part.fit) for part in parts) + (len(job.y) if self.refit else 0))
        done = 0

        def report(rows: int, stage: str) -> None:
            nonlocal done
            done += rows
            rate = done / max(time.monotonic() - started, 1e-9)
            stage_words = f"fine-tuning: {stage}"
            callback(Progress(done, total, images_per_s=rate, eta_s=(total - done) / rate, stage=stage_words))

        return report

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags


def describe_phases(
    phases: Sequence[Phase], trained: Sequence[Sequence[TrainedLayer]], head: str = "probe"
) -> list[str]:
    """What each phase trains, as lines: names, numbers of parameters, learning rates."""
    lines = []
    for number, (phase, layers) in enumerate(zip(phases, trained, strict=True), 1):
        if not phase.epochs:
            lines.append(f"phase {number} of {len(phases)}: left out, the head starts {HEAD_STARTS[head]}")
            continue
        total = sum(layer.parameters for layer in layers)
        lines.append(
            f"phase {number} of {len(phases)}: at most {phase.epochs} epochs of {phase.optimizer}, "
            f"{total:,} parameters"
        )
        lines += [f"  {layer}" for layer in layers]
    return lines


@dataclass
class _Opened:
    """Images or rows, the network's card and the store: what a fit and a plan share."""

    tuner: FineTuner
    params: dict[str, Any]
    store: FeatureStore
    card: BackboneCard
    images: ImageSet | None
    ids: Ids
    rows: RowSource | None
    groups: NDArray[Any] | None
    seed: int

    @classmethod
    def of(cls, tuner: FineTuner, X: Any, groups: ArrayLike | None, seed: int) -> _Opened:
        given = tuner.backbone
        extractor = given if isinstance(given, FeatureExtractor) else FeatureExtractor(given)
        resize = tuner.resize or extractor.resize
        store = open_store(extractor.store)
        params = extractor.get_params(deep=False) | {
            "resize": resize if isinstance(resize, str) else resize[0],
            "store": store,
            "callback": tuner.callback or extractor.callback,
            "view": 0,
            "view_policy": "none",
        }
        card = FeatureExtractor(**(params | {"cut": None, "pool": "avg"})).fit().card_
        rows = None if X is None else _as_rows(X)
        images = None if X is None or rows is not None else _as_images(X)
        named = None if groups is None else np.asarray(groups)
        ids = np.empty((0, 32), np.uint8)
        if images is not None:
            ids = as_ids(image_digest(source) for source in images.sources)
            named = image_groups(ids, images.groups if named is None else named)
        return cls(tuner, params, store, card, images, ids, rows, named, seed)

    def cut(self, unfreeze: int | str) -> str | None:
        """Name of the tap below what is unfrozen; None for the whole network."""
        taps = self.card.taps[:-1]
        if unfreeze == "all":
            return None
        if isinstance(unfreeze, str) and not unfreeze.isdigit():
            name = self.card.resolve_cut(unfreeze)
            if name == LAST:
                raise UsageError("nothing lies above 'last' but the head; unfreeze a stage or a tap.")
            return name
        stages = int(unfreeze)
        if stages < 1:
            raise UsageError(f"unfreeze is {unfreeze!r}; it is a number of stages from 1, a tap or 'all'.")
        return taps[-1 - stages].name if stages < len(taps) else None

    def choices(self, unfreeze: int | str, phases: Sequence[Phase]) -> tuple[int | str, ...]:
        """What tuning may unfreeze: as asked, and from images one and two stages as well.

        Phases that mix pictures, or name what they train, are for what was asked alone.
        """
        bound = any(phase.mixes or isinstance(phase.trainable, tuple) for phase in phases)
        others = (1, 2) if self.images is not None and len(self.card.taps) > 3 and not bound else ()
        return tuple(dict.fromkeys((unfreeze, *others)))

    def spec(self, unfreeze: int | str) -> FeatureSpec:
        """Recipe of the plain rows that are trained on; of pictures, where the whole network trains."""
        specs = self.extractor(unfreeze).fit().specs_
        return next(iter(specs.values()))

    def extractor(self, unfreeze: int | str, **changes: Any) -> FeatureExtractor:
        """The extractor of these rows."""
        cut = self.cut(unfreeze)
        kept = {"cut": cut, "pool": "avg" if cut is None else "none", "final_norm": cut is None}
        return FeatureExtractor(**(self.params | kept | changes))

    def plan(self, unfreeze: int | str) -> FineTunePlan | None:
        """Decide where the rows come from; None if they were given."""
        if self.images is None:
            return None
        cut, spec, n, views = self.cut(unfreeze), self.spec(unfreeze), len(self.images), self.tuner.views
        if cut is None:
            shape: tuple[int, ...] = (3, *spec.input_size)
            why = f"the whole network is trained, so images stream, {self._augmented()}"
            return FineTunePlan(None, shape, 0, n, views, 0, True, why)
        shape = self.row_shape(spec)
        one = row_bytes(shape, np.dtype(spec.dtype).itemsize)
        total = one * n * (1 + views)
        limit, why = self._limit()
        words = f"{n} images × {1 + views} of {one / 1e3:.0f} kB at {cut}: {total / 1e9:.2f} GB"
        if total > limit:
            words += f", more than {why} ({limit / 1e9:.2f} GB), so images stream through the frozen layers, "
            words += self._augmented()
            return FineTunePlan(cut, shape, one, n, views, total, True, words)
        return FineTunePlan(cut, shape, one, n, views, total, False, f"{words}, kept in the store")

    def _augmented(self) -> str:
        policy = self.tuner.view_policy
        return "unchanged" if policy == "none" else f"augmented afresh each epoch ({policy})"

    def row_shape(self, spec: FeatureSpec) -> tuple[int, ...]:
        """Shape of one unpooled row."""
        if spec.input_size == self.card.input_size:
            return self.card.tap(spec.cut).shape
        shape: tuple[int, ...] = self.backbone().stem([spec]).shapes[0]
        return shape

    def job(
        self,
        unfreeze: int | str,
        codes: NDArray[np.intp],
        sample_weight: ArrayLike | None,
        probe: Probe | None,
    ) -> Job:
        """The job of training above one cut."""
        from featx.backbones.runtimes import resolve_precision
        from featx.finetune.job import Job
        from featx.finetune.network import open_tail

        backbone = self.backbone()
        device = str(next(backbone.module.parameters()).device)
        weights = None
        if sample_weight is not None:
            given_weights = np.asarray(sample_weight, np.float64)
            weights = (given_weights / given_weights.mean()).astype(np.float32)
        tuner, n_classes = self.tuner, int(codes.max()) + 1
        class_weights = None
        if tuner.class_weight is not None:
            given = tuner.class_weight
            kind = given if isinstance(given, str) else np.array([given.get(c, 1.0) for c in tuner.classes_])
            class_weights = weigh_classes(kind, codes, np.ones(len(codes)), n_classes).astype(np.float32)
        cut, input_size = self.cut(unfreeze), self.spec(unfreeze).input_size
        tail = open_tail(backbone, cut, input_size)  # proved before any row is computed
        rows = self._rows(unfreeze)
        return Job(
            backbone=backbone,
            cut=cut,
            tail=tail,
            rows=rows if rows is not None else ArrayRows(np.empty((0, 0), np.float32)),
            y=codes,
            n_classes=n_classes,
            head=tuner.head,
            probe=probe,
            groups=self.groups,
            weights=weights,
            class_weights=class_weights,
            seed=self.seed,
            device=device,
            precision=resolve_precision(tuner.precision, device),
            monitor=tuner.monitor,
            memory=tuner.memory,
            checkpoints=None if tuner.checkpoints is None else Path(tuner.checkpoints),
            name=self._name(unfreeze),
        )

    def network(self, tuner: FineTuner, job: Job, trained: Training, calibration: Any) -> FineTunedNetwork:
        """What is left when training is over."""
        from featx.backbones.network import digest_tensors
        from featx.evaluation import Calibration

        spec = self.spec(tuner.unfreeze_)
        state = dict(trained.module.state_dict())
        if self.card.source.startswith("file:"):  # no name leads to it: it travels along
            state |= {BASE + name: value for name, value in self.backbone().module.state_dict().items()}
        before = self.backbone().sized(spec.input_size).state_dict()
        return FineTunedNetwork(
            card=self.card,
            spec=spec,
            weights=digest_tensors(lay_over(before, state)),
            whole=job.cut is None,
            head="mlp" if tuner.head == "mlp" else "linear",
            classes=tuner.classes_,
            tensors={name: value.detach().cpu().numpy().copy() for name, value in state.items()},
            calibration=calibration or Calibration("identity"),
            history=trained.run.history,
            verdict=None if tuner.verdict_ is None else tuner.verdict_.to_dict(),
            checkpoint=self.params["checkpoint"],
            device=self.params["device"],
        )

    def backbone(self) -> Any:
        """The loaded network."""
        if not hasattr(self, "_backbone"):
            given, params = self.params["backbone"], self.params
            checkpoint = given if is_model_file(given) else params["checkpoint"]
            self._backbone = (
                load_backbone(self.card, checkpoint=checkpoint, device=params["device"])
                if isinstance(given, str)
                else given
            )
        return self._backbone

    def _rows(self, unfreeze: int | str) -> RowSource | None:
        if self.rows is not None:
            cut = self.cut(unfreeze)
            spec = self.spec(unfreeze)
            wanted = (3, *spec.input_size) if cut is None else self.row_shape(spec)
            if self.rows.shape != wanted:
                raise DataError(
                    f"rows have shape {self.rows.shape}, and {self.card.name} at {cut or 'its input'} gives "
                    f"{wanted}; extract with cut={cut!r}, pool='none', or change unfreeze."
                )
            return self.rows
        if self.images is None:
            return None
        plan = self.plan(unfreeze)
        assert plan is not None
        if plan.streams:
            return self._streamed(unfreeze)
        views = {"view": [*range(self.tuner.views + 1)], "view_policy": self.tuner.view_policy}
        extractor = self.extractor(unfreeze, **(views if self.tuner.views else {}))
        extraction = extractor.extract(self.images.sources, names=self.images.names)
        self.store.commit()
        keys = [spec.key for spec in extraction.specs.values()]
        return StoredRows(self.store, keys, extraction.ids, memory=self.tuner.memory, seed=self.seed)

    def _streamed(self, unfreeze: int | str) -> RowSource:
        from featx.finetune.stream import ImageRows

        assert self.images is not None
        spec, cut = self.spec(unfreeze), self.cut(unfreeze)
        stem = None if cut is None else stem_function(self.backbone(), spec)
        shape = (3, *spec.input_size) if stem is None else stem.shape
        return ImageRows(
            self.images.sources, spec, shape=shape, stem=stem, view_policy=self.tuner.view_policy,
            max_pixels=self.params["max_pixels"],
        )  # fmt: skip

    def _limit(self) -> tuple[int, str]:
        limit, why = self.tuner.disk_limit, "disk_limit allows"
        path = self.store.folder("features")
        if path is None:
            return limit, why
        existing = next(folder for folder in path.absolute().parents if folder.exists())
        free = int(shutil.disk_usage(existing).free * FREE_SHARE)
        return (free, "half of the free disk") if free < limit else (limit, why)

    def _name(self, unfreeze: int | str) -> bytes:
        """What the rows are, for the names of checkpoints."""
        digest = hashlib.sha256(self.spec(unfreeze).to_json().encode())
        digest.update(f"{self.tuner.views} {self.tuner.view_policy}".encode())
        digest.update(self.ids.tobytes())
        return digest.digest()


def _as_rows(X: Any) -> RowSource | None:
    """Rows, if that is what these are: floats of three axes or more, or an object that reads rows."""
    if hasattr(X, "read") and hasattr(X, "shape"):
        return X  # type: ignore[no-any-return]
    if isinstance(X, np.ndarray) and X.dtype.kind == "f" and X.ndim >= 3:
        return ArrayRows(X)
    return None


def _as_images(X: Any) -> ImageSet:
    return X if isinstance(X, ImageSet) else load_images(X)
