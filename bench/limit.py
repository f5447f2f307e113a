"""The memory's limit: a plain compiled loop that reads and writes as many bytes as a rule does."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from fastopt.kernels import pool
from fastopt.kernels.cpu import SIGNATURE, pointer
from numba import carray, cfunc  # type: ignore[attr-defined]

from .contenders import Step
from .workloads import aligned

BLOCK = 16_384  # elements that a thread takes at a time


@functools.cache
def stream(states: int) -> Any:
    """Compile a loop that reads p, g and states, and writes p and states. The numbers alternate, and never grow."""

    @cfunc(SIGNATURE)
    def loop(addresses, begin, end, worker):  # type: ignore[no-untyped-def]
        streams = carray(pointer(addresses), 4, np.int64)  # type: ignore[call-arg]
        p = carray(pointer(streams[0]), end, np.float32)[begin:]
        g = carray(pointer(streams[1]), end, np.float32)[begin:]
        s = carray(pointer(streams[2]), (states, streams[3]), np.float32)[:, begin:]
        for i in range(p.size):  # from 0: if an index might be negative, Numba does not vectorise
            for state in range(states):
                s[state, i] = g[i] - s[state, i]
            p[i] = g[i] - p[i]

    return loop


def limits(elements: int, states: int) -> dict[str, Step]:
    """Make the loop for one thread, and for as many as fastopt may use; the faster one is the limit.

    Parameters
    ----------
    elements : int
        Length of parameters, gradients and each state.
    states : int
        How many states the rule has.
    """
    streams = [aligned(shape) for shape in ((elements,), (elements,), (states, elements))]
    for array in streams:
        array[...] = 1
    addresses = np.array([*(array.ctypes.data for array in streams), elements])
    run = pool.runner(stream(states), addresses.ctypes.data)

    def on(threads: int) -> Step:
        # The arrays live as long as the step does.
        return lambda keep=(streams, addresses): run(elements, BLOCK, threads)  # type: ignore[misc]

    return {f"limit, {threads} threads": on(threads) for threads in sorted({1, pool.get_num_threads()})}
