"""When the rules arrive if their rates are chosen in the same way, and from which starts w arrives before b."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ..optimizers import Adagrad
from .descent import Gradient, descend
from .network import Array
from .neuron import PAIRS, Neuron, arrived, bottom, reached, target_loss
from .training import EPS, OPTIMIZERS, best

RATES = tuple(digit * 10.0**power for power in range(-3, 1) for digit in (1, 2, 5))  # the candidates for every rule
LECTURERS = (0.019, 84.45)  # squares of the first gradients of w and of b, in the lecture
ALIKE = 2.0  # the factor by which other squares may differ from these
CANDIDATES = np.linspace(-4.0, 4.0, 33)  # the grid of starts, along w and along b

Arrival = dict[str, Any]  # "reached": a step or None, and "w" and "b" likewise


def arrival(neuron: Neuron, path: Array, least: Array) -> Arrival:
    """Return the steps at which a path's loss, w and b arrive."""
    return {"reached": reached(neuron.loss(path), target_loss(neuron, path[0], least)), **arrived(path, least)}


def tuned(neuron: Neuron, start: Array, steps: int) -> dict[str, Arrival]:
    """Run each rule at the one of `RATES` at which its loss arrives first; lr is None if it arrives at none."""
    least = bottom(neuron)
    found = {}
    for rule, make_optimizer in OPTIMIZERS.items():
        arrivals = {
            lr: arrival(neuron, descend(partial(make_optimizer, lr=lr), neuron.gradient, start, steps), least)
            for lr in RATES
        }
        lr = best(RATES, lambda lr, arrivals=arrivals: steps_to(arrivals[lr]))  # type: ignore[misc]
        there = arrivals[lr]["reached"] is not None
        found[rule] = {"lr": lr if there else None, **arrivals[lr]}
    return found


def steps_to(each: Arrival) -> float:
    """Return the number of steps until the loss arrives, infinity if it never does."""
    return np.inf if each["reached"] is None else each["reached"]


def at_one_rate(neuron: Neuron, start: Array, lr: float, steps: int) -> dict[str, dict[str, Arrival]]:
    """Run all rules at one rate: with the gradient of the summed loss, and with that of its mean over the pairs."""
    least = bottom(neuron)
    gradients: dict[str, Gradient] = {
        "sum": neuron.gradient,
        "mean": lambda points: neuron.gradient(points) / PAIRS,
    }
    return {
        kind: {
            rule: arrival(neuron, descend(partial(make_optimizer, lr=lr), gradient, start, steps), least)
            for rule, make_optimizer in OPTIMIZERS.items()
        }
        for kind, gradient in gradients.items()
    }


def starts_like_the_lecturers(neuron: Neuron, lr: float, steps: int) -> dict[str, int]:
    """Count the starts whose first gradients are like the lecturer's, and those from which AdaGrad's w arrives first.

    Returns
    -------
    dict
        ``{"tried": number of starts on the grid, "alike": number of those whose squared first gradients differ from the
        lecturer's by a factor of 2 at most, "w_first": number of these from which w arrives, and b later or never}``.
    """
    starts = np.stack(np.meshgrid(CANDIDATES, CANDIDATES), axis=-1).reshape(-1, 2)
    factors = neuron.gradient(starts) ** 2 / LECTURERS
    alike = starts[((factors >= 1 / ALIKE) & (factors <= ALIKE)).all(axis=-1)]
    paths = descend(partial(Adagrad, lr=lr, eps=EPS), neuron.gradient, alike, steps)
    least = bottom(neuron)
    arrivals = [arrived(paths[:, i], least) for i in range(len(alike))]
    first = [w is not None and (b is None or w < b) for w, b in (each.values() for each in arrivals)]
    return {"tried": len(starts), "alike": len(alike), "w_first": sum(first)}
