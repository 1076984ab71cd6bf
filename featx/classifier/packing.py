"""A fitted model as one safe file, and back.

The archive (see `featx.files`) holds JSON and safetensors members under a fixed allow-list. The outputs for a
few synthetic images are inside: those of the head are checked when the file is loaded, those of the network
when it first runs, so that another version of a library cannot change predictions unnoticed.
"""

from __future__ import annotations

import dataclasses
import hashlib
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

from featx.backbones.card import BackboneCard, check_random
from featx.backbones.finetuned import JSON_MEMBER, SUFFIX, TENSOR_MEMBER, is_model_file
from featx.backbones.runtimes import environment, resolve_device
from featx.backbones.views import parse_policy
from featx.classifier.model import GROUP_BYTES, FittedImages, ImageModel
from featx.classifier.record import FitRecord
from featx.evaluation import Calibration, Decision
from featx.exceptions import DriftWarning, FeatxError, FeatxWarning, ModelFileError, UsageError
from featx.extractor import Extraction
from featx.files import (
    MODEL_FORMAT,
    MODEL_KIND,
    MODEL_MEMBERS,
    read_archive,
    read_json,
    write_archive,
)
from featx.finetune import FineTunedNetwork
from featx.heads import decision_scores
from featx.images import GOLDEN_PICTURES, golden_pictures
from featx.modelfile import dump_arrays, dump_head, load_arrays, load_head, read_classes
from featx.records import from_plain, to_plain
from featx.representation import BlockName
from featx.selection.augmentation import KINDS, Augmentation
from featx.selection.networks import is_of
from featx.spec import FeatureSpec
from featx.stores.base import DIGEST_BYTES
from featx.stores.memory import MemoryStore

OF_NETWORK = (JSON_MEMBER, TENSOR_MEMBER)
"""Members of a fine-tuned network; absent where the head on frozen features predicts."""

HEAD_TOLERANCE = 1e-4
"""Largest difference of a probability that another version of scikit-learn may make."""

GOLDEN_COSINE = 0.995
"""Smallest cosine of an image's features with those when the model was saved; half precision costs 0.002."""

