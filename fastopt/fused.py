"""The updates as single calls, on arrays and state of your own: in place, one pass over memory, no object to keep.

Each call checks its arrays, updates the parameter and the states, returns None, and remembers nothing. State is an
array like the parameter, zeros to begin with. Arrays are float32 or float64, all of one dtype and shape; parameter and
states are writable and dense; the gradient may have any strides, and is only read. On a GPU, arrays of CuPy are float16
or bfloat16 as well, with states in float32, and the update goes on CuPy's current stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import host, rules
from .arrays import is_on_device
from .kernels.reader import Array
from .rules import Rule, check


def sgd(p: Array, g: Array, *, lr: float, weight_decay: float = 0.0, maximize: bool = False) -> None:
    """Update a parameter by gradient descent: ``p <- p - lr * g``.

    Parameters
    ----------
    p : ndarray of float32 or float64, any shape
        Parameter, updated in place; dense and writable.
    g : ndarray, dtype and shape of p
        Gradient, any strides.
    lr : float
        Learning rate, 0 or more.
    weight_decay : float, default 0.0
        ``g + weight_decay * p`` is used for g.
    maximize : bool, default False
        ``-g`` is used for g.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; nothing has changed then.
    """
    _update(rules.SGD, p, g, {}, _checked(lr=lr, weight_decay=weight_decay, maximize=maximize))


def momentum(
    p: Array,
    g: Array,
    velocity: Array,
    *,
    lr: float,
    momentum: float,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """Update a parameter by momentum: ``v <- momentum * v + (1 - dampening) * g; p <- p - lr * v``.

    Parameters
    ----------
    p : ndarray of float32 or float64, any shape
        Parameter, updated in place; dense and writable.
    g : ndarray, dtype and shape of p
        Gradient, any strides.
    velocity : ndarray, dtype and shape of p
        Momentum buffer, updated in place; dense and writable; zeros before the first step.
    lr, momentum : float
        Learning rate and momentum, 0 or more.
    dampening : float, default 0.0
        Always applied, also at the first step, which a single call cannot know (`fastopt.SGD` spares the first).
    nesterov : bool, default False
        The update of `nesterov` instead; requires a momentum, and no dampening.
    weight_decay : float, default 0.0
        ``g + weight_decay * p`` is used for g.
    maximize : bool, default False
        ``-g`` is used for g.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; nothing has changed then.
    """
    options = _checked(
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        nesterov=nesterov,
        weight_decay=weight_decay,
        maximize=maximize,
    )
    rule = rules.choose_sgd(options) if options["nesterov"] else rules.MOMENTUM
    _update(rule, p, g, {"velocity": velocity}, options)


def nesterov(
    p: Array,
    g: Array,
    velocity: Array,
    *,
    lr: float,
    momentum: float,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """Update a parameter by Nesterov momentum: ``v <- momentum * v + g; p <- p - lr * (g + momentum * v)``.

    Parameters
    ----------
    p : ndarray of float32 or float64, any shape
        Parameter, updated in place; dense and writable.
    g : ndarray, dtype and shape of p
        Gradient, any strides.
    velocity : ndarray, dtype and shape of p
        Momentum buffer, updated in place; dense and writable; zeros before the first step.
    lr, momentum : float
        Learning rate, 0 or more; momentum, above 0.
    weight_decay : float, default 0.0
        ``g + weight_decay * p`` is used for g.
    maximize : bool, default False
        ``-g`` is used for g.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; nothing has changed then.
    """
    options = _checked(
        lr=lr, momentum=momentum, dampening=0.0, nesterov=True, weight_decay=weight_decay, maximize=maximize
    )
    _update(rules.choose_sgd(options), p, g, {"velocity": velocity}, options)


def adagrad(
    p: Array,
    g: Array,
    accumulator: Array,
    *,
    lr: float,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """Update a parameter by AdaGrad: ``s <- s + g * g; p <- p - lr * g / (sqrt(s) + eps)``.

    Parameters
    ----------
    p : ndarray of float32 or float64, any shape
        Parameter, updated in place; dense and writable.
    g : ndarray, dtype and shape of p
        Gradient, any strides.
    accumulator : ndarray, dtype and shape of p
        Sum of squared gradients, updated in place; dense and writable; zeros, or a small positive value to begin with.
    lr : float
        Learning rate, 0 or more; where it decays, pass the step's own.
    eps : float, default 1e-10
        Added to the root; 0 or more.
    weight_decay : float, default 0.0
        ``g + weight_decay * p`` is used for g.
    maximize : bool, default False
        ``-g`` is used for g.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; nothing has changed then.
    """
    options = _checked(lr=lr, lr_decay=0.0, eps=eps, weight_decay=weight_decay, maximize=maximize)
    _update(rules.ADAGRAD, p, g, {"accumulator": accumulator}, options)


def _checked(**options: Any) -> dict[str, Any]:
    return {name: check(name, value) for name, value in options.items()}


def _update(rule: Rule, p: Array, g: Array, states: Mapping[str, Array], options: Mapping[str, Any]) -> None:
    numbers = rule.row(options, 2, False)  # a step like any other, not the first
    if is_on_device(p):
        from . import cupy_arrays

        cupy_arrays.update_once(rule, p, g, states, numbers)
    else:
        host.update_once(rule, p, g, states, numbers)
