"""The landscapes: where each begins and ends, and how it is drawn; `formulas` has what their losses are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...optimizers import SGD
from ..bounce import EXTENT as BOWL
from ..descent import descend
from ..gradients import EXTENT as CLIFF
from ..gradients import LOW
from ..gradients import START as AT_THE_CLIFF
from ..landscape import BASIN, SETTLED
from ..landscape import EXTENT as MAP
from ..landscape import TOP as TOP_OF_POTHOLES
from ..network import Array
from ..neuron import Neuron, bottom, target_loss
from . import formulas, plane
from .formulas import Slope
from .walk import compile_slope

PIT_AT = (formulas.PIT[0], 0.0)
WIDE = 2.0  # how far a point may leave the map, in widths of it, before it is lost


@dataclass(frozen=True)
class Landscape:
    """A loss of two parameters, and how it is drawn.

    Attributes
    ----------
    title, note : str
        Its name, and a sentence about it.
    make : callable
        Returns the function that Numba compiles: ``(x, y) -> (f, f_x, f_y)``.
    extent : pair of pairs
        The limits of the map, of x and of y.
    start : pair of float
        Where marbles start unless told otherwise.
    basin : callable
        Returns the loss at or below which a marble is in the basin.
    deepest : callable
        Returns the least loss.
    top : float
        The view in space is cut off at this loss; infinity: nowhere.
    logarithmic : bool
        Whether the view in space shows the logarithm of the loss.
    power : float
        Of the share of the height that a colour stands for: below 1, deep and flat parts get more of the colours.
    relief : bool
        Whether the map is lit from the side; that shows small, steep features.
    beyond : float
        How far a point may leave the map, in widths of it, before it is lost.
    view : float
        From where the view in space looks at first: the angle from the x axis, in degrees.
    axes : pair of str
        The names of the parameters.
    """

    title: str
    note: str
    make: Callable[[], Slope]
    extent: tuple[tuple[float, float], tuple[float, float]]
    start: tuple[float, float]
    basin: Callable[[], float]
    deepest: Callable[[], float] = lambda: 0.0
    top: float = np.inf
    logarithmic: bool = False
    power: float = 0.5
    relief: bool = False
    beyond: float = WIDE
    view: float = -108.0
    axes: tuple[str, str] = ("x", "y")

    @functools.cached_property
    def slope(self) -> Any:
        """The compiled function ``(x, y) -> (f, f_x, f_y)``, the loss and its gradient."""
        return compile_slope(self.make())

    @functools.cached_property
    def target(self) -> float:
        """The loss at or below which a marble is in the basin."""
        return self.basin()

    @functools.cached_property
    def least(self) -> float:
        """The least loss."""
        return self.deepest()

    def loss(self, point: Any) -> float:
        """Return the loss at a point (x, y)."""
        x, y = point
        return float(self.slope(float(x), float(y))[0])

    def gradient(self, point: Any) -> Array:
        """Return the gradient at a point (x, y), as an array of two numbers."""
        x, y = point
        return np.array(self.slope(float(x), float(y))[1:])

    def room(self) -> tuple[Array, Array]:
        """Return the corners of the region outside of which a point is lost."""
        low, high = np.array(self.extent, np.float64).T
        return low - self.beyond * (high - low), high + self.beyond * (high - low)

    def heights(self, points: int) -> tuple[Array, Array, Array]:
        """Return a grid of the map: the points along x, those along y, and the losses, shape (points, points)."""
        x, y = (np.linspace(*limits, points) for limits in self.extent)
        return x, y, np.array([[self.slope(each, other)[0] for each in x] for other in y])


def settled_in_potholes() -> float:
    """Return the loss at which a marble has settled in the basin."""
    return formulas.potholes(*BASIN[:2])[0] + SETTLED


def rolled_down(slope: Slope, start: tuple[float, float]) -> Callable[[], float]:
    """Return a function that returns the loss at the bottom of the hollow with this start."""

    def bottom_of_hollow() -> float:
        path = descend(partial(SGD, lr=0.05), lambda point: np.array(slope(*point)[1:]), np.array(start), 300)
        return slope(*path[-1].tolist())[0]

    return bottom_of_hollow


@functools.cache
def ends_of_neuron() -> tuple[float, float]:
    """Return the loss at which a path from the lecture's start has arrived, and the least loss."""
    neuron = Neuron(seed=0)
    best = bottom(neuron)
    return target_loss(neuron, np.array(LANDSCAPES["neuron"].start), best), float(neuron.loss(best))


