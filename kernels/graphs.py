"""What a captured graph uses is the graph's own: held for it here, until CUDA says that the graph is gone."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Any

from .extension import ffi, lib

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"  # the driver, which CuPy has loaded

ROOM = 64  # for numbers, at a time

_held: dict[int, Sequence[Any]] = {}  # number -> what a graph owns
_numbers = itertools.count(1)


def own(stream: int, objects: Sequence[Any]) -> None:
    """Let the graph that a stream records own some objects, and so whatever is instantiated from it.

    Without the extension, or where the driver is too old for it, they are held for the life of the process.

    Parameters
    ----------
    stream : int
        Its address.
    objects : sequence
        What the memory belongs to that the graph's kernels use.
    """
    number = next(_numbers)
    _held[number] = objects
    if lib is not None:
        lib.fastopt_graph_owns(LIBRARY.encode(), ffi.cast("void *", stream), number)


def drop_gone() -> None:
    """Let go of what belonged to graphs that are gone; not inside of a capture, which memory given back would spoil."""
    if not _held or lib is None:
        return
    numbers = ffi.new("int64_t[]", ROOM)
    while count := lib.fastopt_graphs_gone(numbers, ROOM):
        for number in numbers[0:count]:
            del _held[number]
