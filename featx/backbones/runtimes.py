"""Runtimes: who computes the forward pass, on what device, in what precision.

Every runtime compiles the same stem (normalisation inside, uint8 NHWC in, pooled float32 out), so rows of
one spec agree within a stated tolerance whoever computed them. On CPUs a runtime runs `streams` single-
threaded passes at once instead of one pass on many threads: that shares the cores with the decoding
threads without contention. Importing this module imports neither torch nor OpenVINO; a converted model
that is found on disk runs without torch.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import hashlib
import importlib
import json
import os
import platform
import queue
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray

from featx.exceptions import BackboneError, FeatxWarning, UsageError
from featx.files import atomic_write
from featx.spec import PRECISIONS, FeatureSpec

if TYPE_CHECKING:
    import torch

Batch = NDArray[np.uint8]
"""Prepared pictures, shape (n, height, width, 3)."""

AUTO = "auto"
DEVICES = ("cuda", "mps", "xpu", "cpu")
"""In order of preference. Only cpu was run by the project's own tests; cuda has tests that need one."""

ACCELERATOR_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Signs of CUDA, WSL or ROCm on Linux. Cheaper than asking torch, which must be imported."""

TOLERANCE = {"fp32": 1e-4, "bf16": 6e-2, "fp16": 1e-2}
"""Largest difference between two runtimes' rows, relative to the row's largest value."""

BF16_CPU_FLAGS = ("amx_bf16", "avx512_bf16")
"""bf16 is twice as fast as fp32 with the second (lite0, AMD EPYC, OpenVINO 2026.4), more with the first."""

MODEL_FORMAT = 2
"""Raise it when the graph that is made from a spec changes; converted models are then made again."""

MODEL_SUFFIX, COMPILED_SUFFIX = ".openvino", ".compiled"
"""Of a converted model, and of one as a machine compiled it."""

KEPT_MODEL_BYTES = 2 << 30
"""Of models on disk; each set of outputs of a network is one, and is made again when wanted."""


class Compiled(Protocol):
    """A stem ready to run. Safe to call from `streams` threads at once."""

    name: str
    device: str
    precision: str
    streams: int

    def __call__(self, batch: Batch) -> list[NDArray[np.float32]]:
        """Rows of each spec, in the order of the specs."""
        ...

    def close(self) -> None:
        """Let go of the network's memory."""
        ...


@dataclass(frozen=True)
class Request:
    """What a runtime is asked to compile."""

    make_stem: Callable[[], torch.nn.Module]
    specs: Sequence[FeatureSpec]
    device: str
    precision: str
    n_threads: int
    model_cache: Path | None


@dataclass(frozen=True)
class Runtime:
    """A row of `RUNTIMES`."""

    package: str
    devices: tuple[str, ...]
    compile: Callable[[Request], Compiled]

    def serves(self, device: str) -> bool:
        """Whether it is installed and can use the device."""
        return device in self.devices and find_spec(self.package) is not None


def compile_stem(
    make_stem: Callable[[], torch.nn.Module],
    specs: Sequence[FeatureSpec],
    *,
    runtime: str = AUTO,
    device: str = AUTO,
    precision: str | None = None,
    n_threads: int | None = None,
    model_cache: Path | None = None,
) -> Compiled:
    """Compile a stem so that it turns uint8 NHWC batches into rows.

    Parameters
    ----------
    make_stem : callable
        Returns the network's stem for `specs` (see `Backbone.stem`). It is called only if the network is
        needed: a converted model found in `model_cache` is used without it.
    specs : sequence of FeatureSpec
        One for each output; they agree in weights, input size and precision.
    runtime : str, default "auto"
        A name in `RUNTIMES`; "auto" is the first that serves the device. A stem that it cannot convert
        runs on torch instead, with a warning.
    device : str, default "auto"
        One of `DEVICES`, or a torch name such as ``"cuda:1"``.
    precision : str, optional
        Compute precision if not the specs' own (to compute again what overflowed).
    n_threads : int, optional
        CPU threads; default all that this process may use.
    model_cache : Path, optional
        Folder for converted models.

    Raises
    ------
    UsageError
        If the runtime or device is unknown, or the one cannot use the other.
    """
    device = resolve_device(device, runtime)
    name = resolve_runtime(runtime, device)
    request = Request(
        make_stem, specs, device, precision or specs[0].precision, n_threads or cpu_count(), model_cache
    )
    try:
        return RUNTIMES[name].compile(request)
    except ConversionError as error:
        warnings.warn(
            f"{specs[0].architecture} does not convert to {name} ({error}); it runs on torch.",
            FeatxWarning,
            stacklevel=2,
        )
        return RUNTIMES["torch"].compile(request)


