"""The contenders and workloads on a GPU: one table of implementations, on CuPy arrays that torch shares."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

import fastopt

from ..cases import MOMENTUM
from ..contenders import (
    BETA1,
    BETA2,
    EPS,
    FASTOPT_TORCH,
    FRESH,
    LR,
    TORCH_MODES,
    WRITES_GRADIENTS,
    Factory,
    Step,
    bound_step,
    corrected,
    in_place,
    largest,
    optimizer,
    states_of,
    torch_step,
)
from ..workloads import WORKLOADS as OF_CPU
from ..workloads import Arrays, Workload
from .device import Device

Say = Callable[[str], object]  # gets messages about what is left out

FASTOPT = "fastopt"
SUBJECTS = (FASTOPT_TORCH, FASTOPT)

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("tensor_64k", "one tensor of 65,536", ((2**16,),)),
        Workload("tensor_1m", "one tensor of 2^20", ((2**20,),)),
        OF_CPU["resnet50"],
        Workload("tensor_16m", "one tensor of 2^24", ((2**24,),)),
        OF_CPU["gpt2"],
        Workload("tensor_256m", "one tensor of 2^28", ((2**28,),)),
    )
}

# The queue of launches holds about a thousand. Contenders that update all tensors at once need more than one launch if
# tensors are many or large: torch's argument tables have room for some tens of tensors, and some hundreds of chunks.
LAUNCHES = 800
MOST_STEPS = 20
PASSES = 8  # over all tensors, at most: torch's foreach Adam
TENSORS, ELEMENTS = 30, 2**24  # per launch


@dataclass(frozen=True)
class Contender:
    """One implementation.

    Attributes
    ----------
    make : callable
        Makes a step from arrays and the name of a rule, as for the CPU.
    subject : str
        The contender of fastopt's that it is compared with, which uses the same library.
    launches : int
        The most kernels that it launches per tensor; 0 if one kernel updates many.
    """

    make: Factory
    subject: str
    launches: int = 0

    def launched(self, workload: Workload) -> int:
        """Return the most kernels that a step may launch."""
        together = PASSES * (1 + len(workload.shapes) // TENSORS + workload.elements // ELEMENTS)
        return self.launches * len(workload.shapes) or together

    def steps(self, workload: Workload) -> int:
        """Choose how many steps to take in a row; 0 if the queue of launches has no room for even one."""
        return min(MOST_STEPS, LAUNCHES // self.launched(workload))


def contenders(device: Device) -> dict[str, Contender]:
    """Return all implementations: torch's, if it can use the GPU, and CuPy's."""
    found = {}
    if device.torch is not None:
        import fastopt.torch

        found[FASTOPT_TORCH] = Contender(partial(torch_step, mode={}, library=fastopt.torch), FASTOPT_TORCH)
        for name, mode in TORCH_MODES.items():
            launches = 4 if name == "torch-default" else 0
            found[name] = Contender(partial(torch_step, mode=mode), FASTOPT_TORCH, launches)
    found[FASTOPT] = Contender(bound_step, FASTOPT)
    found["cupy"] = Contender(partial(plain_step, device.cupy), FASTOPT, 7)
    found["cupy-fuse"] = Contender(partial(fused_step, device.cupy), FASTOPT, 1)
    found["cupy-kernel"] = Contender(partial(kernel_step, device.cupy), FASTOPT, 1)
    return found


def of_many(workload: Workload) -> dict[str, Contender]:
    """Return what is also measured where tensors are many: the host's work for gradients that are new at each step."""
    return {FRESH: Contender(fresh_step, FASTOPT)} if len(workload.shapes) > 1 else {}


def draw(cupy: Any, workload: Workload) -> Arrays:
    """Fill arrays on the GPU with numbers that stay finite over any number of steps."""

    def wave(shape: tuple[int, ...], start: float) -> Any:
        return cupy.sin(cupy.arange(math.prod(shape), dtype=np.float32) + np.float32(start)).reshape(shape)

    return Arrays([wave(shape, 0.5) for shape in workload.shapes], [wave(shape, 1.5) for shape in workload.shapes])


def make(contender: Contender, name: str, rule: str, arrays: Arrays, cupy: Any) -> Step:
    """Make a contender to be timed, on shared arrays, with zeros instead of gradients that it would overwrite."""
    if (name, rule) in WRITES_GRADIENTS:
        arrays = Arrays(arrays.params, [cupy.zeros_like(grad) for grad in arrays.grads])
    return contender.make(arrays, rule)


