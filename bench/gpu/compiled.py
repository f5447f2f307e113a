"""torch.compile of torch's foreach optimizers, which some use instead of a fused one."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np

from ..contenders import FASTOPT_TORCH, LR, TORCH_MODES, WRITES_GRADIENTS, Step, torch_step
from ..measure import WARM_UP
from ..workloads import Arrays
from .check import Array, Trained, WrongResultError, compare, tolerance, trained_by_formula
from .contenders import Contender
from .device import Device
from .figures import Compilation

COMPILED = "torch-compiled"
BACKEND = "inductor"
COMPARED = 1000  # elements to compare with the formula


def contender(backend: str) -> Contender:
    """Make the contender, with a backend of torch.compile."""
    return Contender(partial(compiled_step, backend=backend), FASTOPT_TORCH)


def compiled_step(arrays: Arrays, rule: str, backend: str) -> Step:
    """Make a compiled step of a foreach optimizer; its first calls compile it."""
    import torch

    torch.compiler.reset()  # else earlier workloads would count towards the limit of recompilations
    eager = torch_step(arrays, rule, TORCH_MODES["torch-foreach"])
    step: Step = torch.compile(eager, backend=backend)
    return step


def compilations() -> int:
    """Count the graphs that torch has compiled in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


class Compiled:
    """A step on one tensor that is compiled and was checked.

    Attributes
    ----------
    step : callable
    seconds : float
        The time of its first calls: momentum compiles twice, without a buffer and with it.

    Raises
    ------
    WrongResultError
        If the parameter differs from the formula, or nothing was compiled.
    """

    def __init__(self, device: Device, contender: Contender, rule: str, arrays: Arrays) -> None:
        (param,), (grad,) = arrays.params, arrays.grads
        before, gradient = head(device, param), head(device, grad)
        own = Arrays([param], [device.cupy.zeros_like(grad)])
        begin = time.perf_counter()
        self.step = started(device, contender, rule, own, grad)
        self.seconds = time.perf_counter() - begin
        expected = trained_by_formula(rule, [before], WARM_UP * [[gradient]], LR, decay=0, lr_decay=0)
        found = Trained([head(device, param)], [])
        compare(f"{COMPILED}'s {rule}", found, Trained(expected.params, []), tolerance("float32", WARM_UP))
        if ("torch-foreach", rule) in WRITES_GRADIENTS:  # once more, with gradients that stay zeros
            self.step = started(device, contender, rule, own, 0)
        self.compilations = compilations()

    def entry(self, workload: str, rule: str) -> Compilation:
        """Return the report's entry."""
        return {"workload": workload, "rule": rule, "seconds": self.seconds}

    def finish(self) -> bool:
        """Reset the compiler, and return whether it has compiled anything since the first steps."""
        import torch

        compiled_anew = compilations() != self.compilations
        torch.compiler.reset()  # it keeps the tensors
        return compiled_anew


def started(device: Device, contender: Contender, rule: str, arrays: Arrays, gradient: Any) -> Step:
    """Make a step and take it a few times with the same gradient, which it may overwrite."""
    before = compilations()
    step = contender.make(arrays, rule)
    for _ in range(WARM_UP):
        arrays.grads[0][...] = gradient
        step()
    device.synchronize()
    if compilations() == before:
        raise WrongResultError("torch.compile compiled nothing")
    return step


def head(device: Device, array: Any) -> Array:
    """Fetch the first elements."""
    fetched: Array = device.cupy.asnumpy(array[:COMPARED]).astype(np.float64)
    return fetched
