"""Stems: what comes out at a cut, what was run for it, and what is held."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from networks import all_have_layers, backbone
from torch import Tensor, nn

from featx.backbones import load_backbone
from featx.backbones.network import Backbone, Stem
from featx.exceptions import BackboneError, UsageError
from featx.spec import FeatureSpec

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
    "inception_v3": 107,
    "resnet50": 64,
    "vit_small_patch14_dinov2": 56,
    "convnext_tiny": 64,
    "swin_tiny_patch4_window7_224": 56,
    "mobilenetv3_large_100": 64,
    "vit_small_patch16_dinov3": 64,
    "deit_tiny_distilled_patch16_224": 64,
}
"""Input sizes small enough for a test, in pixels."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pictures(count: int, height: int, width: int | None = None, seed: int = 0) -> Tensor:
    shape = (count, height, width or height, 3)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def run(stem: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    with torch.inference_mode():
        outputs: tuple[Tensor, ...] = stem(images)
    return outputs


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-5 * other.abs().max())


def every_spec(net: Backbone, size: int | None = None) -> list[FeatureSpec]:
    """All cuts with all poolings, with and without the final norm where it matters."""
    specs = {
        spec.key: spec
        for tap in net.card.taps
        for pool in net.card.pools(tap.name)
        for norm in (True, False)
        for spec in [net.card.spec(tap.name, pool, decoder="pillow", final_norm=norm, input_size=size)]
    }
    return list(specs.values())


