"""A saved model as one graph: from resized images to probabilities and labels, without featx.

The graph is traced in torch: normalisation, networks, layers, poolings, the rounding of stored features,
scaling, head, calibration and decision. Its input are uint8 images, resized as the metadata say; with
`add_resizing` it is a photo of any size. It is compared with featx on synthetic images before it is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from featx.backbones.transform import prepare
from featx.classifier.model import ImageModel
from featx.classifier.reading import SavedModel
from featx.exceptions import UsageError
from featx.extractor.fixed import SpecExtractor
from featx.extractor.pipeline import ExtractionSettings
from featx.heads.formulas import scale
from featx.images import MAX_PIXELS, golden_pictures
from featx.spec import FeatureSpec
from featx.version import __version__

LARGEST_HALF = 65_504.0
"""Features above it are not rounded to half precision, as in a store."""

PREPROCESSING = ("input_size", "resize", "crop_pct", "interpolation", "background", "pixel_range", "bands")
"""Fields of a spec that say how an image becomes an input of the graph."""


@dataclass(frozen=True, eq=False)
class GraphInput:
    """An input of the graph.

    Parameters
    ----------
    name : str
        ``images``, or ``images_crop``, ... where a model needs several resizings.
    spec : FeatureSpec
        How an image becomes this input.
    """

    name: str
    spec: FeatureSpec

    def examples(self) -> NDArray[np.uint8]:
        """Return the synthetic images, shape (n, height, width, 3)."""
        return np.stack([prepare(image, self.spec) for image in golden_pictures()])


class ModelGraph(nn.Module):
    """The model as a torch module.

    Takes one batch of uint8 images, shape (n, height, width, 3), for each of `inputs`. Returns probabilities,
    shape (n, n_classes), float32, and the indices of the labels, shape (n,), int64.

    Parameters
    ----------
    saved : SavedModel
        The file of the model.
    model : ImageModel
        The model, with its decision.
    machine : mapping
        Parameters of `FeatureExtractor`: checkpoint and allow_download.

    Raises
    ------
    UsageError
        If the model cannot be written as a graph; the message names the part, and what to do.
    """

    trained: Tensor
    costs: Tensor

    def __init__(self, saved: SavedModel, model: ImageModel, machine: Mapping[str, Any]) -> None:
        super().__init__()
        _refuse(saved)
        self.inputs: list[GraphInput] = []
        self._blocks: list[tuple[str, int, int, int, bool]] = []
        self.stems = nn.ModuleList()
        for extractor in model.networks({**machine, "device": "cpu"}).extractors:
            assert isinstance(extractor, SpecExtractor)
            self._add_network(extractor)
        if len(self.inputs) == 1:
            self.inputs = [GraphInput("images", self.inputs[0].spec)]
        self._used = model.used_blocks
        self.head: nn.Module = _SavedHead(saved) if model.network is None else _NetworkHead(model.network)
        calibration = model.calibration if model.network is None else model.network.calibration
        self._slope, self._shift = calibration.a, calibration.b
        self.register_buffer("trained", 1 / torch.tensor(model.class_weights, dtype=torch.float64))
        self.register_buffer("costs", torch.tensor(model.decision.weights, dtype=torch.float64))
        self.cpu().eval().requires_grad_(False)

    def _add_network(self, extractor: SpecExtractor) -> None:
        settings = ExtractionSettings(list(extractor.specs_.values()), MAX_PIXELS)
        number, first = len(self.stems), len(self.inputs)
        for spec in settings.inputs:
            name = f"images_{spec.resize}" if not number else f"images_{number + 1}_{spec.resize}"
            self.inputs.append(GraphInput(name, spec))
        for place, name in enumerate(extractor.specs_):
            half = settings.specs[place].dtype == "float16"
            source, output = int(settings.input_of[place]), int(settings.output_of[place])
            self._blocks.append((name, number, first + source, output, half))
        self.stems.append(extractor.open_backbone().stem(settings.outputs))

    def forward(self, *images: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        blocks: dict[str, Tensor] = {}
        outputs: dict[tuple[int, int], tuple[Tensor, ...]] = {}
        for name, number, source, output, half in self._blocks:
            if (number, source) not in outputs:
                outputs[number, source] = self.stems[number](images[source])
            rows = outputs[number, source][output].flatten(1)
            blocks[name] = _as_stored(rows) if half else rows
        rows = torch.cat([blocks[name] for name in self._used], 1).to(torch.float64)
        scores = self._slope * self.head(rows)
        if scores.ndim == 1:
            scores = torch.stack([0 * scores, scores + self._shift], 1)
        proba = _shares(torch.softmax(scores, 1) * self.trained)
        return proba.to(torch.float32), (proba * self.costs).argmax(1)

    def examples(self) -> list[NDArray[np.uint8]]:
        """Return the synthetic images for each input."""
        return [one.examples() for one in self.inputs]


class _SavedHead(nn.Module):
    """Scaling and head from saved arrays."""

    def __init__(self, saved: SavedModel) -> None:
        super().__init__()
        assert saved.head.formula is not None
        of_scaler, arrays, self._params = saved.head.prepared()
        self._scores = saved.head.formula.scores
        self._scaling, self._widths = saved.head.description.scaling, saved.head.description.widths
        self._names = (tuple(of_scaler), tuple(arrays))
        for prefix, part in (("scaler", of_scaler), ("head", arrays)):
            for name, array in part.items():
                self.register_buffer(f"{prefix}_{name}", torch.tensor(np.array(array)))

    def forward(self, rows: Tensor) -> Tensor:
        of_scaler, arrays = (
            {name: getattr(self, f"{prefix}_{name}") for name in names}
            for prefix, names in zip(("scaler", "head"), self._names, strict=True)
        )
        scaled = scale(torch, self._scaling, self._widths, of_scaler, rows)
        scores: Tensor = self._scores(torch, arrays, self._params, scaled)
        return scores


class _NetworkHead(nn.Module):
    """The head of a fine-tuned network."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for weight, bias in network.layers():
            layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
            layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
            layers += [nn.ReLU(), layer]
        self.layers = nn.Sequential(*layers[1:])

    def forward(self, rows: Tensor) -> Tensor:
        logits: Tensor = self.layers(rows)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits


