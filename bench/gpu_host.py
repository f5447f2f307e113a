"""Times the host's part of a GPU step that repeats the last one, with a driver that does nothing: on any machine.

It is the step that optimizers take, a `Repetition`, over made-up addresses: it computes the hyper row, copies row and
gradients' addresses into the kernel's argument, and launches through functions that return at once, each in a few
nanoseconds, in the place of CUDA's driver. Not in it are what Python does to find out where the gradients lie, and what
the driver takes for a launch, which depends on the size of the argument: `fastopt bench --gpu` measures that.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
from fastopt.kernels.cuda import MOST_THREADS, SIZES
from fastopt.kernels.dtypes import DTYPES
from fastopt.kernels.reader import address
from fastopt.kernels.repetition import Repetition
from fastopt.kernels.tables import DRIVER, GPU, GPU_JOB, HYPERS, ROW_INPUTS
from numba import cfunc

from fastopt.progress import track
from fastopt.rules import RULES as REGISTRY
from fastopt.step.plan import NO_THREADS

from .contenders import OPTIMIZERS, Step
from .measure import Pace, back_to_back, settled
from .rounds import reasons
from .workloads import WORKLOADS

RULES = ("momentum", "adam")  # the hyper row stays, and is another at each step
TENSORS = (1, len(WORKLOADS["resnet50"].shapes), len(WORKLOADS["tensors_2000"].shapes))
SHARE = 0.25  # of a workload's time: these steps are short, and need fewer rounds
WORD = 8
MADE_UP = 1 << 20  # an address that nobody follows

# Signatures of the driver's functions, as Numba writes them; see kernels/driver.h.
LAUNCH = f"int32(voidptr, {'uint32, ' * 7}voidptr, voidptr, voidptr)"
IS_CAPTURING = "int32(voidptr, CPointer(int32))"
ON_CONTEXT = "int32(voidptr)"

STAYING, NEW = "gradients that stay", "new gradients"


class Host(TypedDict):
    """The seconds of a step of one rule over so many tensors, by where its gradients lie; None if unstable."""

    rule: str
    tensors: int
    staying_gradients: float | None
    new_gradients: float | None
    unstable: dict[str, str]


@functools.cache
def functions() -> tuple[Any, ...]:
    """Compile functions for those of the driver, in the order of DRIVER: they succeed, and no stream is capturing."""

    def is_capturing(stream: Any, status: Any) -> int:
        status[0] = 0
        return 0

    launch = cfunc(LAUNCH)(lambda kernel, x, y, z, across, down, deep, shared, stream, arguments, extra: 0)
    nothing = cfunc(ON_CONTEXT)(lambda context: 0)
    return launch, cfunc(IS_CAPTURING)(is_capturing), nothing, nothing, nothing


class Gpu:
    """A GPU that is not there: what a repetition needs of a `Stream`, as it is for CuPy's arrays.

    Its context is null, as the thread's current one is according to a driver that writes none.
    """

    def __init__(self) -> None:
        self.functions = np.array([tuple(function.address for function in functions())], DRIVER)
        self.gpu = np.zeros(1, GPU)
        self.pointer = self.gpu["stream"]  # a view

    def tell(self) -> None:
        """Tell the extension which stream is the current one, without asking CuPy."""
        self.pointer[0] = MADE_UP


class Repeated:
    """A step over tensors of one rule, of float32, by one kernel on one GPU.

    Attributes
    ----------
    argument : array of int64
        The kernel's argument, as `GpuLaunch` lays it out.
    rows : array of float32
        The hyper row in it.
    repetition : Repetition
    """

    def __init__(self, rule: str, tensors: int, gpu: Any) -> None:
        self.argument = np.zeros(SIZES[-1] // WORD, np.int64)
        travelling = self.argument[GPU_JOB.itemsize // WORD :]
        self.gradients, behind = travelling[:tensors], travelling[tensors:]
        self.rows = behind.view(np.float32)[:HYPERS]
        launch = address(gpu.gpu), MADE_UP, address(self.argument), address(behind), 1, tensors, MOST_THREADS
        places = address(self.gradients) + WORD * np.arange(tensors, dtype=np.int64)
        self.repetition = Repetition([], [launch], [gpu], places, NO_THREADS)
        self.repetition.set_rows(row_of(rule), np.ones(1), np.ones(1), 1.0, DTYPES["float32"].largest)
        if REGISTRY[rule].moves(options_of(rule)):
            self.repetition.describe(inputs_of(rule), [])

    def staying(self) -> Step:
        """Make a step with the gradients of the last one."""
        return functools.partial(self.repetition.take, None)

    def new(self) -> Step:
        """Make a step whose gradients lie elsewhere each time."""
        places = np.arange(len(self.gradients), dtype=np.int64)
        turns, take = itertools.cycle((MADE_UP + places, 2 * MADE_UP + places)), self.repetition.take
        return lambda: take(next(turns))


def options_of(rule: str) -> dict[str, Any]:
    """Return a rule's options, those that all contenders have and the rest at 0."""
    return {**dict.fromkeys(REGISTRY[rule].options, 0.0), **OPTIMIZERS[rule][1]}


def row_of(rule: str) -> npt.NDArray[np.float64]:
    """Return the hyper row of the first step."""
    numbers = REGISTRY[rule].row(options_of(rule), 1, False)
    rows = np.zeros((1, HYPERS))
    rows[0, : len(numbers)] = numbers
    return rows


def inputs_of(rule: str) -> npt.NDArray[Any]:
    """Return what the extension computes the row from, beginning with the second step."""
    numbers = [number for _, number in REGISTRY[rule].numbers(options_of(rule))]
    inputs = np.zeros(1, ROW_INPUTS)
    inputs["rule"], inputs["steps"] = list(REGISTRY).index(rule), 1
    inputs["options"][0, : len(numbers)] = numbers
    return inputs


def hosts(pace: Pace) -> list[Host]:
    """Measure steps by all rules over all numbers of tensors; the extension has to be there.

    Parameters
    ----------
    pace : Pace
        The pace of a whole workload.
    """
    pace, gpu = pace.share(SHARE), Gpu()
    cases = list(itertools.product(RULES, TENSORS))
    return [host(Repeated(rule, tensors, gpu), rule, tensors, pace) for rule, tensors in track(cases, "Submitting")]


def host(step: Repeated, rule: str, tensors: int, pace: Pace) -> Host:
    """Measure one step, with gradients that stay and with new ones."""
    contestants = {STAYING: step.staying(), NEW: step.new()}
    rounds = settled(contestants, back_to_back, pace, ())
    staying, new = rounds.seconds(STAYING), rounds.seconds(NEW)
    return {
        "rule": rule,
        "tensors": tensors,
        "staying_gradients": staying.value,
        "new_gradients": new.value,
        "unstable": reasons(staying_gradients=staying, new_gradients=new),
    }
