"""Small convnets that are trained from random weights, to measure how much pretraining helps.

They are those of the Keras tutorials on image classification with little data, trained by the loop of the
fine-tuner. Torch is imported for training and prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from featx.curves import ScorePath
from featx.evaluation import NORMAL, Metric
from featx.exceptions import DataError, UsageError
from featx.extractor import Progress
from featx.finetune.features import MEMORY, ArrayFeatures, FeatureSource, feature_bytes
from featx.finetune.inputs import as_images, image_reporter
from featx.finetune.phases import Phase
from featx.finetune.stream import StreamedFeatures
from featx.finetune.verdict import make_parts
from featx.images import ImageSet, resolve_decoder
from featx.spec import FeatureSpec
from featx.splits import check_labels, make_folds, stratified_sample

if TYPE_CHECKING:
    from torch import nn

SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Shares of the training images at which `scratch_path` trains a network."""

FEWEST_OF_CLASS = 3
"""Images of each class at the first share: one for validation, and two for training."""


@dataclass(frozen=True)
class Convnet:
    """A convnet of blocks (3×3 convolutions with ReLU, then 2×2 max-pooling) and dense layers.

    Parameters
    ----------
    blocks : tuple of tuple of int
        Channels of the convolutions of each block.
    dense : int
        Hidden units; 0 for none.
    side : int
        Side of the input in pixels.
    batch_norm : bool
        Whether batch norm follows each convolution and the dense layer.
    block_dropout, dropout : float
        Dropout after the pooling of each block, and before the dense layers.
    lr, batch_size
        Of RMSprop, as in the tutorial.
    """

    blocks: tuple[tuple[int, ...], ...]
    dense: int
    side: int
    batch_norm: bool
    block_dropout: float
    dropout: float
    lr: float
    batch_size: int


CONVNETS: Mapping[str, Convnet] = {
    "four-blocks": Convnet(((32,), (64,), (128,), (128,)), 512, 150, False, 0.0, 0.0, 1e-4, 20),
    "three-blocks": Convnet(((32,), (64,), (128,)), 512, 130, True, 0.25, 0.5, 1e-3, 32),
    "tiny": Convnet(((3, 10), (3, 5)), 0, 130, False, 0.0, 0.0, 1e-3, 32),
}
"""F. Chollet's network for cats and dogs, and the two of "Small data strikes back"."""


