"""FineTunedNetwork: what fine-tuning leaves behind. It predicts, travels as bytes, and is a backbone again.

Only the layers above the cut are kept; the rest is the pretrained network, named by its digest (or laid in
beside them, where it came from a file of the user's). Nothing here imports torch before something must be
computed, and its head is a few products that need no torch at all.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones import BackboneCard, load_backbone
from featx.backbones.finetuned import BASE, FORMAT, JSON_MEMBER, TENSOR_MEMBER, lay_over
from featx.backbones.loading import open_base
from featx.backbones.runtimes import resolve_device
from featx.evaluation import Calibration
from featx.exceptions import FeatxError, ModelFileError
from featx.extractor import FeatureExtractor
from featx.files import atomic_write, read_json
from featx.finetune.rows import RowSource
from featx.images import ImageSource
from featx.modelfile import check_fields
from featx.spec import LAST, FeatureSpec

if TYPE_CHECKING:
    from featx.backbones.network import Backbone
    from featx.finetune.network import TailClassifier

HEADS: Mapping[str, tuple[str, ...]] = {"linear": ("head",), "mlp": ("head.0", "head.3")}
"""Names of the dense layers of each head; there is a ReLU between two."""

MAX_INPUT_SIDE = 8192
"""Pixels. No network eats larger pictures; a crafted file could ask for any number of gigabytes."""


class FineTunedNetwork:
    """A network whose upper layers and head were trained on the user's images.

    Parameters
    ----------
    card : BackboneCard
        The pretrained network that it came from.
    spec : FeatureSpec
        How pictures are decoded and resized, and the cut (``"last"`` where the whole network was trained).
    whole : bool
        Whether the whole network was trained.
    head : {'linear', 'mlp'}
    classes : ndarray of shape (n_classes,)
    tensors : mapping of str to array
        State of the tail and the head (and of the network before, where it came from a user's file).
    weights : str
        sha256 of the fine-tuned network's tensors: what names its spaces of rows.
    calibration : Calibration
        From logits to probabilities, fitted on images that did not train it.
    history : list of dict
        Loss, accuracy, learning rates and seconds of each epoch.
    verdict : dict, optional
        See `verdict.Verdict.to_dict`.
    checkpoint : path, optional
        Where the pretrained weights are, if not where their name says.
    """

    def __init__(
        self,
        *,
        card: BackboneCard,
        spec: FeatureSpec,
        whole: bool,
        head: str,
        classes: NDArray[Any],
        tensors: Mapping[str, NDArray[Any]],
        weights: str = "",
        calibration: Calibration,
        history: Sequence[Mapping[str, Any]] = (),
        verdict: Mapping[str, Any] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        device: str = "auto",
    ) -> None:
        self.card, self.spec, self.whole, self.head = card, spec, whole, head
        self.classes, self.tensors, self.calibration = np.asarray(classes), dict(tensors), calibration
        self.history, self.verdict = [dict(record) for record in history], verdict
        self.checkpoint, self.device = checkpoint, device
        self._parts: tuple[Backbone, TailClassifier] | None = None
        self.weights = weights or self._digest()

    @property
    def tuned_card(self) -> BackboneCard:
        """The card of the fine-tuned network: the pretrained one's, with weights of its own."""
        source = f"finetuned:{self.card.weights[:12]}"
        return dataclasses.replace(self.card, weights=self.weights, source=source)

    @property
    def feature_spec(self) -> FeatureSpec:
        """Recipe of the pooled rows that the head takes."""
        kept = {"weights": self.weights, "cut": LAST, "pool": "avg", "final_norm": True}
        return self.spec.replace(**kept)

    def predict_proba(self, sources: Sequence[ImageSource]) -> NDArray[np.float64]:
        """Calibrated probabilities of images, shape (n, n_classes); nothing is cached.

        Raises
        ------
        ImageError
            If a picture cannot be read.
        """
        return self.proba_of_rows(self.open_images(sources))

    def proba_of_rows(self, rows: RowSource) -> NDArray[np.float64]:
        """Calibrated probabilities of rows at the cut."""
        return np.asarray(self.calibration.proba(self.logits(rows)), np.float64)

    def logits(self, rows: RowSource) -> NDArray[np.float32]:
        """Logits of rows at the cut, shape (n, n_classes)."""
        from featx.finetune.training import Recipe, predict_logits

        module = self._open()[1]
        recipe = Recipe(phases=(), device=str(next(module.parameters()).device))
        return predict_logits(module, rows, np.arange(len(rows)), recipe)

    def proba_of_features(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Calibrated probabilities of pooled rows of the fine-tuned network (see `feature_spec`)."""
        return np.asarray(self.calibration.proba(self.logits_of_features(rows)), np.float64)

    def logits_of_features(self, rows: NDArray[Any]) -> NDArray[np.float64]:
        """Logits of pooled rows, shape (n, width), by the head alone; no torch."""
        values = np.asarray(rows, np.float64)
        for number, name in enumerate(HEADS[self.head]):
            values = np.maximum(values, 0) if number else values
            values = (
                values @ self.tensors[f"{name}.weight"].T.astype(np.float64) + self.tensors[f"{name}.bias"]
            )
        return values

    def open_images(self, sources: Sequence[ImageSource]) -> RowSource:
        """Rows at the cut of images, computed when read."""
        from featx.finetune.stream import ImageRows

        if self.whole:
            return ImageRows(sources, self.spec, shape=(3, *self.spec.input_size))
        stem = stem_function(self._open()[0], self.spec)
        return ImageRows(sources, self.spec, shape=stem.shape, stem=stem)

    def to_backbone(self) -> Backbone:
        """The fine-tuned network without its head, as a backbone whose digest names new spaces.

        Raises
        ------
        ModelFileError
            If it is not the network that its file says.
        """
        from featx.backbones.network import Backbone, digest_tensors

        network = self.module()
        if digest_tensors(network.state_dict()) != self.weights:
            raise ModelFileError(
                f"the fine-tuned {self.card.name} in this file has not the digest {self.weights[:12]}… that "
                "the file states; get the file again."
            )
        return Backbone(self.tuned_card, network)

    def to_extractor(self, **machine: Any) -> FeatureExtractor:
        """An extractor of the pooled rows that the head takes; the network is opened when one is missing.

        Parameters
        ----------
        **machine
            Parameters of `FeatureExtractor` that move no row: store, runtime, device, ...
        """
        spec = self.feature_spec
        backbone: Any = _OpenedLater(self)
        return FeatureExtractor.from_specs({spec.block: spec}, self.tuned_card, backbone=backbone, **machine)

    def module(self) -> Any:
        """The whole timm network with the trained layers in place (its original classifier is as it was)."""
        backbone = self._open()[0]
        network = copy.deepcopy(backbone.sized(self.spec.input_size))
        network.load_state_dict(lay_over(network.state_dict(), self.tensors))
        return network.eval().requires_grad_(False)

    def trained_part(self) -> TailClassifier:
        """The layers that were trained, and the head."""
        return self._open()[1]

    def export_onnx(self, path: str | os.PathLike[str]) -> float:
        """Write one ONNX graph, checked against onnxruntime; see `featx.finetune.export.export_onnx`.

        Pictures go in decoded and resized already; normalisation and calibration are inside.
        """
        from featx.finetune.export import export_onnx

        return export_onnx(
            path,
            network=self.module(),
            head=copy.deepcopy(self.trained_part().head),
            card=self.card,
            spec=self.spec,
            calibration=self.calibration,
            classes=self.classes,
        )

    def save_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Write the whole network as safetensors, for ``FeatureExtractor(name, checkpoint=path)``."""
        from safetensors.torch import save

        tensors = {k: v.detach().cpu().contiguous() for k, v in self.module().state_dict().items()}
        atomic_write(Path(path), save(tensors))

    def to_members(self) -> dict[str, bytes]:
        """Two members for a model file: JSON and safetensors, by name."""
        from safetensors.numpy import save

        plain = {
            "format": FORMAT,
            "card": json.loads(self.card.to_json()),
            "spec": json.loads(self.spec.to_json()),
            "whole": self.whole,
            "head": self.head,
            "weights": self.weights,
            "classes": self.classes.tolist(),
            "classes_dtype": self.classes.dtype.str if self.classes.dtype != object else "object",
            "calibration": self.calibration.to_dict(),
            "history": self.history,
            "verdict": self.verdict,
        }
        return {JSON_MEMBER: json.dumps(plain, sort_keys=True).encode(), TENSOR_MEMBER: save(self.tensors)}

    @classmethod
    def from_members(
        cls,
        members: Mapping[str, bytes],
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        device: str = "auto",
    ) -> FineTunedNetwork:
        """Read `to_members`'s bytes.

        Raises
        ------
        ModelFileError
            If they are damaged, of a newer format, or lack a member.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            plain = read_json(members[JSON_MEMBER], where=JSON_MEMBER)
            if plain["format"] != FORMAT:
                raise ValueError(f"format {plain['format']}, and this featx reads {FORMAT}")
            network = cls(
                card=BackboneCard.from_json(json.dumps(plain["card"])),
                spec=FeatureSpec.from_json(json.dumps(plain["spec"])),
                whole=bool(plain["whole"]),
                head=str(plain["head"]),
                classes=np.array(plain["classes"], dtype=np.dtype(plain["classes_dtype"])),
                tensors=load(members[TENSOR_MEMBER]),
                weights=str(plain["weights"]),
                calibration=Calibration.from_dict(plain["calibration"]),
                history=plain["history"],
                verdict=plain["verdict"],
                checkpoint=checkpoint,
                device=device,
            )
            network._check()
            return network
        except ModelFileError:
            raise
        except (FeatxError, LookupError, ValueError, TypeError, AttributeError, SafetensorError) as error:
            raise ModelFileError(f"the fine-tuned network in this file cannot be read: {error}") from error

    def _open(self) -> tuple[Backbone, TailClassifier]:
        """The pretrained network and the trained part of it, loaded once."""
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
        """The network before fine-tuning."""
        if not any(name.startswith(BASE) for name in self.tensors):
            return load_backbone(self.card, checkpoint=self.checkpoint, device=self.device)
        from featx.backbones.network import Backbone

        module = open_base(self.card, self.tensors)
        module.to(resolve_device(self.device))
        return Backbone(self.card, module)

    def _digest(self) -> str:
        from featx.backbones.network import digest_tensors

        return digest_tensors(self.module().state_dict())

    def _check(self) -> None:
        """Refuse what fits neither the network nor the head, before something is made of it."""
        for record in (self.card, self.spec, self.calibration):
            check_fields(record)
        if (self.spec.architecture, self.spec.weights) != (self.card.architecture, self.card.weights):
            raise ValueError("the spec is of another network than the card")
        if (
            not all(0 < side <= MAX_INPUT_SIDE for side in self.spec.input_size)
            or not 0 < self.spec.crop_pct <= 4
        ):
            raise ValueError(
                f"an input size of {self.spec.input_size} pixels, cropped to {self.spec.crop_pct}"
            )
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
                raise ValueError(f"{name} holds numbers that are not finite")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": None}


class _OpenedLater:
    """A backbone of which the card is known, and which is opened when a row must be computed."""

    def __init__(self, network: FineTunedNetwork) -> None:
        self.card = network.tuned_card
        self._network = network

    def stem(self, specs: Sequence[FeatureSpec]) -> Any:
        """See `Backbone.stem`."""
        return self._network.to_backbone().stem(specs)


class stem_function:
    """The frozen layers below a cut: uint8 pictures (n, H, W, 3) to rows, in torch."""

    def __init__(self, backbone: Backbone, spec: FeatureSpec) -> None:
        self._stem = backbone.stem([spec])
        self.shape: tuple[int, ...] = self._stem.shapes[0]

    def __call__(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Rows of one batch."""
        import torch

        device = next(self._stem.parameters()).device
        with torch.inference_mode():
            rows = self._stem(torch.from_numpy(pictures).to(device))[0]
            return np.asarray(rows.float().cpu().numpy())
