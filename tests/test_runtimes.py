"""Runtimes: same spec, same rows, whoever computes them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import apart
import numpy as np
import pytest

from featx.backbones.runtimes import (
    RUNTIMES,
    TOLERANCE,
    Compiled,
    agree,
    can_run,
    compile_stem,
    cpu_flags,
    environment,
    resolve_device,
    resolve_precision,
    resolve_runtime,
)
from featx.backbones.runtimes.openvino import Turns
from featx.backbones.state import Launches
from featx.exceptions import FeatxWarning, UsageError
from featx.spec import FeatureSpec

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

SIDE = 64
SPEC = FeatureSpec(
    architecture="test_net",
    weights="0" * 64,
    input_size=(SIDE, SIDE),
    crop_pct=1.0,
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    decoder="pillow",
)


class Stem(torch.nn.Module):
    """The contract of a stem, written out: uint8 NHWC in, normalised inside, a tuple of float32 rows out."""

    def __init__(self, architecture: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        size = {"img_size": SIDE} if "vit" in architecture else {}
        self.network = timm.create_model(architecture, pretrained=False, num_classes=0, **size)

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scaled = (batch.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
        features = self.network.forward_features(scaled)
        pooled = features.mean((2, 3)) if features.ndim == 4 else features.mean(1)
        return self.network.forward_head(features, pre_logits=True), pooled


class Stubborn(torch.nn.Module):
    """Uses an operation that OpenVINO's frontend does not know."""

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.linalg.svdvals(batch.float().mean(3))[:, :1],)


def make(architecture: str) -> Callable[[], torch.nn.Module]:
    return lambda: Stem(architecture).eval()


def forbidden() -> torch.nn.Module:
    raise AssertionError("the network was made although a converted model is there")


@pytest.fixture(scope="module")
def batch() -> np.ndarray:
    """13 smooth pictures, so that no batch size divides them."""
    from PIL import Image

    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (13, 5, 5, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(one).resize((SIDE, SIDE))) for one in small])


def specs(precision: str = "fp32") -> list[FeatureSpec]:
    return [SPEC.replace(precision=precision), SPEC.replace(precision=precision, cut="blocks.1")]


