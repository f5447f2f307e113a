"""Training for the lab: the rules and schedules to compare, by name, and a loop over batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np

from ..base import Optimizer
from ..optimizers import SGD, Adagrad, Adam, Lion, NAdam, RMSprop
from ..schedules import Constant, Cosine, Exponential, Linear, OneCycle, Plateau, Schedule, StepDecay
from . import network
from .network import RELU, Activation, Array, Objective, Params, cross_entropy

Scheduled = Schedule | Plateau
Value = TypeVar("Value")

MOMENTUM = 0.9
EPS = 1e-10  # AdaGrad's default
ALPHA = 0.99  # RMSProp's
BETAS = (0.9, 0.999)  # Adam's and NAdam's

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": SGD,
    "momentum": partial(SGD, momentum=MOMENTUM),
    "nesterov": partial(SGD, momentum=MOMENTUM, nesterov=True),
    "adagrad": partial(Adagrad, eps=EPS),
    "rmsprop": partial(RMSprop, alpha=ALPHA),
    "adam": partial(Adam, betas=BETAS),
    "nadam": partial(NAdam, betas=BETAS),
    "lion": Lion,
}

# name -> function of lr, epochs and batches that makes a schedule; a Plateau is updated with a loss after each epoch
SCHEDULES: dict[str, Callable[[float, int, int], Scheduled]] = {
    "constant": lambda lr, epochs, batches: Constant(lr),
    "exponential": lambda lr, epochs, batches: Exponential.between(lr, lr / 100, epochs * batches),
    "step": lambda lr, epochs, batches: StepDecay(lr, every=-(-epochs // 3) * batches, gamma=0.1),
    "cosine": lambda lr, epochs, batches: Cosine(lr, epochs * batches),
    "plateau": lambda lr, epochs, batches: Plateau(lr, factor=0.3, patience=2, threshold=0.01),
    "linear": lambda lr, epochs, batches: Linear(lr, 0.0, epochs * batches),
    "one-cycle": lambda lr, epochs, batches: OneCycle(lr, epochs * batches),
}


class Steps(Protocol):
    """What training needs of an optimizer."""

    def bind(self, grads: Any) -> None:
        """Take the gradients from these arrays at each step."""

    def step(self) -> Any:
        """Take a step."""


def train(
    params: Params,
    optimizer: Steps,
    x: Array,
    y: Array,
    *,
    epochs: int,
    batch: int,
    rng: np.random.Generator,
    objective: Objective = cross_entropy,
    activation: Activation = RELU,
) -> Iterator[int]:
    """Train a network in place, and yield after each epoch its number, from 1.

    Parameters
    ----------
    params : dict of ndarray
        From `network.new_parameters`.
    optimizer : Steps
        An optimizer of these parameters.
    x, y : ndarray
        Inputs, shape (n, sizes[0]), and targets, shape (n,).
    epochs, batch : int
        Passes over the data, and inputs per step; the last batch may be smaller.
    rng : numpy.random.Generator
        Shuffles the data before every epoch.
    objective : callable
        ``(outputs, y) -> (loss, d loss / d outputs)``.
    activation : Activation
        The function between the layers.

    Yields
    ------
    int
        The number of the epoch that has ended, from 1.
    """
    grads = {name: np.zeros_like(array) for name, array in params.items()}
    optimizer.bind(grads)  # the same arrays at each step
    for epoch in range(1, epochs + 1):
        order = rng.permutation(len(y))
        for begin in range(0, len(y), batch):
            chosen = order[begin : begin + batch]
            network.loss_and_gradients(params, x[chosen], y[chosen], grads, objective, activation)
            optimizer.step()
        yield epoch


def effective_rate(history: Array, lr: float) -> Array:
    """Return AdaGrad's ``lr / (sqrt(history) + eps)``, where history is a sum of squared gradients."""
    rate: Array = lr / (np.sqrt(history) + EPS)
    return rate


def best(choices: Iterable[Value], loss: Callable[[Value], float]) -> Value:
    """Return the choice with the lowest loss; a loss that is not finite counts as infinite."""

    def finite(choice: Value) -> float:
        value = loss(choice)
        return value if math.isfinite(value) else math.inf

    return min(choices, key=finite)


def first_epoch(values: Sequence[float] | Array, reached: Callable[[float], bool]) -> int | None:
    """Return the first epoch, from 1, whose value fulfils a condition; None if none does."""
    return next((epoch for epoch, value in enumerate(values, start=1) if reached(value)), None)
