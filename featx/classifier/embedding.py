"""A model file with its converted networks inside: it predicts on a machine without torch and timm."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from featx.backbones.finetuned import SUFFIX, is_model_file
from featx.classifier.direct import DirectFeatures
from featx.classifier.reading import GOLDEN_COSINE, cosines, dump_graphs, read_model
from featx.exceptions import FeatxError, UsageError
from featx.files import MODEL_FORMAT, MODEL_KIND, MODEL_MEMBERS, read_archive, write_archive
from featx.images import golden_pictures


def embed_networks(
    path: str | os.PathLike[str], target: str | os.PathLike[str], **machine: Any
) -> dict[str, int]:
    """Write a model file that has its converted networks inside.

    The networks are tried on synthetic images, whose features must be those that the file has.

    Parameters
    ----------
    path : path-like
        A ``.featx`` file.
    target : path-like
        The new file; it may be the same.
    **machine
        ``store``, ``checkpoint`` and ``allow_download``, as for `FeatureExtractor`.

    Returns
    -------
    dict of str to int
        Bytes of each converted network, by the digest of its weights.

    Raises
    ------
    UsageError
        If the name of the new file does not end in ``.featx``.
    BackboneError
        If OpenVINO cannot convert a network.
    FeatxError
        If a converted network gives other features; nothing is written then.
    """
    if not is_model_file(target):
        raise UsageError(f"{os.fspath(target)}: a model file is named with the ending {SUFFIX}.")
    weights = {name: machine[name] for name in ("checkpoint", "allow_download") if name in machine}
    saved = read_model(path, **weights)
    machine = {**machine, "runtime": "openvino", "device": "cpu"}
    graphs = DirectFeatures(saved.model, machine).convert()
    model = dataclasses.replace(saved.model, graphs=graphs)
    pictures = golden_pictures()
    now = DirectFeatures(model, machine, kept=False)(pictures, ["a synthetic image"] * len(pictures))
    if not cosines(now, saved.expected).min() >= GOLDEN_COSINE:
        raise FeatxError(
            f"{saved.where}: the converted network gives other features than when the model was saved "
            f"(cosine {cosines(now, saved.expected).min():.5f}); nothing was written. Fit the model again."
        )
    archive = read_archive(path, kind=MODEL_KIND, allowed=MODEL_MEMBERS, max_format=MODEL_FORMAT)
    members = {**archive.members, **dump_graphs(graphs)}
    write_archive(target, members, kind=MODEL_KIND, format=archive.format)
    return {name: len(graph) for name, graph in graphs.items()}
