"""Points that descend in a landscape: as many at once as an array holds, since a rule takes each number by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..base import Optimizer
from ..checks import Number, Several
from .network import Array

Gradient = Callable[[Array], Array]  # of points, shape (..., 2), in the same shape


def descend(make_optimizer: Callable[[Array], Optimizer], gradient: Gradient, start: Array, steps: int) -> Array:
    """Return the path of points that an optimizer moves.

    Parameters
    ----------
    make_optimizer : callable
        The optimizer of an array of parameters: ``partial(SGD, lr=0.1)``, for instance.
    gradient : callable
        Of points, in their shape.
    start : ndarray, shape (..., 2)
        Where they start; stays as it is.
    steps : int

    Returns
    -------
    ndarray, shape (steps + 1, ..., 2)
        Where they are before the first step, and after each.
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
    """Return the two numbers where a path starts, or raise an error that names the start."""
    numbers: tuple[float, ...] = Several(Number("start", -largest, largest)).check("start", start)
    if len(numbers) != 2:
        raise ValueError(f"start must be two numbers, {names}, not {len(numbers)}")
    return numbers
