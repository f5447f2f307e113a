"""The updates as single calls, on your own arrays and states: in place, in one pass over memory, without an object.

Each call checks its arrays, updates the parameter and the states, returns None, and remembers nothing. A state is an
array like the parameter, zeros at first. Arrays are float32, float64, float16 or bfloat16 (of ml_dtypes), all of one
dtype and shape, but states of the latter two are float32. Parameter and states are writable and dense. The gradient is
only read; it may have any strides, and may be anything that supports DLPack or the buffer protocol, as a jax array.
On a GPU, the update runs on CuPy's current stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import rules
from .backends.foreign import is_on_device
from .backends.numpy import single
from .checks import Count
from .faces import CALL, described
from .kernels.reader import Array
from .options import check
from .rules import Rule
from .sparse_rows import SparseRows


@described(CALL)
def sgd(p: Array, g: Array | SparseRows, *, lr: float, weight_decay: float = 0.0, maximize: bool = False) -> None:
    """Update a parameter by gradient descent: ``p <- p - lr * g``.

    Parameters
    ----------
    {options}

    Raises
    ------
    {errors}
    """
    _update(rules.SGD, p, g, {}, _checked(lr=lr, weight_decay=weight_decay, maximize=maximize))


@described(CALL)
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
    {options}
    dampening
        A single call cannot know which gradient is the first; it dampens that one too.
    nesterov
        With it, this call is `nesterov`.

    Raises
    ------
    {errors}
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


_momentum = momentum  # for `nesterov`, which has a parameter of that name


@described(CALL)
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
    {options}
    momentum
        Here above 0.

    Raises
    ------
    {errors}
    """
    _momentum(p, g, velocity, lr=lr, momentum=momentum, nesterov=True, weight_decay=weight_decay, maximize=maximize)


@described(CALL)
def adagrad(
    p: Array,
    g: Array | SparseRows,
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
    {options}
    lr
        If the rate decays, pass the rate of this step.

    Raises
    ------
    {errors}
    """
    options = _checked(lr=lr, lr_decay=0.0, eps=eps, weight_decay=weight_decay, maximize=maximize)
    _update(rules.ADAGRAD, p, g, {"accumulator": accumulator}, options)


@described(CALL)
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
    {options}
    momentum_buffer
        With it, ``v <- momentum * v + g / (sqrt(s) + eps); p <- p - lr * v``.
    grad_avg
        With it the update is centered: it divides by ``sqrt(s - a * a)``.
    momentum
        If it is not 0, ``momentum_buffer`` is required.

    Raises
    ------
    {errors}
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


@described(CALL)
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
    {options}

    Raises
    ------
    {errors}
    """
    options = _checked(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize)
    _update_adam("Adam", p, g, (exp_avg, exp_avg_sq, max_exp_avg_sq), options, step)


@described(CALL)
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
    """Update a parameter by AdamW: ``p <- (1 - lr * weight_decay) * p``, then `adam` without weight decay.

    Parameters
    ----------
    {options}

    Raises
    ------
    {errors}
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


ANY = 2  # the number of any step but the first


def _update(
    rule: Rule,
    p: Array,
    g: Array | SparseRows,
    states: Mapping[str, Array],
    options: Mapping[str, Any],
    step: int = ANY,
) -> None:
    numbers = rule.row(options, step, False)
    if is_on_device(p):
        from .backends.cupy import single as on_gpu

        on_gpu.update_once(rule, p, g, states, numbers)
    else:
        single.update_once(rule, p, g, states, numbers)
