"""A whole model file whose description was changed by someone who also wrote a fitting manifest."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import image_classifier
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import featx
from featx.cli import main
from featx.exceptions import (
    BackboneError,
    FeatxError,
    FeatxWarning,
    ModelFileError,
    WeightsNotFoundError,
)
from featx.files import MODEL_FORMAT, MODEL_KIND, MODEL_MEMBERS, read_archive, write_archive
from featx.modelfile import dump_arrays, read_arrays

Node = dict[str, Any]
PICTURE = np.zeros((40, 40, 3), np.uint8)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fitted and saved classifier of a tiny random network."""
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) // (1 + number % 2) for number in range(12)]
    fitted = image_classifier(
        "test_resnet.r160_in1k",
        pretrained=False,
        heads=["logistic"],
        n_trials=1,
        store="memory",
        runtime="torch",
    ).fit(pictures, ["a", "b"] * 6)
    return Path(fitted.save(tmp_path_factory.mktemp("model") / "good.featx"))


def rewrite(path: Path, target: Path, change: Callable[[Node], None]) -> Path:
    """The same file with a changed model.json and a manifest that fits: what an attacker can always make."""
    archive = read_archive(path, kind=MODEL_KIND, allowed=MODEL_MEMBERS, max_format=MODEL_FORMAT)
    model = json.loads(archive["model.json"])
    change(model)
    members = {**archive.members, "model.json": json.dumps(model).encode()}
    write_archive(target, members, kind=MODEL_KIND, format=MODEL_FORMAT)
    return target


STRANGE_NAMES = [
    "hf-hub:evil/model",
    "local-dir:/tmp/evil",
    "../../evil",
    "/etc/passwd",
    "x.featx",
    "",
    "a\0b",
    5,
]


@pytest.mark.parametrize("name", [*STRANGE_NAMES, None, [], ["resnet18", "local-dir:/tmp/evil"]])
def test_a_backbone_that_is_no_registered_name_is_never_loaded(
    classifier: Path, tmp_path: Path, name: Any
) -> None:
    def change(model: Node) -> None:
        card = model["model"]["cards"][0]
        model["params"]["backbone"] = card["name"] = card["architecture"] = name

    with pytest.raises(FeatxError):
        featx.load(rewrite(classifier, tmp_path / "x.featx", change)).predict(
            [np.zeros((40, 40, 3), np.uint8)]
        )


@pytest.mark.parametrize(("name", "dtype"), [("features", "f2"), ("features", "f8"), ("proba", "f4")])
def test_golden_features_of_another_type_are_refused(
    classifier: Path, tmp_path: Path, name: str, dtype: str
) -> None:
    archive = read_archive(classifier, kind=MODEL_KIND, allowed=MODEL_MEMBERS, max_format=MODEL_FORMAT)
    members = dict(archive.members)
    arrays = dict(read_arrays(members["golden.safetensors"]))
    members["golden.safetensors"] = dump_arrays({**arrays, name: arrays[name].astype(dtype)})
    write_archive(tmp_path / "x.featx", members, kind=MODEL_KIND, format=MODEL_FORMAT)
    with pytest.raises(ModelFileError, match="has dtype"):
        featx.load(tmp_path / "x.featx")


NUMPY_2 = pytest.mark.skipif(np.__version__ < "2", reason="NumPy 1 accepts the width, which is not used")


@pytest.mark.parametrize(
    "dtype",
    ["|V9999999999", pytest.param("<U9999999999", marks=NUMPY_2), "<M8[s]", "evil", "<f8,<i4", 3, None],
)
def test_classes_of_a_strange_type_are_refused(classifier: Path, tmp_path: Path, dtype: Any) -> None:
    target = rewrite(
        classifier, tmp_path / "x.featx", lambda model: model["model"]["classes"].update(dtype=dtype)
    )
    with pytest.raises(ModelFileError):
        featx.load(target)


@pytest.mark.parametrize("values", [[], ["a"], ["a", "a"], ["a", "b", "c"], [["a"], ["b"]], "ab", None])
def test_classes_that_do_not_fit_the_head_are_refused(classifier: Path, tmp_path: Path, values: Any) -> None:
    target = rewrite(
        classifier, tmp_path / "x.featx", lambda model: model["model"]["classes"].update(values=values)
    )
    with pytest.raises(ModelFileError):
        featx.load(target)


@pytest.mark.parametrize("size", [[10**9, 10**9], [0, 0], [-1, 5], [1.5, 2], "ab", None])
def test_an_input_size_that_no_network_has_is_refused(classifier: Path, tmp_path: Path, size: Any) -> None:
    def change(model: Node) -> None:
        model["model"]["cards"][0]["input_size"] = model["params"]["extractor__input_size"] = size
        for spec in model["model"]["specs"].values():
            spec["input_size"] = size

    with pytest.raises(FeatxError):
        featx.load(rewrite(classifier, tmp_path / "x.featx", change)).predict(
            [np.zeros((40, 40, 3), np.uint8)]
        )


@pytest.mark.parametrize("size", [[8192, 8192], [2**22 + 1, 1], [2049, 2048], [10**18, 1]])
def test_an_input_size_of_too_many_pixels_is_refused_when_loading(
    classifier: Path, tmp_path: Path, size: Any
) -> None:
    def change(model: Node) -> None:
        for spec in model["model"]["specs"].values():
            spec["input_size"] = size

    with pytest.raises(ModelFileError, match="4,194,304 pixels"):
        featx.load(rewrite(classifier, tmp_path / "x.featx", change))


