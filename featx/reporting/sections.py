"""The sections of a report, each as plain data from one function of `Known`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from threadpoolctl import threadpool_limits

from featx.audit import AuditData, Finding
from featx.audit.probe import nearest
from featx.classifier import ImageClassifier
from featx.classifier.predictions import Predictions
from featx.classifier.record import ApartFromKin
from featx.curves import ScorePath, fit_power_law, learning_curve
from featx.evaluation import Evaluation, Metric, shortfall
from featx.exceptions import FeatxError, UsageError
from featx.images.facts import ImageFacts
from featx.plot.charts import metric_text, worst_classes
from featx.reporting.findings import TITLES
from featx.tables import count, escape_name

MOST_MISTAKES = 120
"""Mistakes that a page shows; those of held-out images first."""

BESIDE = 3
"""Nearest training images that are shown beside a mistake."""

MAP_IMAGES = 500
"""Images of the map. t-SNE of so many takes about a second."""

EMBEDDINGS = {"tsne": "t-SNE", "pca": "principal components", "umap": "UMAP"}
"""Methods of the map. UMAP is used on request only: it is compiled for most of a minute in each process."""

MAP_THUMBS = 250
"""Images of the map with a thumbnail."""

SIGNIFICANT = 0.01
"""Probability by chance (after Holm's correction) below which a slice is called worse."""

FEWEST_IN_SLICE = 10
MOST_CELLS = 22
"""Classes of a confusion matrix on a page: so many fit in its width, with the recall."""

MOST_ACTIONS = 3

CURVE_IMAGES, AHEAD = 600, 2.0
"""Training images of the learning curve, and how far ahead of them it looks."""

METRIC_NAMES = {"ece": "expected calibration error", "macro_f1": "macro F1"}


@dataclass(frozen=True, eq=False)
class Known:
    """What a report is made from.

    Parameters
    ----------
    clf : ImageClassifier
        Fitted or loaded.
    predictions : Predictions or None
        Of the images of the fit, or of new labelled data.
    evaluation : Evaluation or None
        On held-out or new images.
    facts : ImageFacts or None
        Of the images of the predictions.
    features : array of shape (n, d) or None
        Their features.
    findings : tuple of Finding
        Of the check of the images.
    embedding : str
        Method of the map, a key of `EMBEDDINGS`.
    scratch : ScorePath or None
        Accuracy of a network that was trained from scratch on parts of the training images, if one was.
    apart : ApartFromKin or None
        The score without images that have kin in the training part; None if there are none.
    """

    clf: ImageClassifier
    predictions: Predictions | None
    evaluation: Evaluation | None
    facts: ImageFacts | None
    features: NDArray[np.float32] | None
    findings: tuple[Finding, ...]
    embedding: str = "tsne"
    scratch: ScorePath | None = None
    apart: ApartFromKin | None = None

    @property
    def held_out(self) -> Predictions | None:
        """Predictions of images that the model was not fitted on."""
        if self.predictions is None:
            return None
        return self.predictions.take(self.predictions.parts != "train")


def audit_data(predictions: Predictions, facts: ImageFacts, features: NDArray[np.float32]) -> AuditData:
    """Return what the checks of the images of a report read."""
    images = predictions.images
    known = images.labels is not None and set(images.labels.tolist()) == set(predictions.classes.tolist())
    parts = (
        np.where(predictions.parts == "train", "train", "test")
        if (predictions.parts == "train").any()
        else None
    )
    return AuditData(
        images.names,
        digests=predictions.ids,
        labels=images.labels,
        parts=parts,
        oof_proba=predictions.proba if known else None,
        facts=facts,
        features=features,
        skipped=[(one.name, one.reason) for one in images.skipped],
    )


def answer(known: Known) -> dict[str, Any]:
    """What the model does, how good it is, for whom it fails, and what to do next."""
    clf, evaluation = known.clf, known.evaluation
    classes = [str(label) for label in clf.classes_]
    listed = ", ".join(classes[:6]) + (", ..." if len(classes) > 6 else "")
    does = f"It classifies images into {count(len(classes), 'class', 'classes')} ({listed})."
    if evaluation is None:
        good = (
            "It has no held-out test part. Out of fold, its accuracy on the training images is "
            f"{metric_text(clf.oof_evaluation_.metrics['accuracy'])}."
        )
        evaluation = clf.oof_evaluation_
    else:
        accuracy = metric_text(evaluation.metrics["accuracy"])
        good = f"On {count(evaluation.n, 'image')} that it has not seen, its accuracy is {accuracy}."
    worst = min(evaluation.per_class, key=lambda one: (one.recall, -one.support))
    fails = (
        f"It fails most often for {worst.label}: {worst.recall:.1%} of {count(worst.support, 'image')} are "
        "recognised."
        if worst.recall < 1
        else "It makes no mistake on them."
    )
    return {"does": does, "good": good, "fails": fails, "next": _actions(known, evaluation)}


def _actions(known: Known, evaluation: Evaluation) -> list[dict[str, str]]:
    """At most three things to do next, each with the section that proves it."""
    actions = [
        {"text": _brief(one), "link": f"#{one.check}"} for one in known.findings if one.severity != "note"
    ]
    pair = _most_confused(evaluation)
    if pair:
        actions.append({"text": f"Add images of {pair}.", "link": "#confusion"})
    small = min(evaluation.per_class, key=lambda one: one.support)
    if small.support < 30:
        text = f"Test on more images: {small.label} has {small.support} in this evaluation."
        actions.append({"text": text, "link": "#classes"})
    return actions[:MOST_ACTIONS]


def _brief(finding: Finding) -> str:
    """Title and first clause of a finding."""
    clause = re.split(r"[:.] ", finding.sentence)[0].rstrip(".")
    return f"{TITLES.get(finding.check, finding.check)}: {clause}."


def _most_confused(evaluation: Evaluation) -> str:
    matrix = evaluation.confusion.copy()
    np.fill_diagonal(matrix, 0)
    if not matrix.any():
        return ""
    truth, other = np.unravel_index(int((matrix + matrix.T).argmax()), matrix.shape)
    n = int(matrix[truth, other] + matrix[other, truth])
    confused = f"{evaluation.classes[truth]} and {evaluation.classes[other]}"
    return f"{confused}, which are confused most often ({count(n, 'mistake')})"


def quality(known: Known) -> dict[str, Any]:
    """Metrics with intervals, the score of the selection, and the confusion matrix."""
    clf = known.clf
    evaluation = known.evaluation or clf.oof_evaluation_
    matrix = evaluation.confusion
    order = worst_classes(matrix, MOST_CELLS)
    note = ""
    if len(order) < len(matrix):
        note = f"The {MOST_CELLS} classes of the lowest recall, of {len(matrix)}."
    rows = [
        {
            "label": str(evaluation.classes[i]),
            "code": int(i),
            "cells": [
                {
                    "code": int(j),
                    "label": str(evaluation.classes[j]),
                    "n": int(matrix[i, j]),
                    "share": float(matrix[i, j] / max(1, matrix[i].sum())),
                }
                for j in order
            ],
            "recall": float(matrix[i, i] / max(1, matrix[i].sum())),
        }
        for i in order
    ]
    return {
        "n": evaluation.n,
        "held_out": known.evaluation is not None,
        "metrics": [
            {"name": METRIC_NAMES.get(name, name.replace("_", " ")), **m.to_dict()}
            for name, m in evaluation.metrics.items()
        ],
        "apart": "" if known.apart is None else known.apart.sentence(),
        "shortfall": _shortfall(known),
        "selection": {"name": str(clf.scoring_).replace("_", " "), "value": float(clf.best_score_)},
        "confusion": rows,
        "note": note,
        "per_class": [one.to_dict() for one in sorted(evaluation.per_class, key=lambda one: one.recall)],
    }


def _shortfall(known: Known) -> str:
    """A sentence if the score is far below that of cross-validation."""
    folds = known.clf._folds()
    if known.evaluation is None or folds is None or known.clf.network_ is not None:
        return ""
    return shortfall(known.evaluation, folds)


def mistakes(known: Known) -> dict[str, Any]:
    """Every mistake with its nearest training images; and the slices that do worse than chance allows."""
    predictions = known.predictions
    if predictions is None:
        return {"total": 0, "shown": [], "slices": [], "held_out": 0}
    wrong = np.flatnonzero(predictions.wrong)
    held_out = predictions.parts != "train"
    truth, answers = predictions.truth, predictions.answers
    surest = predictions.proba[wrong, answers[wrong]]
    wrong = wrong[np.lexsort((-surest, ~held_out[wrong]))]
    shown = wrong[:MOST_MISTAKES]
    rows = predictions.take(shown).rows()
    near = _nearest_trained(known, shown)
    for place, (index, row, kin) in enumerate(zip(shown.tolist(), rows, near, strict=True)):
        others = [
            {"index": i, "name": predictions.images.names[i], "label": str(predictions.classes[truth[i]])}
            for i in kin
        ]
        rows[place] = {
            **row, "index": index, "truth_code": int(truth[index]), "answer_code": int(answers[index]),
            "beside": others,
        }  # fmt: skip
    return {
        "total": len(wrong),
        "held_out": int((predictions.parts[wrong] != "train").sum()),
        "shown": rows,
        "slices": slices(known),
    }


def _nearest_trained(known: Known, images: NDArray[np.intp]) -> list[list[int]]:
    predictions, features = known.predictions, known.features
    assert predictions is not None
    trained = np.flatnonzero(predictions.parts == "train")
    if features is None or len(trained) < BESIDE or not len(images):
        return [[] for _ in images]
    both = np.concatenate([features[trained], features[images]])
    place = len(trained) + np.arange(len(images))
    found = nearest(both, place, 4 * BESIDE)[0]
    kept = [[int(trained[i]) for i in row if i < len(trained)] for row in found]
    return [[i for i in row if i != image][:BESIDE] for row, image in zip(kept, images, strict=True)]


def slices(known: Known) -> list[dict[str, Any]]:
    """Slices of the images (size, aspect, brightness, sharpness, folder, file type) with more mistakes.

    A slice is named if its mistakes are more than those of the other images allow by chance: a one-sided
    binomial test, corrected for the number of slices (Holm, 1979).
    """
    predictions, facts = known.predictions, known.facts
    if predictions is None or facts is None:
        return []
    judged = (predictions.truth >= 0) & (predictions.answers >= 0)
    wrong = predictions.wrong
    found: list[tuple[float, dict[str, Any]]] = []
    for name, member in _slices(predictions, facts):
        mask, rest = member & judged, judged & ~member
        n, n_wrong = int(mask.sum()), int(wrong[mask].sum())
        if n >= FEWEST_IN_SLICE:
            rate = float((wrong[rest].sum() + 1) / (rest.sum() + 2))
            p = float(binomtest(n_wrong, n, rate, alternative="greater").pvalue)
            found.append((p, {"name": name, "n": n, "wrong": n_wrong, "rate": n_wrong / n, "rest": rate}))
    found.sort(key=lambda one: one[0])
    kept = []
    for place, (p, one) in enumerate(found):
        if p * (len(found) - place) >= SIGNIFICANT:
            break
        kept.append(one)
    return kept


def _slices(predictions: Predictions, facts: ImageFacts) -> list[tuple[str, NDArray[np.bool_]]]:
    width, height = np.maximum(facts["width"], 1), np.maximum(facts["height"], 1)
    values: dict[str, tuple[str, str, NDArray[Any]]] = {
        "size": ("small images", "large images", width * height),
        "aspect": ("narrow images", "wide images", width / height),
        "brightness": ("dark images", "bright images", facts["brightness"]),
        "sharpness": ("blurred images", "sharp images", facts["sharpness"]),
        "contrast": ("images of low contrast", "images of high contrast", facts["contrast"]),
    }
    found = []
    for low_name, high_name, value in values.values():
        low, high = np.quantile(value, (0.2, 0.8))
        if low < high:
            found += [(f"the 20 % {low_name}", value <= low), (f"the 20 % {high_name}", value >= high)]
    folders = np.array([name.rpartition("/")[0] for name in predictions.images.names])
    kinds = np.array(facts.kinds())
    for what, names in (("folder", folders), ("file type", kinds)):
        several, sizes = np.unique(names, return_counts=True)
        if 1 < len(several) <= 50:
            found += [(f"{what} {name}", names == name) for name in several[sizes < len(names)]]
    return found


def space(known: Known) -> dict[str, Any]:
    """A map of images by their features: principal components, t-SNE or UMAP of them."""
    predictions, features = known.predictions, known.features
    if predictions is None or features is None or len(features) < 10:
        return {"points": [], "note": "", "method": ""}
    n = len(features)
    chosen = np.flatnonzero(predictions.wrong)[: MAP_IMAGES // 4]
    others = np.setdiff1d(np.arange(n), chosen)
    step = max(1.0, len(others) / (MAP_IMAGES - len(chosen)))
    chosen = np.sort(np.concatenate([chosen, others[np.arange(0, len(others), step).astype(int)]]))
    rows = features[chosen]
    flat = flat_map(rows, known.embedding)
    low, high = flat.min(axis=0), flat.max(axis=0)
    flat = (flat - low) / np.maximum(high - low, 1e-9)
    labels = predictions.images.labels
    points = [
        {
            "index": int(i), "x": float(x), "y": float(y), "name": predictions.images.names[i],
            "label": "" if labels is None else str(labels[i]), "code": int(code),
            "wrong": bool(wrong), "part": str(predictions.parts[i]),
        }
        for i, (x, y), code, wrong in zip(
            chosen, flat, predictions.truth[chosen], predictions.wrong[chosen], strict=True
        )
    ]  # fmt: skip
    n_wrong, n_shown = int(predictions.wrong.sum()), int(predictions.wrong[chosen].sum())
    among = "all mistakes" if n_shown == n_wrong else f"{n_shown:,} of {count(n_wrong, 'mistake')}"
    note = "" if len(chosen) == n else f"{len(chosen):,} of {n:,} images, {among} among them."
    return {"points": points, "note": note, "method": EMBEDDINGS[known.embedding]}


def flat_map(rows: NDArray[np.float32], method: str) -> NDArray[np.float32]:
    """Places of images on a map, shape (n, 2)."""
    from sklearn.decomposition import PCA

    n_components = 2 if method == "pca" else min(30, len(rows) - 1, rows.shape[1])
    with threadpool_limits(1):  # threads that wait for each other take 10 times as long for so few rows
        rows = PCA(n_components, random_state=0, svd_solver="randomized").fit_transform(rows)
    if method == "pca":
        return rows
    if method == "umap":
        embed: Any = _umap()(n_neighbors=min(15, len(rows) - 1), random_state=0, n_jobs=1)
    else:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(rows) - 1) / 3)
        embed = TSNE(2, perplexity=perplexity, init="pca", random_state=0, max_iter=400, n_jobs=1)
    with threadpool_limits(1):  # threads of OpenMP that wait for each other took 22 s instead of 1.4
        return np.asarray(embed.fit_transform(rows), np.float32)