def constant(value: float) -> Callable[[], float]:
    """Return a function that returns this value."""
    return lambda: value


def itself(slope: Slope) -> Callable[[], Slope]:
    """Return a function that returns this one."""
    return lambda: slope


LANDSCAPES = {
    "potholes": Landscape(
        "potholes and a basin",
        "One wide, deep basin in the middle, and sixteen narrow potholes around it.",
        itself(formulas.potholes), (MAP, MAP), (-2.5, 3.7), settled_in_potholes,
        rolled_down(formulas.potholes, (0.0, 0.0)), top=TOP_OF_POTHOLES, power=1.0, relief=True,
    ),
    "bowl": Landscape(
        "a bowl",
        "Curvature 1 along x and 3 along y: above a rate of 2 / 3, plain descent diverges.",
        itself(formulas.bowl), BOWL, (4.0, 3.0), constant(0.02),
    ),
    "flat": Landscape(
        "a flat-bottomed valley",
        "The floor falls by 1e-9 per unit: a rate of 0.1 goes 1e-10 a step, and the pit at the end is far away.",
        itself(formulas.flat), ((-3.8, 3.8), (-2.4, 2.4)), (-3.0, 1.0), constant(-1.4),
        rolled_down(formulas.flat, PIT_AT), top=3.0, power=0.6,
    ),
    "ravine": Landscape(
        "a ravine",
        "A hundred times as steep across as along: the rate that the walls allow, 0.2, is a slow one on the way out.",
        itself(formulas.ravine), ((-6.0, 6.0), (-1.5, 1.5)), (-5.0, 1.0), constant(0.01),
    ),
    "rosenbrock": Landscape(
        "Rosenbrock's valley",
        "A curved valley with steep walls and a floor that hardly falls; its end is at (1, 1).",
        itself(formulas.rosenbrock), ((-2.0, 2.0), (-1.0, 3.0)), (-1.5, 2.0), constant(0.01),
        logarithmic=True, power=1.0,
    ),
    "saddle": Landscape(
        "a saddle",
        "Down to the saddle along x, and away from it along y, where the slope is small at first.",
        itself(formulas.saddle), ((-2.5, 2.5), (-2.5, 2.5)), (-2.0, 0.001), constant(-0.45),
        constant(-0.5), power=0.8,
    ),
    "cliff": Landscape(
        "a cliff",
        "A recurrent unit over 50 time steps: one step at the cliff throws plain descent off the map.",
        itself(formulas.cliff), CLIFF, AT_THE_CLIFF, constant(LOW), axes=("w", "b"), power=0.6, view=70.0,
    ),
    "row": Landscape(
        "minima in a row",
        "Each minimum is a little deeper than the one before it; the deepest is at x = 2.5.",
        itself(formulas.row), ((-4.0, 4.0), (-2.5, 2.5)), (-3.4, 1.5), constant(0.05), power=0.8, relief=True,
    ),
    "neuron": Landscape(
        "a neuron with a sparse weight",
        "Few pairs affect w, all affect b: along b it is steep, along w gentle.",
        formulas.neuron, ((-1.5, 5.0), (-1.5, 3.5)), (-0.5, 3.0),
        lambda: ends_of_neuron()[0], lambda: ends_of_neuron()[1], axes=("w", "b"),
    ),
    "digits": Landscape(
        "a network that reads digits",
        "The plane through a trained network's 2,410 parameters, in two filter-normalised directions.",
        lambda: formulas.between(plane.grid(), plane.REACH),
        ((-plane.REACH, plane.REACH),) * 2, (-1.1, 1.2), constant(0.05),
        logarithmic=True, power=1.0, beyond=0.0, axes=("a", "b"),
    ),
}  # fmt: skip