@pytest.mark.parametrize("parameters", [0, -1, 10**9, 10**18])
def test_too_many_random_weights_are_refused_when_loading(
    classifier: Path, tmp_path: Path, parameters: int
) -> None:
    def change(model: Node) -> None:
        model["model"]["cards"][0]["parameters"] = parameters

    with pytest.raises(ModelFileError, match="random weights; a model file can have 250,000,000"):
        featx.load(rewrite(classifier, tmp_path / "x.featx", change))


def test_a_large_network_under_a_small_number_of_random_weights_is_not_made(
    classifier: Path, tmp_path: Path
) -> None:
    def change(model: Node) -> None:
        model["model"]["cards"][0].update(name="vit_gigantic_patch14_224")
        model["params"]["backbone"] = "vit_gigantic_patch14_224"

    with pytest.raises(BackboneError, match=r"does not have the .* parameters of its card"):
        featx.load(rewrite(classifier, tmp_path / "x.featx", change)).predict([PICTURE])


def paths(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield above
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield from paths(below, (*above, key))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_change_of_the_description_is_refused_in_words_or_harmless(
    classifier: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    def change(model: Node) -> None:
        *above, key = data.draw(st.sampled_from([path for path in paths(model) if path]))
        owner: Any = model
        for step in above:
            owner = owner[step]
        odd = [None, -1, 0, 1e308, 10**30, "", "x", "../x", [], {}, [[]], {"a": 1}, True]
        owner[key] = data.draw(st.sampled_from(odd))

    target = tmp_path_factory.mktemp("fuzz") / "x.featx"
    with contextlib.suppress(ModelFileError), warnings.catch_warnings():
        warnings.simplefilter("ignore", FeatxWarning)  # of another scikit-learn: a word, and harmless
        featx.load(rewrite(classifier, target, change))


# The network of a stranger's file is not asked for on the hub


HUB_NAME = "resnet10t.c3_in1k"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Hosts that were asked for, on a machine that is online; none is reached."""
    hosts: list[Any] = []

    def refuse(host: Any, *more: Any, **options: Any) -> Any:
        hosts.append(host)
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    return hosts


@pytest.fixture
def from_the_hub(classifier: Path, tmp_path: Path) -> Path:
    """A file whose network is said to be one of the hub."""

    def change(model: Node) -> None:
        card = model["model"]["cards"][0]
        card.update(name=HUB_NAME, source="hub")
        model["params"].update(backbone=HUB_NAME, extractor__pretrained=True)

    target = rewrite(classifier, tmp_path / "hub.featx", change)
    archive = read_archive(target, kind=MODEL_KIND, allowed=MODEL_MEMBERS, max_format=MODEL_FORMAT)
    split = {name: array.copy() for name, array in read_arrays(archive["split.safetensors"]).items()}
    split["test"][:4] = 1  # `featx add` needs a test part
    sample = dict(read_arrays(archive["sample.safetensors"]))
    sample["rows"] = sample["rows"][:-4]  # of training images
    sample["distances"] = sample["distances"][:-4]
    members = {
        **archive.members,
        "split.safetensors": dump_arrays(split),
        "sample.safetensors": dump_arrays(sample),
    }
    write_archive(target, members, kind=MODEL_KIND, format=MODEL_FORMAT)
    return target


def test_a_model_asks_no_hub_unless_told_to(from_the_hub: Path, asked: list[Any], tmp_path: Path) -> None:
    clf = featx.load(from_the_hub)
    with pytest.raises(WeightsNotFoundError, match="allow_download=True"):
        clf.predict([PICTURE])
    with pytest.raises(WeightsNotFoundError, match="allow_download=True"):
        clf.fit([PICTURE, PICTURE + 1, PICTURE + 2, PICTURE + 3], list("abab"))
    Image.fromarray(PICTURE).save(tmp_path / "image.png")
    assert main(["predict", str(from_the_hub), str(tmp_path / "image.png")]) == 1
    assert asked == []
    with pytest.raises(WeightsNotFoundError, match="could not be downloaded"):
        featx.load(from_the_hub, allow_download=True).predict([PICTURE])
    assert asked == ["huggingface.co"]
    command = ["predict", str(from_the_hub), str(tmp_path / "image.png"), "--allow-download"]
    assert main(command) == 1
    assert len(asked) == 2


def test_evaluating_and_adding_ask_no_hub(
    from_the_hub: Path, asked: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in "ab":
        (tmp_path / "images" / label).mkdir(parents=True)
        Image.fromarray(PICTURE + ord(label)).save(tmp_path / "images" / label / "image.png")
    images = str(tmp_path / "images")
    assert main(["evaluate", str(from_the_hub), images]) == 1
    assert "allow it with --allow-download" in capsys.readouterr().err
    assert main(["add", str(from_the_hub), images, "--old", images]) != 0
    assert asked == []


def test_a_network_that_the_user_names_is_still_downloaded(asked: list[Any]) -> None:
    with pytest.raises(WeightsNotFoundError, match="could not be downloaded"):
        featx.FeatureExtractor(HUB_NAME, store="memory").fit()
    assert main(["download", HUB_NAME]) == 1
    assert len(asked) == 2
    with pytest.raises(WeightsNotFoundError, match="allow_download=True"):
        featx.FeatureExtractor(HUB_NAME, store="memory", allow_download=False).fit()
    assert len(asked) == 2


def test_a_file_cannot_allow_a_download(from_the_hub: Path, tmp_path: Path) -> None:
    change = lambda model: model["params"].update(extractor__allow_download=True)  # noqa: E731
    with pytest.raises(ModelFileError, match="unknown parameters extractor__allow_download"):
        featx.load(rewrite(from_the_hub, tmp_path / "x.featx", change))
