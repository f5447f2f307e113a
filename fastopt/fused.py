"""The updates as single calls, on arrays and state of your own: in place, one pass over memory, no object to keep.

Each call checks its arrays, updates the parameter and the states, returns None, and remembers nothing. State is an
array like the parameter, zeros to begin with. Arrays are float32 or float64, all of one dtype and shape; parameter and
states are writable and dense; the gradient may have any strides, is only read, and may be whatever shows its memory by
DLPack or as a buffer, as arrays of jax do. On a GPU, arrays of CuPy are float16 or bfloat16 as well, with states in
float32, and the update goes on CuPy's current stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import rules
from .backends.foreign import is_on_device
from .backends.numpy import single
from .checks import Count
from .kernels.reader import Array
from .rules import Rule, check


def sgd(p: Array, g: Array, *, lr: float, weight_decay: float = 0.0, maximize: bool = False) -> None:
    """Update a parameter by gradient descent: ``p <- p - lr * g``.

    Parameters
    ----------
    p : array of NumPy or CuPy, any shape
        Parameter, updated in place; dense and writable; float32 or float64, on a GPU float16 and bfloat16 too.
    g : array, dtype and shape of p
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
    p : array of NumPy or CuPy, any shape
        Parameter, updated in place; dense and writable; float32 or float64, on a GPU float16 and bfloat16 too.
    g : array, dtype and shape of p
        Gradient, any strides.
    velocity : array, dtype and shape of p (float32 for half precision)
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
    p : array of NumPy or CuPy, any shape
        Parameter, updated in place; dense and writable; float32 or float64, on a GPU float16 and bfloat16 too.
    g : array, dtype and shape of p
        Gradient, any strides.
    velocity : array, dtype and shape of p (float32 for half precision)
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
    p : array of NumPy or CuPy, any shape
        Parameter, updated in place; dense and writable; float32 or float64, on a GPU float16 and bfloat16 too.
    g : array, dtype and shape of p
        Gradient, any strides.
    accumulator : array, dtype and shape of p (float32 for half precision)
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


def rmsprop(
    p: Array,
    g: Array,
    square_avg: Array,
    momentum_buffer: Array | None = None,
    grad_avg: Array | None = None,
    *,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    maximize: bool = False,
) -> None:
    """Update a parameter by RMSProp: ``s <- alpha * s + (1 - alpha) * g * g; p <- p - lr * g / (sqrt(s) + eps)``.

    Parameters
    ----------
    p : array of NumPy or CuPy, any shape
        Parameter, updated in place; dense and writable; float32 or float64, on a GPU float16 and bfloat16 too.
    g : array, dtype and shape of p
        Gradient, any strides.
    square_avg : array, dtype and shape of p (float32 for half precision)
        Average of squared gradients, updated in place; dense and writable; zeros before the first step.
    momentum_buffer : array, dtype and shape of p (float32 for half precision), optional
        With it, ``v <- momentum * v + g / (sqrt(s) + eps); p <- p - lr * v``; like ``square_avg``.
    grad_avg : array, dtype and shape of p (float32 for half precision), optional
        With it the update is centered, by ``sqrt(s - a * a)``; average of gradients, like ``square_avg``.
    lr : float
        Learning rate, 0 or more.
    alpha : float, default 0.99
        How much of an average is kept, from 0 to 1.
    eps : float, default 1e-8
        Added to the root; 0 or more.
    weight_decay : float, default 0.0
        ``g + weight_decay * p`` is used for g.
    momentum : float, default 0.0
        0 or more; other than 0 it needs a ``momentum_buffer``.
    maximize : bool, default False
        ``-g`` is used for g.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; nothing has changed then.
    """
    options = _checked(lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum, maximize=maximize)
    if momentum_buffer is None and options["momentum"] != 0:
        raise ValueError(f"momentum={options['momentum']:g} needs a momentum_buffer: pass an array of zeros like p")
    states = {"square_avg": square_avg}
    if momentum_buffer is not None:
        states["momentum_buffer"] = momentum_buffer
    if grad_avg is not None:
        states["grad_avg"] = grad_avg
    rule = next(rule for rule in rules.FAMILIES["RMSprop"].rules if rule.states == tuple(states))
    _update(rule, p, g, states, options)


def adam(
    p: Array,
    g: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    max_exp_avg_sq: Array | None = None,
    *,
    lr: float,
    step: int,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    maximize: bool = False,
) -> None:
    """Update a parameter by Adam; the formula is that of `fastopt.Adam`.

    Parameters
    ----------
    p : array of NumPy or CuPy, any shape
        Parameter, updated in place; dense and writable; float32 or float64, on a GPU float16 and bfloat16 too.
    g : array, dtype and shape of p
        Gradient, any strides.
    exp_avg, exp_avg_sq : array, dtype and shape of p (float32 for half precision)
        Averages of gradients and of their squares, updated in place; dense and writable; zeros before the first step.
    max_exp_avg_sq : array, dtype and shape of p (float32 for half precision), optional
        With it the update is AMSGrad's; the largest average of squares so far, like the others.
    lr : float
        Learning rate, 0 or more.
    step : int
        Which step of this parameter it is, from 1: by it the averages are corrected for their bias.
    betas : pair of float, default (0.9, 0.999)
        How much of each average is kept, 0 or more and below 1.
    eps : float, default 1e-8
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
    options = _checked(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize)
    _update_adam("Adam", p, g, (exp_avg, exp_avg_sq, max_exp_avg_sq), options, step)


def adamw(
    p: Array,
    g: Array,
    exp_avg: Array,
    exp_avg_sq: Array,
    max_exp_avg_sq: Array | None = None,
    *,
    lr: float,
    step: int,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    maximize: bool = False,
) -> None:
    """Update a parameter by AdamW: ``p <- (1 - lr * weight_decay) * p``, then as `adam` does without weight decay.

    Parameters
    ----------
    p, g, exp_avg, exp_avg_sq, max_exp_avg_sq, lr, step, betas, eps, maximize
        As for `adam`.
    weight_decay : float, default 0.01
        The share of p that a step with a rate of 1 takes off, 0 or more.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit; nothing has changed then.
    """
    options = _checked(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize)
    _update_adam("AdamW", p, g, (exp_avg, exp_avg_sq, max_exp_avg_sq), options, step)


def _update_adam(
    family: str, p: Array, g: Array, given: tuple[Any, Any, Any], options: Mapping[str, Any], step: int
) -> None:
    rule = rules.FAMILIES[family].choose({**options, "amsgrad": given[2] is not None})
    states = dict(zip(rule.states, given, strict=False))  # two or three
    _update(rule, p, g, states, options, Count(minimum=1).check("step", step))


def _checked(**options: Any) -> dict[str, Any]:
    return {name: check(name, value) for name, value in options.items()}


ANY = 2  # a step like any other, not the first


def _update(
    rule: Rule, p: Array, g: Array, states: Mapping[str, Array], options: Mapping[str, Any], step: int = ANY
) -> None:
    numbers = rule.row(options, step, False)
    if is_on_device(p):
        from .backends.cupy import single as on_gpu

        on_gpu.update_once(rule, p, g, states, numbers)
    else:
        single.update_once(rule, p, g, states, numbers)