def check_family(name: str, size: int | None) -> None:
    """One pass for everything gives what separate passes give, of the shapes that the card states."""
    net = backbone(name)
    specs = every_spec(net, size)
    stem = net.stem(specs)
    together = run(stem, pictures(2, stem.input_size[0]))
    for spec, features, shape in zip(specs, together, stem.shapes, strict=True):
        assert tuple(features.shape) == (2, *shape), spec.block
        assert features.dtype == torch.float32
        if spec.pool != "none" or spec.input_size == net.card.input_size:
            assert features[0].numel() == net.card.width(spec), spec.block
    for spec in specs[:: max(len(specs) // 9, 1)]:
        alone = run(net.stem([spec]), pictures(2, stem.input_size[0]))[0]
        assert close(alone, together[specs.index(spec)]), spec.block


@pytest.mark.parametrize("name", TINY)
def test_one_pass_for_all_cuts_and_pools_gives_what_separate_passes_give(name: str) -> None:
    check_family(name, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_families_of_networks_share_one_code_path(name: str) -> None:
    check_family(name, FAMILIES[name])


@pytest.mark.parametrize("name", TINY)
def test_the_last_cut_is_what_timm_gives_without_a_classifier(name: str) -> None:
    import timm

    net = backbone(name)
    reference = timm.create_model(name, num_classes=0).eval()
    reference.load_state_dict(net.module.state_dict(), strict=False)
    images = pictures(2, 160)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (net.card.mean, net.card.std))
    with torch.inference_mode():
        expected = reference((images.permute(0, 3, 1, 2) / 255 - mean) / std)
    assert close(run(net.stem([net.card.spec(decoder="pillow")]), images)[0], expected)


def modules_that_ran(stem: Stem, images: Tensor) -> set[str]:
    """Modules with parameters of their own whose forward was called."""
    ran: set[str] = set()

    def note(name: str) -> object:
        return lambda *_: ran.add(name)

    for name, module in stem.network.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_hook(note(name))
    run(stem, images)
    return ran


def test_blocks_above_the_cut_are_neither_run_nor_held() -> None:
    net = backbone("test_resnet")
    whole = modules_that_ran(net.stem([net.card.spec(decoder="pillow")]), pictures(1, 160))
    stem = net.stem([net.card.spec("layer2", decoder="pillow")])
    ran = modules_that_ran(stem, pictures(1, 160))
    assert ran == {name for name in whole if not name.startswith(("layer3", "layer4"))}
    held = {name.split(".")[0] for name, _ in stem.network.named_parameters()}
    assert held == {"conv1", "bn1", "layer1", "layer2"}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_stops_at_the_cut(name: str) -> None:
    net = backbone(name)
    size = FAMILIES[name]
    inner = [tap.name for tap in net.card.taps[:-1]]
    counts = []
    for cut in (inner[0], inner[len(inner) // 2], "last"):
        stem = net.stem([net.card.spec(cut, decoder="pillow", input_size=size)])
        ran = modules_that_ran(stem, pictures(1, size))
        held = {name.rpartition(".")[0] for name, _ in stem.network.named_parameters()}
        if cut != "last":  # beyond the run ones: a transformer's own tokens, and the norm that ends it
            assert held - ran <= {"", "norm"}
        counts.append(len(ran))
    assert counts[0] < counts[1] < counts[2]


def test_a_stem_frees_the_later_blocks_with_its_backbone() -> None:
    import gc
    import weakref

    net = load_backbone("test_resnet", pretrained=False, seed=77, device="cpu")
    later = weakref.ref(net.module.layer4[0])
    stem = net.stem([net.card.spec("layer2", decoder="pillow")])
    del net
    gc.collect()
    assert later() is None
    assert run(stem, pictures(1, 160))[0].shape == (1, 48)


def test_casting_a_stem_leaves_its_backbone_alone() -> None:
    net = backbone("test_resnet")
    spec = net.card.spec("layer2", decoder="pillow")
    stem = net.stem([spec])
    exact = run(stem, pictures(2, 160))[0]
    stem.network.bfloat16()
    rough = run(stem, pictures(2, 160))[0]
    assert {parameter.dtype for parameter in net.module.parameters()} == {torch.float32}
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.1 * exact.abs().max()
    assert close(run(net.stem([spec]), pictures(2, 160))[0], exact)


def test_a_row_does_not_depend_on_its_batch() -> None:
    net = backbone("test_vit")
    stem = net.stem(every_spec(net))
    images = pictures(5, 160)
    together = run(stem, images)
    alone = run(stem, images[3:4])
    for spec, many, one in zip(stem.specs, together, alone, strict=True):
        assert (many[3] - one[0]).abs().max() <= 1e-5 * many.abs().max(), spec.block


# Pooling, against NumPy


@pytest.fixture(scope="module")
def unpooled() -> np.ndarray:
    net = backbone("test_resnet")
    return run(net.stem([net.card.spec("layer2", "none", decoder="pillow")]), pictures(2, 160))[0].numpy()


def pooled(pool: str, name: str = "test_resnet", cut: str = "layer2", **options: bool) -> np.ndarray:
    net = backbone(name)
    stem = net.stem([net.card.spec(cut, pool, decoder="pillow", **options)])
    return run(stem, pictures(2, 160))[0].numpy()


def test_average_maximum_and_both(unpooled: np.ndarray) -> None:
    assert unpooled.shape == (2, 48, 20, 20)
    average, maximum = unpooled.mean((2, 3)), unpooled.max((2, 3))
    np.testing.assert_allclose(pooled("avg"), average, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(pooled("max"), maximum, rtol=1e-4)
    np.testing.assert_allclose(pooled("avg+max"), np.hstack([average, maximum]), rtol=1e-4, atol=1e-6)


def test_gem_is_the_third_root_of_the_mean_cube(unpooled: np.ndarray) -> None:
    expected = np.cbrt((np.maximum(unpooled, 1e-6).astype(float) ** 3).mean((2, 3)))
    np.testing.assert_allclose(pooled("gem"), expected, rtol=1e-4)


def test_a_grid_goes_channel_by_channel_then_row_by_row(unpooled: np.ndarray) -> None:
    grid = pooled("grid4")
    assert grid.shape == (2, 48 * 16)
    channel, row, column = 7, 2, 1
    cell = unpooled[1, channel, row * 5 : row * 5 + 5, column * 5 : column * 5 + 5]  # 20 pixels in 4 cells
    np.testing.assert_allclose(grid[1, channel * 16 + row * 4 + column], cell.mean(), rtol=1e-4)


def test_tokens_come_class_token_first_and_are_averaged_without_it() -> None:
    tokens = pooled("none", "test_vit", "blocks.2")
    assert tokens.shape == (2, 101, 64)
    np.testing.assert_allclose(pooled("cls", "test_vit", "blocks.2"), tokens[:, 0], rtol=1e-4, atol=1e-5)
    average = tokens[:, 1:].mean(1)
    np.testing.assert_allclose(pooled("avg", "test_vit", "blocks.2"), average, rtol=1e-4, atol=1e-5)
    both = np.hstack([tokens[:, 0], average])
    np.testing.assert_allclose(pooled("cls+avg", "test_vit", "blocks.2"), both, rtol=1e-4, atol=1e-5)
    corner = tokens[:, 1:].reshape(2, 10, 10, 64)[:, :5, 5:].mean((1, 2))  # upper right of a 2×2 grid
    grid = pooled("grid2", "test_vit", "blocks.2").reshape(2, 64, 2, 2)
    np.testing.assert_allclose(grid[:, :, 0, 1], corner, rtol=1e-4, atol=1e-5)


def test_the_final_norm_makes_the_deepest_block_the_final_features() -> None:
    normed = pooled("none", "test_vit", "blocks.5", final_norm=True)
    plain = pooled("none", "test_vit", "blocks.5", final_norm=False)
    np.testing.assert_allclose(normed, pooled("none", "test_vit", "last"), rtol=1e-4, atol=1e-5)
    assert np.abs(normed - plain).max() > 0.1


def test_final_features_laid_out_channels_last_are_pooled_as_maps() -> None:
    net = backbone("test_mambaout")
    x = (
        pictures(2, 160).permute(0, 3, 1, 2) / 255 - torch.tensor(net.card.mean).view(3, 1, 1)
    ) / torch.tensor(net.card.std).view(3, 1, 1)
    with torch.inference_mode():
        final = net.module.forward_features(x).numpy()
    assert final.shape == (2, 5, 5, 64)
    np.testing.assert_allclose(
        pooled("max", "test_mambaout", "last"), final.max((1, 2)), rtol=1e-3, atol=1e-5
    )


# Input sizes


@pytest.mark.parametrize("size", [96, (64, 128)])
def test_a_vit_of_fixed_size_is_built_anew_for_another(size: int | tuple[int, int]) -> None:
    net = backbone("test_vit")
    stem = net.stem(
        [
            net.card.spec(cut, pool, decoder="pillow", input_size=size)
            for cut, pool in (("last", "grid2"), (1, "none"))
        ]
    )
    height, width = stem.input_size
    grid, tokens = run(stem, pictures(2, height, width))
    assert grid.shape == (2, 64 * 4)
    assert tokens.shape == (2, 1 + height * width // 256, 64)
    assert net.card.width(stem.specs[1]) == tokens[0].numel()


def test_a_network_without_a_fixed_size_takes_any() -> None:
    net = backbone("test_resnet")
    stem = net.stem([net.card.spec("layer3", "none", decoder="pillow", input_size=(96, 130))])
    assert stem.shapes == ((192, 6, 9),)
    assert net.card.width(stem.specs[0]) == 192 * 6 * 9


@pytest.mark.slow
def test_an_unpooled_width_that_no_rule_gives_is_measured_by_the_stem() -> None:
    net = backbone("inception_v3")  # convolutions without padding
    spec = net.card.spec("Mixed_6e", "none", decoder="pillow", input_size=107)
    with pytest.raises(UsageError, match="not known without running"):
        net.card.width(spec)
    assert net.stem([spec]).shapes == ((768, 5, 5),)


@pytest.mark.slow
def test_a_size_that_leaves_nothing_is_refused_with_the_default() -> None:
    net = backbone("inception_v3")
    with pytest.raises(
        UsageError, match=r"cannot run on images of \(16, 16\) pixels .* default is \(299, 299\)"
    ):
        net.stem([net.card.spec(decoder="pillow", input_size=16)])


# What a stem refuses


def test_a_network_that_does_not_give_its_layers_is_refused() -> None:
    from timm.models import register_model

    @register_model
    def without_layers(pretrained: bool = False, **_: object) -> nn.Module:
        return nn.Linear(3, 2)

    with pytest.raises(BackboneError, match="without_layers: Linear has no forward_intermediates"):
        load_backbone("without_layers", pretrained=False, device="cpu")


def test_specs_of_another_network_or_of_two_sizes_are_refused() -> None:
    net, other = backbone("test_resnet"), backbone("test_vit")
    with pytest.raises(UsageError, match="does not belong to test_resnet"):
        net.stem([other.card.spec(decoder="pillow")])
    with pytest.raises(UsageError, match="a stem has one input"):
        net.stem([net.card.spec(decoder="pillow"), net.card.spec(decoder="pillow", input_size=96)])
    with pytest.raises(UsageError, match="at least one spec"):
        net.stem([])


# Compilers


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mambaout"])
def test_a_stem_is_one_graph_for_torch_compile(name: str) -> None:
    net = backbone(name)
    stem = net.stem(every_spec(net))
    compiled = torch.compile(stem, backend="eager", fullgraph=True)
    with torch.no_grad():
        outputs = compiled(pictures(2, 160))
    assert all(close(one, other) for one, other in zip(outputs, run(stem, pictures(2, 160)), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mambaout"])
def test_a_stem_converts_to_openvino_and_runs_on_any_batch(name: str) -> None:
    openvino = pytest.importorskip("openvino")
    net = backbone(name)
    stem = net.stem(every_spec(net))
    model = openvino.convert_model(
        stem, example_input=pictures(2, 160), input=[openvino.PartialShape([-1, 160, 160, 3])]
    )
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = pictures(3, 160)
    outputs = compiled(images.numpy())
    for number, expected in enumerate(run(stem, images)):
        assert close(torch.from_numpy(outputs[number]), expected)
