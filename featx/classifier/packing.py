"""A fitted ImageClassifier as one safe file, and back.

The archive (see `featx.files`) holds JSON, safetensors and one skops member under a fixed allow-list. The
outputs for a few synthetic pictures are inside: the head's are checked when the file is loaded, the
network's when it first runs, so that another version of a library cannot change predictions unnoticed.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx import __version__
from featx.backbones import is_model_file
from featx.backbones.card import BackboneCard
from featx.backbones.finetuned import JSON_MEMBER, TENSOR_MEMBER
from featx.backbones.views import parse_policy
from featx.classifier.estimator import ImageClassifier
from featx.classifier.finetuning import FineTuneReport
from featx.evaluation import Calibration, Evaluation
from featx.exceptions import FeatxError, FeatxWarning, ModelFileError
from featx.files import (
    MODEL_FORMAT,
    MODEL_KIND,
    MODEL_MEMBERS,
    Archive,
    read_archive,
    read_json,
    write_archive,
)
from featx.finetune import FineTunedNetwork
from featx.images import GOLDEN_PICTURES, golden_pictures
from featx.modelfile import check_fields, dump_arrays, dump_estimator, load_arrays, load_estimator
from featx.representation import BlockName
from featx.selection.augmentation import KINDS, PLAIN, Augmentation
from featx.selection.choice import Choice
from featx.selection.imbalance import Adjustment
from featx.selection.networks import is_of
from featx.selection.tuning import Tried
from featx.spec import FeatureSpec
from featx.stores.base import DIGEST_BYTES

KIND, FORMAT, MEMBERS = MODEL_KIND, MODEL_FORMAT, MODEL_MEMBERS

OF_NETWORK = (JSON_MEMBER, TENSOR_MEMBER)
"""Members of a fine-tuned network, absent where a head on frozen features predicts."""

HEAD_TOLERANCE = 1e-4
"""Largest difference of a probability that another version of scikit-learn may make unremarked."""

MAX_INPUT_SIDE = 8192
"""Pixels. No network eats larger pictures; a crafted file could ask for any number of gigabytes."""

MAX_VIEWS = 1024
"""Views of an image; each is a forward pass in every prediction."""

PARAMS = (
    "backbone", "cut", "pool", "resize", "input_size", "pretrained", "heads", "n_trials", "timeout", "cv",
    "n_repeats", "views", "view_policy", "class_weight", "precision", "dtype", "decode", "background",
    "bit_depth", "max_bad", "random_state", "fine_tune",
)  # fmt: skip
"""Constructor parameters that are kept: what is about this machine (store, device, callback, ...) is not."""

PACKAGES = ("scikit-learn", "numpy", "skops", "timm", "torch")


def save(clf: ImageClassifier, path: str | os.PathLike[str]) -> Path:
    """Write a fitted classifier; see `ImageClassifier.save`."""
    pictures = golden_pictures()
    found = clf.augmentation_.judge(clf._of_probe().extract(pictures), clf.best_blocks_)
    rows = found.blocks.stack(clf.best_blocks_)
    golden: dict[str, NDArray[Any]] = {"rows": rows, "proba": _proba(clf, rows)}
    network = clf.network_
    if network is not None:
        tuned = clf.extract(pictures).blocks.stack(clf._answering())
        golden |= {"tuned_rows": tuned, "tuned_proba": network.proba_of_features(tuned)}
    ids = [bytes.fromhex(digest) for digest in clf.assignment_]
    members: dict[str, bytes] = {
        "model.json": json.dumps(_describe(clf), sort_keys=True).encode(),
        "golden.safetensors": dump_arrays(golden),
        "split.safetensors": dump_arrays(
            {
                "ids": np.frombuffer(b"".join(ids), np.uint8).reshape(-1, DIGEST_BYTES),
                "test": np.array([part == "test" for part in clf.assignment_.values()], np.uint8),
            }
        ),
        "head.skops": dump_estimator(clf.best_estimator_),
        **({} if network is None else network.to_members()),
    }
    target = Path(path)
    write_archive(target, members, kind=KIND, format=1 if network is None else FORMAT)
    return target


def load(
    path: str | os.PathLike[str],
    *,
    store: Any = "memory",
    checkpoint: str | os.PathLike[str] | None = None,
) -> ImageClassifier:
    """Read a classifier that `ImageClassifier.save` wrote.

    Needs no training data, no cache and no network, and never runs code from the file. The digests inside
    prove that the file is whole, not who made it: load only files from people you trust.

    Parameters
    ----------
    path : path-like
        A ``.featx`` file.
    store : path, FeatureStore or "memory", default "memory"
        Where rows of predicted images are kept; by default nowhere.
    checkpoint : path, optional
        Weights of the backbone, where they cannot be found by its name.

    Returns
    -------
    ImageClassifier

    Raises
    ------
    ModelFileError
        If the file is damaged, hostile, of a newer format, or its head now gives other outputs.
    """
    archive = read_archive(path, kind=KIND, allowed=MEMBERS, max_format=FORMAT)
    where = os.fspath(path)
    tuned = any(name in archive for name in OF_NETWORK)
    missing = [name for name in MEMBERS if name not in archive and (tuned or name not in OF_NETWORK)]
    if missing:
        raise ModelFileError(f"{where}: has no member {', '.join(missing)}; get the file again.")
    model = read_json(archive.members["model.json"], where=f"{where}: model.json")
    try:
        clf = _restore(model, archive.members, where)
    except ModelFileError:
        raise
    except (FeatxError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ModelFileError(
            f"{where}: model.json is not what featx writes ({type(error).__name__}: {error})."
        ) from None
    clf.set_params(store=store, checkpoint=checkpoint)
    shapes: dict[str, tuple[int | None, ...]] = {}
    for kind in ("", "tuned_") if tuned else ("",):
        shapes |= {
            f"{kind}rows": (GOLDEN_PICTURES, None),
            f"{kind}proba": (GOLDEN_PICTURES, len(clf.classes_)),
        }
    golden = load_arrays(archive.members["golden.safetensors"], shapes, where=f"{where}: golden.safetensors")
    _check_head(clf, golden, model, where)
    _remark_version(model, where)
    clf._golden_rows = golden["tuned_rows" if tuned else "rows"]
    if tuned:
        _open_network(clf, archive, golden, where)
    return clf


def _open_network(
    clf: ImageClassifier, archive: Archive, golden: dict[str, NDArray[Any]], where: str
) -> None:
    """The fine-tuned network, which must be of the classifier's classes and answer as it did."""
    network = FineTunedNetwork.from_members(archive.members, checkpoint=clf.checkpoint, device=clf.device)
    if network.classes.tolist() != clf.classes_.tolist():
        raise ModelFileError(
            f"{where}: the fine-tuned network has other classes than the head; get the file again."
        )
    rows, expected = golden["tuned_rows"], golden["tuned_proba"]
    if rows.shape[1] != network.card.num_features:
        raise ModelFileError(f"{where}: rows of {rows.shape[1]} features do not fit the network's head.")
    if not np.abs(network.proba_of_features(rows) - expected).max() <= HEAD_TOLERANCE:
        raise ModelFileError(
            f"{where}: the fine-tuned head gives other outputs than it did; get the file again."
        )
    clf.network_ = network


