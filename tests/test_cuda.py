"""What must hold on a GPU as it does on a processor; run by `make test-all` where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classifiers import image_classifier
from tinted import pictures

from featx import load
from featx.backbones.runtimes import resolve_device, resolve_precision
from featx.extractor import FeatureExtractor
from featx.finetune import FineTunedNetwork, FineTuner, Phase
from featx.finetune.scratch import ScratchClassifier
from featx.stores.memory import MemoryStore

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TINY: dict[str, Any] = {"pretrained": False, "input_size": 64}
STEPS = (Phase(trainable="head", epochs=1), Phase(epochs=3, batch_size=16, lr=1e-3, warmup=0))


@pytest.fixture(autouse=True)
def memory_of_the_test() -> Any:
    """What one test leaves on the card, or forbids, must not reach the next."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_auto_is_the_gpu_in_half_precision() -> None:
    assert resolve_device("auto") == "cuda"
    assert resolve_precision("auto", "cuda") in {"bf16", "fp16"}
    assert resolve_device("auto", "openvino") == "cpu"  # which is all that this runtime serves


def test_rows_of_both_devices_share_a_space_and_agree(tmp_path: Path) -> None:
    x, _ = pictures(24)
    settings = {"cut": ["layer2", "last"], "pool": ["avg", "grid2"], "precision": "fp32", **TINY}
    here = FeatureExtractor("test_resnet", device="cpu", runtime="torch", store=MemoryStore(), **settings)
    there = FeatureExtractor("test_resnet", device="cuda", store=tmp_path, **settings)
    right, rows = here.fit_transform(x), there.fit_transform(x)
    assert np.abs(rows - right).max() < 2e-3 * np.abs(right).max()
    again = FeatureExtractor(
        "test_resnet", device="cpu", runtime="torch", store=tmp_path, **settings
    ).extract(x)
    assert again.computed == 0


def test_a_batch_that_the_card_cannot_hold_is_halved_and_no_image_is_lost() -> None:
    rng = np.random.default_rng(0)
    x = [rng.integers(0, 256, (224, 224, 3), dtype=np.uint8) for _ in range(256)]
    settings = {"pretrained": False, "precision": "fp32", "device": "cuda", "store": "memory"}
    right = FeatureExtractor("resnet18", batch_size=8, **settings).fit_transform(x)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((700 << 20) / total)  # 256 pictures need 822 MB a layer
    result = FeatureExtractor("resnet18", batch_size=256, **settings).extract(x)
    assert result.computed == 256
    assert result.batch_size < 256
    assert np.abs(result.blocks["last:avg:crop"] - right).max() < 1e-2 * np.abs(right).max()


@pytest.mark.parametrize(("unfreeze", "precision"), [(1, "fp32"), (1, "bf16"), (1, "fp16"), ("all", "bf16")])
def test_a_network_fine_tuned_on_the_card_answers_alike_on_the_processor(
    unfreeze: int | str, precision: str
) -> None:
    x, y = pictures()
    there = FeatureExtractor("test_resnet", device="cuda", store="memory", precision="fp32", **TINY)
    tuner = FineTuner(
        there, unfreeze=unfreeze, phases=STEPS, precision=precision, validation=0, verdict=0, random_state=0
    ).fit(x, y)
    assert tuner.score(x, y) == 1.0
    assert all(np.isfinite(epoch["loss"]) for epoch in tuner.history_)
    fresh, _ = pictures(20, seed=9)
    here = FineTunedNetwork.from_members(tuner.network_.to_members(), device="cpu")
    assert np.allclose(here.predict_proba(fresh), tuner.predict_proba(fresh), atol=0.02)


def test_a_model_fitted_on_the_card_is_loaded_without_one(class_folders: Path, tmp_path: Path) -> None:
    clf = image_classifier("test_resnet", device="cuda", n_trials=2, random_state=0, **TINY).fit(
        class_folders
    )
    clf.save(tmp_path / "model.featx")
    here = load(tmp_path / "model.featx").set_params(device="cpu")
    photos = sorted(str(path) for path in class_folders.rglob("*.png"))
    assert np.allclose(here.predict_proba(photos), clf.predict_proba(photos), atol=0.02)


def test_a_net_from_scratch_learns_on_the_card() -> None:
    x, y = pictures(80)
    net = ScratchClassifier("tiny", epochs=15, device="cuda", random_state=0).fit(x, y)
    assert net.score(x, y) > 0.9


def test_all_cards_share_the_images_and_give_the_features_of_one() -> None:
    x, _ = pictures(64)
    settings = {"pretrained": False, "precision": "fp32", "store": "memory"}
    alone = FeatureExtractor("test_resnet", device="cuda", **settings).fit_transform(x)
    shared = FeatureExtractor("test_resnet", device="all", batch_size=8, **settings).fit_transform(x)
    assert np.abs(shared - alone).max() < 2e-3 * np.abs(alone).max()
