"""A saved model predicts without torch, timm, Optuna and scikit-learn, and as the loaded classifier does."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import image_classifier

import featx
from featx.backbones.state import STATE
from featx.classifier.embedding import embed_networks
from featx.classifier.reading import GRAPH_MEMBER
from featx.cli import main
from featx.exceptions import BackboneError, ImageError, ModelFileError, UsageError
from featx.files import MODEL_KIND, MODEL_MEMBERS, read_archive, write_archive
from featx.modelfile import dump_arrays, read_arrays

pytest.importorskip("openvino", reason="pip install openvino")

TINY: dict[str, Any] = {
    "backbone": "test_resnet", "pretrained": False, "cut": ["layer2", "last"], "pool": "avg",
    "resize": "crop", "n_trials": 2, "cv": 2, "random_state": 0, "precision": "fp32",
}  # fmt: skip
HEAVY = ("torch", "timm", "torchvision", "optuna", "sklearn", "scipy", "pandas", "matplotlib")


def fit(folder: Path, path: Path, **params: Any) -> Path:
    STATE.release_networks()  # those of other tests are in other caches
    return image_classifier(**{**TINY, **params}).fit(folder).save(path)


@pytest.fixture
def images(class_folders: Path) -> list[str]:
    return [str(path) for path in sorted(class_folders.rglob("*.png"))][::3]


@pytest.fixture
def model(class_folders: Path, tmp_path: Path) -> Path:
    return fit(class_folders, tmp_path / "pets.featx", heads=["logistic"])


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""


def run(code: str, *arguments: Any, blocked: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run Python in a process where some packages cannot be imported."""
    command = [sys.executable, "-c", BLOCK.format(blocked) + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


PREDICT = """
import featx
model = featx.load(sys.argv[1], runtime="openvino")
print(*model.predict(sys.argv[2:]), model.predict_proba(sys.argv[2:]).max())
"""


def test_a_process_that_predicts_loads_nothing_that_only_fits(model: Path, images: list[str]) -> None:
    code = f"assert not set({HEAVY}) & set(sys.modules), sorted(sys.modules)"
    done = run(PREDICT + code, model, *images)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[: len(images)] == featx.load(model).predict(images).tolist()


def test_the_classifier_predicts_without_torch_where_the_network_was_converted(
    model: Path, images: list[str]
) -> None:
    done = run(
        "import featx\nfeatx.load(sys.argv[1]).predict(sys.argv[2:])\n"
        "assert not {'torch', 'timm', 'optuna'} & set(sys.modules)",
        model,
        *images,
    )
    assert done.returncode == 0, done.stderr


def test_featx_predict_loads_nothing_that_only_fits(model: Path, images: list[str]) -> None:
    done = run(
        "from featx.cli import main\nassert main(['predict', *sys.argv[1:]]) == 0\n"
        f"assert not set({HEAVY}) & set(sys.modules), sorted(sys.modules)",
        model,
        *images,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 + len(images)


def test_a_file_with_its_network_predicts_where_torch_is_not_installed(
    model: Path, images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "served.featx"
    assert set(embed_networks(model, served)) == {featx.load(model).card_.weights}
    monkeypatch.setenv("FEATX_CACHE", str(tmp_path / "new machine"))
    blocked = ("torch", "timm", "torchvision", "optuna", "sklearn")
    done = run(PREDICT, served, *images, blocked=blocked)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[: len(images)] == featx.load(model).predict(images).tolist()
    converted = list((tmp_path / "new machine").rglob("*.openvino"))
    assert converted == []  # what a file says is not taken for what this machine converted


def test_without_torch_and_network_the_message_says_what_to_do(
    model: Path, images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATX_CACHE", str(tmp_path / "new machine"))
    done = run(PREDICT, model, *images, blocked=("torch", "timm"))
    assert "featx export MODEL --to featx" in done.stderr
    assert BackboneError.__name__ in done.stderr


@pytest.mark.parametrize(
    "params",
    [
        {"heads": ["rbf_svm"]},
        {"heads": ["knn"], "cut": "last", "resize": ["squash"]},
        {"heads": ["tree"], "class_weight": "balanced"},
        {"heads": ["ridge"], "pool": ["avg", "max"], "decide": {"red": 40.0}},
    ],
    ids=["svm", "knn", "tree", "costs"],
)
def test_it_predicts_as_the_loaded_classifier(
    params: dict[str, Any], class_folders: Path, images: list[str], tmp_path: Path
) -> None:
    path = fit(class_folders, tmp_path / "pets.featx", **params)
    full, light = featx.load(path), featx.load(path, runtime="openvino")
    np.testing.assert_allclose(light.predict_proba(images), full.predict_proba(images), atol=1e-4)
    assert light.predict(images).tolist() == full.predict(images).tolist()
    assert light.predict(images, decide="argmax").tolist() == full.predict(images, decide="argmax").tolist()
    assert light.predict_sets(images[:2]) == full.predict_sets(images[:2])


def test_it_takes_paths_bytes_pictures_and_arrays(model: Path, images: list[str]) -> None:
    from PIL import Image

    light = featx.load(model, runtime="openvino")
    picture = Image.open(images[0])
    forms = [images[0], Path(images[0]).read_bytes(), picture, np.asarray(picture)]
    rows = light.predict_proba(forms)
    assert np.ptp(rows, axis=0).max() == 0
    with pytest.raises(ImageError, match="absent"):
        light.predict([images[0], "absent.png"])


def test_threads_share_one_and_get_their_own_answers(model: Path, images: list[str]) -> None:
    light = featx.load(model, runtime="openvino")
    expected, found = light.predict_proba(images), {}

    def work(number: int) -> None:
        found[number] = light.predict_proba([images[number]])[0]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose([found[number] for number in range(len(images))], expected, rtol=1e-12)


@pytest.fixture(scope="module")
def with_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file with its network inside."""
    folder = tmp_path_factory.mktemp("with network")
    tints = np.repeat([[200, 40, 40], [40, 40, 200]], 8, axis=0)
    noise = np.random.default_rng(0).integers(0, 40, (16, 64, 64, 3))
    pictures = list((noise + tints[:, None, None]).astype(np.uint8))
    clf = image_classifier(**TINY | {"heads": ["ridge"], "cut": "last", "store": folder / "cache"})
    path = clf.fit(pictures, np.repeat(["red", "blue"], 8)).save(folder / "pets.featx")
    embed_networks(path, path, store=folder / "cache")
    return path


def forged(path: Path, change: Any) -> Path:
    archive = read_archive(path, kind=MODEL_KIND, allowed=MODEL_MEMBERS, max_format=1)
    graphs = {name: bytes(own) for name, own in read_arrays(archive.members[GRAPH_MEMBER]).items()}
    changed = {name: np.frombuffer(content, np.uint8) for name, content in change(graphs).items()}
    members = {**archive.members, GRAPH_MEMBER: dump_arrays(changed)}
    write_archive(path, members, kind=MODEL_KIND, format=1)
    return path


def xml(old: bytes, new: bytes) -> Any:
    def change(graphs: dict[str, bytes]) -> dict[str, bytes]:
        ((name, content),) = graphs.items()
        end = 8 + int.from_bytes(content[:8], "little")
        text = content[8:end].replace(old, new)
        assert text != content[8:end]
        return {name: len(text).to_bytes(8, "little") + text + content[end:]}

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda graphs: {"0" * 64: b"x" * 99}, "not of this model"),
        (lambda graphs: dict.fromkeys(graphs, b"x" * 99), "truncated"),
        (lambda graphs: {name: own[:-5000] for name, own in graphs.items()}, "cannot be used"),
        (xml(b"<?xml", b"<!DOCTYPE a [<!ENTITY b 'b'>]><?xml"), "document type"),
        (xml(b'type="ReLU"', b'type="Assign"'), "cannot be used|operation"),
        (xml(b'version="opset1"', b'version="extension"'), "cannot be used|operation"),
        (xml(b'element_type="u8"', b'element_type="f32"'), "an input other than images|cannot be used"),
        (xml(b"last:avg:normed", b"other:avg:normed"), "does not give the features"),
    ],
)
def test_a_forged_network_is_refused_in_a_sentence(
    change: Any, words: str, with_network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = forged(shutil.copy(with_network, tmp_path / "pets.featx"), change)
    monkeypatch.setenv("FEATX_CACHE", str(tmp_path / "new machine"))
    with pytest.raises(ModelFileError, match=words):
        featx.load(path, runtime="openvino").predict([np.zeros((64, 64, 3), np.uint8)])


def test_a_network_inside_must_be_named_as_a_model_file(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.featx"):
        embed_networks(model, tmp_path / "pets.zip")


def test_predictions_of_the_command_follow_its_decision(
    model: Path, images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(model), *images, "--decide", "red=1000"]) == 0
    assert {line.split(",")[1] for line in capsys.readouterr().out.splitlines()[1:]} == {"red"}
