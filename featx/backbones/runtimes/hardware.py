"""Hardware: devices, precisions, CPU instructions, and the environment that features are computed in.

torch is imported only to look for an accelerator.
"""

from __future__ import annotations

import contextlib
import ctypes.util
import os
import platform
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from featx.exceptions import UsageError
from featx.spec import PRECISIONS

AUTO = "auto"

ALL = "all"
"""Name of all devices of the kind that `AUTO` takes."""

DEVICES = ("cuda", "mps", "xpu", "cpu")
"""In order of preference. The project's tests run on cpu, and on cuda if there is one."""

ACCELERATOR_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Signs of CUDA, WSL or ROCm on Linux. They are looked for first because torch takes long to import."""

BF16_CPU_FLAGS = ("amx_bf16", "avx512_bf16")
"""With the second, bf16 is twice as fast as fp32 (lite0, AMD EPYC, OpenVINO 2026.4); with the first, more."""


def resolve_precision(name: str, device: str) -> str:
    """Precision that `name` means on a device.

    ``auto`` is bf16 if the device multiplies it natively, else fp16 on CUDA, else fp32.

    Raises
    ------
    UsageError
        If the precision is unknown.
    """
    if name != AUTO:
        if name not in PRECISIONS:
            raise UsageError(f"precision {name!r} is not known; choose one of auto, {', '.join(PRECISIONS)}.")
        return name
    if device.startswith("cpu"):
        return "bf16" if cpu_flags() else "fp32"
    if not device.startswith("cuda"):
        return "fp32"
    import torch

    return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"  # Ampere is 8.0


@cache
def cpu_flags() -> tuple[str, ...]:
    """The CPU's bf16 instructions (see `BF16_CPU_FLAGS`); none if they are not known (not Linux)."""
    present = set(cpu_model().split())
    return tuple(flag for flag in BF16_CPU_FLAGS if flag in present)


@cache
def cpu_model() -> str:
    """All instructions of the CPU, or its name if they are not known (not Linux)."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return line
    return platform.processor()


def environment(runtime: str, device: str) -> dict[str, str]:
    """What may change features without a change of spec: versions, runtime, device, CPU."""
    packages = ("torch", "torchvision", "timm", "openvino", "Pillow", "simplejpeg", "torchcodec")
    return {
        "runtime": runtime,
        "device": device.partition(":")[0],
        "machine": platform.machine(),
        "cpu": " ".join(cpu_flags()),
        **{name: found for name in packages if (found := installed_version(name))},
    }


@cache
def installed_version(package: str) -> str:
    """Version of an installed distribution; empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def accelerator_likely(device: str = AUTO) -> bool:
    """Whether torch must be imported to list devices: False if the system shows no accelerator."""
    if device not in (AUTO, ALL):
        return device.partition(":")[0] != "cpu"
    if installed_version("torch").endswith("+cpu"):
        return False
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if sys.platform == "win32":
        return ctypes.util.find_library("nvcuda") is not None
    return "+xpu" in installed_version("torch") or any(Path(path).exists() for path in ACCELERATOR_FILES)


def accelerator_name(device: str, runtime: str, precision: str) -> str:
    """All that torch's answer about a device depends on, as one text."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return " ".join((platform.node(), installed_version("torch"), visible, device, runtime, precision))


@cache
def has_device(name: str) -> bool:
    """Whether a device is available here."""
    kind, _, number = name.partition(":")
    if kind == "cpu":
        return True
    import torch

    backend = getattr(torch.backends if kind == "mps" else torch, kind)
    return bool(backend.is_available()) and (kind == "mps" or int(number or 0) < backend.device_count())


def device_count(kind: str) -> int:
    """Number of devices of a kind that is available here."""
    if kind in ("cpu", "mps"):
        return 1
    import torch

    return int(getattr(torch, kind).device_count())