def _umap() -> Any:
    try:
        from umap import UMAP
    except ImportError:
        raise UsageError(
            "a map by UMAP needs the package umap-learn: pip install umap-learn; or use tsne or pca."
        ) from None
    return UMAP


def choosing(known: Known) -> dict[str, Any]:
    """How the model was chosen: the selected configuration, rivals, scores by layer, and the search."""
    record = known.clf.record_
    table = known.clf._fitted.cv_results
    scores = [] if table is None else np.asarray(table["mean_test_score"], float).tolist()
    origins = [] if table is None else [str(one) for one in table["origin"]]
    tried = [(one.params, one.score) for one in record.trials]
    if table is not None:
        tried = list(zip(table["params"], scores, strict=True))
    by_layer: dict[str, float] = {}
    for params, score in tried:
        blocks = str(params.get("representation", "")).split(" + ")
        if len(blocks) == 1 and blocks[0] and np.isfinite(score):
            layer = blocks[0].partition(":")[0]
            by_layer[layer] = max(by_layer.get(layer, 0.0), score)
    ordered = {tap.name: by_layer[tap.name] for tap in known.clf.card_.taps if tap.name in by_layer}
    sentences = [] if record.backbones is None else list(record.backbones.sentences())
    sentences += [] if record.choice is None else record.choice.sentences()
    for one in record.tried:
        sentences.append(
            f"{one.name}: {100 * one.gain:+.1f} points out of fold, {'kept' if one.kept else 'not kept'}."
        )
    if record.fine_tuning is not None:
        sentences.append(f"Fine-tuning: {record.fine_tuning.reason}")
    return {
        "params": {name: _short(value) for name, value in record.params.items()},
        "scoring": record.scoring,
        "score": record.score,
        "n_configurations": record.n_configurations,
        "sentences": sentences,
        "layers": ordered,
        "history": {"scores": scores, "origins": origins},
        "importance": [] if table is None else importance(table["params"], scores),
        "trials": [
            {"score": one.score, "params": ", ".join(f"{k} {_short(v)}" for k, v in one.params.items())}
            for one in record.trials[:8]
        ],
        "curve": learning(known),
        "epochs": [] if record.fine_tuning is None else list(record.fine_tuning.history),
    }


