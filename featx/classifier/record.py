"""FitRecord: how a model came about, as plain values that are saved beside it."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.evaluation import Decision, Evaluation, Metric, OperatingPoint, class_indices, evaluate
from featx.evaluation.conformal import conformal_thresholds
from featx.finetune import Verdict
from featx.images import Skipped
from featx.records import APART, Record
from featx.selection.backbones import BackboneComparison
from featx.selection.choice import Choice
from featx.selection.tuning import Tried, TunedHead
from featx.threads import n_threads
from featx.version import __version__

PACKAGES = ("scikit-learn", "numpy", "timm", "torch")
"""Packages whose versions a record names."""

TRIALS_KEPT = 50
"""Best configurations of a search that a record keeps."""


@dataclass(frozen=True)
class Trial(Record):
    """A configuration that the search evaluated.

    Parameters
    ----------
    params : dict
        Representation, scaling, head and its parameters.
    score : float
        Mean cross-validation score.
    origin : str
        ``"grid"`` or ``"tpe"``.
    """

    params: dict[str, Any]
    score: float
    origin: str


@dataclass(frozen=True)
class FineTuneReport(Record):
    """What fine-tuning did, and why its network was kept or not.

    Parameters
    ----------
    tried, kept : bool
        Whether a network was trained, and whether it predicts now.
    reason : str
        Why, as a sentence with the numbers.
    verdict : Verdict or None
        Comparison with the head on frozen features, on training images that neither was fitted on.
    cut : str
        Layer above which was trained; empty for the whole network.
    disk : str
        Disk space of the cached features, or why images are streamed.
    phases : tuple of str
        What each phase trained: names, numbers of parameters, learning rates.
    history : tuple of dict
        Epochs of the network that was trained last: loss, accuracy, learning rates, seconds.
    """

    tried: bool
    kept: bool
    reason: str
    verdict: Verdict | None = None
    cut: str = ""
    disk: str = ""
    phases: tuple[str, ...] = ()
    history: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class ApartFromKin(Record):
    """The accuracy on the images that have no kin among the training images.

    Kin are copies, near copies, and images of one group.

    Parameters
    ----------
    n_kin : int
        Images that have kin.
    n : int
        The other images.
    accuracy : Metric
        On these; NaN if there are none.
    """

    n_kin: int
    n: int
    accuracy: Metric

    @classmethod
    def of(cls, evaluation: Evaluation, kin: NDArray[np.bool_]) -> ApartFromKin | None:
        """Return the accuracy without the images of a mask; None if the mask is empty."""
        assert evaluation.answers is not None
        if not kin.any():
            return None
        return cls(int(kin.sum()), int((~kin).sum()), evaluation.answers.accuracy(~kin))

    def sentence(self) -> str:
        """Return the score in words."""
        kin = f"{self.n_kin} of these images have copies, near copies or images of their group"
        if not self.n:
            return f"{kin} in the training part; no other image is left"
        return (
            f"{kin} in the training part; on the {self.n} others the accuracy is {self.accuracy.as_share()}"
        )


@dataclass(frozen=True, eq=False)
class FitRecord(Record):
    """How a model came about.

    Parameters
    ----------
    params : dict
        The configuration that was selected: representation, scaling, head and its parameters.
    score : float
        Its mean cross-validation score. It was selected by this score, so it is optimistic.
    scoring : str
        Name of the score that was maximised.
    oof_evaluation : Evaluation
        Out-of-fold estimate on the training images.
    evaluation : Evaluation or None
        Score on the held-out test part, if there is one.
    apart : ApartFromKin or None
        The score without test images that have kin in the training part; None if there are none.
    operating_points : tuple of OperatingPoint
        If classes are imbalanced: what other decisions score on the test part, or out of fold without one.
    choice : Choice or None
        The selected representation against its rivals. None if there was a single representation.
    tried : tuple of Tried
        What was tried for the winner besides, what it gained out of fold, and whether it was kept.
    backbones : BackboneComparison or None
        Comparison of the backbones. None if one backbone was named.
    fine_tuning : FineTuneReport or None
        None if fine-tuning was not requested.
    skipped : tuple of Skipped
        Images that were set aside, with the reason.
    remarks : tuple of str
        Remarks of the extraction, such as the field that made features be computed anew.
    seconds : dict of str to float
        Wall-clock time of each stage.
    trials : tuple of Trial
        The best configurations, best first.
    n_configurations : dict of str to int
        Number of configurations that were evaluated, by origin.
    left_out : dict of str to str
        Heads that the search did not fit on all images, and why.
    n_computed : int
        Images that went through the network; 0 if all features were cached.
    created : str
        UTC time, ISO 8601.
    versions : dict of str to str
        Versions of the packages.
    weighted : bool
        Whether training images had sample weights. They are not kept.
    hardware : str
        Operating system, processor architecture and number of cores.
    conformal : tuple of float
        Thresholds for sets of labels (see `featx.evaluation.conformal`), of the out-of-fold probabilities.
    oof_proba : ndarray of shape (n_training_images, n_classes)
        Out-of-fold probabilities of the training images. Saved apart.
    """

    params: dict[str, Any]
    score: float
    scoring: str
    oof_evaluation: Evaluation
    evaluation: Evaluation | None = None
    apart: ApartFromKin | None = None
    operating_points: tuple[OperatingPoint, ...] = ()
    choice: Choice | None = None
    tried: tuple[Tried, ...] = ()
    backbones: BackboneComparison | None = None
    fine_tuning: FineTuneReport | None = None
    skipped: tuple[Skipped, ...] = ()
    remarks: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    n_configurations: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    n_computed: int = 0
    created: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    weighted: bool = False
    hardware: str = ""
    conformal: tuple[float, ...] = ()
    oof_proba: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)), metadata=APART)

    @classmethod
    def of(cls, tuned: TunedHead, y: NDArray[Any], groups: NDArray[np.intp], decision: Decision) -> FitRecord:
        """Return the record of what was tuned, on training labels `y` in `groups`, with the decision to
        use.
        """
        return cls(
            params=tuned.params,
            score=tuned.score,
            scoring=tuned.scoring if isinstance(tuned.scoring, str) else tuned.scoring.__name__,
            oof_evaluation=evaluate(y, tuned.oof_proba, tuned.classes, groups=groups, decision=decision),
            choice=tuned.choice,
            tried=tuned.tried,
            trials=best_trials(tuned.cv_results),
            n_configurations=dict(Counter(tuned.cv_results["origin"].tolist())),
            left_out=dict(tuned.left_out),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            versions={"featx": __version__} | {name: importlib.metadata.version(name) for name in PACKAGES},
            hardware=f"{platform.system()} {platform.machine()}, {n_threads()} cores",
            conformal=conformal_thresholds(tuned.oof_proba, class_indices(y, tuned.classes.tolist())),
            oof_proba=tuned.oof_proba,
        )


def best_trials(table: Mapping[str, Any]) -> tuple[Trial, ...]:
    """Return the best configurations of a search.

    Parameters
    ----------
    table : dict
        ``cv_results_`` of the search.
    """
    score = np.asarray(table["mean_test_score"], np.float64)
    order = [at for at in np.argsort(-score, kind="stable") if np.isfinite(score[at])][:TRIALS_KEPT]
    return tuple(Trial(dict(table["params"][at]), float(score[at]), str(table["origin"][at])) for at in order)
