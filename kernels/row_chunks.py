"""Chunks of a table's rows: each row of a sparse gradient once, those that come more than once added up.

Loops over chunks then update these rows where they lie, as they would update whole tensors. A *key* is a row's number
in the upper bits and a place among the values in the lower ones: what is sorted by rows keeps the order of places.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numba import from_dtype, njit, types

from . import cache
from .lock import lock
from .tables import ABI, CHUNK

DIGIT = 11  # bits by which keys are sorted at once: counts of so many digits fit into the L1 cache


def make_order() -> Any:
    """Define the function that sorts rows, for ``njit``."""

    def order(indices, bits, largest, keys, spare):  # type: ignore[no-untyped-def]  # Numba has its types
        lowest, highest, swapped = 0, -1, False
        for place in range(indices.size):
            row = indices[place]  # read once: what is checked is what is used
            lowest, highest = min(lowest, row), max(highest, row)
            keys[place] = (row << bits) | place
        if lowest < 0 or highest > largest:
            return lowest, highest
        starts, source, target = np.empty(1 << DIGIT, np.int64), keys, spare
        shift, left, mask = bits, highest, (1 << DIGIT) - 1
        while left > 0:
            starts[:] = 0
            for key in source:
                starts[(key >> shift) & mask] += 1
            total = 0
            for digit in range(starts.size):
                total, starts[digit] = total + starts[digit], total
            for key in source:
                digit = (key >> shift) & mask
                target[starts[digit]] = key
                starts[digit] += 1
            source, target = target, source
            shift, left = shift + DIGIT, left >> DIGIT
            swapped = not swapped
        if swapped:
            keys[:] = spare
        return lowest, highest

    order.__name__ = order.__qualname__ = f"order_rows_abi{ABI}"
    return order


def make(dtype: str) -> Any:
    """Define the function that cuts rows of a dtype, for ``njit``."""

    def cut(keys, bits, values, sums, chunks, copies):  # type: ignore[no-untyped-def]  # Numba has its types
        mask, width = (1 << bits) - 1, values.shape[1]
        count = summed = first = 0
        while first < keys.size:
            row, end = keys[first] >> bits, first + 1
            while end < keys.size and keys[end] >> bits == row:
                end += 1
            place = keys[first] & mask
            alone = end == first + 1 and not copies
            if not alone:
                for i in range(width):
                    sums[summed, i] = values[place, i]
                for k in range(first + 1, end):
                    other = keys[k] & mask
                    for i in range(width):
                        sums[summed, i] += values[other, i]
                place, summed = summed, summed + 1
            chunk = chunks[count]
            chunk.tensor = 0 if alone else 1
            chunk.rows = 1
            chunk.offset = row * width
            chunk.grad_offset = place * width
            chunk.length = width
            count, first = count + 1, end
        return count, summed

    cut.__name__ = cut.__qualname__ = f"cut_rows_{dtype}_abi{ABI}"
    return cut


PAIR: Any = types.UniTuple(types.int64, 2)  # type: ignore[no-untyped-call]  # Numba's class has no annotations


@functools.cache
def orderer() -> Any:
    """Return the compiled function that makes sorted keys; it lives as long as the process.

    It is ``order(indices, bits, largest, keys, spare)``: indices are int64, places have so many bits, ``keys`` is
    written and ``spare`` used. It returns the lowest index, 0 at most, and the highest, -1 at least. If one is negative
    or above the largest that is allowed, nothing is sorted.
    """
    indices = types.Array(types.int64, 1, "C", readonly=True)
    return compiled(make_order(), PAIR(indices, types.int64, types.int64, types.int64[::1], types.int64[::1]))


def compiled(function: Any, signature: Any) -> Any:
    """Compile a function for a signature, or load it."""
    with lock, cache.one_process_at_a_time():
        return cache.compile_kept(function, functools.partial(njit, signature, error_model="numpy", nogil=True))


@functools.cache
def cutter(dtype: str) -> Any:
    """Return the compiled function for values of float32 or float64; it lives as long as the process.

    It is ``cut(keys, bits, values, sums, chunks, copies)``, for sorted keys. A chunk of tensor 0 has its gradient in
    ``values``, one of tensor 1 in ``sums``: all of them if ``copies``, else those of rows that come more than once,
    whose values are added up in the order of their places. It returns how many chunks, and how many rows of ``sums``,
    it has written.
    """
    number = getattr(types, dtype)
    signature = PAIR(
        types.int64[::1],
        types.int64,
        types.Array(number, 2, "C", readonly=True),
        number[:, ::1],
        from_dtype(CHUNK)[::1],
        types.boolean,
    )
    return compiled(make(dtype), signature)
