"""The OpenVINO runtime on the CPU, and its converted and compiled models on disk.

A model file begins with a sha256 of the weights' digest and the content: it is read for those weights only.
``.openvino`` files are converted networks, without torch; ``.compiled`` files are what a machine compiled
from them, 5 times as quick to open.

OpenVINO's own cache (``CACHE_DIR``) is not used instead: it does not detect damage, and it keeps compiled
models only, so the converted ones (from which others with fewer outputs are cut) would need these files
anyway. Measured on 2026-11-29 (OpenVINO 2026.4, tf_efficientnet_lite0, fp32, 2 cores, fresh process, median
of 7): the network opens in 0.066 s here, 0.03 s of it for the sha256, in 0.039 s with ``CACHE_DIR``, and in
0.19 s from the converted model. With one bit of its 13 MB cache file flipped, at 30 places, ``CACHE_DIR``
detected 3 and gave other features in 15, without a message (once a sum of 101 instead of 148): they would be
stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import queue
import sys
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.runtimes.base import Batch, ConversionError, Request, agree
from featx.backbones.runtimes.graphs import check_graph, check_model
from featx.backbones.runtimes.hardware import cpu_model, installed_version
from featx.backbones.state import STATE
from featx.exceptions import ModelFileError
from featx.files import atomic_write, make_folder, read_plain
from featx.spec import FeatureSpec

MODEL_FORMAT = 2
"""Raise it when the graph that is made from a spec changes. Models are then converted again."""

MODEL_SUFFIX, COMPILED_SUFFIX = ".openvino", ".compiled"
"""Suffixes of converted models, and of compiled ones."""

MAX_MODEL_BYTES = 16 << 30
"""A larger file is no model."""

KEPT_MODEL_BYTES = 2 << 30
"""Limit for all models on disk. There is one for each set of outputs of a network."""


class OpenVINORuntime:
    """OpenVINO on the CPU: one single-threaded stream for each thread, any batch size, no padding.

    fp32 features are bit-equal for any batch size and any other images in the batch (OpenVINO 2026.4).
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
                "INFERENCE_PRECISION_HINT": hint,  # OpenVINO's default is bf16 if the CPU has it
                "NUM_STREAMS": str(self.streams),
                "INFERENCE_NUM_THREADS": self.streams,
                "ENABLE_CPU_PINNING": False,  # the decoding threads need the same cores
            },
        )
        resolved = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if resolved != hint:
            raise ConversionError(f"it computes {resolved} instead of {hint} on this CPU")
        self._requests = Turns(compiled.create_infer_request() for _ in range(self.streams))
        self._infer_once(request.specs[0].input_size)

    def _infer_once(self, input_size: tuple[int, int]) -> None:
        """Run the process's first inference while no other thread does.

        It initialises static variables of pyopenvino, each of which waits for the GIL: two threads that did
        so at the same time waited for each other for ever (OpenVINO 2026.4).
        """
        with STATE.first_inference:
            if not STATE.inferred:
                self(np.zeros((1, *input_size, 3), np.uint8))
            STATE.inferred = True

    def __call__(self, batch: Batch) -> list[NDArray[np.float32]]:
        """See `Compiled`."""
        with self._requests.one() as request:
            request.infer([np.ascontiguousarray(batch)], share_inputs=True)
            return [np.array(tensor.data, np.float32) for tensor in request.output_tensors]

    def close(self) -> None:
        """See `Compiled.close`."""
        self._requests.clear()


