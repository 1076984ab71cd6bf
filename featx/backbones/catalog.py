"""What can be had: cards and networks by name, the list of names, and the download.

`open_card` is what a warm run calls. It asks the store's notes first and imports neither torch nor timm when
the file that the weights came from is still the same; only then is the network loaded and measured.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featx.backbones import sources
from featx.backbones.card import BackboneCard
from featx.backbones.finetuned import is_model_file, read_base_card
from featx.backbones.runtimes import resolve_device
from featx.exceptions import BackboneError, UnknownModelError, UsageError, WeightsNotFoundError

if TYPE_CHECKING:
    from featx.backbones.network import Backbone
    from featx.stores.base import FeatureStore

CARD_FORMAT = 1
"""Raise it when a card's fields or their meaning change; older notes are then not read."""


def open_card(
    name: str,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    pretrained: bool = True,
    seed: int = 0,
    store: FeatureStore | None = None,
) -> BackboneCard:
    """The card of a network, from the store's notes if nothing changed, else by loading the network.

    Parameters
    ----------
    name : str
        A registered timm name, with or without a tag; or a saved model (``"pets.featx"``) whose network was
        fine-tuned.
    checkpoint : path, optional
        A file (or a folder with one) of weights to use instead of the known sources.
    pretrained : bool
        False takes random weights from `seed`.
    seed : int
        Of random weights.
    store : FeatureStore, optional
        Whose notes to ask and to keep the card in.

    Raises
    ------
    UnknownModelError
        If timm has no such name or tag; the message names the nearest ones.
    WeightsNotFoundError
        If no source has the weights and the store knows no card; the message says how to get them.
    """
    name, checkpoint = resolve_name(name, checkpoint)
    note = _note_name(name, checkpoint, pretrained=pretrained, seed=seed)
    remembered = store.recall("backbones", note) if store is not None else None
    try:
        if remembered is not None and _is_current(remembered, name, checkpoint, pretrained=pretrained):
            return BackboneCard.from_json(remembered["card"])
        backbone, stamp = _load(name, checkpoint=checkpoint, pretrained=pretrained, seed=seed)
    except WeightsNotFoundError:
        if remembered is None:
            raise
        return BackboneCard.from_json(remembered["card"])  # the weights are gone; rows made with them are not
    if store is not None:
        store.remember("backbones", note, {"card": backbone.card.to_json(), "stamp": stamp})
    return backbone.card


def load_backbone(
    name: str | BackboneCard,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    pretrained: bool = True,
    seed: int = 0,
    device: str = "auto",
) -> Backbone:
    """Load a network.

    Parameters
    ----------
    name : str or BackboneCard
        A registered timm name or a saved model; or a card, whose weights the loaded ones must then be
        (random ones are made from its own seed).
    checkpoint, pretrained, seed
        As for `open_card`.
    device : str
        ``auto`` is the first there is of cuda, mps, xpu and cpu; else one of these, or such as ``cuda:1``.

    Raises
    ------
    UnknownModelError, WeightsNotFoundError
        As for `open_card`.
    BackboneError
        If a card is given and the weights found are others.
    """
    card = name if isinstance(name, BackboneCard) else None
    if card is None:
        name, checkpoint = resolve_name(str(name), checkpoint)
    if card is not None and card.source.startswith("random:"):
        pretrained, seed = False, int(card.source.partition(":")[2])
    backbone, _ = _load(
        card.name if card else str(name), checkpoint=checkpoint, pretrained=pretrained, seed=seed, card=card
    )
    backbone.module.to(resolve_device(device))
    return backbone


def resolve_name(
    name: str, checkpoint: str | os.PathLike[str] | None = None
) -> tuple[str, str | os.PathLike[str] | None]:
    """Timm's name and the checkpoint that a backbone's name means: a saved model is both in one.

    Raises
    ------
    UsageError
        If a checkpoint is given beside a saved model, or that has no network of its own.
    ModelFileError
        If it is damaged.
    """
    if not is_model_file(name):
        return name, checkpoint
    if checkpoint is not None:
        raise UsageError(f"the backbone {name} has weights of its own; give no checkpoint beside it.")
    return read_base_card(name).name, name


@dataclass(frozen=True)
class ModelRow:
    """One line of `list_models`.

    Parameters
    ----------
    name : str
        timm's name with the tag.
    source : str
        ``package``, ``cache`` or ``hub``: who would give the weights.
    available : bool
        Whether they are on this machine.
    input_size : tuple of int
        Height and width, in pixels.
    licence : str or None
        Of the weights, as timm states it.
    """

    name: str
    source: str
    available: bool
    input_size: tuple[int, int]
    licence: str | None


