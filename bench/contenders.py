"""The contenders: one table of implementations, for the command and for the tests.

A contender is a factory: from arrays and the name of a rule it makes a ``step()`` that updates the parameters once, and
owns the states. Contenders may share parameters and gradients.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

import fastopt
from fastopt.rules import RULES as REGISTRY

from . import by_hand
from .cases import MOMENTUM, case
from .in_jax import OptaxStep
from .workloads import Arrays, aligned, like, zeros

Step = Callable[[], object]  # the result is ignored
Factory = Callable[[Arrays, str], Step]

LR = 1e-3
EPS = 1e-10
BETA1, BETA2, ADAM_EPS = 0.9, 0.999, 1e-8

OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "momentum": case("momentum", lr=LR),
    "nesterov": case("nesterov", lr=LR),
    "adagrad": case("adagrad", lr=LR, eps=EPS),
    "adam": case("adam", lr=LR, betas=(BETA1, BETA2), eps=ADAM_EPS),
    "adamw": case("adamw", lr=LR, betas=(BETA1, BETA2), eps=ADAM_EPS),
}
RULES = ("momentum", "nesterov", "adagrad", "adam")  # those that all contenders have

# torch's modes of the same update: one operation on one tensor at a time, the default on the CPU; one operation on all
# tensors; and all operations fused.
TORCH_MODES: dict[str, dict[str, bool]] = {
    "torch-default": {"foreach": False, "fused": False},
    "torch-foreach": {"foreach": True, "fused": False},
    "torch-fused": {"foreach": False, "fused": True},
}


def numpy_step(arrays: Arrays, rule: str) -> Step:
    """Make the step that a careful NumPy user writes."""
    return in_place(np, aligned((largest(arrays),)), arrays, rule)


def largest(arrays: Arrays) -> int:
    """Count the elements of the largest parameter."""
    return max(param.size for param in arrays.params)


def corrected(step: int) -> tuple[np.float32, np.float32]:
    """Return Adam's rate and eps in a step, with the bias corrections put into these two scalars."""
    root = math.sqrt(1 - BETA2**step)
    return np.float32(LR * root / (1 - BETA1**step)), np.float32(ADAM_EPS * root)


def states_of(library: Any, arrays: Arrays, rule: str) -> list[tuple[Any, ...]]:
    """Allocate the states of each parameter, as many as the rule has."""
    return [tuple(library.zeros_like(param) for _ in REGISTRY[rule].states) for param in arrays.params]


def in_place(library: Any, memory: Any, arrays: Arrays, rule: str) -> Step:
    """Make a step of array expressions: in place, without temporaries, with one scratch for all, which stays cached.

    Float32 scalars save NumPy a conversion per call.

    Parameters
    ----------
    library : module
        NumPy, or a library with the same functions.
    memory : array
        The scratch, as long as the largest parameter.
    arrays : Arrays
    rule : str
    """
    params, grads = arrays.params, arrays.grads
    states = states_of(library, arrays, rule)
    scratch = [memory[: param.size].reshape(param.shape) for param in params]
    lr, mu, eps = np.float32(LR), np.float32(MOMENTUM), np.float32(EPS)
    beta1, beta2, gain1, gain2 = (np.float32(weight) for weight in (BETA1, BETA2, 1 - BETA1, 1 - BETA2))
    count = itertools.count(1)

    def momentum() -> None:
        for p, g, (v,), t in zip(params, grads, states, scratch, strict=True):
            v *= mu
            v += g
            library.multiply(v, lr, out=t)
            p -= t

    def nesterov() -> None:
        for p, g, (v,), t in zip(params, grads, states, scratch, strict=True):
            v *= mu
            v += g
            library.multiply(v, mu, out=t)
            t += g
            t *= lr
            p -= t

    def adagrad() -> None:
        for p, g, (s,), t in zip(params, grads, states, scratch, strict=True):
            library.multiply(g, g, out=t)
            s += t
            library.sqrt(s, out=t)
            t += eps
            library.divide(g, t, out=t)
            t *= lr
            p -= t

    def adam() -> None:
        rate, floor = corrected(next(count))
        for p, g, (m, v), t in zip(params, grads, states, scratch, strict=True):
            m *= beta1
            library.multiply(g, gain1, out=t)
            m += t
            v *= beta2
            library.multiply(g, g, out=t)
            t *= gain2
            v += t
            library.sqrt(v, out=t)
            t += floor
            library.divide(m, t, out=t)
            t *= rate
            p -= t

    return {"momentum": momentum, "nesterov": nesterov, "adagrad": adagrad, "adam": adam}[rule]


