"""Captured graphs own the memory that they use: it is kept here until CUDA says that the graph is gone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from . import driver
from .extension import ffi, lib

ROOM = 64  # numbers to fetch at a time

_held: dict[int, Sequence[Any]] = {}  # number -> what a graph owns
_numbers = itertools.count(1)


def own(stream: int, objects: Sequence[Any]) -> None:
    """Let the graph that a stream is capturing, and everything instantiated from it, own some objects.

    Without the extension, or if the driver is too old, they live as long as the process.

    Parameters
    ----------
    stream : int
        Its address.
    objects : sequence
        The owners of the memory that the graph's kernels use.
    """
    number = next(_numbers)
    _held[number] = objects
    if lib is not None:
        lib.fastopt_graph_owns(driver.LIBRARY.encode(), ffi.cast("void *", stream), number)


def drop_gone() -> None:
    """Release what belonged to graphs that are gone. Not during a capture: freeing memory would invalidate it."""
    if not _held or lib is None:
        return
    numbers = ffi.new("int64_t[]", ROOM)
    while count := lib.fastopt_graphs_gone(numbers, ROOM):
        for number in numbers[0:count]:
            del _held[number]
