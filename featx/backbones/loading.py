"""Open networks: their cards, their weights, and the fine-tuned networks inside model files.

`open_card` is what a warm run calls. It reads the store's notes first, and imports neither torch nor timm if
the file of the weights is unchanged. Otherwise the network is loaded and measured.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.backbones.card import BackboneCard
from featx.backbones.catalog import check_name
from featx.backbones.finetuned import BASE, as_tensor, is_model_file, lay_over, read_base_card, read_members
from featx.backbones.runtimes import resolve_device
from featx.backbones.sources import (
    count_parameters,
    find_local,
    find_weights,
    load_random,
    load_state,
    stamp_file,
)
from featx.exceptions import BackboneError, ModelFileError, UsageError, WeightsNotFoundError

if TYPE_CHECKING:
    from featx.backbones.network import Backbone
    from featx.stores.base import FeatureStore

CARD_FORMAT = 1
"""Raise it when a card's fields or their meaning change. Older notes are then not read."""


def open_card(
    name: str,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    pretrained: bool = True,
    seed: int = 0,
    allow_download: bool | None = None,
    store: FeatureStore | None = None,
) -> BackboneCard:
    """Open the card of a network: from the store's notes if nothing changed, else by loading the network.

    Parameters
    ----------
    name : str
        A registered timm name, with or without a tag; or a saved model (``"pets.featx"``) whose network was
        fine-tuned.
    checkpoint : path, optional
        File of weights, or a folder with one, instead of the known sources.
    pretrained : bool
        False makes random weights from `seed`.
    seed : int
        Seed of random weights.
    allow_download : bool, optional
        Whether missing weights are downloaded. Default: those of a timm name are, those of a network that a
        model file names are not.
    store : FeatureStore, optional
        Its notes keep the card.

    Raises
    ------
    UnknownModelError
        If timm has no such name or tag. The message names the nearest ones.
    WeightsNotFoundError
        If no source has the weights and the store has no card. The message says how to get them.
    """
    name, checkpoint = resolve_name(name, checkpoint)
    note = _note_name(name, checkpoint, pretrained=pretrained, seed=seed)
    remembered = store.recall("backbones", note) if store is not None else None
    try:
        if remembered is not None and _is_current(remembered, name, checkpoint, pretrained=pretrained):
            return BackboneCard.from_json(remembered["card"])
        backbone, stamp = _load(
            name, checkpoint=checkpoint, pretrained=pretrained, seed=seed, allow_download=allow_download
        )
    except WeightsNotFoundError:
        if remembered is None:
            raise
        return BackboneCard.from_json(remembered["card"])  # features made with them may be left
    if store is not None:
        store.remember("backbones", note, {"card": backbone.card.to_json(), "stamp": stamp})
    return backbone.card


def load_backbone(
    name: str | BackboneCard,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    pretrained: bool = True,
    seed: int = 0,
    allow_download: bool | None = None,
    device: str = "auto",
) -> Backbone:
    """Load a network.

    Parameters
    ----------
    name : str or BackboneCard
        A registered timm name, a saved model, or a card. The weights must be those of the card (random ones
        are made from its seed).
    checkpoint, pretrained, seed, allow_download
        As for `open_card`.
    device : str
        ``auto`` is the first available of cuda, mps, xpu and cpu; else one of these, or such as ``cuda:1``.

    Raises
    ------
    UnknownModelError, WeightsNotFoundError
        As for `open_card`.
    BackboneError
        If a card is given and the weights are others.
    """
    card = name if isinstance(name, BackboneCard) else None
    if card is None:
        name, checkpoint = resolve_name(str(name), checkpoint)
    if card is not None and card.source.startswith("random:"):
        pretrained, seed = False, int(card.source.partition(":")[2])
    backbone, _ = _load(
        card.name if card else str(name),
        checkpoint=checkpoint,
        pretrained=pretrained,
        seed=seed,
        allow_download=allow_download,
        card=card,
    )
    backbone.module.to(resolve_device(device))
    return backbone


def resolve_name(
    name: str, checkpoint: str | os.PathLike[str] | None = None
) -> tuple[str, str | os.PathLike[str] | None]:
    """Timm's name and the checkpoint of a backbone's name; a saved model is both.

    Raises
    ------
    UsageError
        If a checkpoint is given with a saved model, or the model has no network of its own.
    ModelFileError
        If it is damaged.
    """
    if not is_model_file(name):
        return name, checkpoint
    if checkpoint is not None:
        raise UsageError(f"the backbone {name} has weights of its own; give no checkpoint with it.")
    return read_base_card(name).name, name


