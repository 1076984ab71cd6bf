"""Fine-tuning within a classifier: after the search, on the training part alone, and kept only if it wins.

Judging and early stopping happen on inner parts of the training part (see `featx.finetune`), so the test
part stays untouched. Whatever comes of it, the user reads why.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featx.advice import Option
from featx.exceptions import DataError, LabelError, ModelFileError, UsageError
from featx.extractor import FeatureExtractor
from featx.features import FeatureBlocks
from featx.finetune import FineTunedNetwork, FineTuner, Probe, Verdict, worth_trying
from featx.finetune.estimator import describe_phases
from featx.images import ImageSet
from featx.selection.backbones import backbone_names
from featx.selection.candidates import AUTO
from featx.selection.networks import is_of
from featx.solvers import CLASS_WEIGHTS
from featx.splits import check_labels

if TYPE_CHECKING:
    from featx.classifier.estimator import ImageClassifier

CHOICES = ("auto", True, False)

OWN = ("backbone", "random_state", "callback")
"""Parameters of the fine-tuner that the classifier gives."""

MAX_VERDICTS = 5
"""Disjoint fifths of the training part that may judge: together they are all of it."""


@dataclass(frozen=True)
class FineTuneReport:
    """What came of fine-tuning.

    Parameters
    ----------
    tried, kept : bool
        Whether anything was trained, and whether it predicts now.
    reason : str
        Why, in words, with the numbers.
    verdict : Verdict or None
        Against the probe, on images of the training part that neither had seen.
    cut : str
        Layer above which was trained; empty for the whole network.
    disk : str
        What the rows take on the disk, or why images stream.
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
    history: tuple[Mapping[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, ready for JSON."""
        verdict = None if self.verdict is None else self.verdict.to_dict()
        return {**vars(self), "verdict": verdict, "phases": [*self.phases], "history": [*self.history]}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> FineTuneReport:
        """Read what `to_dict` gave.

        Raises
        ------
        ModelFileError
            If it is anything else.
        """
        try:
            return cls(
                tried=bool(plain["tried"]),
                kept=bool(plain["kept"]),
                reason=str(plain["reason"]),
                verdict=None if plain["verdict"] is None else Verdict.from_dict(plain["verdict"]),
                cut=str(plain["cut"]),
                disk=str(plain["disk"]),
                phases=tuple(map(str, plain["phases"])),
                history=tuple(plain["history"]),
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ModelFileError(f"what the file says of fine-tuning cannot be read: {error}") from error


def fine_tune(
    clf: ImageClassifier, images: ImageSet, blocks: FeatureBlocks
) -> tuple[FineTunedNetwork | None, FineTuneReport | None]:
    """The network if it is kept, and what came of it; two None where nobody asked.

    Parameters
    ----------
    clf : ImageClassifier
        With its search done.
    images : ImageSet
        The training part.
    blocks : FeatureBlocks
        Its rows.
    """
    if clf.fine_tune is False:
        return None, None
    n_verdicts, reason = _verdicts(clf, len(images))
    settings: dict[str, Any] = {"n_verdicts": n_verdicts or 1}
    if clf.fine_tune == "auto":
        option = None
        try:
            option = _advised(clf) if n_verdicts else None
        except DataError as error:
            n_verdicts, reason = 0, f"there are too few images to measure whether it pays ({error})"
        if option is not None and not option.worthwhile:
            gain = f" ({100 * option.gain.value:+.1f} points)" if option.gain is not None else ""
            n_verdicts, reason = 0, f"the advice for these images expects too little of it{gain}"
        if not n_verdicts:
            return None, _not_tried(clf, reason)
        settings |= {} if option is None else {"unfreeze": option.what}
    tuner = make_tuner(clf, **settings)
    try:
        tuner.fit(
            images,
            check_labels(images.labels),
            groups=images.groups,
            sample_weight=images.weights,
            probe=Probe(
                clf.best_estimator_,
                blocks.stack(clf.best_blocks_),
                clf.calibration_,
                adjustment=clf.adjustment_,
            ),
        )
    except LabelError as error:  # the search is done and stands
        reason = f"the images cannot be dealt into parts to train on, stop by and judge ({error})"
        return None, _not_tried(clf, reason)
    verdict = tuner.verdict_
    report = FineTuneReport(
        tried=True,
        kept=verdict is None or verdict.kept,
        reason="kept unjudged, since verdict is 0." if verdict is None else verdict.reason,
        verdict=verdict,
        cut="" if tuner.network_.whole else tuner.network_.spec.cut,
        disk="" if tuner.plan_ is None else tuner.plan_.reason,
        phases=tuple(describe_phases(tuner.phases_, tuner.trained_, tuner.head)),
        history=tuple(tuner.history_),
    )
    clf._advice = None  # it did not know yet what fine-tuning brings
    return tuner.network_ if report.kept else None, report


def _not_tried(clf: ImageClassifier, reason: str) -> FineTuneReport:
    report = FineTuneReport(False, False, f"not tried: {reason.rstrip('.')}.")
    clf._say(f"fine-tuning {report.reason}", stage="fine-tuning")
    return report


def make_tuner(clf: ImageClassifier, **settings: Any) -> FineTuner:
    """The fine-tuner of a classifier: its network, resizing, store, device and seed.

    Parameters
    ----------
    clf : ImageClassifier
        Its `fine_tune_params` win over `settings`.
    **settings
        Parameters of `FineTuner`.

    Raises
    ------
    UsageError
        If a parameter is not one of the fine-tuner's.
    """
    check(clf)
    params = clf._recipe() | clf._machine() | {"cut": None, "pool": "avg"}
    if hasattr(clf, "best_blocks_"):
        best = clf.specs_[clf.best_blocks_[0]]
        card = next(card for card in clf.cards_ if is_of(best, card))
        params |= {"resize": best.resize, "backbone": clf._model_files.get(card.weights, card.name)}
    else:
        params["backbone"] = backbone_names(params["backbone"])[0]
        params["resize"] = "crop" if params["resize"] == AUTO else params["resize"]
    settings |= {"class_weight": _class_weight(clf)}
    return FineTuner(
        FeatureExtractor(**params),
        random_state=clf.random_state,
        callback=clf.callback,
        **(settings | dict(clf.fine_tune_params or {})),
    )


def check(clf: ImageClassifier) -> None:
    """Refuse, before any work, what cannot be meant.

    Raises
    ------
    UsageError
    """
    if not any(clf.fine_tune is choice or clf.fine_tune == choice == "auto" for choice in CHOICES):
        raise UsageError(f"fine_tune {clf.fine_tune!r} is not known; choose 'auto', True or False.")
    allowed = [name for name in inspect.signature(FineTuner).parameters if name not in OWN]
    for name in clf.fine_tune_params or {}:
        if name not in allowed:
            raise UsageError(f"fine_tune_params has {name!r}; the fine-tuner takes {', '.join(allowed)}.")


def _verdicts(clf: ImageClassifier, n: int) -> tuple[int, str]:
    """How many parts must judge for a win to be possible, 0 if it is not."""
    accuracy = clf.oof_evaluation_.metrics["accuracy"].value
    share = dict(clf.fine_tune_params or {}).get("verdict", 0.2)
    reason = ""
    for count in range(1, MAX_VERDICTS + 1):
        worth, reason = worth_trying(n, accuracy, verdict=share, n_verdicts=count)
        if worth:
            return count, reason
    return 0, reason


def _advised(clf: ImageClassifier) -> Option | None:
    """What measured advice says of fine-tuning and of the layer to begin at; None if it says nothing."""
    return next((option for option in clf.advice_.options if option.action == "fine_tune"), None)


def _class_weight(clf: ImageClassifier) -> Any:
    """As the winning head has it, where that was searched."""
    if isinstance(clf.class_weight, Mapping) or clf.class_weight in (None, *CLASS_WEIGHTS):
        return clf.class_weight
    return clf.best_params_.get("class_weight") if hasattr(clf, "best_params_") else None
