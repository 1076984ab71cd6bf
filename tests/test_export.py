"""A model as one graph gives featx's probabilities and labels, and is refused where it cannot."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_serving import TINY, fit

import featx
from featx.backbones.transform import prepare
from featx.classifier.exporting import export_model
from featx.cli import main
from featx.exceptions import UsageError
from featx.images import golden_pictures

pytest.importorskip("openvino", reason="pip install openvino")
pytest.importorskip("torch", reason="pip install torch")

ROOT = Path(__file__).resolve().parents[1]


def needs_onnx() -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="pip install 'featx[onnx]'")


def inputs_of(path: Path, pictures: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Inputs of the graph of a model, as its metadata describe them."""
    specs = {spec.resize: spec for spec in featx.load(path).specs_.values()}
    if len(specs) == 1:
        return {"images": np.stack([prepare(one, *specs.values()) for one in pictures])}
    return {f"images_{name}": np.stack([prepare(one, s) for one in pictures]) for name, s in specs.items()}


HEADS: list[Any] = [
    ("logistic", {"cut": ["layer2", "last"], "pool": ["avg", "grid2"]}),
    ("rbf_svm", {"decide": {"red": 30.0}}),
    ("tree", {"class_weight": "balanced"}),
    pytest.param("knn", {"resize": ["squash", "crop"]}, marks=pytest.mark.slow),
    pytest.param("lda", {}, marks=pytest.mark.slow),
    pytest.param("nearest_mean", {}, marks=pytest.mark.slow),
]
"""The formulas of all heads are compared in `test_heads_formulas`; ONNX has the others of these."""


@pytest.mark.parametrize(("head", "params"), HEADS)
def test_an_openvino_graph_predicts_as_featx(
    head: str, params: dict[str, Any], class_folders: Path, tmp_path: Path
) -> None:
    import openvino

    path = fit(class_folders, tmp_path / "pets.featx", heads=[head], **{"cut": "last", **params})
    done = export_model(path, tmp_path / "pets.xml", "openvino")
    assert {os.path.basename(name) for name in done.files} == {"pets.xml", "pets.bin"}
    pictures = [np.asarray(Image.open(name)) for name in sorted(class_folders.rglob("*.png"))[::4]]
    compiled = openvino.Core().compile_model(
        tmp_path / "pets.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    proba, label = compiled(inputs_of(path, pictures)).values()
    clf = featx.load(path)
    np.testing.assert_allclose(proba, clf.predict_proba(pictures), atol=5e-3)
    assert clf.classes_[label].tolist() == clf.predict(pictures).tolist()


def test_an_onnx_graph_is_run_by_the_script_of_the_docs(class_folders: Path, tmp_path: Path) -> None:
    needs_onnx()
    path = fit(class_folders, tmp_path / "pets.featx", heads=["knn"], cut="last")
    assert main(["export", str(path), "--to", "onnx", "-o", str(tmp_path / "pets.onnx")]) == 0
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    (script,) = (code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "onnxruntime" in code)
    assert len(script.splitlines()) <= 16
    block = "import sys\nfor name in ('featx', 'torch', 'sklearn', 'openvino'): sys.modules[name] = None\n"
    images = sorted(class_folders.rglob("*.png"))[::6]
    done = subprocess.run(
        [sys.executable, "-c", block + script, str(tmp_path / "pets.onnx"), *map(str, images)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    labels = [line.split()[1] for line in done.stdout.splitlines()]
    assert labels == featx.load(path).predict(images).tolist()


def test_a_graph_with_resizing_takes_photos_and_tells_nothing_of_this_machine(
    class_folders: Path, tmp_path: Path
) -> None:
    needs_onnx()
    import onnx
    import onnxruntime

    path = fit(class_folders, tmp_path / "pets.featx", heads=["ridge"], resize=["crop", "squash"])
    target = tmp_path / "pets.onnx"
    done = export_model(path, target, "onnx", resizing=True)
    assert done.inputs == ("photo",)
    session = onnxruntime.InferenceSession(str(target))
    clf = featx.load(path)
    for size in ((300, 211), (60, 301), (224, 224)):
        picture = np.asarray(Image.fromarray(golden_pictures()[0]).resize(size))
        proba, _ = session.run(None, {"photo": picture})
        np.testing.assert_allclose(proba, clf.predict_proba([picture]), atol=5e-3)
    content = target.read_bytes()
    private = [str(Path.home()), os.getcwd(), str(ROOT), tempfile.gettempdir(), os.path.dirname(os.__file__)]
    private += [value for value in os.environ.values() if len(value) >= 8]
    private += ["File ", "line ", ".py", "site-packages", "stack_trace"]
    assert [text for text in private if len(text) > 1 and text.encode() in content] == []
    found = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
    assert json.loads(found["classes"]) == ["blue", "red"]
    assert json.loads(found["decision"])["weights"] == [1.0, 1.0]
    assert json.loads(found["threshold"]) == 0.5


@pytest.mark.parametrize("size", [(500, 374), (96, 96), (97, 400), (1200, 800)])
@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_resizing_in_the_graph_is_that_of_featx_within_a_level(size: tuple[int, int], resize: str) -> None:
    needs_onnx()
    import onnxruntime
    from onnx import TensorProto, helper

    from featx.classifier.graph import GraphInput
    from featx.classifier.resizing import add_resizing
    from featx.spec import FeatureSpec

    spec = FeatureSpec(
        architecture="any", weights="0" * 64, input_size=(224, 224), crop_pct=0.875, resize=resize,
        interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3, decoder="pillow",
    )  # fmt: skip
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 224, 224, 3])
    same = helper.make_tensor_value_info("same", TensorProto.UINT8, ["n", 224, 224, 3])
    nodes = [helper.make_node("Identity", ["images"], ["same"])]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", [images], [same]), opset_imports=[helper.make_opsetid("", 18)]
    )
    proto.ir_version = 9
    proto = add_resizing(proto, [GraphInput("images", spec)], {})
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    rng = np.random.default_rng(0)
    picture = np.asarray(Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize(size))
    (found,) = session.run(None, {"photo": picture})
    difference = np.abs(found[0].astype(int) - prepare(picture, spec))
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.01
    assert (difference > 1).mean() < 1e-4