class ScratchClassifier(ClassifierMixin, BaseEstimator):
    """A small convnet on images, trained from random weights.

    Parameters
    ----------
    net : str or Convnet, default 'four-blocks'
        A key of `CONVNETS`, or another network.
    view_policy : str, default 'none'
        Augmentation, different in each epoch.
    l2 : float, default 0
        Weight of the squared norm of the weights (not of norms and biases).
    epochs : int, default 30
    validation : float, default 0.2
        Share of the images for validation.
    keep_best : bool, default True
        Whether the weights of the epoch with the best validation are kept, or those of the last epoch.
    device : str, default 'auto'
    random_state : int, optional
    callback : callable, optional
        Called with `featx.extractor.Progress` events.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    history_ : list of dict
        ``accuracy`` and ``loss`` in training, ``val_accuracy`` and ``val_loss`` in validation, by epoch.
    module_ : torch.nn.Module
    n_parameters_ : int
    """

    def __init__(
        self,
        net: str | Convnet = "four-blocks",
        *,
        view_policy: str = "none",
        l2: float = 0.0,
        epochs: int = 30,
        validation: float = 0.2,
        keep_best: bool = True,
        device: str = "auto",
        random_state: int | None = None,
        callback: Callable[[Progress], None] | None = None,
    ) -> None:
        self.net = net
        self.view_policy = view_policy
        self.l2 = l2
        self.epochs = epochs
        self.validation = validation
        self.keep_best = keep_best
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
            Images of one group are all for training or all for validation.
        """
        import torch

        from featx.backbones.runtimes import resolve_device, resolve_precision
        from featx.finetune.network import TailClassifier, make_head
        from featx.finetune.training import TrainingData, TrainingSettings, train

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
            self.module_ = TailClassifier(tail, make_head("linear", width, len(self.classes_)))
        phase = Phase(
            epochs=self.epochs, lr=net.lr, batch_size=net.batch_size, optimizer="rmsprop", momentum=0.0,
            weight_decay=self.l2, schedule="constant", warmup=0, clip_norm=None, label_smoothing=0.0,
            batch_norm="trained",
        )  # fmt: skip
        device = resolve_device(self.device)
        self._settings = TrainingSettings(
            phases=(phase,),
            seed=seed,
            device=device,
            precision=resolve_precision("auto", device),
            last_epochs=None if self.keep_best else (self.epochs,),
        )
        data = TrainingData(
            features=self._stream_images(as_images(X)),
            y=codes,
            n_classes=len(self.classes_),
            train=parts.train,
            validation=parts.validation,
        )
        report = image_reporter(self.callback, self.epochs * len(parts.train), "from scratch")
        self.history_ = train(self.module_, data, self._settings, on_images=report).history
        self.n_parameters_ = sum(parameter.numel() for parameter in self.module_.parameters())
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Most probable label of each image, shape (n,)."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(1)])

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Softmax of the logits, shape (n, n_classes); not calibrated."""
        from scipy.special import softmax

        from featx.finetune.training import predict_logits

        check_is_fitted(self, "module_")
        images = self._stream(as_images(X))
        logits = predict_logits(self.module_, images, np.arange(len(images)), self._settings)
        return np.asarray(softmax(logits.astype(np.float64), axis=1))

    def _convnet(self) -> Convnet:
        if isinstance(self.net, Convnet):
            return self.net
        if self.net not in CONVNETS:
            raise UsageError(f"net {self.net!r} is not known; choose one of {', '.join(CONVNETS)}.")
        return CONVNETS[self.net]

    def _stream_images(self, images: ImageSet) -> FeatureSource:
        """Decoded images, in memory if they fit and are the same in each epoch."""
        stream = self._stream(images)
        if stream.varies or len(stream) * feature_bytes(stream.shape, 1) > MEMORY:
            return stream
        return ArrayFeatures(stream.read(np.arange(len(stream))))

    def _stream(self, images: ImageSet) -> FeatureSource:
        side = self._convnet().side
        spec = FeatureSpec(
            architecture="scratch", weights="", input_size=(side, side), resize="squash", crop_pct=1.0,
            interpolation="bilinear", mean=(0, 0, 0), std=(1, 1, 1), decoder=resolve_decoder(),
        )  # fmt: skip
        return StreamedFeatures(images.sources, spec, view_policy=self.view_policy)

    def __sklearn_tags__(self) -> Any:
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
    """Measure the accuracy of a convnet from scratch by the number of labels.

    One fifth of the images (a stratified fold) is for testing. The networks are trained on nested, stratified
    shares of the others.

    Parameters
    ----------
    images : ImageSet
    y : array-like of shape (n,)
        Labels.
    groups : array-like of shape (n,), optional
        Images of one group are all for training or all for testing.
    random_state : int
        Seed of fold, shares and networks.
    **params
        Parameters of `ScratchClassifier`.

    Returns
    -------
    ScorePath
        Accuracy by the number of training images, with 95 % intervals over the test images.

    Raises
    ------
    DataError
        If a class has too few images.
    """
    labels = check_labels(y)
    classes, codes = np.unique(labels, return_inverse=True)
    train, test = make_folds(labels, groups=groups, random_state=random_state)[0]
    sizes, scores = [], []
    for share in SHARES:
        own = train[stratified_sample(codes[train], round(share * len(train)), random_state)]
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
    """Return the convnet without its last layer, for images from 0 to 255, and its width."""
    import torch
    from torch import nn

    class Scale(nn.Module):
        """From 0..255 to 0..1."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images / 255

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