class Turns:
    """A few values that threads use in turns: who waits longest is next.

    A queue gives a value to a thread that has just returned it rather than to one that waits: of four threads
    that predicted with two values, some waited eight times as long as the others.

    Parameters
    ----------
    values : iterable
    """

    def __init__(self, values: Iterable[Any]) -> None:
        self._free = list(values)
        self._waiting: deque[queue.SimpleQueue[Any]] = deque()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def one(self) -> Iterator[Any]:
        """Use one of the values."""
        value = self._take()
        try:
            yield value
        finally:
            self._give(value)

    def _take(self) -> Any:
        turn: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with self._lock:
            if self._free:
                return self._free.pop()
            self._waiting.append(turn)
        try:
            return turn.get()
        except BaseException:  # Ctrl-C
            with self._lock:
                waits = turn in self._waiting
                if waits:
                    self._waiting.remove(turn)
            if not waits:
                self._give(turn.get())
            raise

    def _give(self, value: Any) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().put(value)
            else:
                self._free.append(value)

    def clear(self) -> None:
        """Forget the values that no thread uses."""
        with self._lock:
            self._free.clear()


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which reports to a server of Intel."""
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    unset = "openvino_telemetry" not in sys.modules
    if unset:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # it then uses a stub
    try:
        return importlib.import_module("openvino")
    finally:
        if unset:
            del sys.modules["openvino_telemetry"]


def _compile(request: Request, options: dict[str, Any]) -> Any:
    """Compile the model, or read what was compiled before on a CPU like this one."""
    source, weights = _path(request, MODEL_SUFFIX), request.specs[0].weights
    path, from_file = _path(request, COMPILED_SUFFIX, [cpu_model(), options]), False
    compiled = _import_kept(path, weights, options)
    if compiled is None:
        model = _stored_model(source, weights)
        if model is None and request.graph is not None:
            # What a model file says never gets the name of what was converted here.
            weights, from_file = hashlib.sha256(request.graph).hexdigest(), True
            path = _path(request, COMPILED_SUFFIX, [cpu_model(), options, weights])
            compiled = _import_kept(path, weights, options)
            model = _graph_model(request) if compiled is None else None
        elif model is None:
            model = _read_model(_cut(request) or _convert(request))
    if compiled is None:
        compiled = import_openvino().Core().compile_model(model, "CPU", options)
        exported = compiled.export_model()  # bytes in OpenVINO 2025.0, and a stream since
        _keep(request, path, weights, exported if isinstance(exported, bytes) else exported.getvalue())
    _touch(request, path, None if from_file else source)
    return compiled


def _import_kept(path: Path | None, weights: str, options: dict[str, Any]) -> Any | None:
    """A compiled model from disk; None if there is none that this build of OpenVINO can read."""
    kept = _read(path, weights)
    if kept is None:
        return None
    with contextlib.suppress(RuntimeError):  # written by another build of OpenVINO
        return import_openvino().Core().import_model(kept, "CPU", options)
    return None


def convert(request: Request) -> bytes:
    """Return the converted network of a request, for a model file: from disk, or made now.

    Raises
    ------
    ConversionError
        If OpenVINO cannot convert it.
    """
    kept = _read(_path(request, MODEL_SUFFIX), request.specs[0].weights)
    return kept or _cut(request) or _convert(request)


def _graph_model(request: Request) -> Any:
    """The network of a model file, which may be forged, with the outputs of the request.

    Raises
    ------
    ModelFileError
        If it is not a network that gives these outputs.
    """
    assert request.graph is not None
    openvino = import_openvino()
    check_graph(request.graph)
    height, width = request.specs[0].input_size
    names = [_output_name(spec) for spec in request.specs]
    try:
        model = _read_model(request.graph)
        if len(model.inputs) == 1:
            model.reshape({0: openvino.PartialShape([1, height, width, 3])})
        check_model(model, request.specs, names)
        model.reshape({0: openvino.PartialShape([-1, height, width, 3])})
        outputs = [model.output(name).get_node() for name in names]
        return openvino.Model(outputs, model.get_parameters(), request.specs[0].architecture)
    except (RuntimeError, ValueError, OverflowError) as error:
        raise ModelFileError(
            f"the converted network in the file cannot be used ({_first_line(error)}); get the file again."
        ) from None


def _stored_model(path: Path | None, weights: str) -> Any | None:
    """A converted model from disk; None if there is none that OpenVINO can read."""
    content = _read(path, weights)
    try:
        return None if content is None else _read_model(content)
    except (RuntimeError, ValueError, OverflowError):
        return None


def _cut(request: Request) -> bytes | None:
    """Cut the model from one of the same network with more outputs; None if there is no such file."""
    path = _path(request, MODEL_SUFFIX)
    if path is None:
        return None
    openvino = import_openvino()
    for wider in path.parent.glob(f"{_network_name(request)}-*{MODEL_SUFFIX}"):
        model = _stored_model(wider, request.specs[0].weights)
        if model is None:
            continue
        try:
            outputs = [model.output(_output_name(spec)).get_node() for spec in request.specs]
        except RuntimeError:  # an output is missing
            continue
        content = _serialise(openvino.Model(outputs, model.get_parameters(), request.specs[0].architecture))
        _touch(request, wider)
        _keep(request, path, request.specs[0].weights, content)
        return content
    return None


def trace(module: Any, batches: Sequence[Batch]) -> Any:
    """Trace a torch module into an OpenVINO model with uint8 inputs of any batch size.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode.
    batches : sequence of arrays of shape (2, height, width, 3), uint8
        An example of each input.
    """
    openvino = import_openvino()
    import torch
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.jit.trace is deprecated; OpenVINO still builds on it
        examples = tuple(torch.from_numpy(batch) for batch in batches)
        decoder = TorchScriptPythonDecoder(
            module, example_input=examples, trace_kwargs={"check_trace": False}
        )
    frontend = FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    for own, batch in zip(model.inputs, batches, strict=True):
        own.get_node().set_element_type(openvino.Type.u8)
        own.get_node().set_partial_shape(openvino.PartialShape([-1, *batch.shape[1:]]))
    model.validate_nodes_and_infer_types()
    return model


def _convert(request: Request) -> bytes:
    """Convert the stem to an OpenVINO model, compare its features with torch's, and write it to disk."""
    openvino = import_openvino()
    import torch

    stem = request.make_stem().eval()
    height, width = request.specs[0].input_size
    probe = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    try:
        model = trace(stem, [probe[:2]])
        with torch.no_grad():
            expected = [rows.float().numpy() for rows in stem(torch.from_numpy(probe))]
        for spec, output in zip(request.specs, model.outputs, strict=False):
            output.get_tensor().add_names({_output_name(spec)})
        content = _serialise(model)
        exact = openvino.Core().compile_model(
            _read_model(content), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        rows = list(exact([probe]).values())
    except Exception as error:  # any error of the tracer or OpenVINO: torch can still run it
        raise ConversionError(_first_line(error)) from error
    for ours, theirs in zip(rows, expected, strict=True):
        if ours.shape != theirs.shape or not agree(ours, theirs, "fp32"):
            raise ConversionError("its features differ from torch's")
    _keep(request, _path(request, MODEL_SUFFIX), request.specs[0].weights, content)
    return content


def _keep(request: Request, path: Path | None, weights: str, content: bytes) -> None:
    """Write a model with its sha256. If that fails, it is made again next time."""
    if path is None or not request.keep:
        return
    with contextlib.suppress(OSError):
        make_folder(path.parent, follow_links=False)
        atomic_write(path, _checksum(weights, content) + content, follow_links=False)
        _prune(path.parent)


def _prune(folder: Path) -> None:
    """Remove the least recently used models until `KEPT_MODEL_BYTES` are left."""
    kept = 0
    models = [path for path in folder.iterdir() if path.suffix in (MODEL_SUFFIX, COMPILED_SUFFIX)]
    for path in sorted(models, key=lambda path: -path.lstat().st_mtime):
        kept += path.lstat().st_size
        if kept > KEPT_MODEL_BYTES:
            path.unlink(missing_ok=True)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}"


