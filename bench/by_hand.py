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


ROWS = {"sgd": sgd_rows, "adagrad": adagrad_rows, "adam": adam_rows}
LOOPS = {"momentum": momentum, "nesterov": nesterov, "adagrad": adagrad, "adam": adam}
