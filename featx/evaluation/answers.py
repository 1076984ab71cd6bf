"""Predictions of a model image by image, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featx.evaluation.decision import Decision
from featx.evaluation.metrics import CONFIDENCE, Floats, Indices, Metric

COLUMNS = (
    "path",
    "part",
    "truth",
    "answer",
    "probability",
    "runner_up",
    "runner_up_probability",
    "unlike",
)


@dataclass(frozen=True, eq=False)
class AnswerTable:
    """Answers for n images.

    Parameters
    ----------
    classes : sequence
        Labels of the columns.
    names : sequence of str, length n
        Names of the images.
    parts : sequence of str, length n
        ``train``, ``test``, or ``new`` for an image that the model does not know.
    truth : sequence, length n
        Labels of the images; None for no label.
    best : array of shape (n, 2), int
        Columns of the answer and of the runner-up; -1 where there is no probability.
    probability : array of shape (n, 2)
        Their probabilities.
    unlike : array of shape (n,)
        How unlike the training images each image is, as a percentile (see `featx.evaluation.unlike`).
    """

    classes: Sequence[Any]
    names: Sequence[str]
    parts: Sequence[str]
    truth: Sequence[Any]
    best: Indices
    probability: Floats
    unlike: Floats

    @classmethod
    def of(
        cls,
        classes: Sequence[Any],
        proba: Floats,
        decision: Decision,
        *,
        names: Sequence[str],
        parts: Sequence[str],
        truth: Sequence[Any],
        unlike: Floats,
    ) -> AnswerTable:
        """Return the answers that a decision gives for probabilities; rows of NaN have none."""
        known = np.asarray(~np.isnan(proba).any(axis=1))
        rows = np.where(known[:, None], proba, 1.0)
        answers = decision.shares(rows).argmax(axis=1)
        others = rows.copy()
        others[np.arange(len(rows)), answers] = -1.0  # the runner-up is the most probable other class
        best = np.column_stack([answers, others.argmax(axis=1)])
        probability = np.take_along_axis(rows, best, axis=1)
        best[~known], probability[~known] = -1, np.nan
        return cls(classes, names, parts, truth, best, probability, unlike)

    def accuracy(self, chosen: NDArray[np.bool_]) -> Metric:
        """Accuracy on some images, with its 95 % interval (Wilson, 1927); NaN if none has a label."""
        from scipy.stats import binomtest  # not needed to predict

        pairs = [(self.classes[code], truth) for code, truth in zip(self.best[:, 0], self.truth, strict=True)]
        known = [a == b for (a, b), one in zip(pairs, chosen, strict=True) if one and b is not None]
        if not known:
            return Metric(np.nan, np.nan, np.nan)
        found = binomtest(sum(known), len(known)).proportion_ci(CONFIDENCE, method="wilson")
        return Metric(sum(known) / len(known), float(found.low), float(found.high))

    def rows(self) -> list[dict[str, Any]]:
        """Return one dict of `COLUMNS` for each image; None for what is not known."""
        return [dict(zip(COLUMNS, row, strict=True)) for row in self._values()]

    def _values(self) -> Iterator[tuple[Any, ...]]:
        for name, part, truth, best, probability, unlike in zip(
            self.names, self.parts, self.truth, self.best, self.probability, self.unlike, strict=True
        ):
            (answer, p), (second, q) = (
                (None, None) if code < 0 else (self.classes[code], float(value))
                for code, value in zip(best, probability, strict=True)
            )
            far = None if np.isnan(unlike) else round(float(unlike), 2)
            yield name, str(part), truth, answer, p, second, q, far
