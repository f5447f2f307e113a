"""Every update rule as a scalar function, and the loop that runs any of them over the chunks of a job.

A rule takes a parameter, its gradient, its states and its hyperparameters, and returns the new parameter and states.
It computes in the parameter's own type, whatever types its hyperparameters arrive in: a Python float beside a float32
array would make Numba go on in float64, at half the speed. Rules stand from the simplest to the hardest.

Rules and the loop stay in this one file: Numba's disk cache notices changes only in the file of the cached function.
For loops of your own, `schedule` stands here as well; its formulas are in ``schedules.py``.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import numpy as np
from numba import carray, cfunc, njit, types  # type: ignore[attr-defined]  # numba exports carray by other means
from numba.extending import intrinsic, overload

from . import cache
from .cold import lock
from .schedules import schedule as schedule
from .tables import ABI, CHUNK, HYPERS, JOB, LAYOUT, TENSOR

# With Python's error model, square roots and divisions stay scalar. No fastmath: it changes divisions and NaN.
compiled = njit(error_model="numpy")

STATES: dict = {}  # name of a rule -> how many states it has
FUNCTIONS: list = []  # their functions, in the same order


def rule(states):
    """Register a scalar function as a rule with so many states."""

    def register(function):
        STATES[function.__name__] = states
        FUNCTIONS.append(compiled(function))
        return FUNCTIONS[-1]

    return register


@rule(states=0)
def sgd(p, g, lr):
    real = type(p)
    return p - real(lr) * g


@rule(states=1)
def momentum(p, g, v, lr, momentum):
    real = type(p)
    v = real(momentum) * v + g
    return p - real(lr) * v, v


@rule(states=1)
def nesterov(p, g, v, lr, momentum):
    real = type(p)
    v = real(momentum) * v + g
    return p - real(lr) * (g + real(momentum) * v), v


@rule(states=1)
def adagrad(p, g, s, lr, eps):
    real = type(p)
    s = s + g * g
    return p - real(lr) * g / (np.sqrt(s) + real(eps)), s


def apply(rule, i, p, g, states, hypers):
    """Element i of p and of its states, updated by the rule of that number; the compiler chooses, in ``_apply``."""
    raise TypeError("apply() exists in compiled code only")


@overload(apply, prefer_literal=True, inline="always")
def _apply(rule, i, p, g, states, hypers):
    function = FUNCTIONS[rule.literal_value]
    states_used = STATES[function.__name__]
    used = len(inspect.signature(function.py_func).parameters) - 2 - states_used

    def stateless(rule, i, p, g, states, hypers):
        p[i] = function(p[i], g, *hypers[:used])

    def one_state(rule, i, p, g, states, hypers):
        p[i], states[0][i] = function(p[i], g, states[0][i], *hypers[:used])

    def two_states(rule, i, p, g, states, hypers):
        p[i], states[0][i], states[1][i] = function(p[i], g, states[0][i], states[1][i], *hypers[:used])

    def three_states(rule, i, p, g, states, hypers):
        p[i], states[0][i], states[1][i], states[2][i] = function(
            p[i], g, states[0][i], states[1][i], states[2][i], *hypers[:used]
        )

    return (stateless, one_state, two_states, three_states)[states_used]


@compiled
def update(rule, p, g, states, scale, decay, hypers):
    """One run of elements. Weight decay is a test here, outside the loop, where it costs nothing."""
    if decay == 0:
        for i in range(p.size):
            apply(rule, i, p, scale * g[i], states, hypers)
    else:
        for i in range(p.size):
            apply(rule, i, p, scale * g[i] + decay * p[i], states, hypers)


@intrinsic
def pointer(typing_context, address):
    """An address from a table as the pointer that it is."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), generate


# Columns of a transposed tile that are read side by side, so that their cache misses overlap: a third off the time of a
# large transposed gradient against one column at a time; 16 were slower than 8.
COLUMNS = 8


