"""`Head`: one classifier to try, with everything that the rest of featx needs to know about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featx.heads.formulas import Formula
from featx.heads.saved import SavedForm

Params = Mapping[str, Any]

Shape = tuple[int, int]
"""(rows, columns) of the scaled features that a classifier will be fitted on."""


@dataclass(frozen=True)
class Head:
    """A classifier to try.

    Parameters
    ----------
    name : str
        Its key in `HEADS`, and the prefix of its parameters in a study (``"rbf_svm__gamma"``).
    make : callable
        ``make(params, random_state, shape)`` builds the unfitted scikit-learn classifier for scaled features,
        where `shape` is (rows, columns) of what it will be fitted on. A class may have a single row.
    suggest : callable
        ``suggest(trial, prefix, n_rows)`` draws the parameters (without prefix) from an Optuna trial.
    grid : tuple of dict
        Coarse grid of parameters. The first is a known-good point, which is tried before anything else.
    solver : str
        The entry of ``featx.solvers.SOLVERS`` that fits many at once; ``"estimator"`` fits one by one.
    cost : int
        Rank of the cost of a prediction. Of heads with equal scores the one with the lowest cost is chosen.
    saved : SavedForm
        How the fitted classifier is saved and loaded.
    formula : Formula, optional
        How the scores follow from the saved arrays without scikit-learn. None if only scikit-learn computes
        them; such a head cannot be exported as a graph.
    write_streamed : callable, optional
        ``write_streamed(classifier, fitted, classes)`` sets the fitted attributes from a
        `featx.solvers.StreamedFit`. None if the head cannot be fitted from chunks of rows.
    takes_weights : bool
        Whether ``fit`` takes ``sample_weight``, so that rows (and so classes) can be weighted.
    scalings : tuple of str
        Scalings of the coarse grid; Optuna may draw any.
    min_classes : int
        3 if the head is the same as another one for two classes.
    quick : bool
        Whether it has a closed form, so that it can be tried on every representation first.
    votes : bool
        Whether it predicts class shares (neighbours, trees) instead of decision scores.
    draws_curve : bool
        Whether it is cheap enough for a learning curve of its own. The curve of ridge regression is used for
        the others.
    """

    name: str
    make: Callable[..., Any]
    suggest: Callable[..., dict[str, Any]]
    grid: tuple[dict[str, Any], ...]
    solver: str
    cost: int
    saved: SavedForm
    formula: Formula | None = None
    write_streamed: Callable[[Any, Any, Any], None] | None = None
    takes_weights: bool = True
    scalings: tuple[str, ...] = ("standard", "l2")
    min_classes: int = 2
    quick: bool = False
    votes: bool = False
    draws_curve: bool = False

    @property
    def streams(self) -> bool:
        """Whether it can be fitted from chunks of rows, for sets that do not fit in memory."""
        return self.write_streamed is not None


def product(**values: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    """Return all combinations of the values, in the order of nested loops."""
    points: list[dict[str, Any]] = [{}]
    for name, own in values.items():
        points = [{**point, name: value} for point in points for value in own]
    return tuple(points)
