"""Phases, parameter groups, schedules, checkpoints: the training loop on a real, tiny network."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import apart
import numpy as np
import pytest

from featx.exceptions import ModelFileError, UsageError
from featx.finetune.features import ArrayFeatures, StoredFeatures, batches
from featx.finetune.phases import Phase
from featx.spec import FeatureSpec
from featx.stores.memory import MemoryStore

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from featx.finetune import training  # noqa: E402
from featx.finetune.network import TailClassifier, chosen_names, make_head, prepare_phase  # noqa: E402
from featx.finetune.training import TrainingData, TrainingSettings  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")
N, SIDE = 24, 32


def pictures(n: int = N, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise whose mean colour tells the class."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = rng.normal(size=(n, 3, SIDE, SIDE)).astype(np.float32) * 0.5
    x[:, 0] += np.where(y, 0.8, -0.8)[:, None, None]
    return x, y.astype(np.intp)


def module(seed: int = 0, name: str = "test_resnet", head: str = "linear") -> TailClassifier:
    torch.manual_seed(seed)
    network = timm.create_model(name, pretrained=False, num_classes=0)
    return TailClassifier(network, make_head(head, network.num_features, 2))


def make_data(n: int = N, **changes: Any) -> TrainingData:
    x, y = pictures(n)
    index = np.arange(n)
    settings = {
        "features": ArrayFeatures(x),
        "y": y,
        "n_classes": 2,
        "train": index[: n * 2 // 3],
        "validation": index[n * 2 // 3 :],
    }
    return TrainingData(**(settings | changes))


def weights(net: TailClassifier) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in net.state_dict().items()}


def test_training_lowers_the_loss_and_keeps_the_best_epoch() -> None:
    net = module()
    settings = TrainingSettings(phases=(Phase(epochs=4, batch_size=8, lr=1e-3, warmup=0),))
    run = training.train(net, make_data(), settings)
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    logits = training.predict_logits(net, make_data().features, make_data().validation, settings)
    accuracy = (logits.argmax(1) == make_data().y[make_data().validation]).mean()
    best = max(record["val_accuracy"] for record in run.history)
    assert accuracy == pytest.approx(best)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    trained = []
    for seed in (1, 1, 2):
        net = module()
        training.train(net, make_data(), TrainingSettings(phases=(Phase(epochs=1, batch_size=8),), seed=seed))
        trained.append(weights(net))
    assert all(np.array_equal(trained[0][name], trained[1][name]) for name in trained[0])
    assert any(not np.array_equal(trained[0][name], trained[2][name]) for name in trained[0])


def test_training_leaves_the_callers_random_state_alone() -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    expected = torch.rand(1), np.random.rand()  # noqa: NPY002
    net = module()
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    training.train(net, make_data(), TrainingSettings(phases=(Phase(epochs=1, batch_size=8, dropout=0.2),)))
    assert torch.equal(torch.rand(1), expected[0])
    assert np.random.rand() == expected[1]  # noqa: NPY002


RESUMED = TrainingSettings(
    phases=(
        Phase(trainable="head", epochs=2, batch_size=8, lr=1e-2, dropout=0.1),
        Phase(epochs=3, batch_size=8, ema=0.9, dropout=0.3, drop_path=0.2, label_smoothing=0.1),
    ),
    seed=3,
)


def train_until(kill_at: tuple[int, int], path: Path) -> None:
    torch.set_num_threads(1)

    def kill(record: dict[str, Any]) -> None:
        if (record["phase"], record["epoch"]) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    training.train(module(), make_data(), RESUMED, checkpoint=path, on_epoch=kill)


@pytest.mark.parametrize("kill_at", [pytest.param((0, 2), marks=pytest.mark.slow), (1, 2)])
def test_a_killed_run_resumes_to_bit_equal_weights(tmp_path: Path, kill_at: tuple[int, int]) -> None:
    path = tmp_path / "run.safetensors"
    process = apart.start(train_until, kill_at, path)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    whole, resumed = module(), module(seed=99)
    run = training.train(whole, make_data(), RESUMED)
    again = training.train(resumed, make_data(), RESUMED, checkpoint=path)
    expected, got = weights(whole), weights(resumed)
    assert all(np.array_equal(expected[name], got[name]) for name in expected)
    assert [r["loss"] for r in run.history] == [r["loss"] for r in again.history]


@pytest.mark.parametrize("optimizer", ["lamb", "adamp", "lion", "radam", "momentum"])
def test_an_interrupted_run_goes_on_alike_with_any_optimizer(tmp_path: Path, optimizer: str) -> None:
    settings = TrainingSettings(phases=(Phase(epochs=3, batch_size=8, lr=1e-2, optimizer=optimizer),))
    whole, resumed = module(), module()
    training.train(whole, make_data(), settings)

    def stop(record: dict[str, Any]) -> None:
        if record["epoch"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(module(), make_data(), settings, checkpoint=tmp_path / "run", on_epoch=stop)
    training.train(resumed, make_data(), settings, checkpoint=tmp_path / "run")
    expected, got = weights(whole), weights(resumed)
    assert all(np.array_equal(expected[name], got[name]) for name in expected)


def test_a_moving_average_lies_between_the_start_and_the_end() -> None:
    def moved(**params: Any) -> dict[str, np.ndarray]:
        net = module()
        phase = Phase(epochs=3, batch_size=8, lr=1e-2, warmup=0, **params)
        training.train(net, make_data(validation=np.arange(0)), TrainingSettings(phases=(phase,)))
        return weights(net)

    start, plain, averaged = weights(module()), moved(), moved(ema=0.9)
    name = "head.weight"
    assert 0 < np.linalg.norm(averaged[name] - start[name]) < np.linalg.norm(plain[name] - start[name])
    path = np.linalg.norm(plain[name] - start[name])
    assert np.linalg.norm(averaged[name] - plain[name]) < path


def test_clipping_bounds_each_step() -> None:
    lr, clip, epochs = 0.1, 1e-3, 2
    net = module()
    before = weights(net)
    phase = Phase(
        epochs=epochs, batch_size=8, lr=lr, optimizer="momentum", momentum=0.0, weight_decay=0.0,
        clip_norm=clip, schedule="constant", warmup=0,
    )  # fmt: skip
    fitted = make_data(validation=np.arange(0))
    training.train(net, fitted, TrainingSettings(phases=(phase,)))
    after = weights(net)
    trained = [name for name, _ in net.named_parameters()]
    moved = math.sqrt(sum(float(np.square(after[name] - before[name]).sum()) for name in trained))
    steps = epochs * -(-len(fitted.train) // 8)
    assert 0 < moved <= steps * lr * clip * (1 + 1e-4)


def test_smoothed_labels_keep_the_loss_above_their_entropy() -> None:
    smoothing = 0.2
    phase = Phase(epochs=8, batch_size=8, lr=1e-2, warmup=0, label_smoothing=smoothing)
    run = training.train(module(), make_data(), TrainingSettings(phases=(phase,)))
    off = smoothing / 2  # of two classes
    entropy = -(off * math.log(off) + (1 - off) * math.log(1 - off))
    assert run.history[-1]["accuracy"] == 1.0
    assert entropy <= run.history[-1]["loss"] < entropy + 0.2
    sharp = training.train(
        module(), make_data(), TrainingSettings(phases=(phase.replace(label_smoothing=0.0),))
    )
    assert sharp.history[-1]["loss"] < entropy


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    settings = TrainingSettings(phases=(Phase(trainable="head", epochs=1, batch_size=8),))
    training.train(module(), make_data(), settings, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match=r"run\.safetensors: not a checkpoint.*delete it"):
        training.train(module(), make_data(), settings, checkpoint=path)


def test_a_head_phase_leaves_the_tail_as_it_was_batch_statistics_included() -> None:
    net = module()
    before = weights(net)
    training.train(
        net, make_data(), TrainingSettings(phases=(Phase(trainable="head", epochs=2, batch_size=8),))
    )
    after = weights(net)
    assert all(np.array_equal(before[k], after[k]) for k in before if k.startswith("tail."))
    assert not np.array_equal(before["head.weight"], after["head.weight"])


def test_only_the_named_block_is_trained() -> None:
    net = module()
    before = weights(net)
    phase = Phase(trainable=("layer3",), train_head=False, epochs=1, batch_size=8, warmup=0)
    training.train(net, make_data(validation=np.arange(0)), TrainingSettings(phases=(phase,)))
    changed = {name for name, value in weights(net).items() if not np.array_equal(value, before[name])}
    assert changed
    assert {name.split(".")[1] for name in changed} == {"layer3"}


@pytest.mark.parametrize(
    ("which", "moves"), [("frozen", set()), ("trained", {"layer4"}), ("all", {"bn1", "layer4"})]
)
def test_batch_statistics_are_updated_as_in_the_phase(which: str, moves: set[str]) -> None:
    net = module()
    before = weights(net)
    phase = Phase(trainable=("layer4",), epochs=1, batch_size=8, batch_norm=which)
    training.train(net, make_data(validation=np.arange(0)), TrainingSettings(phases=(phase,)))
    after = weights(net)
    moved = {
        k.split(".")[1] for k in before if "running_mean" in k and not np.array_equal(before[k], after[k])
    }
    assert moves <= moved
    assert which == "all" or moved == moves


def test_stages_and_taps_name_the_same_parameters() -> None:
    tail = module().tail
    names = {name for name, _ in tail.named_parameters()}
    assert chosen_names(tail, 1) == {name for name in names if name.startswith("layer4")}
    assert chosen_names(tail, "layer2") == chosen_names(tail, 2)
    assert chosen_names(tail, "all") == chosen_names(tail, 99) == names


def test_an_unknown_module_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no parameters under 'layer9'.*layer1\.0"):
        prepare_phase(module(), Phase(trainable=("layer9",)))


def test_norms_and_biases_are_not_decayed_and_layers_learn_slower_downwards() -> None:
    net = module()
    [groups] = training.describe(net, [Phase(layer_decay=0.5, weight_decay=0.1, lr=1e-3, head_lr=4e-3)])
    shapes = {name.removeprefix("tail."): p.ndim for name, p in net.named_parameters()}
    for group in groups:
        for name in group.names:
            assert (group.weight_decay == 0) == (shapes[name] <= 1), name
    rate = {name: group.lr for group in groups for name in group.names}
    assert rate["head.weight"] == 4e-3
    assert rate["conv1.0.weight"] < rate["layer1.0.conv1.weight"] < rate["layer4.0.conv1.weight"] < 1e-3


def test_describing_counts_every_parameter_once() -> None:
    net = module()
    head, tail = training.describe(net, (Phase(trainable="head", epochs=1), Phase(epochs=1)))
    assert sum(group.parameters for group in head) == sum(p.numel() for p in net.head.parameters())
    assert sum(group.parameters for group in tail) == sum(p.numel() for p in net.parameters())


def rates(phase: Phase, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=phase.lr)
    schedule = training.make_schedule(optimizer, phase, steps)
    seen = []
    for step in range(phase.epochs * steps):
        schedule.step_update(step)
        seen.append(optimizer.param_groups[0]["lr"])
    return seen


def test_the_tutorials_schedule_is_constant_and_then_falls_by_exp_of_a_tenth() -> None:
    seen = rates(Phase(schedule="step-exp", constant_epochs=3, epochs=6, lr=1.0, warmup=0), 2)
    assert seen[:6] == [1.0] * 6
    assert seen[6::2] == pytest.approx([math.exp(-0.1), math.exp(-0.2), math.exp(-0.3)])


def test_cosine_warms_up_and_ends_near_zero() -> None:
    seen = rates(Phase(schedule="cosine", epochs=5, lr=1.0, warmup=1), 10)
    assert seen[0] == 0
    assert max(seen) == pytest.approx(seen[10]) == pytest.approx(1.0)
    assert seen[-1] < 0.01


def test_patience_ends_a_phase() -> None:
    phase = Phase(trainable="head", epochs=50, lr=0.0, warmup=0, batch_size=8, patience=3)
    run = training.train(module(), make_data(), TrainingSettings(phases=(phase,)))
    assert len(run.history) == 3
    assert run.best == (0, 0)


def test_a_run_without_validation_repeats_the_given_epochs() -> None:
    phases = (Phase(trainable="head", epochs=5, batch_size=8), Phase(epochs=5, batch_size=8))
    settings = TrainingSettings(phases=phases, last_epochs=(2, 1))
    run = training.train(module(), make_data(validation=np.arange(0)), settings)
    assert [(record["phase"], record["epoch"]) for record in run.history] == [(0, 1), (0, 2), (1, 1)]


def test_class_weights_pull_towards_the_heavy_class() -> None:
    flat = ArrayFeatures(
        np.zeros_like(pictures()[0])
    )  # nothing to tell the classes apart by: the bias alone learns
    phase = Phase(trainable="head", epochs=30, lr=0.1, batch_size=8, warmup=0, label_smoothing=0)
    net = module()
    heavy = make_data(features=flat, validation=np.arange(0), class_weights=np.array([0.2, 1.8], np.float32))
    settings = TrainingSettings(phases=(phase,))
    training.train(net, heavy, settings)
    p = torch.softmax(torch.from_numpy(training.predict_logits(net, flat, np.arange(1), settings)), 1)
    assert float(p[0, 1]) == pytest.approx(0.9, abs=0.05)


def test_mixing_needs_pictures() -> None:
    features = ArrayFeatures(np.zeros((N, 8, 4, 4), np.float32))
    net = TailClassifier(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(128, 4)), make_head("linear", 4, 2)
    )
    with pytest.raises(UsageError, match="mix images"):
        training.train(
            net, make_data(features=features), TrainingSettings(phases=(Phase(epochs=1, mixup=0.2),))
        )


def test_mixup_and_cutmix_train_on_pictures() -> None:
    phase = Phase(epochs=1, mixup=0.4, cutmix=1.0, batch_size=8, label_smoothing=0.1)
    run = training.train(module(), make_data(), TrainingSettings(phases=(phase,)))
    assert math.isfinite(run.history[0]["loss"])


def test_an_unknown_optimizer_is_named() -> None:
    with pytest.raises(UsageError, match="optimizer 'adamq'"):
        training.train(module(), make_data(), TrainingSettings(phases=(Phase(epochs=1, optimizer="adamq"),)))


def test_the_message_on_an_exploding_loss_names_the_fix() -> None:
    phase = Phase(epochs=3, optimizer="sgd", lr=1e30, warmup=0, clip_norm=None, batch_size=8)
    with pytest.raises(UsageError, match=r"diverged.*smaller lr"):
        training.train(module(), make_data(), TrainingSettings(phases=(phase,)))


def test_bfloat16_trains_close_to_float32() -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        settings = TrainingSettings(phases=(Phase(epochs=1, batch_size=8),), precision=precision)
        losses.append(training.train(module(), make_data(), settings).history[0]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_a_processors_mixed_precision_spares_the_depthwise_convolutions() -> None:
    features, depthwise = torch.ones(2, 4, 5, 5), torch.nn.Conv2d(4, 4, 3, groups=4)
    pointwise = torch.nn.Conv2d(4, 8, 1)
    with training.in_precision("bf16", "cpu"):
        assert depthwise(features).dtype == torch.float32
        assert pointwise(features).dtype == torch.bfloat16
        assert depthwise(pointwise(features)[:, :4]).dtype == torch.float32


def test_a_transformer_trains_with_layer_decay_and_stochastic_depth() -> None:
    net = module(name="test_vit")
    x = np.random.default_rng(0).normal(size=(N, 3, 160, 160)).astype(np.float32)
    phase = Phase(trainable=1, epochs=1, layer_decay=0.7, drop_path=0.3, batch_size=8)
    run = training.train(net, make_data(features=ArrayFeatures(x)), TrainingSettings(phases=(phase,)))
    assert len(run.history) == 1
    assert any(type(part).__name__ == "DropPath" and part.drop_prob > 0 for part in net.tail.modules())


def test_a_phase_refuses_what_it_does_not_know() -> None:
    with pytest.raises(UsageError, match="cosine, step-exp, constant"):
        Phase(schedule="steps")


def spec(view: int) -> FeatureSpec:
    return FeatureSpec(
        architecture="x", weights="0", cut="c", pool="none", input_size=(8, 8), crop_pct=1.0,
        interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1), decoder="pillow", view=view,
        view_policy="light" if view else "none",
    )  # fmt: skip


def stored(n: int, views: int, memory: int) -> tuple[StoredFeatures, np.ndarray]:
    store, ids = MemoryStore(), np.arange(n * 32, dtype=np.uint64).astype(np.uint8).reshape(n, 32)
    ids[:, :2] = np.stack([np.arange(n) % 256, np.arange(n) // 256], 1)
    specs = [spec(view) for view in range(views + 1)]
    for one in specs:
        features = (
            np.arange(n, dtype=np.float16)[:, None, None] + np.zeros((1, 4, 4), np.float16) + one.view / 4
        )
        store.append(one.key, ids, features, one)
    return StoredFeatures(store, [one.key for one in specs], ids, memory=memory), ids


@pytest.mark.parametrize("memory", [1 << 30, 16 * 4 * 4 * 70])
def test_an_epoch_sees_each_image_once_in_another_order_whatever_the_memory(memory: int) -> None:
    features, _ = stored(300, 0, memory)
    orders = []
    for epoch in (1, 2):
        seen = list(batches(features, np.arange(300), 32, epoch=epoch, memory=memory))
        numbers = np.concatenate([n for n, _ in seen])
        values = np.concatenate([r for _, r in seen])[:, 0, 0]
        assert sorted(numbers) == list(range(300))
        assert np.array_equal(values, numbers)
        orders.append(numbers.tolist())
    assert orders[0] != orders[1] != sorted(orders[0])


def test_training_draws_views_evenly_and_validation_sees_the_plain_image() -> None:
    features, _ = stored(400, 3, 1 << 30)
    plain = features.read(np.arange(400))[:, 0, 0].astype(np.float64)
    assert np.array_equal(plain, np.arange(400))
    drawn = (features.read(np.arange(400), epoch=1)[:, 0, 0] - np.arange(400)) * 4
    assert np.bincount(drawn.astype(int), minlength=4).min() > 60


def test_features_that_overflow_float16_are_kept_as_float32() -> None:
    one, store, ids = spec(0), MemoryStore(), np.arange(64, dtype=np.uint8).reshape(2, 32)
    values = np.array([[1.0], [2e5]], np.float32)
    store.append(one.key, ids, values, one)
    assert np.array_equal(StoredFeatures(store, [one.key], ids).read(np.arange(2)), values)
