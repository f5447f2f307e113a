"""The loss of each landscape and its gradient, as functions that Numba compiles: ``(x, y) -> (f, f_x, f_y)``.

Whoever needs constants that are computed first (`neuron`, `plane`) is a function that returns such a function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from ..gradients import FIRST, TARGET, UNROLLED
from ..landscape import SLOPE, WELLS
from ..network import Array
from ..neuron import Neuron

Slope: TypeAlias = Callable[[float, float], tuple[float, float, float]]

FLOOR = 1e-9  # the slope of the flat valley's floor
PIT = (2.9, 1.5, 0.35)  # of the flat valley, at its end: x, depth and width
CURVATURES = (0.1, 10.0)  # of the ravine
HEIGHT, SPACING = 0.25, 1.25  # of the ridges between minima in a row, and from one to the next


def potholes(x: float, y: float) -> tuple[float, float, float]:
    """``SLOPE * sqrt(1 + |p|**2) - sum_i depth_i * exp(-|p - c_i|**2 / (2 * width_i**2))``, as in `landscape`."""
    root = math.sqrt(1 + x * x + y * y)
    loss, slope_x, slope_y = SLOPE * root, SLOPE * x / root, SLOPE * y / root
    for i in range(len(WELLS)):
        dx, dy, square = x - WELLS[i, 0], y - WELLS[i, 1], WELLS[i, 3] ** 2
        lowered = WELLS[i, 2] * math.exp(-(dx * dx + dy * dy) / (2 * square))
        loss -= lowered
        slope_x += lowered * dx / square
        slope_y += lowered * dy / square
    return loss, slope_x, slope_y


def bowl(x: float, y: float) -> tuple[float, float, float]:
    """``(x**2 + 3 * y**2) / 2``, as in `bounce`."""
    return (x * x + 3 * y * y) / 2, x, 3 * y


def flat(x: float, y: float) -> tuple[float, float, float]:
    """``FLOOR * (3 - x) + (y / 2)**8``, less a pit at the end; the floor's slope counts for nothing."""
    at, depth, width = PIT
    dx, v = x - at, y / 2
    lowered = depth * math.exp(-(dx * dx + y * y) / (2 * width * width))
    loss = FLOOR * (3 - x) + v**8 - lowered
    return loss, -FLOOR + lowered * dx / (width * width), 4 * v**7 + lowered * y / (width * width)


def ravine(x: float, y: float) -> tuple[float, float, float]:
    """``(0.1 * x**2 + 10 * y**2) / 2``: a hundred times as steep across as along."""
    a, b = CURVATURES
    return (a * x * x + b * y * y) / 2, a * x, b * y


def rosenbrock(x: float, y: float) -> tuple[float, float, float]:
    """``(1 - x)**2 + 100 * (y - x**2)**2``."""
    off = y - x * x
    return (1 - x) ** 2 + 100 * off * off, 2 * (x - 1) - 400 * x * off, 200 * off


def saddle(x: float, y: float) -> tuple[float, float, float]:
    """``(x**2 - y**2) / 2 + y**4 / 8``: down along y from (0, 0), to a minimum on either side."""
    return (x * x - y * y) / 2 + y**4 / 8, x, y**3 / 2 - y


def row(x: float, y: float) -> tuple[float, float, float]:
    """``0.06 * (x - 2.5)**2 + HEIGHT * (1 - cos(2 * pi * (x - 2.5) / SPACING)) / 2 + y**2 / 2``."""
    off, turn = x - 2.5, 2 * math.pi / SPACING
    loss = 0.06 * off * off + HEIGHT * (1 - math.cos(turn * off)) / 2 + y * y / 2
    return loss, 0.12 * off + HEIGHT * turn * math.sin(turn * off) / 2, y


def cliff(w: float, b: float) -> tuple[float, float, float]:
    """``(x_50 - 0.7)**2``, where ``x_t = sigmoid(w * x_{t-1} + b)``: the recurrent unit of `gradients`."""
    output = 0.5 + 0.5 * math.tanh(0.5 * FIRST)
    by_w, by_b = 0.0, 0.0  # the output's derivatives
    for _ in range(UNROLLED):
        after = 0.5 + 0.5 * math.tanh(0.5 * (w * output + b))
        rise = after * (1 - after)
        by_w, by_b, output = rise * (output + w * by_w), rise * (1 + w * by_b), after
    error = output - TARGET
    return error * error, 2 * error * by_w, 2 * error * by_b


def neuron() -> Slope:
    """Return the loss of the sigmoid neuron of `sparse`; pairs whose x is 0 have one output, so sums of y suffice."""
    pairs = Neuron(seed=0)
    x, y, rest = pairs.x[pairs.x != 0], pairs.y[pairs.x != 0], pairs.y[pairs.x == 0]
    count, total, squares = len(rest), float(rest.sum()), float((rest**2).sum())

    def slope(w: float, b: float) -> tuple[float, float, float]:
        output = 0.5 + 0.5 * math.tanh(0.5 * b)
        loss = (count * output * output - 2 * output * total + squares) / 2
        by_w, by_b = 0.0, (count * output - total) * output * (1 - output)
        for i in range(len(x)):
            output = 0.5 + 0.5 * math.tanh(0.5 * (w * x[i] + b))
            error = output - y[i]
            delta = error * output * (1 - output)
            loss += error * error / 2
            by_w += delta * x[i]
            by_b += delta
        return loss, by_w, by_b

    return slope


def between(grid: Array, reach: float) -> Slope:
    """Return the smooth function through a grid of losses, over ``-reach`` to ``reach`` along both axes.

    In each cell it is a product of two cubics, as Catmull and Rom join them: its derivatives are continuous.

    Parameters
    ----------
    grid : ndarray of float64, shape (n, n)
        The losses, y along the first axis.
    reach : float
    """
    cells = len(grid) - 1
    grid = np.pad(grid, 1, mode="reflect", reflect_type="odd")  # goes on in a straight line
    scale = cells / (2 * reach)  # cells in a unit of x

    def slope(x: float, y: float) -> tuple[float, float, float]:
        along_x, along_y = (x + reach) * scale, (y + reach) * scale
        i, j = min(max(math.floor(along_x), 0), cells - 1), min(max(math.floor(along_y), 0), cells - 1)
        u, v = along_x - i, along_y - j
        of_x = (
            ((-u + 2) * u - 1) * u / 2, ((3 * u - 5) * u * u + 2) / 2,
            ((-3 * u + 4) * u + 1) * u / 2, (u - 1) * u * u / 2,
        )  # fmt: skip
        of_y = (
            ((-v + 2) * v - 1) * v / 2, ((3 * v - 5) * v * v + 2) / 2,
            ((-3 * v + 4) * v + 1) * v / 2, (v - 1) * v * v / 2,
        )  # fmt: skip
        by_x = ((-3 * u + 4) * u - 1) / 2, (9 * u - 10) * u / 2, ((-9 * u + 8) * u + 1) / 2, (3 * u - 2) * u / 2
        by_y = ((-3 * v + 4) * v - 1) / 2, (9 * v - 10) * v / 2, ((-9 * v + 8) * v + 1) / 2, (3 * v - 2) * v / 2
        loss = slope_x = slope_y = 0.0
        for k in range(4):
            for n in range(4):
                value = grid[j + k, i + n]
                loss += of_y[k] * of_x[n] * value
                slope_x += of_y[k] * by_x[n] * value * scale
                slope_y += by_y[k] * of_x[n] * value * scale
        return loss, slope_x, slope_y

    return slope
