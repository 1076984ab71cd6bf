"""`export_model`: a saved model as an ONNX or OpenVINO graph, or as a file that runs without torch."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.classifier.model import ImageModel
from featx.classifier.predictor import decided, with_head
from featx.classifier.reading import read_model
from featx.exceptions import FeatxError, UsageError
from featx.files import atomic_write
from featx.images import golden_pictures

TARGETS = {"onnx": ".onnx", "openvino": ".xml", "featx": ".featx"}
"""Kinds of files, and how their names end."""

TOLERANCE = {"onnx": 2e-3, "openvino": 5e-3}
"""Largest difference of a probability from featx's own, both in fp32. OpenVINO computes the head in single
precision; a feature that is rounded to half precision may fall to the other side."""

OPSET = 18
OUTPUTS = ["probabilities", "label"]


@dataclass(frozen=True)
class Exported:
    """What `export_model` wrote.

    Parameters
    ----------
    files : tuple of str
        The files.
    inputs : tuple of str
        Names of the inputs of the graph; empty for a model file.
    difference : float
        Largest difference of a probability from featx on synthetic images.
    n_bytes : int
        Bytes of the files.
    """

    files: tuple[str, ...]
    inputs: tuple[str, ...]
    difference: float
    n_bytes: int


def export_model(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    to: str,
    *,
    resizing: bool = False,
    **machine: Any,
) -> Exported:
    """Write a saved model in another form, and compare it with featx before the file is kept.

    Parameters
    ----------
    path : path-like
        A ``.featx`` file.
    target : path-like
        The file to write; it ends in ``.onnx``, ``.xml`` or ``.featx``.
    to : {"onnx", "openvino", "featx"}
        ``featx`` is the model file with its converted networks inside.
    resizing : bool
        For ``onnx``: the input is one photo of any size instead of a batch of resized images.
    **machine
        ``store``, ``checkpoint`` and ``allow_download``, as for `FeatureExtractor`.

    Raises
    ------
    UsageError
        If the model cannot be written so, a package is absent, or the name has another ending.
    FeatxError
        If the graph gives other probabilities than featx; nothing is written then.
    """
    if to not in TARGETS:
        raise UsageError(f"to {to!r} is not known; choose one of {', '.join(TARGETS)}.")
    if not os.fspath(target).endswith(TARGETS[to]):
        raise UsageError(f"{os.fspath(target)}: a file for {to} is named with the ending {TARGETS[to]}.")
    if resizing and to != "onnx":
        raise UsageError(f"--resizing is for --to onnx; {to} has no resize operation like featx's.")
    if to == "featx":
        from featx.classifier.embedding import embed_networks

        embed_networks(path, target, **machine)
        return _written([os.fspath(target)], (), 0.0)
    if to == "onnx":
        _require("onnx", "onnxscript", "onnxruntime")
    _require("torch", "timm", "openvino" if to == "openvino" else "torch")
    weights = {name: machine[name] for name in ("checkpoint", "allow_download") if name in machine}
    saved = read_model(path, **weights)
    model = decided(saved, with_head(saved))
    from featx.classifier.graph import ModelGraph, expected_proba, metadata

    graph = ModelGraph(saved, model, machine)
    expected = expected_proba(model, machine)
    described = metadata(model, graph.inputs)
    names = tuple(one.name for one in graph.inputs)
    if to == "openvino":
        files, found = _openvino(graph, names, described, os.fspath(target))
        difference = _compare(found, model, expected, to)
        for name, data in files.items():
            atomic_write(name, data)
        return _written(list(files), names, difference)
    content = _onnx(graph, names)
    feeds = [dict(zip(names, graph.examples(), strict=True))]
    if resizing:
        from featx.classifier.resizing import PHOTO, add_resizing

        content = add_resizing(content, graph.inputs, described)
        names = (PHOTO,)
        feeds = [{PHOTO: picture} for picture in golden_pictures()]
    content = _described(content, described)
    difference = _compare(_run_onnx(content, feeds), model, expected, to)
    atomic_write(target, content)
    return _written([os.fspath(target)], names, difference)


def _onnx(graph: Any, names: Sequence[str]) -> Any:
    """The graph as an ONNX model, without names of files and stack traces."""
    import torch

    from featx.finetune.export import strip_private

    batches = [torch.from_numpy(batch) for batch in graph.examples()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about the exporter's internals
        program: Any = torch.onnx.export(
            graph,
            tuple(batches),
            input_names=list(names),
            output_names=OUTPUTS,
            dynamic_shapes={"images": tuple({0: torch.export.Dim("n", min=1)} for _ in batches)},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    proto = program.model_proto  # made anew at each access
    strip_private(proto)
    return proto


def _described(proto: Any, described: Mapping[str, str]) -> bytes:
    """Bytes of an ONNX model with metadata."""
    import onnx

    onnx.helper.set_model_props(proto, dict(described))
    return bytes(proto.SerializeToString())


def _run_onnx(content: bytes, feeds: Sequence[Mapping[str, NDArray[np.uint8]]]) -> list[NDArray[Any]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = [session.run(OUTPUTS, dict(feed)) for feed in feeds]
    return [np.concatenate(rows) for rows in zip(*found, strict=True)]


def _openvino(
    graph: Any, names: Sequence[str], described: Mapping[str, str], target: str
) -> tuple[dict[str, bytes], list[NDArray[Any]]]:
    """The graph and its constants as OpenVINO writes them, and what they give for the synthetic images."""
    from featx.backbones.runtimes.openvino import import_openvino, trace

    openvino = import_openvino()
    batches = graph.examples()
    traced = trace(graph, batches)
    for own, name in zip(traced.inputs, names, strict=True):
        own.get_tensor().set_names({name})
        own.get_node().set_friendly_name(name)
    for own, name in zip(traced.outputs, OUTPUTS, strict=True):
        own.get_tensor().set_names({name})
    for name, text in described.items():
        traced.set_rt_info(text, ["featx", name])
    constants = os.path.splitext(target)[0] + ".bin"
    with tempfile.TemporaryDirectory() as folder:
        files = {target: Path(folder, "model.xml"), constants: Path(folder, "model.bin")}
        openvino.serialize(traced, *files.values())
        compiled = openvino.Core().compile_model(
            str(files[target]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        found = compiled(dict(zip(names, batches, strict=True)))
        return {name: path.read_bytes() for name, path in files.items()}, [found[name] for name in OUTPUTS]


def _compare(
    found: Sequence[NDArray[Any]], model: ImageModel, expected: NDArray[np.float64], to: str
) -> float:
    """Largest difference of a probability from featx's own.

    Raises
    ------
    FeatxError
        If it is too large, or a label is another one although no other is as probable.
    """
    proba, label = found
    difference = float(np.abs(proba - expected).max())
    shares = model.decision.shares(expected)
    lost = shares.max(axis=1) - shares[np.arange(len(shares)), label]
    if not (difference <= TOLERANCE[to] and lost.max() <= 2 * TOLERANCE[to]):
        raise FeatxError(
            f"the graph's probabilities differ from featx's by {difference:.2g} (allowed {TOLERANCE[to]:g}); "
            "nothing was written. Use --to featx, or fit with another head."
        )
    return difference


def _require(*packages: str) -> None:
    for name in packages:
        if find_spec(name) is None:
            package = "'featx[onnx]'" if name.startswith("onnx") else name
            raise UsageError(f"{name} is not installed: pip install {package}.")


def _written(files: Sequence[str], inputs: tuple[str, ...], difference: float) -> Exported:
    return Exported(tuple(files), inputs, difference, sum(os.path.getsize(name) for name in files))