def learning(known: Known) -> dict[str, Any] | None:
    """Accuracy by number of training images, and what is expected of more; None if it cannot be measured.

    A ridge classifier of the features in use, on at most `CURVE_IMAGES` training images.
    """
    predictions, features = known.predictions, known.features
    if predictions is None or features is None:
        return None
    trained = np.flatnonzero((predictions.parts == "train") & (predictions.truth >= 0))
    step = max(1.0, len(trained) / CURVE_IMAGES)
    trained = trained[np.arange(0, len(trained), step).astype(int)]
    units = known.clf.model_.images.units_of(predictions.ids[trained])
    try:
        with threadpool_limits(1):  # as in `flat_map`
            curve = learning_curve(
                features[trained], predictions.truth[trained], head="ridge", groups=units, n_repeats=1
            )
        law = fit_power_law(curve)
    except FeatxError:  # too few images of a class
        return None
    sizes = np.geomspace(curve.sizes[-2:][0], AHEAD * curve.sizes[-1], 40)  # the law trusts the largest most
    ahead = [law.accuracy(float(size)) for size in sizes]
    return {
        "sizes": curve.sizes.tolist(),
        "accuracy": [one.value for one in curve.accuracy],
        "low": [one.low for one in curve.accuracy],
        "high": [one.high for one in curve.accuracy],
        "ahead": {
            "sizes": sizes.tolist(),
            **_columns(ahead),
        },
        "scratch": None
        if known.scratch is None
        else {"sizes": list(known.scratch.x), **_columns(known.scratch.score)},
    }