MAX_VIEWS = 1024
"""Views of an image; each is a forward pass in every prediction."""


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
    arrays: dict[str, NDArray[Any]] = {"features": features, "proba": _head_proba(model, features)}
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
    plain = {"model": _describe(model), "record": record.to_dict(), "params": dict(params)}
    members: dict[str, bytes] = {
        "model.json": json.dumps(plain, sort_keys=True, allow_nan=False).encode(),
        "golden.safetensors": dump_arrays(arrays),
        "split.safetensors": dump_arrays(split),
        **dump_head(record.params["head"], model.head),
        **({} if network is None else network.to_members()),
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
    path : path-like
        The file.
    checkpoint : path, optional
        Weights of the backbone, where they cannot be found by its name.
    allow_download : bool
        Whether weights that are not on this machine are downloaded by the name in the file.
    restore : callable
        Called with the saved parameters of the classifier.

    Raises
    ------
    ModelFileError
        If the file is damaged, forged, of a newer format, or its head now gives other outputs.
    """
    archive = read_archive(path, kind=MODEL_KIND, allowed=MODEL_MEMBERS, max_format=MODEL_FORMAT)
    where = os.fspath(path)
    tuned = any(name in archive for name in OF_NETWORK)
    missing = [name for name in MODEL_MEMBERS if name not in archive and (tuned or name not in OF_NETWORK)]
    if missing:
        raise ModelFileError(f"{where}: has no member {', '.join(missing)}; get the file again.")
    plain = read_json(archive.members["model.json"], where=f"{where}: model.json")
    split = load_arrays(
        archive.members["split.safetensors"],
        {
            "ids": (None, DIGEST_BYTES),
            "test": (None,),
            "labels": (None,),
            "groups": (None, GROUP_BYTES),
            "oof_proba": (None, None),
        },
        where=f"{where}: split.safetensors",
    )
    try:
        record = FitRecord.from_dict(plain["record"])
        classes = read_classes(plain["model"]["classes"]["values"], plain["model"]["classes"]["dtype"])
        head = load_head(archive.members, classes, where=where)
        model = _restore(plain["model"], head, classes, split)
        _check_fit(model, split)
        restore(plain["params"])
    except ModelFileError:
        raise
    except (FeatxError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ModelFileError(
            f"{where}: model.json is not what featx writes ({type(error).__name__}: {error})."
        ) from None
    golden = _golden(archive.members["golden.safetensors"], model, tuned, where)
    _check_head(model, golden, record, where)
    _warn_of_version(record, where)
    if tuned:
        network = FineTunedNetwork.from_members(
            archive.members, checkpoint=checkpoint, allow_download=allow_download
        )
        model = _with_network(model, network, golden, where)
    record = dataclasses.replace(record, oof_proba=split["oof_proba"].astype(np.float64))
    return LoadedModel(model, record, golden["tuned_features" if tuned else "features"])


def check_network(
    model: ImageModel, found: Extraction, expected: NDArray[np.float32], machine: Mapping[str, Any]
) -> None:
    """Warn if the network computes other features than when the model was saved.

    The store remembers a check that passed; another version, runtime or processor is checked anew.

    Parameters
    ----------
    model : ImageModel
        A loaded model.
    found : Extraction
        Of its network, just computed.
    expected : array of shape (GOLDEN_PICTURES, n_features)
        Features of the synthetic images when it was saved.
    machine : mapping
        Parameters of `FeatureExtractor` that do not change features.
    """
    keys = "".join(spec.key for spec in found.specs.values())
    name = hashlib.sha256(keys.encode() + expected.tobytes()).hexdigest()
    here = environment(found.runtime, resolve_device(machine["device"], machine["runtime"]))
    if found.store.recall("proven", name) == here:
        return
    now = model.extract(golden_pictures(), machine, store=MemoryStore()).blocks.stack(model.used_blocks)
    lengths = np.linalg.norm(now, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = np.einsum("ij,ij->i", now, expected) / lengths
    if not cosine.min() >= GOLDEN_COSINE:
        warnings.warn(
            f"the network computes other features than when this model was saved (cosine {cosine.min():.4f}; "
            f"at least {GOLDEN_COSINE} is expected): another version, runtime or processor. Evaluate the "
            "model before you trust it, or fit it again.",
            DriftWarning,
            stacklevel=4,
        )
        return
    found.store.remember("proven", name, here)


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


def _restore(
    plain: Mapping[str, Any], head: Any, classes: NDArray[Any], split: Mapping[str, NDArray[Any]]
) -> ImageModel:
    blocks = tuple(map(BlockName.parse, from_plain(tuple[str, ...], plain["blocks"], "blocks")))
    specs = from_plain(dict[str, FeatureSpec], plain["specs"], "specs")
    return ImageModel(
        classes=classes,
        blocks=blocks,
        specs={BlockName.parse(name): spec for name, spec in specs.items()},
        cards=from_plain(tuple[BackboneCard, ...], plain["cards"], "cards"),
        head=head,
        calibration=from_plain(Calibration, plain["calibration"], "calibration"),
        class_weights=from_plain(tuple[float, ...], plain["class_weights"], "class_weights"),
        decision=from_plain(Decision, plain["decision"], "decision"),
        augmentation=from_plain(Augmentation, plain["augmentation"], "augmentation"),
        images=_fitted_images(split, len(classes)),
    )


def _fitted_images(split: Mapping[str, NDArray[Any]], n_classes: int) -> FittedImages:
    ids, test, codes, groups = (split[name] for name in ("ids", "test", "labels", "groups"))
    sound = (
        ids.dtype == np.uint8
        and groups.dtype == np.uint8
        and test.dtype == np.uint8
        and codes.dtype == np.int32
        and len(ids) == len(test) == len(codes)
        and len(groups) in (0, len(ids))
        and test.max(initial=0) <= 1
        and codes.min(initial=0) >= 0
        and codes.max(initial=0) < n_classes
    )
    if not sound:
        raise ValueError("the arrays of split.safetensors do not fit each other or the classes")
    own = groups if len(groups) else None
    return FittedImages(ids, test.astype(bool), codes.astype(np.intp), own)


def _check_fit(model: ImageModel, split: Mapping[str, NDArray[Any]]) -> None:
    """Refuse values and sizes that fit neither the networks nor the head, before they are used."""
    for weights in (model.class_weights, model.decision.weights):
        if len(weights) != len(model.classes) or not min(weights) > 0:
            raise ValueError(f"{len(weights)} weights, above {min(weights, default=0)}, for the classes")
    if set(model.blocks) != set(model.specs):
        raise ValueError("the blocks are not those of the specs")
    for own in model.cards:
        check_random(own)
    for spec in model.specs.values():
        card = next((card for card in model.cards if is_of(spec, card)), None)
        if card is None:
            raise ValueError("a spec is of another network than the cards")
        if spec.pool not in card.pools(spec.cut):
            raise ValueError(f"pool {spec.pool!r} is not possible at {spec.cut!r}")
        if not 0 < spec.crop_pct <= 4:
            raise ValueError(f"an image cropped to {spec.crop_pct}")
    views = model.augmentation
    if views.kind not in KINDS or not 0 <= views.views <= MAX_VIEWS:
        raise ValueError(f"{views.views} views, used as {views.kind!r}")
    if views.views:
        parse_policy(views.policy)
    if split["oof_proba"].shape[1] != len(model.classes) or split["oof_proba"].dtype.kind != "f":
        raise ValueError("the out-of-fold probabilities do not fit the classes")


def _golden(data: bytes, model: ImageModel, tuned: bool, where: str) -> dict[str, NDArray[Any]]:
    """Features and probabilities of the synthetic images when the model was saved."""
    shapes: dict[str, tuple[int | None, ...]] = {}
    for kind in ("", "tuned_") if tuned else ("",):
        shapes |= {
            f"{kind}features": (GOLDEN_PICTURES, None),
            f"{kind}proba": (GOLDEN_PICTURES, len(model.classes)),
        }
    return load_arrays(data, shapes, where=f"{where}: golden.safetensors")


def _check_head(model: ImageModel, golden: Mapping[str, NDArray[Any]], record: FitRecord, where: str) -> None:
    try:
        proba = _head_proba(model, golden["features"])
        off = float(np.abs(proba - golden["proba"]).max())
    except Exception as error:  # a forged or incompatible head makes scikit-learn raise any kind
        raise ModelFileError(f"{where}: its head cannot be used ({type(error).__name__}: {error}).") from None
    if not off <= HEAD_TOLERANCE:
        made = ", ".join(f"{name} {version}" for name, version in record.versions.items())
        raise ModelFileError(
            f"{where}: its head now gives probabilities that differ by {off:.2g} on the images kept for "
            f"this check. It was made with {made}; use those versions, or fit it again."
        )


def _with_network(
    model: ImageModel, network: FineTunedNetwork, golden: Mapping[str, NDArray[Any]], where: str
) -> ImageModel:
    """The model with its fine-tuned network, which must have its classes and give the saved outputs."""
    if network.classes.tolist() != model.classes.tolist():
        raise ModelFileError(
            f"{where}: the fine-tuned network has other classes than the head; get the file again."
        )
    features, expected = golden["tuned_features"], golden["tuned_proba"]
    if features.shape[1] != network.card.num_features:
        raise ModelFileError(f"{where}: {features.shape[1]} features do not fit the network's head.")
    if not np.abs(network.proba_of_features(features) - expected).max() <= HEAD_TOLERANCE:
        raise ModelFileError(
            f"{where}: the fine-tuned head gives other outputs than it did; get the file again."
        )
    return dataclasses.replace(model, network=network)


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


def _head_proba(model: ImageModel, features: NDArray[Any]) -> NDArray[np.float64]:
    return model.calibration.proba(decision_scores(model.head, features))
