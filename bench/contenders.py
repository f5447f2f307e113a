"""Who updates: one table of implementations, for the command and the suite alike.

A contender is a factory: from arrays and the name of a rule it makes a ``step()`` that updates the parameters once, and
that owns the state. Parameters and gradients may be shared between contenders.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Sequence

import numpy as np

import fastopt

from .workloads import Array, Arrays, aligned, like

Step = Callable[[], object]  # what it returns is not looked at
Factory = Callable[[Arrays, str], Step]

RULES = ("momentum", "nesterov", "adagrad")
LR = 1e-3
MOMENTUM = 0.9
EPS = 1e-10


def numpy_step(arrays: Arrays, rule: str) -> Step:
    """Make the NumPy that a careful user writes: in place, no temporaries, one scratch for all so that it stays cached.

    Float32 scalars spare NumPy a conversion at each call.
    """
    params, grads = arrays.params, arrays.grads
    states = [np.zeros_like(param) for param in params]
    memory = aligned((max(param.size for param in params),))
    scratch = [memory[: param.size].reshape(param.shape) for param in params]
    lr, mu, eps = np.float32(LR), np.float32(MOMENTUM), np.float32(EPS)

    def momentum() -> None:
        for p, g, v, t in zip(params, grads, states, scratch, strict=True):
            v *= mu
            v += g
            np.multiply(v, lr, out=t)
            p -= t

    def nesterov() -> None:
        for p, g, v, t in zip(params, grads, states, scratch, strict=True):
            v *= mu
            v += g
            np.multiply(v, mu, out=t)
            t += g
            t *= lr
            p -= t

    def adagrad() -> None:
        for p, g, s, t in zip(params, grads, states, scratch, strict=True):
            np.multiply(g, g, out=t)
            s += t
            np.sqrt(s, out=t)
            t += eps
            np.divide(g, t, out=t)
            t *= lr
            p -= t

    return {"momentum": momentum, "nesterov": nesterov, "adagrad": adagrad}[rule]


def optimizer(params: Sequence[Array], rule: str) -> fastopt.Optimizer:
    """Make fastopt's optimizer for a rule."""
    if rule == "adagrad":
        return fastopt.Adagrad(params, lr=LR, eps=EPS)
    return fastopt.SGD(params, lr=LR, momentum=MOMENTUM, nesterov=rule == "nesterov")


def bound_step(arrays: Arrays, rule: str) -> Step:
    """Make fastopt's fast path: gradients that stay where they are."""
    opt = optimizer(arrays.params, rule)
    opt.bind(arrays.grads)
    return opt.step


def fresh_step(arrays: Arrays, rule: str) -> Step:
    """Make fastopt with gradients that are other arrays than at the last step, as if just allocated."""
    opt = optimizer(arrays.params, rule)
    turns = itertools.cycle([arrays.grads, [like(grad) for grad in arrays.grads]])
    return lambda: opt.step(next(turns))


def torch_step(arrays: Arrays, rule: str, *, foreach: bool, fused: bool) -> Step:
    """Make torch's optimizer over the same memory."""
    import torch

    params = [torch.from_numpy(param) for param in arrays.params]
    for param, grad in zip(params, arrays.grads, strict=True):
        param.grad = torch.from_numpy(grad)
    opt: torch.optim.Optimizer
    if rule == "adagrad":
        opt = torch.optim.Adagrad(params, lr=LR, eps=EPS, foreach=foreach, fused=fused)
    else:
        nesterov = rule == "nesterov"
        opt = torch.optim.SGD(params, lr=LR, momentum=MOMENTUM, nesterov=nesterov, foreach=foreach, fused=fused)
    step: Step = opt.step
    return step


def torch_default(arrays: Arrays, rule: str) -> Step:
    """Make torch as it is without options: tensor by tensor, operation by operation."""
    return torch_step(arrays, rule, foreach=False, fused=False)


def torch_foreach(arrays: Arrays, rule: str) -> Step:
    """Make torch with each operation over all tensors."""
    return torch_step(arrays, rule, foreach=True, fused=False)


def torch_fused(arrays: Arrays, rule: str) -> Step:
    """Make torch with all operations fused."""
    return torch_step(arrays, rule, foreach=False, fused=True)


HAS_TORCH = importlib.util.find_spec("torch") is not None

CONTENDERS: dict[str, Factory] = {"numpy": numpy_step, "fastopt": bound_step, "fastopt-fresh": fresh_step}
if HAS_TORCH:
    CONTENDERS |= {"torch-default": torch_default, "torch-foreach": torch_foreach, "torch-fused": torch_fused}

# torch's foreach Nesterov adds the momentum to the gradients themselves. Training overwrites them before the next step;
# here they stay, and would overflow after a hundred steps. Zeros stay zeros, and take the same time.
WRITES_GRADIENTS = {("torch-foreach", "nesterov")}


def make(name: str, rule: str, arrays: Arrays) -> Step:
    """Make a contender to be timed, on shared arrays."""
    if (name, rule) in WRITES_GRADIENTS:
        zeros = [aligned(grad.shape) for grad in arrays.grads]
        for grad in zeros:
            grad[...] = 0
        arrays = Arrays(arrays.params, zeros)
    return CONTENDERS[name](arrays, rule)
