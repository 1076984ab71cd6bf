"""A fitted model as one safe file, and back as a scikit-learn classifier; `reading` has the other half."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.finetuned import SUFFIX, is_model_file
from featx.classifier.model import GROUP_BYTES, ImageModel
from featx.classifier.reading import check_head, dump_graphs, head_proba, model_json, read_model
from featx.classifier.record import FitRecord
from featx.exceptions import FeatxWarning, UsageError
from featx.files import MODEL_FORMAT, MODEL_KIND, write_archive
from featx.images import golden_pictures
from featx.modelfile import dump_arrays, dump_head
from featx.records import to_plain


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """What `load_model` returns.

    Parameters
    ----------
    model : ImageModel
        The model.
    record : FitRecord
        How it came about.
    expected : array of shape (GOLDEN_PICTURES, n_features)
        Features of the synthetic images when the model was saved.
    """

    model: ImageModel
    record: FitRecord
    expected: NDArray[np.float32]


def save_model(
    model: ImageModel,
    record: FitRecord,
    params: Mapping[str, Any],
    machine: Mapping[str, Any],
    path: str | os.PathLike[str],
) -> Path:
    """Write a model to a file.

    Parameters
    ----------
    model, record : ImageModel, FitRecord
        What to save.
    params : mapping
        Parameters of the classifier, as plain values.
    machine : mapping
        Parameters of `FeatureExtractor` that do not change features: the synthetic images are extracted.
    path : path-like
        The file; its name ends in ``.featx``.

    Raises
    ------
    UsageError
        If its name does not.
    """
    if not is_model_file(path):
        raise UsageError(f"{os.fspath(path)}: a model file is named with the ending {SUFFIX}.")
    pictures = golden_pictures()
    features = model.extract_for_head(pictures, machine).blocks.stack(model.blocks)
    arrays: dict[str, NDArray[Any]] = {"features": features, "proba": head_proba(model, features)}
    network = model.network
    if network is not None:
        tuned = model.extract(pictures, machine).blocks.stack(model.used_blocks)
        arrays |= {"tuned_features": tuned, "tuned_proba": network.proba_of_features(tuned)}
    images = model.images
    split: dict[str, NDArray[Any]] = {
        "ids": images.ids,
        "test": images.is_test.astype(np.uint8),
        "labels": images.codes.astype(np.int32),
        "groups": np.empty((0, GROUP_BYTES), np.uint8) if images.groups is None else images.groups,
        "oof_proba": record.oof_proba,
    }
    sample = model.sample
    assert sample is not None
    kept: dict[str, NDArray[Any]] = {"axes": sample.axes, "rows": sample.rows, "distances": sample.distances}
    plain = {"model": _describe(model), "record": record.to_dict(), "params": dict(params)}
    members: dict[str, bytes] = {
        "model.json": json.dumps(plain, sort_keys=True, allow_nan=False).encode(),
        "golden.safetensors": dump_arrays(arrays),
        "split.safetensors": dump_arrays(split),
        "sample.safetensors": dump_arrays(kept),
        **dump_head(record.params["head"], model.head),
        **({} if network is None else network.to_members()),
        **dump_graphs(model.graphs),
    }
    target = Path(path)
    write_archive(target, members, kind=MODEL_KIND, format=MODEL_FORMAT)
    return target


def load_model(
    path: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    allow_download: bool = False,
    restore: Callable[[Mapping[str, Any]], None] = lambda params: None,
) -> LoadedModel:
    """Read a model that `save_model` wrote, as a file that may be forged.

    Parameters
    ----------
    path, checkpoint, allow_download
        As for `read_model`.
    restore : callable
        Called with the saved parameters of the classifier.

    Raises
    ------
    ModelFileError
        If the file is damaged, forged, of a newer format, or its head now gives other outputs.
    """
    saved = read_model(path, checkpoint=checkpoint, allow_download=allow_download)
    with model_json(saved.where):
        record = FitRecord.from_dict(saved.plain["record"])
        head = saved.head.pipeline(saved.model.classes)
        restore(saved.plain["params"])
    model = dataclasses.replace(saved.model, head=head)
    check_head(saved, model)
    _warn_of_version(record, saved.where)
    record = dataclasses.replace(record, oof_proba=saved.split["oof_proba"].astype(np.float64))
    return LoadedModel(model, record, saved.expected)


def _describe(model: ImageModel) -> dict[str, Any]:
    classes = np.asarray(model.classes)
    return {
        "blocks": list(model.blocks),
        "specs": {name: to_plain(spec) for name, spec in model.specs.items()},
        "cards": [to_plain(card) for card in model.cards],
        "classes": {
            "dtype": "object" if classes.dtype == object else classes.dtype.str,
            "values": classes.tolist(),
        },
        "calibration": to_plain(model.calibration),
        "class_weights": list(model.class_weights),
        "decision": to_plain(model.decision),
        "augmentation": to_plain(model.augmentation),
    }


def _warn_of_version(record: FitRecord, where: str) -> None:
    """Warn of another scikit-learn (apart from patches), although the head gives the same outputs."""
    made = str(record.versions.get("scikit-learn", "unknown"))
    here = importlib.metadata.version("scikit-learn")
    if made.split(".")[:2] != here.split(".")[:2]:
        warnings.warn(
            f"{where}: was made with scikit-learn {made}, and {here} is installed. Its head was checked on "
            "the images that are kept in the file and gives the same outputs.",
            FeatxWarning,
            stacklevel=4,
        )
