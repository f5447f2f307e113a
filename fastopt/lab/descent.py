"""Points that descend in a landscape; an array holds many points, since rules update each element independently."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np

from ..checks import Number, Several
from .network import Array

Gradient = Callable[[Array], Array]  # points, shape (..., 2) -> their gradients, in the same shape


class Steps(Protocol):
    """What moves points: an optimizer, or several."""

    def step(self, gradients: Any, /) -> Any:
        """Take a step."""


Moving = TypeVar("Moving", bound=Steps)


def follow(
    make_optimizer: Callable[[Array], Moving], gradient: Gradient, start: Array, steps: int
) -> Iterator[tuple[Array, Moving]]:
    """Yield points, which change in place, and the optimizer that moves them: before the first step and after each."""
    points = np.array(start, np.float64)
    optimizer = make_optimizer(points)
    yield points, optimizer
    for _ in range(steps):
        optimizer.step(gradient(points))
        yield points, optimizer


def descend(make_optimizer: Callable[[Array], Steps], gradient: Gradient, start: Array, steps: int) -> Array:
    """Return the path of points that an optimizer moves.

    Parameters
    ----------
    make_optimizer : callable
        Makes an optimizer for an array of parameters: ``partial(SGD, lr=0.1)``, for instance.
    gradient : callable
        Maps points to their gradients, in the same shape.
    start : ndarray, shape (..., 2)
        The starting points; not changed.
    steps : int

    Returns
    -------
    ndarray, shape (steps + 1, ..., 2)
        The points before the first step and after each step.
    """
    path = np.empty((steps + 1, *np.shape(start)))
    for step, (points, _) in enumerate(follow(make_optimizer, gradient, start, steps)):
        path[step] = points
    return path


def check_start(start: Any, names: str, largest: float) -> tuple[float, ...]:
    """Return the two coordinates of a start, or raise an error that names it."""
    numbers: tuple[float, ...] = Several(Number("start", -largest, largest)).check("start", start)
    if len(numbers) != 2:
        raise ValueError(f"start must be two numbers, {names}, not {len(numbers)}")
    return numbers
