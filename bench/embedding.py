"""Times steps in compiled loops: in Numba, in C++ with the header, and in C through a pointer."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import cffi
import numpy as np
import numpy.typing as npt
from fastopt.kernels import cpu
from fastopt.kernels.tables import STATES
from numba import njit
from numba.np.unsafe.ndarray import to_fixed_tuple

from fastopt import embed
from fastopt.progress import track

from .contenders import CONTENDERS, OPTIMIZERS, RULES, Step, states_of
from .measure import Pace, back_to_back, settled
from .rounds import Figure, Rounds, reasons
from .workloads import WORKLOADS, Array, Arrays, Workload

WORKLOAD = WORKLOADS["mlp"]
STEPS = 1000  # per call of a loop, so that the call itself does not show
ELEMENTS = 64  # in the array of a single call
SHARE = 0.25  # of a workload's time: these steps are short, and need fewer rounds

SOURCE = Path(__file__).with_name("loops.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-shared", "-fPIC")
# As in the source.
TENSOR = np.dtype([("param", np.int64), ("grad", np.int64), ("states", np.int64, (STATES,)), ("n", np.int64)])

as_tuple: Any = to_fixed_tuple  # typed as what Numba calls while it compiles

NUMBA, HEADER, POINTER = "Numba", "C++", "C, by pointer"  # the loops


class Loop(TypedDict):
    """A step of one rule in one loop: seconds, and how many times as long others take; None if unstable."""

    rule: str
    loop: str
    seconds: float | None
    of_step: float | None
    of_numpy: float | None
    unstable: dict[str, str]


class Embedded(TypedDict):
    """The times of steps in loops and, if there is a compiler, of a single call through a pointer."""

    parameters: int
    rows: list[Loop]
    elements: int
    call_seconds: float | None
    unstable: dict[str, str]


def compiled_loops() -> Any:
    """Compile the loops in C++, and return them.

    Raises
    ------
    OSError
        If there is no compiler, or it fails.
    """
    name = os.environ.get("CXX", "g++")
    compiler = shutil.which(name)
    if compiler is None:
        raise OSError(f"there is no {name}; CXX may name another compiler of C++")
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
    arguments = "const void *tensors, int64_t count, const double *hyper, int64_t hypers, int64_t steps"
    ffi.cdef("\n".join(f"void header_{rule}({arguments});" for rule in RULES))
    ffi.cdef(f"void by_pointer(fastopt_update update, {arguments});")
    return ffi


def hypers(rule: str, steps: int) -> npt.NDArray[np.float64]:
    """Return a rule's hyperparameters for each of `steps` steps, with the options that all contenders have."""
    options = {name: value for name, value in OPTIMIZERS[rule][1].items() if name != "nesterov"}
    if rule == "adam":
        return np.array([embed.hyper_values(rule, step=step, **options) for step in range(1, steps + 1)])
    return np.tile(embed.hyper_values(rule, **options), (steps, 1))


@functools.cache
def in_numba(rule: str) -> Any:
    """Make a Numba loop over the six tensors, unpacked: in tuples they took 1.5 times as long."""
    update, count = getattr(cpu, f"update_{rule}"), hypers(rule, 1).shape[1]

    @njit
    def loop(p: Any, g: Any, s: Any, rows: Any) -> None:
        w1, b1, w2, b2, w3, b3 = p
        dw1, db1, dw2, db2, dw3, db3 = g
        s1, t1, s2, t2, s3, t3 = s
        for step in range(len(rows)):
            row = as_tuple(rows[step], count)
            update(w1, dw1, *s1, *row)
            update(b1, db1, *t1, *row)
            update(w2, dw2, *s2, *row)
            update(b2, db2, *t2, *row)
            update(w3, dw3, *s3, *row)
            update(b3, db3, *t3, *row)

    return loop


def numba_loop(arrays: Arrays, states: Sequence[tuple[Array, ...]], rule: str, steps: int) -> Step:
    """Bind the Numba loop to arrays."""
    loop, rows = in_numba(rule), hypers(rule, steps)
    params, grads = tuple(arrays.params), tuple(arrays.grads)
    return lambda: loop(params, grads, tuple(states), rows)


