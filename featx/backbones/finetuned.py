"""A model file as a source of weights: the network inside it, as fine-tuning left it.

Floors above write the two members; here is what reading them takes: the network before (by its name and
digest, or from the file itself where it came from a user's file), and the trained layers laid over it. The
file is read as a hostile one: the network must be one that timm registers, and every tensor must fit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featx.backbones.card import BackboneCard
from featx.exceptions import BackboneError, ModelFileError, UsageError
from featx.files import MODEL_FORMAT, MODEL_KIND, MODEL_MEMBERS, read_archive, read_json

SUFFIX = ".featx"
FORMAT = 1
"""Of the two members; raise it when their meaning changes."""
JSON_MEMBER, TENSOR_MEMBER = "finetune.json", "finetune.safetensors"
"""Names of the two members that a model file holds."""
TAIL, BASE = "tail.", "base."
"""What stands before the names of tensors: of the trained layers, and of the whole network before."""


def is_model_file(name: object) -> bool:
    """Whether a backbone's name or a checkpoint's path means a file that featx saved."""
    return isinstance(name, str | os.PathLike) and os.fspath(name).endswith(SUFFIX)


def read_base_card(path: str | os.PathLike[str]) -> BackboneCard:
    """Card of the network that was fine-tuned.

    Raises
    ------
    UsageError
        If the file holds a head on frozen features only.
    ModelFileError
        If it is damaged.
    """
    return _read(path)[0]


def load_finetuned(name: str, path: Path) -> Any:
    """The fine-tuned network of a model file, as `Weights.load` has it.

    Raises
    ------
    BackboneError
        If it is of another architecture than `name`.
    ModelFileError
        If its tensors are not those of the network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    card, data = _read(path)
    if card.name != name:
        raise BackboneError(f"{path} holds a fine-tuned {card.name}, and {name} is wanted.")
    try:
        tensors = load(data)
        module = open_base(card, tensors)
        module.load_state_dict(lay_over(module.state_dict(), tensors))
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(
            f"{path}: its fine-tuned network cannot be read ({str(error).splitlines()[0]}); "
            "get the file again."
        ) from error
    return module


def open_base(card: BackboneCard, tensors: Mapping[str, Any]) -> Any:
    """The timm network before fine-tuning: from the file's own tensors, or by its name.

    Raises
    ------
    BackboneError
        If the weights that its name gives here are others.
    """
    from featx.backbones import load_backbone
    from featx.backbones.network import digest_tensors
    from featx.backbones.sources import load_state

    own = {key.removeprefix(BASE): _tensor(value) for key, value in tensors.items() if key.startswith(BASE)}
    if not own:
        return load_backbone(card, device="cpu").module
    module = load_state(card.name, own)
    if digest_tensors(module.state_dict()) != card.weights:
        raise ModelFileError(
            f"the tensors of {card.name} in this file are not those that it was fine-tuned from."
        )
    return module.eval().requires_grad_(False)


def lay_over(state: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A network's state with the trained layers in the places of the old ones."""
    trained = {
        key.removeprefix(TAIL).removeprefix("network."): _tensor(value)
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


def _read(path: str | os.PathLike[str]) -> tuple[BackboneCard, bytes]:
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
        import json

        card = BackboneCard.from_json(json.dumps(plain["card"]))
        if not isinstance(card.name, str) or not isinstance(card.source, str):
            raise TypeError("a name that is no text")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(f"{archive.where}: {JSON_MEMBER} is not what featx writes ({error}).") from None
    return card, archive[TENSOR_MEMBER]


def _tensor(value: Any) -> Any:
    import torch

    return value if isinstance(value, torch.Tensor) else torch.from_numpy(value.copy())
