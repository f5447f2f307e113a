"""A small network in plain NumPy: fully connected layers, with a loss on top and its gradients.

Parameters and gradients are dicts of arrays: ``w1``, ``b1`` of the first layer, ``w2``, ``b2`` of the next, ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Params: TypeAlias = Mapping[str, Array]
Objective: TypeAlias = Callable[[Array, Array], tuple[float, Array]]  # (outputs, y) -> (loss, its derivative by them)


@dataclass(frozen=True)
class Activation:
    """What stands between two layers: a function, and its slope where the function has a given value."""

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]


RELU = Activation(lambda z: np.maximum(z, 0), lambda value: value > 0)
SIGMOID = Activation(lambda z: 0.5 + 0.5 * np.tanh(0.5 * z), lambda value: value * (1 - value))  # tanh cannot overflow


def new_parameters(
    rng: np.random.Generator, sizes: Sequence[int] = (64, 32, 10), dtype: npt.DTypeLike = np.float32, gain: float = 2.0
) -> dict[str, Array]:
    """Return parameters of a network with layers of these sizes, inputs first.

    Weights are drawn with variance gain / inputs; a gain of 2 keeps the scale of what ReLUs let through (He
    initialisation). Biases are zero.

    Returns
    -------
    dict of ndarray
        ``w1``, shape (sizes[0], sizes[1]); ``b1``, shape (sizes[1],); ...
    """
    params = {}
    for k, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        params[f"w{k}"] = (rng.standard_normal((inputs, outputs)) * np.sqrt(gain / inputs)).astype(dtype)
        params[f"b{k}"] = np.zeros(outputs, dtype)
    return params


def forward(params: Params, x: Array, activation: Activation = RELU) -> list[Array]:
    """Return what goes into each layer, and at last the outputs, shape (n, sizes[-1])."""
    layers = len(params) // 2
    values = [x]
    for k in range(1, layers + 1):
        z = values[-1] @ params[f"w{k}"] + params[f"b{k}"]
        values.append(activation.value(z) if k < layers else z)
    return values


def cross_entropy(scores: Array, y: Array) -> tuple[float, Array]:
    """Return the cross-entropy of the softmax of scores, mean over the batch, and its derivative by the scores.

    Parameters
    ----------
    scores : ndarray, shape (n, classes)
    y : ndarray of int, shape (n,)
        The right classes.
    """
    shifted = scores - scores.max(axis=1, keepdims=True)  # so that exp() cannot overflow
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    right = np.arange(len(y)), y
    derivative = np.exp(log_p)  # probabilities, less 1 for the right class
    derivative[right] -= 1
    derivative /= len(y)
    return float(-log_p[right].mean()), derivative


def squared_error(predictions: Array, y: Array) -> tuple[float, Array]:
    """Return the squared error, mean over the batch, and its derivative by the predictions.

    Parameters
    ----------
    predictions : ndarray, shape (n, 1)
    y : ndarray, shape (n,)
    """
    error = predictions - y[:, np.newaxis]
    return float(np.mean(error**2)), 2 / len(y) * error


def loss(
    params: Params, x: Array, y: Array, objective: Objective = cross_entropy, activation: Activation = RELU
) -> float:
    """Return the loss, as the mean over the batch."""
    return objective(forward(params, x, activation)[-1], y)[0]


def loss_and_gradients(
    params: Params,
    x: Array,
    y: Array,
    grads: Params,
    objective: Objective = cross_entropy,
    activation: Activation = RELU,
) -> float:
    """Return the loss of a batch, and write its gradients into ``grads``.

    The arrays in ``grads`` stay where they are, so that an optimizer can be bound to them once.

    Parameters
    ----------
    params : dict of ndarray
    x : ndarray, shape (n, sizes[0])
    y : ndarray, shape (n,)
        What the objective takes: the right classes, for `cross_entropy`.
    grads : dict of ndarray
        Like params; overwritten.
    objective : callable
        ``(outputs, y) -> (loss, its derivative by the outputs)``.
    activation : Activation
        Between the layers.

    Returns
    -------
    float
        The loss, mean over the batch.
    """
    *inputs, outputs = forward(params, x, activation)
    value, delta = objective(outputs, y)  # delta: the derivative of the loss by what a layer computes
    for k in range(len(inputs), 0, -1):
        np.matmul(inputs[k - 1].T, delta, out=grads[f"w{k}"])
        np.sum(delta, axis=0, out=grads[f"b{k}"])
        if k > 1:
            delta = (delta @ params[f"w{k}"].T) * activation.slope(inputs[k - 1])
    return value


def accuracy(params: Params, x: Array, y: Array) -> float:
    """Return the share of inputs whose highest score is that of the right class."""
    return float((forward(params, x)[-1].argmax(axis=1) == y).mean())
