"""Several devices share the images of an extraction.

Two logical devices of the processor stand for two GPUs.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tinted import pictures

from featx import FeatureExtractor
from featx.backbones import load_backbone
from featx.backbones.runtimes import resolve_device, resolve_devices
from featx.exceptions import UsageError
from featx.extractor.forward import Engine

TINY: dict[str, Any] = {"pretrained": False, "input_size": 64, "precision": "fp32", "store": "memory"}


def test_devices_are_named_one_by_one_or_all_together() -> None:
    assert resolve_devices("cpu:0, cpu:1") == ("cpu:0", "cpu:1")
    assert resolve_devices("cpu") == ("cpu",)
    assert resolve_devices("all", "openvino") == ("cpu",)
    assert resolve_device("cpu:0,cpu:1") == "cpu:0"


@pytest.mark.parametrize(
    ("name", "message"),
    [("cpu,cpu", "twice"), ("cpu:0,tpu:1", "not known"), ("cpu:0,", "not known"), ("", "not known")],
)
def test_devices_that_cannot_share_are_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FeatureExtractor("test_resnet", device=name, **TINY).fit()


def test_two_devices_share_the_images_and_give_the_features_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = pictures(64)
    settings = {"runtime": "torch", "cut": ["layer2", "last"], "pool": ["avg", "grid2"], **TINY}
    alone = FeatureExtractor("test_resnet", device="cpu", **settings).fit_transform(x)
    images: dict[str, int] = {}
    compiled = Engine.compiled

    def counted(engine: Engine, *arguments: Any) -> Any:
        run = compiled(engine, *arguments)

        def call(batch: Any) -> Any:
            images[engine.device] = images.get(engine.device, 0) + len(batch)
            return run(batch)

        call.name = run.name  # type: ignore[attr-defined]
        return call

    monkeypatch.setattr(Engine, "compiled", counted)
    both = FeatureExtractor("test_resnet", device="cpu:0,cpu:1", batch_size=4, n_jobs=2, **settings)
    np.testing.assert_allclose(both.fit_transform(x), alone, rtol=1e-4, atol=1e-5)
    assert images.keys() == {"cpu:0", "cpu:1"}
    assert sum(images.values()) == 64


def test_each_of_many_devices_compiles_its_network_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = pictures(64)
    made: list[str] = []
    compile_ = Engine._compile
    monkeypatch.setattr(
        Engine, "_compile", lambda engine, *a: made.append(engine.device) or compile_(engine, *a)
    )
    names = [f"cpu:{number}" for number in range(5)]
    FeatureExtractor(
        "test_resnet", device=",".join(names), batch_size=2, n_jobs=5, runtime="torch", **TINY
    ).fit_transform(x)
    assert len(made) == len(set(made)) >= 2


def test_a_network_of_the_caller_is_copied_to_each_device_and_stays_where_it_is() -> None:
    x, _ = pictures(16)
    backbone = load_backbone("test_resnet", pretrained=False, device="cpu")
    before = {name: value.clone() for name, value in backbone.module.state_dict().items()}
    settings = {"runtime": "torch", **{name: value for name, value in TINY.items() if name != "pretrained"}}
    alone = FeatureExtractor(backbone, device="cpu", **settings).fit_transform(x)
    both = FeatureExtractor(backbone, device="cpu:0,cpu:1", batch_size=2, **settings).fit_transform(x)
    np.testing.assert_allclose(both, alone, rtol=1e-4, atol=1e-5)
    assert all((before[name] == value).all() for name, value in backbone.module.state_dict().items())


def test_random_networks_that_threads_make_at_once_are_those_of_their_seeds() -> None:
    def weights(seed: int) -> str:
        return load_backbone("test_resnet", pretrained=False, seed=seed, device="cpu").card.weights

    alone = [weights(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert list(pool.map(weights, range(4))) == alone
