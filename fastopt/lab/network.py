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
Objective: TypeAlias = Callable[[Array, Array], tuple[float, Array]]  # (outputs, y) -> (loss, d loss / d outputs)


@dataclass(frozen=True)
class Activation:
    """The function between two layers, and its slope, computed from the function's value."""

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]


RELU = Activation(lambda z: np.maximum(z, 0), lambda value: value > 0)
SIGMOID = Activation(lambda z: 0.5 + 0.5 * np.tanh(0.5 * z), lambda value: value * (1 - value))  # tanh cannot overflow


def new_parameters(
    rng: np.random.Generator, sizes: Sequence[int] = (64, 32, 10), dtype: npt.DTypeLike = np.float32, spread: float = 2
) -> dict[str, Array]:
    """Return parameters of a network with layers of these sizes, inputs first.

    Weights are drawn with variance spread / inputs; a spread of 2 keeps the scale of activations through ReLUs (He
    initialisation). Biases are zero.

    Returns
    -------
    dict of ndarray
        ``w1``, shape (sizes[0], sizes[1]); ``b1``, shape (sizes[1],); ...
    """
    params = {}
    for k, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        params[f"w{k}"] = (rng.standard_normal((inputs, outputs)) * np.sqrt(spread / inputs)).astype(dtype)
        params[f"b{k}"] = np.zeros(outputs, dtype)
    return params


def forward(params: Params, x: Array, activation: Activation = RELU) -> list[Array]:
    """Return the input of each layer, and last the outputs, shape (n, sizes[-1])."""
    layers = len(params) // 2
    values = [x]
    for k in range(1, layers + 1):
        z = values[-1] @ params[f"w{k}"] + params[f"b{k}"]
        values.append(activation.value(z) if k < layers else z)
    return values


def cross_entropy(scores: Array, y: Array) -> tuple[float, Array]:
    """Return the mean cross-entropy of the softmax of scores over the batch, and its derivative.

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
    """Return the mean squared error over the batch, and its derivative.

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
    """Return the mean loss over the batch."""
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

    The arrays in ``grads`` stay in memory, so an optimizer can bind them once.

    Parameters
    ----------
    params : dict of ndarray
    x : ndarray, shape (n, sizes[0])
    y : ndarray, shape (n,)
        The objective's targets: for `cross_entropy`, the right classes.
    grads : dict of ndarray
        Like params; overwritten.
    objective : callable
        ``(outputs, y) -> (loss, d loss / d outputs)``.
    activation : Activation
        The function between the layers.

    Returns
    -------
    float
        The mean loss over the batch.
    """
    *inputs, outputs = forward(params, x, activation)
    value, delta = objective(outputs, y)  # delta: the derivative of the loss with respect to a layer's outputs
    for k in range(len(inputs), 0, -1):
        np.matmul(inputs[k - 1].T, delta, out=grads[f"w{k}"])
        np.sum(delta, axis=0, out=grads[f"b{k}"])
        if k > 1:
            delta = (delta @ params[f"w{k}"].T) * activation.slope(inputs[k - 1])
    return value


def accuracy(params: Params, x: Array, y: Array) -> float:
    """Return the share of inputs for which the right class has the highest score."""
    return float((forward(params, x)[-1].argmax(axis=1) == y).mean())
