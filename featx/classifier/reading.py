"""The file of a fitted model, read as what a stranger wrote; what predicts needs no scikit-learn.

The archive (see `featx.files`) holds JSON and safetensors members under a fixed allow-list. The outputs for a
few synthetic images are inside: those of the head are checked when the file is loaded, those of the network
when it first runs, so that another version of a library cannot change predictions unnoticed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.backbones.card import BackboneCard, check_random
from featx.backbones.finetuned import JSON_MEMBER, TENSOR_MEMBER
from featx.backbones.runtimes import environment, resolve_device
from featx.backbones.views import parse_policy
from featx.classifier.model import GROUP_BYTES, FittedImages, ImageModel
from featx.evaluation import Calibration, Decision
from featx.evaluation.unlike import MOST_AXES, MOST_ROWS, TrainingSample
from featx.exceptions import DriftWarning, FeatxError, ModelFileError
from featx.extractor.extraction import Extraction
from featx.files import MODEL_FORMAT, MODEL_KIND, MODEL_MEMBERS, read_archive, read_json
from featx.heads import decision_scores
from featx.images import GOLDEN_PICTURES, golden_pictures
from featx.modelfile import SavedHead, dump_arrays, load_arrays, read_arrays, read_classes, read_head
from featx.records import from_plain
from featx.representation import BlockName
from featx.selection.augmentation import KINDS, Augmentation
from featx.selection.networks import is_of
from featx.spec import FeatureSpec
from featx.stores.base import DIGEST_BYTES
from featx.stores.memory import MemoryStore

GRAPH_MEMBER = "networks.safetensors"
"""Converted networks, by the digests of their weights; absent where a machine converts them itself."""

OF_NETWORK = (JSON_MEMBER, TENSOR_MEMBER)
"""Members of a fine-tuned network; absent where the head on frozen features predicts."""

HEAD_TOLERANCE = 1e-4
"""Largest difference of a probability that another version of scikit-learn may make."""

GOLDEN_COSINE = 0.995
"""Smallest cosine of an image's features with those when the model was saved; half precision costs 0.002."""

MAX_VIEWS = 1024
"""Views of an image; each is a forward pass in every prediction."""


@dataclass(frozen=True, eq=False)
class SavedModel:
    """The file of a model, with all values checked.

    Parameters
    ----------
    where : str
        Its path, for messages.
    model : ImageModel
        The model. Its head is a function, or None if only scikit-learn computes it.
    head : SavedHead
        The head's arrays.
    split : dict of str to array
        The arrays of ``split.safetensors``.
    golden : dict of str to array
        Features and probabilities of the synthetic images when it was saved.
    plain : dict
        The plain values of ``model.json``; those of the record and the parameters are not checked.
    """

    where: str
    model: ImageModel
    head: SavedHead
    split: Mapping[str, NDArray[Any]]
    golden: Mapping[str, NDArray[Any]]
    plain: Mapping[str, Any]

    @property
    def expected(self) -> NDArray[np.float32]:
        """Features of the synthetic images that the network must give."""
        return self.golden["features" if self.model.network is None else "tuned_features"]


def read_model(
    path: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    allow_download: bool = False,
) -> SavedModel:
    """Read a model that `save_model` wrote, as a file that may be forged.

    Parameters
    ----------
    path : path-like
        The file.
    checkpoint : path, optional
        Weights of the backbone, where they cannot be found by its name.
    allow_download : bool
        Whether weights that are not on this machine are downloaded by the name in the file.

    Raises
    ------
    ModelFileError
        If the file is damaged, forged, of a newer format, or its head now gives other outputs.
    """
    archive = read_archive(path, kind=MODEL_KIND, allowed=MODEL_MEMBERS, max_format=MODEL_FORMAT)
    where = os.fspath(path)
    tuned = any(name in archive for name in OF_NETWORK)
    missing = [
        name
        for name in MODEL_MEMBERS
        if name not in archive and name != GRAPH_MEMBER and (tuned or name not in OF_NETWORK)
    ]
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
    with model_json(where):
        classes = read_classes(plain["model"]["classes"]["values"], plain["model"]["classes"]["dtype"])
        head = read_head(archive.members, len(classes), where=where)
        scorer = None if head.formula is None else head.scorer()
        model = _restore(plain["model"], scorer, classes, split)
        _check_fit(model, split)
    golden = _golden(archive.members["golden.safetensors"], model, tuned, where)
    if tuned:
        from featx.finetune import FineTunedNetwork

        network = FineTunedNetwork.from_members(
            archive.members, checkpoint=checkpoint, allow_download=allow_download
        )
        model = _with_network(model, network, golden, where)
    sample = _sample(archive.members["sample.safetensors"], model, golden, where)
    model = dataclasses.replace(model, sample=sample)
    if GRAPH_MEMBER in archive:
        model = dataclasses.replace(model, graphs=_read_graphs(archive.members[GRAPH_MEMBER], model, where))
    return SavedModel(where, model, head, split, golden, plain)


