"""Runtimes: the table of libraries that run the forward pass.

Every runtime compiles the same stem (normalisation inside, uint8 NHWC in, pooled float32 out), so the
features of one spec agree within `TOLERANCE` for all of them. On CPUs a runtime runs `streams`
single-threaded passes at once instead of one pass on many threads, so that decoding threads and passes share
the cores. Importing this package imports neither torch nor OpenVINO, and a converted model that is found on
disk runs without torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from featx.backbones.runtimes.base import TOLERANCE, Batch, Compiled, ConversionError, Request, agree
from featx.backbones.runtimes.hardware import (
    ALL,
    AUTO,
    DEVICES,
    accelerator_likely,
    accelerator_name,
    cpu_flags,
    device_count,
    environment,
    has_device,
    resolve_precision,
)
from featx.backbones.runtimes.openvino import OpenVINORuntime, convert
from featx.backbones.runtimes.torch import compile_inductor, compile_torch
from featx.exceptions import FeatxWarning, UsageError
from featx.spec import FeatureSpec
from featx.threads import n_threads as all_threads

if TYPE_CHECKING:
    import torch as torch_


@dataclass(frozen=True)
class Runtime:
    """A row of `RUNTIMES`."""

    package: str
    devices: tuple[str, ...]
    compile: Callable[[Request], Compiled]

    def serves(self, device: str) -> bool:
        """Whether it is installed and can use the device."""
        return device in self.devices and find_spec(self.package) is not None


RUNTIMES: dict[str, Runtime] = {
    "openvino": Runtime("openvino", ("cpu",), OpenVINORuntime),
    "torch": Runtime("torch", DEVICES, compile_torch),
    "torch-compile": Runtime("torch", ("cuda", "cpu"), compile_inductor),
}
"""In order of preference for ``runtime="auto"``. onnxruntime is left out: it was slower than OpenVINO on
every network tried (2.7 against 3.3 times torch in fp32 on lite0, 0.8 against 1.0 on ViT-S), without bf16."""


def can_run(device: str = "cpu") -> list[str]:
    """Names of the runtimes that serve a device here (for ``featx doctor``)."""
    return [name for name, runtime in RUNTIMES.items() if runtime.serves(device)]


def compile_stem(
    make_stem: Callable[[], torch_.nn.Module],
    specs: Sequence[FeatureSpec],
    *,
    runtime: str = AUTO,
    device: str = AUTO,
    precision: str | None = None,
    n_threads: int | None = None,
    model_cache: Path | None = None,
    keep: bool = True,
    graph: bytes | None = None,
) -> Compiled:
    """Compile a stem: uint8 NHWC batches in, features out.

    Parameters
    ----------
    make_stem : callable
        Returns the network's stem for `specs` (see `Backbone.stem`). It is not called if `model_cache` has a
        converted model.
    specs : sequence of FeatureSpec
        One for each output; they agree in weights, input size and precision.
    runtime : str, default "auto"
        A name in `RUNTIMES`; "auto" is the first that serves the device. If it cannot convert the stem, torch
        runs it, with a warning.
    device : str, default "auto"
        One of `DEVICES`, or a torch name such as ``"cuda:1"``.
    precision : str, optional
        Compute precision; default the specs' own.
    n_threads : int, optional
        CPU threads; default all that this process may use.
    model_cache : Path, optional
        Folder for converted models.
    keep : bool
        Whether a model that is converted now is kept there; otherwise the folder is only read.
    graph : bytes, optional
        A converted network from a model file, which may be forged: it is checked before it is used, and is
        used only if this machine has none of its own.

    Raises
    ------
    UsageError
        If the runtime or device is unknown, or the runtime cannot use the device.
    """
    device = resolve_device(device, runtime)
    name = resolve_runtime(runtime, device)
    request = Request(
        make_stem,
        specs,
        device,
        precision or specs[0].precision,
        n_threads or all_threads(),
        model_cache,
        keep,
        graph,
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


def convert_stem(
    make_stem: Callable[[], torch_.nn.Module],
    specs: Sequence[FeatureSpec],
    *,
    model_cache: Path | None = None,
) -> bytes:
    """Convert a stem for a model file, from which `compile_stem` reads it as `graph`.

    Parameters
    ----------
    make_stem, specs, model_cache
        As for `compile_stem`.

    Raises
    ------
    BackboneError
        If OpenVINO cannot convert it.
    UsageError
        If OpenVINO is not installed.
    """
    resolve_runtime("openvino", "cpu")
    return convert(Request(make_stem, specs, "cpu", "fp32", all_threads(), model_cache))


def resolve_runtime(name: str, device: str) -> str:
    """Name of the runtime that `name` means on a device. No runtime is imported.

    Raises
    ------
    UsageError
        If it is unknown, not installed, or cannot use the device.
    """
    kind = device.partition(":")[0]
    if name == AUTO:
        found = next((name for name, runtime in RUNTIMES.items() if runtime.serves(kind)), None)
        if found is None:
            raise UsageError(
                f"no runtime for {device!r} is installed: pip install openvino (or torch, timm)."
            )
        return found
    if name not in RUNTIMES:
        raise UsageError(f"runtime {name!r} is not known; choose one of auto, {', '.join(RUNTIMES)}.")
    if not RUNTIMES[name].serves(kind):
        raise UsageError(
            f"runtime {name!r} needs the package {RUNTIMES[name].package} and a device out of "
            f"{', '.join(RUNTIMES[name].devices)}, not {device!r}; runtime='auto' takes what is there."
        )
    return name


def resolve_device(name: str, runtime: str = AUTO) -> str:
    """Name of the device that `name` means here. torch is imported only if an accelerator is likely.

    Parameters
    ----------
    name : str
        ``auto`` is the first of `DEVICES` that is available and that the runtime can use. Of several devices
        (see `resolve_devices`) the first.
    runtime : str
        A name in `RUNTIMES`, or ``auto``.

    Raises
    ------
    UsageError
        If the device is unknown or absent.
    """
    return resolve_devices(name, runtime)[0]


def resolve_devices(name: str, runtime: str = AUTO) -> tuple[str, ...]:
    """Names of the devices that `name` means here, which compute at the same time.

    Parameters
    ----------
    name : str
        As for `resolve_device`; or several of one kind (``"cuda:0,cuda:1"``), or ``"all"`` of the kind that
        ``auto`` takes.
    runtime : str
        A name in `RUNTIMES`, or ``auto``.

    Raises
    ------
    UsageError
        If a device is unknown, absent or named twice, or if they are of several kinds.
    """
    if name == ALL:
        kind = _resolve_one(AUTO, runtime)
        count = device_count(kind)
        return tuple(f"{kind}:{number}" for number in range(count)) if count > 1 else (kind,)
    devices = tuple(_resolve_one(one.strip(), runtime) for one in name.split(","))
    if len(set(devices)) < len(devices):
        raise UsageError(f"device {name!r} names a device twice.")
    if len({device.partition(":")[0] for device in devices}) > 1:
        raise UsageError(
            f"device {name!r}: all devices must be of one kind, since other kinds compute other features; "
            "such as cuda:0,cuda:1."
        )
    return devices


def is_several(name: str) -> bool:
    """Whether a name may mean several devices."""
    return name == ALL or "," in name


def _resolve_one(name: str, runtime: str) -> str:
    if name.partition(":")[0] not in (AUTO, *DEVICES):
        raise UsageError(f"device {name!r} is not known; choose one of auto, all, {', '.join(DEVICES)}.")
    if name == AUTO:
        served = RUNTIMES[runtime].devices if runtime in RUNTIMES else DEVICES
        return next(kind for kind in served if has_device(kind)) if accelerator_likely() else "cpu"
    if name != "cpu" and not has_device(name):
        raise UsageError(
            f"device {name!r} is not available to torch here; device='auto' takes what is there."
        )
    return name


__all__ = [
    "RUNTIMES",
    "TOLERANCE",
    "Batch",
    "Compiled",
    "accelerator_likely",
    "accelerator_name",
    "agree",
    "can_run",
    "compile_stem",
    "convert_stem",
    "cpu_flags",
    "environment",
    "resolve_device",
    "resolve_devices",
    "resolve_precision",
    "resolve_runtime",
]