def _describe(clf: ImageClassifier) -> dict[str, Any]:
    classes = np.asarray(clf.classes_)
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"featx": __version__} | {name: importlib.metadata.version(name) for name in PACKAGES},
        "params": {name: getattr(clf, name) for name in PARAMS} | {"backbone": _backbone_name(clf)},
        "card": json.loads(clf.card_.to_json()),
        "more_cards": [json.loads(card.to_json()) for card in clf.cards_[1:]],
        "blocks": list(clf.best_blocks_),
        "specs": {name: json.loads(clf.specs_[name].to_json()) for name in clf.best_blocks_},
        "augmentation": clf.augmentation_.to_dict(),
        "classes": {
            "dtype": "object" if classes.dtype == object else classes.dtype.str,
            "values": classes.tolist(),
        },
        "calibration": clf.calibration_.to_dict(),
        "adjustment": clf.adjustment_ and clf.adjustment_.to_dict(),
        "choice": clf.choice_ and clf.choice_.to_dict(),
        "tried": [one.to_dict() for one in clf.tried_],
        "best_params": clf.best_params_,
        "best_score": clf.best_score_,
        "oof_evaluation": clf.oof_evaluation_.to_dict(),
        "fine_tune": None if clf.fine_tune_ is None else clf.fine_tune_.to_dict(),
        "evaluation": clf.evaluation_.to_dict() if hasattr(clf, "evaluation_") else None,
    }


def _backbone_name(clf: ImageClassifier) -> Any:
    """A saved model as the backbone is known by its network's name: its path is this machine's affair."""
    return clf.card_.name if _names_a_file(clf.backbone) else clf.backbone


def _names_a_file(backbone: Any) -> bool:
    return any(map(is_model_file, [backbone] if isinstance(backbone, str) else backbone))


