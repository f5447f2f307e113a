"""When rules arrive in the neuron at rates that are chosen alike, and from which starts w arrives before b."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ..optimizers import Adagrad
from .descent import Gradient, descend
from .network import Array
from .neuron import PAIRS, Neuron, arrived, bottom, reached, target_loss
from .training import EPS, OPTIMIZERS, best

RATES = tuple(
    digit * 10.0**power for power in range(-3, 1) for digit in (1, 2, 5)
)  # every rule's search is among these
LECTURERS = (0.019, 84.45)  # squares of the first gradients of w and of b, in the lecture
ALIKE = 2.0  # the factor by which other squares may differ from these
CANDIDATES = np.linspace(-4.0, 4.0, 33)  # of w and of b, where a path may start

Arrival = dict[str, Any]  # "reached": a step or None, and "w" and "b" likewise


def arrival(neuron: Neuron, path: Array, least: Array) -> Arrival:
    """Say at which step a path's loss is there, and w and b are."""
    return {"reached": reached(neuron.loss(path), target_loss(neuron, path[0], least)), **arrived(path, least)}


def tuned(neuron: Neuron, start: Array, steps: int) -> dict[str, Arrival]:
    """Run each rule at that of `RATES` with which its loss is there first; its lr is None where it never is."""
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
    """Return the steps until the loss is there, infinitely many if it never is."""
    return np.inf if each["reached"] is None else each["reached"]


def at_one_rate(neuron: Neuron, start: Array, lr: float, steps: int) -> dict[str, dict[str, Arrival]]:
    """Run all rules at one rate: by the gradient of the summed loss, and by that of its mean over the pairs."""
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
    """Count the starts whose first gradients are about the lecturer's, and those from which AdaGrad's w arrives first.

    Returns
    -------
    dict
        ``{"tried": all starts on the grid, "alike": those with squares that differ from the lecturer's by a factor of
        2 at most, "w_first": those of them from which w arrives, and b later or not}``.
    """
    starts = np.stack(np.meshgrid(CANDIDATES, CANDIDATES), axis=-1).reshape(-1, 2)
    factors = neuron.gradient(starts) ** 2 / LECTURERS
    alike = starts[((factors >= 1 / ALIKE) & (factors <= ALIKE)).all(axis=-1)]
    paths = descend(partial(Adagrad, lr=lr, eps=EPS), neuron.gradient, alike, steps)
    least = bottom(neuron)
    arrivals = [arrived(paths[:, i], least) for i in range(len(alike))]
    first = [w is not None and (b is None or w < b) for w, b in (each.values() for each in arrivals)]
    return {"tried": len(starts), "alike": len(alike), "w_first": sum(first)}
