"""L-BFGS on many problems in step: the last axis of every array counts the problems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from featx.solvers.folds import Floats, Indices

HISTORY = 8
"""Pairs that L-BFGS remembers."""

TOLERANCE = 3e-4
"""A linear model is done when its gradient is as much shorter than it was at zero (scikit-learn's default is
1e-4 of a gradient that starts near 0.5). Held-out answers stop changing at about three times as much."""

MAX_ITERATIONS = 150

PRECISE: dict[str, Any] = {"tolerance": 1e-5, "max_iterations": 1000}
"""Scores of separable classes go on growing long after the answers have settled."""


class History:
    """Steps and how the gradient turned along them, each of shape (d, k, b).

    Parameters
    ----------
    inverse : callable, optional
        A guess at the inverse Hessian: ``inverse(q)`` of q (d, k, b), a new array. The identity by default.
    dots : callable
        ``dots(a, b)`` gives the inner product of each problem's two vectors, shape (b,).
    """

    def __init__(
        self,
        inverse: Callable[[Floats], Floats] | None = None,
        dots: Callable[[Floats, Floats], Floats] | None = None,
    ) -> None:
        self.inverse, self.dots = inverse, dots or inner_products
        self.steps: list[Floats] = []
        self.turns: list[Floats] = []
        self.curvatures: list[Floats] = []

    def direction(self, gradient: Floats) -> tuple[Floats, Floats]:
        """Where to go from here, shape (d, k, b), and the slope of the objective there, (b,)."""
        dots, direction = self.dots, self._direction(gradient)
        descent = dots(gradient, direction)
        if (upward := descent >= 0).any():
            direction[..., upward] = -gradient[..., upward]
            descent = dots(gradient, direction)
        return direction, descent

    def _direction(self, gradient: Floats) -> Floats:
        """L-BFGS's two loops, for each problem its own (Nocedal and Wright, algorithm 7.4)."""
        dots, q = self.dots, gradient.copy()
        tiny = np.finfo(q.dtype).tiny
        if not self.steps:
            if self.inverse is not None:
                return np.negative(self.inverse(q))
            q *= -1 / np.sqrt(np.maximum(dots(q, q), tiny))
            return q
        weights = []
        for step, turn, curvature in zip(
            reversed(self.steps), reversed(self.turns), reversed(self.curvatures), strict=True
        ):
            weights.append(curvature * dots(step, q))
            q -= weights[-1] * turn
        last = self.turns[-1]
        if self.inverse is None:
            q *= np.maximum(dots(self.steps[-1], last), tiny) / np.maximum(dots(last, last), tiny)
        else:
            along, guessed = dots(self.steps[-1], last), dots(self.inverse(last), last)
            moved = (along > tiny) & (guessed > tiny)
            q = self.inverse(q) * np.where(moved, along / np.where(moved, guessed, 1), 1)
        for step, turn, curvature, weight in zip(
            self.steps, self.turns, self.curvatures, reversed(weights), strict=True
        ):
            q += (weight - curvature * dots(turn, q)) * step
        return np.negative(q, out=q)

    def remember(self, step: Floats, turn: Floats) -> None:
        """Add a pair; it says nothing of problems that did not move, or where the objective is flat."""
        product = self.dots(step, turn)
        curved = product > np.finfo(step.dtype).eps * self.dots(turn, turn) * 1e-6
        self.steps.append(step)
        self.turns.append(turn)
        self.curvatures.append(np.where(curved, 1 / np.where(curved, product, 1), 0).astype(step.dtype))
        if len(self.steps) > HISTORY:
            del self.steps[0], self.turns[0], self.curvatures[0]

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Go on with some problems alone."""
        self.steps, self.turns, self.curvatures = (
            [own[..., kept] for own in pairs] for pairs in (self.steps, self.turns, self.curvatures)
        )


def inner_products(a: Floats, b: Floats) -> Floats:
    """Inner product of each problem, shape (b,)."""
    return np.asarray(np.einsum("dkb,dkb->b", a, b))


def backtrack(length: Floats, descent: Floats, excess: Floats) -> Floats:
    """Shorten steps that did not lower the objective enough.

    Parameters
    ----------
    length : array of shape (b,)
        Lengths that were tried.
    descent : array of shape (b,)
        Slope of the objective along the direction, negative.
    excess : array of shape (b,)
        Value at the tried length minus the linear prediction.

    Returns
    -------
    array of shape (b,)
        The minimum of the parabola through value, slope and tried value, within a tenth and half of `length`.
    """
    excess = np.maximum(2 * excess, np.finfo(excess.dtype).tiny)
    return np.asarray(np.clip(-descent * length**2 / excess, 0.1 * length, 0.5 * length))


class BatchedLBFGS:
    """L-BFGS that runs many problems in step, so that they share their matrix products.

    A subclass sets the arrays of `STATE` and `history`, and evaluates objectives in `step`. Problems that
    have converged are removed from the state, so that the rest run on alone.
    """

    STATE: ClassVar[tuple[str, ...]] = (
        "id", "fold", "penalty", "weights", "value", "gradient", "start", "stalls",
    )  # fmt: skip
    RETIRE_SHARE: ClassVar[float] = 0.0
    """Problems are removed once this share of them has converged: each removal copies the state."""

    id: Indices
    history: History
    stalls: Indices

    def step(self, tolerance: float) -> NDArray[np.bool_] | None:
        """Move all problems; return which objectives no longer move, or None if the run was stopped."""
        raise NotImplementedError

    def converged(self, tolerance: float) -> NDArray[np.bool_]:
        """Whether each problem's gradient is short enough."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Prepare the next step, while all problems are still there."""

    def retire(self, done: NDArray[np.bool_], iteration: int) -> None:
        """Keep the solutions of problems that are done, and remove them from the state."""
        for name in self.STATE:
            setattr(self, name, getattr(self, name)[..., ~done])
        self.history.keep(~done)

    def run(self, tolerance: float, max_iterations: int) -> int | None:
        """Run until all problems are done; return the iterations, or None if the run was stopped.

        A problem is done if it has converged, or if its objective has not moved in three steps.
        """
        iteration = 0
        for iteration in range(1, max_iterations + 1):
            stalled = self.step(tolerance)
            if stalled is None:
                return None
            self.stalls = np.where(stalled, self.stalls + 1, 0)
            done = self.converged(tolerance) | (self.stalls >= 3)
            if iteration == max_iterations:
                done[:] = True
            self.prepare()
            if done.any() and done.mean() >= self.RETIRE_SHARE:
                self.retire(done, iteration)
            if not len(self.id):
                break
        return iteration
