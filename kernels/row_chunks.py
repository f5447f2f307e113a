"""Chunks of a table's rows: each row of a sparse gradient once, those that come more than once added up.

Loops over chunks then update these rows where they lie, as they would update whole tensors.
"""

from __future__ import annotations

import functools
from typing import Any

from numba import from_dtype, njit, types

from . import cache
from .lock import lock
from .tables import ABI, CHUNK


def make(dtype: str) -> Any:
    """Define the function that cuts rows of a dtype, for ``njit``."""

    def cut(keys, bits, values, sums, chunks, copies):  # type: ignore[no-untyped-def]
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


@functools.cache
def cutter(dtype: str) -> Any:
    """Return the compiled function for values of float32 or float64; it lives as long as the process.

    It is ``cut(keys, bits, values, sums, chunks, copies)``. Keys are sorted: the row in the upper bits, in the lower
    ones its place in ``values``. A chunk of tensor 0 has its gradient in ``values``, one of tensor 1 in ``sums``: all
    of them if ``copies``, else those of rows that come more than once, whose values are added up in the order of their
    places. It returns how many chunks, and how many rows of ``sums``, it has written.
    """
    number = getattr(types, dtype)
    pair: Any = types.UniTuple(types.int64, 2)  # type: ignore[no-untyped-call]
    signature = pair(
        types.int64[::1],
        types.int64,
        types.Array(number, 2, "C", readonly=True),
        number[:, ::1],
        from_dtype(CHUNK)[::1],
        types.boolean,
    )
    with lock, cache.one_process_at_a_time():
        return cache.compile_kept(make(dtype), functools.partial(njit, signature, error_model="numpy", nogil=True))
