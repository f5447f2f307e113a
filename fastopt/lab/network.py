"""A small classifier in plain NumPy: fully connected layers, ReLU between them, softmax cross-entropy on top.

Parameters and gradients are dicts of arrays: ``w1``, ``b1`` of the first layer, ``w2``, ``b2`` of the next, ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def new_parameters(
    rng: np.random.Generator, sizes: Sequence[int] = (64, 32, 10), dtype: npt.DTypeLike = np.float32
) -> dict[str, Array]:
    """Return parameters of a network with layers of these sizes, inputs first.

    Weights are drawn with variance 2 / inputs, which keeps the scale of what ReLUs let through (He initialisation);
    biases are zero.

    Returns
    -------
    dict of ndarray
        ``w1``, shape (sizes[0], sizes[1]); ``b1``, shape (sizes[1],); ...
    """
    params = {}
    for k, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        params[f"w{k}"] = (rng.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs)).astype(dtype)
        params[f"b{k}"] = np.zeros(outputs, dtype)
    return params


def forward(params: Mapping[str, Array], x: Array) -> list[Array]:
    """Return what goes into each layer, and at last the scores, shape (n, classes)."""
    layers = len(params) // 2
    values = [x]
    for k in range(1, layers + 1):
        z = values[-1] @ params[f"w{k}"] + params[f"b{k}"]
        values.append(np.maximum(z, 0) if k < layers else z)
    return values


def log_softmax(scores: Array) -> Array:
    """Return the logarithms of the classes' probabilities, row by row."""
    shifted: Array = scores - scores.max(axis=1, keepdims=True)  # so that exp() cannot overflow
    log_p: Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_p


def loss(params: Mapping[str, Array], x: Array, y: Array) -> float:
    """Return the cross-entropy, as the mean over the batch."""
    return float(-log_softmax(forward(params, x)[-1])[np.arange(len(y)), y].mean())


def loss_and_gradients(params: Mapping[str, Array], x: Array, y: Array, grads: Mapping[str, Array]) -> float:
    """Return the loss of a batch, and write its gradients into ``grads``.

    The arrays in ``grads`` stay where they are, so that an optimizer can be bound to them once.

    Parameters
    ----------
    params : dict of ndarray
    x : ndarray, shape (n, sizes[0])
    y : ndarray of int, shape (n,)
        The right classes.
    grads : dict of ndarray
        Like params; overwritten.

    Returns
    -------
    float
        Cross-entropy, mean over the batch.
    """
    *inputs, scores = forward(params, x)
    log_p = log_softmax(scores)
    right = np.arange(len(y)), y

    delta = np.exp(log_p)  # the derivative of the loss by the scores: probabilities, less 1 for the right class
    delta[right] -= 1
    delta /= len(y)
    for k in range(len(inputs), 0, -1):
        np.matmul(inputs[k - 1].T, delta, out=grads[f"w{k}"])
        np.sum(delta, axis=0, out=grads[f"b{k}"])
        if k > 1:
            delta = (delta @ params[f"w{k}"].T) * (inputs[k - 1] > 0)
    return float(-log_p[right].mean())


def accuracy(params: Mapping[str, Array], x: Array, y: Array) -> float:
    """Return the share of inputs whose highest score is that of the right class."""
    return float((forward(params, x)[-1].argmax(axis=1) == y).mean())
