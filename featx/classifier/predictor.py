"""Predictor: a saved model that only predicts, and starts quickly.

It does not import scikit-learn, nor torch if a converted network is in the model file (``featx export --to
featx``) or in the cache of this machine. The labels and probabilities are those of the loaded
`ImageClassifier`, up to rounding.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.classifier.direct import DirectFeatures
from featx.classifier.model import ImageModel
from featx.classifier.reading import SavedModel, check_features, check_head, check_network, read_model
from featx.exceptions import FeatxError, ModelFileError
from featx.extractor.extraction import Extraction
from featx.images import MAX_PIXELS, ImageSet, ImageSource, golden_pictures, load_images
from featx.images.picture import name_sources
from featx.records import from_plain


class Predictor:
    """Labels and probabilities of images, by a saved model.

    Several threads may share a predictor. It can be pickled.

    Parameters
    ----------
    path : path-like
        A ``.featx`` file.
    runtime : str, default "auto"
        openvino, torch or torch-compile; auto is the fastest one that is installed.
    decide : {"auto", "argmax", "balanced"} or dict, optional
        Decision rule from probabilities to labels; by default that of the model.
    device, n_jobs, max_pixels, checkpoint, allow_download
        As for `FeatureExtractor`.
    **machine
        What only `extract` uses: ``store``, ``batch_size``, ``isolate``, ``callback``.

    Attributes
    ----------
    classes_ : array of shape (n_classes,)
        Labels.
    model_ : ImageModel
        The model.

    Raises
    ------
    ModelFileError
        If the file is damaged, forged, of a newer format, or its head now gives other outputs.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        runtime: str = "auto",
        decide: str | Mapping[Any, float] | None = None,
        device: str = "auto",
        n_jobs: int | None = None,
        max_pixels: int = MAX_PIXELS,
        checkpoint: str | os.PathLike[str] | None = None,
        allow_download: bool = False,
        **machine: Any,
    ) -> None:
        saved = read_model(path, checkpoint=checkpoint, allow_download=allow_download)
        model = with_head(saved)
        self._saved, self._expected = saved, saved.expected
        self._machine = {
            "runtime": runtime,
            "device": device,
            "n_jobs": n_jobs,
            "max_pixels": max_pixels,
            "checkpoint": checkpoint,
            "allow_download": allow_download,
            **{"store": "memory", **machine},
        }
        self._checked = False
        self._fitted, self.classes_ = model, model.classes
        self.model_ = decided(saved, model)
        if decide is not None:
            self.decide(decide)
        self._features = DirectFeatures(model, self._machine)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the compiled networks, which another process makes again."""
        return {name: value for name, value in vars(self).items() if name != "_features"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._features = DirectFeatures(self._fitted, self._machine)

    def decide(self, decide: str | Mapping[Any, float]) -> None:
        """Use another decision rule for all later predictions.

        Parameters
        ----------
        decide : {"auto", "argmax", "balanced"} or dict
            As for `ImageClassifier`.
        """
        self.model_ = self._fitted.deciding(decide)

    def predict(self, X: Any, *, decide: str | Mapping[Any, float] | None = None) -> NDArray[Any]:
        """Label of each image, shape (n_images,).

        Parameters
        ----------
        X : images
            As for `predict_proba`.
        decide : {"auto", "argmax", "balanced"} or dict, optional
            Another decision rule than that of the model.
        """
        model = self.model_ if decide is None else self._fitted.deciding(decide)
        return model.labels(self.predict_proba(X))

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities, shape (n_images, n_classes), in the order of `classes_`.

        Parameters
        ----------
        X : list of images, or what `featx.images.load_images` reads
            Paths, bytes, PIL images or arrays of shape (H, W, 3); a folder, a manifest, a data frame, ...

        Raises
        ------
        ImageError
            If an image cannot be read.
        """
        sources = _as_sources(X)
        if not len(sources):
            return np.empty((0, len(self.classes_)))
        self._check_networks()
        return self.model_.proba_of_rows(self._features(sources, name_sources(sources)))

    def predict_sets(self, X: Any, coverage: float = 0.9) -> list[list[Any]]:
        """Sets of labels that hold the truth with a given probability; see `ImageClassifier.predict_sets`."""
        return self.sets_of(self.predict_proba(X), coverage)

    def sets_of(self, proba: NDArray[np.float64], coverage: float) -> list[list[Any]]:
        """`predict_sets` from probabilities; the most probable label of each set comes first."""
        plain = self._saved.plain["record"].get("conformal", ())
        thresholds = from_plain(tuple[float, ...], plain, "conformal")
        return self.model_.sets_of(proba, thresholds, coverage)

    def extract(self, images: ImageSet, *, on_error: str = "raise") -> Extraction:
        """Features from the store, or computed and stored: for many images, of which some may be unreadable.

        Parameters
        ----------
        images : ImageSet
        on_error : {"raise", "skip"}
            What to do with an image that cannot be read.
        """
        found = self.model_.extract(images.sources, self._machine, names=images.names, on_error=on_error)
        if found.computed and not self._checked:
            self._checked = True
            check_network(self.model_, found, self._expected, self._machine)
        return found

    def _check_networks(self) -> None:
        """Compare features of synthetic images with the saved ones, once."""
        if self._checked:
            return
        pictures = golden_pictures()
        now = self._features(pictures, [f"image {number}" for number in range(len(pictures))])
        self._checked = True
        check_features(now, self._expected)


def with_head(saved: SavedModel) -> ImageModel:
    """The model with a head that gives the saved outputs: its formula, else scikit-learn's estimator."""
    if saved.model.head is not None:
        try:
            check_head(saved, saved.model)
        except ModelFileError:
            pass
        else:
            return saved.model
    model = dataclasses.replace(saved.model, head=saved.head.pipeline(saved.model.classes))
    check_head(saved, model)
    return model


def decided(saved: SavedModel, model: ImageModel) -> ImageModel:
    """The model with the decision of its parameter ``decide``.

    Raises
    ------
    ModelFileError
        If that of a forged file does not fit its classes.
    """
    try:
        return model.deciding(_read_decide(saved.plain["params"].get("decide", "auto")))
    except (FeatxError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(f"{saved.where}: {error}") from None


def _read_decide(plain: Any) -> Any:
    """The parameter ``decide`` of a saved classifier: a text, or costs by class."""
    if isinstance(plain, str):
        return plain
    if plain["type"] != "dict":
        raise ValueError(f"the decision {plain['type']!r:.40}")
    return {label: float(cost) for label, cost in plain["value"]}


def _as_sources(X: Any) -> Sequence[ImageSource]:
    return X.sources if isinstance(X, ImageSet) else load_images(X).sources