def _path(request: Request, suffix: str, more: Sequence[Any] = ()) -> Path | None:
    """File of a model, named by its network, its outputs and what else it depends on."""
    if request.model_cache is None:
        return None
    outputs = [_output_name(spec) for spec in request.specs]
    return request.model_cache / f"{_network_name(request)}-{_hash([outputs, *more])}{suffix}"


def _network_name(request: Request) -> str:
    first = request.specs[0]
    recipe = {
        "format": MODEL_FORMAT,
        "openvino": installed_version("openvino"),
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


def _checksum(weights: str, content: bytes | memoryview) -> bytes:
    digest = hashlib.sha256(weights.encode())
    digest.update(content)
    return digest.digest()


def _read(path: Path | None, weights: str) -> bytes | None:
    """Content of a model file, or None if it is absent, damaged or made from other weights."""
    if path is None:
        return None
    try:
        content = read_plain(path, limit=MAX_MODEL_BYTES)
    except OSError:
        return None
    if content is None:
        return None
    return content[32:] if _checksum(weights, memoryview(content)[32:]) == content[:32] else None


def _touch(request: Request, *paths: Path | None) -> None:
    """Set the time stamps of files, which are their last use."""
    for path in paths if request.keep else ():
        if path is not None and not path.parent.is_symlink():
            with contextlib.suppress(OSError):
                os.utime(path, follow_symlinks=False)


def _serialise(model: Any) -> bytes:
    """Serialise a model: length of the XML in 8 bytes, the XML, the weights."""
    with tempfile.TemporaryDirectory() as folder:
        graph, weights = Path(folder, "model.xml"), Path(folder, "model.bin")
        import_openvino().serialize(model, graph, weights)
        text = graph.read_bytes()
        return len(text).to_bytes(8, "little") + text + weights.read_bytes()


def _read_model(content: bytes) -> Any:
    """Read `_serialise`'s bytes. New models are read this way, too, so that their features are the same."""
    openvino = import_openvino()
    end = 8 + int.from_bytes(content[:8], "little")
    weights = np.frombuffer(content, np.uint8, offset=end).copy()
    return openvino.Core().read_model(content[8:end], openvino.Tensor(weights))
