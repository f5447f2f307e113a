"""AdaGrad without the root, which nobody should train with; the lecture shows why."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...step.norm import coefficient
from ..network import Array
from ..training import EPS


class AdagradWithoutRoot:
    """``h += g * g; p -= lr / (h + eps) * g``, for one array, with the step of the optimizers of fastopt.

    Parameters
    ----------
    p : ndarray
        Changes in place.
    lr : float or schedule
    eps, weight_decay : float
    max_grad_norm : float
    """

    def __init__(
        self, p: Array, *, lr: Any, eps: float = EPS, weight_decay: float = 0.0, max_grad_norm: float = np.inf
    ) -> None:
        self.p, self.lr, self.eps = p, lr, eps
        self.weight_decay, self.max_grad_norm = weight_decay, max_grad_norm
        self.history, self.count = np.zeros_like(p), 0

    def step(self, gradient: Array) -> None:
        """Take a step."""
        g = coefficient(self.max_grad_norm, float(np.linalg.norm(gradient))) * gradient + self.weight_decay * self.p
        lr = self.lr(self.count) if callable(self.lr) else self.lr
        self.history += g * g
        self.p -= lr * g / (self.history + self.eps)
        self.count += 1