def test_a_model_file_with_its_network_is_written_by_the_command(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fit(class_folders, tmp_path / "pets.featx", heads=["ridge"], cut="last")
    assert main(["export", str(path), "--to", "featx", "-o", str(tmp_path / "served.featx")]) == 0
    assert "served.featx" in capsys.readouterr().out
    assert (tmp_path / "served.featx").stat().st_size > path.stat().st_size
    assert list(featx.load(tmp_path / "served.featx").model_.graphs) == [featx.load(path).card_.weights]


@pytest.mark.parametrize(
    ("target", "to", "resizing", "words"),
    [
        ("pets.xml", "onnx", False, r"ending \.onnx"),
        ("pets.onnx", "tflite", False, "choose one of onnx, openvino, featx"),
        ("pets.xml", "openvino", True, "resizing is for --to onnx"),
    ],
)
def test_what_cannot_be_written_is_refused(
    target: str, to: str, resizing: bool, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        export_model(tmp_path / "absent.featx", tmp_path / target, to, resizing=resizing)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["logistic_ovr", "linear_svm", "rbf_svm", "knn", "forest", "boosting"])
def test_an_onnx_graph_of_three_classes_predicts_as_featx(head: str, tmp_path: Path) -> None:
    needs_onnx()
    import onnxruntime
    from classifiers import image_classifier

    rng = np.random.default_rng(0)
    tints = np.repeat([[200, 40, 40], [40, 40, 200], [40, 200, 40]], 10, axis=0)
    pictures = list((rng.integers(0, 40, (30, 64, 64, 3)) + tints[:, None, None]).astype(np.uint8))
    clf = image_classifier(**TINY | {"heads": [head], "cut": "last"})
    path = clf.fit(pictures, np.repeat(["r", "b", "g"], 10)).save(tmp_path / "three.featx")
    export_model(path, tmp_path / "three.onnx", "onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "three.onnx"))
    proba, label = session.run(None, inputs_of(path, pictures[::5]))
    np.testing.assert_allclose(proba, clf.predict_proba(pictures[::5]), atol=5e-3)
    assert clf.classes_[label].tolist() == clf.predict(pictures[::5]).tolist()