class ConversionError(BackboneError):
    """A runtime cannot take over this network; torch can."""


def resolve_runtime(name: str, device: str) -> str:
    """Name of the runtime that `name` means on a device; imports none.

    Raises
    ------
    UsageError
        If it is unknown, not installed, or cannot use the device.
    """
    kind = device.partition(":")[0]
    if name == AUTO:
        return next(name for name, runtime in RUNTIMES.items() if runtime.serves(kind))
    if name not in RUNTIMES:
        raise UsageError(f"runtime {name!r} is not known; choose one of auto, {', '.join(RUNTIMES)}.")
    if not RUNTIMES[name].serves(kind):
        raise UsageError(
            f"runtime {name!r} needs the package {RUNTIMES[name].package} and a device out of "
            f"{', '.join(RUNTIMES[name].devices)}, not {device!r}; runtime='auto' takes what is there."
        )
    return name


def resolve_device(name: str, runtime: str = AUTO) -> str:
    """Name of the device that `name` means here. Imports torch only where an accelerator may be present.

    Parameters
    ----------
    name : str
        ``auto`` is the first of `DEVICES` that is there and that the runtime can use.
    runtime : str
        A name in `RUNTIMES`, or ``auto``.

    Raises
    ------
    UsageError
        If the device is unknown or absent.
    """
    if name.partition(":")[0] not in (AUTO, *DEVICES):
        raise UsageError(f"device {name!r} is not known; choose one of auto, {', '.join(DEVICES)}.")
    if name == AUTO:
        served = RUNTIMES[runtime].devices if runtime in RUNTIMES else DEVICES
        return next(kind for kind in served if _has_device(kind)) if accelerator_likely() else "cpu"
    if name != "cpu" and not _has_device(name):
        raise UsageError(
            f"device {name!r} is not available to torch here; device='auto' takes what is there."
        )
    return name


def resolve_precision(name: str, device: str) -> str:
    """Precision that `name` means on a device: what its hardware is good at.

    bf16 where the device multiplies it natively, else fp16 on CUDA, else fp32.
    """
    if name != AUTO:
        if name not in PRECISIONS:
            raise UsageError(f"precision {name!r} is not known; choose one of auto, {', '.join(PRECISIONS)}.")
        return name
    if device == "cpu":
        return "bf16" if cpu_flags() else "fp32"
    if not device.startswith("cuda"):
        return "fp32"
    import torch

    return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"  # Ampere is 8.0


@cache
def cpu_flags() -> tuple[str, ...]:
    """The CPU's bf16 instructions, out of `BF16_CPU_FLAGS`; none where they cannot be told (not Linux)."""
    present = set(cpu_model().split())
    return tuple(flag for flag in BF16_CPU_FLAGS if flag in present)


@cache
def cpu_model() -> str:
    """All instructions of the CPU, or its name where they cannot be told (not Linux)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return line
    return platform.processor()


def environment(runtime: str, device: str) -> dict[str, str]:
    """What may move rows without moving their spec: versions, runtime, device, CPU. Imports nothing heavy."""
    packages = ("torch", "torchvision", "timm", "openvino", "Pillow", "simplejpeg", "torchcodec")
    return {
        "runtime": runtime,
        "device": device.partition(":")[0],
        "machine": platform.machine(),
        "cpu": " ".join(cpu_flags()),
        **{name: found for name in packages if (found := _version(name))},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def accelerator_likely(device: str = AUTO) -> bool:
    """Whether torch must be asked what a device is: False where there is no sign of an accelerator."""
    if device != AUTO:
        return device != "cpu"
    if _version("torch").endswith("+cpu"):
        return False
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if sys.platform == "win32":
        return ctypes.util.find_library("nvcuda") is not None
    return "+xpu" in _version("torch") or any(Path(path).exists() for path in ACCELERATOR_FILES)


def accelerator_name(device: str, runtime: str, precision: str) -> str:
    """What an answer of torch about a device depends on, as one text."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return " ".join((platform.node(), _version("torch"), visible, device, runtime, precision))


@cache
def _has_device(name: str) -> bool:
    kind, _, number = name.partition(":")
    if kind == "cpu":
        return True
    import torch

    backend = getattr(torch.backends if kind == "mps" else torch, kind)
    return bool(backend.is_available()) and (kind == "mps" or int(number or 0) < backend.device_count())


# --- torch ---------------------------------------------------------------------------------------------


