"""A converted network inside a model file: checked as what a stranger wrote, before OpenVINO compiles it.

The bytes are those of `serialise`: the length of the XML, the XML, the constants. OpenVINO parses them in
native code, and a graph may need any amount of memory and time. So what can be checked without running it
is checked: sizes, kinds of operations, inputs, outputs, and the shape of every tensor.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from featx.exceptions import ModelFileError
from featx.spec import FeatureSpec

MAX_XML_BYTES = 32 << 20
MAX_NODES = 50_000
MAX_TENSOR_BYTES = 2 << 30
"""Most bytes of one tensor for one image."""

FORBIDDEN = ("If", "Loop", "TensorIterator", "ReadValue", "Assign", "While")
"""Operations with graphs or variables of their own. No network of timm is converted to one of them."""

OPSET = re.compile(r"opset\d{1,3}")


def check_graph(content: bytes) -> None:
    """Check the frame of a graph before it is parsed.

    Raises
    ------
    ModelFileError
        If it is cut short, its XML is too large, or it has a document type (which can define entities).
    """
    end = 8 + int.from_bytes(content[:8], "little")
    if len(content) < 8 or end > len(content) or end > MAX_XML_BYTES:
        raise ModelFileError("the converted network in the file is truncated, or too large")
    if b"<!" in content[8:end]:
        raise ModelFileError("the converted network in the file has a document type or a comment")


def check_model(model: Any, specs: Sequence[FeatureSpec], names: Sequence[str]) -> None:
    """Check a parsed graph: its operations, its input, and the outputs that are wanted.

    Parameters
    ----------
    model : openvino.Model
        The input is made static for one image by the caller.
    specs : sequence of FeatureSpec
        Of the outputs.
    names : sequence of str
        Names of these outputs.

    Raises
    ------
    ModelFileError
        Saying what does not fit.
    """
    height, width = specs[0].input_size
    inputs = model.inputs
    if len(inputs) != 1 or inputs[0].element_type.to_string() != "u8":
        raise ModelFileError("the converted network in the file has an input other than images")
    if list(inputs[0].partial_shape.to_shape()) != [1, height, width, 3]:
        raise ModelFileError(f"the converted network in the file is not for images of {height} x {width}")
    nodes = model.get_ordered_ops()
    if len(nodes) > MAX_NODES:
        raise ModelFileError(f"the converted network in the file has {len(nodes):,} operations")
    for node in nodes:
        kind = node.get_type_info()
        if kind.name in FORBIDDEN or not OPSET.fullmatch(str(kind.version_id)):
            raise ModelFileError(f"the converted network in the file has the operation {kind.name[:40]!a}")
        for output in node.outputs():
            shape = output.partial_shape
            if shape.is_dynamic:
                raise ModelFileError("the converted network in the file has a tensor of unknown size")
            if math.prod(shape.to_shape()) * max(1, output.element_type.size) > MAX_TENSOR_BYTES:
                raise ModelFileError("the converted network in the file has a tensor that is too large")
    known = {name for output in model.outputs for name in output.names}
    if not set(names) <= known:
        raise ModelFileError("the converted network in the file does not give the features of its model")