class CompiledLoop:
    """A loop in C++ or C, ready to be called; it holds the arrays that its table of tensors points to.

    Parameters
    ----------
    function : callable
        The library's function, with the arguments before the table bound.
    arrays, states, rule, steps
        What to update, how, and how often.
    """

    def __init__(
        self,
        function: Callable[..., object],
        arrays: Arrays,
        states: Sequence[tuple[Array, ...]],
        rule: str,
        steps: int,
    ) -> None:
        self.function, self.held = function, (arrays, states)
        table = np.zeros(len(arrays.params), TENSOR)
        for row, p, g, own in zip(table, arrays.params, arrays.grads, states, strict=True):
            row["param"], row["grad"], row["n"] = p.ctypes.data, g.ctypes.data, p.size
            row["states"][: len(own)] = [state.ctypes.data for state in own]
        rows = hypers(rule, steps)
        buffer = embed.ffi.from_buffer  # keeps its argument alive
        self.arguments = buffer(table), len(table), buffer("double *", rows), rows.shape[1], steps

    def __call__(self) -> None:
        """Take the steps."""
        self.function(*self.arguments)


def by_pointer(library: Any, rule: str) -> Callable[..., object]:
    """Pass an update to the loop that calls it by pointer."""
    return functools.partial(library.by_pointer, embed.update(rule, np.float32))


def loops(library: Any, arrays: Arrays, rule: str, steps: int = STEPS) -> dict[str, Step]:
    """Make all loops by name, each with its own states; those in C and C++ only if there is a library."""
    made: dict[str, Step] = {NUMBA: numba_loop(arrays, states_of(np, arrays, rule), rule, steps)}
    if library is not None:
        functions = {HEADER: getattr(library, f"header_{rule}"), POINTER: by_pointer(library, rule)}
        made |= {
            name: CompiledLoop(of, arrays, states_of(np, arrays, rule), rule, steps) for name, of in functions.items()
        }
    return made


def embedded(library: Any, pace: Pace) -> Embedded:
    """Measure all loops by all rules, and a single call.

    Parameters
    ----------
    library : object or None
        What `compiled_loops` returns.
    pace : Pace
        The pace of a whole workload.
    """
    pace = pace.share(SHARE)
    arrays = Arrays.draw(WORKLOAD)
    call = Figure(None) if library is None else call_seconds(library, pace)
    return {
        "parameters": WORKLOAD.elements,
        "rows": [row for rule in track(RULES, "Embedding") for row in rule_rows(library, arrays, rule, pace)],
        "elements": ELEMENTS,
        "call_seconds": call.value,
        "unstable": reasons(call_seconds=call),
    }


def rule_rows(library: Any, arrays: Arrays, rule: str, pace: Pace) -> list[Loop]:
    """Measure the loops of one rule, with the steps of fastopt and of NumPy beside them."""
    own = loops(library, arrays, rule)
    rounds = timed_loops(own, {name: CONTENDERS[name](arrays, rule) for name in ("fastopt", "numpy")}, pace)
    rows: list[Loop] = []
    for name in own:
        seconds, of_step, of_numpy = rounds.seconds(name), rounds.ratio("fastopt", name), rounds.ratio("numpy", name)
        rows.append(
            {
                "rule": rule,
                "loop": name,
                "seconds": seconds.value,
                "of_step": of_step.value,
                "of_numpy": of_numpy.value,
                "unstable": reasons(seconds=seconds, of_step=of_step, of_numpy=of_numpy),
            }
        )
    return rows


def timed_loops(own: Mapping[str, Step], others: Mapping[str, Step], pace: Pace) -> Rounds:
    """Return the seconds of a step, in loops and in the others, over which ratios are taken."""
    contestants = {**own, **others}
    for step in contestants.values():
        step()  # compiles and allocates
    found = settled(contestants, back_to_back, pace, tuple(others))
    per_step = [{name: s / STEPS if name in own else s for name, s in round_.items()} for round_ in found.rounds]
    return Rounds(per_step, found.disturbed)


def call_seconds(library: Any, pace: Pace) -> Figure:
    """Measure one call of momentum's update on one small array."""
    one = Arrays.draw(Workload("one", "one array", ((ELEMENTS,),)))
    call = CompiledLoop(by_pointer(library, "momentum"), one, states_of(np, one, "momentum"), "momentum", STEPS)
    return timed_loops({POINTER: call}, {}, pace).seconds(POINTER)
