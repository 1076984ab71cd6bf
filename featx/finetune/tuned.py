"""FineTunedNetwork: what fine-tuning leaves behind. It predicts, travels as bytes, and is a backbone again.

Only the layers above the cut are kept; the rest is the pretrained network, named by its digest. Nothing here
imports torch before something must be computed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones import BackboneCard, load_backbone
from featx.evaluation import Calibration
from featx.exceptions import ModelFileError
from featx.files import atomic_write
from featx.finetune.rows import RowSource
from featx.images import ImageSource
from featx.spec import FeatureSpec

if TYPE_CHECKING:
    from featx.backbones.network import Backbone
    from featx.finetune.network import TailClassifier

FORMAT = 1
JSON_MEMBER, TENSOR_MEMBER = "finetune.json", "finetune.safetensors"
"""Names of the two members that a model file holds."""


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
        State of the tail and the head.
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

    def open_images(self, sources: Sequence[ImageSource]) -> RowSource:
        """Rows at the cut of images, computed when read."""
        from featx.finetune.stream import ImageRows

        if self.whole:
            return ImageRows(sources, self.spec, shape=(3, *self.spec.input_size))
        stem = stem_function(self._open()[0], self.spec)
        return ImageRows(sources, self.spec, shape=stem.shape, stem=stem)

    def to_backbone(self) -> Backbone:
        """The fine-tuned network without its head, as a backbone whose digest names new spaces."""
        from featx.backbones.network import Backbone, describe

        network = self.module()
        source = f"finetuned:{self.card.weights[:12]}"
        return Backbone(describe(self.card.name, source, network), network)

    def module(self) -> Any:
        """The whole timm network with the trained layers in place (its original classifier is as it was)."""
        import copy

        from featx.finetune.network import network_of

        backbone, trained = self._open()
        network = copy.deepcopy(backbone.sized(self.spec.input_size))
        state = network.state_dict()
        state |= {k: v for k, v in network_of(trained.tail).state_dict().items() if k in state}
        network.load_state_dict(state)
        return network.eval().requires_grad_(False)

    def trained_part(self) -> TailClassifier:
        """The layers that were trained, and the head."""
        return self._open()[1]

    def export_onnx(self, path: str | os.PathLike[str]) -> float:
        """Write one ONNX graph; see `featx.finetune.export.export_onnx`."""
        from featx.finetune.export import export_onnx

        return export_onnx(self, path)

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
            plain = json.loads(members[JSON_MEMBER])
            if plain["format"] != FORMAT:
                raise ValueError(f"format {plain['format']}, and this featx reads {FORMAT}")
            return cls(
                card=BackboneCard.from_json(json.dumps(plain["card"])),
                spec=FeatureSpec.from_json(json.dumps(plain["spec"])),
                whole=bool(plain["whole"]),
                head=str(plain["head"]),
                classes=np.array(plain["classes"], dtype=np.dtype(plain["classes_dtype"])),
                tensors=load(members[TENSOR_MEMBER]),
                calibration=Calibration.from_dict(plain["calibration"]),
                history=plain["history"],
                verdict=plain["verdict"],
                checkpoint=checkpoint,
                device=device,
            )
        except (KeyError, ValueError, TypeError, SafetensorError) as error:
            raise ModelFileError(f"the fine-tuned network in this file cannot be read: {error}") from error

    def _open(self) -> tuple[Backbone, TailClassifier]:
        """The pretrained network and the trained part of it, loaded once."""
        if self._parts is not None:
            return self._parts
        import torch

        from featx.finetune.network import TailClassifier, make_head, open_tail

        backbone = load_backbone(self.card, checkpoint=self.checkpoint, device=self.device)
        tail = open_tail(backbone, None if self.whole else self.spec.cut, self.spec.input_size)
        module = TailClassifier(tail, make_head(self.head, self.card.num_features, len(self.classes)))
        try:
            module.load_state_dict({name: torch.from_numpy(np.array(t)) for name, t in self.tensors.items()})
        except RuntimeError as error:
            raise ModelFileError(
                f"the tensors of the fine-tuned network are not those of {self.card.name} above "
                f"{self.spec.cut}: {str(error).splitlines()[0]}"
            ) from error
        module.eval().requires_grad_(False).to(next(backbone.module.parameters()).device)
        self._parts = (backbone, module)
        return self._parts

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": None}


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
