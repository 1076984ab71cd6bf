"""FineTunedNetwork: a network with trained upper layers and head. It predicts, is saved, and is a backbone.

Only the layers above the cut are stored. The other layers are those of the pretrained network, identified by
its digest; they are included if they came from a file of the user. Torch is imported when the network is
needed; the head is computed with NumPy.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from featx.backbones import BackboneCard, load_backbone
from featx.backbones.card import check_random
from featx.backbones.finetuned import BASE, FORMAT, JSON_MEMBER, TENSOR_MEMBER, lay_over
from featx.backbones.loading import open_base
from featx.backbones.runtimes import resolve_device
from featx.evaluation import Calibration
from featx.exceptions import FeatxError, ModelFileError
from featx.extractor.fixed import SpecExtractor
from featx.files import read_json
from featx.finetune.features import FeatureSource
from featx.finetune.stream import StemFunction, StreamedFeatures
from featx.images import ImageSource
from featx.modelfile import read_classes
from featx.records import Record
from featx.spec import LAST, FeatureSpec

if TYPE_CHECKING:
    from featx.backbones.network import Backbone
    from featx.finetune.network import TailClassifier

HEADS: Mapping[str, tuple[str, ...]] = {"linear": ("head",), "mlp": ("head.0", "head.3")}
"""Names of the dense layers of each head, with a ReLU between two."""


@dataclass(frozen=True)
class SavedNetwork(Record):
    """The JSON member of a saved network; see `FineTunedNetwork` for the fields."""

    format: int
    classes: list[Any]
    classes_dtype: str
    card: BackboneCard
    spec: FeatureSpec
    whole: bool
    head: Literal["linear", "mlp"]
    weights: str
    calibration: Calibration
    history: list[dict[str, Any]]
    verdict: dict[str, Any] | None


SAVED = ("card", "spec", "whole", "head", "weights", "calibration", "history", "verdict")


class FineTunedNetwork:
    """A network whose upper layers and head were trained on the user's images.

    Parameters
    ----------
    card : BackboneCard
        The network before fine-tuning.
    spec : FeatureSpec
        How images are decoded and resized, and the cut (``"last"`` if the whole network was trained).
    whole : bool
        Whether the whole network was trained.
    head : {'linear', 'mlp'}
    classes : ndarray of shape (n_classes,)
    tensors : mapping of str to array
        State of the tail and the head (and of the network before, if it came from a file of the user).
    weights : str
        SHA-256 of the tensors of the whole fine-tuned network, by which its features are identified.
    calibration : Calibration
        From logits to probabilities, fitted on validation images.
    history : list of dict
        Loss, accuracy, learning rates and seconds of each epoch.
    verdict : dict, optional
        See `verdict.Verdict.to_dict`.
    checkpoint : path, optional
        File of the pretrained weights, if they are not loaded by name.
    allow_download : bool, optional
        Whether the pretrained weights may be downloaded; see `FeatureExtractor`.
    """

    def __init__(
        self,
        *,
        card: BackboneCard,
        spec: FeatureSpec,
        whole: bool,
        head: Literal["linear", "mlp"],
        classes: NDArray[Any],
        tensors: Mapping[str, NDArray[Any]],
        weights: str = "",
        calibration: Calibration,
        history: Sequence[Mapping[str, Any]] = (),
        verdict: Mapping[str, Any] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        allow_download: bool | None = None,
        device: str = "auto",
    ) -> None:
        self.card, self.spec, self.whole, self.head = card, spec, whole, head
        self.classes, self.tensors, self.calibration = np.asarray(classes), dict(tensors), calibration
        self.history, self.verdict = [dict(record) for record in history], verdict
        self.checkpoint, self.allow_download, self.device = checkpoint, allow_download, device
        self._parts: tuple[Backbone, TailClassifier] | None = None
        self.weights = weights or self._digest()

    @property
    def tuned_card(self) -> BackboneCard:
        """Card of the fine-tuned network: that of the pretrained one with other weights."""
        source = f"finetuned:{self.card.weights[:12]}"
        return dataclasses.replace(self.card, weights=self.weights, source=source)

    @property
    def feature_spec(self) -> FeatureSpec:
        """Spec of the pooled features that are the input of the head."""
        kept = {"weights": self.weights, "cut": LAST, "pool": "avg", "final_norm": True}
        return self.spec.replace(**kept)

    def predict_proba(self, sources: Sequence[ImageSource]) -> NDArray[np.float64]:
        """Calibrated probabilities of images, shape (n, n_classes); no features are stored.

        Raises
        ------
        ImageError
            If an image cannot be read.
        """
        stem = None if self.whole else StemFunction(self._open()[0], self.spec)
        return self.proba_at_cut(StreamedFeatures(sources, self.spec, stem=stem))

    def proba_at_cut(self, features: FeatureSource) -> NDArray[np.float64]:
        """Calibrated probabilities from features at the cut, shape (n, n_classes)."""
        from featx.finetune.training import TrainingSettings, predict_logits

        module = self._open()[1]
        settings = TrainingSettings(phases=(), device=str(next(module.parameters()).device))
        logits = predict_logits(module, features, np.arange(len(features)), settings)
        return np.asarray(self.calibration.proba(logits), np.float64)

    def proba_of_features(self, features: NDArray[Any]) -> NDArray[np.float64]:
        """Calibrated probabilities from pooled features of the fine-tuned network (see `feature_spec`)."""
        return np.asarray(self.calibration.proba(self.logits_of_features(features)), np.float64)

    def logits_of_features(self, features: NDArray[Any]) -> NDArray[np.float64]:
        """Logits from pooled features of shape (n, width), by the head alone, without torch."""
        values = np.asarray(features, np.float64)
        for number, (weight, bias) in enumerate(self.layers()):
            values = (np.maximum(values, 0) if number else values) @ weight.T + bias
        return values

    def layers(self) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Weights and biases of the head's dense layers, with a ReLU between two."""
        return [
            (
                self.tensors[f"{name}.weight"].astype(np.float64),
                self.tensors[f"{name}.bias"].astype(np.float64),
            )
            for name in HEADS[self.head]
        ]

    def to_backbone(self) -> Backbone:
        """Return the fine-tuned network without its head as a backbone.

        Raises
        ------
        ModelFileError
            If the tensors do not have the digest that the file states.
        """
        from featx.backbones.network import Backbone, digest_tensors

        network = self.module()
        if digest_tensors(network.state_dict()) != self.weights:
            raise ModelFileError(
                f"the fine-tuned {self.card.name} in this file does not have the digest {self.weights[:12]}… "
                "that the file states; get the file again."
            )
        return Backbone(self.tuned_card, network)

    def to_extractor(self, *, graph: bytes | None = None, **machine: Any) -> SpecExtractor:
        """Return an extractor of the head's input; the network is loaded when features must be computed.

        Parameters
        ----------
        graph : bytes, optional
            The converted network.
        **machine
            Parameters of `FeatureExtractor` that do not change features: store, runtime, device, ...
        """
        spec = self.feature_spec
        backbone: Any = _LazyBackbone(self)
        return SpecExtractor({spec.block: spec}, self.tuned_card, backbone=backbone, graph=graph, **machine)

    def module(self) -> Any:
        """Return the whole timm network with the trained layers (and its original classifier)."""
        backbone = self._open()[0]
        network = copy.deepcopy(backbone.sized(self.spec.input_size))
        network.load_state_dict(lay_over(network.state_dict(), self.tensors))
        return network.eval().requires_grad_(False)

    def export_onnx(self, path: str | os.PathLike[str]) -> float:
        """Write one ONNX graph and check it; see `featx.finetune.export.export_onnx`.

        The input are decoded and resized images; normalisation and calibration are inside the graph.
        """
        from featx.finetune.export import export_onnx

        return export_onnx(
            path,
            network=self.module(),
            head=copy.deepcopy(self._open()[1].head),
            card=self.card,
            spec=self.spec,
            calibration=self.calibration,
            classes=self.classes,
        )

    def to_members(self) -> dict[str, bytes]:
        """Return two members of a model file by name: JSON and safetensors."""
        from safetensors.numpy import save

        own = {name: getattr(self, name) for name in SAVED}
        dtype = self.classes.dtype.str if self.classes.dtype != object else "object"
        plain = SavedNetwork(FORMAT, self.classes.tolist(), dtype, **own).to_dict()
        return {JSON_MEMBER: json.dumps(plain, sort_keys=True).encode(), TENSOR_MEMBER: save(self.tensors)}

    @classmethod
    def from_members(
        cls,
        members: Mapping[str, bytes],
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        allow_download: bool = False,
        device: str = "auto",
    ) -> FineTunedNetwork:
        """Read what `to_members` returned; nothing is downloaded for the network by default.

        Raises
        ------
        ModelFileError
            If a member is damaged, missing, or of another format.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            plain = read_json(members[JSON_MEMBER], where=JSON_MEMBER)
            if plain["format"] != FORMAT:
                raise ValueError(f"format {plain['format']}, and this featx reads {FORMAT}")
            saved = SavedNetwork.from_dict(plain)
            network = cls(
                classes=read_classes(saved.classes, saved.classes_dtype),
                tensors=load(members[TENSOR_MEMBER]),
                checkpoint=checkpoint,
                allow_download=allow_download,
                device=device,
                **{name: getattr(saved, name) for name in SAVED},
            )
            network._check()
            return network
        except ModelFileError:
            raise
        except (FeatxError, LookupError, ValueError, TypeError, AttributeError, SafetensorError) as error:
            raise ModelFileError(f"the fine-tuned network in this file cannot be read: {error}") from error

    def _open(self) -> tuple[Backbone, TailClassifier]:
        """Load the pretrained network and its trained part once."""
        if self._parts is not None:
            return self._parts
        import torch

        from featx.finetune.network import TailClassifier, make_head, open_tail

        backbone = self._base()
        tail = open_tail(backbone, None if self.whole else self.spec.cut, self.spec.input_size)
        module = TailClassifier(tail, make_head(self.head, self.card.num_features, len(self.classes)))
        own = {name: value for name, value in self.tensors.items() if not name.startswith(BASE)}
        try:
            module.load_state_dict({name: torch.from_numpy(np.array(t)) for name, t in own.items()})
        except RuntimeError as error:
            raise ModelFileError(
                f"the tensors of the fine-tuned network are not those of {self.card.name} above "
                f"{self.spec.cut}: {str(error).splitlines()[0]}"
            ) from error
        module.eval().requires_grad_(False).to(next(backbone.module.parameters()).device)
        self._parts = (backbone, module)
        return self._parts

    def _base(self) -> Backbone:
        """Load the network before fine-tuning."""
        if not any(name.startswith(BASE) for name in self.tensors):
            return load_backbone(
                self.card,
                checkpoint=self.checkpoint,
                allow_download=self.allow_download,
                device=self.device,
            )
        from featx.backbones.network import Backbone

        module = open_base(self.card, self.tensors)
        module.to(resolve_device(self.device))
        return Backbone(self.card, module)

    def _digest(self) -> str:
        from featx.backbones.network import digest_tensors

        return digest_tensors(self.module().state_dict())

    def _check(self) -> None:
        """Check that spec and tensors fit the network and the head."""
        if (self.spec.architecture, self.spec.weights) != (self.card.architecture, self.card.weights):
            raise ValueError("the spec is of another network than the card")
        check_random(self.card)
        if not 0 < self.spec.crop_pct <= 4:
            raise ValueError(f"an image cropped to {self.spec.crop_pct}")
        width = self.card.num_features
        for number, name in enumerate(layers := HEADS[self.head]):
            weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
            out = len(self.classes) if number + 1 == len(layers) else len(bias)
            if weight.shape != (out, width) or bias.shape != (out,) or weight.dtype.kind != "f":
                raise ValueError(
                    f"{name} of shape {weight.shape} for {width} features, {len(self.classes)} classes"
                )
            width = out
        for name, value in self.tensors.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise ValueError(f"{name} has values that are not finite")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": None}


class _LazyBackbone:
    """A backbone whose network is loaded when features must be computed."""

    def __init__(self, network: FineTunedNetwork) -> None:
        self.card = network.tuned_card
        self._network = network

    def stem(self, specs: Sequence[FeatureSpec]) -> Any:
        """See `Backbone.stem`."""
        return self._network.to_backbone().stem(specs)