def in_batches(compiled: Compiled, batch: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([compiled(batch[start : start + size])[0] for start in range(0, len(batch), size)])


@pytest.mark.parametrize("architecture", ["test_efficientnet", "test_resnet", "test_vit", "test_convnext"])
def test_runtimes_agree_on_every_output_within_tolerance(architecture: str, batch: np.ndarray) -> None:
    with torch.inference_mode():
        expected = [rows.numpy() for rows in make(architecture)()(torch.from_numpy(batch))]
    for name in can_run("cpu"):
        if name == "torch-compile":
            continue  # compiles for half a minute: its own, slow test
        compiled = compile_stem(make(architecture), specs(), runtime=name, device="cpu")
        assert compiled.name == name
        for rows, right in zip(compiled(batch), expected, strict=True):
            assert rows.dtype == np.float32
            assert agree(rows, right, "fp32")


@pytest.mark.slow
def test_the_inductor_agrees_too(batch: np.ndarray) -> None:
    expected = compile_stem(make("test_efficientnet"), specs(), runtime="torch", device="cpu")(batch)
    compiled = compile_stem(make("test_efficientnet"), specs(), runtime="torch-compile", device="cpu")
    assert compiled.name == "torch-compile"
    for rows, right in zip(compiled(batch), expected, strict=True):
        assert agree(rows, right, "fp32")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_runtimes_agree_in_half_precision_within_its_tolerance(precision: str, batch: np.ndarray) -> None:
    exact = compile_stem(make("test_efficientnet"), specs(), runtime="torch", device="cpu")(batch)
    computed = []
    for name in ("torch", "openvino"):
        if name == "openvino" and (precision == "fp16" or not cpu_flags()):
            continue  # this CPU does not compute it: see the fallback's test
        compiled = compile_stem(make("test_efficientnet"), specs(precision), runtime=name, device="cpu")
        assert compiled.precision == precision
        computed.append(compiled(batch)[0])
    for rows in computed:
        assert agree(rows, exact[0], precision)
        assert not np.array_equal(rows, exact[0])  # it did compute in less than fp32


@pytest.mark.parametrize("runtime", ["openvino", "torch"])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_fp32_rows_do_not_depend_on_the_batch(runtime: str, size: int, batch: np.ndarray) -> None:
    compiled = compile_stem(make("test_efficientnet"), specs(), runtime=runtime, device="cpu")
    whole, parts = compiled(batch)[0], in_batches(compiled, batch, size)
    reversed_rows = in_batches(compiled, batch[::-1].copy(), size)[::-1]
    limit = 0.0 if runtime == "openvino" else 1e-5 * np.abs(whole).max()
    assert np.abs(parts - whole).max() <= limit
    assert np.abs(reversed_rows - whole).max() <= limit


@pytest.mark.skipif(not cpu_flags(), reason="this CPU does not compute bf16")
@pytest.mark.parametrize("size", [1, 2, 8])
def test_bf16_rows_of_openvino_do_not_depend_on_the_batch_either(size: int, batch: np.ndarray) -> None:
    compiled = compile_stem(make("test_efficientnet"), specs("bf16"), runtime="openvino", device="cpu")
    np.testing.assert_array_equal(in_batches(compiled, batch, size), compiled(batch)[0])


def test_a_converted_model_is_kept_and_runs_without_the_network(tmp_path: Path, batch: np.ndarray) -> None:
    first = compile_stem(make("test_resnet"), specs(), runtime="openvino", model_cache=tmp_path)(batch)
    again = compile_stem(forbidden, specs(), runtime="openvino", model_cache=tmp_path)(batch)
    for rows, right in zip(again, first, strict=True):
        np.testing.assert_array_equal(rows, right)


def test_a_model_of_fewer_outputs_is_cut_from_a_kept_one(tmp_path: Path, batch: np.ndarray) -> None:
    whole = compile_stem(make("test_resnet"), specs(), runtime="openvino", model_cache=tmp_path)(batch)
    for spec, right in zip(specs(), whole, strict=True):
        (rows,) = compile_stem(forbidden, [spec], runtime="openvino", model_cache=tmp_path)(batch)
        assert agree(rows, right, "fp32")


def test_a_damaged_converted_model_is_made_again(tmp_path: Path, batch: np.ndarray) -> None:
    right = compile_stem(make("test_resnet"), specs(), runtime="openvino", model_cache=tmp_path)(batch)
    kept = list(tmp_path.iterdir())
    assert {path.suffix for path in kept} == {".openvino", ".compiled"}
    for path in kept:
        content = bytearray(path.read_bytes())
        content[-100] ^= 0xFF  # one byte of the weights
        path.write_bytes(content)
    made = compile_stem(make("test_resnet"), specs(), runtime="openvino", model_cache=tmp_path)
    np.testing.assert_array_equal(made(batch)[0], right[0])


def test_random_damage_to_converted_models_is_never_fatal(tmp_path: Path, batch: np.ndarray) -> None:
    right = compile_stem(make("test_resnet"), specs(), runtime="openvino", model_cache=tmp_path)(batch)
    rng = np.random.default_rng(0)
    for number in range(6):
        for path in tmp_path.iterdir():
            content = bytearray(path.read_bytes())
            content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
            path.write_bytes(content[: rng.integers(len(content))] if number % 3 == 0 else content)
        made = compile_stem(make("test_resnet"), specs(), runtime="openvino", model_cache=tmp_path)
        np.testing.assert_array_equal(made(batch)[0], right[0])


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x05" + bytes(7) + b"<net>" + bytes(99)])
def test_a_converted_model_that_openvino_cannot_read_is_made_again(
    tmp_path: Path, batch: np.ndarray, content: bytes
) -> None:
    """Its digest is right, as a program with the same rules would write it."""
    right = compile_stem(make("test_resnet"), specs(), runtime="openvino", model_cache=tmp_path)(batch)
    for path in tmp_path.iterdir():
        path.write_bytes(hashlib.sha256(SPEC.weights.encode() + content).digest() + content)
    made = compile_stem(make("test_resnet"), specs(), runtime="openvino", model_cache=tmp_path)
    np.testing.assert_array_equal(made(batch)[0], right[0])


def test_what_another_build_compiled_is_compiled_again(tmp_path: Path, batch: np.ndarray) -> None:
    right = compile_stem(make("test_resnet"), specs(), runtime="openvino", model_cache=tmp_path)(batch)
    (kept,) = tmp_path.glob("*.compiled")
    foreign = b"not what this build of OpenVINO writes"
    kept.write_bytes(hashlib.sha256(foreign).digest() + foreign)
    again = compile_stem(forbidden, specs(), runtime="openvino", model_cache=tmp_path)(batch)
    np.testing.assert_array_equal(again[0], right[0])


def test_converted_models_that_were_not_used_for_longest_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(cut: str) -> set[Path]:
        compile_stem(make("test_resnet"), [SPEC.replace(cut=cut)], runtime="openvino", model_cache=tmp_path)
        return set(tmp_path.iterdir())

    first = convert("a")
    second = convert("b") - first
    for age, path in enumerate([*second, *first]):
        os.utime(path, (age, age))
    convert("a")  # used again
    of_one = sum(path.stat().st_size for path in first)
    monkeypatch.setattr("featx.backbones.runtimes.openvino.KEPT_MODEL_BYTES", 2.2 * of_one)
    left = convert("c")
    assert first < left
    assert not second & left


@pytest.mark.parametrize(
    "change", [{"weights": "1" * 64}, {"cut": "blocks.0"}, {"final_norm": False}, {"std": (1, 1, 1)}]
)
def test_what_moves_the_graph_is_another_converted_model(tmp_path: Path, change: dict[str, object]) -> None:
    compile_stem(make("test_resnet"), [SPEC], runtime="openvino", model_cache=tmp_path)
    with pytest.raises(AssertionError, match="network was made"):
        compile_stem(forbidden, [SPEC.replace(**change)], runtime="openvino", model_cache=tmp_path)


def test_a_model_that_was_made_from_other_weights_is_not_used(tmp_path: Path) -> None:
    other = SPEC.replace(weights="1" * 64)
    compile_stem(make("test_resnet"), [SPEC], runtime="openvino", model_cache=tmp_path / "a")
    compile_stem(make("test_resnet"), [other], runtime="openvino", model_cache=tmp_path / "b")
    for suffix in ("openvino", "compiled"):
        (own,) = (tmp_path / "a").glob(f"*.{suffix}")
        (foreign,) = (tmp_path / "b").glob(f"*.{suffix}")
        own.write_bytes(foreign.read_bytes())
    with pytest.raises(AssertionError, match="network was made"):
        compile_stem(forbidden, [SPEC], runtime="openvino", model_cache=tmp_path / "a")


def test_a_kept_model_needs_no_torch(tmp_path: Path) -> None:
    compile_stem(make("test_resnet"), [SPEC], runtime="openvino", model_cache=tmp_path)
    script = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from featx.backbones.runtimes import compile_stem\n"
        "from featx.spec import FeatureSpec\n"
        "spec = FeatureSpec.from_json(sys.argv[1])\n"
        "compiled = compile_stem(None, [spec], model_cache=Path(sys.argv[2]))\n"
        f"assert compiled(np.zeros((1, {SIDE}, {SIDE}, 3), np.uint8))[0].shape[0] == 1\n"
        "assert 'torch' not in sys.modules and 'timm' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, SPEC.to_json(), str(tmp_path)], check=True)


def test_a_network_that_does_not_convert_runs_on_torch_with_one_line() -> None:
    with pytest.warns(FeatxWarning, match="test_net does not convert to openvino") as warned:
        compiled = compile_stem(Stubborn, [SPEC], runtime="openvino")
    assert len([one for one in warned if issubclass(one.category, FeatxWarning)]) == 1
    assert compiled.name == "torch"
    ones = np.ones((1, SIDE, SIDE, 3), np.uint8)
    np.testing.assert_allclose(
        compiled(ones)[0], SIDE, rtol=1e-5
    )  # largest singular value of a matrix of ones


@pytest.mark.skipif("amx_fp16" in Path("/proc/cpuinfo").read_text(), reason="this CPU computes fp16 natively")
def test_a_precision_that_openvino_would_replace_runs_on_torch() -> None:
    with pytest.warns(FeatxWarning, match="instead of f16"):
        assert compile_stem(make("test_resnet"), specs("fp16"), runtime="openvino").name == "torch"


def convert() -> str:
    return compile_stem(make("test_resnet"), [SPEC], runtime="openvino").name


def test_conversion_tells_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO's `convert_model` keeps a client id in the home folder and reports its use; ours does not."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert apart.call(convert) == "openvino"
    assert list(tmp_path.iterdir()) == []


def test_auto_takes_the_first_of_the_table_that_serves_the_device() -> None:
    assert resolve_runtime("auto", "cpu") == "openvino"
    assert resolve_runtime("auto", "cuda:0") == "torch"


def test_names_that_are_not_known_are_refused_with_the_choice() -> None:
    with pytest.raises(UsageError, match=r"runtime 'tpu' is not known; choose one of auto, openvino, torch"):
        resolve_runtime("tpu", "cpu")
    with pytest.raises(UsageError, match="needs the package openvino and a device out of cpu"):
        resolve_runtime("openvino", "cuda")
    with pytest.raises(UsageError, match="device 'gpu' is not known"):
        resolve_device("gpu")
    with pytest.raises(UsageError, match="precision 'int8' is not known"):
        resolve_precision("int8", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_an_absent_device_is_named() -> None:
    with pytest.raises(UsageError, match="device 'cuda' is not available"):
        resolve_device("cuda")


def test_auto_precision_on_a_cpu_follows_its_flags() -> None:
    flags = Path("/proc/cpuinfo").read_text()
    native = "amx_bf16" in flags or "avx512_bf16" in flags
    assert resolve_precision("auto", "cpu") == ("bf16" if native else "fp32")
    assert bool(cpu_flags()) == native


def test_the_environment_names_versions_without_importing_them() -> None:
    found = environment("openvino", "cpu")
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert found["runtime"] == "openvino"


def infer_at_once() -> None:
    sys.setswitchinterval(1e-6)
    compiled = compile_stem(make("test_resnet"), [SPEC], runtime="openvino", n_threads=4)
    ready, batch = threading.Barrier(4), np.zeros((2, *SPEC.input_size, 3), np.uint8)
    threads = [
        threading.Thread(target=lambda: (ready.wait(), compiled(batch)), daemon=True) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    os._exit(any(thread.is_alive() for thread in threads))  # threads that hang would hold the exit up


def test_the_first_inferences_of_a_process_may_come_from_several_threads() -> None:
    process = apart.start(infer_at_once)
    process.join()
    assert process.exitcode == 0


def test_who_waits_longest_for_a_network_is_next() -> None:
    turns, order = Turns(["the only one"]), []

    def use(name: str) -> None:
        with turns.one():
            order.append(name)

    waiting = [threading.Thread(target=use, args=(name,)) for name in ("first", "second")]
    with turns.one():
        for thread in waiting:
            thread.start()
            time.sleep(0.2)
    use("a thread that has just used it")
    for thread in waiting:
        thread.join()
    assert order == ["first", "second", "a thread that has just used it"]


def test_decoders_wait_while_any_thread_launches_on_a_device_and_not_on_a_processor() -> None:
    launches, passed = Launches(), threading.Event()

    def decode() -> None:
        launches.wait()
        passed.set()

    with launches.alone("cpu"):
        launches.wait()
    with pytest.raises(MemoryError), launches.alone("cuda"):  # what fails is over, too
        raise MemoryError
    with launches.alone("cuda"):
        with launches.alone("cuda"):
            decoder = threading.Thread(target=decode)
            decoder.start()
        assert not passed.wait(0.2)
    assert passed.wait(10)
    decoder.join()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_agrees_with_the_cpu(precision: str, batch: np.ndarray) -> None:
    right = compile_stem(make("test_efficientnet"), specs(), runtime="torch", device="cpu")(batch)[0]
    compiled = compile_stem(make("test_efficientnet"), specs(precision), device="cuda")
    assert agree(compiled(batch)[0], right, precision)


def test_every_row_of_the_table_states_what_it_serves() -> None:
    assert set(TOLERANCE) == {"fp32", "bf16", "fp16"}
    for runtime in RUNTIMES.values():
        assert runtime.devices
        assert runtime.serves("cpu") in (True, False)
