"""Checkpoints as training programs write them: nested, with prefixes, with other things beside the weights.

A file is read without running anything of it (``weights_only=True``).
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featx.exceptions import BackboneError

NESTED = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "teacher", "state_dict", "model_state_dict",
    "model", "module", "net", "network", "backbone", "encoder", "weights", "params", "student",
)  # fmt: skip
"""Keys under which programs keep a state dict, in order of preference: averaged weights first."""

AVERAGED = re.compile(r"(^|[._])(ema|teacher|encoder_q|averaged)([._]|$)")
"""Prefixes of weights that are preferred where a checkpoint has several copies."""

OTHER_NETWORK = "Give the network that was trained as the backbone (`featx models` lists names)."

LISTED = 2
"""Names of tensors that a message gives."""


def read_state(path: Path) -> dict[str, Any]:
    """Read the tensors of a checkpoint by name.

    Raises
    ------
    BackboneError
        If it cannot be read as weights, or holds none.
    """
    _check_unpacked(path)
    try:
        content = _read(path)
    except Exception as error:  # whatever a parser of hostile bytes may raise
        raise BackboneError(f"{path} cannot be read as weights: {_reason(error)}") from error
    state = _state_in(content)
    if state is None:
        raise BackboneError(f"{path} holds no state dict (tensors by name).")
    _check_true_size(state, path)
    return state


def _check_unpacked(path: Path) -> None:
    """Refuse a zip whose members are larger than the file, before it is unpacked."""
    with contextlib.suppress(zipfile.BadZipFile, OSError, ValueError), zipfile.ZipFile(path) as file:
        unpacked = sum(entry.file_size for entry in file.infolist())
        if unpacked > path.stat().st_size:
            raise BackboneError(
                f"{path} becomes {unpacked:,} bytes when it is unpacked; save weights without compression."
            )


def _check_true_size(state: Mapping[str, Any], path: Path) -> None:
    """Refuse tensors that are larger than the numbers behind them."""
    for name, tensor in state.items():
        if not hasattr(tensor, "untyped_storage"):
            continue
        n_bytes = tensor.untyped_storage().nbytes()
        if tensor.numel() * tensor.element_size() > n_bytes:
            raise BackboneError(
                f"{path}: {name} of shape {tuple(tensor.shape)} has only {n_bytes:,} bytes; the file is "
                "damaged or forged."
            )


def fit_names(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tensors under the names that a network has: without the prefix of a program.

    Parameters
    ----------
    state : mapping of str to tensor
        As `read_state` returns it.
    wanted : mapping of str to tensor
        The network's own state dict.

    Returns
    -------
    dict of str to tensor
        The state as it is if no prefix fits more names than none.
    """
    found: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        cut = next((cut for cut in range(len(parts)) if ".".join(parts[cut:]) in wanted), None)
        if cut is not None:
            found["".join(f"{part}." for part in parts[:cut])] += 1
    if not found:
        return dict(state)
    most = max(found.values())
    prefixes = sorted(prefix for prefix, count in found.items() if count == most)
    prefix = next((one for one in prefixes if AVERAGED.search(one)), prefixes[0])
    own = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
    return own if prefix else dict(state)


def describe_misfit(name: str, path: str | Path, state: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Say in one sentence why a state dict is not that of a network, and what to do."""
    lacking = [one for one in wanted if one not in state]
    other = [one for one in state if one not in wanted]
    shapes = [
        f"{one} {_shape(state[one])} instead of {_shape(wanted[one])}"
        for one in wanted
        if one in state and _shape(state[one]) != _shape(wanted[one])
    ]
    parts = []
    if lacking:
        parts.append(f"{len(lacking)} of {len(wanted)} tensors are missing ({_some(lacking)})")
    if shapes:
        parts.append(f"{len(shapes)} have another shape ({_some(shapes)})")
    if other:
        parts.append(f"{len(other)} have names that {name} does not have ({_some(other)})")
    return (
        f"{path} does not fit {name}: {', '.join(parts) or 'its tensors cannot be loaded'}. {OTHER_NETWORK}"
    )


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        import safetensors.torch

        return safetensors.torch.load_file(path)
    import torch

    harmless: list[Any] = [argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath]
    with torch.serialization.safe_globals(harmless):  # options of the training, beside the weights
        return torch.load(path, map_location="cpu", weights_only=True)


def _state_in(content: Any) -> dict[str, Any] | None:
    """The state dict in nested dictionaries; None if there is none."""
    for _ in range(len(NESTED)):
        if not isinstance(content, Mapping):
            return None
        key = next((one for one in NESTED if isinstance(content.get(one), Mapping) and content[one]), None)
        if key is None:
            break
        content = content[key]
    tensors = {str(name): value for name, value in content.items() if hasattr(value, "shape")}
    return tensors or None


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if found := re.search(r"Unsupported (?:global|class)[:\s]+(?:GLOBAL )?([\w.]+)", text):
        return (
            f"it is a pickle of {found[1]}, which is not loaded, since that may run code. Write the tensors "
            "alone: torch.save(model.state_dict(), ...), or a .safetensors file."
        )
    short = text.split(". ")[0][:200] or type(error).__name__
    return f"{short}. Give a state dict in a .safetensors or .pth file."


def _shape(tensor: Any) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _some(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