def open_base(card: BackboneCard, tensors: Mapping[str, Any], *, allow_download: bool | None = False) -> Any:
    """The timm network before fine-tuning: from the file's own tensors, or by its name.

    Parameters
    ----------
    card : BackboneCard
        Of the network.
    tensors : mapping of str to array or tensor
        Tensors of the file.
    allow_download : bool, optional
        Whether missing weights are downloaded.

    Raises
    ------
    BackboneError
        If the weights that its name gives here are others.
    """
    from featx.backbones.network import digest_tensors

    own = {key.removeprefix(BASE): as_tensor(value) for key, value in tensors.items() if key.startswith(BASE)}
    if not own:
        return load_backbone(card, allow_download=allow_download, device="cpu").module
    module = load_state(card.name, own)
    if digest_tensors(module.state_dict()) != card.weights:
        raise ModelFileError(
            f"the tensors of {card.name} in this file are not those that it was fine-tuned from."
        )
    return module.eval().requires_grad_(False)


def _load(
    name: str,
    *,
    checkpoint: str | os.PathLike[str] | None,
    pretrained: bool,
    seed: int,
    allow_download: bool | None,
    card: BackboneCard | None = None,
) -> tuple[Backbone, list[Any]]:
    """The network on the CPU, and the stamp of its file."""
    check_name(name)
    from featx.backbones.network import Backbone, describe, digest_tensors

    if pretrained:
        weights = find_weights(name, checkpoint=checkpoint, allow_download=allow_download is not False)
        source, stamp = weights.source, weights.stamp
        if is_model_file(weights.path):
            module = _load_finetuned(name, weights.path, allow_download=bool(allow_download))
        else:
            module = weights.load(name, weights.path)
    else:
        source, stamp = f"random:{seed}", []
        if card is not None and count_parameters(name) != card.parameters:
            raise BackboneError(f"{name} does not have the {card.parameters:,} parameters of its card.")
        module = load_random(name, seed)
    module.eval().requires_grad_(False)
    if card is None:
        return Backbone(describe(name, source, module), module), stamp
    found = digest_tensors(module.state_dict())
    if found != card.weights:
        raise BackboneError(
            f"the weights of {name} from {source} have digest {found[:12]}…, but {card.weights[:12]}… (from "
            f"{card.source}) was expected: the file has changed, or it is another checkpoint."
        )
    return Backbone(card, module), stamp


def _note_name(name: str, checkpoint: str | os.PathLike[str] | None, *, pretrained: bool, seed: int) -> str:
    """All that determines the weights, and the versions that read or make them."""
    path = None if checkpoint is None else str(Path(checkpoint).expanduser().absolute())
    origin = ["file", path] if path else ["known"] if pretrained else ["random", seed]
    versions = [importlib.metadata.version(library) for library in ("timm", "torch")]
    return json.dumps([CARD_FORMAT, *versions, name, *origin])


def _is_current(
    note: dict[str, Any], name: str, checkpoint: str | os.PathLike[str] | None, *, pretrained: bool
) -> bool:
    """Whether the same file would be chosen again, and is unchanged."""
    if not pretrained:
        return True
    local = find_local(name, checkpoint=checkpoint)
    if local is not None:
        return bool(local.stamp == note["stamp"])
    path = Path(note["stamp"][0])
    reference = path.parents[2] / "refs" / "main"  # the hub cache: repository/snapshots/revision/file
    moved_on = reference.is_file() and reference.read_text().strip() != path.parent.name
    return path.is_file() and stamp_file(path) == note["stamp"] and not moved_on


def _load_finetuned(name: str, path: Path, *, allow_download: bool) -> Any:
    """Load the fine-tuned network of a model file.

    Raises
    ------
    BackboneError
        If it is a fine-tuned network of another name.
    ModelFileError
        If its tensors are not those of the network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    card, data = read_members(path)
    if card.name != name:
        raise BackboneError(f"{path} holds a fine-tuned {card.name}, and {name} was requested.")
    try:
        tensors = load(data)
        module = open_base(card, tensors, allow_download=allow_download)
        module.load_state_dict(lay_over(module.state_dict(), tensors))
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(
            f"{path}: its fine-tuned network cannot be read ({str(error).splitlines()[0]}); "
            "get the file again."
        ) from error
    return module