@contextlib.contextmanager
def left_out(name: str, rule: str, say: Say) -> Iterator[None]:
    """Print a message and continue if a contender fails, unless it is fastopt.

    Other libraries may not support everything: torch's fused AdaGrad, for example, existed only on the CPU at first.
    """
    try:
        yield
    except Exception as error:
        if name.partition(", ")[0] in SUBJECTS:
            raise
        reason = str(error).partition("\n")[0]
        say(f"{name} is left out of {rule}: {reason or type(error).__name__}")


def fresh_step(arrays: Arrays, rule: str) -> Step:
    """Make fastopt with gradients in other arrays than at the last step, as if just allocated."""
    opt = optimizer(fastopt, arrays.params, rule)
    turns = itertools.cycle([arrays.grads, [grad.copy() for grad in arrays.grads]])
    return lambda: opt.step(next(turns))


def plain_step(cupy: Any, arrays: Arrays, rule: str) -> Step:
    """Make a step of CuPy's array expressions, in place and without temporaries: a kernel per expression."""
    return in_place(cupy, cupy.empty(largest(arrays), np.float32), arrays, rule)


def fused_step(cupy: Any, arrays: Arrays, rule: str) -> Step:
    """Make a step of the formula as `cupy.fuse` fuses it: a kernel per tensor."""
    states = states_of(cupy, arrays, rule)
    # Scalars go to the right of arrays: on the left, NumPy's operator would treat `cupy.fuse`'s proxy as an array.
    lr, mu, eps = np.float32(LR), np.float32(MOMENTUM), np.float32(EPS)
    beta1, beta2, gain1, gain2 = (np.float32(weight) for weight in (BETA1, BETA2, 1 - BETA1, 1 - BETA2))

    def momentum(p: Any, g: Any, v: Any) -> None:
        v *= mu
        v += g
        p -= v * lr

    def nesterov(p: Any, g: Any, v: Any) -> None:
        v *= mu
        v += g
        p -= (v * mu + g) * lr

    def adagrad(p: Any, g: Any, s: Any) -> None:
        s += g * g
        p -= g / (cupy.sqrt(s) + eps) * lr

    def adam(p: Any, g: Any, m: Any, v: Any, rate: Any, floor: Any) -> None:
        m *= beta1
        m += g * gain1
        v *= beta2
        v += g * g * gain2
        p -= m / (cupy.sqrt(v) + floor) * rate

    rules = {"momentum": momentum, "nesterov": nesterov, "adagrad": adagrad, "adam": adam}
    update, numbers = cupy.fuse()(rules[rule]), numbers_of(rule)

    def step() -> None:
        moving = next(numbers)
        for p, g, own in zip(arrays.params, arrays.grads, states, strict=True):
            update(p, g, *own, *moving)

    return step


def numbers_of(rule: str) -> Iterator[tuple[Any, ...]]:
    """Iterate over the numbers that change with each step: Adam's rate and eps, and none for other rules."""
    return (corrected(step) if rule == "adam" else () for step in itertools.count(1))


# The update of one element in C++: names of numbers, names of states, and the code.
FORMULAS = {
    "momentum": (("lr", "mu"), ("v",), "v = mu * v + g; p -= lr * v"),
    "nesterov": (("lr", "mu"), ("v",), "v = mu * v + g; p -= lr * (g + mu * v)"),
    "adagrad": (("lr", "eps"), ("s",), "s += g * g; p -= lr * g / (sqrt(s) + eps)"),
    "adam": (
        ("beta1", "beta2", "gain1", "gain2", "rate", "floor_"),
        ("m", "v"),
        "m = beta1 * m + gain1 * g; v = beta2 * v + gain2 * g * g; p -= rate * m / (sqrt(v) + floor_)",
    ),
}
NUMBERS = {
    "lr": LR,
    "mu": MOMENTUM,
    "eps": EPS,
    "beta1": BETA1,
    "beta2": BETA2,
    "gain1": 1 - BETA1,
    "gain2": 1 - BETA2,
}


def kernel_step(cupy: Any, arrays: Arrays, rule: str) -> Step:
    """Make a `cupy.ElementwiseKernel` of the formula, launched per tensor: what a careful CuPy user writes."""
    states, numbers = states_of(cupy, arrays, rule), numbers_of(rule)
    names, names_of_states, formula = FORMULAS[rule]
    given, updated = (", ".join(f"float32 {name}" for name in of) for of in (("g", *names), ("p", *names_of_states)))
    update = cupy.ElementwiseKernel(given, updated, formula, f"bench_{rule}")
    fixed = [np.float32(NUMBERS[name]) for name in names if name in NUMBERS]

    def step() -> None:
        moving = next(numbers)
        for p, g, own in zip(arrays.params, arrays.grads, states, strict=True):
            update(g, *fixed, *moving, p, *own)

    return step