def by_hand_step(arrays: Arrays, rule: str) -> Step:
    """Make the loops that a careful Numba user writes; float32 scalars keep Numba from computing in float64."""
    loop, states = by_hand.LOOPS[rule], states_of(np, arrays, rule)
    tensors = [
        tuple(array.reshape(-1) for array in (p, g, *own))
        for p, g, own in zip(arrays.params, arrays.grads, states, strict=True)
    ]
    lr, mu, eps = np.float32(LR), np.float32(MOMENTUM), np.float32(EPS)
    beta1, beta2 = np.float32(BETA1), np.float32(BETA2)
    count = itertools.count(1)
    fixed = {"momentum": (lr, mu), "nesterov": (lr, mu), "adagrad": (lr, eps)}.get(rule)

    def step() -> None:
        numbers = fixed or (beta1, beta2, *corrected(next(count)))
        for tensor in tensors:
            loop(*tensor, *numbers)

    return step


def optax_step(arrays: Arrays, rule: str) -> Step:
    """Make optax's optimizer under `jax.jit`; its AdaGrad adds eps under the root, so it gets the square."""
    makers: dict[str, Callable[[Any], Any]] = {
        "momentum": lambda optax: optax.sgd(LR, momentum=MOMENTUM),
        "nesterov": lambda optax: optax.sgd(LR, momentum=MOMENTUM, nesterov=True),
        "adagrad": lambda optax: optax.adagrad(LR, initial_accumulator_value=0.0, eps=EPS**2),
        "adam": lambda optax: optax.adam(LR, b1=BETA1, b2=BETA2, eps=ADAM_EPS),
    }
    return OptaxStep(arrays, makers[rule])


def optimizer(library: Any, params: Any, rule: str, **more: Any) -> Any:
    """Make an optimizer; `fastopt`, `fastopt.torch` and `torch.optim` have the same names of classes and options.

    Parameters
    ----------
    library : module
    params : sequence
        Arrays or tensors, as the library takes them.
    rule : str
    **more
        Options that only this library has.
    """
    name, options = OPTIMIZERS[rule]
    return getattr(library, name)(params, **options, **more)


def bound_step(arrays: Arrays, rule: str, **more: Any) -> Step:
    """Make fastopt's fast path: gradients that stay at their addresses; with more options if they are given."""
    opt = optimizer(fastopt, arrays.params, rule, **more)
    opt.bind(arrays.grads)
    step: Step = opt.step
    return step


def fresh_step(arrays: Arrays, rule: str) -> Step:
    """Make fastopt with gradients in other arrays than at the last step, as if just allocated."""
    opt = optimizer(fastopt, arrays.params, rule)
    turns = itertools.cycle([arrays.grads, [like(grad) for grad in arrays.grads]])
    return lambda: opt.step(next(turns))


def torch_step(arrays: Arrays, rule: str, mode: Mapping[str, Any], library: Any = None) -> Step:
    """Make an optimizer of torch.optim, or of another library for torch, on the memory of NumPy's or CuPy's arrays."""
    import torch

    step: Step = optimizer(library or torch.optim, torch_params(arrays), rule, **mode).step
    return step


def torch_params(arrays: Arrays) -> list[Any]:
    """Return tensors, with their gradients, on the memory of NumPy's or CuPy's arrays."""
    from torch.utils.dlpack import from_dlpack

    params = [from_dlpack(param) for param in arrays.params]
    for param, grad in zip(params, arrays.grads, strict=True):
        param.grad = from_dlpack(grad)
    return params


FASTOPT_TORCH = "fastopt.torch"  # a contender in `tensors` and `torch_iteration`
IN_BACKWARD = "step_in_backward"  # in `torch_iteration` only
DEEPSPEED = "deepspeed"  # only its Adam, if installed
BITSANDBYTES = "bitsandbytes"  # in `storages` only, if installed
IN_BFLOAT16 = f"{FASTOPT_TORCH}, bfloat16 states"  # in `storages` only
IN_8_BITS = f"{FASTOPT_TORCH}, states in 8 bits"
TORCH_IN_BFLOAT16 = "torch-default, bfloat16 states"

HAS_TORCH = importlib.util.find_spec("torch") is not None
HAS_OPTAX = all(importlib.util.find_spec(name) is not None for name in ("jax", "optax"))

FASTOPT, FRESH, NUMPY, BY_HAND, OPTAX = "fastopt", "fastopt-fresh", "numpy", "numba-by-hand", "optax-jit"
CONTENDERS: dict[str, Factory] = {NUMPY: numpy_step, FASTOPT: bound_step, FRESH: fresh_step, BY_HAND: by_hand_step}
if HAS_TORCH:
    CONTENDERS |= {name: partial(torch_step, mode=mode) for name, mode in TORCH_MODES.items()}
if HAS_OPTAX:
    CONTENDERS[OPTAX] = optax_step

# torch's foreach Nesterov adds the momentum to the gradients themselves. Training overwrites them before the next step;
# the benchmark does not, so they would overflow after a hundred steps. Zeros stay zeros, and take the same time.
WRITES_GRADIENTS = {("torch-foreach", "nesterov")}


def make(name: str, rule: str, arrays: Arrays) -> Step:
    """Make a contender to be timed, on shared arrays."""
    if (name, rule) in WRITES_GRADIENTS:
        arrays = Arrays(arrays.params, [zeros(grad.shape) for grad in arrays.grads])
    return CONTENDERS[name](arrays, rule)
