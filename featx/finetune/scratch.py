"""Small convnets trained from nothing, for comparison only: does transfer help here, and by how much?

They are those of the Keras tutorials that teach image classification on little data, trained by the same
loop as the fine-tuner, so that the curves of both can lie in one figure. Torch is imported when one trains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from featx.curves import ScorePath
from featx.evaluation import Metric
from featx.exceptions import DataError, UsageError
from featx.extractor import Progress
from featx.finetune.phases import Phase
from featx.finetune.rows import MEMORY, ArrayRows, RowSource, row_bytes
from featx.finetune.verdict import make_parts
from featx.images import ImageSet, load_images, resolve_decoder
from featx.solvers import sample_rows
from featx.spec import FeatureSpec
from featx.splits import check_labels, make_folds

if TYPE_CHECKING:
    from torch import nn

PARTS = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Parts of the training images that a path from scratch has points at."""

FEWEST_OF_CLASS = 3
"""Images of each class at its first point: one is needed to validate on, and more to learn from."""

NORMAL = 1.96
"""Half a 95 % interval in standard errors."""


@dataclass(frozen=True)
class Convnet:
    """A convnet of blocks: 3×3 convolutions with ReLU, then 2×2 max-pooling, then dense layers.

    Parameters
    ----------
    blocks : tuple of tuple of int
        Channels of the convolutions of each block.
    dense : int
        Hidden units; 0 for none.
    side : int
        Pixels.
    batch_norm : bool
        After each convolution and the dense layer.
    block_dropout, dropout : float
        After each block's pooling, and before the classifier's layers.
    lr, batch_size
        As its tutorial trains it (by RMSprop).
    """

    blocks: tuple[tuple[int, ...], ...]
    dense: int
    side: int
    batch_norm: bool
    block_dropout: float
    dropout: float
    lr: float
    batch_size: int


