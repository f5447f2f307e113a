"""Points that descend in a landscape; an array holds many points, since rules update each element independently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..base import Optimizer
from ..checks import Number, Several
from .network import Array

Gradient = Callable[[Array], Array]  # points, shape (..., 2) -> their gradients, in the same shape


def descend(make_optimizer: Callable[[Array], Optimizer], gradient: Gradient, start: Array, steps: int) -> Array:
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
    points = np.array(start, np.float64)
    path = np.empty((steps + 1, *points.shape))
    path[0] = points
    optimizer = make_optimizer(points)
    for step in range(steps):
        optimizer.step(gradient(points))
        path[step + 1] = points
    return path


def check_start(start: Any, names: str, largest: float) -> tuple[float, ...]:
    """Return the two coordinates of a start, or raise an error that names it."""
    numbers: tuple[float, ...] = Several(Number("start", -largest, largest)).check("start", start)
    if len(numbers) != 2:
        raise ValueError(f"start must be two numbers, {names}, not {len(numbers)}")
    return numbers
