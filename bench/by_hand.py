"""The rules as a Numba user would write them: plain loops, one call per tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit
def momentum(p: Any, g: Any, v: Any, lr: Any, mu: Any) -> None:
    """Update one tensor."""
    for i in range(p.size):
        v[i] = mu * v[i] + g[i]
        p[i] -= lr * v[i]


@njit
def nesterov(p: Any, g: Any, v: Any, lr: Any, mu: Any) -> None:
    """Update one tensor."""
    for i in range(p.size):
        v[i] = mu * v[i] + g[i]
        p[i] -= lr * (g[i] + mu * v[i])


@njit
def adagrad(p: Any, g: Any, s: Any, lr: Any, eps: Any) -> None:
    """Update one tensor."""
    for i in range(p.size):
        s[i] += g[i] * g[i]
        p[i] -= lr * g[i] / (np.sqrt(s[i]) + eps)


@njit
def adam(p: Any, g: Any, m: Any, v: Any, beta1: Any, beta2: Any, rate: Any, eps: Any) -> None:
    """Update one tensor; rate and eps include the bias corrections."""
    gain1, gain2 = np.float32(1) - beta1, np.float32(1) - beta2
    for i in range(p.size):
        m[i] = beta1 * m[i] + gain1 * g[i]
        v[i] = beta2 * v[i] + gain2 * g[i] * g[i]
        p[i] -= rate * m[i] / (np.sqrt(v[i]) + eps)


@njit
def sgd_rows(p: Any, rows: Any, g: Any, lr: Any) -> None:
    """Update rows of a table."""
    for k in range(rows.size):
        row = rows[k]
        for i in range(p.shape[1]):
            p[row, i] -= lr * g[k, i]


@njit
def adagrad_rows(p: Any, rows: Any, g: Any, s: Any, lr: Any, eps: Any) -> None:
    """Update rows of a table."""
    for k in range(rows.size):
        adagrad(p[rows[k]], g[k], s[rows[k]], lr, eps)


@njit
def adam_rows(p: Any, rows: Any, g: Any, m: Any, v: Any, beta1: Any, beta2: Any, rate: Any, eps: Any) -> None:
    """Update rows of a table."""
    for k in range(rows.size):
        adam(p[rows[k]], g[k], m[rows[k]], v[rows[k]], beta1, beta2, rate, eps)


@njit
def rowwise_rows(p: Any, rows: Any, g: Any, s: Any, lr: Any, eps: Any) -> None:
    """Update rows of a table by AdaGrad with one accumulator for each."""
    for k in range(rows.size):
        row, total = rows[k], np.float32(0)
        for i in range(p.shape[1]):
            total += g[k, i] * g[k, i]
        s[row, 0] += total / np.float32(p.shape[1])
        rate = lr / (np.sqrt(s[row, 0]) + eps)
        for i in range(p.shape[1]):
            p[row, i] -= rate * g[k, i]


@njit
def touch_rows(arrays: Any, rows: Any, g: Any, zero: Any) -> None:
    """Read gradients, and read and write rows of several arrays: the bytes of an update without its arithmetic."""
    for k in range(rows.size):
        row = rows[k]
        for array in arrays:
            for i in range(g.shape[1]):
                array[row, i] += zero * g[k, i]


ROWS = {"sgd": sgd_rows, "adagrad": adagrad_rows, "rowwise": rowwise_rows, "adam": adam_rows}
LOOPS = {"momentum": momentum, "nesterov": nesterov, "adagrad": adagrad, "adam": adam}
