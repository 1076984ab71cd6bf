"""`METHODS`: ways to learn a classifier, by name.

A method on features gets the features of one block. A method on images gets the images themselves, and a
backbone whose cut and pooling it chooses.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from featx.exceptions import UsageError
from featx.suite.estimators import ChosenLogistic, LeastSquares, SimpleShot, WeightedNeighbours

Params = dict[str, Any]

FEATURES, IMAGES, SCRATCH = "features", "images", "scratch"


@dataclass(frozen=True)
class Method:
    """A way to learn a classifier.

    Parameters
    ----------
    make : callable
        For a method on features: keyword parameters (and ``random_state``, where it has one) to an estimator.
        For one on images: the same with ``backbone`` and ``store`` first.
    source : str
        Where the method comes from.
    kind : {"features", "images", "scratch"}
        What it is fitted on. "scratch" is a method on images without a pretrained backbone.
    scale : bool
        Whether features are standardised first.
    params : dict
        Parameters that differ from the defaults.
    """

    make: Callable[..., Any]
    source: str
    kind: str = FEATURES
    scale: bool = False
    params: Mapping[str, Any] = field(default_factory=dict)

    def estimator(self, params: Mapping[str, Any], seed: int, **context: Any) -> Any:
        """Return an estimator that is not fitted.

        Parameters
        ----------
        params : dict
            Parameters of this use; they replace those of the method.
        seed : int
            Seed, where the estimator takes one.
        **context
            `backbone` and `store` of a method on images.
        """
        given = {**self.params, **params}
        if self.kind != FEATURES:
            return self.make(seed=seed, **context, **given)
        if "random_state" in inspect.signature(self.make).parameters:
            given.setdefault("random_state", seed)
        try:
            made = self.make(**given)
        except TypeError as error:
            raise UsageError(
                f"{getattr(self.make, '__name__', self.make)} refuses {given}: {error}."
            ) from None
        return make_pipeline(StandardScaler(), made) if self.scale else made


def classifier(backbone: str, store: Any, seed: int, **params: Any) -> Any:
    """Make an `ImageClassifier`; `params` may be nested names."""
    from featx.classifier import ImageClassifier

    return ImageClassifier(backbone, store=store, random_state=seed).set_params(**params)


def uncalibrated(backbone: str, store: Any, seed: int, **params: Any) -> Any:
    """Make an `ImageClassifier` whose probabilities are those of its head, without calibration."""
    from featx.classifier import ImageClassifier
    from featx.evaluation.calibration import Calibration

    class Uncalibrated(ImageClassifier):
        def predict_proba(self, X: Any) -> Any:
            model = dataclasses.replace(self.model_, calibration=Calibration("identity"))
            return model.proba(self.extract(X).blocks)

    return Uncalibrated(backbone, store=store, random_state=seed).set_params(**params)


def without_grids(backbone: str, store: Any, seed: int, **params: Any) -> Any:
    """Make an `ImageClassifier` that tries all poolings of the network but grids."""
    from featx.extractor import FeatureExtractor
    from featx.selection.candidates import AUTO_POOLS

    card = FeatureExtractor(backbone, pretrained=False).fit().card_
    possible = {pool for tap in card.taps for pool in card.pools(tap.name)}
    pools = [pool for pool in AUTO_POOLS if pool in possible and not pool.startswith("grid")]
    return classifier(backbone, store, seed, **{"pool": pools, **params})


def all_backbones(backbone: str, store: Any, seed: int, **params: Any) -> Any:
    """Make an `ImageClassifier` that compares all networks on this machine; `backbone` is not used."""
    return classifier("auto", store, seed, **params)


def head_only(backbone: str, store: Any, seed: int, **params: Any) -> Any:
    """Make a fine-tuner whose only phase trains the head: the tutorials' warm-up."""
    from featx.finetune import Phase

    return _fine_tuner(backbone, store, seed, phases=(Phase(trainable="head", epochs=12, lr=1e-3),), **params)


def two_phases(backbone: str, store: Any, seed: int, **params: Any) -> Any:
    """Make a fine-tuner: first the head, then the last two stages with it."""
    return _fine_tuner(backbone, store, seed, **params)