def _refuse(saved: SavedModel) -> None:
    """Refuse what has no graph.

    Raises
    ------
    UsageError
        Naming the part and what to do.
    """
    model, head = saved.model, saved.head.description.head
    if model.network is None and model.augmentation.averages:
        raise UsageError(
            f"{saved.where}: it averages features over {model.augmentation.views} augmented views, which a "
            "graph cannot compute; fit without --views, or use --to featx."
        )
    if model.network is None and saved.head.formula is None:
        raise UsageError(
            f"{saved.where}: the head {head} has no formula that a graph could have; fit with another head "
            "(--heads logistic,ridge), or use --to featx."
        )


def _as_stored(rows: Tensor) -> Tensor:
    """Round to half precision the rows that fit into it."""
    fits = rows.abs().amax(1, keepdim=True) <= LARGEST_HALF
    return torch.where(
        fits, rows.clamp(-LARGEST_HALF, LARGEST_HALF).to(torch.float16).to(torch.float32), rows
    )


def _shares(values: Tensor) -> Tensor:
    return values / values.sum(1, keepdim=True)


def metadata(model: ImageModel, inputs: Sequence[GraphInput]) -> dict[str, str]:
    """Return what a user of the graph needs to know besides the graph."""
    preprocessing = {}
    for one in inputs:
        plain = json.loads(one.spec.to_json())
        preprocessing[one.name] = {name: plain[name] for name in PREPROCESSING}
    found = {
        "featx": __version__,
        "classes": json.dumps(model.classes.tolist()),
        "input": "upright RGB images as 'preprocessing' says: uint8, (n, height, width, 3)",
        "output": "probabilities (n, classes), calibrated; label: index of the class, by 'decision'",
        "preprocessing": json.dumps(preprocessing),
        "decision": json.dumps({"name": model.decision.name, "weights": list(model.decision.weights)}),
        "backbones": json.dumps([card.name for card in model.cards]),
        "licences": json.dumps([card.licence for card in model.cards]),
    }
    if len(model.classes) == 2:
        first, second = model.decision.weights
        found["threshold"] = json.dumps(first / (first + second))  # of the second class
    return found


def expected_proba(model: ImageModel, machine: Mapping[str, Any]) -> NDArray[np.float64]:
    """Return featx's own probabilities of the synthetic images, computed in fp32."""
    from featx.classifier.direct import DirectFeatures

    pictures = golden_pictures()
    names = [f"synthetic image {number}" for number in range(len(pictures))]
    exact = DirectFeatures(model, {**machine, "device": "cpu"}, precision="fp32")
    return model.proba_of_rows(exact(pictures, names))
