"""One sigmoid neuron, whose weight few pairs affect and whose bias all affect; and when paths arrive."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..optimizers import SGD
from .descent import descend
from .network import SIGMOID, Array
from .training import EPS

PAIRS = 500
ZEROS = 400  # pairs whose x is 0
TRUTH = (2.0, 0.0)  # w and b of the neuron that made y
NOISE = 0.3  # the standard deviation of the noise in that neuron's sigmoid's input
REACHED = 1e-3  # a path arrives when this share of the excess loss is left
DONE = 0.9  # w or b arrives after this share of its way
STAYS = 10  # steps for which it must have stayed there: a rule that swings may pass as the run ends
PARAMETERS = {"w": "-", "b": "--"}  # name -> line style


class Neuron:
    """One sigmoid neuron and its pairs: the loss of (w, b) is ``sum_i (sigmoid(w * x_i + b) - y_i)**2 / 2``.

    Parameters
    ----------
    seed : int
        The seed of the pairs.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.x = rng.uniform(-0.5, 0.5, PAIRS)
        self.x[rng.permutation(PAIRS)[:ZEROS]] = 0.0
        self.y = SIGMOID.value(TRUTH[0] * self.x + TRUTH[1] + NOISE * rng.standard_normal(PAIRS))

    def output(self, points: Array) -> Array:
        """Return the neuron's outputs for all pairs, shape (..., PAIRS), with parameters of shape (..., 2)."""
        w, b = points[..., :1], points[..., 1:]
        return SIGMOID.value(w * self.x + b)

    def loss(self, points: Array) -> Array:
        """Return the loss, summed over the pairs."""
        loss: Array = ((self.output(points) - self.y) ** 2).sum(axis=-1) / 2
        return loss

    def gradient(self, points: Array) -> Array:
        """Return the gradient, summed over the pairs; those whose x is 0 contribute nothing to w's."""
        output = self.output(points)
        delta = (output - self.y) * SIGMOID.slope(output)
        return np.stack([(delta * self.x).sum(axis=-1), delta.sum(axis=-1)], axis=-1)

    def without_root(self, start: Array, lr: float, steps: int) -> Array:
        """Return the path of AdaGrad without the root, which divides by the history itself, shape (steps + 1, 2)."""
        points, history = start, np.zeros(2)
        path = [points]
        for _ in range(steps):
            gradient = self.gradient(points)
            history = history + gradient**2
            points = points - lr * gradient / (history + EPS)
            path.append(points)
        return np.array(path)


def bottom(neuron: Neuron) -> Array:
    """Return the parameters with the least loss, found by many Nesterov steps from those that made the pairs."""
    nesterov = partial(SGD, lr=0.01, momentum=0.9, nesterov=True)
    last: Array = descend(nesterov, neuron.gradient, np.array(TRUTH), 2000)[-1]
    return last


def target_loss(neuron: Neuron, start: Array, best: Array) -> float:
    """Return the loss at which a path arrives: a thousandth of the excess over the least loss is left."""
    least, first = float(neuron.loss(best)), float(neuron.loss(start))
    return least + REACHED * (first - least)


def reached(losses: Array, target: float) -> int | None:
    """Return the step from which on the loss stays at most the target; None if it stays there for less than `STAYS`."""
    above = np.flatnonzero(~(losses <= target))
    step = int(above[-1]) + 1 if len(above) else 0
    return step if step + STAYS < len(losses) else None


def arrived(path: Array, best: Array) -> dict[str, int | None]:
    """Return the step from which on each parameter has gone `DONE` of its way for good; None if it has not."""
    left = np.abs(path - best)
    return {name: reached(left[:, i], (1 - DONE) * left[0, i]) for i, name in enumerate(PARAMETERS)}


def turn(path: Array, best: Array) -> float | None:
    """Return the share of w's way that a path has gone when it has first gone `DONE` of b's way."""
    done = (path - path[0]) / (best - path[0])
    return next((float(w) for w, b in done if b >= DONE), None)
