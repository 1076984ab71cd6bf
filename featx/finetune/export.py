"""Export of a fine-tuned network as one ONNX graph that is checked with onnxruntime.

The input are resized images (RGB, 0 to 255). The graph contains normalisation, network, head and calibration.
Decoding and resizing are not included; the metadata of the file describe them.
"""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featx.backbones.card import BackboneCard
from featx.backbones.transform import prepare
from featx.evaluation import Calibration
from featx.exceptions import FeatxError, UsageError
from featx.files import atomic_write
from featx.finetune.network import WholeNetwork
from featx.images import golden_pictures
from featx.spec import FeatureSpec

TOLERANCE = 1e-3
"""Largest allowed difference of a probability between torch and onnxruntime."""
OPSET = 18


class ExportedNetwork(nn.Module):
    """From images (n, 3, H, W), float32, 0 to 255, to calibrated probabilities (n, classes)."""

    def __init__(self, network: Any, head: nn.Module, card: BackboneCard, calibration: Calibration) -> None:
        super().__init__()
        network.reset_classifier(0)
        self.network = WholeNetwork(network, card.mean, card.std)
        self.head = head
        self.slope, self.shift = calibration.a, calibration.b
        self.binary = calibration.kind == "sigmoid"
        self.cpu().eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Calibrated probabilities of images."""
        logits = self.head(self.network(images))
        if self.binary:
            score = self.slope * (logits[:, 1:] - logits[:, :1]) + self.shift
            return torch.cat([torch.sigmoid(-score), torch.sigmoid(score)], 1)
        return torch.softmax(self.slope * logits, 1)


def export_onnx(
    path: str | os.PathLike[str],
    *,
    network: Any,
    head: nn.Module,
    card: BackboneCard,
    spec: FeatureSpec,
    calibration: Calibration,
    classes: NDArray[Any],
) -> float:
    """Write the graph and check it.

    Parameters
    ----------
    path : path
        The ``.onnx`` file.
    network : torch.nn.Module
        The whole fine-tuned timm network; its classifier is removed.
    head : torch.nn.Module
        From pooled features to logits.
    card, spec, calibration, classes
        See `FineTunedNetwork`.

    Returns
    -------
    float
        Largest difference of a probability between torch and onnxruntime on test images.

    Raises
    ------
    UsageError
        If onnx, onnxscript or onnxruntime is not installed.
    FeatxError
        If onnxruntime gives other probabilities; nothing is written then.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch needs it to export)
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed: pip install 'featx[onnx]'.") from error
    model = ExportedNetwork(network, head, card, calibration)
    images = _test_images(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about the exporter's internals
        program: Any = torch.onnx.export(
            model,
            (torch.from_numpy(images),),
            input_names=["images"],
            output_names=["probabilities"],
            dynamic_shapes={"images": {0: torch.export.Dim("n", min=1)}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    proto = program.model_proto
    strip_private(proto)
    onnx.helper.set_model_props(proto, _metadata(card, spec, classes))
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    worst = 0.0
    for batch in (images, images[:1]):
        found = session.run(None, {"images": batch})[0]
        with torch.inference_mode():
            expected = model(torch.from_numpy(batch)).numpy()
        worst = max(worst, float(np.abs(found - expected).max()))
    if not worst <= TOLERANCE:
        raise FeatxError(
            f"onnxruntime's probabilities differ from torch's by {worst:.2g} (allowed {TOLERANCE:g}); "
            "nothing was written."
        )
    atomic_write(Path(path), content)
    return worst


def strip_private(message: Any) -> None:
    """Clear doc strings and metadata in all parts of a graph: the exporter writes stack traces with paths."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                strip_private(part)


def _test_images(spec: FeatureSpec) -> NDArray[np.float32]:
    """Return the test images as input of the graph, shape (n, 3, H, W), 0 to 255."""
    images = [prepare(image, spec) for image in golden_pictures()]
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2), np.float32)


def _metadata(card: BackboneCard, spec: FeatureSpec, classes: NDArray[Any]) -> dict[str, str]:
    """Return what a user of the graph needs to know besides the graph."""
    plain = json.loads(spec.to_json())
    steps = ("input_size", "resize", "crop_pct", "interpolation", "background", "pixel_range", "bands")
    return {
        "classes": json.dumps(classes.tolist()),
        "input": "upright RGB images, resized as 'preprocessing' says: float32, 0 to 255, (n, 3, H, W)",
        "output": "calibrated probabilities, (n, classes); normalisation is inside the graph",
        "preprocessing": json.dumps({name: plain[name] for name in steps}),
        "backbone": card.name,
    }
