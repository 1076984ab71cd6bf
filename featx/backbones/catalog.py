"""Catalog: the names of networks with pretrained weights, and their download."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from featx.backbones import sources
from featx.exceptions import UnknownModelError

OF_TIMM = "models--timm--"
"""Start of the folders of timm's repositories in the hub's cache."""


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


def local_names() -> tuple[str, ...]:
    """Names of networks whose weights are on this machine, without a search through all of timm.

    These are the packaged ones, and those of timm's repositories in the hub's local cache. timm is imported
    only if there is one.
    """
    from huggingface_hub import constants

    packaged = [name for name in sources.PACKAGES if sources.find_in_package(name, None) is not None]
    folders = Path(constants.HF_HUB_CACHE).glob(f"{OF_TIMM}*")
    cached = sorted(folder.name.removeprefix(OF_TIMM) for folder in folders)
    return (*packaged, *(name for name in cached if name not in packaged and _is_cached(name)))


def count_operations(name: str) -> float:
    """Multiplications and additions of one image of the pretrained size, counted without weights.

    Raises
    ------
    UnknownModelError
        If timm has no such name.
    """
    check_name(name)
    import timm
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    size = timm.get_pretrained_cfg(name).input_size
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        timm.create_model(name, pretrained=False).eval()(torch.empty(1, *size))
    return float(counter.get_total_flops())


def nearest_names(pattern: str, n: int = 5) -> list[str]:
    """Names with pretrained weights that are most like a name or a pattern that matches none."""
    import timm

    plain = pattern.translate(str.maketrans("", "", "*?[]!"))
    known = timm.list_models(pretrained=True)
    by_architecture = {name.partition(".")[0]: name for name in reversed(known)}
    near = difflib.get_close_matches(plain, by_architecture, n, cutoff=0.4)
    return near or _alike(plain, known, n)


def _alike(name: str, known: Sequence[str], n: int) -> list[str]:
    """Known names that hold a name, the shortest first, then those that are spelt alike.

    The names of hubs and libraries before it (``timm/``) and its case and signs do not matter.
    """
    plain = re.split(r"[/:]", name)[-1].lower()
    bare = re.sub(r"\W|_", "", plain)
    holding = [one for one in known if bare and bare in re.sub(r"\W|_", "", one)]
    close = difflib.get_close_matches(plain, known, n, cutoff=0)
    return list(dict.fromkeys([*sorted(holding, key=lambda one: (len(one), one))[:n], *close]))[:n]


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
    near = _alike(name, known, 3)
    raise UnknownModelError(
        f"{name!r} is not a registered timm name (folders and hub addresses are not loaded by name; use "
        f"checkpoint=); nearest: {', '.join(near)}. See: featx models PATTERN"
    )


def _is_cached(name: str) -> bool:
    import timm

    is_known = timm.is_model(name.partition(".")[0]) and timm.get_pretrained_cfg(name) is not None
    return is_known and sources.find_in_cache(name, None) is not None


def _model_row(name: str) -> ModelRow:
    import timm

    config = timm.get_pretrained_cfg(name)
    packaged = sources.find_in_package(name, None) is not None
    available = packaged or sources.find_in_cache(name, None) is not None
    height, width = config.input_size[1:]
    source = "package" if packaged else "cache" if available else "hub"
    return ModelRow(name, source, available, (height, width), config.license)