@compiled
def gather(out, grad, rows, length, row_stride, item_stride, real):
    """Copy a tile of a gradient into the parameter's order, along whichever axis is denser in the gradient."""
    if abs(row_stride) < abs(item_stride):
        whole = length - length % COLUMNS
        for start in range(0, whole, COLUMNS):
            for r in range(rows):
                at = grad + r * row_stride + start * item_stride
                for i in range(COLUMNS):
                    out[r * length + start + i] = carray(pointer(at + i * item_stride), 1, real)[0]
        for i in range(whole, length):
            for r in range(rows):
                out[r * length + i] = carray(pointer(grad + r * row_stride + i * item_stride), 1, real)[0]
    else:
        for r in range(rows):
            for i in range(length):
                out[r * length + i] = carray(pointer(grad + r * row_stride + i * item_stride), 1, real)[0]


SIGNATURE = types.void(types.intp, types.int64, types.int64, types.int64)  # fastopt_kernel
make_cfunc = functools.partial(cfunc, SIGNATURE, error_model="numpy")


def make_kernel(name, dtype):
    """Define the kernel of a rule for a dtype: a plain function, for ``cfunc``.

    It closes over plain constants only, since a closure over a compiled function never hits Numba's cache; and it has
    a name of its own, since functions that share a name share a cache index, in which two processes can mistake one
    variant for another.
    """
    number = list(STATES).index(name)
    real = np.dtype(dtype).type
    size = np.dtype(dtype).itemsize

    def kernel(job_address, begin, end, worker):
        job = carray(pointer(job_address), 1, JOB)[0]
        chunks = carray(pointer(job.chunks), end, CHUNK)
        for c in range(begin, end):
            chunk = chunks[c]
            tensor = carray(pointer(job.tensors), chunk.tensor + 1, TENSOR)[chunk.tensor]
            if tensor.grad == 0:
                continue
            row = carray(pointer(job.hypers), (tensor.hyper + 1, HYPERS), np.float64)[tensor.hyper]
            scale, decay = real(row[0]), real(row[1])
            hypers = (real(row[2]), real(row[3]), real(row[4]), real(row[5]), real(row[6]), real(row[7]))
            runs, length, step = 1, chunk.length, 0
            grad = tensor.grad + chunk.grad_offset * size
            if tensor.layout != 0:
                layout = carray(pointer(tensor.layout), 1, LAYOUT)[0]
                runs, step = chunk.rows, layout.param_row
                grad = job.scratch + worker * job.scratch_bytes
                gather(
                    carray(pointer(grad), runs * length, real),
                    tensor.grad + chunk.grad_offset,
                    runs,
                    length,
                    layout.grad_row,
                    layout.grad_item,
                    real,
                )
                if step == length:  # whole rows: the tile is one run
                    runs, length = 1, runs * length
            for r in range(runs):
                at = (chunk.offset + r * step) * size
                update(
                    number,
                    carray(pointer(tensor.param + at), length, real),
                    carray(pointer(grad + r * length * size), length, real),
                    (
                        carray(pointer(tensor.states[0] + at), length, real),
                        carray(pointer(tensor.states[1] + at), length, real),
                        carray(pointer(tensor.states[2] + at), length, real),
                    ),
                    scale,
                    decay,
                    hypers,
                )

    kernel.__name__ = kernel.__qualname__ = f"{name}_{np.dtype(dtype).name}_abi{ABI}"
    return kernel


_kernels: dict = {}


def kernel(name: str, dtype: Any) -> Any:
    """The compiled kernel of a rule for a dtype, as a Numba ``CFunc``; it lives as long as the process."""
    key = name, np.dtype(dtype).name
    if key not in _kernels:
        with lock, cache.one_process_at_a_time():
            if key not in _kernels:
                _kernels[key] = cache.compile_kept(make_kernel(name, dtype), make_cfunc)
    return _kernels[key]


def cached(name: str, dtype: Any) -> bool:
    """Whether a rule's kernel for a dtype would be taken from the cache, as it is now and on this processor."""
    return cache.kept(make_kernel(name, dtype), SIGNATURE)