class Launches:
    """Lets a thread launch a device's kernels undisturbed by the threads that decode.

    A pass over a network on a GPU is a thousand short calls, and each gives the interpreter's lock away and
    must get it back: 2,000 of torch's smallest took 13 ms alone, 650 ms beside 16 threads that decoded. So
    these wait before their next picture while kernels are launched, and go on while the device works.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._launching = 0
        self._none = threading.Event()
        self._none.set()

    @contextlib.contextmanager
    def alone(self, device: str) -> Iterator[None]:
        """Around the launching of kernels; on a processor, where the calls are the work, it does nothing."""
        if device == "cpu":
            yield
            return
        with self._lock:
            self._launching += 1
            self._none.clear()
        try:
            yield
        finally:
            with self._lock:
                self._launching -= 1
                if not self._launching:
                    self._none.set()

    def give_way(self) -> None:
        """Wait until nothing is being launched."""
        self._none.wait()


LAUNCHES = Launches()


class TorchRuntime:
    """PyTorch: channels-last, autocast; on CUDA pinned, asynchronous copies on a stream of each caller.

    Two callers at a time overlap the one's copies with the other's kernels.
    """

    name = "torch"

    def __init__(self, request: Request, *, inductor: bool = False) -> None:
        import torch

        self.device = request.device
        self.precision = request.precision
        self.streams = request.n_threads if self.device == "cpu" else 2
        stem = request.make_stem().eval().to(self.device).to(memory_format=torch.channels_last)
        self._stem: Callable[[torch.Tensor], Sequence[torch.Tensor]] | None = stem
        if inductor:
            self.name = "torch-compile"
            self._stem = torch.compile(stem, dynamic=True)
        self._local = threading.local()

    def __call__(self, batch: Batch) -> list[NDArray[np.float32]]:
        """Rows of each spec."""
        import torch

        inputs = torch.from_numpy(np.ascontiguousarray(batch))
        with torch.inference_mode():
            if self.device.startswith("cuda"):
                return self._run_on_own_stream(inputs)
            with LAUNCHES.alone(self.device), self._precisely():
                outputs = self._run(inputs.to(self.device))
            return [rows.float().cpu().numpy() for rows in outputs]

    def _run_on_own_stream(self, inputs: torch.Tensor) -> list[NDArray[np.float32]]:
        import torch

        stream = self._stream()
        with LAUNCHES.alone(self.device), torch.cuda.stream(stream):
            pinned = inputs.pin_memory()
            with self._precisely():
                outputs = self._run(pinned.to(self.device, non_blocking=True))
            hosts = [torch.empty(rows.shape, pin_memory=True) for rows in outputs]
            for host, rows in zip(hosts, outputs, strict=True):
                host.copy_(rows.float(), non_blocking=True)
        stream.synchronize()
        return [host.numpy() for host in hosts]

    def _run(self, inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        if self._stem is None:
            raise RuntimeError("this runtime was closed.")
        return self._stem(inputs)

    @contextlib.contextmanager
    def _precisely(self) -> Iterator[None]:
        """The spec's precision and no other: autocast for the halves, no TF32 behind fp32's back."""
        import torch

        kind = self.device.partition(":")[0]
        if self.precision != "fp32":
            dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
            with torch.autocast(kind, dtype=dtype):
                yield
        elif kind == "cuda":
            switches: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
            with _TF32:  # the switch is the process's; it is read when kernels are launched, which is short
                before = [switch.allow_tf32 for switch in switches]
                for switch in switches:
                    switch.allow_tf32 = False
                try:
                    yield
                finally:
                    for switch, allowed in zip(switches, before, strict=True):
                        switch.allow_tf32 = allowed
        else:
            yield

    def _stream(self) -> Any:
        import torch

        if not hasattr(self._local, "stream"):
            self._local.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        return self._local.stream

    def close(self) -> None:
        """Let go of the network."""
        self._stem = None


_TF32 = threading.Lock()


def _compile_torch(request: Request) -> Compiled:
    return TorchRuntime(request)


def _compile_inductor(request: Request) -> Compiled:
    return TorchRuntime(request, inductor=True)


# --- OpenVINO ------------------------------------------------------------------------------------------


class OpenVINORuntime:
    """OpenVINO on the CPU: as many single-threaded streams as threads, any batch size, nothing padded.

    fp32 rows were found bit-equal whatever the batch size and batch-mates (OpenVINO 2026.4).
    """

    name = "openvino"
    device = "cpu"

    def __init__(self, request: Request) -> None:
        self.precision = request.precision
        self.streams = request.n_threads
        hint = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}[self.precision]
        compiled = _compile(
            request,
            {
                "INFERENCE_PRECISION_HINT": hint,  # never left to OpenVINO, which takes bf16 where it can
                "NUM_STREAMS": str(self.streams),
                "INFERENCE_NUM_THREADS": self.streams,
                "ENABLE_CPU_PINNING": False,  # the decoding threads need the same cores
            },
        )
        resolved = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if resolved != hint:
            raise ConversionError(f"it computes {resolved} when asked for {hint} on this CPU")
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.streams):
            self._requests.put(compiled.create_infer_request())
        self._infer_once(request.specs[0].input_size)

    def _infer_once(self, input_size: tuple[int, int]) -> None:
        """The process's first inference, alone.

        It makes pyopenvino's statics, which each wait for the interpreter's lock while they are made: two
        threads that came here at once waited for each other for ever (OpenVINO 2026.4).
        """
        global _inferred
        with _FIRST_INFERENCE:
            if not _inferred:
                self(np.zeros((1, *input_size, 3), np.uint8))
            _inferred = True

    def __call__(self, batch: Batch) -> list[NDArray[np.float32]]:
        """Rows of each spec."""
        request = self._requests.get()
        try:
            request.infer([np.ascontiguousarray(batch)], share_inputs=True)
            return [np.array(tensor.data, np.float32) for tensor in request.output_tensors]
        finally:
            self._requests.put(request)

    def close(self) -> None:
        """Let go of the network."""
        while not self._requests.empty():
            self._requests.get()


_FIRST_INFERENCE, _inferred = threading.Lock(), False


def import_openvino() -> Any:
    """OpenVINO, silent: importing it as it comes reports to a server of its maker."""
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    unset = "openvino_telemetry" not in sys.modules
    if unset:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it then uses its own stub
    try:
        return importlib.import_module("openvino")
    finally:
        if unset:
            del sys.modules["openvino_telemetry"]


def _compile(request: Request, options: dict[str, Any]) -> Any:
    """The compiled model: as it was kept on this machine (5 times as quick), else made from a model."""
    openvino = import_openvino()
    source, path = _path(request, MODEL_SUFFIX), _path(request, COMPILED_SUFFIX, [cpu_model(), options])
    kept = _read(path)
    if kept is not None:
        with contextlib.suppress(RuntimeError):  # of another build of OpenVINO
            compiled = openvino.Core().import_model(kept, "CPU", options)
            _touch(source, path)
            return compiled
    content = _read(source) or _cut(request) or _convert(request)
    _touch(source)
    compiled = openvino.Core().compile_model(_read_model(content), "CPU", options)
    _keep(path, compiled.export_model().getvalue())
    return compiled


def _cut(request: Request) -> bytes | None:
    """The model out of a kept one of the same network that has more outputs; None where there is none."""
    path = _path(request, MODEL_SUFFIX)
    if path is None:
        return None
    openvino = import_openvino()
    for wider in path.parent.glob(f"{_network_name(request)}-*{MODEL_SUFFIX}"):
        content = _read(wider)
        if content is None:
            continue
        model = _read_model(content)
        try:
            outputs = [model.output(_output_name(spec)).get_node() for spec in request.specs]
        except RuntimeError:  # it lacks one
            continue
        content = _serialise(openvino.Model(outputs, model.get_parameters(), request.specs[0].architecture))
        _touch(wider)
        _keep(path, content)
        return content
    return None


def _convert(request: Request) -> bytes:
    """Trace the stem into an OpenVINO model, prove it against torch, and keep it."""
    openvino = import_openvino()
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    stem = request.make_stem().eval()
    height, width = request.specs[0].input_size
    probe = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter("ignore")  # torch.jit.trace is deprecated; OpenVINO still builds on it
            example = torch.from_numpy(probe)
            decoder = TorchScriptPythonDecoder(
                stem, example_input=(example[:2],), trace_kwargs={"check_trace": False}
            )
            expected = [rows.float().numpy() for rows in stem(example)]
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
        model.inputs[0].get_node().set_element_type(openvino.Type.u8)
        model.reshape({0: openvino.PartialShape([-1, height, width, 3])})
        model.validate_nodes_and_infer_types()
        for spec, output in zip(request.specs, model.outputs, strict=False):
            output.get_tensor().add_names({_output_name(spec)})
        content = _serialise(model)
        exact = openvino.Core().compile_model(
            _read_model(content), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        rows = list(exact([probe]).values())
    except Exception as error:  # whatever the tracer, the frontend or a plugin raises: torch can still run it
        raise ConversionError(_first_line(error)) from error
    for ours, theirs in zip(rows, expected, strict=True):
        if ours.shape != theirs.shape or not agree(ours, theirs, "fp32"):
            raise ConversionError("its rows differ from torch's")
    _keep(_path(request, MODEL_SUFFIX), content)
    return content


def _keep(path: Path | None, content: bytes) -> None:
    """Write a model with its sha256; one that cannot be kept is made again next time."""
    if path is None:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, hashlib.sha256(content).digest() + content)
        _prune(path.parent)


def _prune(folder: Path) -> None:
    """Remove the models that were not used for longest, down to `KEPT_MODEL_BYTES`."""
    kept = 0
    models = [path for path in folder.iterdir() if path.suffix in (MODEL_SUFFIX, COMPILED_SUFFIX)]
    for path in sorted(models, key=lambda path: -path.stat().st_mtime):
        kept += path.stat().st_size
        if kept > KEPT_MODEL_BYTES:
            path.unlink(missing_ok=True)


def agree(rows: NDArray[Any], others: NDArray[Any], precision: str) -> bool:
    """Whether two arrays of rows, shape (n, ...), agree within `TOLERANCE`."""
    first, second = (np.asarray(part, np.float64).reshape(len(part), -1) for part in (rows, others))
    if not first.size:
        return first.shape == second.shape
    scale = np.maximum(np.abs(second).max(axis=1), np.finfo(np.float32).tiny)
    return bool((np.abs(first - second).max(axis=1) <= TOLERANCE[precision] * scale).all())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}"


def _path(request: Request, suffix: str, more: Sequence[Any] = ()) -> Path | None:
    """Where a model is kept: named by its network, and by its outputs and what else it depends on."""
    if request.model_cache is None:
        return None
    outputs = [_output_name(spec) for spec in request.specs]
    return request.model_cache / f"{_network_name(request)}-{_hash([outputs, *more])}{suffix}"


def _network_name(request: Request) -> str:
    first = request.specs[0]
    recipe = {
        "format": MODEL_FORMAT,
        "openvino": _version("openvino"),
        "architecture": first.architecture,
        "weights": first.weights,
        "input_size": first.input_size,
        "mean": first.mean,
        "std": first.std,
    }
    return _hash(recipe)


def _hash(recipe: Any) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:24]


def _output_name(spec: FeatureSpec) -> str:
    return f"{spec.cut}:{spec.pool}:{'normed' if spec.final_norm else 'raw'}"


def _read(path: Path | None) -> bytes | None:
    """A kept model, or None if it is absent or not as it was written."""
    if path is None:
        return None
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content[32:] if hashlib.sha256(content[32:]).digest() == content[:32] else None


def _touch(*paths: Path | None) -> None:
    """Note that kept models were used: their time stamps are their last use."""
    for path in paths:
        if path is not None:
            with contextlib.suppress(OSError):
                os.utime(path)


def _serialise(model: Any) -> bytes:
    """Length of the graph's XML in 8 bytes, the XML, the weights."""
    with tempfile.TemporaryDirectory() as folder:
        graph, weights = Path(folder, "model.xml"), Path(folder, "model.bin")
        import_openvino().serialize(model, graph, weights)
        text = graph.read_bytes()
        return len(text).to_bytes(8, "little") + text + weights.read_bytes()


