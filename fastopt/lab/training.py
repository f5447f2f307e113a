"""How the lab's networks are trained: an optimizer of fastopt's over batches, and schedules by name to compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..optimizers import Optimizer
from ..schedules import Constant, Cosine, Exponential, Linear, OneCycle, Plateau, Schedule, StepDecay
from . import network
from .network import RELU, Activation, Array, Objective, Params, cross_entropy

Scheduled = Schedule | Plateau

# name -> schedule from lr, for a run of so many epochs of so many batches; a Plateau is told a loss after each epoch
SCHEDULES: dict[str, Callable[[float, int, int], Scheduled]] = {
    "constant": lambda lr, epochs, batches: Constant(lr),
    "exponential": lambda lr, epochs, batches: Exponential.between(lr, lr / 100, epochs * batches),
    "step": lambda lr, epochs, batches: StepDecay(lr, every=-(-epochs // 3) * batches, gamma=0.1),
    "cosine": lambda lr, epochs, batches: Cosine(lr, epochs * batches),
    "plateau": lambda lr, epochs, batches: Plateau(lr, factor=0.3, patience=2, threshold=0.01),
    "linear": lambda lr, epochs, batches: Linear(lr, 0.0, epochs * batches),
    "one-cycle": lambda lr, epochs, batches: OneCycle(lr, epochs * batches),
}


def train(
    params: Params,
    optimizer: Optimizer,
    x: Array,
    y: Array,
    *,
    epochs: int,
    batch: int,
    rng: np.random.Generator,
    objective: Objective = cross_entropy,
    activation: Activation = RELU,
) -> Iterator[int]:
    """Train a network in place, and yield the number of each epoch after it, from 1.

    Parameters
    ----------
    params : dict of ndarray
        Of `network.new_parameters`.
    optimizer : Optimizer
        Over these parameters.
    x, y : ndarray
        Inputs, shape (n, sizes[0]), and what the objective takes, shape (n,).
    epochs, batch : int
        Passes over the data, and how many inputs a step takes at once; the last batch may be smaller.
    rng : numpy.random.Generator
        Of the order, which is a new one in every epoch.
    """
    grads = {name: np.zeros_like(array) for name, array in params.items()}
    optimizer.bind(grads)  # they stay where they are
    for epoch in range(1, epochs + 1):
        order = rng.permutation(len(y))
        for begin in range(0, len(y), batch):
            chosen = order[begin : begin + batch]
            network.loss_and_gradients(params, x[chosen], y[chosen], grads, objective, activation)
            optimizer.step()
        yield epoch