def _columns(scores: Sequence[Metric]) -> dict[str, list[float]]:
    """Values and bounds of scores, each as a list."""
    return {name: [getattr(one, name) for one in scores] for name in ("value", "low", "high")}


def importance(params: Sequence[Mapping[str, Any]], scores: Sequence[float]) -> list[dict[str, Any]]:
    """Share of the variance of the scores that each parameter explains, and its best value, by share.

    Correlation ratio (Pearson, 1905) over the configurations of the search; parameters that all heads have.
    """
    values = np.asarray(scores, float)
    used = np.flatnonzero(np.isfinite(values)).tolist()
    values = values[used]
    found: list[dict[str, Any]] = []
    if len(used) < 2 or not values.std():
        return found
    for name in ("representation", "scaling", "head"):
        kinds = np.array([str(params[place].get(name, "")) for place in used])
        names, codes, sizes = np.unique(kinds, return_inverse=True, return_counts=True)
        if len(names) > 1:
            means = np.bincount(codes, weights=values) / sizes
            share = float(sizes @ (means - values.mean()) ** 2 / (len(values) * values.var()))
            best = np.array([values[codes == code].max() for code in range(len(names))])
            found.append({"name": name, "share": share, "best": str(names[best.argmax()]), "n": len(names)})
    return sorted(found, key=lambda one: -one["share"])