class ScratchClassifier(ClassifierMixin, BaseEstimator):
    """A small convnet on images, trained from random weights.

    Parameters
    ----------
    architecture : str
        ``four-blocks`` (32, 64, 128, 128, dense 512; 150 pixels), ``three-blocks`` (32, 64, 128 with batch
        norm and dropout; 130 pixels) or ``tiny`` (two blocks of 3–10 channels).
    view_policy : str
        Augmentation, fresh each epoch; ``"none"`` for none.
    dropout, batch_norm : optional
        Instead of the architecture's own.
    l2 : float
        Weight of the squared norm of the weights (not of norms and biases).
    epochs : int
    lr, batch_size : optional
        Instead of the tutorial's.
    optimizer : str
        timm's name.
    validation : float
        Share of the images for the validation curve; the best epoch on it is kept if `keep_best`.
    keep_best : bool
        False keeps the last epoch's weights, as the plain tutorials do.
    memory : int
        Bytes of pictures held at once.
    device : str
    random_state : int, optional
    callback : callable, optional
        Called with `featx.extractor.Progress` events.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    history_ : list of dict
        ``accuracy`` and ``loss`` in training, ``stop_accuracy`` and ``stop_loss`` in validation, by epoch.
    module_ : torch.nn.Module
    n_parameters_ : int
    """

    def __init__(
        self,
        architecture: str = "four-blocks",
        *,
        view_policy: str = "none",
        dropout: float | None = None,
        batch_norm: bool | None = None,
        l2: float = 0.0,
        epochs: int = 30,
        lr: float | None = None,
        batch_size: int | None = None,
        optimizer: str = "rmsprop",
        validation: float = 0.2,
        keep_best: bool = True,
        memory: int = MEMORY,
        device: str = "auto",
        random_state: int | None = None,
        callback: Callable[[Progress], None] | None = None,
    ) -> None:
        self.architecture = architecture
        self.view_policy = view_policy
        self.dropout = dropout
        self.batch_norm = batch_norm
        self.l2 = l2
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.validation = validation
        self.keep_best = keep_best
        self.memory = memory
        self.device = device
        self.random_state = random_state
        self.callback = callback

    def fit(self, X: Any, y: ArrayLike, *, groups: ArrayLike | None = None) -> Self:
        """Train on images.

        Parameters
        ----------
        X : ImageSet or list of image sources
        y : array-like of shape (n,)
        groups : array-like of shape (n,), optional
            Never parted between training and validation.
        """
        import torch

        from featx.backbones.runtimes import resolve_device, resolve_precision
        from featx.finetune.network import TailClassifier, make_head
        from featx.finetune.training import Recipe, Task, train

        labels = check_labels(y)
        if len(X) != len(labels):
            raise DataError(f"{len(X)} images but {len(labels)} labels; give one for each image.")
        net = self._convnet()
        self.classes_, codes = np.unique(labels, return_inverse=True)
        seed = int(np.random.default_rng(self.random_state).integers(1 << 31))
        [parts] = make_parts(
            codes, validation=self.validation, verdict=0, groups=groups, random_state=seed % 1000
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tail, width = build(net)
            module = TailClassifier(tail, make_head("linear", width, len(self.classes_)))
        phase = Phase(
            epochs=self.epochs,
            lr=self.lr or net.lr,
            batch_size=self.batch_size or net.batch_size,
            optimizer=self.optimizer,
            momentum=0.0,
            weight_decay=self.l2,
            schedule="constant",
            warmup=0,
            clip_norm=None,
            label_smoothing=0.0,
            batch_norm="trained",
        )
        rows = self._rows(_as_images(X))
        task = Task(rows=rows, y=codes, n_classes=len(self.classes_), fit=parts.fit, stop=parts.stop)
        device = resolve_device(self.device)
        self._recipe = Recipe(
            phases=(phase,),
            seed=seed,
            device=device,
            precision=resolve_precision("auto", device),
            memory=self.memory,
            stops=None if self.keep_best else (self.epochs,),
        )
        report = self._reporter(self.epochs * len(parts.fit))
        run = train(module, task, self._recipe, on_rows=report)
        self.module_, self.history_ = module, run.history
        self.n_parameters_ = sum(parameter.numel() for parameter in module.parameters())
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Most probable label of each image, shape (n,)."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(1)])

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Softmax of the logits, shape (n, n_classes); not calibrated."""
        from scipy.special import softmax

        from featx.finetune.training import predict_logits

        check_is_fitted(self, "module_")
        rows = self._stream(_as_images(X))
        logits = predict_logits(self.module_, rows, np.arange(len(rows)), self._recipe)
        return np.asarray(softmax(logits.astype(np.float64), axis=1))

    def _convnet(self) -> Convnet:
        if self.architecture not in CONVNETS:
            raise UsageError(
                f"architecture {self.architecture!r} is not known; choose one of {', '.join(CONVNETS)}."
            )
        net = CONVNETS[self.architecture]
        given = {"dropout": self.dropout, "batch_norm": self.batch_norm}
        return Convnet(**{**vars(net), **{name: value for name, value in given.items() if value is not None}})

    def _rows(self, images: ImageSet) -> RowSource:
        """Pictures, decoded once and held if they are the same each epoch and fit."""
        stream = self._stream(images)
        if stream.varies or len(stream) * row_bytes(stream.shape, 1) > self.memory:
            return stream
        return ArrayRows(stream.read(np.arange(len(stream))))

    def _stream(self, images: ImageSet) -> RowSource:
        from featx.finetune.stream import ImageRows

        side = self._convnet().side
        spec = FeatureSpec(
            architecture="scratch", weights="", input_size=(side, side), resize="squash", crop_pct=1.0,
            interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1), decoder=resolve_decoder(),
        )  # fmt: skip
        return ImageRows(images.sources, spec, shape=(3, side, side), view_policy=self.view_policy)

    def _reporter(self, total: int) -> Callable[[int, str], None] | None:
        if self.callback is None:
            return None
        import time

        callback, started, done = self.callback, time.monotonic(), 0

        def report(rows: int, stage: str) -> None:
            nonlocal done
            done += rows
            rate = done / max(time.monotonic() - started, 1e-9)
            words = f"from scratch: {stage}"
            callback(Progress(done, total, images_per_s=rate, eta_s=(total - done) / rate, stage=words))

        return report

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        return tags


def scratch_path(
    images: ImageSet,
    y: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    random_state: int = 0,
    **params: Any,
) -> ScorePath:
    """How a convnet from nothing grows with the labels: what a learning curve of features is held against.

    One fifth of the images (a stratified fold) scores every point; the others are learnt from in nested,
    stratified parts.

    Parameters
    ----------
    images : ImageSet
    y : array-like of shape (n,)
        Labels.
    groups : array-like of shape (n,), optional
        Never parted between training and scoring.
    random_state : int
        Seed of fold, parts and nets.
    **params
        Of `ScratchClassifier`.

    Returns
    -------
    ScorePath
        Accuracy by training images, with 95 % intervals of the images that score.

    Raises
    ------
    DataError
        If there are too few images of a class for one point.
    """
    labels = check_labels(y)
    classes, codes = np.unique(labels, return_inverse=True)
    train, test = make_folds(labels, groups=groups, random_state=random_state)[0]
    sizes, scores = [], []
    for part in PARTS:
        own = train[sample_rows(codes[train], len(classes), round(part * len(train)), random_state)]
        if np.bincount(codes[own], minlength=len(classes)).min() < FEWEST_OF_CLASS:
            continue
        net = ScratchClassifier(**{"random_state": random_state, **params})
        net.fit(images.select(own), labels[own], groups=None if groups is None else np.asarray(groups)[own])
        right = float(np.mean(net.predict(images.select(test)) == labels[test]))
        half = NORMAL * (right * (1 - right) / len(test)) ** 0.5
        sizes.append(float(len(own)))
        scores.append(Metric(right, max(right - half, 0.0), min(right + half, 1.0)))
    if not sizes:
        raise DataError(f"a class has fewer than {FEWEST_OF_CLASS} images to train on; label more of it.")
    return ScorePath("a small convnet from scratch", tuple(sizes), tuple(scores))


def build(net: Convnet) -> tuple[nn.Module, int]:
    """The convnet without its last layer, from pictures on the scale 0 to 255, and its width."""
    import torch
    from torch import nn

    class Scale(nn.Module):
        """Pixels to the scale 0 to 1."""

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return pictures / 255

    layers: list[nn.Module] = [Scale()]
    channels, side = 3, net.side
    for block in net.blocks:
        for width in block:
            layers.append(nn.Conv2d(channels, width, 3))
            if net.batch_norm:
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU())
            channels, side = width, side - 2
        layers += [nn.MaxPool2d(2), nn.Dropout(net.block_dropout)]
        side //= 2
    layers += [nn.Flatten(), nn.Dropout(net.dropout)]
    width = channels * side * side
    if net.dense:
        layers += [nn.Linear(width, net.dense), nn.ReLU()]
        if net.batch_norm:
            layers += [nn.BatchNorm1d(net.dense), nn.Dropout(net.dropout)]
        width = net.dense
    return nn.Sequential(*layers), width


def _as_images(X: Any) -> ImageSet:
    return X if isinstance(X, ImageSet) else load_images(X)


CONVNETS: Mapping[str, Convnet] = {
    "four-blocks": Convnet(((32,), (64,), (128,), (128,)), 512, 150, False, 0.0, 0.0, 1e-4, 20),
    "three-blocks": Convnet(((32,), (64,), (128,)), 512, 130, True, 0.25, 0.5, 1e-3, 32),
    "tiny": Convnet(((3, 10), (3, 5)), 0, 130, False, 0.0, 0.0, 1e-3, 32),
}
"""The tutorials' nets: F. Chollet's cats and dogs (also with dropout 0.5), and the two of "Small data strikes
back"."""