def _read_model(content: bytes) -> Any:
    """Read `_serialise`'s bytes; a fresh model goes this way too, so that its rows equal a kept one's."""
    openvino = import_openvino()
    end = 8 + int.from_bytes(content[:8], "little")
    weights = np.frombuffer(content, np.uint8, offset=end).copy()
    return openvino.Core().read_model(content[8:end], openvino.Tensor(weights))


RUNTIMES: dict[str, Runtime] = {
    "openvino": Runtime("openvino", ("cpu",), OpenVINORuntime),
    "torch": Runtime("torch", DEVICES, _compile_torch),
    "torch-compile": Runtime("torch", ("cuda", "cpu"), _compile_inductor),
}
"""In order of preference for ``runtime="auto"``. onnxruntime is left out: it was slower than OpenVINO on
every network tried (2.7 against 3.3 times torch in fp32 on lite0, 0.8 against 1.0 on ViT-S), without bf16."""


def can_run(device: str = "cpu") -> list[str]:
    """Names of the runtimes that serve a device here (for ``featx doctor``)."""
    return [name for name, runtime in RUNTIMES.items() if runtime.serves(device)]


__all__ = [
    "LAUNCHES",
    "RUNTIMES",
    "TOLERANCE",
    "Compiled",
    "Launches",
    "accelerator_likely",
    "accelerator_name",
    "agree",
    "can_run",
    "compile_stem",
    "cpu_flags",
    "environment",
    "resolve_device",
    "resolve_precision",
    "resolve_runtime",
]
