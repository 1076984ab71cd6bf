"""The torch runtime, and torch-compile."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.runtimes.base import Batch, Compiled, Request
from featx.backbones.state import LAUNCHES, STATE

if TYPE_CHECKING:
    import torch


class TorchRuntime:
    """PyTorch: channels-last, autocast; on CUDA pinned, asynchronous copies on one stream for each thread.

    With two threads, the copies of one overlap with the kernels of the other.
    """

    name = "torch"

    def __init__(self, request: Request, *, inductor: bool = False) -> None:
        import torch

        self.device = request.device
        self.precision = request.precision
        self.streams = request.n_threads if self.device.startswith("cpu") else 2
        stem = request.make_stem().eval().to(self.device).to(memory_format=torch.channels_last)
        self._stem: Callable[[torch.Tensor], Sequence[torch.Tensor]] | None = stem
        if inductor:
            self.name = "torch-compile"
            self._stem = torch.compile(stem, dynamic=True)
        self._local = threading.local()

    def __call__(self, batch: Batch) -> list[NDArray[np.float32]]:
        """See `Compiled`."""
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
        """Compute in the spec's precision: autocast for bf16 and fp16, no TF32 for fp32."""
        import torch

        kind = self.device.partition(":")[0]
        if self.precision != "fp32":
            dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
            with torch.autocast(kind, dtype=dtype):
                yield
        elif kind == "cuda":
            switches: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
            with STATE.tf32:  # the switch belongs to the process and is read when kernels are launched
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
        """See `Compiled.close`."""
        self._stem = None


def compile_torch(request: Request) -> Compiled:
    """Compile with torch."""
    return TorchRuntime(request)


def compile_inductor(request: Request) -> Compiled:
    """Compile with torch.compile."""
    return TorchRuntime(request, inductor=True)