def _restore(model: dict[str, Any], members: dict[str, bytes], where: str) -> ImageClassifier:
    params = {name: _tupled(value) for name, value in model["params"].items() if name in PARAMS}
    clf = ImageClassifier(**params)
    if _names_a_file(clf.backbone):
        raise ValueError(f"the backbone {clf.backbone!r:.80}, which is a file")
    cards = [model["card"], *model.get("more_cards", ())]  # the first files have one network
    clf.cards_ = tuple(BackboneCard.from_json(json.dumps(card)) for card in cards)
    clf.card_ = clf.cards_[0]
    clf.race_ = None
    clf._model_files = {}
    clf.best_blocks_ = tuple(BlockName.parse(name) for name in model["blocks"])
    clf.specs_ = {name: FeatureSpec.from_json(json.dumps(model["specs"][name])) for name in clf.best_blocks_}
    clf.classes_ = np.array(model["classes"]["values"], dtype=np.dtype(model["classes"]["dtype"]))
    clf.calibration_ = Calibration.from_dict(model["calibration"])
    found = model.get("adjustment")  # the first files of this format had none, nor a choice
    clf.adjustment_ = None if found is None else Adjustment.from_dict(found)
    clf.choice_ = None if model.get("choice") is None else Choice.from_dict(model["choice"])
    clf.augmentation_ = Augmentation.from_dict(model["augmentation"]) if "augmentation" in model else PLAIN
    clf.tried_ = tuple(Tried.from_dict(one) for one in model.get("tried", ()))
    clf.best_params_ = model["best_params"]
    clf.best_score_ = model["best_score"]
    clf.oof_evaluation_ = Evaluation.from_dict(model["oof_evaluation"])
    told = model.get("fine_tune")
    clf.fine_tune_ = None if told is None else FineTuneReport.from_dict(told)
    clf.network_ = None
    if model["evaluation"] is not None:
        clf.evaluation_ = Evaluation.from_dict(model["evaluation"])
    shapes = {"ids": (None, DIGEST_BYTES), "test": (None,)}
    split = load_arrays(members["split.safetensors"], shapes, where=f"{where}: split.safetensors")
    names = ("train", "test")
    clf.assignment_ = {
        row.tobytes().hex(): names[int(test)] for row, test in zip(split["ids"], split["test"], strict=True)
    }
    clf.best_estimator_ = load_estimator(members["head.skops"], where=f"{where}: head.skops")
    clf.skipped_ = []
    clf.remarks_ = ()
    clf.n_computed_ = 0
    _check_description(clf)
    return clf


def _check_description(clf: ImageClassifier) -> None:
    """Refuse types and sizes that fit neither the network nor the head, before something is made of them."""
    found = [one for one in (clf.adjustment_, clf.choice_) if one is not None]
    for record in (
        *clf.cards_,
        clf.calibration_,
        clf.oof_evaluation_,
        *clf.specs_.values(),
        *clf.tried_,
        clf.augmentation_,
        *found,
    ):
        check_fields(record)
    if clf.adjustment_ is not None:
        check_fields(clf.adjustment_.calibration)
        if len(clf.adjustment_.offsets) != len(clf.classes_):
            raise ValueError(f"{len(clf.adjustment_.offsets)} offsets for {len(clf.classes_)} classes")
    for spec in clf.specs_.values():
        card = next((card for card in clf.cards_ if is_of(spec, card)), None)
        if card is None:
            raise ValueError("a spec is of another network than the cards")
        if spec.pool not in card.pools(spec.cut):
            raise ValueError(f"pool {spec.pool!r} is not possible at {spec.cut!r}")
        if not all(0 < side <= MAX_INPUT_SIDE for side in spec.input_size) or not 0 < spec.crop_pct <= 4:
            raise ValueError(f"an input size of {spec.input_size} pixels, cropped to {spec.crop_pct}")
    views = clf.augmentation_
    if views.kind not in KINDS or not 0 <= views.views <= MAX_VIEWS:
        raise ValueError(f"{views.views} views, used as {views.kind!r}")
    if views.views:
        parse_policy(views.policy)
    classes = clf.classes_
    if classes.ndim != 1 or len(np.unique(classes)) != len(classes) or len(classes) < 2:
        raise ValueError(f"the classes {classes.tolist()!r:.80}")


def _check_head(
    clf: ImageClassifier, golden: dict[str, NDArray[Any]], model: dict[str, Any], where: str
) -> None:
    try:
        proba = _proba(clf, golden["rows"])
        off = float(np.abs(proba - golden["proba"]).max())
    except Exception as error:  # whatever a crafted or incompatible head makes scikit-learn raise
        raise ModelFileError(f"{where}: its head cannot be used ({type(error).__name__}: {error}).") from None
    if not off <= HEAD_TOLERANCE:
        made = ", ".join(f"{name} {version}" for name, version in _versions(model, where).items())
        raise ModelFileError(
            f"{where}: its head now gives probabilities that are off by {off:.2g} on the pictures kept for "
            f"this check. It was made with {made}; use those versions, or fit it again."
        )


def _remark_version(model: dict[str, Any], where: str) -> None:
    """Another scikit-learn (patches apart) is worth a word, although the head was found the same."""
    made = str(_versions(model, where).get("scikit-learn", "unknown"))
    here = importlib.metadata.version("scikit-learn")
    if made.split(".")[:2] != here.split(".")[:2]:
        warnings.warn(
            f"{where}: was made with scikit-learn {made}, here is {here}. Its head was tried on the pictures "
            "that are kept in the file and answers as it did then.",
            FeatxWarning,
            stacklevel=3,
        )


def _versions(model: dict[str, Any], where: str) -> dict[str, Any]:
    versions = model.get("versions")
    if not isinstance(versions, dict):
        raise ModelFileError(f"{where}: model.json does not say what made it; get the file again.")
    return versions


def _proba(clf: ImageClassifier, rows: NDArray[Any]) -> NDArray[np.float64]:
    return clf.calibration_.proba(clf.decisions_of_rows(rows))


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) and value and isinstance(value[0], int) else value
