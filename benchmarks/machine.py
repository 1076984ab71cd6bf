"""What a page of figures must say about where they come from."""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

PACKAGES = ("featx", "torch", "torchvision", "timm", "openvino", "scikit-learn", "optuna", "numpy", "h5py")


def describe(seed: int | str) -> str:
    """Date, processor, cores, memory, versions and seed, as one Markdown paragraph."""
    versions = ", ".join(f"{name} {found}" for name in PACKAGES if (found := version(name)))
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"Date {datetime.date.today().isoformat()}; "
        f"{cpu()}, {os.cpu_count()} cores, {gigabytes:.0f} GiB{gpu()}; "
        f"{platform.system()} {platform.machine()}, Python {platform.python_version()}; "
        f"{versions}; seed {seed}{commit()}."
    )


def commit() -> str:
    """The commit of this checkout, if git knows it."""
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return f"; commit {subprocess.run(asked, capture_output=True, check=True, text=True).stdout.strip()}"
    except (OSError, subprocess.CalledProcessError):
        return ""


def version(name: str) -> str | None:
    """Of an installed package, or of featx in this checkout."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return importlib.import_module(name).__version__ if name == "featx" else None


def gpu() -> str:
    """The CUDA device's name, if there is one."""
    import torch

    return f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""


def cpu() -> str:
    """The processor's name and the vector extensions that decide its speed."""
    name, flags = platform.processor() or "unknown processor", set()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    name = line.split(":", 1)[1].strip()
                if line.startswith("flags"):
                    flags = set(line.split(":", 1)[1].split())
                    break
    except OSError:
        pass
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{name} ({', '.join(wide) or 'no wide-vector flags'})"
