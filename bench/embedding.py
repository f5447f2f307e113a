"""What a step takes in a loop that is not Python's: compiled by Numba, in C++ by the header, in C through a pointer."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypedDict

import cffi
import numpy as np
from fastopt.kernels import cpu
from numba import njit

from fastopt import embed
from fastopt.progress import track

from .contenders import CONTENDERS, EPS, LR, MOMENTUM, RULES, Step
from .measure import Pace, back_to_back, measure, median_ratio
from .workloads import WORKLOADS, Array, Arrays, Workload, zeros

WORKLOAD = WORKLOADS["mlp"]
HYPERPARAMETERS = {"lr": LR, "momentum": MOMENTUM, "eps": EPS}
STEPS = 1000  # that a loop takes when it is called, so that the call does not show
ELEMENTS = 64  # of the array of a single call
SHARE = 0.25  # of the time that a workload gets: these steps are short, and need fewer rounds

SOURCE = Path(__file__).with_name("loops.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC")
TENSOR = np.dtype([("param", np.int64), ("grad", np.int64), ("state", np.int64), ("n", np.int64)])  # as in the source

NUMBA, HEADER, POINTER = "Numba", "C++", "C, by pointer"  # the loops


class Loop(TypedDict):
    """A step of one rule in one loop: seconds, and how many times as long others take."""

    rule: str
    loop: str
    seconds: float
    of_step: float
    of_numpy: float


class Embedded(TypedDict):
    """What steps take in loops, and a single call through a pointer on so many elements, where there is a compiler."""

    parameters: int
    rows: list[Loop]
    elements: int
    call_seconds: float | None


def compiled_loops() -> Any:
    """Compile the loops in C++, and return them.

    Raises
    ------
    OSError
        If there is no compiler, or it fails.
    """
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise OSError("there is no g++; CXX may name another compiler of C++")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "loops.so"
        command = [compiler, *FLAGS, f"-I{embed.get_include()}", str(SOURCE), "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise OSError(f"{compiler} does not compile them:\n{done.stderr}")
        return declared().dlopen(str(path))


def declared() -> Any:
    """Declare the functions of the source."""
    ffi = cffi.FFI()
    ffi.include(embed.ffi)
    arguments = "const void *tensors, int64_t count, const double *hyper, int64_t steps"
    ffi.cdef("\n".join(f"void header_{rule}({arguments});" for rule in RULES))
    ffi.cdef(f"void by_pointer(fastopt_update update, {arguments});")
    return ffi


def hyper(rule: str) -> Any:
    """Return a rule's numbers, as all contenders have them."""
    return embed.hyper_values(rule, **{name: HYPERPARAMETERS[name] for name in embed.hyper(rule)})


def numba_loop(arrays: Arrays, states: Sequence[Array], rule: str, steps: int) -> Step:
    """Make a loop over the six tensors that Numba compiles; left in their tuples, they took half as long again."""
    update = getattr(cpu, f"update_{rule}")
    params, grads, states = tuple(arrays.params), tuple(arrays.grads), tuple(states)
    numbers = tuple(hyper(rule))

    @njit
    def loop(p: Any, g: Any, s: Any, first: float, second: float, steps: int) -> None:
        w1, b1, w2, b2, w3, b3 = p
        dw1, db1, dw2, db2, dw3, db3 = g
        s1, t1, s2, t2, s3, t3 = s
        for _ in range(steps):
            update(w1, dw1, s1, first, second)
            update(b1, db1, t1, first, second)
            update(w2, dw2, s2, first, second)
            update(b2, db2, t2, first, second)
            update(w3, dw3, s3, first, second)
            update(b3, db3, t3, first, second)

    return lambda: loop(params, grads, states, *numbers, steps)


class CompiledLoop:
    """A loop in C++ or C, ready to be called; it holds the arrays that its table of tensors points to.

    Parameters
    ----------
    function : callable
        Of the library, with what it takes ahead of the table.
    arrays, states, rule, steps
        What is updated, how, and how often.
    """

    def __init__(
        self, function: Callable[..., object], arrays: Arrays, states: Sequence[Array], rule: str, steps: int
    ) -> None:
        self.function, self.held = function, (arrays, states)
        addresses = [[array.ctypes.data for array in of] for of in (arrays.params, arrays.grads, states)]
        table = np.array([(*row, p.size) for *row, p in zip(*addresses, arrays.params, strict=True)], TENSOR)
        buffer = embed.ffi.from_buffer  # which keeps what it is given
        self.arguments = buffer(table), len(table), buffer("double *", hyper(rule)), steps

    def __call__(self) -> None:
        """Take the steps."""
        self.function(*self.arguments)


def states_of(arrays: Arrays) -> list[Array]:
    """Allocate a state for each parameter."""
    return [zeros(param.shape) for param in arrays.params]


def by_pointer(library: Any, rule: str) -> Callable[..., object]:
    """Hand an update over to the loop that calls what it is given."""
    return functools.partial(library.by_pointer, embed.update(rule, np.float32))


def loops(library: Any, arrays: Arrays, rule: str, steps: int = STEPS) -> dict[str, Step]:
    """Make all loops, by their names, each on states of its own; those of a library only where there is one."""
    made: dict[str, Step] = {NUMBA: numba_loop(arrays, states_of(arrays), rule, steps)}
    if library is not None:
        functions = {HEADER: getattr(library, f"header_{rule}"), POINTER: by_pointer(library, rule)}
        made |= {name: CompiledLoop(of, arrays, states_of(arrays), rule, steps) for name, of in functions.items()}
    return made


def embedded(library: Any, pace: Pace) -> Embedded:
    """Measure all loops by all rules, and a single call.

    Parameters
    ----------
    library : object or None
        What `compiled_loops` returns.
    pace : Pace
        Of a workload.
    """
    pace = dataclasses.replace(pace, seconds=SHARE * pace.seconds)
    arrays = Arrays.draw(WORKLOAD)
    return {
        "parameters": WORKLOAD.elements,
        "rows": [row for rule in track(RULES, "Embedding") for row in rule_rows(library, arrays, rule, pace)],
        "elements": ELEMENTS,
        "call_seconds": None if library is None else call_seconds(library, pace),
    }


def rule_rows(library: Any, arrays: Arrays, rule: str, pace: Pace) -> list[Loop]:
    """Measure the loops of one rule, beside an optimizer's step and NumPy's."""
    own = loops(library, arrays, rule)
    seconds = timed_loops(own, {name: CONTENDERS[name](arrays, rule) for name in ("fastopt", "numpy")}, pace)
    return [
        {
            "rule": rule,
            "loop": name,
            "seconds": median(seconds[name]),
            "of_step": median_ratio(seconds["fastopt"], seconds[name]),
            "of_numpy": median_ratio(seconds["numpy"], seconds[name]),
        }
        for name in own
    ]


def timed_loops(own: Mapping[str, Step], others: Mapping[str, Step], pace: Pace) -> dict[str, list[float]]:
    """Return the seconds of a step, in loops and outside of them."""
    contestants = {**own, **others}
    for step in contestants.values():
        step()  # compiles and allocates
    seconds = measure(contestants, back_to_back, pace)
    return {name: [s / STEPS if name in own else s for s in taken] for name, taken in seconds.items()}


def call_seconds(library: Any, pace: Pace) -> float:
    """Measure a call of momentum's update, on one small array."""
    one = Arrays.draw(Workload("one", "one array", ((ELEMENTS,),)))
    call = CompiledLoop(by_pointer(library, "momentum"), one, states_of(one), "momentum", STEPS)
    return median(timed_loops({POINTER: call}, {}, pace)[POINTER])
