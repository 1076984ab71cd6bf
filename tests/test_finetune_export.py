"""An exported graph tells nothing of the machine that it was made on."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

import featx
from featx.backbones import load_backbone
from featx.evaluation import Calibration
from featx.images import resolve_decoder

for library in ("torch", "onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(library, reason="pip install 'featx[onnx]'")


@pytest.mark.slow
def test_an_exported_graph_has_no_path_trace_or_value_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    import torch

    from featx.finetune.export import export_onnx

    monkeypatch.setenv("FEATX_SECRET", "geheimes-wort")
    backbone = load_backbone("test_vit", pretrained=False, device="cpu")
    card, path = backbone.card, tmp_path / "net.onnx"
    torch.manual_seed(0)
    export_onnx(
        path,
        network=backbone.module,
        head=torch.nn.Linear(card.num_features, 3),
        card=card,
        spec=card.spec(decoder=resolve_decoder()),
        calibration=Calibration("temperature", 1.0, 0.0),
        classes=np.array(["a", "b", "c"]),
    )
    content = path.read_bytes()
    checkout = Path(featx.__file__).resolve().parents[1]
    private = [
        str(Path.home()),
        os.getcwd(),
        str(checkout),
        tempfile.gettempdir(),
        os.path.dirname(os.__file__),
    ]
    private += [value for value in os.environ.values() if len(value) >= 8]
    private += ["File ", "line ", ".py", "site-packages", "stack_trace"]
    assert [text for text in private if len(text) > 1 and text.encode() in content] == []
    model = onnx.load_from_string(content)
    assert {entry.key for entry in model.metadata_props} == {
        "classes", "input", "output", "preprocessing", "backbone",
    }  # fmt: skip
    assert not model.graph.doc_string
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
