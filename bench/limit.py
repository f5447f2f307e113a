"""The memory's limit: a plain compiled loop that reads and writes what a rule does, over as many bytes."""

from __future__ import annotations

import numpy as np
from fastopt.kernels import pool
from fastopt.kernels.cpu import SIGNATURE, pointer
from numba import carray, cfunc  # type: ignore[attr-defined]

from .contenders import Step
from .workloads import aligned

BLOCK = 16_384  # elements that a thread takes at a time


@cfunc(SIGNATURE)
def stream(addresses, begin, end, worker):  # type: ignore[no-untyped-def]
    """Read p, g and s, write p and s: the traffic of every rule with one state. The numbers swing, and never grow."""
    streams = carray(pointer(addresses), 3, np.int64)  # type: ignore[call-arg]
    p = carray(pointer(streams[0]), end, np.float32)[begin:]
    g = carray(pointer(streams[1]), end, np.float32)[begin:]
    s = carray(pointer(streams[2]), end, np.float32)[begin:]
    for i in range(p.size):  # from 0: where an index might be negative, Numba's loop is scalar
        s[i] = g[i] - s[i]
        p[i] = g[i] - p[i]


def limits(elements: int) -> dict[str, Step]:
    """Make the loop on one thread, and on as many as fastopt may use; the faster of the two is the limit.

    Parameters
    ----------
    elements : int
        Length of each of the three streams.
    """
    streams = [aligned((elements,)) for _ in range(3)]
    for array in streams:
        array[...] = 1
    addresses = np.array([array.ctypes.data for array in streams])
    run = pool.runner(stream, addresses.ctypes.data)

    def on(threads: int) -> Step:
        # The arrays live as long as the step does.
        return lambda keep=(streams, addresses): run(elements, BLOCK, threads)  # type: ignore[misc]

    return {f"limit, {threads} threads": on(threads) for threads in sorted({1, pool.get_num_threads()})}
