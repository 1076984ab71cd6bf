"""The fine-tuned network inside a model file: its two members, as bytes and tensors.

The members say which network was fine-tuned (by name and digest, or with its tensors if these came from a
user's file), and hold the trained layers. The file may come from a stranger: the network must be one that
timm registers, and every tensor must fit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from featx.backbones.card import BackboneCard
from featx.exceptions import ModelFileError, UsageError
from featx.files import MODEL_FORMAT, MODEL_KIND, MODEL_MEMBERS, read_archive, read_json

SUFFIX = ".featx"
FORMAT = 1
"""Format of the two members. Raise it when their meaning changes."""
JSON_MEMBER, TENSOR_MEMBER = "finetune.json", "finetune.safetensors"
"""Names of the two members."""
TAIL, BASE = "tail.", "base."
"""Prefixes of the names of tensors: of trained layers, and of the whole network before fine-tuning."""


def is_model_file(name: object) -> bool:
    """Whether a backbone's name or a checkpoint's path is a model file of featx."""
    return isinstance(name, str | os.PathLike) and os.fspath(name).endswith(SUFFIX)


def read_base_card(path: str | os.PathLike[str]) -> BackboneCard:
    """Read the card of the network that was fine-tuned.

    Raises
    ------
    UsageError
        If the file has no fine-tuned network.
    ModelFileError
        If it is damaged.
    """
    return read_members(path)[0]


def lay_over(state: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """State of a network with the trained layers instead of the original ones."""
    trained = {
        key.removeprefix(TAIL).removeprefix("network."): as_tensor(value)
        for key, value in tensors.items()
        if key.startswith(TAIL)
    }
    return {**state, **{key: value for key, value in trained.items() if key in state}}


def _network_name(model: Any) -> str:
    """The network that a saved model names; the file may be forged."""
    try:
        return str(model["model"]["cards"][0]["name"])
    except (LookupError, TypeError):
        return "unknown"


def read_members(path: str | os.PathLike[str]) -> tuple[BackboneCard, bytes]:
    """Read the card and the tensors (safetensors) of a fine-tuned network; see `read_base_card`."""
    archive = read_archive(path, kind=MODEL_KIND, allowed=MODEL_MEMBERS, max_format=MODEL_FORMAT)
    if JSON_MEMBER not in archive:
        model = read_json(archive["model.json"], where=f"{archive.where}: model.json")
        own = _network_name(model)
        raise UsageError(
            f"{archive.where} holds a head on frozen features and no network of its own; "
            f"use the backbone that it was made with: {own}."
        )
    plain = read_json(archive[JSON_MEMBER], where=f"{archive.where}: {JSON_MEMBER}")
    try:
        if plain["format"] != FORMAT:
            raise ValueError(f"format {plain['format']}, and this featx reads {FORMAT}")
        card = BackboneCard.from_json(json.dumps(plain["card"]))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(f"{archive.where}: {JSON_MEMBER} is not what featx writes ({error}).") from None
    return card, archive[TENSOR_MEMBER]


def as_tensor(value: Any) -> Any:
    """A torch tensor, from an array or a tensor."""
    import torch

    return value if isinstance(value, torch.Tensor) else torch.from_numpy(value.copy())