def _fine_tuner(backbone: str, store: Any, seed: int, **params: Any) -> Any:
    from featx.extractor import FeatureExtractor
    from featx.finetune import FineTuner

    return FineTuner(
        FeatureExtractor(backbone, store=store), head="linear", verdict=0, refit=False, random_state=seed
    ).set_params(**params)


def scratch(seed: int, **params: Any) -> Any:
    """Make a small convnet that is trained from random weights."""
    from featx.finetune.scratch import ScratchClassifier

    return ScratchClassifier(random_state=seed, **params)


DINOV2 = "DINOv2 (Oquab et al., 2023), dinov2/eval"
CHOLLET = 'F. Chollet, "Building powerful image classification models using very little data"'
TUTORIAL = "tutorials of transfer learning"

METHODS: dict[str, Method] = {
    "logistic": Method(ChosenLogistic, f"{DINOV2}: 45 values of C, chosen on a tenth"),
    "knn": Method(WeightedNeighbours, f"{DINOV2}: k of 10, 20, 100, 200, chosen on a tenth; T = 0.07"),
    "clip_probe": Method(ChosenLogistic, "CLIP (Radford et al., 2021), A.3", params={"search": "clip"}),
    "lsr": Method(LeastSquares, "big_vision, evaluators/fewshot_lsr: l2 = 2^10"),
    "simpleshot": Method(SimpleShot, "SimpleShot (Wang et al., 2019): CL2N"),
    "softmax": Method(LogisticRegression, TUTORIAL, scale=True, params={"max_iter": 1000}),
    "one_vs_rest": Method(
        lambda **params: OneVsRestClassifier(LogisticRegression(max_iter=1000, **params)),
        TUTORIAL,
        scale=True,
    ),
    "linear_svm": Method(LinearSVC, TUTORIAL, scale=True, params={"C": 0.01}),
    "rbf_svm": Method(SVC, TUTORIAL, scale=True),
    "knn5": Method(KNeighborsClassifier, TUTORIAL, scale=True),
    "tree": Method(DecisionTreeClassifier, TUTORIAL),
    "auto": Method(classifier, "featx", IMAGES),
    "auto_last": Method(classifier, "featx", IMAGES, params={"cut": None, "pool": "avg", "resize": "crop"}),
    "auto_no_grids": Method(without_grids, "featx", IMAGES),
    "auto_no_resizings": Method(classifier, "featx", IMAGES, params={"resize": "crop"}),
    "auto_no_layers": Method(classifier, "featx", IMAGES, params={"cut": None}),
    "auto_no_trials": Method(classifier, "featx", IMAGES, params={"n_trials": 0}),
    "auto_no_calibration": Method(uncalibrated, "featx", IMAGES),
    "auto_no_groups": Method(classifier, "featx", IMAGES, params={"auto_groups": False}),
    "auto_no_limit": Method(classifier, "featx", IMAGES, params={"search__budget": None}),
    "auto_all_backbones": Method(all_backbones, "featx", IMAGES),
    "auto_fine_tune": Method(classifier, "featx", IMAGES, params={"fine_tune": "auto"}),
    "warm_up": Method(head_only, TUTORIAL, IMAGES),
    "two_phases": Method(two_phases, TUTORIAL, IMAGES),
    "scratch": Method(scratch, CHOLLET, SCRATCH),
    "scratch_augmented": Method(scratch, CHOLLET, SCRATCH, params={"view_policy": "photo", "epochs": 30}),
    "scratch_batch_norm": Method(
        scratch, '"Small data strikes back"', SCRATCH, params={"net": "three-blocks", "view_policy": "photo"}
    ),
}
"""Methods by name. Each is compared with a reference implementation in the tests."""


def import_method(path: str, *, scale: bool = False) -> Method:
    """Return a method for a scikit-learn class or function, such as ``"sklearn.svm:SVC"``.

    Raises
    ------
    UsageError
        If there is no such module or name.
    """
    module, _, name = path.partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{path!r} cannot be imported ({error}); write it as module:name.") from None
    return Method(make, path, scale=scale)