def _call(clf: ImageClassifier) -> str:
    """The call that repeats a fit, with the parameters that are not the default."""
    default = type(clf)().get_params(deep=False)
    hidden = ("extractor", "search", "fine_tuner", "store", "callback", "verbose", "n_jobs")
    own = {name: value for name, value in sorted(clf.get_params(deep=False).items()) if name not in hidden}
    changed = ", ".join(f"{name}={value!r}" for name, value in own.items() if value != default[name])
    part = "fit_with_test" if clf.model_.images.is_test.any() else "fit"
    return f"ImageClassifier({changed}).{part}(DATA)"


def repeating(known: Known) -> dict[str, Any]:
    """What is needed to repeat it: versions, weights and their licence, the split, and times."""
    clf = known.clf
    record, images = clf.record_, clf.model_.images
    return {
        "created": record.created,
        "call": _call(clf),
        "data": hashlib.sha256(np.sort(images.ids.copy().view("V32").ravel()).tobytes()).hexdigest(),
        "versions": record.versions,
        "hardware": record.hardware,
        "networks": [
            {
                "name": card.name,
                "weights": card.weights,
                "source": card.source,
                "licence": card.licence or "unknown",
            }
            for card in clf.cards_
        ],
        "n_images": 0 if known.predictions is None else len(known.predictions.images),
        "n_train": int((~images.is_test).sum()),
        "n_test": int(images.is_test.sum()),
        "seed": clf.random_state,
        "seconds": {name: float(value) for name, value in record.seconds.items() if value >= 0.05},
        "params": {
            name: str(value)
            for name, value in sorted(clf.get_params(deep=False).items())
            if name not in ("extractor", "search", "fine_tuner", "store", "callback") and value is not None
        },
    }


SECTIONS: dict[str, Callable[[Known], dict[str, Any]]] = {
    "answer": answer,
    "quality": quality,
    "mistakes": mistakes,
    "map": space,
    "choosing": choosing,
    "repeating": repeating,
}
"""Each section of a report: a function that returns plain data, ready for JSON."""


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else escape_name(str(value))
