"""The figures of a report, by name: for its page, and for ``featx show``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from featx import plot
from featx.audit.probe import nearest
from featx.classifier.predictions import Predictions
from featx.evaluation import Evaluation
from featx.exceptions import UsageError
from featx.plot import Display
from featx.plot.base import UNDER_IMAGE, short
from featx.reporting.sections import Known
from featx.reporting.seeing import augmented, features, heat, label_of, pixels_of, with_images

FEWEST = 20
"""With fewer images, probabilities are not drawn."""

SHEET_ROWS, SHEET_COLUMNS = 6, 6

Sections = Mapping[str, dict[str, Any]]


def draw(known: Known, sections: Sections, name: str) -> Display:
    """Draw a figure of `FIGURES`.

    Raises
    ------
    UsageError
        If there are no data for it; the message says what is needed.
    """
    return FIGURES[name](known, sections)


def _evaluation(known: Known) -> Evaluation:
    found: Evaluation = known.evaluation or known.clf.oof_evaluation_
    return found


def _judged(known: Known) -> Predictions:
    """Predictions of labelled images, held-out ones where there are enough."""
    every = with_images(known)
    for found in (every.take(every.parts != "train"), every):
        judged = found.take((found.truth >= 0) & (found.answers >= 0))
        if len(judged.images) >= FEWEST:
            return judged
    raise UsageError(f"this figure needs at least {FEWEST} labelled images with probabilities.")


def _calibration(known: Known, sections: Sections) -> Display:
    judged = _judged(known)
    return plot.calibration(judged.truth, judged.proba)


def _coverage(known: Known, sections: Sections) -> Display:
    judged = _judged(known)
    return plot.coverage(judged.truth, judged.proba)


def _of_two(curve: Callable[..., Display], known: Known) -> Display:
    judged = _judged(known)
    if len(judged.classes) != 2:
        raise UsageError("this curve is drawn for two classes.")
    return curve(judged.truth, judged.proba[:, 1], judged.classes[1])


def _balance(known: Known, sections: Sections) -> Display:
    if known.predictions is not None and known.predictions.images.labels is not None:
        return plot.balance(known.predictions.images.labels)
    images = known.clf.model_.images
    return plot.balance(np.asarray(known.clf.classes_)[images.codes])


def _layers(known: Known, sections: Sections) -> Display:
    chosen = sections["choosing"]
    if len(chosen["layers"]) < 2:
        raise UsageError("the record of this fit has scores of fewer than two layers alone.")
    return plot.layers(chosen["layers"], scoring=chosen["scoring"])


def _history(known: Known, sections: Sections) -> Display:
    chosen = sections["choosing"]
    if not chosen["history"]["scores"]:
        raise UsageError("the history of the search is not in a model file; use `featx fit --report`.")
    if len(chosen["history"]["scores"]) < 2:
        raise UsageError("the search tried one configuration, so there is nothing to draw.")
    return plot.history(**chosen["history"], scoring=chosen["scoring"])


def _learning(known: Known, sections: Sections) -> Display:
    curve = sections["choosing"]["curve"]
    if curve is None:
        raise UsageError("a learning curve needs the training images: give those of the fit.")
    return plot.learning(**curve)


def _training(known: Known, sections: Sections) -> Display:
    epochs = sections["choosing"]["epochs"]
    if len(epochs) < 2:
        raise UsageError("this model has no fine-tuned network, or one of a single epoch.")
    return plot.training(epochs)


def _map(known: Known, sections: Sections) -> Display:
    points = sections["map"]["points"]
    if not points:
        raise UsageError("a map needs at least 10 images: give those of the fit, or others.")
    labels, wrong = [one["label"] for one in points], [one["wrong"] for one in points]
    return plot.scatter([(one["x"], -one["y"]) for one in points], labels, wrong=wrong)


def _mistakes(known: Known, sections: Sections) -> Display:
    predictions = with_images(known)
    shown = sections["mistakes"]["shown"][: SHEET_ROWS * SHEET_COLUMNS]
    if not shown:
        raise UsageError("no image is misclassified, so there is nothing to draw.")
    cells = []
    for one in shown:
        caption = "{} {:.0%}\nis {}".format(
            short(one["answer"], UNDER_IMAGE), one["probability"], short(one["truth"], UNDER_IMAGE)
        )
        cells.append((pixels_of(predictions, one["index"]), caption))
    return plot.sheet([cells[i : i + SHEET_COLUMNS] for i in range(0, len(cells), SHEET_COLUMNS)])


def _neighbours(known: Known, sections: Sections) -> Display:
    predictions = with_images(known)
    features = known.features
    if features is None or len(features) < 2:
        raise UsageError("neighbours need at least two images.")
    wrong = [one["index"] for one in sections["mistakes"]["shown"]]
    spread = np.linspace(0, len(features) - 1, SHEET_ROWS).astype(int).tolist()
    chosen = list(dict.fromkeys([*wrong[: SHEET_ROWS // 2], *spread]))[:SHEET_ROWS]
    found, cosines = nearest(features, np.array(chosen, np.intp), SHEET_COLUMNS - 1)
    rows = []
    for image, row, cosine in zip(chosen, found.tolist(), cosines.tolist(), strict=True):
        cells = [(pixels_of(predictions, image), f"{label_of(predictions, image)}\nits nearest:")]
        for other, value in zip(row, cosine, strict=True):
            cells.append((pixels_of(predictions, other), f"{label_of(predictions, other)}\n{value:.2f}"))
        rows.append(cells)
    return plot.sheet(rows)


FIGURES: dict[str, Callable[[Known, Sections], Display]] = {
    "confusion": lambda known, sections: plot.confusion(_evaluation(known)),
    "classes": lambda known, sections: plot.classes(_evaluation(known)),
    "calibration": _calibration,
    "coverage": _coverage,
    "roc": lambda known, sections: _of_two(plot.roc, known),
    "precision": lambda known, sections: _of_two(plot.precision_recall, known),
    "balance": _balance,
    "layers": _layers,
    "history": _history,
    "map": _map,
    "mistakes": _mistakes,
    "neighbours": _neighbours,
    "heat": lambda known, sections: heat(known),
    "features": lambda known, sections: features(known),
    "views": lambda known, sections: augmented(known),
    "learning": _learning,
    "training": _training,
}
"""Each figure by its name: a function of what is known and of the sections of the report."""

ON_PAGE = (
    "classes", "calibration", "coverage", "roc", "precision", "layers", "history", "heat", "features",
    "views", "learning", "training",
)  # fmt: skip
"""Figures of the page. The others are there as tables, images or a map."""
