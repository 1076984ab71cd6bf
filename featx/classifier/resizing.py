"""Resizing inside an ONNX graph: the input is one photo of any size instead of a batch of resized images.

ONNX's antialiased Resize (from opset 18) has the kernel of featx's, with weights of another rounding. In
onnxruntime fewer than one value in 100 differs by a grey level, and fewer than one in 10,000 by two, as
a test shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from featx.classifier.graph import GraphInput
from featx.exceptions import UsageError
from featx.spec import FeatureSpec

PHOTO = "photo"
MODES = {"bilinear": "linear", "bicubic": "cubic"}
"""ONNX's names of the antialiased resizes."""


def add_resizing(proto: Any, inputs: Sequence[GraphInput], described: dict[str, str]) -> Any:
    """Put the resizing before a graph; its one input is then a photo, shape (height, width, 3), uint8.

    Parameters
    ----------
    proto : onnx.ModelProto
        Changed.
    inputs : sequence of GraphInput
        The inputs of the graph.
    described : dict of str to str
        The metadata, changed.

    Raises
    ------
    UsageError
        If the model pads images, or its network has an input that is not square: their sizes are rounded as
        ONNX cannot.
    """
    graph = proto.graph
    parts = _Parts()
    for one in inputs:
        _check(one.spec)
        _add(parts, one)
    photo = helper.make_tensor_value_info(PHOTO, TensorProto.UINT8, ["height", "width", 3])
    del graph.input[:]
    graph.input.append(photo)
    graph.initializer.extend(parts.constants)
    nodes = [*parts.nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(proto)
    described["input"] = "one upright RGB photo of any size: uint8, (height, width, 3)"
    described["preprocessing"] = json.dumps("inside the graph")
    return proto


class _Parts:
    """Nodes and constants with names of their own."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        name = f"resizing_constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def __call__(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"resizing_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name


def _check(spec: FeatureSpec) -> None:
    height, width = spec.input_size
    if spec.resize == "pad" or (spec.resize == "crop" and height != width):
        raise UsageError(
            f"the model resizes images by {spec.resize!r} to {height} x {width}, which has no exact form in "
            "ONNX; export without --resizing, and resize as the metadata say."
        )
    if spec.interpolation not in MODES or spec.crop_pct > 1:
        raise UsageError(
            f"the interpolation {spec.interpolation!r} with crop_pct {spec.crop_pct} has no exact form in "
            "ONNX; export without --resizing, and resize as the metadata say."
        )


def _add(make: _Parts, one: GraphInput) -> None:
    """Add the resizing of one input: the resize, then the centre crop."""
    spec = one.spec
    sides = np.array(spec.input_size)
    target = [math.floor(side / spec.crop_pct) for side in spec.input_size]
    channels = make("Transpose", PHOTO, perm=[2, 0, 1])
    planes = make("Unsqueeze", channels, make.constant([0]))
    if spec.resize == "squash":
        size = make.constant(target)
    else:  # the shorter side to the target, the other in proportion, rounded down
        shape = make("Slice", make("Shape", PHOTO), make.constant([0]), make.constant([2]))
        shorter = make("ReduceMin", shape, keepdims=1)
        scaled = make("Div", make("Mul", shape, make.constant([target[0]])), shorter)
        size = make("Max", scaled, make.constant([1, 1]))
    whole = make("Concat", make.constant([1, 3]), size, axis=0)
    resized = make(
        "Resize", planes, "", "", whole,
        mode=MODES[spec.interpolation], antialias=1, cubic_coeff_a=-0.5,
        coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    margin = make("Cast", make("Sub", size, make.constant(sides)), to=TensorProto.FLOAT)
    start = make("Round", make("Mul", margin, make.constant(0.5, np.float32)))
    start = make("Cast", start, to=TensorProto.INT64)
    stop = make("Add", start, make.constant(sides))
    cropped = make("Slice", resized, start, stop, make.constant([2, 3]))
    make("Transpose", cropped, output=one.name, perm=[0, 2, 3, 1])