def list_models(pattern: str | None = None) -> list[ModelRow]:
    """Names with pretrained weights, those on this machine first.

    Parameters
    ----------
    pattern : str, optional
        A shell pattern (``"vit_*dinov2*"``); a text without wildcards may stand anywhere in the name.
    """
    import timm

    if pattern is not None and not any(sign in pattern for sign in "*?["):
        pattern = f"*{pattern}*"
    rows = [_model_row(name) for name in timm.list_models(pattern or "", pretrained=True)]
    return sorted(rows, key=lambda row: not row.available)


def download(name: str) -> Path:
    """Make sure that a network's weights are on this machine.

    Returns
    -------
    Path
        The file that holds them.

    Raises
    ------
    UnknownModelError, WeightsNotFoundError
        As for `open_card`.
    """
    check_name(name)
    return sources.find_weights(name).path


def check_name(name: str) -> None:
    """Refuse what is not a registered timm name, with the nearest that are.

    Raises
    ------
    UnknownModelError
    """
    import timm

    architecture, _, tag = name.partition(".")
    if timm.is_model(architecture):
        tags = list(timm.list_models(f"{architecture}.*", pretrained=True))
        if not tag or name in tags:
            return
        near = difflib.get_close_matches(name, tags, 3, cutoff=0) or [architecture]
        raise UnknownModelError(
            f"{architecture} has no weights tagged {tag!r}; nearest: {', '.join(near)}. "
            f"See: featx models {architecture}"
        )
    known = timm.list_models(pretrained=True) if tag else timm.list_models()
    near = difflib.get_close_matches(name, known, 3, cutoff=0)
    raise UnknownModelError(
        f"{name!r} is not a registered timm name (folders and hub addresses are not loaded by name; use "
        f"checkpoint=); nearest: {', '.join(near)}. See: featx models PATTERN"
    )


def _load(
    name: str,
    *,
    checkpoint: str | os.PathLike[str] | None,
    pretrained: bool,
    seed: int,
    card: BackboneCard | None = None,
) -> tuple[Backbone, list[Any]]:
    """The network on the CPU, and the stamp of its file."""
    check_name(name)
    from featx.backbones.network import Backbone, describe, digest_tensors

    if pretrained:
        weights = sources.find_weights(name, checkpoint=checkpoint)
        source, stamp = weights.source, weights.stamp
        module = weights.load(name, weights.path)
    else:
        source, stamp = f"random:{seed}", []
        module = sources.load_random(name, seed)
    module.eval().requires_grad_(False)
    if card is None:
        return Backbone(describe(name, source, module), module), stamp
    found = digest_tensors(module.state_dict())
    if found != card.weights:
        raise BackboneError(
            f"the weights of {name} from {source} have digest {found[:12]}…, but {card.weights[:12]}… (from "
            f"{card.source}) is wanted: the file has changed, or another checkpoint is meant."
        )
    return Backbone(card, module), stamp


def _note_name(name: str, checkpoint: str | os.PathLike[str] | None, *, pretrained: bool, seed: int) -> str:
    """All that chooses the weights, and the versions that read or draw them."""
    path = None if checkpoint is None else str(Path(checkpoint).expanduser().absolute())
    origin = ["file", path] if path else ["known"] if pretrained else ["random", seed]
    versions = [importlib.metadata.version(library) for library in ("timm", "torch")]
    return json.dumps([CARD_FORMAT, *versions, name, *origin])


def _is_current(
    note: dict[str, Any], name: str, checkpoint: str | os.PathLike[str] | None, *, pretrained: bool
) -> bool:
    """Whether the same file, unchanged, would be chosen again."""
    if not pretrained:
        return True
    local = sources.find_local(name, checkpoint=checkpoint)
    if local is not None:
        return bool(local.stamp == note["stamp"])
    path = Path(note["stamp"][0])
    reference = path.parents[2] / "refs" / "main"  # the hub cache: repository/snapshots/revision/file
    moved_on = reference.is_file() and reference.read_text().strip() != path.parent.name
    return path.is_file() and sources.stamp_file(path) == note["stamp"] and not moved_on


def _model_row(name: str) -> ModelRow:
    import timm

    config = timm.get_pretrained_cfg(name)
    packaged = sources.find_in_package(name, None) is not None
    available = packaged or sources.find_in_cache(name, None) is not None
    height, width = config.input_size[1:]
    source = "package" if packaged else "cache" if available else "hub"
    return ModelRow(name, source, available, (height, width), config.license)
