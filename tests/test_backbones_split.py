"""Stem and tail: equal to the whole, in evaluation, in training and in what training leaves behind."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from networks import all_have_layers, backbone
from torch import Tensor, nn

from featx.backbones import load_backbone
from featx.backbones.network import Backbone
from featx.backbones.split import split_backbone
from featx.exceptions import UnknownTapError, UnsupportedCutError

TINY = (
    "test_resnet",
    "test_vit",
    "test_convnext",
    "test_efficientnet",
    pytest.param("test_nfnet", marks=all_have_layers),
    "test_byobnet",
    "test_mambaout",
)
FAMILIES = {
    "vgg16": 64,
    "inception_v3": 139,
    "resnet50": 64,
    "vit_small_patch14_dinov2": 56,
    "convnext_tiny": 64,
    "swin_tiny_patch4_window7_224": 56,
    "mobilenetv3_large_100": 64,
    "vit_small_patch16_dinov3": 64,
}
"""Input sizes small enough for a test, in pixels."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(count: int, size: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, size, size, 3), generator=generator, dtype=torch.uint8)


def features(network: nn.Module, x: Tensor) -> Tensor:
    return network.forward_head(network.forward_features(x), pre_logits=True)  # type: ignore[operator, no-any-return]


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def inner_cuts(net: Backbone) -> list[str]:
    """The shallowest, a middle and the deepest tap, and the final features."""
    names = [tap.name for tap in net.card.taps]
    return [names[0], names[len(names) // 2 - 1], names[-2], names[-1]]


def check_split(name: str, size: int | None, n_cuts: int = 4) -> None:
    net = backbone(name)
    for cut in inner_cuts(net)[:n_cuts]:
        stem, tail = split_backbone(net, cut, input_size=size)
        images = pictures(3, stem.input_size[0])
        with torch.no_grad():
            expected = features(net.sized(stem.input_size), stem.normalise(images))
            assert distance(tail(stem(images)[0]), expected) < 1e-4, cut


@pytest.mark.parametrize("name", TINY)
def test_the_tail_of_the_stem_is_the_network(name: str) -> None:
    check_split(name, None, n_cuts=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_deep_tails_are_the_network(name: str) -> None:
    check_split(name, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_splits(name: str) -> None:
    check_split(name, FAMILIES[name])


def test_the_tail_holds_the_layers_above_the_cut_under_timms_names_and_no_classifier() -> None:
    tail = split_backbone(backbone("test_resnet"), "layer2")[1]
    names = {name.split(".")[1] for name, _ in tail.named_parameters()}
    assert names == {"layer3", "layer4"}
    assert [point["module"] for point in tail.network.feature_info][:2] == ["act1", "layer1"]
    assert all(parameter.requires_grad for parameter in tail.parameters())


def test_the_tail_of_a_vit_holds_no_tokens_of_its_own() -> None:
    names = [name for name, _ in split_backbone(backbone("test_vit"), "blocks.3")[1].named_parameters()]
    assert all(name.startswith(("network.blocks.4", "network.blocks.5", "network.norm")) for name in names)


def test_training_the_tail_leaves_the_backbone_and_the_stem_alone() -> None:
    net = load_backbone("test_resnet", pretrained=False, seed=5, device="cpu")
    before = {name: tensor.clone() for name, tensor in net.module.state_dict().items()}
    stem, tail = split_backbone(net, "layer2")
    rows = stem(pictures(4, 160))[0]
    optimizer = torch.optim.SGD(tail.parameters(), lr=0.1)
    tail.train()(rows).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.module.state_dict().items())
    assert any(not torch.equal(one, before[name]) for name, one in tail.network.named_parameters())


def test_batch_statistics_move_as_in_the_whole_network() -> None:
    net = backbone("test_efficientnet")
    stem, tail = split_backbone(net, "blocks.2")
    whole = copy.deepcopy(net.module).train()
    for name in ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2"):
        whole.get_submodule(name).eval()
    images = pictures(4, 160)
    with torch.no_grad():
        expected = features(whole, stem.normalise(images))
        assert distance(tail.train()(stem(images)[0]), expected) < 1e-3
    statistics = dict(whole.named_buffers())
    moved = dict(tail.network.named_buffers())
    assert "blocks.4.0.bn1.running_var" in moved
    for name, buffer in moved.items():
        assert distance(buffer.float(), statistics[name].float()) < 1e-4, name


def test_a_tail_is_returned_as_it_was_before_its_proof() -> None:
    net = backbone("test_resnet")
    statistics = net.module.state_dict()
    tail = split_backbone(net, "layer2")[1]
    assert not tail.training
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in tail.network.named_buffers())


@all_have_layers
def test_rows_are_not_written_into_by_activations_in_place() -> None:
    stem, tail = split_backbone(backbone("test_nfnet"), "stages.1")
    rows = stem(pictures(2, 160))[0]
    before = rows.clone()
    tail(rows)
    assert torch.equal(rows, before)


def test_splitting_leaves_the_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    split_backbone(backbone("test_vit"), "blocks.1")
    assert torch.equal(torch.rand(1), expected)


def test_a_tail_is_copied_and_pickled() -> None:
    stem, tail = split_backbone(backbone("test_vit"), "blocks.1")
    rows = stem(pictures(2, 160))[0]
    for other in (copy.deepcopy(tail), pickle.loads(pickle.dumps(tail))):
        assert torch.equal(other(rows), tail(rows))


def test_an_unknown_cut_is_named() -> None:
    with pytest.raises(UnknownTapError, match="cut 'layer9' is not in test_resnet"):
        split_backbone(backbone("test_resnet"), "layer9")


@pytest.mark.parametrize(
    ("name", "cut", "why"),
    [
        pytest.param(  # position embeddings that no module adds
            "visformer_tiny", "stage1", "size of tensor", marks=all_have_layers
        ),
        pytest.param(  # and assertions of its own on the way
            "coat_lite_tiny", "serial_blocks1", "expected 4, got 3", marks=pytest.mark.slow
        ),
    ],
)
def test_where_no_cut_works_training_the_whole_network_is_named(name: str, cut: str, why: str) -> None:
    with pytest.raises(
        UnsupportedCutError, match=rf"cannot be split at {cut} .*{why}.*None of its cuts.*unfreeze='all'"
    ):
        split_backbone(backbone(name), cut)


@pytest.mark.slow
def test_a_tail_that_runs_but_gives_other_features_is_refused() -> None:
    """ConViT joins its class token between two blocks: the tail would join it again."""
    with pytest.raises(UnsupportedCutError, match=r"give other features than the whole.*'all'"):
        split_backbone(backbone("convit_tiny"), "blocks.0")