@contextlib.contextmanager
def model_json(where: str) -> Iterator[None]:
    """Raise what goes wrong with the values of ``model.json`` as a `ModelFileError` that names the file."""
    try:
        yield
    except ModelFileError:
        raise
    except (FeatxError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ModelFileError(
            f"{where}: model.json is not what featx writes ({type(error).__name__}: {error})."
        ) from None


def dump_graphs(graphs: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return the member of an archive that holds converted networks; empty if there are none."""
    arrays = {name: np.frombuffer(content, np.uint8) for name, content in graphs.items()}
    return {GRAPH_MEMBER: dump_arrays(arrays)} if arrays else {}


def _read_graphs(data: bytes, model: ImageModel, where: str) -> dict[str, bytes]:
    """Converted networks, which are checked further when they are opened."""
    found = read_arrays(data, where=f"{where}: {GRAPH_MEMBER}")
    known = {card.weights for card in model.cards}
    known |= set() if model.network is None else {model.network.weights}
    for name, content in found.items():
        if name not in known or content.dtype != np.uint8 or content.ndim != 1:
            raise ModelFileError(f"{where}: {GRAPH_MEMBER} has a network that is not of this model.")
    return {name: content.tobytes() for name, content in found.items()}


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
    if check_features(now, expected):
        found.store.remember("proven", name, here)


def check_features(now: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    """Compare features of the synthetic images with the saved ones; warn if they differ."""
    cosine = cosines(now, expected)
    if cosine.min() >= GOLDEN_COSINE:
        return True
    warnings.warn(
        f"the network computes other features than when this model was saved (cosine {cosine.min():.4f}; "
        f"at least {GOLDEN_COSINE} is expected): another version, runtime or processor. Evaluate the "
        "model before you trust it, or fit it again.",
        DriftWarning,
        stacklevel=5,
    )
    return False


def cosines(now: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosine of each image's features with the saved ones; 0 if the widths differ."""
    if now.shape != expected.shape:
        return np.zeros(len(expected))
    lengths = np.linalg.norm(now, axis=1) * np.linalg.norm(expected, axis=1)
    return np.asarray(np.einsum("ij,ij->i", now, expected) / lengths, np.float64)


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
    where = f"{where}: golden.safetensors"
    arrays = load_arrays(data, shapes, where=where)
    for name, array in arrays.items():
        wanted = np.float32 if name.endswith("features") else np.float64
        if array.dtype != wanted:
            raise ModelFileError(
                f"{where}: array {name!r} has dtype {array.dtype}, expected {np.dtype(wanted)}."
            )
    return arrays


def _sample(data: bytes, model: ImageModel, golden: Mapping[str, NDArray[Any]], where: str) -> TrainingSample:
    """The sample of training images, which must fit the representation and the images of the model."""
    where = f"{where}: sample.safetensors"
    found = load_arrays(data, {"axes": (None, None), "rows": (None, None), "distances": (None,)}, where=where)
    axes, rows, distances = found["axes"], found["rows"], found["distances"]
    width = golden["features" if model.network is None else "tuned_features"].shape[1]
    sound = (
        axes.dtype == np.float16
        and rows.dtype == distances.dtype == np.float32
        and axes.shape[0] <= MOST_AXES
        and axes.shape[1] == width
        and rows.shape == (len(model.images.sampled), len(axes) + 1)
        and len(rows) <= MOST_ROWS
        and len(distances) <= len(rows)
        and all(np.isfinite(array).all() for array in found.values())
        and np.abs(axes).max(initial=0) <= 2
        and np.abs(rows).max(initial=0) <= 2
        and (np.diff(distances) >= 0).all()
    )
    if not sound:
        raise ModelFileError(f"{where}: its arrays do not fit the model; the file is damaged or forged.")
    units = model.images.units_of(model.images.ids[model.images.sampled])
    return TrainingSample(axes, rows, units, distances)


def check_head(saved: SavedModel, model: ImageModel) -> None:
    """Compare the outputs of a model's head with those that were saved.

    Raises
    ------
    ModelFileError
        If they differ.
    """
    golden, where = saved.golden, saved.where
    try:
        proba = head_proba(model, golden["features"])
        off = float(np.abs(proba - golden["proba"]).max())
    except Exception as error:  # a forged or incompatible head makes scikit-learn raise any kind
        raise ModelFileError(f"{where}: its head cannot be used ({type(error).__name__}: {error}).") from None
    if not off <= HEAD_TOLERANCE:
        made = ", ".join(f"{name} {version}" for name, version in saved.plain["record"]["versions"].items())
        raise ModelFileError(
            f"{where}: its head now gives probabilities that differ by {off:.2g} on the images kept for "
            f"this check. It was made with {made}; use those versions, or fit it again."
        )


def _with_network(
    model: ImageModel, network: Any, golden: Mapping[str, NDArray[Any]], where: str
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


def head_proba(model: ImageModel, features: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities of the head for features, without the weights of the classes."""
    return model.calibration.proba(decision_scores(model.head, features))
